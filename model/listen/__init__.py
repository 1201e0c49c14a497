"""Weight-free listening: what a musician hears in audio, from numpy and scipy alone.

Every function takes 44.1 kHz audio as (N,) or (C, N) floats, answers silence with defined values, and is deterministic.
"""

from model.listen.analysis import Analysis, analyse
from model.listen.harmony import CHROMA_RATE_HZ, chord_agreement, chroma, frame_chords, key_profile, recognise_chords, recognise_key
from model.listen.loudness import SpectralStatistics, loudness_db, rms_db, spectral_statistics
from model.listen.pitch import F0_RATE_HZ, f0
from model.listen.rhythm import ONSET_RATE_HZ, onset_strength, onsets, tempo_bpm, track_beats
from model.listen.spectrum import mono

__all__ = [
    "CHROMA_RATE_HZ",
    "F0_RATE_HZ",
    "ONSET_RATE_HZ",
    "Analysis",
    "SpectralStatistics",
    "analyse",
    "chord_agreement",
    "chroma",
    "f0",
    "frame_chords",
    "key_profile",
    "loudness_db",
    "mono",
    "onset_strength",
    "onsets",
    "recognise_chords",
    "recognise_key",
    "rms_db",
    "spectral_statistics",
    "tempo_bpm",
    "track_beats",
]
