"""A band whose key and tempo are known."""

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ


def band(seconds: float, *, root_hz: float = 220.0, bpm: float = 120.0, seed: int = 0) -> np.ndarray:
    """A triad that is struck on every beat over a bass, in stereo."""
    time_s = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    decay = np.exp(-6 * np.mod(time_s, 60 / bpm))
    chord = sum(np.sin(2 * np.pi * root_hz * ratio * time_s) for ratio in (1, 5 / 4, 3 / 2)) * decay
    bass = np.sin(2 * np.pi * root_hz / 4 * time_s)
    hiss = np.random.default_rng(seed).standard_normal((2, len(time_s))) * 0.01
    return (0.1 * (np.stack([chord + bass, 0.8 * chord + bass]) + hiss)).astype(np.float32)
