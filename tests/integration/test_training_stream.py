"""Streaming through Ray Data: the same batches as from memory, bit for bit, whoever shares them and wherever a run resumes."""

import os
from pathlib import Path

import pytest
import ray
import torch

from infra.errors import UserError
from infra.records import read_latents, read_manifest, split_index
from infra.snapshots import SNAPSHOT, write_snapshot
from infra.storage import Place
from tests.tiny_latents import write_latents
from training.batches import Batch, Batches, collate, statistics_of
from training.config import TrainConfig
from training.launch import train
from training.loop import run
from training.segments import InMemory, Segments
from training.state import read_metrics
from training.streamed import Course, Shuffler, Streamed

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
SEED, BATCH = 3, 4
SETTINGS = {"seed": SEED, "batch_size": BATCH, "micro_batch": 1, "crop_frames": 16, "timesteps": 800, "condition_dropout": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fifteen segments: epochs end inside a batch."""
    return write_latents(tmp_path_factory.mktemp("latents"), songs=6, segments=3)


def drawn(place: Place, segments: Segments, steps: range, **ranks: int) -> list[Batch]:
    batches = Batches(segments, statistics_of(read_manifest(place)), **SETTINGS, **ranks)
    return [collate(batches.at(step)) for step in steps]


@pytest.mark.parametrize(("world_size", "begin"), [(1, 0), (2, 2)])
def test_streamed_batches_are_those_of_memory(data: str, world_size: int, begin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place, steps = Place(data), range(begin, 9)
    index = split_index(place, "train", read_manifest(place))
    monkeypatch.setattr("training.streamed.BLOCK_BYTES", 4 * index.row_bytes)
    course = Course(seed=SEED, batch_size=BATCH, world_size=world_size, begin=begin * BATCH, end=9 * BATCH)
    shuffler = ray.remote(Shuffler).options(num_cpus=0, max_concurrency=3).remote(index, course, {})
    for rank in range(world_size):
        ranks = {"rank": rank, "world_size": world_size}
        stored = drawn(place, InMemory(read_latents(place, "train"), SEED), steps, **ranks)
        streamed = Streamed(shuffler, index, course, rank)
        for one, other in zip(drawn(place, streamed, steps, **ranks), stored, strict=True):
            for name, value in vars(one).items():
                assert torch.equal(value, getattr(other, name)), name
        with pytest.raises(StopIteration):
            streamed.row(9 * BATCH)
        streamed.close()
    ray.kill(shuffler)


def config(data: str, out: Path, **changes: object) -> TrainConfig:
    settings = {
        "preset": "small", "steps": 6, "batch_size": BATCH, "crop_frames": 16, "warmup_steps": 2, "validate_every": 2,
        "validation_timesteps": 2, "log_every": 1, "samples": 0, "data_mode": "stream", **changes,
    }  # fmt: skip
    return TrainConfig(data=data, out=str(out), **settings)


def losses_of(out: Path) -> list[float]:
    return [value for row in read_metrics(Place(str(out))) for name, value in row.items() if name.endswith("/loss")]


def test_a_streamed_training_is_that_of_memory_also_resumed_and_with_two_workers(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path / "memory", workers=0, data_mode="memory"))
    stored = losses_of(tmp_path / "memory")
    out = tmp_path / "streamed"
    run(config(data, out, workers=0, steps=3, validate_every=3))
    resumed = train(config(data, out, workers=2, resume=True))
    assert resumed.step == 6
    training = [row["train/loss"] for row in read_metrics(Place(str(out))) if "train/loss" in row]
    assert training == pytest.approx(
        [row["train/loss"] for row in read_metrics(Place(str(tmp_path / "memory"))) if "train/loss" in row], rel=1e-3
    )
    assert losses_of(out)[-1] == pytest.approx(stored[-1], rel=1e-3)


def test_a_dataset_that_changes_under_a_training_is_one_sentence(tmp_path: Path) -> None:
    place = Place(write_latents(tmp_path, songs=3, segments=2))
    index = split_index(place, "train", read_manifest(place))
    course = Course(seed=SEED, batch_size=2, world_size=1, begin=0, end=80)
    shuffler = ray.remote(Shuffler).options(num_cpus=0, max_concurrency=2).remote(index, course, {})
    streamed = Streamed(shuffler, index, course, 0)
    streamed.row(0)
    file = place.path / index.parts[0].file
    os.utime(file, ns=(0, 0))
    with pytest.raises(UserError, match=r"changed under the training \(.*was written again\): run it again with --resume"):
        [streamed.row(sample) for sample in range(1, 80)]
    file.unlink()
    ray.kill(shuffler)


def test_a_file_with_other_songs_than_counted_is_one_sentence(tmp_path: Path) -> None:
    place = Place(write_latents(tmp_path, songs=3, segments=2))
    index = split_index(place, "train", read_manifest(place))
    one, other = (place.path / part.file for part in index.parts)
    other.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match="does not hold the segments"):
        run(config(place.uri, tmp_path / "out", workers=0, batch_size=2))
    assert SNAPSHOT
    assert write_snapshot
