"""What `prepare` costs at scale, simulated: hours, money and the bottleneck of 10,000 and 1,000,000 songs on a Ray cluster of GPU workers.

`python infra/benchmarks/plan.py plan|measure|validate [--songs N] [--seed N]` prints Markdown. plan simulates from the costs below; measure
takes those that a machine without a GPU can give; validate runs a real `prepare` here beside its prediction.
Figures, their sources and their machine: infra/benchmarks/plan.md.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from infra.benchmarks.plan_model import COMMIT, SAMPLED_WAVES, Costs, Plan, Prices, durations_min, known_costs, plan, total
from infra.benchmarks.plan_waves import Cluster

GPU_WORKERS = (1, 2, 4, 8, 16, 32, 64)

REMEDIES = {
    "GPU: separate": "more GPU workers, or a faster GPU", "GPU: encode": "more GPU workers, or another codec",
    "CPU": "more CPUs a worker", "downloads at once": "--downloads", "hosts' turns": "more hosts", "hosts' connections": "more hosts",
    COMMIT: "--wave, or `compact` between runs",
}  # fmt: skip


def remedy(name: str) -> str:
    return REMEDIES.get(name) or REMEDIES[name.partition(":")[0]]


def row(name: str, made: Plan) -> str:
    usage, usd = made.usage, made.usd
    shares = [total(usage, "GPU"), usage["GPU: separate"], usage["GPU: encode"], total(usage, "CPU"), usage["CPU: read"],
              usage["CPU: segment"], usage["CPU: write"], usage["downloads at once"]]  # fmt: skip
    percents = " | ".join(f"{share:.0%}" for share in shares)
    money = f"{usd['GPU workers']:,.0f} | {usd['more CPUs and the head'] + usd['requests']:,.0f}"
    hours = f"{made.wall_s / 3600:,.1f} | {made.commit_s / 3600:,.1f} | {made.gpu_h:,.0f}"
    return f"| {name} | {hours} | {money} | {percents} | {made.peak_gb:.1f} | {made.bottleneck} | {remedy(made.bottleneck)} |"


HEAD = (
    "| {} | hours | of them commits | GPU-hours | GPU workers, $ | the rest, $ | GPU | separate | encode | tasks' CPUs | read | segment"
    " | write | downloads | peak of the object stores, GB | bottleneck | what moves it |\n|" + "---|" * 17
)


def without_gpus(songs: int, costs: Costs, prices: Prices, seed: int) -> str:
    """A sentence."""
    hours = songs * float(durations_min(10_000, seed).mean()) / 3600
    base = sum(getattr(costs, name).likely for name in ("read", "separate_host", "separate_cpu", "segment", "write"))
    parts = [f"{hours * (base + cost.likely):,.0f} with {name} ({hours * (base + cost.likely) * prices.cpu_h:,.0f} $)"
             for name, cost in (("the embedded codec", costs.encode_cpu), ("Stable Audio Open's", costs.encode_full_cpu))]  # fmt: skip
    return f"Without GPUs, core-hours: {', '.join(parts)}."


def tables(songs: int | None, seed: int) -> Iterator[str]:
    costs, prices = known_costs(), Prices()

    def made(count: int, cluster: Cluster, end: str = "likely", most_waves: int = SAMPLED_WAVES) -> Plan:
        return plan(count, cluster, costs, prices, end=end, seed=seed, most_waves=most_waves)

    yield "## Costs\n| | low | likely | high | source |\n|---|---|---|---|---|"
    for name in (one.name for one in fields(Costs)):
        figure = getattr(costs, name)
        yield f"| {name} | {figure.at('low'):.3g} | {figure.likely:.3g} | {figure.at('high'):.3g} | {figure.source} |"
    for count in (songs,) if songs else (10_000, 1_000_000):
        yield f"\n## {count:,} songs\n{HEAD.format('GPU workers')}"
        for workers in GPU_WORKERS:
            one = made(count, Cluster(workers=workers))
            yield row(str(workers), one)
        yield (
            f"\nStored: {one.stored:,} songs; latents {one.raw_gb:,.1f} GB raw, {one.latents_gb:,.1f} with zstd; media"
            f" {one.media_gb:,.0f} GB; {one.usd['a month of storage']:,.2f} $ a month; objects"
            f" {one.objects[0]:,}, with `compact` {one.objects[1]:,}. {without_gpus(count, costs, prices, seed)}"
        )
    count = songs or 1_000_000
    yield f"\n## What moves it: {count:,} songs\n{HEAD.format('changed')}"
    far = Cluster(workers=64)
    wide = replace(far, wave=50_000, downloads=64)
    for name, cluster, end in (
        ("64 workers, --wave 50000", replace(far, wave=50_000), "likely"),
        ("64 workers, compact every 20 waves", replace(far, compact_every=20), "likely"),
        ("64 workers, --wave 50000 --downloads 64", wide, "likely"),
        ("the same, every assumption low", wide, "low"),
        ("the same, every assumption high", wide, "high"),
        ("the same, 8 CPUs a worker", replace(wide, cpus=8), "likely"),
        ("the same, one song a batch", replace(wide, batch=1), "likely"),
        ("the same, on spot, a worker lives 6 h", replace(wide, preempted_every_h=6.0), "likely"),
        *((f"the same, {hosts} host{'s' if hosts > 1 else ''}", replace(wide, hosts=hosts), "likely") for hosts in (1, 4)),
    ):
        yield row(name, made(count, cluster, end=end, most_waves=1 if cluster.wave > 5_000 else SAMPLED_WAVES))
    yield f"\n## One host's politeness: 10,000 songs, --downloads 8\n{HEAD.format('GPU workers, hosts')}"
    for workers, hosts in ((1, 1), (4, 1), (8, 1), (16, 1), (16, 4)):
        yield row(f"{workers}, {hosts}", made(10_000, Cluster(workers=workers, hosts=hosts)))
    yield f"\n## Memory: 10,000 songs, 2 workers\n{HEAD.format('changed')}"
    two = Cluster(workers=2)
    for name, cluster in (
        ("16 GiB a worker", two),
        ("--batch-songs 2", replace(two, batch=2)),
        ("32 GiB a worker", replace(two, store_gb=4.8)),
    ):
        yield row(name, made(10_000, cluster))
    yield f"\n## The assumptions' range: 10,000 songs\n{HEAD.format('GPU workers, end')}"
    for workers in (1, 8):
        for end in ("low", "likely", "high"):
            yield row(f"{workers}, {end}", made(10_000, Cluster(workers=workers), end=end))
    yield "\n## Does the extrapolation hold?\n| | simulated whole, h | extrapolated, h | |\n|---|---|---|---|"
    for name, count, wave, most, workers in (
        ("10,000 songs from 2,000, waves of 1,000, 8 workers", 10_000, 1_000, 2, 8),
        ("10,000 songs from 5,000, waves of 5,000, 8 workers", 10_000, 5_000, 1, 8),
        ("100,000 songs from 20,000, waves of 5,000, 64 workers", 100_000, 5_000, 4, 64),
    ):
        cluster = Cluster(workers=workers, wave=wave)
        whole_s, sampled_s = (made(count, cluster, most_waves=waves).wall_s for waves in (count, most))
        yield f"| {name} | {whole_s / 3600:.3f} | {sampled_s / 3600:.3f} | {sampled_s / whole_s - 1:+.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "measure", "validate"))
    parser.add_argument("--songs", type=int, help="plan: another number of songs; validate: 40")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "plan":
            lines = tables(given.songs, given.seed)
        else:
            from infra.benchmarks.plan_measure import measure, validate

            logging.disable(logging.WARNING)
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            lines = measure(Path(folder)) if given.what == "measure" else validate(Path(folder), given.songs or 40)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
