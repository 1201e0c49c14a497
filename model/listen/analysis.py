"""What a band plays, as it is heard: tempo, beats and their place in the bar, key, chords with their bass, and how sure each is.

Shape legend: B beats, P pitches, T frames at `CHROMA_RATE_HZ`.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.listen.harmony import CHROMA_RATE_HZ, bass_of, chord_fit, chords_of, chroma_of, key_profile, note_activations
from model.listen.rhythm import ONSET_RATE_HZ, beats_of, curve_of, onset_bands
from model.listen.spectrum import mono

METRES = (4, 3)
"""Beats a bar that are told apart; of two that explain a song alike, the first."""
_LEAST_BARS = 2
# How much better three must explain the beats than four: most songs have four.
_TRIPLE_MARGIN = 1.15


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """Of one recording. Silence has no beats, no key and no chords."""

    tempo_bpm: float
    """Median over the beats; 0 without beats."""
    beats_s: np.ndarray
    """(B,)"""
    positions: np.ndarray
    """(B,) place of each beat in its bar, 0 = downbeat; empty where no bar is found."""
    beats_a_bar: int
    """0 where no bar is found."""
    key: int
    """Tonic · 2 + minor; −1 in silence."""
    chords: np.ndarray
    """(T,) root · 2 + minor; −1 is no chord."""
    bass: np.ndarray
    """(T,) pitch class; −1 where nothing low sounds."""
    beat_confidence: float
    """0 to 1: how far onsets at the beats exceed those elsewhere."""
    bar_confidence: float
    """0 to 1: how far the chosen downbeats exceed the next best."""
    key_confidence: float
    """0 to 1: correlation with the key's profile."""
    chord_confidence: float
    """0 to 1: mean correlation with the chosen triads."""


def analyse(audio: np.ndarray) -> Analysis:
    """Listens to a band, (N,) or (C, N) at 44.1 kHz; the notes and the onsets are found once for all."""
    mono_N = mono(audio)
    bands_3T = onset_bands(mono_N)
    curve_T = curve_of(bands_3T)
    beats_s = beats_of(curve_T)
    notes_PT = note_activations(mono_N)
    chroma_12T = chroma_of(notes_PT)
    chords_T = chords_of(chroma_12T, beats_s)
    fit_T = chord_fit(chroma_12T, chords_T, beats_s)
    keys_24 = key_profile(chroma_12T)
    beats_a_bar, first, bar_confidence = bars_of(beats_s, bands_3T[0], chroma_12T)
    sounding = chords_T >= 0
    return Analysis(
        tempo_bpm=float(60 / np.median(np.diff(beats_s))) if len(beats_s) > 1 else 0.0,
        beats_s=beats_s,
        positions=(np.arange(len(beats_s)) - first) % beats_a_bar if beats_a_bar else np.zeros(0, int),
        beats_a_bar=beats_a_bar,
        key=int(keys_24.argmax()) if keys_24.any() else -1,
        chords=chords_T,
        bass=bass_of(notes_PT, chords_T),
        beat_confidence=_beat_confidence(curve_T, beats_s),
        bar_confidence=bar_confidence,
        key_confidence=float(np.clip(keys_24.max(), 0, 1)) if keys_24.any() else 0.0,
        chord_confidence=float(np.clip(fit_T[sounding].mean(), 0, 1)) if sounding.any() else 0.0,
    )


def bars_of(beats_s: np.ndarray, low_T: np.ndarray, chroma_12T: np.ndarray) -> tuple[int, int, float]:
    """(beats a bar, index of the first downbeat, confidence): where the harmony changes and the kick falls, beat by beat, summed over the
    song (Goto 2001: chords change on downbeats). (0, 0, 0.0) with fewer than two bars of beats.

    low_T: onset strength of the kick at `ONSET_RATE_HZ`.
    """
    if len(beats_s) < _LEAST_BARS * max(METRES):
        return 0, 0, 0.0
    evidence_B = _unit(_chroma_change(beats_s, chroma_12T)) + 0.5 * _unit(_at(low_T, beats_s))
    scores = {(metre, first): float(evidence_B[first::metre].mean()) for metre in METRES for first in range(metre)}
    best = {metre: int(np.argmax([scores[metre, first] for first in range(metre)])) for metre in METRES}
    four, three = (scores[metre, best[metre]] for metre in METRES)
    metre = 3 if three > _TRIPLE_MARGIN * four else 4
    top = scores[metre, best[metre]]
    second = max(value for (other, first), value in scores.items() if other == metre and first != best[metre])
    return metre, best[metre], float(np.clip((top - second) / (abs(top) + 1e-9), 0, 1)) if top > 0 else 0.0


def _chroma_change(beats_s: np.ndarray, chroma_12T: np.ndarray) -> np.ndarray:
    """(B,) one minus the cosine between the chroma of the beat and that of the beat before it."""
    edges = np.clip(np.rint(np.append(beats_s, 2 * beats_s[-1] - beats_s[-2]) * CHROMA_RATE_HZ).astype(int), 0, chroma_12T.shape[1])
    spans = ((start, max(stop, start + 1)) for start, stop in pairwise(edges.tolist()))
    means_B12 = np.array([chroma_12T[:, start:stop].sum(axis=1) for start, stop in spans])
    means_B12 /= np.linalg.norm(means_B12, axis=1, keepdims=True) + 1e-9
    return np.append(0.0, 1 - (means_B12[1:] * means_B12[:-1]).sum(axis=1))


def _at(strength_T: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """The highest strength within two frames of each time."""
    at = np.rint(times_s * ONSET_RATE_HZ).astype(int)
    return np.array([strength_T[max(0, frame - 2) : frame + 3].max(initial=0.0) for frame in at])


def _unit(values_B: np.ndarray) -> np.ndarray:
    """Zero mean, deviation 1; zeros where nothing varies."""
    return (values_B - values_B.mean()) / (values_B.std() + 1e-9)


def _beat_confidence(curve_T: np.ndarray, beats_s: np.ndarray) -> float:
    if not len(beats_s):
        return 0.0
    here, all_over = float(_at(curve_T, beats_s).mean()), float(curve_T.mean())
    return float(np.clip((here - all_over) / (here + all_over + 1e-9), 0, 1))
