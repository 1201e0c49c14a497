"""How well an accompaniment fits a vocal, heard without any weights: harmony, rhythm, and how much of the vocal leaks into it.

Harmony and rhythm each miss what the other hears (a shift by a bar keeps the rhythm, by an eighth the harmony), so both are reported, and
`overall` wants both. Copying the vocal games both, so `leakage` is measured and pulls `overall` down. Measured in infra/benchmarks/fit.md.

Shape legend: C channels, N samples, F bins, T frames, P pitch classes.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from model.geometry import SAMPLE_RATE_HZ
from model.leakage import leakage
from model.listen import CHROMA_RATE_HZ, F0_RATE_HZ, ONSET_RATE_HZ, chroma, f0, mono
from model.listen.harmony import chords_of
from model.listen.rhythm import beat_curve, beats_of, onset_strength, peak_times

SHORTEST_S = 4.0
_SILENCE_RMS = 1e-4
_CHORD_CHANCE = 0.25  # a triad holds 3 of 12 classes
# What true pairs reach on the demo corpus: tanh 1 = 0.76 on these scales, which leaves room above, where only copies lie.
_FULL_READING, _FULL_CHORD, _FULL_GRID, _FULL_CORRELATION = 1.3, 0.6, 0.5, 2.3
_SOFTNESS = 8.0  # chance reads log(2) / 8 = 0.09
# Below the first, leakage is chance; from the second on nothing of `overall` is left.
_LEAK_HARMLESS, _LEAK_FATAL = 0.2, 0.6
_MOST_ONSETS_OFF_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Each 0 to 1. Harmony, rhythm, overall: below 0.1 chance or worse, 0.76 a composed pair. Leakage: 0 none, 1 the vocal itself."""

    harmony: float
    rhythm: float
    overall: float
    leakage: float


NO_FIT = Fit(harmony=0.0, rhythm=0.0, overall=0.0, leakage=0.0)


def fit(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> Fit:
    """Fit of an accompaniment to a vocal, both 44.1 kHz; the longer one is cut. Silence, or less than 4 s, fits nothing: zeros."""
    vocal_N, accompaniment_N = mono(vocal_CN), mono(accompaniment_CN)
    samples = min(len(vocal_N), len(accompaniment_N))
    vocal_N, accompaniment_N = vocal_N[:samples], accompaniment_N[:samples]
    if samples < SHORTEST_S * SAMPLE_RATE_HZ or _is_silent(vocal_N) or _is_silent(accompaniment_N):
        return NO_FIT
    # A level is no part of a fit, and every threshold below is relative to full scale.
    vocal_N, accompaniment_N = _at_common_level(vocal_N), _at_common_level(accompaniment_N)
    harmony = harmony_fit(vocal_N, accompaniment_N)
    rhythm = rhythm_fit(vocal_N, accompaniment_N)
    leak = leakage(vocal_N, accompaniment_N)
    kept = 1 - np.clip((leak - _LEAK_HARMLESS) / (_LEAK_FATAL - _LEAK_HARMLESS), 0, 1)
    return Fit(harmony=harmony, rhythm=rhythm, overall=float(np.sqrt(harmony * rhythm) * kept), leakage=leak)


def harmony_fit(vocal_N: np.ndarray, accompaniment_N: np.ndarray) -> float:
    """0 to 1: two readings, each relative to chance and to a composed pair. See `harmony_readings`."""
    reading, chord = harmony_readings(vocal_N, accompaniment_N)
    return _both(reading / _FULL_READING, chord / _FULL_CHORD)


def harmony_readings(vocal_N: np.ndarray, accompaniment_N: np.ndarray) -> tuple[float, float]:
    """How strongly the accompaniment sounds the sung pitch class (standard deviations over the 12), and the chord-tone rate over chance."""
    times_s, hz_T, voiced_T = f0(vocal_N)
    held_T = voiced_T & _held(hz_T, voiced_T)
    if held_T.sum() < F0_RATE_HZ:
        return 0.0, 0.0
    chroma_PT = chroma(accompaniment_N)
    context_PT = scipy.ndimage.uniform_filter1d(np.sqrt(chroma_PT), max(1, round(0.5 * CHROMA_RATE_HZ)), axis=1)
    spread_T = context_PT.std(axis=0)
    z_PT = np.divide(context_PT - context_PT.mean(axis=0), spread_T, out=np.zeros_like(context_PT), where=spread_T > 1e-6)
    frame_T = np.minimum(np.rint(times_s[held_T] * CHROMA_RATE_HZ).astype(int), chroma_PT.shape[1] - 1)
    class_T = np.rint(69 + 12 * np.log2(hz_T[held_T] / 440)).astype(int) % 12
    label_T = chords_of(chroma_PT)[frame_T]
    third_T = np.where(label_T % 2 == 1, 3, 4)
    interval_T = (class_T - label_T // 2) % 12
    is_chord_tone_T = (interval_T == 0) | (interval_T == third_T) | (interval_T == 7)
    # Where no chord sounds there is nothing to fit.
    rate = np.where(label_T >= 0, is_chord_tone_T - _CHORD_CHANCE, 0.0).mean()
    return float(z_PT[class_T, frame_T].mean()), float(rate)


def rhythm_fit(vocal_N: np.ndarray, accompaniment_N: np.ndarray) -> float:
    """0 to 1: two readings, each relative to chance and to a composed pair. See `rhythm_readings`."""
    grid, correlation = rhythm_readings(vocal_N, accompaniment_N)
    return _both(grid / _FULL_GRID, correlation / _FULL_CORRELATION)


def rhythm_readings(vocal_N: np.ndarray, accompaniment_N: np.ndarray) -> tuple[float, float]:
    """Mean cosine of the vocal onsets' phase on the accompaniment's half-beat grid; onset correlation in standard deviations over ±2 s."""
    vocal_T = onset_strength(vocal_N)
    vocal_onsets_s = peak_times(vocal_T)
    accompaniment_T = beat_curve(accompaniment_N)
    return _grid_reading(vocal_onsets_s, beats_of(accompaniment_T)), _correlation_reading(vocal_T, accompaniment_T)


def _grid_reading(onsets_s: np.ndarray, beats_s: np.ndarray) -> float:
    if len(beats_s) < 4 or len(onsets_s) < 4:
        return 0.0
    # Beats may drift, so phase is counted between neighbours; onsets outside the tracked stretch prove nothing.
    inside_s = onsets_s[(onsets_s >= beats_s[0]) & (onsets_s < beats_s[-1])]
    if len(inside_s) < 4:
        return 0.0
    beat = np.interp(inside_s, beats_s, np.arange(len(beats_s)))
    return float(np.cos(2 * np.pi * 2 * beat).mean()) * len(inside_s) / len(onsets_s)


def _correlation_reading(vocal_T: np.ndarray, accompaniment_T: np.ndarray) -> float:
    reach = round(_MOST_ONSETS_OFF_S * ONSET_RATE_HZ)
    vocal_T, accompaniment_T = _standardised(vocal_T), _standardised(accompaniment_T)
    if not vocal_T.any() or not accompaniment_T.any():
        return 0.0
    padded_T = np.pad(accompaniment_T, reach)
    correlations = np.correlate(padded_T, vocal_T, mode="valid")
    at_zero = correlations[reach - 1 : reach + 2].max()
    spread = correlations.std()
    return float((at_zero - correlations.mean()) / spread) if spread > 1e-9 else 0.0


def _standardised(curve_T: np.ndarray) -> np.ndarray:
    smooth_T = scipy.ndimage.gaussian_filter1d(curve_T, 1.5)
    spread = smooth_T.std()
    return (smooth_T - smooth_T.mean()) / spread if spread > 1e-6 else np.zeros_like(smooth_T)


def _held(hz_T: np.ndarray, voiced_T: np.ndarray) -> np.ndarray:
    """Frames within a held note: less than 60 cents travelled over 100 ms, so that glides between notes are not read as notes."""
    midi_T = np.where(voiced_T, 69 + 12 * np.log2(np.where(voiced_T, hz_T, 440.0) / 440), np.nan)
    padded_T = np.pad(midi_T, 5, constant_values=np.nan)
    travelled_T = np.abs(padded_T[10:] - padded_T[:-10])
    return np.nan_to_num(travelled_T, nan=np.inf) < 0.6


def _both(one: float, other: float) -> float:
    """The geometric mean: noise that happens to pass for one reading fails the other."""
    return float(np.sqrt(_share(one) * _share(other)))


def _share(reading: float) -> float:
    """0 to 1, strictly rising, so that of two bad candidates the better one can still be told: tanh of a soft rectifier."""
    return float(np.tanh(np.logaddexp(0.0, _SOFTNESS * reading) / _SOFTNESS))


def _is_silent(audio_N: np.ndarray) -> bool:
    return float(np.sqrt(np.mean(audio_N.astype(np.float64) ** 2))) < _SILENCE_RMS


def _at_common_level(audio_N: np.ndarray) -> np.ndarray:
    return audio_N * np.float32(0.1 / np.sqrt(np.mean(audio_N.astype(np.float64) ** 2)))
