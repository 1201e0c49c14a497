"""Which runs were trained on a dataset: a small record each, beside it, so that a takedown can name the checkpoints.

OUT/trainings/….json     where the run's checkpoints are, and the digest of the dataset that it read
RUN/datasets.json        which datasets a run learnt from, and the checkpoint that it began with before it
"""

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from infra.storage.place import MissingObjectError, Place, StorageError

log = logging.getLogger(__name__)

FOLDER = "trainings"
DATASETS = "datasets.json"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run."""

    checkpoint: str
    """The place of its checkpoints."""
    dataset_digest: str
    began: str
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class LearntFrom:
    """One dataset that a run, or what it began with, learnt from."""

    uri: str
    digest: str


def write_learnt_from(run: Place, datasets: Collection[LearntFrom]) -> None:
    (run / DATASETS).write_bytes((json.dumps([asdict(dataset) for dataset in datasets], indent=1) + "\n").encode())


def read_learnt_from(run: Place) -> list[LearntFrom]:
    """What `write_learnt_from` left there; nothing for runs of before, and for released checkpoints, whose datasets lie nowhere."""
    try:
        return [LearntFrom(**dataset) for dataset in json.loads((run / DATASETS).read_bytes())]
    except MissingObjectError:
        return []


def note_training(data: Place, checkpoint: str, dataset_digest: str) -> None:
    """Say that `checkpoint` is being trained on the dataset; a dataset that may only be read is left as it is, with a warning."""
    training = Training(checkpoint=checkpoint, dataset_digest=dataset_digest, began=datetime.now(UTC).isoformat(timespec="seconds"))
    name = hashlib.sha256(f"{checkpoint} {dataset_digest}".encode()).hexdigest()[:24]
    try:
        (data / FOLDER / f"{name}.json").put_if_absent((json.dumps(asdict(training), indent=1) + "\n").encode())
    except StorageError as error:
        log.warning("the dataset cannot note this run (%s): a later takedown will not name %s", error, checkpoint)


def trainings_on(data: Place, digests: Collection[str]) -> list[Training]:
    """The runs noted here that read a dataset whose digest begins with one of `digests`, oldest first."""
    noted = [Training(**json.loads(place.read_bytes())) for place in (data / FOLDER).list(suffix=".json")]
    return sorted(
        (training for training in noted if training.dataset_digest.startswith(tuple(digests) or ("none",))),
        key=lambda training: training.began,
    )
