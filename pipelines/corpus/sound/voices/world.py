"""WORLD (Morise, Yokomori and Ozawa 2016) by pyworld: a recorded syllable as spectra that can be moved and sounded at any pitch.

Shapes: T frames of 5 ms, D bins (1025).
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy
import soundfile as sf
from numpy.typing import NDArray

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array

FRAME_S = 0.005
REMEDY = "pip install pyworld (it is compiled, which needs a C++ compiler: apt-get install g++), or take --voice neural or numpy"
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 500.0
_HUM_HZ = 70.0
_LEAST_S, _SILENT = 0.1, 1e-4
_SOUND_FROM_HZ = 600.0
_LONGEST_HEAD, _LONGEST_VOWEL = 32, 180
# DIO finds the mains' hum under an s and calls it voiced: what has this share of its power above 4 kHz is not.
_HISS_FROM_HZ, _HISS_SHARE = 4_000.0, 0.35
# Below a vowel's level, from 350 Hz up, where nasals are weak: of its start, of its end, of what is still heard.
_FROM_HZ, _VOWEL_DB, _LOUD_DB, _HEARD_DB = 350.0, 5.0, 8.0, 22.0
_CLOSURE = 4
_STEADY = 6
_FLOOR = 1e-16


@dataclass(frozen=True)
class Syllable:
    """From its consonant on; the vowel's mean power is 1."""

    log_power_TD: NDArray[np.float32]
    aperiodicity_TD: NDArray[np.float32]
    voiced_T: NDArray[np.bool_]
    vowel: int
    """The frame at which the vowel starts, and the one at which it ends."""
    end: int


def missing() -> str | None:
    """What the vocoder lacks on this machine, with its remedy."""
    return None if importlib.util.find_spec("pyworld") else f"pyworld is not installed: {REMEDY}"


@lru_cache(maxsize=110)
def analyse(path: Path) -> Syllable:
    """A recorded syllable, some 0.3 s of work: hum and silence removed, its consonant apart from its vowel."""
    import pyworld

    audio_N = _trimmed(sf.read(path, always_2d=True)[0].mean(axis=1))
    f0, times = pyworld.dio(audio_N, SAMPLE_RATE_HZ, f0_floor=_LOWEST_HZ, f0_ceil=_HIGHEST_HZ, frame_period=1000 * FRAME_S)
    f0 = pyworld.stonemask(audio_N, f0, times, SAMPLE_RATE_HZ)
    power_TD = pyworld.cheaptrick(audio_N, f0, times, SAMPLE_RATE_HZ)
    aperiodicity_TD = pyworld.d4c(audio_N, f0, times, SAMPLE_RATE_HZ)
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, power_TD.shape[1])
    hiss = power_TD[:, hz > _HISS_FROM_HZ].sum(axis=1) / (power_TD.sum(axis=1) + _FLOOR)
    low = power_TD[:, (hz > _FROM_HZ) & (hz < _HISS_FROM_HZ)].sum(axis=1) + _FLOOR
    level_db = 10 * np.log10(low)
    voiced = (f0 > 0) & (hiss < _HISS_SHARE)
    usual_db = np.percentile(level_db[voiced], 75) if voiced.any() else level_db.max()
    voiced &= level_db > usual_db - _HEARD_DB
    vowel = int(np.argmax(np.convolve(voiced & (level_db > usual_db - _VOWEL_DB), np.ones(_STEADY), "valid") >= _STEADY))
    heard = int(np.argmax(10 * np.log10(power_TD.sum(axis=1) + _FLOOR) > usual_db - _HEARD_DB))
    first = max(0, vowel - _LONGEST_HEAD, min(heard - _CLOSURE, vowel))
    loud = np.flatnonzero(voiced & (level_db > usual_db - _LOUD_DB))
    last = min(int(loud[-1]) if loud.size else len(low) - 1, vowel + _LONGEST_VOWEL)
    last = max(last, min(vowel + 2 * _STEADY, len(low) - 1))
    usual = power_TD[vowel : last + 1].sum(axis=1).mean()
    return Syllable(
        log_power_TD=np.log(power_TD[first : last + 1] / usual + _FLOOR).astype(np.float32),
        aperiodicity_TD=np.where(voiced[:, None], aperiodicity_TD, 1.0)[first : last + 1].astype(np.float32),
        voiced_T=voiced[first : last + 1],
        vowel=vowel - first,
        end=last - first,
    )


def check_syllable(path: Path) -> None:
    """Raises UserError for a file in which there is nothing to sing with."""
    audio_N = sf.read(path, always_2d=True)[0].mean(axis=1)
    if len(audio_N) < _LEAST_S * SAMPLE_RATE_HZ or np.abs(audio_N).max() < _SILENT:
        raise UserError(f"{path}: is silent, or shorter than {_LEAST_S:g} s: a syllable must be heard; record it again, or remove it")


def _trimmed(audio_N: Array) -> Array:
    """Without the mains' hum, from 10 ms before its first sound to its last."""
    audio_N = scipy.signal.sosfiltfilt(scipy.signal.butter(2, _HUM_HZ, "high", fs=SAMPLE_RATE_HZ, output="sos"), audio_N)
    above = scipy.signal.sosfilt(scipy.signal.butter(4, _SOUND_FROM_HZ, "high", fs=SAMPLE_RATE_HZ, output="sos"), audio_N)
    power = scipy.ndimage.uniform_filter1d(above**2, 512, mode="constant")
    heard = np.flatnonzero(power > 2e-3 * power.max())
    return np.ascontiguousarray(audio_N[max(0, heard[0] - SAMPLE_RATE_HZ // 100) : heard[-1] + 1])


def sound(f0_hz_T: Array, log_power_TD: NDArray[np.float32], aperiodicity_TD: NDArray[np.float32]) -> Array:
    """The audio of frames, at 44.1 kHz; F0 is 0 where unvoiced."""
    import pyworld

    f0 = np.ascontiguousarray(f0_hz_T, np.float64)
    power = np.ascontiguousarray(np.exp(log_power_TD), np.float64)
    rough = np.ascontiguousarray(np.clip(aperiodicity_TD, 1e-6, 1.0), np.float64)
    audio_N: Array = pyworld.synthesize(f0, power, rough, SAMPLE_RATE_HZ, 1000 * FRAME_S)
    return audio_N
