"""Chroma, chords and key.

Shape legend: F frequency bins, L bins of a third of a semitone, P pitches, T frames at `CHROMA_RATE_HZ`.
A chord's label is root · 2 + minor, root 0 = C; −1 is no chord.
"""

import functools
from collections.abc import Sequence

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from model.listen.spectrum import magnitudes, mono

_WINDOW_SAMPLES, _HOP_SAMPLES = 16_384, 4_096
CHROMA_RATE_HZ = SAMPLE_RATE_HZ / _HOP_SAMPLES
_LOWEST_MIDI, _HIGHEST_MIDI, _HIGHEST_NOTE_MIDI = 31, 105, 93
_BINS_A_SEMITONE = 3
_FFT_BINS = 1_800  # up to 4.8 kHz
_HARMONICS, _HARMONIC_DECAY = 12, 0.65
_NNLS_ROUNDS = 25
_BASS_BELOW_MIDI = 54
_ROOT_POSITION = 2.0  # what another note must exceed the root by to be the bass
_SILENT = 3e-7  # mean magnitude of a frame; the rounding noise of 16 bits lies below

# Krumhansl and Kessler 1982, probe-tone ratings.
_MAJOR_KEY = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
_MINOR_KEY = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


def chroma(audio: np.ndarray) -> np.ndarray:
    """(12, T) float64 ≥ 0, class 0 = C, T = N // 4096 + 1: how strongly each pitch class sounds; zeros in silence.

    NNLS chroma (Mauch and Dixon 2010): a log-frequency spectrum in the recording's own tuning, its broad floor (drums, noise) taken off, is
    explained as a non-negative sum of harmonic notes, so that overtones count for their note; then notes fold to classes.
    """
    return chroma_of(note_activations(audio))


def chroma_of(notes_PT: np.ndarray) -> np.ndarray:
    """(12, T) from note activations; see `chroma`."""
    midi_P = np.arange(_LOWEST_MIDI, _HIGHEST_NOTE_MIDI + 1)
    # Bass and lead weigh less than the middle where chords lie.
    return _folded(notes_PT, np.exp(-0.5 * ((midi_P - 60) / 18.0) ** 2))


def bass_of(notes_PT: np.ndarray, labels_T: np.ndarray) -> np.ndarray:
    """(T,) pitch class of each chord's bass at `CHROMA_RATE_HZ`: the root, for bass lines walk, unless another note below MIDI 54 is
    stronger by far while the chord lasts; −1 where nothing low sounds, and without a chord."""
    midi_P = np.arange(_LOWEST_MIDI, _HIGHEST_NOTE_MIDI + 1)
    low_12T = _folded(notes_PT, (midi_P < _BASS_BELOW_MIDI).astype(float))
    changes_s = np.flatnonzero(np.diff(labels_T, prepend=labels_T[:1])) / CHROMA_RATE_HZ
    low_12T = _averaged_between(low_12T, changes_s)
    sounding_T = (low_12T.sum(axis=0) > 0) & (labels_T >= 0)
    low_12T[labels_T // 2, np.arange(len(labels_T))] *= _ROOT_POSITION
    return np.where(sounding_T, low_12T.argmax(axis=0), -1)


def _folded(notes_PT: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """(12, T): weighted notes summed by pitch class."""
    folded_12T = np.zeros((12, notes_PT.shape[1]))
    np.add.at(folded_12T, np.arange(_LOWEST_MIDI, _HIGHEST_NOTE_MIDI + 1) % 12, notes_PT * weight_P[:, None])
    return folded_12T


def chord_fit(chroma_12T: np.ndarray, labels_T: np.ndarray, beats_s: np.ndarray | None = None) -> np.ndarray:
    """(T,) correlation of the chroma, averaged between beats, with the triad of each frame's label; 0 where the label is −1."""
    if beats_s is not None and len(beats_s) > 1:
        chroma_12T = _averaged_between(chroma_12T, beats_s)
    centred_12T = chroma_12T - chroma_12T.mean(axis=0)
    centred_12T /= np.linalg.norm(centred_12T, axis=0) + 1e-9
    return np.where(labels_T >= 0, (_templates()[labels_T] * centred_12T.T).sum(axis=1), 0.0)


def note_activations(audio: np.ndarray) -> np.ndarray:
    """(P, T) float64 ≥ 0: strength of each note from MIDI 31 to 93; see `chroma`."""
    magnitude_FT = magnitudes(mono(audio), window_samples=_WINDOW_SAMPLES, hop_samples=_HOP_SAMPLES, bins=_FFT_BINS)
    audible_T = magnitude_FT.mean(axis=0) > _SILENT
    # The tuning is rounded, so that the matrix is found again for the next recording.
    log_LT = _log_frequency_matrix(round(_tuning_semitones(magnitude_FT), 2)) @ magnitude_FT
    width = 12 * _BINS_A_SEMITONE + 1
    mean_LT = scipy.ndimage.uniform_filter1d(log_LT, width, axis=0, mode="nearest")
    variance_LT = scipy.ndimage.uniform_filter1d((log_LT - mean_LT) ** 2, width, axis=0, mode="nearest")
    spread_LT = np.sqrt(np.maximum(variance_LT, 0))  # the filter's running sum can end just below zero
    # Square root of the whitened peak: loud notes count more than soft ones, but not without limit.
    white_LT = np.sqrt(np.maximum(log_LT - mean_LT, 0) / (spread_LT + 1e-7)) * audible_T
    return _non_negative_notes(white_LT)


def recognise_chords(audio: np.ndarray, beats_s: np.ndarray | None = None, *, change_cost: float = 1.2) -> np.ndarray:
    """(T,) int labels at `CHROMA_RATE_HZ`: 24 major and minor triads, −1 in silence.

    Templates (Fujishima 1999) decoded by Viterbi (Sheh and Ellis 2003). With beats the chroma is averaged between them first, so that
    chords change on beats. `change_cost` is what a change must gain in the sum of correlations.
    """
    return chords_of(chroma(audio), beats_s, change_cost=change_cost)


def chords_of(chroma_12T: np.ndarray, beats_s: np.ndarray | None = None, *, change_cost: float = 1.2) -> np.ndarray:
    """(T,) labels from a chroma; see `recognise_chords`."""
    audible_T = chroma_12T.sum(axis=0) > 0
    if not audible_T.any():
        return np.full(chroma_12T.shape[1], -1)
    if beats_s is not None and len(beats_s) > 1:
        chroma_12T = _averaged_between(chroma_12T, beats_s)
    centred_12T = chroma_12T - chroma_12T.mean(axis=0)
    centred_12T /= np.linalg.norm(centred_12T, axis=0) + 1e-9
    score_24T = _templates() @ centred_12T
    # Viterbi where every change costs the same: staying competes with the best of all others.
    total_24, came_from_T24 = score_24T[:, 0], np.zeros((score_24T.shape[1], 24), int)
    labels_24 = np.arange(24)
    for t in range(1, score_24T.shape[1]):
        best = int(total_24.argmax())
        stays_24 = total_24 >= total_24[best] - change_cost
        came_from_T24[t] = np.where(stays_24, labels_24, best)
        total_24 = np.where(stays_24, total_24, total_24[best] - change_cost) + score_24T[:, t]
    path_T = np.empty(score_24T.shape[1], int)
    path_T[-1] = total_24.argmax()
    for t in range(len(path_T) - 1, 0, -1):
        path_T[t - 1] = came_from_T24[t, path_T[t]]
    return np.where(audible_T, path_T, -1)


def frame_chords(chords: Sequence[tuple[float, float, int]], frames: int) -> np.ndarray:
    """(T,) labels at `CHROMA_RATE_HZ` from (start_s, end_s, label) rows; −1 where no row covers a frame's centre."""
    labels_T = np.full(frames, -1)
    times_s = np.arange(frames) / CHROMA_RATE_HZ
    for start_s, end_s, label in chords:
        labels_T[(times_s >= start_s) & (times_s < end_s)] = label
    return labels_T


def chord_agreement(truth: Sequence[tuple[float, float, int]], labels_T: np.ndarray) -> float:
    """Share of the frames under a true chord (start_s, end_s, root · 2 + minor) whose recognised label is the same; 0 without any."""
    truth_T = frame_chords(truth, len(labels_T))
    covered_T = truth_T >= 0
    return float((truth_T == labels_T)[covered_T].mean()) if covered_T.any() else 0.0


def key_profile(chroma_12T: np.ndarray) -> np.ndarray:
    """(24,) correlations of the mean chroma with the 24 keys' profiles (Krumhansl 1990), index tonic · 2 + minor; zeros for silence."""
    mean_12 = chroma_12T.mean(axis=1) if chroma_12T.shape[1] else np.zeros(12)
    centred_12 = mean_12 - mean_12.mean()
    norm = np.linalg.norm(centred_12)
    if norm < 1e-9:
        return np.zeros(24)
    profiles_24 = np.array([np.roll(profile, tonic) for tonic in range(12) for profile in (_MAJOR_KEY, _MINOR_KEY)])
    profiles_24 -= profiles_24.mean(axis=1, keepdims=True)
    return profiles_24 @ centred_12 / (np.linalg.norm(profiles_24, axis=1) * norm)


def recognise_key(audio: np.ndarray) -> int:
    """Tonic · 2 + minor of the best key profile; −1 for silence."""
    profile_24 = key_profile(chroma(audio))
    return int(profile_24.argmax()) if profile_24.any() else -1


def _tuning_semitones(magnitude_FT: np.ndarray) -> float:
    """How far A4 lies from 440 Hz, in semitones within ±0.5: circular mean over spectral peaks (Dressler and Streich 2007)."""
    bins = np.arange(24, len(magnitude_FT) // 3)
    left, centre, right = (magnitude_FT[bins + shift] for shift in (-1, 0, 1))
    peaks = (centre > left) & (centre >= right) & (centre > 0.05 * magnitude_FT.max(axis=0)) & (centre > _SILENT)
    at, frame = np.nonzero(peaks)
    if at.size == 0:
        return 0.0
    left, centre, right = left[at, frame], centre[at, frame], right[at, frame]
    position = bins[at] + 0.5 * (left - right) / (left - 2 * centre + right)
    midi = 69 + 12 * np.log2(position * SAMPLE_RATE_HZ / _WINDOW_SAMPLES / 440)
    mean = np.sum(centre * np.exp(2j * np.pi * midi))
    return float(np.angle(mean) / (2 * np.pi))


@functools.lru_cache(maxsize=16)
def _log_frequency_matrix(tuning_semitones: float) -> np.ndarray:
    """(L, F): raised-cosine bins, three a semitone, at least a bin of the transform wide."""
    midi_L = np.arange((_HIGHEST_MIDI - _LOWEST_MIDI + 1) * _BINS_A_SEMITONE) / _BINS_A_SEMITONE + _LOWEST_MIDI - 1 / _BINS_A_SEMITONE
    centre_L = 440 * 2 ** ((midi_L + tuning_semitones - 69) / 12) * _WINDOW_SAMPLES / SAMPLE_RATE_HZ
    width_L = np.maximum(centre_L * (2 ** (1 / (12 * _BINS_A_SEMITONE)) - 1), 1.0)
    distance_LF = np.abs(np.arange(_FFT_BINS) - centre_L[:, None]) / width_L[:, None]
    weights_LF = np.where(distance_LF < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance_LF, 1)), 0)
    return (weights_LF / weights_LF.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _note_dictionary() -> np.ndarray:
    """(L, P): each note's harmonics on the log-frequency axis, geometrically decaying, in unit columns."""
    notes = _HIGHEST_NOTE_MIDI - _LOWEST_MIDI + 1
    bins = (_HIGHEST_MIDI - _LOWEST_MIDI + 1) * _BINS_A_SEMITONE
    dictionary_LP = np.zeros((bins, notes))
    position_L = np.arange(bins)
    for harmonic in range(1, _HARMONICS + 1):
        centre_P = (np.arange(notes) + 12 * np.log2(harmonic)) * _BINS_A_SEMITONE + 1
        lobe_LP = np.clip(1 - np.abs(position_L[:, None] - centre_P) / 2, 0, None)
        dictionary_LP += _HARMONIC_DECAY ** (harmonic - 1) * lobe_LP
    return dictionary_LP / np.linalg.norm(dictionary_LP, axis=0)


def _non_negative_notes(spectrum_LT: np.ndarray) -> np.ndarray:
    """(P, T) ≥ 0 that explain the spectrum in the least squares, by multiplicative updates (Lee and Seung 2001, eq. 4)."""
    dictionary_LP = _note_dictionary()
    target_PT = dictionary_LP.T @ spectrum_LT
    gram_PP = dictionary_LP.T @ dictionary_LP
    notes_PT = target_PT.copy()
    for _ in range(_NNLS_ROUNDS):
        notes_PT *= target_PT / (gram_PP @ notes_PT + 1e-9)
    return notes_PT


@functools.lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """(24, 12) centred unit triads in label order."""
    templates = np.zeros((24, 12))
    for root in range(12):
        templates[2 * root, [root, (root + 4) % 12, (root + 7) % 12]] = 1
        templates[2 * root + 1, [root, (root + 3) % 12, (root + 7) % 12]] = 1
    templates -= templates.mean(axis=1, keepdims=True)
    return templates / np.linalg.norm(templates, axis=1, keepdims=True)


def _averaged_between(chroma_12T: np.ndarray, beats_s: np.ndarray) -> np.ndarray:
    frames = chroma_12T.shape[1]
    edges = np.unique(np.clip(np.rint(np.asarray(beats_s) * CHROMA_RATE_HZ).astype(int), 0, frames))
    edges = np.unique(np.concatenate([[0], edges, [frames]]))
    sums = np.add.reduceat(chroma_12T, edges[:-1], axis=1)
    return np.repeat(sums / np.diff(edges), np.diff(edges), axis=1)
