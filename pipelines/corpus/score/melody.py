"""The sung line: rhythm from bar cells, pitches by dynamic programming over a cost of what is singable.

The path search is Viterbi's (1967): states are pitches, a step's cost is its interval, a state's cost its place in chord and contour.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.chance import Chance
from pipelines.corpus.score.harmony import SCALES, PlacedChord

# Bars of 4/4 in eighths, negative for rests: how a two-bar phrase opens, and how it closes (with room to breathe and for an answer).
_OPENINGS = (
    (2, 1, 1, 2, 2), (3, 3, 2), (-1, 1, 1, 1, 2, 2), (1, 1, 2, 1, 1, 2), (2, 2, 2, 2), (3, 1, 2, 2), (1, 2, 1, 2, 2), (-2, 1, 1, 2, 2),
    (-1, 1, 2, 1, 1, 2), (4, 2, 2), (1, 1, 1, 1, 2, 2), (2, 1, 1, 1, 1, 2),
)  # fmt: skip
_WIDE_OPENINGS = ((4, 4), (3, 3, 2), (4, 2, 2), (3, 5), (2, 2, 4), (6, 2), (3, 1, 4), (2, 1, 1, 4))
_CLOSINGS = ((2, 2, -4), (3, 3, -2), (1, 1, 4, -2), (4, -4), (2, 4, -2), (1, 2, 3, -2), (1, 1, 2, 2, -2), (2, 1, 3, -2), (1, 1, 1, 3, -2))
_WIDE_CLOSINGS = ((6, -2), (3, 3, -2), (2, 4, -2), (5, -3), (1, 1, 4, -2))
# The same for bars of 3/4 and of 6/8, which hold six eighths: openings, closings, wide openings, wide closings.
_CELLS = {
    "4/4": (_OPENINGS, _CLOSINGS, _WIDE_OPENINGS, _WIDE_CLOSINGS),
    "3/4": (
        ((2, 2, 2), (3, 1, 2), (2, 1, 1, 2), (-1, 1, 2, 2), (1, 1, 2, 2), (4, 2), (2, 1, 1, 1, 1)),
        ((4, -2), (2, 2, -2), (1, 1, 2, -2), (3, -3), (2, -4)),
        ((4, 2), (6,), (2, 4), (3, 3)),
        ((4, -2), (5, -1), (2, 2, -2)),
    ),
    "6/8": (
        ((3, 3), (2, 1, 2, 1), (1, 1, 1, 3), (2, 1, 3), (3, 2, 1), (-1, 1, 1, 2, 1), (1, 1, 1, 2, 1), (-3, 1, 1, 1)),
        ((3, -3), (2, 1, -3), (1, 1, 1, -3), (4, -2), (1, 2, -3)),
        ((3, 3), (6,), (3, 2, 1), (5, 1)),
        ((3, -3), (5, -1), (2, 1, -3)),
    ),
}  # fmt: skip
_CONTOURS: tuple[Callable[[float], float], ...] = (
    lambda x: 1 - (2 * x - 1) ** 2,
    lambda x: 1 - x,
    lambda x: x,
    lambda x: 0.9 - 1.6 * x * (1 - x) * 2,
    lambda x: 0.75 if x < 0.5 else 1.2 - x,
    lambda x: 0.3 + 0.5 * (x > 0.4),
)
_INTERVAL_COST = (0.9, 0.0, 0.0, 0.5, 0.7, 1.2, 6.0, 2.0, 3.5, 4.0, 9.0, 9.0, 5.0)


@dataclass(frozen=True)
class Motif:
    """One phrase's rhythm (beat within the phrase, length in beats), contour and taste, shared by the phrases that repeat it."""

    rhythm: tuple[tuple[float, float], ...]
    contour: Callable[[float], float]
    taste: str


@dataclass(frozen=True)
class MelodyNote:
    beat: float
    beats: float
    midi: int
    last: bool
    """Ends its phrase."""


def make_motif(chance: Chance, *, bars: int, metre: str, wide: bool, slow: bool, taste: str) -> Motif:
    """A phrase of one or two bars; wide ones hold longer notes, as choruses do, slow songs split an eighth here and there."""
    openings, closings = _CELLS[metre][2:] if wide else _CELLS[metre][:2]
    cells = [chance.choice(openings) for _ in range(bars - 1)] + [chance.choice(closings)]
    rhythm: list[tuple[float, float]] = []
    position = 0.0
    for cell in cells:
        for eighths in cell:
            length = abs(eighths) / 2
            if eighths > 0:
                if slow and eighths == 2 and chance.happens(0.3):
                    rhythm += [(position, 0.5), (position + 0.5, 0.5)]
                elif slow and eighths == 3 and chance.happens(0.25):
                    rhythm += [(position, 1.0), (position + 1.0, 0.5)]
                else:
                    rhythm.append((position, length))
            position += length
    return Motif(tuple(rhythm), chance.choice(_CONTOURS), taste)


def choose_pitches(
    rhythm: list[tuple[float, float, float, bool]],
    chords: list[PlacedChord],
    *,
    tonic: int,
    mode: str,
    low: int,
    high: int,
    accent: float,
    taste: Chance,
) -> list[MelodyNote]:
    """Pitches for rows of (beat, beats, target height in MIDI, last of its phrase): the cheapest path.

    Every `accent` quarters there is a strong place."""
    scale = {(tonic + step) % 12 for step in SCALES[mode]}
    total: list[dict[int, tuple[float, int]]] = []
    whims = [taste.uniform(0, 1.3) for _ in range(7 * 16)]
    chord_tones: list[set[int]] = []
    for index, (beat, beats, target, last) in enumerate(rhythm):
        chord = next((c for c in chords if c.start <= beat + 1e-6 < c.end), chords[-1])
        ahead = next((c for c in chords if c.start <= beat + 0.5 + 1e-6 < c.end), chord)
        if beats >= 0.75 and (beat % 1) > 0.4 and ahead.start - beat <= 0.5 + 1e-6:
            chord = ahead  # an anticipation belongs to the chord that it pushes into
        tones = set(chord.pitch_classes)
        chord_tones.append(tones)
        strong = beats >= 1.0 or beat % accent == 0 or last
        allowed = {pc for pc in scale if not ({(pc + 1) % 12, (pc - 1) % 12} & (tones - scale))} | tones
        column: dict[int, tuple[float, int]] = {}
        for midi in range(low, high + 1):
            if midi % 12 not in allowed:
                continue
            cost = 0.33 * abs(midi - target) + whims[(index * 7 + midi % 7) % len(whims)]
            if midi % 12 not in tones:
                cost += 7.0 if strong else 0.6
                if (midi - 1) % 12 in tones:
                    cost += 4.0 if strong else 1.2
            if last and midi % 12 not in {tonic, (tonic + 7) % 12} | tones:
                cost += 3.0
            if index == 0:
                column[midi] = (cost, midi)
                continue
            held = total[-1]
            best = min(
                (
                    held[before][0]
                    + (_INTERVAL_COST[abs(midi - before)] if abs(midi - before) <= 12 else 12.0)
                    + (3.0 if abs(midi - before) > 2 and (midi % 12 not in tones or before % 12 not in chord_tones[-2]) else 0.0),
                    before,
                )
                for before in held
            )
            column[midi] = (cost + best[0], best[1])
        total.append(column)
    path: list[int] = []
    midi = min(total[-1], key=lambda m: total[-1][m][0])
    for column in reversed(total):
        path.append(midi)
        midi = column[midi][1]
    path.reverse()
    return [MelodyNote(beat, beats, midi, last) for (beat, beats, _, last), midi in zip(rhythm, path, strict=True)]


def sing_section(
    motifs: list[Motif],
    *,
    start: float,
    phrase_beats: float,
    chords: list[PlacedChord],
    tonic: int,
    mode: str,
    low: int,
    high: int,
    accent: float,
    seed: str,
) -> list[MelodyNote]:
    """The melody of one section: one motif after another, each on its own bars, joined by one path so that seams are singable."""
    rows: list[tuple[float, float, float, bool]] = []
    for index, motif in enumerate(motifs):
        begin = start + index * phrase_beats
        for beat, beats in motif.rhythm:
            height = low + (high - low) * (0.15 + 0.7 * motif.contour(beat / phrase_beats))
            rows.append((begin + beat, beats, height, (beat, beats) == motif.rhythm[-1]))
    return choose_pitches(rows, chords, tonic=tonic, mode=mode, low=low, high=high, accent=accent, taste=Chance(seed, motifs[0].taste))
