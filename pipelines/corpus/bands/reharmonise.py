"""Other chords under the same melody: relative and parallel substitutes, secondary dominants, ii-V, modal interchange, tritone substitutes.

The cheapest path (Viterbi 1967) through half bars: a state is a chord of the key's pool, its cost how well it carries the melody and how
far it lies from the style, a step's cost the motion of the roots. Which tensions a chord bears: Levine, The Jazz Theory Book (1995).

Shapes: U units of half a bar (in 3/4 a whole one), K chords of the pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipelines.chance import Array, Chance
from pipelines.corpus.score.form import Frame, part_of
from pipelines.corpus.score.harmony import QUALITIES, PlacedChord, numeral
from pipelines.corpus.score.melody import MelodyNote
from pipelines.corpus.score.styles import Style

# Numerals of the key with what they cost: what is foreign to the key, costs more.
_POOL: dict[str, dict[str, float]] = {
    "major": {
        "I": 0.0, "I7": 0.0, "Iadd9": 0.3, "ii": 0.2, "ii7": 0.1, "iii": 0.4, "iii7": 0.3, "IV": 0.0, "IV7": 0.0, "IVadd9": 0.3, "V": 0.0,
        "Vd7": 0.0, "Vsus4": 0.5, "vi": 0.1, "vi7": 0.0,
        "iv": 1.0, "bVII": 0.8, "bVI": 1.0, "bIII": 1.2,
        "Id7": 1.0, "IId7": 0.9, "IIId7": 0.9, "VId7": 0.9, "VIId7": 1.2, "bIId7": 1.4,
    },
    "minor": {
        "i": 0.0, "i7": 0.0, "bIII": 0.0, "bIII7": 0.2, "iv": 0.1, "iv7": 0.1, "v": 0.3, "v7": 0.3, "bVI": 0.0, "bVI7": 0.1, "bVII": 0.1,
        "V": 0.4, "Vd7": 0.4, "IV": 1.0, "bII": 1.2,
        "bVIId7": 0.7, "Id7": 1.0, "IVd7": 1.1, "bIId7": 1.4,
    },
}  # fmt: skip
# A quality that a style's own loops never have.
_FOREIGN = {"maj": 0.3, "min": 0.3, "maj7": 0.9, "min7": 0.7, "7": 0.8, "sus4": 1.0, "add9": 0.8}
# Steps above the root that may be held over a chord: ninths and sixths over major, elevenths and sevenths over minor; never a half
# tone above a chord tone.
TENSIONS: dict[str, tuple[int, ...]] = {
    "maj": (2, 9, 11), "min": (2, 5, 10), "maj7": (2, 6, 9), "min7": (2, 5), "7": (2, 9), "sus4": (2, 9, 10), "add9": (9, 11),
}  # fmt: skip
# Semitones that the root goes up: a fifth down is the strongest, a tritone the rarest.
_MOTION = (0.0, 1.0, 0.4, 0.5, 0.5, 0.0, 2.0, 0.4, 0.5, 0.5, 0.5, 1.0)
_AVOID_STRONG, _AVOID_HELD, _AVOID_WEAK = 14.0, 8.0, 0.5
_TENSION = 0.8
_NEW, _BOLD, _WHIM = 1.6, (0.4, 0.75), 0.8
_SAME_ROOT = 1.2
_UNRESOLVED = 5.0
_STASIS = 0.6
_HELD_QUARTERS = 0.75
_LOOP_BARS = 4


@dataclass(frozen=True, kw_only=True)
class StrongNote:
    """A note that the harmony has to carry."""

    beat: float
    """Where it belongs: a note that is pushed ahead of a beat belongs to that beat."""
    beats: float
    pitch_class: int


def strong_notes(melody: Sequence[MelodyNote], accent: float) -> list[StrongNote]:
    """Notes on strong places, long notes and the ends of phrases, as the melody was written by."""
    found = []
    for note in melody:
        if note.beats >= 1.0 or note.beat % accent == 0 or note.last:
            pushed = note.beats >= 0.75 and note.beat % 1 > 0.4
            found.append(StrongNote(beat=note.beat + (0.5 if pushed else 0.0), beats=note.beats, pitch_class=note.midi % 12))
    return found


def bears(chord: PlacedChord, pitch_class: int) -> str:
    """What a pitch class is to a chord: "tone", "tension", or "avoid"."""
    step = (pitch_class - chord.root) % 12
    if step in QUALITIES[chord.quality]:
        return "tone"
    return "tension" if step in TENSIONS[chord.quality] else "avoid"


def reharmonise(
    frame: Frame, chords: Sequence[PlacedChord], melody: Sequence[MelodyNote], style: Style, chance: Chance
) -> list[PlacedChord]:
    """Chords for the same melody, within `style`; the song still ends where it ended.

    Sections of one name share their draws, so that equal melodies are harmonised alike.
    """
    pool = [PlacedChord(0.0, 0.0, *numeral(symbol, frame.tonic)) for symbol in _POOL[frame.mode]]
    unit = frame.bar_beats if frame.bar_beats == 3 and frame.accent == 3 else frame.bar_beats / 2
    total = round(frame.parts[-1].end / unit)
    spans = [(index * unit, (index + 1) * unit) for index in range(total)]
    costs_UK = _melody_costs(pool, spans, melody, frame.accent) + _taste(frame, pool, spans, chords, style, chance)
    bars_U = np.array([start % frame.bar_beats == 0 for start, _ in spans])
    last = len(spans) - round(frame.bar_beats / unit)
    path = _cheapest(costs_UK[:last], bars_U[:last], *_steps(frame, pool, style))
    placed: list[PlacedChord] = []
    for (start, end), state in zip(spans, path, strict=False):
        _place(placed, PlacedChord(start, end, pool[state].root, pool[state].quality))
    ending = spans[last][0]
    for chord in chords:
        if chord.end > ending:
            _place(placed, PlacedChord(max(chord.start, ending), chord.end, chord.root, chord.quality))
    return placed


def _place(placed: list[PlacedChord], chord: PlacedChord) -> None:
    """Appended, or joined to the one before if it is the same."""
    if placed and (placed[-1].root, placed[-1].quality) == (chord.root, chord.quality):
        placed[-1] = PlacedChord(placed[-1].start, chord.end, chord.root, chord.quality)
    else:
        placed.append(chord)


def _melody_costs(pool: list[PlacedChord], spans: list[tuple[float, float]], melody: Sequence[MelodyNote], accent: float) -> Array:
    """How badly each chord carries what is sung in each unit; shape (U, K)."""
    costs_UK = np.zeros((len(spans), len(pool)))
    unit = spans[0][1]
    clashes = np.array([[bears(chord, pc) == "avoid" for chord in pool] for pc in range(12)])
    colours = np.array([[bears(chord, pc) == "tension" for chord in pool] for pc in range(12)])
    for note in strong_notes(melody, accent):
        first = min(int((note.beat + 1e-6) / unit), len(spans) - 1)
        costs_UK[first] += _AVOID_STRONG * clashes[note.pitch_class] + _TENSION * colours[note.pitch_class]
        end = note.beat + note.beats
        for later in range(first + 1, len(spans)):
            if end - spans[later][0] < _HELD_QUARTERS:
                break
            costs_UK[later] += _AVOID_HELD * clashes[note.pitch_class]
    for sung in melody:
        costs_UK[min(int((sung.beat + 1e-6) / unit), len(spans) - 1)] += _AVOID_WEAK * clashes[sung.midi % 12]
    return costs_UK


def _taste(
    frame: Frame, pool: list[PlacedChord], spans: list[tuple[float, float]], chords: Sequence[PlacedChord], style: Style, chance: Chance
) -> Array:
    """What the style, the draw and the wish for something new say of each chord in each unit; shape (U, K)."""
    own = {symbol for loop in style.loops[frame.mode] for symbol in loop.split()}
    qualities = {numeral(symbol, frame.tonic)[1] for symbol in own}
    rich = 0.5 if qualities & {"maj7", "min7", "7"} else 1.0
    base_K = np.array(
        [
            (0.0 if symbol in own else rich * cost) + (0.0 if chord.quality in qualities else _FOREIGN[chord.quality])
            for (symbol, cost), chord in zip(_POOL[frame.mode].items(), pool, strict=True)
        ]
    )
    bold = chance.uniform(*_BOLD)
    whims: dict[tuple[str, float], tuple[list[float], float]] = {}
    rows = []
    for start, _ in spans:
        part = part_of(frame.parts, start)
        place = part.name, (start - part.start) % (_LOOP_BARS * frame.bar_beats)
        if place not in whims:
            whims[place] = [chance.uniform(0.0, _WHIM) for _ in pool], _NEW if chance.happens(bold) else 0.0
        draws, new = whims[place]
        before = next(chord for chord in chords if chord.start <= start + 1e-6 < chord.end)
        same_K = np.array([(chord.root, "min" in chord.quality) == (before.root, "min" in before.quality) for chord in pool])
        # A section opens at home, so that its first words are recognised.
        rows.append(base_K + np.array(draws) + (_NEW * ~same_K if start == part.start else new * same_K))
    return np.array(rows)


def _steps(frame: Frame, pool: list[PlacedChord], style: Style) -> tuple[Array, Array]:
    """What going from each chord to each costs on a bar line and within a bar; shapes (K, K).

    A dominant that the style does not treat as a colour wants to resolve, a fifth down or, for a tritone substitute, a half tone down.
    """
    own = {symbol for loop in style.loops[frame.mode] for symbol in loop.split()}
    symbols = list(_POOL[frame.mode])
    bar_KK, inner_KK = np.zeros((len(pool), len(pool))), np.zeros((len(pool), len(pool)))
    within = 1.4 if frame.tempo_bpm > 84 else 0.8
    for a, before in enumerate(pool):
        leading = before.quality == "7" and symbols[a] not in own and symbols[a] != "Vd7"
        for b, after in enumerate(pool):
            up = (after.root - before.root) % 12
            cost = _MOTION[up] + (_SAME_ROOT if up == 0 and a != b else 0.0)
            if a != b and leading and up not in ((5, 11) if symbols[a] == "bIId7" else (5,)):
                cost += _UNRESOLVED
            bar_KK[a, b] = cost + (_STASIS + (_UNRESOLVED if leading else 0.0) if a == b else 0.0)
            inner_KK[a, b] = 0.0 if a == b else cost + within
    return bar_KK, inner_KK


def _cheapest(costs_UK: Array, bars_U: Array, bar_KK: Array, inner_KK: Array) -> list[int]:
    """The path with the lowest sum of costs; of equal ones the first."""
    total_K, back = costs_UK[0], []
    for costs_K, on_bar in zip(costs_UK[1:], bars_U[1:], strict=True):
        reached_KK = total_K[:, None] + (bar_KK if on_bar else inner_KK)
        back.append(np.argmin(reached_KK, axis=0))
        total_K = reached_KK.min(axis=0) + costs_K
    path = [int(np.argmin(total_K))]
    for came_K in reversed(back):
        path.append(int(came_K[path[-1]]))
    return path[::-1]


def carried(chords: Sequence[PlacedChord], melody: Sequence[MelodyNote], accent: float) -> dict[str, int]:
    """How many strong notes are chord tones, tensions, or neither."""
    counts = {"tone": 0, "tension": 0, "avoid": 0}
    for note in strong_notes(melody, accent):
        chord = next((chord for chord in chords if chord.start <= note.beat + 1e-6 < chord.end), chords[-1])
        counts[bears(chord, note.pitch_class)] += 1
    return counts


def changed_share(before: Sequence[PlacedChord], after: Sequence[PlacedChord]) -> float:
    """Share of the time in which root or family (major, minor) differ."""
    edges = sorted({edge for chord in (*before, *after) for edge in (chord.start, chord.end)})
    other = 0.0
    for start, end in pairwise(edges):
        one, two = (next(chord for chord in chords if chord.start <= start + 1e-6 < chord.end) for chords in (before, after))
        if (one.root, "min" in one.quality) != (two.root, "min" in two.quality):
            other += end - start
    return other / (edges[-1] - edges[0])
