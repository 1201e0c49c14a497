"""Who gets what of a cluster: every actor has a place, CPUs are left to read and write with, and slow work has its time."""

from collections.abc import Iterator
from itertools import product

import pytest

from infra.errors import UserError
from pipelines.acquire.acquire import AcquireConfig
from pipelines.dataset.contents import Stored
from pipelines.run import prepare
from pipelines.run.graph import Workers, least_cpus, patience_s, plan_workers
from pipelines.run.ray_stages import Job
from pipelines.song import FoundSong, MediaFile, SongResult
from pipelines.stages.decode import DECODE_TIMEOUT_S
from pipelines.stages.segment import SegmentConfig


def planned(cpus: int, gpus: int, *, separates: bool, encoders: int | None = None, separators: int | None = None) -> Workers:
    return plan_workers(cpus=cpus, gpus=gpus, separates=separates, encoders=encoders, separators=separators, downloads=8, batch_songs=None)


def placed(workers: Workers, gpus: int) -> bool:
    """Whether every actor finds room on one device, the separators first, each where least is left, as Ray places them."""
    free = [10_000] * gpus
    for share in [workers.separator_gpus] * workers.separators + [workers.encoder_gpus] * workers.encoders:
        fitting = [device for device in range(gpus) if free[device] >= round(share * 10_000)]
        if not fitting:
            return False
        free[min(fitting, key=free.__getitem__)] -= round(share * 10_000)
    return True


@pytest.mark.parametrize(("cpus", "gpus", "separates"), product((3, 4, 5, 8, 16, 64), (0, 1, 2, 3, 4, 8), (False, True)))
def test_defaults_leave_two_cpus_and_all_find_a_place(cpus: int, gpus: int, separates: bool) -> None:
    if cpus < least_cpus(separates):
        with pytest.raises(UserError, match=f"the cluster has {cpus} CPUs"):
            planned(cpus, gpus, separates=separates)
        return
    workers = planned(cpus, gpus, separates=separates)
    assert workers.encoders >= 1
    assert (workers.separators >= 1) == separates
    assert workers.encoders + workers.separators <= cpus - 2
    if gpus:
        assert workers.encoder_gpus > 0
        assert placed(workers, gpus)


@pytest.mark.parametrize(("gpus", "encoders", "separators"), product((1, 2, 3, 4), (1, 2, 3, 4, 7), (1, 2, 3, 4, 7)))
def test_numbers_asked_for_find_a_place_on_whole_devices(gpus: int, encoders: int, separators: int) -> None:
    workers = planned(64, gpus, separates=True, encoders=encoders, separators=separators)
    assert (workers.encoders, workers.separators) == (encoders, separators)
    assert placed(workers, gpus)


@pytest.mark.parametrize("gpus", [0, 2])
def test_numbers_that_leave_no_cpu_are_refused_with_gpus_too(gpus: int) -> None:
    with pytest.raises(UserError, match="7 encoders leave less than 2 of 8 CPUs to read and write: choose at most 6"):
        planned(8, gpus, separates=False, encoders=7)
    with pytest.raises(UserError, match="4 encoders and 3 separators leave less than 2 of 8 CPUs"):
        planned(8, gpus, separates=True, encoders=4, separators=3)


def test_separation_gets_every_gpu_before_encoding_does() -> None:
    workers = planned(8, 4, separates=True)
    assert (workers.separators, workers.encoders, workers.separator_gpus) == (4, 2, 0.75)


def test_a_number_asked_for_takes_from_the_other_default() -> None:
    assert planned(8, 4, separates=True, encoders=4).separators == 2
    assert planned(8, 0, separates=True, separators=5).encoders == 1


def job(**acquire: float) -> Job:
    """What `patience_s` reads of a job."""
    made = Job.__new__(Job)
    for name, value in {"acquire": AcquireConfig(**acquire), "segment": SegmentConfig(), "storage_patience_s": 300.0}.items():  # type: ignore[arg-type]
        object.__setattr__(made, name, value)
    return made


def song(files: int, fetch: str = "") -> FoundSong:
    media = tuple(MediaFile(address=f"/song/{index}.wav", role="accompaniment") for index in range(files))
    return FoundSong(url="/song", source="pairs", version="1", media=media, fetch=fetch)


def test_a_run_waits_longer_than_the_longest_step_that_is_permitted() -> None:
    """Twenty minutes on a separator slower than real time; a last download; forty files that each take what they may."""
    config = SegmentConfig()
    workers = planned(4, 0, separates=True)
    assert patience_s(job(), workers, [song(1)]) > 4 * config.max_duration_s
    assert patience_s(job(max_download_s=20_000.0), workers, [song(0, "https://h/x")]) > 20_000
    assert patience_s(job(), planned(4, 0, separates=False), [song(2), song(40)]) > 40 * DECODE_TIMEOUT_S
    assert patience_s(job(max_download_s=1e6), workers, [song(1)]) < 1e6, "nothing is downloaded"


def test_a_run_that_stands_still_ends_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data.exceptions import ExecutionTimeoutError

    def stands_still(*_: object) -> Iterator[SongResult]:
        raise ExecutionTimeoutError("no progress for 30000s\nOperators still running:\n  - MapBatches")
        yield

    monkeypatch.setattr(prepare, "run_graph", stands_still)
    monkeypatch.setattr(prepare, "_workers", lambda *_: planned(4, 0, separates=False))
    config = prepare.PrepareConfig(source="pairs:/songs", out="/out")
    with pytest.raises(UserError, match=r"no progress for 30000s.*what is done is kept.*run it again"):
        prepare.run_wave(job(), config, [song(1)], Stored(songs={}, rejects=[]), 1)
