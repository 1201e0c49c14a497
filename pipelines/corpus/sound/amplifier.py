"""A guitar's amplifier and loudspeaker: the same for recorded strings and for computed ones."""

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus.sound.dsp import band, good_length

_OVERSAMPLING = 4
# Drive: how far a string at its usual level is pushed into the bend.
AMPLIFIED = {"crunch_guitar": 5.0, "lead_guitar": 8.0}


def amplify(audio_CN: Array, instrument: str) -> Array:
    """A valve stage (an uneven bend, oversampled against aliases), then a closed 12-inch cabinet: shape (2, n), alike on both sides."""
    mono = band(audio_CN.mean(axis=0), 90, 14_000, 1)
    loud = mono[np.abs(mono) > 1e-4 * max(np.max(np.abs(mono)), 1e-9)]
    if loud.size == 0:
        return np.zeros_like(audio_CN)
    driven = AMPLIFIED[instrument] * scipy.signal.resample_poly(mono / np.sqrt(np.mean(loud**2)), _OVERSAMPLING, 1)
    bent = scipy.signal.resample_poly(np.tanh(driven + 0.15) - np.tanh(0.15), 1, _OVERSAMPLING)[: mono.size]
    speaker = _cabinet(bent)
    return np.stack([speaker, speaker])


def _cabinet(audio_N: Array) -> Array:
    """The loudspeaker's response: nothing below 80 Hz or above 5 kHz, a bump at 120 Hz, a hollow at 450 Hz, presence at 2.6 kHz."""
    size = good_length(audio_N.size)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    edges = 1 / np.sqrt(1 + (80 / np.maximum(f, 1)) ** 4) / np.sqrt(1 + (f / 4800) ** 8)
    colour = 1 + 0.8 * np.exp(-(((f - 2600) / 900) ** 2)) + 0.4 * np.exp(-(((f - 120) / 60) ** 2)) - 0.3 * np.exp(-(((f - 450) / 200) ** 2))
    return np.asarray(np.fft.irfft(np.fft.rfft(audio_N, size) * edges * colour, size)[: audio_N.size])
