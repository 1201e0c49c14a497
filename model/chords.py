"""The vocabulary of chords: roots as pitch classes, qualities by number, and their spelling in Harte's syntax (Harte et al. 2005).

A stored quality is its place in QUALITIES, so the order never changes: new qualities are appended.

Shapes: Q qualities.
"""

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

NO_CHORD = -1
"""Root, quality and bass where no chord sounds; spelt N."""
UNTOLD = -2
"""As a root: nobody has said what sounds there."""
ROOTS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_INTERVALS: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "sus4": (0, 5, 7),
    "sus2": (0, 2, 7),
    "maj(9)": (0, 2, 4, 7),
    "min(9)": (0, 2, 3, 7),
    "dim": (0, 3, 6),
    "aug": (0, 4, 8),
    "dim7": (0, 3, 6, 9),
    "hdim7": (0, 3, 6, 10),
    "minmaj7": (0, 3, 7, 11),
    "maj6": (0, 4, 7, 9),
    "min6": (0, 3, 7, 9),
    "9": (0, 2, 4, 7, 10),
    "maj9": (0, 2, 4, 7, 11),
    "min9": (0, 2, 3, 7, 10),
    "5": (0, 7),
}
QUALITIES = tuple(_INTERVALS)
_OTHER_NAMES = {"add9": "maj(9)", "": "maj", "m": "min", "m7": "min7"}
# Degrees of the major scale by which Harte spells a bass, from the root.
_DEGREES = ("1", "b2", "2", "b3", "3", "4", "b5", "5", "b6", "6", "b7", "7")


def quality_number(name: str) -> int:
    """A quality's place in QUALITIES, by its Harte name or one of the usual others (add9). ModelError when the vocabulary lacks it."""
    try:
        return QUALITIES.index(_OTHER_NAMES.get(name, name))
    except ValueError:
        raise ModelError(f"chord quality {name!r} is not one of {', '.join(QUALITIES)}: choose the nearest of these") from None


def pitch_classes(root: int, quality: int) -> tuple[int, ...]:
    """The pitch classes that sound, from the root up, 0 = C; none for NO_CHORD."""
    if NO_CHORD in (root, quality):
        return ()
    return tuple((root + step) % 12 for step in _INTERVALS[QUALITIES[quality]])


def quality_chroma() -> NDArray[np.float32]:
    """(Q, 12): 1 where a quality has a note, counted from its root; roll a row by the root to have the chord's pitch classes."""
    chroma_Q12 = np.zeros((len(QUALITIES), 12), np.float32)
    for quality in range(len(QUALITIES)):
        chroma_Q12[quality, list(pitch_classes(0, quality))] = 1
    return chroma_Q12


def spelling(root: int, quality: int, bass: int | None = None) -> str:
    """The chord in Harte's syntax: `A:min7/b3`, or N. `bass`: a pitch class, None or the root where the root is lowest."""
    if NO_CHORD in (root, quality):
        return "N"
    inversion = "" if bass in (None, NO_CHORD, root) else f"/{_DEGREES[(bass - root) % 12]}"
    return f"{ROOTS[root]}:{QUALITIES[quality]}{inversion}"
