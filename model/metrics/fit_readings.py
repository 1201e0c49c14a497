"""What `fit` hears, reading by reading: sung notes against chroma and chords, the same a little earlier and later, onsets against beats.

Readings are in their own units, larger is better; `share` and `odds` bring them to 0 to 1. Which reading misses what, with figures:
infra/decisions/0004-fit.md.

Shape legend: N samples, T frames, P pitch classes.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from model.listen import CHROMA_RATE_HZ, F0_RATE_HZ, ONSET_RATE_HZ, f0
from model.listen.harmony import chords_of
from model.listen.rhythm import beats_of, peak_times

_LEAST_SUNG_S = 1.0
_CONTEXT_S = 0.5
_CHORD_CHANCE = 0.25  # a triad holds 3 of 12 classes
# Within one chord and, from 75 to 150 bpm, on either side of half a beat; in seconds, because a wrong band has a tempo of its own.
_LAGS_S = (0.2, 0.4)
_MOST_ONSETS_OFF_S = 2.0
_SOFTNESS = 8.0  # chance reads log(2) / 8 = 0.09


@dataclass(frozen=True, kw_only=True)
class SungNotes:
    """Frames within held notes: where they lie and which pitch class, 0 = C, sounds there; empty for less than a second of singing."""

    times_s: np.ndarray
    class_T: np.ndarray


def sung_notes(vocal_N: np.ndarray) -> SungNotes:
    """The held notes of a vocal at 44.1 kHz, 100 frames a second; glides between notes are left out."""
    times_s, hz_T, voiced_T = f0(vocal_N)
    held_T = voiced_T & _held(hz_T, voiced_T)
    if held_T.sum() < _LEAST_SUNG_S * F0_RATE_HZ:
        held_T[:] = False
    return SungNotes(times_s=times_s[held_T], class_T=np.rint(69 + 12 * np.log2(hz_T[held_T] / 440)).astype(int) % 12)


def chord_tones(chroma_PT: np.ndarray) -> np.ndarray:
    """(12, T) booleans: the three classes of the triad recognised in each frame, none where no chord sounds."""
    label_T = chords_of(chroma_PT)
    sounding_T, frame_T = np.greater_equal(label_T, 0), np.arange(len(label_T))
    tones_PT = np.zeros(chroma_PT.shape, bool)
    root_T = label_T // 2
    for class_T in (root_T, root_T + np.where(label_T % 2 == 1, 3, 4), root_T + 7):
        tones_PT[class_T % 12, frame_T] = sounding_T
    return tones_PT


def harmony_readings(sung: SungNotes, chroma_PT: np.ndarray, tones_PT: np.ndarray) -> tuple[float, float]:
    """How strongly the accompaniment sounds the sung pitch class (standard deviations over the 12), and the chord-tone rate over chance."""
    if sung.times_s.size == 0:
        return 0.0, 0.0
    frame_T = np.minimum(np.rint(sung.times_s * CHROMA_RATE_HZ).astype(int), chroma_PT.shape[1] - 1)
    context_PT = scipy.ndimage.uniform_filter1d(np.sqrt(chroma_PT), max(1, round(_CONTEXT_S * CHROMA_RATE_HZ)), axis=1)
    spread_T = context_PT.std(axis=0)
    standard_PT = np.divide(context_PT - context_PT.mean(axis=0), spread_T, out=np.zeros_like(context_PT), where=spread_T > 1e-6)
    # Where no chord sounds there is nothing to fit.
    chance = _CHORD_CHANCE * tones_PT[:, frame_T].any(axis=0).mean()
    return float(standard_PT[sung.class_T, frame_T].mean()), float(tones_PT[sung.class_T, frame_T].mean() - chance)


def alignment_reading(sung: SungNotes, tones_PT: np.ndarray) -> float:
    """How much higher the chord-tone rate is where the band plays than were it 0.2 and 0.4 s earlier or later, whichever is better.

    The rate over the lag peaks where voice and band were played together, whatever its height in this song, so a band half a beat or a beat
    off gains on one side: below zero. A drone, a pad on one chord, a match by chance: about zero, which says nothing.
    """
    reach_s, last = max(_LAGS_S), tones_PT.shape[1] - 1
    # The same notes at every lag: what differs is then the lag alone.
    inside_T = (sung.times_s >= reach_s) & (sung.times_s <= last / CHROMA_RATE_HZ - reach_s)
    times_s, class_T = sung.times_s[inside_T], sung.class_T[inside_T]
    if times_s.size < _LEAST_SUNG_S * F0_RATE_HZ:
        return 0.0

    def rate(lag_s: float) -> float:
        position_T = (times_s + lag_s) * CHROMA_RATE_HZ
        before_T = np.minimum(position_T.astype(int), last - 1)
        after_T = position_T - before_T
        return float(((1 - after_T) * tones_PT[class_T, before_T] + after_T * tones_PT[class_T, before_T + 1]).mean())

    earlier, later = (float(np.mean([rate(sign * lag_s) for lag_s in _LAGS_S])) for sign in (-1, 1))
    return rate(0.0) - max(earlier, later)


def grid_reading(vocal_T: np.ndarray, accompaniment_T: np.ndarray) -> float:
    """Mean cosine of the vocal onsets' phase on the half-beat grid that is tracked in the accompaniment alone; onset curves."""
    onsets_s, beats_s = peak_times(vocal_T), beats_of(accompaniment_T)
    if len(beats_s) < 4 or len(onsets_s) < 4:
        return 0.0
    # Beats may drift, so phase is counted between neighbours; onsets outside the tracked stretch prove nothing.
    inside_s = onsets_s[(onsets_s >= beats_s[0]) & (onsets_s < beats_s[-1])]
    if len(inside_s) < 4:
        return 0.0
    beat = np.interp(inside_s, beats_s, np.arange(len(beats_s)))
    return float(np.cos(2 * np.pi * 2 * beat).mean()) * len(inside_s) / len(onsets_s)


def correlation_reading(vocal_T: np.ndarray, accompaniment_T: np.ndarray) -> float:
    """Correlation of two onset curves at lag 0, in standard deviations over ±2 s."""
    reach = round(_MOST_ONSETS_OFF_S * ONSET_RATE_HZ)
    vocal_T, accompaniment_T = _standardised(vocal_T), _standardised(accompaniment_T)
    if not vocal_T.any() or not accompaniment_T.any():
        return 0.0
    correlations = np.correlate(np.pad(accompaniment_T, reach), vocal_T, mode="valid")
    at_zero = correlations[reach - 1 : reach + 2].max()
    spread = correlations.std()
    return float((at_zero - correlations.mean()) / spread) if spread > 1e-9 else 0.0


def share(reading: float) -> float:
    """0 to 1, strictly rising, so that of two bad candidates the better one can still be told: tanh of a soft rectifier."""
    return float(np.tanh(np.logaddexp(0.0, _SOFTNESS * reading) / _SOFTNESS))


def odds(reading: float) -> float:
    """0 to 1, strictly rising, 0.5 where the reading says nothing: the logistic function."""
    return float(np.exp(-np.logaddexp(0.0, -reading)))


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
