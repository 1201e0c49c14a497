"""How much of a vocal is heard in an accompaniment, as itself or redrawn by a codec that loses its phase.

Shape legend: N samples, F bins, T frames.
"""

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from model.listen.spectrum import stft

_WINDOW_SAMPLES, _HOP_SAMPLES = 2_048, 1_024
_LOW_BIN, _HIGH_BIN = 9, 233  # 200 Hz to 5 kHz, where a voice is a voice
_SHIFT_REACH_S = 0.25
_ACTIVE_DB = 35.0
_DETAIL_BINS = 15
_NEAR_FRAMES = 3
_FAR_FRAMES = (12, 16, 21, 27, 34, 42)  # 0.3 to 1 s: the same song, not the same moment


def leakage(vocal_N: np.ndarray, accompaniment_N: np.ndarray) -> float:
    """0 to 1, mono of equal length: the larger of the coherent share and the share of the vocal's spectral detail that is found again.

    The first is the magnitude-squared coherence's root (Carter 1987), weighted by where the vocal has its energy, at the delay of the
    cross-correlation's peak. The second needs no phase: the normalised correlation of both log spectrograms' detail where the vocal sounds,
    beyond the same at other times of the song. Chance is taken off both.
    """
    vocal_FT = _voice_band(vocal_N)
    shares = []
    # Without a coherent leak the peak lies anywhere, so where nothing is moved counts too.
    for heard_N in (accompaniment_N, _aligned(vocal_N, accompaniment_N)):
        accompaniment_FT = _voice_band(heard_N)
        shares.append(coherent_share(vocal_FT, accompaniment_FT))
        shares.append(detail_share(np.abs(vocal_FT), np.abs(accompaniment_FT)))
    return max(shares)


def _voice_band(mono_N: np.ndarray) -> np.ndarray:
    return stft(mono_N, window_samples=_WINDOW_SAMPLES, hop_samples=_HOP_SAMPLES, bins=_HIGH_BIN)[_LOW_BIN:]


def coherent_share(vocal_FT: np.ndarray, accompaniment_FT: np.ndarray) -> float:
    """0 to 1: coherence of complex spectra, averaged with the vocal's energy as weight."""
    power_F = (np.abs(vocal_FT) ** 2).sum(axis=1, dtype=np.float64)
    other_F = (np.abs(accompaniment_FT) ** 2).sum(axis=1, dtype=np.float64)
    if power_F.sum() <= 0 or other_F.sum() <= 0:
        return 0.0
    cross_F = np.abs((vocal_FT * accompaniment_FT.conj()).sum(axis=1, dtype=np.complex128))
    scale_F = np.sqrt(power_F * other_F)
    coherence_F = np.divide(cross_F, scale_F, out=np.zeros_like(cross_F), where=scale_F > 1e-20)
    # Unrelated signals still cohere by √(π / 4K) over K averaged frames.
    effective_F = power_F**2 / np.maximum((np.abs(vocal_FT).astype(np.float64) ** 4).sum(axis=1), 1e-30)
    chance_F = np.sqrt(np.pi / (4 * np.maximum(effective_F, 1)))
    beyond_F = np.clip((coherence_F - chance_F) / np.maximum(1 - chance_F, 1e-3), 0, 1)
    return float((beyond_F * power_F).sum() / power_F.sum())


def detail_share(vocal_FT: np.ndarray, accompaniment_FT: np.ndarray) -> float:
    """0 to 1: correlation of the spectrograms' fine structure at the same time, beyond that 0.3 to 1 s away."""
    active_T = vocal_FT.max(axis=0) > vocal_FT.max() * 10 ** (-_ACTIVE_DB / 20)
    if active_T.sum() < _FAR_FRAMES[-1]:
        return 0.0
    vocal_FT, accompaniment_FT = _detail(vocal_FT) * active_T, _detail(accompaniment_FT)
    near = max(_correlation(vocal_FT, accompaniment_FT, shift) for shift in range(-_NEAR_FRAMES, _NEAR_FRAMES + 1))
    far = float(np.mean([_correlation(vocal_FT, accompaniment_FT, sign * shift) for shift in _FAR_FRAMES for sign in (-1, 1)]))
    return float(np.clip((near - max(far, 0)) / (1 - max(far, 0)), 0, 1)) if far < 0.99 else 0.0


def _detail(magnitude_FT: np.ndarray) -> np.ndarray:
    """Log magnitude less its neighbourhood along frequency: partials stand out, timbre and level are gone."""
    floor = 1e-3 * magnitude_FT.max()
    log_FT = np.log(magnitude_FT + max(floor, 1e-9))
    return log_FT - scipy.ndimage.uniform_filter1d(log_FT, _DETAIL_BINS, axis=0, mode="nearest")


def _correlation(vocal_FT: np.ndarray, accompaniment_FT: np.ndarray, shift: int) -> float:
    """Normalised correlation of vocal frame t with accompaniment frame t + shift, over the frames where the vocal is not masked out."""
    frames = vocal_FT.shape[1]
    first, last = max(0, -shift), min(frames, frames - shift)
    vocal_FT, accompaniment_FT = vocal_FT[:, first:last], accompaniment_FT[:, first + shift : last + shift]
    sounding_T = vocal_FT.any(axis=0)
    vocal_FT, accompaniment_FT = vocal_FT[:, sounding_T], accompaniment_FT[:, sounding_T]
    scale = float(np.linalg.norm(vocal_FT) * np.linalg.norm(accompaniment_FT))
    return float(np.vdot(vocal_FT, accompaniment_FT)) / scale if scale > 1e-9 else 0.0


def _aligned(vocal_N: np.ndarray, accompaniment_N: np.ndarray) -> np.ndarray:
    """The accompaniment moved by the delay, at most 0.25 s either way, at which it correlates most with the vocal; zeros come in."""
    step = 4
    vocal_M = scipy.signal.resample_poly(vocal_N, 1, step)
    accompaniment_M = scipy.signal.resample_poly(accompaniment_N, 1, step)
    size = scipy.fft.next_fast_len(2 * len(vocal_M), real=True)
    cross = scipy.fft.rfft(accompaniment_M, size) * scipy.fft.rfft(vocal_M, size).conj()
    correlation = np.abs(scipy.fft.irfft(cross, size))
    reach = round(_SHIFT_REACH_S * SAMPLE_RATE_HZ / step)
    lags = np.arange(-reach, reach + 1)
    delay = int(lags[correlation[lags].argmax()]) * step
    moved_N = np.zeros_like(accompaniment_N)
    if delay >= 0:
        moved_N[: len(moved_N) - delay] = accompaniment_N[delay:]
    else:
        moved_N[-delay:] = accompaniment_N[:delay]
    return moved_N
