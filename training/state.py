"""What a run saves and how it goes on: network, averaged network, optimizer, progress and random streams, without pickle.

RUN/last/training_state.safetensors is one object, written atomically, with the JSON in its header: whatever is killed when, a resumed
run reads one consistent state. training_state.json beside it is the same JSON for people.
"""

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import safetensors.torch
import torch
from torch import Tensor, nn

from infra.dataset.format import Manifest
from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place
from model.checkpoint import CONFIG_FILE, Checkpoint, DatasetIdentity, replace_folder, save_checkpoint
from model.codec.base import CodecIdentity
from model.network.unet import AccompanimentUNet
from training.config import MAY_CHANGE, TrainConfig, before_sizes

STATE, STATE_JSON, METRICS = "training_state.safetensors", "training_state.json", "metrics.jsonl"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    step: int = 0
    minutes: float = 0.0
    """Training time, summed over resumes."""
    best: float | None = None
    """Lowest validation loss."""
    stale: int = 0
    """Validations since."""

    def ended(self, config: TrainConfig) -> str:
        """Why the run is over under this config, or nothing."""
        if self.step >= config.steps:
            return f"all {config.steps} steps done"
        if config.patience and self.stale >= config.patience:
            return f"no better validation in {self.stale}"
        if config.max_minutes and self.minutes >= config.max_minutes:
            return f"{config.max_minutes:g} minutes are over"
        return ""


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state as read back."""

    config: dict[str, Any]
    codec: CodecIdentity
    dataset: DatasetIdentity
    progress: Progress
    tensors: dict[str, Tensor]
    initial: str | None
    """Digest of the weights that the run began from; None: from its seed."""


class Average:
    """Exponential moving average of the weights, with the decay growing from 0.1 so that a short run is not held at its start:
    decay(n) = min(decay, (1 + n)/(10 + n))."""

    def __init__(self, network: AccompanimentUNet, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


def dataset_identity(uri: str, manifest: Manifest) -> DatasetIdentity:
    return DatasetIdentity(uri=uri, digest=manifest.digest)


def codec_identity(manifest: Manifest) -> CodecIdentity:
    return CodecIdentity(id=manifest.codec_id, weights_sha256=manifest.codec_weights_sha256)


def save(
    run: Place, *, config: TrainConfig, network: nn.Module, average: Average, optimizer: torch.optim.Optimizer, progress: Progress,
    checkpoint: Checkpoint, best: bool, initial: str | None = None,
) -> None:  # fmt: skip
    """Writes RUN/last (what a resume needs, and a checkpoint), and RUN/best when this is the best so far."""
    description = {
        "version": 1,
        "config": config.to_dict(),
        "codec": dataclasses.asdict(checkpoint.codec),
        "dataset": dataclasses.asdict(checkpoint.dataset),
        "progress": dataclasses.asdict(progress),
        "initial": initial,
        # Streams are counters: this is the whole state of order, crop, timestep, noise and dropout on every rank.
        "streams": {"seed": config.seed, "samples_drawn": progress.step * config.batch_size},
    }
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.network.state_dict().items()}
    for name, parameter in network.named_parameters():
        tensors |= {f"optimizer.{name}.{moment}": value for moment, value in optimizer.state[parameter].items()}
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # The state comes last: until it is there, a resume replays the steps since the save before, and writes best/ again.
    if best:
        put_folder(run / "best", checkpoint)
    put_folder(
        run / "last",
        checkpoint,
        {
            STATE_JSON: json.dumps(description, indent=2).encode(),
            STATE: safetensors.torch.save(contiguous, metadata={"state": json.dumps(description)}),
        },
    )


def put_folder(place: Place, checkpoint: Checkpoint, extra: dict[str, bytes] | None = None) -> None:
    """A checkpoint's folder with extra files: locally put in place as a whole, on S3 object by object, the extra ones last.

    There each save's weights have a name of their own, and checkpoint.json, written after them, says which are meant: whatever is
    interrupted when, the folder holds one whole checkpoint. The one before stays for who began to read it.
    """
    if place.is_s3:
        file = f"model-{checkpoint.step:08d}-{uuid4().hex[:8]}.safetensors"
        try:
            former = json.loads((place / CONFIG_FILE).read_bytes()).get("weights_file")
        except MissingObjectError:
            former = None
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / place.name
            save_checkpoint(folder, checkpoint, file=file)
            for name in (file, CONFIG_FILE):
                (place / name).write_bytes((folder / name).read_bytes())
        for name, data in (extra or {}).items():
            (place / name).write_bytes(data)
        for old in place.list(prefix="model-", suffix=".safetensors"):
            if old.name not in (file, former):
                old.delete()
        return
    arriving = place.path.with_name(f".{place.name}.arriving")
    save_checkpoint(arriving, checkpoint)
    for name, data in (extra or {}).items():
        (arriving / name).write_bytes(data)
    replace_folder(arriving, place.path)


def read_saved_bytes(run: Place) -> bytes | None:
    """The saved state, or the one that a kill left beside its place."""
    for folder in ("last", ".last.former"):
        try:
            return (run / folder / STATE).read_bytes()
        except MissingObjectError:
            continue
    return None


def read_saved(run: Place) -> SavedState | None:
    """The state of the run at this place; None when there is none."""
    data = read_saved_bytes(run)
    if data is None:
        return None
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        described = json.loads(header["__metadata__"]["state"])
        tensors = safetensors.torch.load(data)
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{run / 'last' / STATE} is not a training state of backline: remove it, or choose another --out") from error
    if described["version"] != 1:
        raise UserError(f"{run / 'last' / STATE} has version {described['version']}, this backline reads 1: use the version that wrote it")
    return SavedState(
        config=described["config"],
        codec=CodecIdentity(**described["codec"]),
        dataset=DatasetIdentity(**described["dataset"]),
        progress=Progress(**described["progress"]),
        tensors=tensors,
        initial=described.get("initial"),
    )


def check_resumable(saved: SavedState, config: TrainConfig, codec: CodecIdentity, dataset: DatasetIdentity) -> None:
    """Raises UserError, in one sentence, unless going on from `saved` gives what an uninterrupted run would."""
    mend = "choose another --out, or the dataset that it began with"
    if saved.codec != codec:
        was, now = (f"{identity.id} ({identity.weights_sha256[:8]})" for identity in (saved.codec, codec))
        raise UserError(
            f"the run at {config.out} was trained on latents of codec {was}, and {config.data_names} holds latents of {now}: {mend}"
        )
    if saved.dataset.digest != dataset.digest:
        was, now = (f"{identity.uri} ({identity.digest[:8]})" for identity in (saved.dataset, dataset))
        raise UserError(f"the run at {config.out} was trained on the dataset {was}, and was given {now}: {mend}")
    given = json.loads(json.dumps(config.to_dict()))
    known = json.loads(json.dumps(before_sizes(saved.config["preset"]))) | saved.config
    changed = [name for name in given if name not in MAY_CHANGE and given[name] != known.get(name)]
    if changed:
        was = ", ".join(f"{name} {known.get(name)!r} → {given[name]!r}" for name in changed)
        raise UserError(f"the run at {config.out} cannot go on with other settings ({was}): choose another --out, or give the old values")


def restore(saved: SavedState, network: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts a saved state into the objects of a run."""
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
    for name, value in saved.tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    network.load_state_dict(parts["network"])
    average.network.load_state_dict(parts["average"])
    for name, parameter in network.named_parameters():
        moments = {moment: parts["optimizer"].get(f"{name}.{moment}") for moment in MOMENTS}
        optimizer.state[parameter] = {
            moment: value.to(parameter.device, copy=True) for moment, value in moments.items() if value is not None
        }
    return saved.progress


def write_metrics(run: Place, history: list[dict[str, float]]) -> None:
    (run / METRICS).write_bytes("".join(json.dumps(row) + "\n" for row in history).encode())


def read_metrics(run: Place, *, up_to: int | None = None) -> list[dict[str, float]]:
    """The run's metric rows, each with its step; empty when none are written."""
    try:
        rows = [json.loads(line) for line in (run / METRICS).read_bytes().splitlines()]
    except MissingObjectError:
        return []
    return [row for row in rows if up_to is None or row["step"] <= up_to]
