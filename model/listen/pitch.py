"""Fundamental frequency of a voice.

Shape legend: N samples, T frames at `F0_RATE_HZ`, L lags.
"""

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from model.listen.spectrum import mono

F0_RATE_HZ = 100.0
_RATE_HZ = SAMPLE_RATE_HZ // 2
_WINDOW_SAMPLES = 1_024
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 1_100.0
_DIP, _VOICED = 0.15, 0.30
_GATE_DB = 40.0  # below the loud frames, and nothing sings
_BLOCK_FRAMES = 512


def f0(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(times_s, hz, voiced), each (T,), 100 frames a second; hz is 0 where unvoiced.

    YIN (de Cheveigné and Kawahara 2002, steps 1 to 5), the difference function by FFT, parabolic lags; single octave slips are mended
    from the neighbours. 60 to 1100 Hz.
    """
    low_N = scipy.signal.resample_poly(mono(audio), 1, 2).astype(np.float32)
    frames = int(len(low_N) / _RATE_HZ * F0_RATE_HZ) + 1
    times_s = np.arange(frames) / F0_RATE_HZ
    longest = int(_RATE_HZ / _LOWEST_HZ) + 2
    span = _WINDOW_SAMPLES + longest
    starts = np.rint(times_s * _RATE_HZ).astype(int)
    padded_N = np.pad(low_N, (span // 2, span))
    windows = np.lib.stride_tricks.sliding_window_view(padded_N, span)
    hz_T, depth_T, power_T = np.zeros(frames), np.ones(frames), np.zeros(frames)
    for start in range(0, frames, _BLOCK_FRAMES):
        block = slice(start, min(start + _BLOCK_FRAMES, frames))
        hz_T[block], depth_T[block], power_T[block] = _yin(windows[starts[block]], longest)
    loud = np.percentile(power_T, 95)
    voiced_T = (depth_T < _VOICED) & (power_T > max(loud * 10 ** (-_GATE_DB / 10), 1e-9))
    hz_T = _without_octave_slips(hz_T, voiced_T)
    # A lone voiced or unvoiced frame is an accident.
    voiced_T = scipy.ndimage.median_filter(voiced_T.astype(np.uint8), 5, mode="nearest").astype(bool) & (hz_T > 0)
    hz_T = _at_frame_centres(times_s, hz_T, voiced_T, longest)
    return times_s, np.where(voiced_T, hz_T, 0.0), voiced_T


def _yin(frames_TN: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequency in Hz, depth of the dip (0 periodic, 1 not) and mean power, each (T,)."""
    # Transforms in single precision are a third cheaper and move the pitch by less than 0.001 cents; sums that grow stay in double.
    frames_TN = frames_TN - frames_TN.mean(axis=1, keepdims=True)
    size = scipy.fft.next_fast_len(frames_TN.shape[1], real=True)
    head = scipy.fft.rfft(frames_TN[:, :_WINDOW_SAMPLES], size, axis=1)
    correlation_TL = scipy.fft.irfft(scipy.fft.rfft(frames_TN, size, axis=1) * head.conj(), size, axis=1)[:, :longest]
    energy = np.concatenate([np.zeros((len(frames_TN), 1)), np.cumsum(frames_TN**2, axis=1, dtype=np.float64)], axis=1)
    energy_TL = energy[:, _WINDOW_SAMPLES : _WINDOW_SAMPLES + longest] - energy[:, :longest]
    power_T = energy_TL[:, 0] / _WINDOW_SAMPLES
    difference_TL = np.maximum(energy_TL[:, :1] + energy_TL - 2 * correlation_TL, 0)  # eq. 7
    mean_TL = np.cumsum(difference_TL[:, 1:], axis=1) / np.arange(1, longest)
    normalised_TL = np.ones_like(difference_TL)  # eq. 8
    np.divide(difference_TL[:, 1:], mean_TL, out=normalised_TL[:, 1:], where=mean_TL > 1e-12)
    shortest = int(_RATE_HZ / _HIGHEST_HZ)
    inner = normalised_TL[:, shortest : longest - 1]
    is_dip = (inner <= normalised_TL[:, shortest - 1 : longest - 2]) & (inner < normalised_TL[:, shortest + 1 : longest])
    first = np.argmax(is_dip & (inner < _DIP), axis=1)
    found = np.take_along_axis(is_dip & (inner < _DIP), first[:, None], axis=1)[:, 0]
    lag_T = np.where(found, first, np.argmin(inner, axis=1)) + shortest
    row = np.arange(len(frames_TN))
    depth_T = normalised_TL[row, lag_T]
    left, centre, right = (difference_TL[row, lag_T + shift] for shift in (-1, 0, 1))
    bend = left - 2 * centre + right
    offset = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend > 1e-12)
    return _RATE_HZ / (lag_T + np.clip(offset, -0.5, 0.5)), depth_T, power_T


def _at_frame_centres(times_s: np.ndarray, hz_T: np.ndarray, voiced_T: np.ndarray, longest: int) -> np.ndarray:
    """YIN compares two windows a lag apart, so what it hears lies earlier than the frame's centre the shorter the lag: up to 8 ms."""
    at = np.flatnonzero(voiced_T)
    if at.size == 0:
        return hz_T
    heard_s = times_s[at] - 0.5 * (longest / _RATE_HZ - 1 / hz_T[at])
    moved_T = hz_T.copy()
    # An octave leap can put two frames out of order by a few ms.
    moved_T[at] = np.exp(np.interp(times_s[at], np.maximum.accumulate(heard_s), np.log(hz_T[at])))
    return moved_T


def _without_octave_slips(hz_T: np.ndarray, voiced_T: np.ndarray) -> np.ndarray:
    """Frames an octave or a twelfth off the median of their voiced neighbours are folded back."""
    at = np.flatnonzero(voiced_T)
    if at.size < 3:
        return hz_T
    pitch = np.log2(hz_T[at])
    median = scipy.ndimage.median_filter(pitch, 31, mode="nearest")
    leap = pitch - median
    mended = hz_T.copy()
    for ratio in (1.0, -1.0, np.log2(3), -np.log2(3)):
        slipped = np.abs(leap - ratio) < 0.08
        mended[at[slipped]] = 2 ** (pitch[slipped] - ratio)
    return mended
