"""One neural voice as many: its formants, colour and breath, moved by what a song's record says of its voice.

Shapes: F bins of 20 Hz, T frames.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from pipelines.chance import Array, Chance
from pipelines.corpus.score.record import SongRecord
from pipelines.corpus.sound.delivery import singer_seed
from pipelines.corpus.sound.voices.speech_network import BIN_HZ, BINS, Floats, Frames

_NEPER_DB = 20 / np.log(10)
_TILT_FROM_HZ = 300.0
# Ripple at the network's own pitch is no formant.
_SMOOTH_HZ = 160.0
# In voiced frames the free branch holds a residue of the network's own pitch: it is kept low, its phases random.
_FREE_DB = -18.0
# Singers open the jaw so that the first formant stays with a high note (Sundberg 1975): its fundamental is strong.
_OPEN_FROM_HZ, _OPEN_RISE_HZ, _OPEN_DB = 330.0, 200.0, 9.0
_BREATH_FROM_HZ, _BREATH_RISE_HZ = 1_500.0, 2_000.0


@dataclass(frozen=True, kw_only=True)
class Timbre:
    formants: float
    """Their place beside the speaker's own: above 1 a shorter vocal tract."""
    tilt_db_per_octave: float
    breath_db: float
    """Noise beside the harmonics, from 2 kHz up."""

    def as_figures(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def timbre_of(record: SongRecord, speaker_tract: float) -> Timbre:
    """From the song's voice, and a little from its seed: two songs with like voices are two people. speaker_tract: as of `Voice.tract`."""
    chance, voice = Chance("timbre", singer_seed(record)), record.voice
    return Timbre(
        formants=voice.tract / speaker_tract * chance.uniform(0.97, 1.03),
        tilt_db_per_octave=6.0 * (0.85 - voice.tilt) + chance.spread(0.5),
        breath_db=voice.breathiness_db + 10.0,
    )


def shaped(frames: Frames, timbre: Timbre, *, voiced_T: NDArray[np.bool_], f0_hz_T: Array, gain_T: Array, phases_FT: Floats) -> Frames:
    """Frames in another timbre, for notes of f0_hz_T.

    gain_T: nepers to add to all branches. phases_FT: the free branch's, in voiced frames.
    """
    taps = np.hanning(int(_SMOOTH_HZ / BIN_HZ) + 3)[1:-1]
    harmonic = scipy.ndimage.convolve1d(frames.harmonic_FT, (taps / taps.sum()).astype(np.float32), axis=0, mode="nearest")
    harmonic = _warped(harmonic, timbre.formants)
    octaves = np.log2(np.maximum(np.arange(BINS) * BIN_HZ, _TILT_FROM_HZ) / _TILT_FROM_HZ)
    harmonic += (timbre.tilt_db_per_octave / _NEPER_DB * octaves).astype(np.float32)[:, None]
    high = np.flatnonzero(voiced_T & (f0_hz_T > _OPEN_FROM_HZ))
    harmonic[:, high] += _opened(f0_hz_T[high])
    lower = np.convolve(np.where(voiced_T, 10 ** (_FREE_DB / 20), 1.0), (0.25, 0.5, 0.25), "same")
    free = np.where(voiced_T, _warped(frames.free_FT, timbre.formants), frames.free_FT) + np.log(np.maximum(lower, 1e-6)).astype(np.float32)
    rise = np.clip((np.arange(BINS) * BIN_HZ - _BREATH_FROM_HZ) / _BREATH_RISE_HZ, 1e-6, 1)
    breath = harmonic + (timbre.breath_db / _NEPER_DB + np.log(rise)).astype(np.float32)[:, None]
    gain = gain_T.astype(np.float32)
    return replace(
        frames,
        harmonic_FT=harmonic + gain,
        phase_FT=_warped(frames.phase_FT, timbre.formants),
        noise_FT=np.where(voiced_T, np.maximum(frames.noise_FT, breath), frames.noise_FT) + gain,
        free_FT=free + gain,
        free_phase_FT=np.where(voiced_T, phases_FT, frames.free_phase_FT),
    )


def _opened(f0_hz_T: Array) -> Floats:
    """Nepers that an open jaw adds, all up to the fundamental and none from 1.8 times it: shape (F, T)."""
    strength = _OPEN_DB / _NEPER_DB * np.clip((f0_hz_T - _OPEN_FROM_HZ) / _OPEN_RISE_HZ, 0, 1)
    place = np.arange(BINS)[:, None] * BIN_HZ / f0_hz_T
    return np.asarray(strength * np.clip((1.8 - place) / 0.6, 0, 1), np.float32)


def _warped(values_FT: Floats, scale: float) -> Floats:
    """Rows moved to `scale` times their frequency, by interpolation; the highest row stands for what lies above."""
    at = np.minimum(np.arange(BINS) / scale, BINS - 1.001)
    row = at.astype(int)
    share = (at - row).astype(np.float32)[:, None]
    return np.asarray(values_FT[row] * (1 - share) + values_FT[row + 1] * share, np.float32)
