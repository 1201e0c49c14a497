"""Chords: numerals in a key, qualities, voicings that move little."""

from dataclasses import dataclass
from itertools import pairwise, product

NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
QUALITIES: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "7": (0, 4, 7, 10),
    "sus4": (0, 5, 7),
    "add9": (0, 2, 4, 7),
}
SUFFIX = {"maj": "", "min": "m", "maj7": "maj7", "min7": "m7", "7": "7", "sus4": "sus4", "add9": "add9"}
_NUMERALS = {"i": 0, "ii": 2, "iii": 4, "iv": 5, "v": 7, "vi": 9, "vii": 11}


@dataclass(frozen=True)
class PlacedChord:
    """A chord on the beat grid: from beat `start` to beat `end`."""

    start: float
    end: float
    root: int
    quality: str

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        return tuple((self.root + step) % 12 for step in QUALITIES[self.quality])

    @property
    def label(self) -> str:
        return NAMES[self.root] + SUFFIX[self.quality]


def numeral(text: str, tonic: int) -> tuple[int, str]:
    """Root pitch class and quality of a numeral such as `vi7`, `bVII`, `Vsus4`, `IVd7`; degrees count in the major scale, capitals are
    major, d7 is a dominant seventh on any of them."""
    flat = text.startswith("b")
    body = text.removeprefix("b")
    degree = body.rstrip("0123456789adsu")
    tail = body[len(degree) :]
    minor = degree.islower()
    root = (tonic + _NUMERALS[degree.lower()] - flat) % 12
    if tail == "7":
        return root, "min7" if minor else ("7" if degree == "V" else "maj7")
    if tail == "d7":
        return root, "7"
    return root, tail or ("min" if minor else "maj")


def voice_lead(chord: PlacedChord, previous: tuple[int, ...] | None, *, low: int, high: int, voices: int) -> tuple[int, ...]:
    """The voicing between low and high that moves least from the previous one; without one, the most central.

    Every pitch class of a triad appears; of four-note chords the fifth may go missing when there are only three voices.
    """
    classes = list(chord.pitch_classes)
    if len(classes) > voices:
        classes.remove((chord.root + 7) % 12)
    options = [[midi for midi in range(low, high + 1) if midi % 12 == pc] for pc in classes]
    doubled = [midi for midi in range(low, high + 1) if midi % 12 in (chord.root, (chord.root + 7) % 12)]
    options += [doubled] * (voices - len(classes))
    best: tuple[float, tuple[int, ...]] | None = None
    for pick in product(*options):
        notes = tuple(sorted(set(pick)))
        gaps = [b - a for a, b in pairwise(notes)]
        if len(notes) < voices or min(gaps) < 2 or max(gaps) > 9:
            continue
        centre = abs(sum(notes) / len(notes) - (low + high) / 2)
        spread = 0.15 * abs(notes[-1] - notes[0] - 10)
        motion = sum(abs(a - b) for a, b in zip(notes, previous, strict=True)) if previous and len(previous) == len(notes) else 0.0
        cost = motion + 0.6 * centre + spread
        if best is None or cost < best[0]:
            best = (cost, notes)
    if best is None:
        return tuple(sorted(options[index][0] for index in range(len(classes))))
    return best[1]
