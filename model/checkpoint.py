"""A checkpoint: one folder that holds all that inference needs, JSON beside safetensors.

checkpoint.json      schema version, network config, latent statistics, codec and dataset identity, step, metrics, usual sampling
model.safetensors    the averaged (EMA) weights, or shards of them with their index (`model.weight_files`)
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
from torch import Tensor

from model.codec.base import CodecIdentity
from model.diffusion.sampling import USUAL_SAMPLING, Sampling
from model.dimensions import LATENT_CHANNELS
from model.errors import ModelError
from model.network.unet import AccompanimentUNet, UNetConfig
from model.weight_files import WEIGHTS_FILE, load_weights, save_weights, weights_sha256

SCHEMA_VERSION = 1
CONFIG_FILE = "checkpoint.json"
SHIPPED_CHECKPOINT = Path(__file__).parent / "weights" / "accompanist"
"""The checkpoint that comes with the project, for who names none."""

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Per-channel mean and deviation of the training split's latents, and the level that its vocals have."""

    vocal_mean: tuple[float, ...]
    vocal_std: tuple[float, ...]
    accompaniment_mean: tuple[float, ...]
    accompaniment_std: tuple[float, ...]
    vocal_level_db: float
    """Median active RMS of the training vocals, dBFS."""

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if field.name == "vocal_level_db":
                if not isinstance(values, int | float) or not math.isfinite(values):
                    raise ModelError(f"vocal_level_db is {values!r}: must be a level in dBFS; recompute the dataset's statistics")
                continue
            if len(values) != LATENT_CHANNELS:
                raise ModelError(f"{field.name} has {len(values)} values: needs one for each of {LATENT_CHANNELS} latent channels")
            if field.name.endswith("std") and not min(values) > 0:
                raise ModelError(f"{field.name} holds {min(values)}: deviations must be above 0; recompute the dataset's statistics")

    def normalise_vocal(self, latent_BCT: Tensor) -> Tensor:
        """Codec latent → what the network is trained on."""
        return (latent_BCT - _column(self.vocal_mean, latent_BCT)) / _column(self.vocal_std, latent_BCT)

    def normalise_accompaniment(self, latent_BCT: Tensor) -> Tensor:
        """Codec latent → what the network is trained on."""
        return (latent_BCT - _column(self.accompaniment_mean, latent_BCT)) / _column(self.accompaniment_std, latent_BCT)

    def restore_accompaniment(self, normal_BCT: Tensor) -> Tensor:
        """What the network generates → codec latent."""
        return normal_BCT * _column(self.accompaniment_std, normal_BCT) + _column(self.accompaniment_mean, normal_BCT)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


@dataclass(frozen=True, kw_only=True)
class DatasetIdentity:
    """The latent dataset a checkpoint was trained on."""

    uri: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Averaged weights and everything that they belong to."""

    name: str
    network: UNetConfig
    state: dict[str, Tensor]
    statistics: LatentStatistics
    codec: CodecIdentity
    dataset: DatasetIdentity
    step: int
    metrics: dict[str, float]
    sampling: Sampling = USUAL_SAMPLING

    def build(self, device: str | torch.device = "cpu") -> AccompanimentUNet:
        """The network with these weights, in evaluation mode."""
        unet = AccompanimentUNet(self.network)
        unet.load_state_dict(self.state)
        return unet.to(device).eval().requires_grad_(False)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, shard_bytes: int | None = None, file: str = WEIGHTS_FILE
) -> None:
    """Writes the folder beside its place and renames it there: a reader, or a kill, never meets a half-written one.

    dtype: what the weights are stored as (None: as they are); they are float32 again when loaded. shard_bytes: the most a file may hold.
    file: where one file holds them all; checkpoint.json names it.
    An existing folder is replaced as a whole. To add files of one's own (a training state), save into a temporary folder,
    add them, and hand that to `replace_folder`.
    """
    _check_state(checkpoint.network, checkpoint.state, "the checkpoint to be saved")
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        save_weights(temporary, checkpoint.state, dtype=dtype, shard_bytes=shard_bytes, file=file)
        record = {
            "schema_version": SCHEMA_VERSION,
            "name": checkpoint.name,
            "network": asdict(checkpoint.network),
            "statistics": asdict(checkpoint.statistics),
            "codec": asdict(checkpoint.codec),
            "dataset": asdict(checkpoint.dataset),
            "step": checkpoint.step,
            "metrics": checkpoint.metrics,
            "sampling": asdict(checkpoint.sampling),
            "weights_file": file,
            "weights_sha256": weights_sha256(temporary, file),
        }
        try:
            text = json.dumps(record, indent=2, allow_nan=False)
        except ValueError as error:
            raise ModelError("a metric or statistic of the checkpoint is not finite: save finite values only") from error
        (temporary / CONFIG_FILE).write_text(text + "\n")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a complete folder in the place of another. A kill between the two renames leaves the former beside it, which
    `load_checkpoint` then reads."""
    former = _former(folder)
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.rename(folder, former)  # noqa: PTH104 - beside os.rename below
    os.rename(new, folder)  # noqa: PTH104 - Path.rename replaces files silently; this refuses
    shutil.rmtree(former, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint's folder, or the best/ of a training run's folder. ModelError: anything missing, unknown or altered."""
    folder = Path(folder)
    place = _place(folder)
    try:
        record = json.loads((place / CONFIG_FILE).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{place / CONFIG_FILE} cannot be read as JSON ({error}): copy the checkpoint again") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise ModelError(f"{place} has schema version {version!r}: this program reads {SCHEMA_VERSION}; use the version that wrote it")
    expected = {
        "schema_version", "name", "network", "statistics", "codec", "dataset", "step", "metrics", "sampling", "weights_file",
        "weights_sha256",
    }  # fmt: skip
    record = {"sampling": {}, "weights_file": WEIGHTS_FILE, **record}  # the first checkpoints lack these
    if set(record) != expected:
        raise ModelError(f"{place / CONFIG_FILE} lacks {sorted(expected - set(record))} and has unknown {sorted(set(record) - expected)}")
    step, metrics = record["step"], record["metrics"]
    if not isinstance(step, int) or not isinstance(metrics, dict):
        raise ModelError(f"{place / CONFIG_FILE}: step is {step!r}, metrics are {metrics!r}; need a number, a table: copy the file again")
    network = _record(UNetConfig, record["network"], place)
    file = str(record["weights_file"])
    if weights_sha256(place, file) != record["weights_sha256"]:
        raise ModelError(
            f"{place}: its weights are not those that {CONFIG_FILE} was written with (SHA-256 differs): copy the checkpoint again"
        )
    state = load_weights(place, file)
    _check_state(network, state, str(place))
    return Checkpoint(
        name=str(record["name"]),
        network=network,
        state=state,
        statistics=_record(LatentStatistics, record["statistics"], place),
        codec=_record(CodecIdentity, record["codec"], place),
        dataset=_record(DatasetIdentity, record["dataset"], place),
        step=step,
        metrics=metrics,
        sampling=_record(Sampling, record["sampling"], place),
    )


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _place(folder: Path) -> Path:
    for candidate in (folder, _former(folder), folder / "best", _former(folder / "best")):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise ModelError(f"{folder} holds no checkpoint ({CONFIG_FILE}), neither itself nor in best/: give the folder that training wrote")


def _record(kind: type[Record], values: object, place: Path) -> Record:
    """A dataclass from its JSON: lists become tuples; unknown or missing fields, and values of another kind, are refused."""
    if not isinstance(values, dict):
        raise ModelError(f"{place / CONFIG_FILE}: {kind.__name__} is {values!r}, not a table: copy the file again")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{place / CONFIG_FILE}: {kind.__name__} does not fit ({error}); use the version that wrote it") from error


def _check_state(network: UNetConfig, state: Mapping[str, Tensor], where: str) -> None:
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in AccompanimentUNet(network).state_dict().items()}
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [name for name in expected.keys() & state.keys() if state[name].shape != expected[name]]
    if missing or unknown or wrong:
        raise ModelError(
            f"{where}: tensors do not fit the network: {len(missing)} missing {missing[:2]}, {len(unknown)} unknown {unknown[:2]}, "
            f"{len(wrong)} of another shape {sorted(wrong)[:2]}; weights and config must come from one checkpoint"
        )
