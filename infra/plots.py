"""Plots that several pages show."""

import numpy as np

LOWEST_DB = -90.0
SPECTROGRAM_WINDOW = 2_048


def spectrogram(mono_N: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(decibels (bins, frames), bin frequencies in Hz, frame times in s), about a thousand frames whatever the length."""
    hop = max(SPECTROGRAM_WINDOW // 2, mono_N.size // 1_000)
    starts = np.arange(0, max(1, mono_N.size - SPECTROGRAM_WINDOW), hop)
    padded = np.pad(mono_N, (0, SPECTROGRAM_WINDOW))
    frames = padded[starts[:, None] + np.arange(SPECTROGRAM_WINDOW)] * np.hanning(SPECTROGRAM_WINDOW)
    magnitude = np.abs(np.fft.rfft(frames)).T * 4 / SPECTROGRAM_WINDOW
    decibels = 20 * np.log10(np.maximum(magnitude, 10 ** (LOWEST_DB / 20)))
    return decibels, np.fft.rfftfreq(SPECTROGRAM_WINDOW, 1 / sample_rate_hz), starts / sample_rate_hz
