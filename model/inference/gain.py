"""Levels: how loud a voice is while it sounds, the gain that a network wants it at, and mixtures within full scale.

Shapes: C channels, N samples, T latent frames of 2,048 samples.
"""

import numpy as np

from model.dimensions import HOP_SAMPLES
from model.errors import ModelError

PEAK_DBFS = -1.0
# Below this much under its loudest frame, and below this level at all, a vocal counts as resting.
ACTIVE_RANGE_DB, ACTIVE_FLOOR_DB = 35.0, -60.0
# What lasts less than three latent frames (0.14 s) and is this much louder than all that lasts longer is a bump, if there are few.
BUMP_FRAMES, BUMP_DB, MOST_BUMPS = 3, 8.0, 0.01


def active_level_db(audio_CN: np.ndarray) -> float:
    """RMS in dBFS over the latent frames in which the voice sounds; −inf for silence. A gain moves it by exactly that gain, as long as
    the voice is above −60 dBFS."""
    samples = audio_CN.shape[1]
    whole = samples // HOP_SAMPLES * HOP_SAMPLES
    framed_CTN = audio_CN[:, :whole].reshape(len(audio_CN), -1, HOP_SAMPLES)
    # einsum adds up squares without a copy of the song
    energy_T = np.einsum("ctn,ctn->t", framed_CTN, framed_CTN, dtype=np.float64)
    energy_T = np.append(energy_T, np.square(audio_CN[:, whole:], dtype=np.float64).sum())
    power_T = energy_T / (len(audio_CN) * HOP_SAMPLES)
    threshold = max(float(power_T.max()) * 10 ** (-ACTIVE_RANGE_DB / 10), 10 ** (ACTIVE_FLOOR_DB / 10))
    active_T = power_T[power_T >= threshold]
    return 10 * float(np.log10(active_T.mean())) if len(active_T) else -np.inf


def without_bumps(vocal_CN: np.ndarray) -> np.ndarray:
    """A vocal whose few clicks and knocks (at most 1% of its latent frames) are cut 8 dB above what it holds for longer; else itself.

    One full-scale click in a quiet recording would count as its level, and the band would play far above the voice.
    """
    frames = vocal_CN.shape[1] // HOP_SAMPLES
    if frames < BUMP_FRAMES:
        return vocal_CN
    framed_CTN = vocal_CN[:, : frames * HOP_SAMPLES].reshape(len(vocal_CN), frames, HOP_SAMPLES)
    peak_T = np.maximum(framed_CTN.max(axis=(0, 2)), -framed_CTN.min(axis=(0, 2)))
    held_T = np.lib.stride_tricks.sliding_window_view(peak_T, BUMP_FRAMES).min(axis=1)
    ceiling = float(held_T.max()) * 10 ** (BUMP_DB / 20)
    bumps = int(np.count_nonzero(peak_T > ceiling))
    return np.clip(vocal_CN, -ceiling, ceiling) if 0 < bumps <= MOST_BUMPS * frames else vocal_CN


def level_gain(vocal_CN: np.ndarray, target_db: float) -> float:
    """The gain that brings a vocal to the level of the training set's, short of clipping; 1 for digital silence.

    What never rises to −60 dBFS gets the gain of what just does: the band is played as much quieter.
    """
    peak = float(np.abs(vocal_CN).max(initial=0.0))
    if not peak:
        return 1.0
    return float(min(10 ** ((target_db - max(active_level_db(vocal_CN), ACTIVE_FLOOR_DB)) / 20), 1.0 / peak))


def mix(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(vocal, accompaniment, mixture) under one common gain, 1 or less, that keeps every peak at −1 dBFS or below."""
    if vocal_CN.shape != accompaniment_CN.shape:
        raise ModelError(f"mix: a vocal of shape {vocal_CN.shape} and an accompaniment of {accompaniment_CN.shape}; both must be equal")
    stems = (vocal_CN, accompaniment_CN, vocal_CN + accompaniment_CN)
    peak = max(float(np.abs(stem).max(initial=0.0)) for stem in stems)
    gain = np.float32(min(1.0, 10 ** (PEAK_DBFS / 20) / peak) if peak else 1.0)
    vocal, accompaniment = vocal_CN * gain, accompaniment_CN * gain
    return vocal, accompaniment, vocal + accompaniment


def within_full_scale(audio_CN: np.ndarray) -> np.ndarray:
    """Audio that stands alone: turned down to a peak of −1 dBFS where it exceeds that, else as it is."""
    return mix(np.zeros_like(audio_CN), audio_CN)[1]


class RunningGain:
    """What `within_full_scale` does, for audio that is sent before its end is known: the gain falls where a piece exceeds −1 dBFS, within
    50 ms, and does not rise again. Audio that stays below is left as it is."""

    def __init__(self, sample_rate_hz: int) -> None:
        self._fall_samples, self._gain = sample_rate_hz // 20, 1.0

    def __call__(self, piece_CN: np.ndarray) -> np.ndarray:
        """(C, N) → (C, N): the next piece, turned down."""
        peak = float(np.abs(piece_CN).max(initial=0.0))
        before, self._gain = self._gain, min(self._gain, 10 ** (PEAK_DBFS / 20) / peak) if peak else self._gain
        if self._gain == 1.0:
            return piece_CN
        gain_N = np.full(piece_CN.shape[1], self._gain, np.float32)
        fall = min(self._fall_samples, len(gain_N)) if before != self._gain else 0
        gain_N[:fall] = np.linspace(before, self._gain, fall, endpoint=False, dtype=np.float32)
        return np.clip(piece_CN * gain_N, -1.0, 1.0)
