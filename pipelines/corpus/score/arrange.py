"""What the band plays: bass, chords, arpeggio, pad and answers on the beat grid (drums: drumming.py)."""

from dataclasses import dataclass
from itertools import pairwise

from pipelines.chance import Chance
from pipelines.corpus.score.harmony import SCALES, PlacedChord, voice_lead
from pipelines.corpus.score.melody import MelodyNote
from pipelines.corpus.score.patterns import BassPattern, ChordPattern

_BASS_CENTRE = 35  # B1: roots from 46 to 82 Hz, which small loudspeakers still hint at


@dataclass(frozen=True)
class Hit:
    """A note on the grid of quarters; `delay_s` is what no grid holds: a strum's spread, a player's looseness."""

    beat: float
    beats: float
    midi: int
    velocity: float
    delay_s: float = 0.0
    slide: float = 0.0
    """Semitones from which the pitch slides into the note."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section as the band sees it."""

    name: str
    first_bar: int
    bars: int
    intensity: float
    final: bool = False
    """The last bar of the song is a held chord."""
    bar_beats: int = 4
    """Quarters a bar."""

    @property
    def start(self) -> float:
        return float(self.first_bar * self.bar_beats)

    @property
    def end(self) -> float:
        return float((self.first_bar + self.bars) * self.bar_beats)


def chord_at(chords: list[PlacedChord], beat: float) -> PlacedChord:
    return next((chord for chord in chords if chord.start <= beat + 1e-6 < chord.end), chords[-1])


def _near(pitch_class: int, centre: int) -> int:
    return centre + (pitch_class - centre + 6) % 12 - 6


def play_bass(part: Part, chords: list[PlacedChord], pattern: BassPattern, *, tonic: int, mode: str, chance: Chance) -> list[Hit]:
    """Roots on the changes, fifths, octaves and thirds by the pattern, and a step into the next root at the bar's end."""
    scale = {(tonic + step) % 12 for step in SCALES[mode]}
    hits: list[Hit] = []
    for bar in range(part.first_bar, part.first_bar + part.bars):
        base = float(bar * part.bar_beats)
        if part.final and bar == part.first_bar + part.bars - 1:
            hits.append(Hit(base, float(part.bar_beats), _near(chord_at(chords, base).root, _BASS_CENTRE), 0.8))
            break
        for step, length, what in pattern:
            beat = base + step / 4
            chord = chord_at(chords, beat)
            root = _near(chord.root, _BASS_CENTRE)
            following = chord_at(chords, base + part.bar_beats)
            midi = root
            if what == "F":
                midi = root + 7 if root < 36 else root - 5
            elif what == "O":
                midi = root + 12
            elif what == "T":
                midi = root + (3 if "min" in chord.quality else 4)
            elif what == "A":
                target = _near(following.root, _BASS_CENTRE)
                if following.root == chord.root or following.start != base + part.bar_beats:
                    midi = root if chance.happens(0.6) else root - 5
                else:
                    below = next(target - d for d in (2, 1) if (target - d) % 12 in scale or d == 1)
                    above = next(target + d for d in (2, 1) if (target + d) % 12 in scale or d == 1)
                    midi = below if root <= target else above
            accent = 0.86 if step % 8 == 0 else 0.74
            velocity = (0.72 + 0.28 * part.intensity) * (accent + chance.spread(0.06))
            hits.append(Hit(beat, length / 4 * (0.94 if length > 2 else 0.85), midi, velocity, chance.spread(0.006)))
    return hits


def play_chords(
    part: Part, chords: list[PlacedChord], pattern: ChordPattern, *, low: int, high: int, voices: int, strum_s: float, chance: Chance
) -> list[Hit]:
    """Chord hits: 'c' a block, 't' its upper notes lightly, 'd' and 'u' strums down and up."""
    hits: list[Hit] = []
    voicing: tuple[int, ...] | None = None
    current: PlacedChord | None = None
    for bar in range(part.first_bar, part.first_bar + part.bars):
        base = float(bar * part.bar_beats)
        closing = part.final and bar == part.first_bar + part.bars - 1
        for step, length, what in ((0, 4 * part.bar_beats, "d"),) if closing else pattern:
            beat = base + step / 4
            chord = chord_at(chords, beat)
            if chord != current:
                voicing, current = voice_lead(chord, voicing, low=low, high=high, voices=voices), chord
            if voicing is None:
                continue
            notes = voicing[1:] if what == "t" else voicing
            ordered = notes[::-1] if what == "u" else notes
            loud = (0.46 + 0.54 * part.intensity) * (0.55 if what == "t" else 0.68 if what == "u" else 0.8) * (1.08 if step == 0 else 1.0)
            loose = chance.spread(0.006)
            for order, midi in enumerate(ordered):
                delay = loose + order * (strum_s if what in "du" else 0.0015)
                colour = 1.0 if (midi - chord.root) % 12 in (0, 3, 4, 5, 7) else 0.6  # sevenths and ninths tint, they do not lead
                hits.append(Hit(beat, length / 4 * 0.96, midi, min(1.0, colour * (loud + chance.spread(0.05))), delay))
    return hits


def play_arpeggio(part: Part, chords: list[PlacedChord], steps: str, *, low: int, high: int, chance: Chance) -> list[Hit]:
    hits: list[Hit] = []
    voicing: tuple[int, ...] | None = None
    current: PlacedChord | None = None
    last_bar = part.first_bar + part.bars - (1 if part.final else 0)
    for bar in range(part.first_bar, last_bar):
        for step, digit in enumerate(steps):
            if digit == "-":
                continue
            beat = bar * part.bar_beats + step / 4
            chord = chord_at(chords, beat)
            if chord != current:
                voicing, current = voice_lead(chord, voicing, low=low, high=high, voices=4), chord
            if voicing is not None:
                midi = voicing[int(digit) % len(voicing)]
                loud = (0.55 + 0.35 * part.intensity) * (1.0 if step % 4 == 0 else 0.7) + chance.spread(0.05)
                hits.append(Hit(beat, 0.7, midi, loud, chance.spread(0.005)))
    return hits


def play_pad(part: Part, chords: list[PlacedChord], *, low: int, high: int) -> list[Hit]:
    """Long tones that hand over from chord to chord with the least motion."""
    hits: list[Hit] = []
    voicing: tuple[int, ...] | None = None
    for chord in chords:
        if part.start - 1e-6 <= chord.start < part.end - 1e-6:
            triad = PlacedChord(chord.start, chord.end, chord.root, "min" if "min" in chord.quality else "maj")
            voicing = voice_lead(triad if chord.quality != "sus4" else chord, voicing, low=low, high=high, voices=3)
            hits += [Hit(chord.start, chord.end - chord.start, midi, 0.5 + 0.4 * part.intensity) for midi in voicing]
    return hits


def play_answers(
    parts: list[Part], chords: list[PlacedChord], sung: list[MelodyNote], *, tonic: int, mode: str, centre: int, chance: Chance
) -> list[Hit]:
    """Call and response: short figures on chord tones and steps between them, where the singer rests."""
    scale = {(tonic + step) % 12 for step in SCALES[mode]}
    hits: list[Hit] = []
    for before, after in pairwise(sung):
        start, end = before.beat + before.beats, after.beat
        part = next((p for p in parts if p.start <= start < p.end), None)
        if end - start < 1.4 or part is None or part.intensity < 0.6 or not chance.happens(0.7):
            continue
        end = min(end, part.end)
        beat = float(int(start * 2 + 1.999) / 2)
        pitch = _near(chance.choice(chord_at(chords, beat).pitch_classes[:3]), centre)
        direction = 1 if chance.happens(0.5) else -1
        while beat < min(end - 0.45, start + 3.0):
            length = chance.choice((0.5, 0.5, 1.0))
            hits.append(Hit(beat, length * 0.95, pitch, 0.62 + chance.spread(0.1), chance.spread(0.008)))
            beat += length
            chord = set(chord_at(chords, beat).pitch_classes)
            choices = [
                p for p in range(pitch + direction, pitch + 5 * direction, direction) if p % 12 in (chord if beat % 1 == 0 else scale)
            ]
            pitch = choices[0] if choices else _near(min(chord), pitch)
    return hits


def play_hook(part: Part, chords: list[PlacedChord], hook: list[tuple[float, float, int]], *, centre: int) -> list[Hit]:
    """The chorus's first phrase on the answering instrument, over the introduction: rows of (beat in phrase, beats, midi).

    A note that the chord of the moment does not hold moves to its nearest chord tone, so that the quotation fits other harmony.
    """
    hits: list[Hit] = []
    for beat, beats, midi in hook:
        at = part.start + beat
        if at < part.end - 0.5:
            chord = chord_at(chords, at)
            placed = _near(midi % 12, centre)
            if beats >= 1 or beat % 1 == 0:
                placed = min((_near(pc, placed) for pc in chord.pitch_classes[:3]), key=lambda p: abs(p - placed))
            hits.append(Hit(at, beats * 0.95, placed, 0.66))
    return hits
