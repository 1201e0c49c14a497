"""The frame of a song: metre, tempo, beats, form, keys; how positions on the grid of quarters become seconds."""

from bisect import bisect_right
from dataclasses import dataclass

from pipelines.chance import Chance
from pipelines.corpus.score.arrange import Part
from pipelines.corpus.score.styles import STYLES, Style

# Letters: Intro, Verse, Pre-chorus, Chorus, Bridge, Solo (instrumental break), Outro; digits: bars.
_SHORT_FORMS = (
    "I1 V2 O1", "I1 V2 C2 O1", "I2 V4 O1", "I2 V4 C4 O1", "I2 V4 C4 C4 O1", "I2 V4 C4 V4 O1", "I2 V4 C4 V4 C4 O1", "I2 V4 P2 C4 C4 O1",
    "I2 V4 P2 C4 V4 C4 O1", "I2 V8 C8 O2", "I4 V4 C4 V4 C4 O2", "I4 V8 C8 O2", "I2 V4 P2 C4 B4 C4 O2", "I4 V8 P4 C8 O2",
    "I2 V8 C4 V4 C4 O2", "I4 V8 C8 C4 O2", "I2 V8 P2 C8 B4 O2", "I4 V8 C4 B4 C4 O2", "I4 V8 C8 B4 C4 O2", "I4 V8 P4 C8 C4 O2",
    "I4 V8 C8 V4 C4 O2", "I4 V8 C8 B4 C8 O2", "I4 V8 P4 C8 B4 C4 O2", "I4 V8 C8 V8 C8 O2",
)  # fmt: skip
# From a minute on the voice rests at the start, in the middle and at the end, for 4 to 16 bars each, and the band does not.
_LONG_FORMS = (
    "I4 V4 S4 C4 O4", "I4 V4 C4 S4 C4 O4", "I4 V8 S4 C4 O4", "I4 V8 C4 S4 C4 O4", "I4 V4 C4 S4 V4 C4 O4", "I4 V4 P2 C4 S4 V4 C4 O4",
    "I4 V8 C8 S4 C4 O4", "I4 V8 C4 S4 C8 O4", "I4 V8 P4 C4 S4 C8 O4", "I8 V8 C8 S4 C4 O4", "I4 V8 C8 S8 C8 O4",
    "I4 V4 C4 V4 C4 S4 B4 C8 O4", "I4 V8 P4 C8 S8 C8 O4", "I8 V8 C8 V4 S8 C8 O4", "I8 V8 C8 S4 V8 C8 O4",
    "I8 V8 C8 V8 C8 S8 C8 O8", "I8 V8 P4 C8 V8 C8 S16 C8 O8",
)  # fmt: skip
LONG_S = 60.0
_NAMES = {"I": "intro", "V": "verse", "P": "pre-chorus", "C": "chorus", "B": "bridge", "S": "instrumental", "O": "outro"}
_INTENSITY = {"I": 0.55, "V": 0.6, "P": 0.75, "C": 1.0, "B": 0.65, "S": 0.8, "O": 0.7}
# Metre: quarters a bar, quarters a beat, quarters from one strong place to the next.
METRES = {"4/4": (4, 1.0, 2.0), "3/4": (3, 1.0, 3.0), "6/8": (3, 1.5, 1.5)}


@dataclass(frozen=True)
class Frame:
    """Everything decided before the first note."""

    style: Style
    tonic: int
    mode: str
    tempo_bpm: float
    drift: float
    swing: float
    parts: tuple[Part, ...]
    quarters_s: tuple[float, ...]

    @property
    def bar_beats(self) -> int:
        """Quarters a bar."""
        return METRES[self.style.metre][0]

    @property
    def accent(self) -> float:
        return METRES[self.style.metre][2]

    def time_s(self, beat: float) -> float:
        """Seconds of a position in quarters, swing included; positions past the last quarter continue at the last one's length."""
        whole = int(beat // 1)
        share = swung(beat - whole, self.swing, self.style.swing_unit)
        last = len(self.quarters_s) - 2
        index = min(whole, last)
        length = self.quarters_s[index + 1] - self.quarters_s[index]
        return self.quarters_s[index] + (whole - index + share) * length

    @property
    def beats_s(self) -> tuple[float, ...]:
        """The beats that a foot taps, the last one the song's end: quarters, in 6/8 dotted quarters."""
        step = METRES[self.style.metre][1]
        return tuple(round(self.time_s(step * index), 6) for index in range(int((len(self.quarters_s) - 1) / step) + 1))


def swung(share: float, swing: float, unit: int) -> float:
    """Where a position within a beat falls when the first half of every pair of notes of that unit lasts `swing` of the pair."""
    if unit == 16:
        half = 0.5 if share >= 0.5 else 0.0
        return half + swung((share - half) * 2, swing, 8) / 2
    return share * 2 * swing if share < 0.5 else swing + (share - 0.5) * 2 * (1 - swing)


def _bars(form: str) -> int:
    return sum(int(token[1:]) for token in form.split())


def choose_form(target_bars: float, chance: Chance, *, long: bool) -> str:
    """A form of about that many bars; longer than the longest, verses and choruses repeat before the ending."""
    forms = list(_LONG_FORMS if long else _SHORT_FORMS)
    while _bars(forms[-1]) < target_bars:
        body, _, ending = forms[-1].rpartition(" ")
        forms.append(f"{body} {'V8' if len(forms) % 2 else 'B4'} C8 {ending}")
    nearest = min(abs(_bars(form) - target_bars) for form in forms)
    return chance.choice([form for form in forms if abs(_bars(form) - target_bars) <= max(nearest, 1.0)])


def make_frame(seed: int, duration_s: float) -> Frame:
    """Styles rotate with the seed, and keys, modes and tempi step evenly through their ranges, so that a small corpus has them all."""
    chance = Chance("form", seed)
    turn, index = divmod(seed, len(STYLES))
    style = STYLES[index]
    tonic = (7 * seed + 5 * turn) % 12
    mode = "minor" if 2 * (seed + turn) % 5 < 2 else "major"
    low, high = style.tempo_bpm
    tempo_bpm = round(low + (high - low) * ((turn * 0.618034 + index * 0.37) % 1.0), 1)
    bar_beats, beat_quarters, _ = METRES[style.metre]
    quarter_s = 60 / tempo_bpm / beat_quarters
    bars = duration_s * chance.uniform(0.94, 1.08) / (bar_beats * quarter_s) - 0.5
    parts = _lay_out(choose_form(bars, chance, long=duration_s >= LONG_S), bar_beats)
    # People without a click: two in five songs of the styles that machines do not play, which is a third of all.
    drift = round(chance.uniform(0.012, 0.03), 4) if style.loose_s and (3 * turn + index) % 5 < 2 else 0.0
    return Frame(
        style=style,
        tonic=tonic,
        mode=mode,
        tempo_bpm=tempo_bpm,
        drift=drift,
        swing=_swing(style, chance),
        parts=parts,
        quarters_s=_quarters(parts, quarter_s, drift, chance),
    )


def _swing(style: Style, chance: Chance) -> float:
    """People swing a little now and then; machines do not, and pairs of eighths would cut across the beats of 6/8."""
    swing = chance.uniform(*style.swing)
    lightly = chance.uniform(0, 0.05) if style.swing[1] == 0.5 and chance.happens(0.3) else 0.0
    return round(swing + (lightly if style.loose_s and style.metre != "6/8" else 0.0), 3)


def _lay_out(form: str, bar_beats: int) -> tuple[Part, ...]:
    parts: list[Part] = []
    bar = 0
    heard = dict.fromkeys(_NAMES, 0)
    tokens = form.split()
    for token in tokens:
        letter, bars = token[0], int(token[1:])
        heard[letter] += 1
        lift = 0.1 if letter == "V" and heard["V"] > 1 else -0.08 if letter == "C" and heard["C"] < form.count("C") else 0.0
        intensity = round(_INTENSITY[letter] + lift, 3)
        parts.append(
            Part(name=_NAMES[letter], first_bar=bar, bars=bars, intensity=intensity, final=token is tokens[-1], bar_beats=bar_beats)
        )
        bar += bars
    return tuple(parts)


def _quarters(parts: tuple[Part, ...], quarter_s: float, drift: float, chance: Chance) -> tuple[float, ...]:
    """Seconds of each quarter, the end included: the tempo wanders slowly by `drift` (people hurry where it is loud), its mean stays."""
    total = int(parts[-1].end)
    slow, quick = 0.0, 0.0
    paces = []
    for quarter in range(total):
        slow = 0.97 * slow + chance.spread(0.45)
        quick = 0.9 * quick + chance.spread(0.0025)
        push = 0.5 * (part_of(parts, quarter).intensity - 0.75) / 0.25
        paces.append(quick - drift * (slow + push))
    mean = sum(paces) / total
    time_s = chance.uniform(0.15, 0.45)
    times = [round(time_s, 6)]
    for pace in paces:
        time_s += quarter_s * (1 + pace - mean)
        times.append(round(time_s, 6))
    return tuple(times)


def part_of(parts: tuple[Part, ...], beat: float) -> Part:
    starts = [part.start for part in parts]
    return parts[max(0, bisect_right(starts, beat + 1e-6) - 1)]
