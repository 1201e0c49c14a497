"""Measures of one accompaniment, and what they are on average, with intervals.

Shapes: C channels, N samples, F bins, R rows, M measures.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from model.listen import loudness_db, spectral_statistics
from model.metrics.fit import Listener, fit
from model.metrics.set_distances import Interval

GENERATED, REAL, OTHER = "generated", "real, through the codec", "another song's, through the codec"
RETRIEVED, STUDENT = "retrieved by tempo and key, through the codec", "student"
ROUND_TRIP, STRANGER, COPY, SILENCE, NOISE = "codec round trip", "generated for another song", "copy of the vocal", "silence", "noise"
BOOTSTRAP_DRAWS = 1_000
BANDS = 40


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured of one accompaniment."""

    harmony: float
    rhythm: float
    overall: float
    leakage: float
    loudness_lufs: float
    centroid_hz: float
    flatness: float
    flux: float
    spectrum_db: float
    """Mean absolute difference of the long-term spectrum from the real accompaniment's, in 40 bands, level removed."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One kind of accompaniment: means over segments, and 90% bootstrap intervals over songs."""

    name: str
    segments: int
    mean: Measures
    low: Measures
    high: Measures

    @property
    def overall(self) -> float:
        return self.mean.overall


def measure(vocal_CN: np.ndarray, real_CN: np.ndarray, accompaniment_CN: np.ndarray, listener: Listener | None = None) -> Measures:
    """All measures of one accompaniment to a vocal whose real one is known. listener: the vocal, where it has been heard already."""
    if listener is not None and accompaniment_CN.shape == vocal_CN.shape:
        heard = listener.fit(accompaniment_CN)
    else:
        heard = fit(vocal_CN, accompaniment_CN)
    shape = spectral_statistics(accompaniment_CN)
    return Measures(
        **asdict(heard),
        loudness_lufs=loudness_db(accompaniment_CN),
        centroid_hz=shape.centroid_hz,
        flatness=shape.flatness,
        flux=shape.flux,
        spectrum_db=float(np.abs(bands_db(accompaniment_CN) - bands_db(real_CN)).mean()),
    )


def bands_db(audio_CN: np.ndarray) -> np.ndarray:
    """Long-term average spectrum in bands that are even in log frequency from 40 Hz to 16 kHz, dB, mean removed."""
    window = 8_192
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio_CN.mean(axis=0), (0, window)), window)[:: window // 2]
    power_F = (np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2).mean(axis=0)
    edges_F = np.geomspace(40, 16_000, BANDS + 1) / SAMPLE_RATE_HZ * window
    level = np.array([power_F[int(a) : max(int(a) + 1, int(b))].mean() for a, b in pairwise(edges_F)])
    decibels = 10 * np.log10(level + 1e-10)
    return decibels - decibels.mean()


def summarise(name: str, values: list[Measures], song_ids: list[str]) -> EvaluationRow:
    """Means over segments, with intervals over songs."""
    table_RM = np.array([[getattr(value, field.name) for field in fields(Measures)] for value in values])
    mean, low, high = (
        Measures(**{field.name: float(value) for field, value in zip(fields(Measures), row_M, strict=True)})
        for row_M in means_over_songs(table_RM, song_ids)
    )
    return EvaluationRow(name=name, segments=len(values), mean=mean, low=low, high=high)


def advantage(one: list[Measures], other: list[Measures], song_ids: list[str]) -> Interval:
    """How much better one fits than the other, segment by segment: the mean difference of `overall`, with its interval."""
    difference_R1 = np.array([[a.overall - b.overall] for a, b in zip(one, other, strict=True)])
    value, low, high = (float(row[0]) for row in means_over_songs(difference_R1, song_ids))
    return Interval(value=value, low=low, high=high)


def interval_over_songs(values: Sequence[float], song_ids: Sequence[str]) -> Interval | None:
    """The mean of the values that are known with its interval; None where none is."""
    known = [(value, song) for value, song in zip(values, song_ids, strict=True) if np.isfinite(value)]
    if not known:
        return None
    value, low, high = (float(part[0]) for part in means_over_songs(np.array([[value] for value, _ in known]), [song for _, song in known]))
    return Interval(value=value, low=low, high=high)


def means_over_songs(table_RM: np.ndarray, song_ids: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high), each (M,). 90% bootstrap, drawing whole songs: segments of one song are no independent witnesses."""
    songs = [np.flatnonzero(np.array(song_ids) == song) for song in sorted(set(song_ids))]
    random = np.random.default_rng(0)
    draws = [
        table_RM[np.concatenate([songs[song] for song in random.integers(len(songs), size=len(songs))])].mean(axis=0)
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    low_M, high_M = np.quantile(draws, (0.05, 0.95), axis=0)
    return table_RM.mean(axis=0), low_M, high_M
