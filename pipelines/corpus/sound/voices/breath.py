"""What is heard beside the sung sounds: the breath before a line, and the air above what a narrow voice reaches."""

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance, noise
from pipelines.corpus.score.record import SongRecord
from pipelines.corpus.sound.dsp import db

# Centre, width and strength of the bands of an inhaled breath.
_BREATH_BANDS = ((900.0, 350.0, 0.6), (1800.0, 500.0, 1.0), (3400.0, 900.0, 0.7), (6000.0, 1800.0, 0.35))
_PAUSE_S = 0.35
_BREATH_DB = (-36.0, -28.0)
_AIR_FROM_HZ, _AIR_TO_HZ = 10_500.0, 17_000.0
_BELOW_HZ = (6_500.0, 10_200.0)
_AIR_DB = -10.0
_FOLLOW_S = 0.004


def breaths(record: SongRecord, line_starts_s: list[float], level: float, samples: int) -> Array:
    """Inhaled breaths before lines that follow a pause, shape (samples,); `level` is the RMS of the singing, starts include consonants."""
    out = np.zeros(samples)
    chance = Chance("breaths", record.seed)
    for index, start_s in enumerate(line_starts_s):
        ended_s = max((note.offset_s for note in record.vocal if note.onset_s < start_s), default=-1.0)
        length_s = min(chance.uniform(0.2, 0.34), start_s - ended_s - 0.15)
        strength = level * db(chance.uniform(*_BREATH_DB))
        if start_s - ended_s < _PAUSE_S or length_s < 0.08:
            continue
        n = int(length_s * SAMPLE_RATE_HZ)
        hz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE_HZ)
        colour = np.sum([gain * np.exp(-0.5 * ((hz - centre) / width) ** 2) for centre, width, gain in _BREATH_BANDS], axis=0)
        puff = np.fft.irfft(np.fft.rfft(noise(n, "breath", record.seed, index)) * colour, n)
        puff *= np.sin(np.pi * np.linspace(0, 1, n) ** 1.6) ** 1.5
        at = int((start_s - 0.05) * SAMPLE_RATE_HZ) - n
        if at >= 0 and at + n <= samples:
            out[at : at + n] += puff * strength / np.sqrt(np.mean(puff**2))
    return out


def air(dry_N: Array, seed: int) -> Array:
    """Noise above 10.5 kHz as loud as what lies below it is at each moment: what a voice of 24 kHz lacks. Shape (n,) to add."""
    sections = scipy.signal.butter(4, _BELOW_HZ, "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    size = int(_FOLLOW_S * SAMPLE_RATE_HZ)
    power = scipy.ndimage.uniform_filter1d(scipy.signal.sosfilt(sections, dry_N) ** 2, size, mode="constant")
    above = scipy.signal.butter(4, (_AIR_FROM_HZ, _AIR_TO_HZ), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    hiss = scipy.signal.sosfilt(above, noise(dry_N.size, "air", seed))
    return hiss * np.sqrt(np.maximum(power, 0.0)) * db(_AIR_DB) / np.sqrt(np.mean(hiss**2))
