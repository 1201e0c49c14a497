"""How well an accompaniment fits a vocal, heard without any weights: harmony, rhythm, and how much of the vocal leaks into it.

Harmony and rhythm each miss what the other hears (a shift by a bar keeps the rhythm, by an eighth the harmony), so both are reported.
`overall` wants both, and a band that would not fit better a little earlier or later. Copying the vocal games all of it, so `leakage` is
measured and pulls `overall` down. Figures: infra/benchmarks/fit.md; reasons: infra/decisions/0004-fit.md.

Shape legend: C channels, N samples.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.fit_readings import (
    alignment_reading,
    chord_tones,
    correlation_reading,
    grid_reading,
    harmony_readings,
    odds,
    share,
    sung_notes,
)
from model.geometry import SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from model.leakage import leakage
from model.listen import chroma, mono, onset_strength
from model.listen.rhythm import beat_curve

SHORTEST_S = 4.0
_SILENCE_RMS = 1e-4
# A piece where the vocal is this far below the song's mean holds no singing: breath, or what another microphone picked up.
_SOUNDING_DB = -30.0
_SOUNDING_SAMPLES = 2_048
# What true pairs reach on the demo corpus: tanh 1 = 0.76 on these scales, which leaves room above, where only copies lie.
_FULL_READING, _FULL_CHORD, _FULL_GRID, _FULL_CORRELATION = 1.3, 0.6, 0.5, 2.3
_ALIGNMENT_SCALE = 0.03
# Below the first, leakage is chance; from the second on nothing of `overall` is left.
_LEAK_HARMLESS, _LEAK_FATAL = 0.2, 0.5


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Each 0 to 1. A composed pair: harmony and rhythm 0.76 by their scales, overall 0.65; chance below 0.1. Leakage: 1 a copy."""

    harmony: float
    rhythm: float
    overall: float
    leakage: float


NO_FIT = Fit(harmony=0.0, rhythm=0.0, overall=0.0, leakage=0.0)


def fit(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> Fit:
    """Fit of an accompaniment to a vocal, both 44.1 kHz, (C, N) or (N,); the longer one is cut. Silence, or less than 4 s: zeros.

    A song longer than a segment (47.55 s) is heard in equal pieces, so that memory does not grow with it, and each piece counts by how long
    the voice sounds in it.
    """
    samples = min(np.shape(vocal_CN)[-1], np.shape(accompaniment_CN)[-1])
    if samples < SHORTEST_S * SAMPLE_RATE_HZ:
        return NO_FIT
    count = -(-samples // SEGMENT_SAMPLES)
    pieces = [slice(start, end) for start, end in pairwise(samples * index // count for index in range(count + 1))]
    harmony = rhythm = overall = leak = 0.0
    for piece, weight in zip(pieces, _sounding(vocal_CN, pieces), strict=True):
        if weight > 0:
            heard = fit_piece(vocal_CN[..., piece], accompaniment_CN[..., piece])
            harmony += weight * heard.harmony
            rhythm += weight * heard.rhythm
            overall += weight * heard.overall
            leak += weight * heard.leakage
    # Weights are rounded, and a copy leaks wholly in every piece.
    return Fit(harmony=harmony, rhythm=rhythm, overall=overall, leakage=min(leak, 1.0))


def fit_piece(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> Fit:
    """`fit` of two signals of equal length, as one piece: memory grows with it."""
    vocal_N, accompaniment_N = mono(vocal_CN), mono(accompaniment_CN)
    if _rms(vocal_N) < _SILENCE_RMS or _rms(accompaniment_N) < _SILENCE_RMS:
        return NO_FIT
    # A level is no part of a fit, and every threshold below is relative to full scale.
    vocal_N, accompaniment_N = _at_common_level(vocal_N), _at_common_level(accompaniment_N)
    sung, chroma_PT = sung_notes(vocal_N), chroma(accompaniment_N)
    tones_PT = chord_tones(chroma_PT)
    class_match, chord_rate = harmony_readings(sung, chroma_PT, tones_PT)
    harmony = _both(share(class_match / _FULL_READING), share(chord_rate / _FULL_CHORD))
    vocal_T, accompaniment_T = onset_strength(vocal_N), beat_curve(accompaniment_N)
    grid, correlation = grid_reading(vocal_T, accompaniment_T), correlation_reading(vocal_T, accompaniment_T)
    rhythm = _both(share(grid / _FULL_GRID), share(correlation / _FULL_CORRELATION))
    alignment = odds(alignment_reading(sung, tones_PT) / _ALIGNMENT_SCALE)
    leak = leakage(vocal_N, accompaniment_N)
    kept = 1 - np.clip((leak - _LEAK_HARMLESS) / (_LEAK_FATAL - _LEAK_HARMLESS), 0, 1)
    # Alignment belongs to neither: it needs the right key and the right time. Being even odds where nothing speaks, it only tilts.
    overall = float(_both(harmony, rhythm) * np.sqrt(alignment) * kept)
    return Fit(harmony=harmony, rhythm=rhythm, overall=overall, leakage=leak)


def _sounding(vocal_CN: np.ndarray, pieces: list[slice]) -> list[float]:
    """Each piece's share of the frames of 46 ms in which the vocal sounds; together 1, or all 0 in silence."""
    powers = []
    for piece in pieces:
        vocal_N = mono(vocal_CN[..., piece])
        starts = np.arange(0, len(vocal_N), _SOUNDING_SAMPLES)
        powers.append(np.add.reduceat(np.square(vocal_N), starts, dtype=np.float64) / _SOUNDING_SAMPLES)
    mean = float(np.mean(np.concatenate(powers)))
    counts = [int(np.count_nonzero(power_T > max(mean * 10 ** (_SOUNDING_DB / 10), _SILENCE_RMS**2))) for power_T in powers]
    return [count / max(sum(counts), 1) for count in counts]


def _both(one: float, other: float) -> float:
    """The geometric mean: noise that happens to pass for one fails the other."""
    return float(np.sqrt(one * other))


def _rms(audio_N: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio_N), dtype=np.float64)))


def _at_common_level(audio_N: np.ndarray) -> np.ndarray:
    return audio_N * np.float32(0.1 / _rms(audio_N))
