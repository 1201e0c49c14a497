"""Streaming through Ray Data: the same batches as from memory, bit for bit, whoever shares them and wherever a run resumes."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from infra.dataset.format import read_latents, read_manifest, split_index
from infra.errors import UserError
from infra.storage.place import Place
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.data.batches import Batch, Batches, collate, statistics_of
from training.data.datasets import open_datasets
from training.data.open import open_segments
from training.data.ray_shuffle import Course, Shuffler
from training.data.ray_stream import Streamed
from training.data.segments import InMemory, Segments
from training.ranks import Workers
from training.run.launch import train
from training.run.loop import run
from training.state import read_metrics

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
    import ray

    place, steps = Place(data), range(begin, 9)
    index = split_index(place, "train", read_manifest(place))
    monkeypatch.setattr("training.data.ray_shuffle.BLOCK_BYTES", 4 * index.row_bytes)
    course = Course(
        seed=SEED, segments=15, batch_size=BATCH, world_size=world_size, begin=begin * BATCH, end=9 * BATCH, epochs=world_size
    )  # fmt: skip
    shuffler = ray.remote(Shuffler).options(num_cpus=0, max_concurrency=3).remote(index, course)
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


def config(data: str | tuple[str, ...], out: Path, **changes: object) -> TrainConfig:
    settings = {
        "preset": "small", "steps": 24, "batch_size": BATCH, "crop_frames": 16, "warmup_steps": 2, "validate_every": 4,
        "validation_timesteps": 2, "log_every": 1, "samples": 0, "data_mode": "stream", **changes,
    }  # fmt: skip
    return TrainConfig(data=data, out=str(out), **settings)


def test_two_streamed_datasets_give_the_samples_of_memory(data: str, tmp_path: Path) -> None:
    other = write_latents(tmp_path / "other", songs=3, segments=2, seed=9)
    samples = []
    for mode in ("memory", "stream"):
        given = config((f"{data}=2", other), tmp_path / "run", steps=20, data_mode=mode)
        segments = open_segments(given, open_datasets(given), Workers(), begin=5)
        samples.append([segments.row(sample) for sample in range(5 * BATCH, 20 * BATCH)])
        segments.close()
    for one, other_one in zip(*samples, strict=True):
        assert one.valid_frames == other_one.valid_frames
        assert (one.vocal_CT == other_one.vocal_CT).all()
        assert (one.accompaniment_CT == other_one.accompaniment_CT).all()


def losses_of(out: Path) -> list[float]:
    return [value for row in read_metrics(Place(str(out))) for name, value in row.items() if name.endswith("/loss")]


@pytest.mark.soak
def test_a_streamed_training_is_that_of_memory_also_when_a_worker_is_killed(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path / "memory", workers=0, data_mode="memory"))
    out = tmp_path / "streamed"
    with killing(lambda: bool(read_metrics(Place(str(out))))) as killed:
        result = train(config(data, out, workers=2))
    assert killed
    assert result.step == 24
    assert losses_of(out) == pytest.approx(losses_of(tmp_path / "memory"), rel=1e-3)


@contextmanager
def killing(when: Callable[[], bool]) -> Iterator[list[int]]:
    """Kills one of our training workers as soon as `when` says so; its process id."""
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.wait(0.05):
            if when():
                workers = psutil.Process().children(recursive=True)
                victims = [process for process in workers if "RayTrainWorker" in " ".join(process.cmdline())]
                for victim in victims[:1]:
                    victim.kill()
                    killed.append(victim.pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def test_a_dataset_that_changes_under_a_training_is_one_sentence(tmp_path: Path) -> None:
    import ray

    place = Place(write_latents(tmp_path, songs=3, segments=2))
    index = split_index(place, "train", read_manifest(place))
    course = Course(seed=SEED, segments=4, batch_size=2, world_size=1, begin=0, end=80)
    shuffler = ray.remote(Shuffler).options(num_cpus=0, max_concurrency=3).remote(index, course)
    streamed = Streamed(shuffler, index, course, 0)
    streamed.row(0)
    file = place.path / index.parts[0].file
    os.utime(file, ns=(0, 0))

    def read_on() -> None:
        for sample in range(1, 80):
            streamed.row(sample)

    with pytest.raises(UserError, match=r"^the dataset changed under the training \(.*was written again\): run it again with --resume$"):
        read_on()
    ray.kill(shuffler)


def test_a_file_with_other_songs_than_counted_is_one_sentence(tmp_path: Path) -> None:
    import ray

    place = Place(write_latents(tmp_path, songs=3, segments=2))
    index = split_index(place, "train", read_manifest(place))
    one, other = (place.path / part.file for part in index.parts)
    other.write_bytes(one.read_bytes())
    course = Course(seed=SEED, segments=4, batch_size=2, world_size=1, begin=0, end=4)
    shuffler = ray.remote(Shuffler).options(num_cpus=0, max_concurrency=3).remote(index, course)
    with pytest.raises(UserError, match=r"^/.*does not hold the segments.*run prepare again$"):
        Streamed(shuffler, index, course, 0).row(0)
    ray.kill(shuffler)


def test_a_run_without_ray_streams_too_and_says_so(data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="training"):
        outcome = run(config(data, tmp_path, workers=0, steps=2))
    assert outcome.step == 2
    assert "training data: streamed through Ray Data (as asked)" in caplog.text
    assert outcome.metrics["train/data_wait"] < 0.5
