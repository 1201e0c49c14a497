"""What `plan.py` computes with: costs and their sources, prices, the graph of `prepare` at these costs, and the plan of a run.

Of a run of many waves the first are simulated and the others are like them; commits, which grow with what is stored, are added by formula.
"""

import math
from dataclasses import dataclass

import numpy as np

from infra.benchmarks.plan_waves import Cluster, Floats, Hosts, Run, Stage, Wave

AUDIO_MB_PER_MIN = 44_100 * 60 * 2 * 4 / 1e6
"""Two channels of float32."""
SEGMENT_S, LEAST_S, SEGMENT_MB = 2_097_152 / 44_100, 5.0, 0.262144
SAMPLED_WAVES = 4
READS_A_COMMIT = 3
"""pipelines/dataset/reconcile.py reads what is stored three times after each wave."""
COMMIT = "commit (one process)"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number, where it comes from, and its range when it is an assumption."""

    likely: float
    source: str
    low: float | None = None
    high: float | None = None

    def at(self, end: str) -> float:
        """The figure at its "low", "likely" or "high" end."""
        value: float | None = getattr(self, end)
        return self.likely if value is None else value


def measured(value: float, command: str = "plan.py measure") -> Figure:
    return Figure(likely=value, source=f"measured: {command}")


def assumed(low: float, likely: float, high: float, why: str) -> Figure:
    return Figure(likely=likely, low=low, high=high, source=f"assumed: {why}")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one process a minute of audio, but `_s`: seconds each, `_mb`: MB a minute. Handing songs on, pickled, is in them."""

    read: Figure
    separate_host: Figure
    separate_gpu: Figure
    segment: Figure
    encode_host: Figure
    encode_gpu: Figure
    write: Figure
    separate_cpu: Figure
    encode_full_cpu: Figure
    encode_cpu: Figure
    start_s: Figure
    put_s: Figure
    get_s: Figure
    row_s: Figure
    joined_row_s: Figure
    media_mb: Figure
    latents_mb: Figure


def known_costs() -> Costs:
    """What was measured, and what has to be assumed without a GPU; plan.md has the sources."""
    return Costs(
        read=measured(0.085),
        separate_host=measured(0.026),
        separate_gpu=assumed(1.0, 2.5, 7.5, "htdemucs, the whole of a GPU of the A10G's class"),
        segment=measured(0.396),
        encode_host=measured(0.002),
        encode_gpu=assumed(0.9, 1.9, 4.2, "Stable Audio Open's encoder, 13.1 TFLOP for two stems at 14, 7 or 3 TFLOP/s"),
        write=measured(0.004),
        separate_cpu=measured(44.4, "separation.md, one core, random weights of the real shape"),
        encode_full_cpu=measured(86.4, "full_codec.md, two stems, one core, random weights of the real shape"),
        encode_cpu=measured(0.514),
        start_s=assumed(10, 25, 60, "processes, torch and weights of the actors, at each wave anew"),
        put_s=assumed(0.02, 0.05, 0.15, "an object's put"),
        get_s=assumed(0.01, 0.025, 0.06, "an object's get; infra/dataset/parquet.py reads 16 at once"),
        row_s=measured(0.00108),
        joined_row_s=measured(4.4e-05),
        media_mb=assumed(1.0, 2.4, 2.4, "MB a minute: MP3 at 128 or 320 kbit/s"),
        latents_mb=measured(0.292),
    )


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars, on demand; sources in plan.md."""

    worker_h: float = 1.006
    """A GPU worker with its 4 CPUs."""
    cpu_h: float = 0.0408
    """A CPU beyond those, and each of the head's 8."""
    spot_share: float = 0.4
    gb_month: float = 0.023
    put_1000: float = 0.005
    get_1000: float = 0.0004


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as simulated, or extrapolated from its first waves."""

    songs: int
    stored: int
    wall_s: float
    commit_s: float
    gpu_h: float
    usage: dict[str, float]
    """Of the graph's own time, by resource; of the GPU also by stage."""
    bottleneck: str
    peak_gb: float
    latents_gb: float
    raw_gb: float
    media_gb: float
    objects: tuple[int, int]
    """Without and with `compact`."""
    usd: dict[str, float]
    redone: int


def durations_min(songs: int, seed: int) -> Floats:
    """Pop songs: log-normal, mean 210 s, deviation 45 s, 1 to 10 minutes."""
    width = math.sqrt(math.log(1 + (45 / 210) ** 2))
    draws = np.random.default_rng([seed, 0]).lognormal(math.log(210) - width**2 / 2, width, songs)
    return np.clip(draws, 60, 600) / 60


def segments(minutes: Floats) -> Floats:
    whole = np.floor(60 * minutes / SEGMENT_S)
    return whole + (60 * minutes - whole * SEGMENT_S >= LEAST_S)


def graph(minutes: Floats, cluster: Cluster, costs: Costs, end: str, seed: int) -> tuple[list[Stage], Floats]:
    """The six stages over these songs, and by song the first stage (1 to 3) that rejects it, or 6."""
    draws = np.random.default_rng([seed, 1])
    of_song = draws.integers(cluster.hosts, size=len(minutes)).tolist()
    bounds = np.cumsum(cluster.rejects)
    place = draws.random(len(minutes))
    reject = np.select([place < bound for bound in bounds], [1.0, 2.0, 4.0], 6.0)

    def cost(name: str, after: int) -> Floats:
        return np.asarray(np.where(reject > after, getattr(costs, name).at(end) * minutes, 0.0))

    audio_mb = AUDIO_MB_PER_MIN * minutes
    transfer_s = cluster.latency_s + costs.media_mb.at(end) * minutes / cluster.connection_mb_s + 2 * costs.put_s.at(end)
    return [
        Stage(name="acquire", cpu_s=transfer_s, tickets=0.25, most=cluster.downloads, hosts=Hosts(cluster, of_song)),
        Stage(name="read", cpu_s=cost("read", 1), out_mb=audio_mb * (reject > 2)),
        Stage(name="separate", cpu_s=cost("separate_host", 2), gpu_s=cost("separate_gpu", 2), out_mb=3 * audio_mb * (reject > 2),
              actors=1, batch=cluster.batch, share=0.75),
        Stage(name="segment", cpu_s=cost("segment", 2), out_mb=2 * audio_mb * (reject > 4)),
        Stage(name="encode", cpu_s=cost("encode_host", 4), gpu_s=cost("encode_gpu", 4), actors=1, batch=cluster.batch, share=0.25),
        Stage(name="write", cpu_s=cost("write", 4) + (1 + (reject > 4)) * costs.put_s.at(end), tickets=0.5),
    ], reject  # fmt: skip


def commits_s(stored: float, waves: int, cluster: Cluster, costs: Costs, end: str) -> tuple[float, float]:
    """(seconds, gets) of the commits after each wave, which read every row; `compact` joins the rows that are there."""
    get_s = costs.get_s.at(end)
    single_s, joined_s = costs.row_s.at(end) + get_s / 16, costs.joined_row_s.at(end)
    seconds = gets = joined = 0.0
    for wave in range(1, waves + 1):
        rows = stored * wave / waves
        seconds += READS_A_COMMIT * ((rows - joined) * single_s + joined * joined_s)
        gets += READS_A_COMMIT * (rows - joined + joined / 5000)
        if cluster.compact_every and wave % cluster.compact_every == 0 and wave < waves:
            seconds += (rows - joined) * (single_s + get_s)  # compact reads latents one after another
            gets += 2 * (rows - joined)
            joined = rows
    return seconds, gets


def simulate(songs: int, cluster: Cluster, costs: Costs, *, end: str = "likely", seed: int = 0) -> tuple[Run, list[Stage], Floats, Floats]:
    """The waves of these songs one after another, without commits."""
    minutes = durations_min(songs, seed)
    stages, reject = graph(minutes, cluster, costs, end, seed)
    whole = Run.empty(len(stages))
    for start in range(0, songs, cluster.wave):
        wave = Wave(stages, cluster, range(start, min(start + cluster.wave, songs)), seed + start, whole.seconds, costs.start_s.at(end))
        whole.add(wave.finish())
    return whole, stages, minutes, reject


def plan(
    songs: int, cluster: Cluster, costs: Costs, prices: Prices, *, end: str = "likely", seed: int = 0, most_waves: int = SAMPLED_WAVES
) -> Plan:
    """Simulated whole, or, above `most_waves` waves, extrapolated from so many."""
    waves = math.ceil(songs / cluster.wave)
    sample = min(songs, most_waves * cluster.wave)
    run, stages, minutes, reject = simulate(sample, cluster, costs, end=end, seed=seed)
    times = songs / sample
    stored = songs * float((reject == 6).mean())
    commit_s, gets = commits_s(stored, waves, cluster, costs, end)
    wall_s = run.seconds * times + commit_s
    usage = usage_of(run, stages, cluster)
    kept = minutes[reject == 6]
    raw_gb = times * float(segments(kept).sum()) * SEGMENT_MB / 1000
    latents_gb = times * float(kept.sum()) * costs.latents_mb.at(end) / 1000
    media_gb = times * float(minutes[reject > 1].sum()) * costs.media_mb.at(end) / 1000
    hours = wall_s / 3600
    share = prices.spot_share if cluster.preempted_every_h else 1.0
    usd = {
        "GPU workers": hours * cluster.workers * share * prices.worker_h,
        "more CPUs and the head": hours * prices.cpu_h * (cluster.workers * max(0, cluster.cpus - 4) * share + 8),
        "requests": (4 * stored * prices.put_1000 + (gets + songs) * prices.get_1000) / 1000,
        "a month of storage": (latents_gb + media_gb) * prices.gb_month,
    }
    rejected = songs - stored
    files = math.ceil(raw_gb * 1e9 / 2**28) + math.ceil(stored / 5000)
    media = 2 * times * float((reject > 1).sum())
    return Plan(
        songs=songs, stored=round(stored), wall_s=wall_s, commit_s=commit_s, gpu_h=hours * cluster.workers, usage=usage,
        bottleneck=COMMIT if commit_s > wall_s / 2 else bottleneck(usage), peak_gb=float(run.peak_mb.sum()) / 1000, latents_gb=latents_gb,
        raw_gb=raw_gb, media_gb=media_gb, objects=(round(2 * stored + media + rejected), round(files + media + rejected)), usd=usd,
        redone=round(run.redone * times),
    )  # fmt: skip


def usage_of(run: Run, stages: list[Stage], cluster: Cluster) -> dict[str, float]:
    """Shares of what there was in the run's time: GPUs, tickets for tasks, downloads at once, hosts' turns and connections."""
    busy = dict(zip((stage.name for stage in stages), run.busy_s, strict=True))
    gpu = dict(zip((stage.name for stage in stages), run.gpu_s / (cluster.workers * run.seconds), strict=True))
    tickets = cluster.workers * (cluster.cpus - sum(stage.actors * stage.tickets for stage in stages))
    cpu_s = {stage.name: busy[stage.name] * stage.tickets for stage in stages if not stage.actors}
    usage = {f"GPU: {stage.name}": gpu[stage.name] for stage in stages if stage.gpu_s is not None}
    usage |= {f"CPU: {name}": seconds / (tickets * run.seconds) for name, seconds in cpu_s.items()}
    for stage in stages:
        if stage.hosts:
            transfer_s = float(stage.cpu_s[: run.songs].sum())
            usage["downloads at once"] = busy[stage.name] / (stage.most * run.seconds)
            usage["hosts' turns"] = run.songs / (cluster.requests_per_s * cluster.hosts * run.seconds)
            usage["hosts' connections"] = transfer_s / (cluster.connections * cluster.hosts * run.seconds)
    return usage


def total(usage: dict[str, float], kind: str) -> float:
    return sum(share for name, share in usage.items() if name.startswith(f"{kind}: "))


def bottleneck(usage: dict[str, float]) -> str:
    """The fullest resource; of a GPU or the CPUs, the stage that takes most. Downloads that wait for their host are the host's."""
    whole = {kind: total(usage, kind) for kind in ("GPU", "CPU")} | {name: share for name, share in usage.items() if ": " not in name}
    if max(whole.get("hosts' turns", 0.0), whole.get("hosts' connections", 0.0)) > 0.7:
        whole.pop("downloads at once")
    name = max(whole, key=whole.__getitem__)
    parts = [part for part in usage if part.startswith(f"{name}: ")]
    return max(parts, key=usage.__getitem__) if parts else name
