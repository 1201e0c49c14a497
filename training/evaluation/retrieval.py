"""The retrieval baseline: of the bands that the network could have learnt from, the one whose key and tempo match a vocal best.

The plain kind: a band is played as it is, from its beginning, neither transposed, stretched nor moved onto the vocal's beats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.listen import recognise_key, tempo_bpm
from training.evaluation.truth import Truth

# One step on the circle of fifths costs as much as a semitone of tempo (6%); a band in the relative key half of it.
_OTHER_MODE = 0.5
_STEPS_AN_OCTAVE = 12
_FURTHEST_KEY, _FURTHEST_TEMPO = 6.0, 6.0


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What is compared. None where it is not known."""

    key: int | None
    """Tonic · 2 + minor."""
    tempo_bpm: float | None


def fingerprint(audio_CN: np.ndarray, truth: Truth) -> Fingerprint:
    """As composed where that is known, else as heard in this sound alone: nobody who seeks a band for a vocal has its true one."""
    key = recognise_key(audio_CN) if truth.key is None else truth.key
    bpm = tempo_bpm(audio_CN) if truth.tempo_bpm is None else truth.tempo_bpm
    return Fingerprint(key=None if key < 0 else key, tempo_bpm=bpm or None)


def composed(truth: Truth) -> Fingerprint | None:
    """Without a sound, where key and tempo are both known."""
    if truth.key is None or truth.tempo_bpm is None:
        return None
    return Fingerprint(key=truth.key, tempo_bpm=truth.tempo_bpm)


def best_match(wanted: Fingerprint, candidates: Sequence[Fingerprint]) -> int:
    """The candidate that differs least, the first of equals."""
    return int(np.argmin([difference(wanted, candidate) for candidate in candidates]))


def difference(wanted: Fingerprint, found: Fingerprint) -> float:
    """In steps; 0 for the same key and tempo. What is not known of the vocal does not count, what is not known of a band counts as far."""
    steps = 0.0
    if wanted.key is not None:
        steps += _FURTHEST_KEY if found.key is None else key_steps(wanted.key, found.key)
    if wanted.tempo_bpm is not None:
        steps += _FURTHEST_TEMPO if found.tempo_bpm is None else tempo_steps(wanted.tempo_bpm, found.tempo_bpm)
    return steps


def key_steps(one: int, other: int) -> float:
    """0 for the same key, ½ for the relative one, else steps between their signatures on the circle of fifths, up to 6½."""
    apart = (_signature(one) - _signature(other)) % 12
    return min(apart, 12 - apart) + _OTHER_MODE * (one % 2 != other % 2)


def tempo_steps(one_bpm: float, other_bpm: float) -> float:
    """Semitones between two tempi, twice or half as fast being the same: up to 6."""
    octaves = float(np.log2(one_bpm / other_bpm))
    return abs(octaves - round(octaves)) * _STEPS_AN_OCTAVE


def _signature(key: int) -> int:
    """Place of the key's signature on the circle of fifths, C major and A minor at 0."""
    tonic, minor = divmod(key, 2)
    return (tonic + 3 * minor) * 7 % 12
