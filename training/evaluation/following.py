"""How far each band follows the song it is for: chords, beats, key, and whether it only doubles the voice.

Held against what was composed where that is known; beats and key are else those heard in the true band, chords are then left out.

Shapes: C channels, N samples, P pitch classes, T frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from model.controls import ChordSpan
from model.listen import chord_agreement, chroma, key_profile, track_beats
from model.listen.harmony import chords_of
from model.metrics.following import BEAT_WINDOW_S, beat_f1, drift_ms_per_minute, shadowed, sung_classes, triads_of
from model.metrics.set_distances import Interval
from training.evaluation.measures import interval_over_songs
from training.evaluation.truth import Truth


@dataclass(frozen=True, kw_only=True)
class Following:
    """Of one band; NaN where there is nothing to hold it against."""

    shadowing: float
    """Share of the sung frames in which the band's strongest pitch class is the voice's."""
    shadowing_beyond: float
    """Beyond the true band's share."""
    key: float
    """1 where the key heard is the song's, else 0."""
    chords: float
    """Share of the frames whose root and third are those that were asked, or composed where nothing was."""
    beats: float
    """F-measure of the beats, within 70 ms."""
    drift_ms: float
    """How many milliseconds per minute the beats run away."""


@dataclass(frozen=True, kw_only=True)
class FollowingRow:
    """Means over segments with intervals over songs; None where no segment has the figure."""

    name: str
    shadowing: Interval | None
    shadowing_beyond: Interval | None
    key: Interval | None
    chords: Interval | None
    beats: Interval | None
    drift_ms: Interval | None


class Expected:
    """What the bands for one vocal are held against."""

    def __init__(self, vocal_CN: np.ndarray, real_CN: np.ndarray, truth: Truth) -> None:
        self._sung = sung_classes(vocal_CN)
        real_PT = chroma(real_CN)
        self._real_shadowing = shadowed(*self._sung, real_PT)
        self._key = heard_key(real_PT) if truth.key is None else truth.key
        self._known_beats_s = truth.beats_s
        self._beats_s = track_beats(real_CN) if self._known_beats_s is None else self._known_beats_s
        self._chords = truth.chords

    def of(self, band_CN: np.ndarray, asked: tuple[ChordSpan, ...] | None = None) -> Following:
        """asked: the chords that this band was given; by default it is held against those composed."""
        band_PT, beats_s = chroma(band_CN), track_beats(band_CN)
        triads = triads_of(asked or self._chords or ())
        smoothed_s = beats_s if self._known_beats_s is None else self._known_beats_s
        shadowing = shadowed(*self._sung, band_PT)
        inside_s = beats_s
        if len(self._beats_s):
            inside_s = beats_s[(beats_s > self._beats_s[0] - BEAT_WINDOW_S) & (beats_s < self._beats_s[-1] + BEAT_WINDOW_S)]
        return Following(
            shadowing=shadowing,
            shadowing_beyond=shadowing - self._real_shadowing,
            key=math.nan if self._key < 0 else float(heard_key(band_PT) == self._key),
            chords=chord_agreement(triads, chords_of(band_PT, smoothed_s)) if triads else math.nan,
            beats=beat_f1(inside_s, self._beats_s) if len(self._beats_s) > 1 else math.nan,
            drift_ms=drift_ms_per_minute(inside_s, self._beats_s),
        )


def heard_key(chroma_PT: np.ndarray) -> int:
    """Tonic · 2 + minor; −1 for silence."""
    profile_24 = key_profile(chroma_PT)
    return int(profile_24.argmax()) if profile_24.any() else -1


def following_row(name: str, found: Sequence[Following], song_ids: Sequence[str]) -> FollowingRow:
    """Sums up a row's segments."""
    means = {part.name: interval_over_songs([getattr(one, part.name) for one in found], song_ids) for part in fields(Following)}
    return FollowingRow(name=name, **means)


def note_of(truths: Sequence[Truth]) -> str:
    """What was known of the segments, in a sentence or two."""
    known = {name: sum(getattr(truth, name) is not None for truth in truths) for name in ("chords", "beats", "key")}
    if not any(known.values()):
        return "Only the sound of these songs is known: key and beats are those heard in the true band, whose own row is 1 by construction."
    told = ", ".join(f"{name} in {count}" for name, count in known.items() if count)
    return (
        f"As composed: {told} of {len(truths)} segments; elsewhere key and beats are those heard in the true band. All of it is judged by "
        "ear, so the true band's own row is what can be reached."
    )
