"""`release`: a run's best checkpoint as files small enough for a repository or a hub, with its model card."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from infra.dataset.credits import stored_credits, write_credits
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import MissingObjectError, Place, localise
from model.checkpoint import CONFIG_FILE, Checkpoint, load_checkpoint, save_checkpoint
from training.evaluation.report import EvaluationReport
from training.publish.model_card import About, card, last_parts
from training.state import STATE_JSON

CARD = "README.md"
MOST_LETTERS = 100
NAME = re.compile(rf"[ -~]{{1,{MOST_LETTERS}}}")
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
    """The model's name, as `X-Backline-Model` shows it: letters, digits, spaces and signs of ASCII."""
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
        if not NAME.fullmatch(self.name):
            raise UserError(f"--name {self.name!r}: give 1 to {MOST_LETTERS} characters of printable ASCII, for it travels in HTTP headers")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision {self.precision}: must be one of {', '.join(PRECISIONS)}")


def release(config: ReleaseConfig) -> Path:
    """Writes checkpoint.json, weights of at most 16 MB a file, the model card README.md and credits.json; returns the folder.

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
    released = replace(best, name=config.name, dataset=replace(best.dataset, uri=last_parts(best.dataset.uri)))
    save_checkpoint(folder, released, dtype=PRECISIONS[config.precision], shard_bytes=SHARD_BYTES)
    about = About(
        name=config.name, precision=config.precision, data=config.data, machine=config.machine, licence=config.licence,
        limits=config.limits,
    )  # fmt: skip
    credits = stored_credits(run) or stored_credits(Place(run.uri.rpartition("/")[0], run.access))
    (folder / CARD).write_text(card(about, best, state, report, credits=credits))
    write_credits(Place(str(folder)), credits)
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
