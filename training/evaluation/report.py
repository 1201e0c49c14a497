"""The report of an evaluation: what it holds, and its form as JSON.

Fields are only ever added: a file without `schema_version` is of version 1, and what it lacks is empty. Fields of a newer version are
left out when it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from model.metrics.set_distances import Interval
from training.evaluation.following import FollowingRow
from training.evaluation.measures import GENERATED, OTHER, REAL, EvaluationRow, Measures

SCHEMA_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class DistanceRow:
    """How far one kind of accompaniment lies from the reference."""

    name: str
    windows: int
    frechet: Interval
    frechet_extrapolated: float | None
    """Its value for ever more songs; None for a single song."""
    kernel: Interval
    """KAD: MMD² times 100."""
    apa: Interval | None = None
    """Accompaniment prompt adherence, 0 to 1; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """The distances, the embedding that they were taken in, and what they were taken from."""

    embedding: str
    note: str
    dimension: int
    window_s: float
    reference_songs: int
    reference_windows: int
    rows: tuple[DistanceRow, ...]
    reference_mixes: int = 0
    """Windows of the mixes of true pairs that adherence is measured from."""


@dataclass(frozen=True, kw_only=True)
class AestheticsRow:
    """AudioBox-Aesthetics of one kind of accompaniment: means with intervals over songs."""

    name: str
    PQ: Interval
    PC: Interval
    CE: Interval
    CU: Interval


@dataclass(frozen=True, kw_only=True)
class SegmentFit:
    """How well one segment's generated accompaniment fits, so that two models can be compared vocal by vocal."""

    song_id: str
    overall: float
    another_song: float
    """Of another song's real one."""


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What playing one row took."""

    name: str
    real_time_factor: float
    """Seconds of work per second of audio: below 1 is faster than it sounds."""
    peak_bytes: int
    """Of an accelerator what was allocated there at most, else the most that the process had in memory."""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A row or a column that a reader may look for, and why it is not there."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The tables, and what they were made from."""

    rows: tuple[EvaluationRow, ...]
    songs: int
    seconds: float
    checkpoint: str
    model: str
    """The checkpoint's name, which tells it from any other."""
    step: int
    dataset: str
    out: str
    wins: float
    """Share of segments where the generated accompaniment fits better than another song's real one."""
    advantage: Interval | None = None
    """Mean of overall fit, generated less another song's, segment by segment."""
    segments: tuple[SegmentFit, ...] = ()
    distances: Distances | None = None
    """In the first embedding."""
    further_distances: tuple[Distances, ...] = ()
    following: tuple[FollowingRow, ...] = ()
    following_note: str = ""
    """What the bands were held against."""
    costs: tuple[CostRow, ...] = ()
    absent: tuple[Absent, ...] = ()
    aesthetics: tuple[AestheticsRow, ...] = ()
    aesthetics_note: str = ""
    """Why there are no aesthetics, or which weights scored."""
    parameters: int | None = None
    segment_s: float | None = None
    """Seconds that a segment of 47.55 s would have taken at the rate of those generated."""
    device: str = ""
    stage_s: Mapping[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def row(self, name: str) -> EvaluationRow:
        return next(row for row in self.rows if row.name == name)

    @property
    def all_distances(self) -> tuple[Distances, ...]:
        """In every embedding."""
        return self.further_distances if self.distances is None else (self.distances, *self.further_distances)

    def way(self, measure: str) -> float:
        """How far generated accompaniments are on the way from another song's (0) to the real one (1) in one measure; may pass 1."""
        generated, real, other = (getattr(self.row(name).mean, measure) for name in (GENERATED, REAL, OTHER))
        return float((generated - other) / (real - other)) if real != other else float("nan")

    def header(self) -> list[str]:
        return ["accompaniment", *(measure.name.replace("_", " ") for measure in fields(Measures))]

    def cells(self) -> list[list[str]]:
        """The rows of `header` as text: fit with its interval, the rest as means."""
        table = []
        for row in self.rows:
            cells = [row.name]
            for measure in fields(Measures):
                value, low, high = (getattr(part, measure.name) for part in (row.mean, row.low, row.high))
                if measure.name in ("harmony", "rhythm", "overall"):
                    cells.append(bracketed(Interval(value=value, low=low, high=high)))
                else:
                    cells.append(f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 1_000 else f"{value:.0f}")
            table.append(cells)
        return table

    def metrics(self) -> dict[str, float]:
        """All figures under the names that MLflow shows: ROW/MEASURE, with _low and _high where a claim rests on an interval."""
        found = {"wins_over_another_song": self.wins}
        if self.advantage is not None:
            found |= _flat("advantage_over_another_song", self.advantage)
        for row in self.rows:
            name = metric_name(row.name)
            found |= {f"{name}/{part.name}": getattr(row.mean, part.name) for part in fields(Measures)}
            found |= {f"{name}/overall_low": row.low.overall, f"{name}/overall_high": row.high.overall}
        for table in self.all_distances:
            found |= _distance_metrics(table)
        for followed in self.following:
            for part in fields(FollowingRow)[1:]:
                if (interval := getattr(followed, part.name)) is not None:
                    found |= _flat(f"{metric_name(followed.name)}/{part.name}", interval)
        for cost in self.costs:
            found[f"{metric_name(cost.name)}/real_time_factor"] = cost.real_time_factor
            found[f"{metric_name(cost.name)}/peak_gib"] = cost.peak_bytes / 2**30
        for scored in self.aesthetics:
            found |= {f"{metric_name(scored.name)}/{axis}": getattr(scored, axis).value for axis in ("PQ", "PC", "CE", "CU")}
        if self.segment_s is not None:
            found["segment_s"] = self.segment_s
        return found

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str | bytes) -> "EvaluationReport":
        """Inverse of `to_json`; also reads files of versions 1 to 3."""
        document = {"schema_version": 1, **json.loads(text)}
        known = {known.name for known in fields(EvaluationReport)}
        values = {name: value for name, value in document.items() if name in known}
        values["rows"] = tuple(
            EvaluationRow(**{**row, **{part: Measures(**row[part]) for part in ("mean", "low", "high")}}) for row in document["rows"]
        )
        if document.get("advantage"):
            values["advantage"] = Interval(**document["advantage"])
        if document.get("distances"):
            values["distances"] = _distances(document["distances"])
        values["further_distances"] = tuple(_distances(given) for given in document.get("further_distances", ()))
        values["following"] = tuple(_intervals(FollowingRow, row) for row in document.get("following", ()))
        values["costs"] = tuple(CostRow(**row) for row in document.get("costs", ()))
        values["absent"] = tuple(Absent(**row) for row in document.get("absent", ()))
        values["segments"] = tuple(SegmentFit(**row) for row in document.get("segments", ()))
        values["aesthetics"] = tuple(_intervals(AestheticsRow, row) for row in document.get("aesthetics", ()))
        return EvaluationReport(**values)


def bracketed(interval: Interval, digits: int = 2) -> str:
    """A figure with its interval in brackets; alone where songs do not differ, as one song cannot from itself."""
    value, low, high = (f"{part:.{digits}f}" for part in (interval.value, interval.low, interval.high))
    return value if low == high == value else f"{value} ({low} to {high})"


def metric_name(row: str) -> str:
    """A row's name as MLflow allows it."""
    return "".join(letter if letter.isalnum() else "_" for letter in row.replace("'s", "").replace(",", ""))


def _distance_metrics(table: Distances) -> dict[str, float]:
    kind = metric_name(table.embedding)
    found: dict[str, float] = {}
    for distance in table.rows:
        name = metric_name(distance.name)
        found |= _flat(f"{name}/frechet_{kind}", distance.frechet)
        found |= _flat(f"{name}/kad_{kind}", distance.kernel)
        if distance.frechet_extrapolated is not None:
            found[f"{name}/frechet_extrapolated_{kind}"] = distance.frechet_extrapolated
        if distance.apa is not None:
            found |= _flat(f"{name}/apa_{kind}", distance.apa)
    return found


def _distances(given: dict[str, Any]) -> Distances:
    return Distances(**{**given, "rows": tuple(_intervals(DistanceRow, row) for row in given["rows"])})


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _intervals(kind: Any, row: dict[str, Any]) -> Any:
    return kind(**{name: Interval(**value) if isinstance(value, dict) else value for name, value in row.items()})
