"""Loudness and the shape of the spectrum.

Shape legend: C channels, N samples, F bins, T frames.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from model.listen.spectrum import magnitudes, mono

FLOOR_DB = -120.0

# ITU-R BS.1770-4, tables 1 and 2, given there for 48 kHz; redesigned for 44.1 kHz by the bilinear transform of the same analogue filters.
_SHELF_HZ, _SHELF_DB, _SHELF_Q = 1_681.974450955533, 3.999843853973347, 0.7071752369554196
_HIGH_PASS_HZ, _HIGH_PASS_Q = 38.13547087602444, 0.5003270373238773


def rms_db(audio: np.ndarray) -> float:
    """Root mean square in dB of full scale, at least −120."""
    audio = np.asarray(audio, dtype=np.float32)
    power = float(np.mean(audio.astype(np.float64) ** 2)) if audio.size else 0.0
    return _power_db(power)


def loudness_db(audio: np.ndarray) -> float:
    """Integrated loudness in LUFS, K-weighted and gated (ITU-R BS.1770-4); at least −120, which is also the answer for silence.

    Mono (N,) counts as one channel. Shorter than a 400 ms block is measured as one block.
    """
    audio_CN = np.atleast_2d(np.asarray(audio, dtype=np.float32))
    if audio_CN.shape[1] == 0:
        return FLOOR_DB
    weighted_CN = scipy.signal.sosfilt(_k_weighting(), audio_CN, axis=1)
    energy_N = np.concatenate([[0.0], np.cumsum((weighted_CN**2).sum(axis=0))])
    block, step = round(0.4 * SAMPLE_RATE_HZ), round(0.1 * SAMPLE_RATE_HZ)
    block = min(block, audio_CN.shape[1])
    starts = np.arange(0, audio_CN.shape[1] - block + 1, step)
    power_T = (energy_N[starts + block] - energy_N[starts]) / block
    power_T = power_T[power_T > 10 ** ((-70 + 0.691) / 10)]
    if power_T.size == 0:
        return FLOOR_DB
    power_T = power_T[power_T > power_T.mean() * 0.1]
    return _power_db(float(power_T.mean())) - 0.691


@dataclass(frozen=True, kw_only=True)
class SpectralStatistics:
    """Averages over the frames that are not silent, weighted by their magnitude; zero for silence."""

    centroid_hz: float
    bandwidth_hz: float
    rolloff_hz: float  # 85% of the magnitude lies below
    flatness: float  # geometric over arithmetic mean of the power: 0 tone, towards 1 noise
    flux: float  # mean relative change of the magnitude from frame to frame: 0 a drone


def spectral_statistics(audio: np.ndarray) -> SpectralStatistics:
    """Centroid, bandwidth, roll-off, flatness and flux (Peeters 2004, "A large set of audio features")."""
    magnitude_FT = magnitudes(mono(audio), window_samples=2_048, hop_samples=1_024)
    magnitude_FT = magnitude_FT[:, magnitude_FT.sum(axis=0) > 1e-5]
    if magnitude_FT.shape[1] == 0:
        return SpectralStatistics(centroid_hz=0.0, bandwidth_hz=0.0, rolloff_hz=0.0, flatness=0.0, flux=0.0)
    frequency_F = np.arange(len(magnitude_FT)) * SAMPLE_RATE_HZ / 2_048
    spectrum_F = magnitude_FT.mean(axis=1, dtype=np.float64)
    share_F = spectrum_F / spectrum_F.sum()
    centroid_hz = float(frequency_F @ share_F)
    power_FT = magnitude_FT.astype(np.float64) ** 2 + 1e-12
    change = np.abs(np.diff(magnitude_FT, axis=1)).sum(dtype=np.float64)
    return SpectralStatistics(
        centroid_hz=centroid_hz,
        bandwidth_hz=float(np.sqrt((frequency_F - centroid_hz) ** 2 @ share_F)),
        rolloff_hz=float(frequency_F[np.searchsorted(np.cumsum(share_F), 0.85)]),
        flatness=float(np.mean(np.exp(np.log(power_FT).mean(axis=0)) / power_FT.mean(axis=0))),
        flux=float(change / magnitude_FT.sum(dtype=np.float64)),
    )


def _power_db(power: float) -> float:
    return max(FLOOR_DB, 10 * float(np.log10(max(power, 1e-30))))


def _k_weighting() -> np.ndarray:
    """(2, 6) second-order sections: high shelf, then high pass."""
    k = np.tan(np.pi * _SHELF_HZ / SAMPLE_RATE_HZ)
    high = 10 ** (_SHELF_DB / 20)
    band = high**0.4996667741545416
    scale = 1 + k / _SHELF_Q + k * k
    shelf = [
        (high + band * k / _SHELF_Q + k * k) / scale,
        2 * (k * k - high) / scale,
        (high - band * k / _SHELF_Q + k * k) / scale,
        1.0,
        2 * (k * k - 1) / scale,
        (1 - k / _SHELF_Q + k * k) / scale,
    ]
    k = np.tan(np.pi * _HIGH_PASS_HZ / SAMPLE_RATE_HZ)
    scale = 1 + k / _HIGH_PASS_Q + k * k
    high_pass = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / scale, (1 - k / _HIGH_PASS_Q + k * k) / scale]
    return np.array([shelf, high_pass])
