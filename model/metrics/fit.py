"""How well an accompaniment fits a vocal, heard without any weights: harmony, rhythm, and how much of the vocal leaks into it.

Harmony and rhythm each miss what the other hears (a shift by a bar keeps the rhythm, by an eighth the harmony), so both are reported.
`overall` wants both, and a band that would not fit better a little earlier or later. Copying the vocal games all of it, so `leakage` is
measured and pulls `overall` down. Figures: infra/benchmarks/model/fit.md; reasons: infra/decisions/0004-fit.md.

Shape legend: C channels, N samples.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from model.listen import chroma, mono, onset_strength
from model.listen.rhythm import beat_curve
from model.metrics.fit_readings import (
    SungNotes,
    alignment_reading,
    chord_tones,
    correlation_reading,
    grid_reading,
    harmony_readings,
    odds,
    share,
    sung_notes,
)
from model.metrics.leakage import leakage

SHORTEST_S = 4.0
_SILENCE_RMS = 1e-4
_LEVEL_RMS = 0.1
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


@dataclass(frozen=True, kw_only=True)
class _HeardPiece:
    """A piece of a vocal as a fit needs it: where it lies, how much it counts, at which gain, and what is sung."""

    piece: slice
    weight: float
    gain: float
    sung: SungNotes
    onset_T: np.ndarray


class Listener:
    """A vocal, heard once for the fits of several accompaniments."""

    def __init__(self, vocal_CN: np.ndarray) -> None:
        """44.1 kHz, (C, N) or (N,). A vocal longer than a segment (47.55 s) is heard in equal pieces, so that memory does not grow with it,
        and each piece counts by how long the voice sounds in it."""
        self._vocal_CN = vocal_CN
        samples = np.shape(vocal_CN)[-1]
        self._pieces: list[_HeardPiece] = []
        if samples < SHORTEST_S * SAMPLE_RATE_HZ:
            return
        count = -(-samples // SEGMENT_SAMPLES)
        pieces = [slice(start, end) for start, end in pairwise(samples * index // count for index in range(count + 1))]
        for piece, weight in zip(pieces, _sounding(vocal_CN, pieces), strict=True):
            vocal_N = mono(vocal_CN[..., piece])
            if weight > 0 and (rms := _rms(vocal_N)) >= _SILENCE_RMS:
                gain = _LEVEL_RMS / rms
                vocal_N = vocal_N * np.float32(gain)
                heard = _HeardPiece(piece=piece, weight=weight, gain=gain, sung=sung_notes(vocal_N), onset_T=onset_strength(vocal_N))
                self._pieces.append(heard)

    def fit(self, accompaniment_CN: np.ndarray) -> Fit:
        """Fit of an accompaniment of the vocal's length. Silence, or less than 4 s: zeros."""
        harmony = rhythm = overall = leak = 0.0
        total = sum(heard.weight for heard in self._pieces)
        for heard in self._pieces:
            weight = heard.weight / total
            fit = self._fit_piece(heard, mono(accompaniment_CN[..., heard.piece]))
            harmony += weight * fit.harmony
            rhythm += weight * fit.rhythm
            overall += weight * fit.overall
            leak += weight * fit.leakage
        # Weights are rounded, and a copy leaks wholly in every piece.
        return Fit(harmony=harmony, rhythm=rhythm, overall=overall, leakage=min(leak, 1.0))

    def _fit_piece(self, heard: _HeardPiece, accompaniment_N: np.ndarray) -> Fit:
        rms = _rms(accompaniment_N)
        if rms < _SILENCE_RMS:
            return NO_FIT
        # A level is no part of a fit, and every threshold below is relative to full scale.
        accompaniment_N = accompaniment_N * np.float32(_LEVEL_RMS / rms)
        chroma_PT = chroma(accompaniment_N)
        tones_PT = chord_tones(chroma_PT)
        class_match, chord_rate = harmony_readings(heard.sung, chroma_PT, tones_PT)
        harmony = _both(share(class_match / _FULL_READING), share(chord_rate / _FULL_CHORD))
        accompaniment_T = beat_curve(accompaniment_N)
        grid, correlation = grid_reading(heard.onset_T, accompaniment_T), correlation_reading(heard.onset_T, accompaniment_T)
        rhythm = _both(share(grid / _FULL_GRID), share(correlation / _FULL_CORRELATION))
        alignment = odds(alignment_reading(heard.sung, tones_PT) / _ALIGNMENT_SCALE)
        leak = leakage(mono(self._vocal_CN[..., heard.piece]) * np.float32(heard.gain), accompaniment_N)
        kept = 1 - np.clip((leak - _LEAK_HARMLESS) / (_LEAK_FATAL - _LEAK_HARMLESS), 0, 1)
        # Alignment belongs to neither: it needs the right key and the right time. Being even odds where nothing speaks, it only tilts.
        overall = float(_both(harmony, rhythm) * np.sqrt(alignment) * kept)
        return Fit(harmony=harmony, rhythm=rhythm, overall=overall, leakage=leak)


def fit(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> Fit:
    """Fit of an accompaniment to a vocal, both 44.1 kHz, (C, N) or (N,); the longer one is cut. See `Listener`."""
    samples = min(np.shape(vocal_CN)[-1], np.shape(accompaniment_CN)[-1])
    return Listener(vocal_CN[..., :samples]).fit(accompaniment_CN[..., :samples])


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
