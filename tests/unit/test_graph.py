"""Who gets what of a cluster: every actor has a place, and CPUs are left to read and write with."""

from itertools import product

import pytest

from infra.errors import UserError
from pipelines.graph import Workers, least_cpus, plan_workers


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
