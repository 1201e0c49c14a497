"""What a dataset holds, in numbers: groups of songs, histograms, kinds of rejects."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ
from pipelines.dataset.contents import DUPLICATE

NOT_GIVEN = "not given"
MOST_GROUPS, MOST_BINS = 20, 20
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Group:
    """The songs that share a source, a licence, an artist or a split."""

    name: str
    songs: int
    segments: int
    hours: float
    """Of the segments kept: what a training hears."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How values are spread; the first and the last bin hold what lies beyond them, too."""

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    values: int
    least: float
    low: float
    """5% of the values are below."""
    median: float
    high: float
    """5% of the values are above."""
    most: float


@dataclass(frozen=True, kw_only=True)
class RejectKind:
    """Rejects of one stage whose reasons differ in numbers and names alone."""

    stage: str
    kind: str
    count: int
    example: str
    example_url: str


def hours(valid_frames: int) -> float:
    return valid_frames * HOP_SAMPLES / SAMPLE_RATE_HZ / 3600


def group(name: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    """Rows of songs/ as one group."""
    frames, segments = sum(row["valid_frames"] for row in rows), sum(row["segments"] for row in rows)
    return Group(name=name, songs=len(rows), segments=segments, hours=hours(frames))


def groups(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[Group, ...]:
    """Rows of songs/ by a column, the most hours first; what is beyond the twentieth is one group."""
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        members[str(row[column] or "").strip() or NOT_GIVEN].append(row)
    found = sorted((group(name, held) for name, held in members.items()), key=lambda each: (-each.hours, each.name))
    if len(found) <= MOST_GROUPS:
        return tuple(found)
    rest = [row for each in found[MOST_GROUPS - 1 :] for row in members[each.name]]
    return (*found[: MOST_GROUPS - 1], group(f"{len(found) - MOST_GROUPS + 1} others", rest))


def histogram(name: str, values: ArrayLike, unit: str = "", span: tuple[float, float] | None = None) -> Histogram | None:
    """About 20 bins at most, of a round width, over `span`, else over all but the extreme half percents; None of no values."""
    held = np.sort(np.asarray(values, np.float64))
    if not held.size:
        return None
    low, high = span or np.quantile(held, (0.005, 0.995))
    rough = max((high - low) / MOST_BINS, 1e-9) if high > low else 1.0
    scale = 10 ** np.floor(np.log10(rough))
    width = scale * next(factor for factor in (1, 2, 5, 10) if factor * scale >= rough * (1 - ROUNDING))
    first, last = np.floor(low / width + ROUNDING), np.ceil(high / width - ROUNDING)
    edges = width * np.arange(first, max(last, first + 1) + 1)
    counts, _ = np.histogram(np.clip(held, edges[0], edges[-1]), edges)
    p05, median, p95 = np.quantile(held, (0.05, 0.5, 0.95)).tolist()
    return Histogram(
        name=name, unit=unit, edges=tuple(edges.round(9).tolist()), counts=tuple(counts.tolist()), values=held.size,
        least=float(held[0]), low=p05, median=median, high=p95, most=float(held[-1]),
    )  # fmt: skip


_PREFIX = re.compile(r"^segment \d+(?: at [\d.]+ s)?: ")
_OWNER = re.compile(r"(?<= as ).*(?=: remove one of them$)")
_NAMES = re.compile(
    r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|(?<![\w.])(?:[a-z][a-z0-9+.-]*://|/)[^\s,;]*[^\s,;:.)]|\b[\w-]+(?:\.[\w-]+)*\.[A-Za-z][\w-]+\b"""
    r"|\b(?=\w*\d)[0-9a-f]{12,64}\b"
)
# What a server answered is a kind, not a measure.
_NUMBERS = re.compile(r"(?<![\w.-])(?<!answered )[-−+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


def kind_of(stage: str, reason: str, url: str) -> str:
    """A reason without its numbers (n) and names (…), so that reasons of one kind are equal."""
    reason = _PREFIX.sub("", reason)
    if stage == DUPLICATE:
        reason = _OWNER.sub("…", reason)
    if url:
        reason = reason.replace(url, "…")
    return _NUMBERS.sub("n", _NAMES.sub("…", reason))


def reject_kinds(rejects: Sequence[Mapping[str, Any]]) -> tuple[RejectKind, ...]:
    """Rows of rejects/ by stage and kind, the most frequent first; the example is the first by address."""
    members: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in rejects:
        url = str(row["url"] or "")
        members[row["stage"], kind_of(row["stage"], row["reason"], url)].append((url, row["reason"]))
    found = [
        RejectKind(stage=stage, kind=kind, count=len(held), example=min(held)[1], example_url=min(held)[0])
        for (stage, kind), held in members.items()
    ]
    return tuple(sorted(found, key=lambda each: (-each.count, each.stage, each.kind)))
