"""What a run's processes tell one another: attempts at a song, and the progress of each stage, as totals and as Prometheus metrics.

One `Ledger` is an actor of a run, on whichever node has room; stages tell it what they did and do not wait for it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STAGES = ("acquire", "read", "separate", "segment", "listen", "encode", "write")


@dataclass(kw_only=True)
class StageTotal:
    """What a stage has done so far in this run."""

    songs: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    """Process seconds, added over processes."""


class Ledger:
    """Counts attempts and work; wrapped as a Ray actor by `start_ledger`."""

    def __init__(self, labels: dict[str, str]) -> None:
        from ray.util import metrics

        self.attempts: Counter[tuple[str, str]] = Counter()
        self.totals = {stage: StageTotal() for stage in STAGES}
        self.failure = ""
        tags = ("stage", *labels)
        self.metrics: dict[str, Any] = {
            "songs": metrics.Counter("backline_prepare_songs", "Songs that a stage has done.", tag_keys=tags),
            "audio_s": metrics.Counter("backline_prepare_audio_seconds", "Audio that a stage has done, in seconds.", tag_keys=tags),
            "busy_s": metrics.Counter("backline_prepare_busy_seconds", "Process seconds that a stage took.", tag_keys=tags),
            "rejects": metrics.Counter("backline_prepare_rejected_songs", "Songs rejected, by the stage that did.", tag_keys=tags),
            "waiting": metrics.Gauge("backline_prepare_missing_songs", "Songs that the run has still to do.", tag_keys=tuple(labels)),
        }
        for metric in self.metrics.values():
            metric.set_default_tags(labels)

    def begun(self, stage: str, songs: Sequence[str]) -> list[int]:
        """How often this stage has begun each of these and not come to an end."""
        return [self.attempts[stage, song] for song in songs]

    def attempt(self, stage: str, songs: Sequence[str]) -> None:
        """This stage begins these now."""
        self.attempts.update((stage, song) for song in songs)

    def survived(self, stage: str, songs: Sequence[str]) -> None:
        """These are through the stage: what ends their process later is not theirs."""
        for song in songs:
            self.attempts.pop((stage, song), None)

    def done(self, stage: str, songs: int, audio_s: float, busy_s: float) -> None:
        """A stage has done so much."""
        total = self.totals[stage]
        total.songs, total.audio_s, total.busy_s = total.songs + songs, total.audio_s + audio_s, total.busy_s + busy_s
        for name, value in (("songs", songs), ("audio_s", audio_s), ("busy_s", busy_s)):
            if value > 0:  # a counter refuses to grow by nothing
                self.metrics[name].inc(value, tags={"stage": stage})

    def finished(self, missing: int, rejected_by: str | None) -> None:
        """A song came out of the graph; `missing` are still to do."""
        self.metrics["waiting"].set(missing)
        if rejected_by:
            self.metrics["rejects"].inc(1, tags={"stage": rejected_by})

    def fail(self, reason: str) -> None:
        """Something that no song is at fault for ends the run; the first reason counts."""
        self.failure = self.failure or reason

    def read_failure(self) -> str:
        return self.failure

    def read_totals(self) -> dict[str, StageTotal]:
        return self.totals


def start_ledger(source: str, out: str) -> Any:
    """The actor of this run. It takes no CPU ticket; lost with its node, the run ends and goes on when it is run again."""
    import ray

    return ray.remote(Ledger).options(num_cpus=0, max_concurrency=1).remote({"source": source, "dataset": out})
