"""Short-time spectra that the listening functions share.

Shape legend: C channels, N samples, F frequency bins, T frames.
"""

import functools
from collections.abc import Iterator

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ

# Frames are transformed in blocks, so that memory does not grow with the square of anything.
_BLOCK_FRAMES = 512


def mono(audio: np.ndarray) -> np.ndarray:
    """(N,) float32 from (N,) or (C, N): the mean of the channels."""
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim == 1:
        return audio
    if audio.ndim != 2:
        raise ValueError(f"audio of shape {audio.shape} is neither (N,) nor (C, N)")
    return audio.mean(axis=0)


def stft(mono_N: np.ndarray, *, window_samples: int, hop_samples: int, bins: int | None = None) -> np.ndarray:
    """(F, T) complex64 with Hann windows, frame t centred on sample t · hop; T = N // hop + 1.

    A full-scale sine gives magnitude 0.5 in its bin. `bins` keeps only the lowest F bins.
    """
    frames = len(mono_N) // hop_samples + 1
    spectrum_FT = np.empty((bins or window_samples // 2 + 1, frames), np.complex64)
    for start, block_FT in _blocks(mono_N, window_samples, hop_samples, len(spectrum_FT)):
        spectrum_FT[:, start : start + block_FT.shape[1]] = block_FT
    return spectrum_FT


def magnitudes(mono_N: np.ndarray, *, window_samples: int, hop_samples: int, bins: int | None = None) -> np.ndarray:
    """(F, T) float32: the magnitude of `stft`, which is never whole in memory."""
    frames = len(mono_N) // hop_samples + 1
    magnitude_FT = np.empty((bins or window_samples // 2 + 1, frames), np.float32)
    for start, block_FT in _blocks(mono_N, window_samples, hop_samples, len(magnitude_FT)):
        np.abs(block_FT, out=magnitude_FT[:, start : start + block_FT.shape[1]])
    return magnitude_FT


def _blocks(mono_N: np.ndarray, window_samples: int, hop_samples: int, bins: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first frame, (F, T) complex64) of some frames of `stft` at a time."""
    half = window_samples // 2
    padded_N = np.pad(mono_N, (half, half + hop_samples))
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded_N, window_samples)[::hop_samples][: len(mono_N) // hop_samples + 1]
    window_N = scipy.signal.get_window("hann", window_samples).astype(np.float32)
    window_N /= window_N.sum()
    for start in range(0, len(frames_TN), _BLOCK_FRAMES):
        block_TN = frames_TN[start : start + _BLOCK_FRAMES] * window_N
        yield start, scipy.fft.rfft(block_TN, axis=1)[:, :bins].T


@functools.lru_cache(maxsize=4)
def mel_matrix(window_samples: int, bands: int, low_hz: float = 30.0, high_hz: float = 16_000.0) -> np.ndarray:
    """(bands, F) triangular filters of unit height, evenly spaced in mel (O'Shaughnessy 1987: 2595 log10(1 + f / 700))."""
    edges_mel = np.linspace(2595 * np.log10(1 + low_hz / 700), 2595 * np.log10(1 + high_hz / 700), bands + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    # A low band narrower than a bin would otherwise hold nothing.
    bin_hz = SAMPLE_RATE_HZ / window_samples
    frequencies_hz = np.arange(window_samples // 2 + 1) * bin_hz
    centre_hz = edges_hz[1:-1, None]
    rise_hz = np.maximum(centre_hz - edges_hz[:-2, None], bin_hz)
    fall_hz = np.maximum(edges_hz[2:, None] - centre_hz, bin_hz)
    offset_hz = frequencies_hz - centre_hz
    weights = np.clip(1 - np.where(offset_hz < 0, -offset_hz / rise_hz, offset_hz / fall_hz), 0, None)
    weights.flags.writeable = False
    return weights.astype(np.float32)
