"""`release`: a run's best checkpoint as files small enough for a repository or a hub, with its model card."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from infra.errors import UserError
from infra.records import MANIFEST, Manifest, code_version, read_manifest
from infra.settings import Settings
from infra.storage import MissingObjectError, Place, localise
from model.checkpoint import CONFIG_FILE, Checkpoint, load_checkpoint, save_checkpoint
from model.unet import AccompanimentUNet, count_parameters
from training.config import TrainConfig
from training.evaluation_markdown import markdown
from training.evaluation_report import EvaluationReport
from training.state import STATE_JSON

CARD = "README.md"
SHARD_BYTES = 16_000_000
PRECISIONS = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What is released, under which name, and what its card says that no file knows."""

    run: str
    """A training run's place."""
    out: str
    """Folder for the checkpoint and its card."""
    name: str
    """The model's name, as `X-Backline-Model` shows it."""
    licence: str
    """Of the weights."""
    data: str
    """What it was trained on, in a sentence."""
    limits: str
    """What it cannot do, in a sentence or two."""
    machine: str
    """What it was trained on."""
    evaluation: str | None = None
    """Folder that `evaluate` wrote; its table goes into the card."""
    precision: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        for name in ("name", "licence", "data", "limits", "machine"):
            if not getattr(self, name).strip():
                raise UserError(f"--{name} is empty: the model card needs it")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision {self.precision}: must be one of {', '.join(PRECISIONS)}")


def release(config: ReleaseConfig) -> Path:
    """Writes checkpoint.json, weights of at most 16 MB a file, and the model card README.md; returns the folder.

    Raises: UserError when the run has no saved state, or the evaluation is of another checkpoint.
    """
    settings = Settings.from_environment()
    run, folder = Place(config.run), Path(config.out).resolve()
    _check_out(config.out, folder)
    try:
        state = json.loads((run / "last" / STATE_JSON).read_bytes())
    except MissingObjectError as error:
        raise UserError(
            f"{run} holds no training run (last/{STATE_JSON}): give the folder that train wrote, or a phase of distil's, OUT/steps-4"
        ) from error
    best = load_checkpoint(localise(run, settings.cache))
    report = None if config.evaluation is None else _evaluation(Place(config.evaluation), best)
    # Where the dataset lay concerns nobody else; its digest says which it was.
    released = replace(best, name=config.name, dataset=replace(best.dataset, uri=_last(best.dataset.uri)))
    save_checkpoint(folder, released, dtype=PRECISIONS[config.precision], shard_bytes=SHARD_BYTES)
    (folder / CARD).write_text(card(config, best, state, report))
    return folder


def _check_out(given: str, folder: Path) -> None:
    """A release replaces its folder as a whole: only an earlier release may be there."""
    if given.startswith("s3:"):
        raise UserError(f"--out {given}: a release is written to a folder of this machine; upload it from there")
    if folder.exists() and any(folder.iterdir()):
        names = {path.name for path in folder.iterdir()}
        if CONFIG_FILE not in names or names & {"last", "best"}:
            raise UserError(f"--out {given} holds other things than a released checkpoint, and would be replaced: give a new folder")


def _evaluation(place: Place, checkpoint: Checkpoint) -> EvaluationReport:
    report = EvaluationReport.from_json((place / "evaluation.json").read_bytes())
    if report.model != checkpoint.name:
        raise UserError(f"{place} scores {report.model}, the run's best is {checkpoint.name}: evaluate the run again")
    return report


def card(config: ReleaseConfig, checkpoint: Checkpoint, state: dict[str, Any], report: EvaluationReport | None) -> str:
    """The model card, Markdown (Mitchell et al. 2019: what it is, its data, its figures, its limits)."""
    given, progress = state["config"], state["progress"]
    millions = count_parameters(AccompanimentUNet(checkpoint.network)) / 1e6
    sampling = checkpoint.sampling
    rows = {
        "network": f"preset {given['preset']}, {millions:.1f} M parameters, averaged weights, stored as {config.precision}",
        "codec": f"{checkpoint.codec.id} ({checkpoint.codec.weights_sha256[:12]})",
        "sampling": f"{sampling.solver}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        "data": config.data,
        "dataset": _dataset(given["data"], checkpoint),
        "training": (
            f"{checkpoint.step:,} steps of {given['batch_size']} × {given['crop_frames']} frames "
            f"({checkpoint.step * given['batch_size']:,} samples), the best of {progress['step']:,} in {progress['minutes']:.0f} minutes "
            f"on {config.machine}"
        ),
        "validation loss": f"{checkpoint.metrics.get('validation/loss', math.nan):.4f}",
        "code, when released": code_version(),
        "licence": config.licence,
    }
    lines = [f"# {config.name}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    lines += ["", "## How it was made", "", "```sh", command(given), "```", "", "## Limits", "", config.limits]
    if report is not None:
        named = replace(report, dataset=_last(report.dataset))
        lines += ["", "## Figures", "", *markdown(named).splitlines()[2:]]
    return "\n".join(lines) + "\n"


def _dataset(uri: str, checkpoint: Checkpoint) -> str:
    """Counts, where the dataset is still there and the same; its digest in any case."""
    try:
        manifest: Manifest | None = read_manifest(Place(uri))
    except UserError:
        manifest = None
    known = f"digest {checkpoint.dataset.digest[:12]}"
    if manifest is None or manifest.digest != checkpoint.dataset.digest:
        return f"{known} ({MANIFEST} no longer at hand)"
    counts = manifest.counts
    return f"{known}, {counts.train_songs} songs to learn from, {counts.validation_songs} held out, {manifest.duration_h:.1f} h"


def command(given: dict[str, Any]) -> str:
    """The command line of a run: what differs from the preset, places by their last part. A phase of a distillation names its teacher."""
    usual = dict(_flat(json.loads(json.dumps(TrainConfig(data="", out="", preset=given["preset"]).to_dict()))))
    words = ["python -m training train", f"--data {_last(given['data'])}", f"--out {_last(given['out'])}", f"--preset {given['preset']}"]
    left_out = {"data", "out", "preset", "resume"}
    if lesson := given.get("distillation"):
        words = ["python -m training distil", f"--teacher {_last(given['init'])}", f"--data {_last(given['data'])}", "--out students"]
        words += [f"--first-steps {lesson['steps']}", f"--student-steps {lesson['steps']}", f"--guidance {lesson['guidance']:g}"]
        # What a distillation sets itself, phase by phase.
        left_out |= {"init", "distillation", "loss", "condition_dropout", "samples", "experiment", "workers"}
    for name, value in _flat(given):
        if name.partition(".")[0] in left_out or value == usual.get(name):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words.append(f"{flag} {' '.join(str(item) for item in value)}")
        else:
            words.append(f"{flag} {_last(value) if name == 'init' else value}")
    return " ".join(words)


def _flat(given: dict[str, Any]) -> list[tuple[str, Any]]:
    """Nested settings under dotted names, as the command line has them."""
    rows: list[tuple[str, Any]] = []
    for name, value in given.items():
        rows += [(f"{name}.{inner}", part) for inner, part in value.items()] if isinstance(value, dict) else [(name, value)]
    return rows


def _last(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]
