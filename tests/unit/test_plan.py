"""The simulation behind infra/benchmarks/plan.md: songs are conserved, times follow formulas, memory is bounded."""

from dataclasses import replace

import numpy as np
import pytest

from infra.benchmarks.plan_model import (
    COMMIT,
    Costs,
    Prices,
    commits_s,
    durations_min,
    graph,
    known_costs,
    measured,
    plan,
    segments,
    simulate,
)
from infra.benchmarks.plan_waves import Cluster, Hosts, Run, Stage, Wave

COSTS = known_costs()
SMALL = Cluster(workers=2, wave=200, hosts=4)


def run(stages: list[Stage], songs: int, cluster: Cluster, start_s: float = 0.0) -> Run:
    return Wave(stages, cluster, range(songs), 0, 0.0, start_s).finish()


def even(songs: int, seconds: float) -> np.ndarray:
    return np.full(songs, seconds)


def slow(**seconds: float) -> Costs:
    return replace(COSTS, **{name: measured(value) for name, value in seconds.items()})


@pytest.mark.parametrize("preempted_every_h", [0.0, 0.3])
def test_every_song_comes_out_once(preempted_every_h: float) -> None:
    cluster = replace(SMALL, preempted_every_h=preempted_every_h)
    stages, reject = graph(durations_min(300, 1), cluster, COSTS, "likely", 1)
    wave = Wave(stages, cluster, range(300), 1, 0.0, 25.0)
    done = wave.finish()
    assert (done.songs, wave.left, wave.jobs) == (300, [0] * 6, {})
    assert [len(queue) for queue in wave.queues] == [0] * 6
    assert wave.held_mb == pytest.approx([0.0] * 6, abs=1e-6)
    assert (done.redone > 0) == (preempted_every_h > 0)
    made = plan(300, cluster, COSTS, Prices(), seed=1)
    assert made.stored + int((reject < 6).sum()) == 300


@pytest.mark.parametrize(("songs", "workers"), [(10, 1), (11, 3), (64, 4)])
def test_one_stage_takes_what_the_formula_says(songs: int, workers: int) -> None:
    tasks = [Stage(name="read", cpu_s=even(songs, 2.0))]
    assert run(tasks, songs, Cluster(workers=workers, cpus=2)).seconds == pytest.approx(2.0 * -(-songs // (2 * workers)))
    actors = [Stage(name="encode", cpu_s=even(songs, 0.5), gpu_s=even(songs, 1.5), actors=1)]
    assert run(actors, songs, Cluster(workers=workers), 7.0).seconds == pytest.approx(7.0 + 2.0 * -(-songs // workers))


def test_stages_in_a_row_follow_the_recurrence_of_a_flow_shop() -> None:
    """A job ends at max(the one before it here, itself at the stage before) + its time (Johnson 1954)."""
    times = np.random.default_rng(3).exponential(1.0, (3, 400))
    stages = [Stage(name=str(index), cpu_s=one, actors=1) for index, one in enumerate(times)]
    ends = np.zeros(400)
    for one in times:
        last = 0.0
        for song in range(400):
            last = max(last, ends[song]) + one[song]
            ends[song] = last
    assert run(stages, 400, Cluster(workers=1, cpus=3)).seconds == pytest.approx(ends[-1])


def test_waiting_times_are_those_of_pollaczek_and_khinchine() -> None:
    """A stage that is never without songs and takes exponential times sends Poisson arrivals; the next is then M/D/1: ρs / (2 (1 - ρ))."""
    songs, service_s, rho = 40_000, 0.6, 0.6
    arrivals = np.random.default_rng(4).exponential(service_s / rho, songs)
    stages = [Stage(name="source", cpu_s=arrivals, actors=1), Stage(name="server", cpu_s=even(songs, service_s), actors=1)]
    waited_s = run(stages, songs, Cluster(workers=1, cpus=2)).wait_s[1] / songs
    assert waited_s == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.08)


def test_a_gpu_is_shared_and_never_idle_while_there_is_work() -> None:
    stages = [
        Stage(name="separate", cpu_s=even(50, 0.0), gpu_s=even(50, 3.0), actors=1, share=0.75),
        Stage(name="encode", cpu_s=even(50, 0.0), gpu_s=even(50, 1.0), actors=1, share=0.25),
    ]
    done = run(stages, 50, Cluster(workers=1))
    assert done.seconds == pytest.approx(50 * 4.0)
    assert done.gpu_s == pytest.approx([150.0, 50.0])


@pytest.mark.parametrize(
    ("costs", "cluster", "named"),
    [
        (slow(read=40.0), SMALL, "CPU: read"),
        (slow(segment=40.0), SMALL, "CPU: segment"),
        (slow(separate_gpu=60.0), SMALL, "GPU: separate"),
        (slow(encode_gpu=60.0), SMALL, "GPU: encode"),
        (COSTS, replace(SMALL, requests_per_s=0.01, hosts=1, connections=50), "hosts' turns"),
        (COSTS, replace(SMALL, hosts=1, connection_mb_s=0.2), "hosts' connections"),
        (COSTS, replace(SMALL, hosts=400, connection_mb_s=0.02), "downloads at once"),
        (slow(row_s=10.0), SMALL, COMMIT),
    ],
)
def test_the_bottleneck_is_what_was_made_slow(costs: Costs, cluster: Cluster, named: str) -> None:
    assert plan(400, cluster, costs, Prices()).bottleneck == named


def test_the_same_seed_gives_the_same_plan() -> None:
    cluster = replace(SMALL, preempted_every_h=0.5)
    one, same, other = (plan(400, cluster, COSTS, Prices(), seed=seed) for seed in (5, 5, 6))
    assert one == same
    assert one.wall_s != other.wall_s


@pytest.mark.parametrize("batch", [1, 4])
def test_backpressure_bounds_what_stages_put_out(batch: int) -> None:
    cluster = replace(SMALL, batch=batch, store_gb=1.5)
    stages, _ = graph(durations_min(300, 2), cluster, slow(encode_gpu=30.0), "likely", 2)
    done = run(stages, 300, cluster, 25.0)
    budget_mb = 1000 * 1.5 * 2 / 3
    for stage, peak_mb in zip(stages, done.peak_mb, strict=True):
        largest_mb = 0.0 if stage.out_mb is None else float(np.sort(stage.out_mb)[-stage.batch :].sum())
        assert peak_mb <= max(budget_mb, largest_mb) + 1e-6
    assert done.peak_mb[3] > budget_mb / 2
    free = run(graph(durations_min(300, 2), replace(cluster, store_gb=1e6), slow(encode_gpu=30.0), "likely", 2)[0], 300,
               replace(cluster, store_gb=1e6), 25.0)  # fmt: skip
    assert free.peak_mb[3] > 3 * budget_mb


@pytest.mark.parametrize("seed", range(4))
def test_preemption_only_adds_time(seed: int) -> None:
    calm, spot = (simulate(200, replace(SMALL, preempted_every_h=hours), COSTS, seed=seed)[0] for hours in (0.0, 0.1))
    assert spot.redone
    assert spot.seconds > calm.seconds
    assert spot.busy_s.sum() > calm.busy_s.sum()


def test_a_polite_host_takes_a_second_a_song_and_two_connections() -> None:
    cluster = Cluster(workers=1, hosts=1, downloads=8)

    def seconds(transfer_s: float) -> float:
        stage = Stage(name="acquire", cpu_s=even(100, transfer_s), tickets=0.25, most=8, hosts=Hosts(cluster, [0] * 100))
        return run([stage], 100, cluster).seconds

    assert seconds(0.5) == pytest.approx(99 + 0.5)
    assert seconds(4.0) == pytest.approx(1 + 50 * 4.0)


def test_commits_read_every_row_again() -> None:
    seconds, gets = commits_s(1000.0, 4, Cluster(workers=1), slow(get_s=0.0, row_s=0.002), "likely")
    assert gets == pytest.approx(3 * (250 + 500 + 750 + 1000))
    assert seconds == pytest.approx(0.002 * gets)
    joined_s, fewer = commits_s(1000.0, 4, Cluster(workers=1, compact_every=2), COSTS, "likely")
    assert fewer < gets
    assert joined_s > 0


def test_segments_are_those_that_the_cut_keeps() -> None:
    assert segments(np.array([47.0, 48.0, 53.0, 100.2]) / 60).tolist() == [1, 1, 2, 3]


def test_many_waves_are_extrapolated_from_a_few() -> None:
    cluster = Cluster(workers=2, wave=250)
    whole, sampled = (plan(2_000, cluster, COSTS, Prices(), most_waves=waves).wall_s for waves in (8, 2))
    assert sampled == pytest.approx(whole, rel=0.05)
