"""What a musician asks of a band beside the vocal, as text and as records: a style, chords over time, a grid of beats. No torch.

Chords are understood in Harte's syntax (Harte et al. 2005) and as musicians write them; each becomes one of `model.chords`.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from model.chords import NO_CHORD, QUALITIES, pitch_classes, spelling
from model.errors import ControlError, ModelError

SLOWEST_BPM, FASTEST_BPM = 30.0, 300.0
# A chord or a beat may end so far beyond the vocal: files are cut by hand.
BEYOND_S = 0.25
MOST_CHORDS, MOST_BEATS = 5_000, 20_000
_BEATS_A_BAR = 4
_MOST_BEATS_A_BAR = 16
_LONGEST_SYMBOL = 40

_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_NOTE = re.compile(r"([A-G])([#b♯♭]*)")
# Semitones above the root of the major scale's degrees, an octave up from 9.
_DEGREES = {1: 0, 2: 2, 3: 4, 4: 5, 5: 7, 6: 9, 7: 11, 9: 2, 10: 4, 11: 5, 12: 7, 13: 9}
_SHORTHANDS: dict[str, str] = {
    "maj": "1 3 5", "min": "1 b3 5", "dim": "1 b3 b5", "aug": "1 3 #5", "sus2": "1 2 5", "sus4": "1 4 5", "5": "1 5", "1": "1",
    "maj6": "1 3 5 6", "min6": "1 b3 5 6", "7": "1 3 5 b7", "maj7": "1 3 5 7", "min7": "1 b3 5 b7", "minmaj7": "1 b3 5 7",
    "dim7": "1 b3 b5 bb7", "hdim7": "1 b3 b5 b7", "aug7": "1 3 #5 b7", "9": "1 3 5 b7 9", "maj9": "1 3 5 7 9", "min9": "1 b3 5 b7 9",
    "11": "1 5 b7 9 11", "maj11": "1 3 5 7 9 11", "min11": "1 b3 5 b7 9 11",
    "13": "1 3 5 b7 9 13", "maj13": "1 3 5 7 9 13", "min13": "1 b3 5 b7 9 13",
}  # fmt: skip
# How musicians write them after the root; nothing at all is major.
_WRITTEN: dict[str, str] = {"": "maj"} | {
    written: shorthand
    for shorthand, all_written in {
        "maj": "maj M", "min": "m min mi -", "dim": "dim ° o", "aug": "aug +", "sus2": "sus2", "sus4": "sus sus4", "5": "5",
        "maj6": "6 maj6 M6", "min6": "m6 min6 -6", "7": "7", "maj7": "maj7 M7 Δ Δ7", "min7": "m7 min7 mi7 -7",
        "minmaj7": "mM7 mmaj7 minmaj7 m(maj7) -Δ", "dim7": "dim7 °7 o7", "hdim7": "ø ø7 m7b5 min7b5 -7b5", "aug7": "aug7 +7",
        "9": "9", "maj9": "maj9 M9 Δ9", "min9": "m9 min9 -9", "11": "11", "maj11": "maj11 M11", "min11": "m11 min11 -11",
        "13": "13", "maj13": "maj13 M13", "min13": "m13 min13 -13",
    }.items()
    for written in all_written.split()
}  # fmt: skip
# And after that: alterations and added notes.
_ADDED = re.compile(r"\(?(?:(sus)([24])?|add([#b]*)(\d+)|(omit|no)(\d+)|([#b]+)(\d+)|(/9)|,)\)?")


@dataclass(frozen=True, kw_only=True)
class Chord:
    """root and bass: pitch classes, quality: a place in `model.chords.QUALITIES`; all `NO_CHORD` where none sounds."""

    root: int
    quality: int
    bass: int

    @property
    def name(self) -> str:
        return spelling(self.root, self.quality, self.bass)


NONE = Chord(root=NO_CHORD, quality=NO_CHORD, bass=NO_CHORD)


@dataclass(frozen=True, kw_only=True)
class ChordSpan:
    """A chord from `start_s` to before `end_s`; `asked` is how it was written."""

    start_s: float
    end_s: float
    chord: Chord
    asked: str
    exact: bool
    """False: the vocabulary lacks what was asked, and `chord` is the nearest that it has."""
    where: str = ""
    """Its line in the file, for messages."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """position: 1 is the downbeat; None where the bar is not known."""

    time_s: float
    position: int | None = None
    where: str = ""
    """Its line in the file, for messages."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What is asked beside the vocal. None and empty: the model chooses."""

    style: str | None = None
    chords: tuple[ChordSpan, ...] = ()
    beats: tuple[Beat, ...] = ()
    tempo_bpm: float | None = None
    first_beat_s: float = 0.0
    """With `tempo_bpm`: when a downbeat is; the grid goes on to both sides, four beats a bar."""

    def __post_init__(self) -> None:
        if self.tempo_bpm is not None and not SLOWEST_BPM <= self.tempo_bpm <= FASTEST_BPM:
            raise ControlError("tempo_bpm", f"is {self.tempo_bpm:g}; must lie in {SLOWEST_BPM:g}..{FASTEST_BPM:g}")
        if self.tempo_bpm is not None and self.beats:
            raise ControlError("beats", "given beside tempo_bpm; give the beats, or tempo_bpm with first_beat_s")
        if self.tempo_bpm is None and self.first_beat_s:
            raise ControlError("first_beat_s", f"given without tempo_bpm; {'leave it out' if self.beats else 'give the tempo too'}")
        for name, times_s in (("beats", [beat.time_s for beat in self.beats]), ("chords", [span.start_s for span in self.chords])):
            if times_s != sorted(times_s) or (name == "beats" and len(times_s) == 1):
                raise ControlError(name, "must be in order of time, and beats two or more")
        if not (math.isfinite(self.first_beat_s) and self.first_beat_s >= 0):
            raise ControlError("first_beat_s", f"is {self.first_beat_s:g}; must be 0 or more")

    @property
    def names(self) -> tuple[str, ...]:
        """Which of `model.network.conditions.CONTROLS` are asked for."""
        given = {"style": self.style is not None, "chords": bool(self.chords), "beats": bool(self.beats) or self.tempo_bpm is not None}
        return tuple(name for name, is_given in given.items() if is_given)

    @property
    def replaced(self) -> tuple[str, ...]:
        """One sentence for each chord that the vocabulary lacks."""
        others = {span.asked: span.chord.name for span in self.chords if not span.exact}
        return tuple(f"chord {asked} is taken for {name}, the nearest that the model knows" for asked, name in others.items())

    def within(self, duration_s: float) -> "Controls":
        """The same, cut at the vocal's end. Raises ControlError where something ends more than 0.25 s beyond it."""
        for span in self.chords:
            if span.end_s > duration_s + BEYOND_S:
                where = f"{span.where}: {span.start_s:g} to {span.end_s:g} s"
                raise ControlError("chords", f"{where} lies beyond the vocal, which ends at {duration_s:.2f} s")
        for beat in self.beats:
            if beat.time_s > duration_s + BEYOND_S:
                raise ControlError("beats", f"{beat.where}: {beat.time_s:g} s lies beyond the vocal, which ends at {duration_s:.2f} s")
        if self.tempo_bpm is not None and self.first_beat_s > duration_s + BEYOND_S:
            raise ControlError("first_beat_s", f"is {self.first_beat_s:g}, which lies beyond the vocal, which ends at {duration_s:.2f} s")
        inside = (span for span in self.chords if span.start_s < duration_s)
        return replace(self, chords=tuple(replace(span, end_s=min(span.end_s, duration_s)) for span in inside))

    def grid(self, duration_s: float) -> tuple[Beat, ...]:
        """The beats that are asked for: those given, or those of the tempo from before the vocal's beginning to after its end."""
        if self.tempo_bpm is None:
            return self.beats
        beat_s = 60 / self.tempo_bpm
        first, last = math.floor(-self.first_beat_s / beat_s) - 1, math.ceil((duration_s - self.first_beat_s) / beat_s) + 1
        return tuple(Beat(time_s=self.first_beat_s + index * beat_s, position=index % _BEATS_A_BAR + 1) for index in range(first, last + 1))


def read_chord(text: str) -> tuple[Chord | None, bool]:
    """A symbol (`A:min7/b3`, `F#m7b5`, `C/E`, `N`) → the nearest chord of the vocabulary, and whether it is exactly that. None: `X`, a
    chord that nobody knows, which the band may choose."""
    symbol = text.strip()
    if len(symbol) > _LONGEST_SYMBOL:
        raise ModelError(f"chord {symbol[:_LONGEST_SYMBOL]!r}…: longer than {_LONGEST_SYMBOL} characters, which no chord is")
    if symbol == "X":
        return None, True
    if symbol in ("N", "N.C.", "NC"):
        return NONE, True
    note = _NOTE.match(symbol)
    if not note:
        raise ModelError(f"chord {text!r}: must begin with a note A to G, for example Am, F#m7b5, C/E or A:min7/b3; N is no chord")
    root, rest = _pitch_class(note), symbol[note.end() :]
    rest, slash, bass_text = _bass_of(rest)
    steps = _harte(rest[1:], text) if rest.startswith(":") else _written(rest, text)
    quality, exact = _nearest(steps)
    bass = _bass(bass_text, root, text) if slash else root
    return Chord(root=root, quality=quality, bass=bass), exact


def read_chords(text: str) -> tuple[ChordSpan, ...]:
    """LAB lines `start end CHORD`, or JSON `[{"start_s", "end_s", "chord"}]`, in order and without overlap. ControlError names the line."""
    rows = _rows(text, ("start_s", "end_s", "chord"), "chords", _lab)
    if not 1 <= len(rows) <= MOST_CHORDS:
        raise ControlError("chords", f"{len(rows)} lines; give 1 to {MOST_CHORDS}")
    spans: list[ChordSpan] = []
    for where, (start, end, symbol) in rows:
        start_s, end_s = _number(start), _number(end)
        if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < end_s):
            raise ControlError("chords", f"{where}: {_brief(start)} to {_brief(end)}; must be seconds, 0 or more, and end after it begins")
        if spans and start_s < spans[-1].end_s - 1e-6:
            raise ControlError(
                "chords", f"{where}: begins at {start_s:g} s, before the chord before it ends at {spans[-1].end_s:g} s; sort and cut them"
            )
        try:
            chord, exact = read_chord(str(symbol))
        except ModelError as error:
            raise ControlError("chords", f"{where}: {error}") from error
        if chord is not None:
            spans.append(ChordSpan(start_s=start_s, end_s=end_s, chord=chord, asked=str(symbol).strip(), exact=exact, where=where))
    return tuple(spans)


def read_beats(text: str) -> tuple[Beat, ...]:
    """JSON `[{"time_s", "position"}]`, or lines `time position`; position 1 is the downbeat, and may be left out."""
    beats: list[Beat] = []
    rows = _rows(text, ("time_s", "position"), "beats", lambda line: line.split(), optional=1)
    if not 2 <= len(rows) <= MOST_BEATS:
        raise ControlError("beats", f"{len(rows)} of them; give 2 to {MOST_BEATS}")
    for where, (time, position) in rows:
        time_s = _number(time)
        if not math.isfinite(time_s) or time_s < 0:
            raise ControlError("beats", f"{where}: time_s is {_brief(time)}; must be seconds, 0 or more")
        if beats:
            step_s = time_s - beats[-1].time_s
            if step_s <= 0:
                raise ControlError("beats", f"{where}: {time_s:g} s is not after the beat before it, at {beats[-1].time_s:g} s; sort them")
            if not SLOWEST_BPM <= 60 / step_s <= FASTEST_BPM:
                allowed = f"{SLOWEST_BPM:g} to {FASTEST_BPM:g} beats a minute are allowed"
                raise ControlError("beats", f"{where}: {step_s:.3g} s after the beat before it; {allowed}")
        place = None if position is None else _number(position)
        if place is not None and not (1 <= place <= _MOST_BEATS_A_BAR and place.is_integer()):
            raise ControlError("beats", f"{where}: position is {_brief(position)}; must be 1 (the downbeat) to {_MOST_BEATS_A_BAR}")
        if place is not None and beats and beats[-1].position is not None and place not in (1, beats[-1].position + 1):
            raise ControlError("beats", f"{where}: position {place:g} after {beats[-1].position}; must be one more, or 1 for the next bar")
        beats.append(Beat(time_s=time_s, position=None if place is None else int(place), where=where))
    return tuple(beats)


def phases(beats: Sequence[Beat], times_s: Sequence[float]) -> tuple[list[float], list[float]]:
    """At each time the phase of the beat and of the bar, 0 to 1, NaN before the first beat, after the last, and where no bar is known."""
    bars = _bar_lengths(beats)
    beat_T, bar_T, index = [], [], 0
    for time_s in times_s:
        while index + 2 < len(beats) and time_s >= beats[index + 1].time_s:
            index += 1
        phase = (time_s - beats[index].time_s) / (beats[index + 1].time_s - beats[index].time_s)
        inside = 0 <= phase <= 1
        position, length = beats[index].position, bars[index]
        beat_T.append(phase % 1 if inside else math.nan)
        bar_T.append((position - 1 + phase) / length % 1 if inside and position is not None and length else math.nan)
    return beat_T, bar_T


def _bar_lengths(beats: Sequence[Beat]) -> list[int]:
    """Of each beat's bar, in beats: what the next downbeat says, and in a last, cut bar what the one before had; 0 where unknown."""
    lengths, start = [0] * len(beats), 0
    for index in range(1, len(beats) + 1):
        if index < len(beats) and beats[index].position != 1:
            continue
        last = beats[index - 1].position or 0
        length = last if index < len(beats) else max(last, lengths[start - 1] if start else (_BEATS_A_BAR if last else 0))
        lengths[start:index] = [length] * (index - start)
        start = index
    return lengths


def _rows(
    text: str, names: tuple[str, ...], what: str, split: Callable[[str], list[str]], *, optional: int = 0
) -> list[tuple[str, tuple[object, ...]]]:
    """Where each stands in the file (`line 3`, or `item 3` of a JSON list), and its values of `names`; the last `optional` may be missing,
    and are None then."""
    least, text = len(names) - optional, text.removeprefix("\ufeff")
    rows: list[tuple[str, tuple[object, ...]]] = []
    if not text.lstrip().startswith("["):
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            parts = split(line)
            if not least <= len(parts) <= len(names):
                raise ControlError(what, f"line {number}: {' '.join(parts)[:80]!r}; must be {' '.join(names)}")
            rows.append((f"line {number}", (*parts, *[None] * (len(names) - len(parts)))))
        return rows
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ControlError(what, f"begins with [ and is no JSON ({error}); give a list of objects with {', '.join(names)}") from error
    for number, row in enumerate(document, 1):
        if not isinstance(row, dict) or not set(names[:least]) <= set(row) <= set(names):
            raise ControlError(what, f"item {number}: {json.dumps(row)[:80]}; must be an object with {', '.join(names)}")
        rows.append((f"item {number}", tuple(row.get(name) for name in names)))
    return rows


def _brief(value: object) -> str:
    """What was given, in short."""
    given = repr(value)
    return given if len(given) <= _LONGEST_SYMBOL else f"{given[:_LONGEST_SYMBOL]}…"


def _lab(line: str) -> list[str]:
    return line.split(maxsplit=2)


def _number(value: object) -> float:
    """NaN where it is none: the caller says so with its line."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _pitch_class(note: re.Match[str]) -> int:
    sharps = note[2].count("#") + note[2].count("♯") - note[2].count("b") - note[2].count("♭")
    return (_LETTERS[note[1]] + sharps) % 12


def _bass_of(rest: str) -> tuple[str, bool, str]:
    """(quality, whether there is a bass, bass): the slash of 6/9 begins no bass."""
    head, slash, tail = rest.rpartition("/")
    six_nine = tail == "9" and not rest.startswith(":")
    return (head, True, tail) if slash and not six_nine else (rest, False, "")


def _bass(text: str, root: int, symbol: str) -> int:
    """A note (`E`), or a degree above the root (`b3`)."""
    if note := _NOTE.fullmatch(text):
        return _pitch_class(note)
    if degree := re.fullmatch(r"([#b]*)(\d+)", text):
        return (root + _step(degree[1], degree[2], symbol)) % 12
    raise ModelError(f"chord {symbol!r}: the bass after / must be a note (C/E) or a degree (C:maj/3)")


def _step(accidentals: str, degree: str, symbol: str) -> int:
    if int(degree) not in _DEGREES:
        raise ModelError(f"chord {symbol!r}: there is no degree {degree}; 1 to 7, 9 to 13 exist")
    return (_DEGREES[int(degree)] + accidentals.count("#") - accidentals.count("b")) % 12


def _degrees(text: str, symbol: str) -> set[int]:
    found = set()
    for part in text.split():
        degree = re.fullmatch(r"([#b]*)(\d+)", part)
        assert degree is not None  # the tables above
        found.add(_step(degree[1], degree[2], symbol))
    return found


def _harte(text: str, symbol: str) -> frozenset[int]:
    """Steps above the root of a shorthand with its list of degrees: `min7`, `maj(9)`, `maj(*3)`, `(1,4)`."""
    match = re.fullmatch(r"([^()]*)(?:\(([^()]*)\))?", text)
    if not text or match is None or (match[1] and match[1] not in _SHORTHANDS):
        raise ModelError(f"chord {symbol!r}: {text!r} is not in Harte's syntax; one of {', '.join(_SHORTHANDS)}, with degrees as maj(9)")
    steps = _degrees(_SHORTHANDS.get(match[1], "1"), symbol)
    for part in (match[2] or "").split(",") if match[2] else ():
        degree = re.fullmatch(r"\s*(\*?)([#b]*)(\d+)\s*", part)
        if degree is None:
            raise ModelError(f"chord {symbol!r}: {part!r} is no degree; write them as (b7,9), and *3 for one that is left out")
        (steps.discard if degree[1] else steps.add)(_step(degree[2], degree[3], symbol))
    return frozenset(steps)


def _written(text: str, symbol: str) -> frozenset[int]:
    """Steps above the root of what a musician writes after it: `m7b5`, `7sus4`, `maj7#11`, `add9`, `6/9`."""
    start = max((name for name in _WRITTEN if text.startswith(name) and _ADDED_ONLY.fullmatch(text[len(name) :])), key=len, default=None)
    if start is None:
        raise ModelError(f"chord {symbol!r}: {text!r} is not understood; for example Am, C7, Dm7b5, Fmaj7, Gsus4, Cadd9, C/E or A:min7/b3")
    steps = _degrees(_SHORTHANDS[_WRITTEN[start]], symbol)
    for part in _ADDED.finditer(text[len(start) :]):
        if part[1]:
            steps -= {3, 4}
            steps.add(2 if part[2] == "2" else 5)
        elif part[4]:
            steps.add(_step(part[3], part[4], symbol))
        elif part[5]:
            steps -= {_step("", part[6], symbol), *({3} if part[6] == "3" else ())}
        elif part[8]:
            if part[8] == "5":
                steps.discard(7)
            steps.add(_step(part[7], part[8], symbol))
        elif part[9]:
            steps.add(2)
    return frozenset(steps)


_ADDED_ONLY = re.compile(rf"(?:{_ADDED.pattern})*")


def _nearest(steps: frozenset[int]) -> tuple[int, bool]:
    """The quality whose notes differ least: a third counts most, then fifth and seventh, then the rest; of two, the simpler."""
    weights = {0: 8, 3: 6, 4: 6, 6: 3, 7: 3, 8: 3, 10: 4, 11: 4}
    wanted = steps - {5} if steps & {3, 4} else steps  # an eleventh beside a third is no suspension
    costs = []
    for quality in range(len(QUALITIES)):
        own = set(pitch_classes(0, quality))
        costs.append((sum(weights.get(step, 2) for step in own ^ wanted), len(own), quality))
    quality = min(costs)[2]
    return quality, set(pitch_classes(0, quality)) == steps
