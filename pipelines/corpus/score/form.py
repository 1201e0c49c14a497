"""The frame of a song: tempo, beats, form, keys; how beat positions become seconds."""

from bisect import bisect_right
from dataclasses import dataclass

from pipelines.chance import Chance
from pipelines.corpus.score.arrange import BEATS_PER_BAR, Part
from pipelines.corpus.score.styles import STYLES, Style

# Letters: Intro, Verse, Pre-chorus, Chorus, Bridge, Outro; digits: bars.
_FORMS = (
    "I1 V2 O1", "I1 V2 C2 O1", "I2 V4 O1", "I2 V4 C4 O1", "I2 V4 C4 C4 O1", "I2 V4 C4 V4 O1", "I2 V4 C4 V4 C4 O1", "I2 V4 P2 C4 C4 O1",
    "I2 V4 P2 C4 V4 C4 O1", "I2 V8 C8 O2", "I4 V4 C4 V4 C4 O2", "I4 V8 C8 O2", "I2 V4 P2 C4 B4 C4 O2", "I4 V8 P4 C8 O2",
    "I2 V8 C4 V4 C4 O2", "I4 V8 C8 C4 O2", "I2 V8 P2 C8 B4 O2", "I4 V8 C4 B4 C4 O2", "I4 V8 C8 B4 C4 O2", "I4 V8 P4 C8 C4 O2",
    "I4 V8 C8 V4 C4 O2", "I4 V8 C8 B4 C8 O2", "I4 V8 P4 C8 B4 C4 O2", "I4 V8 C8 V8 C8 O2",
)  # fmt: skip
_NAMES = {"I": "intro", "V": "verse", "P": "pre-chorus", "C": "chorus", "B": "bridge", "O": "outro"}
_INTENSITY = {"I": 0.55, "V": 0.6, "P": 0.75, "C": 1.0, "B": 0.65, "O": 0.7}


@dataclass(frozen=True)
class Frame:
    """Everything decided before the first note."""

    style: Style
    tonic: int
    mode: str
    tempo_bpm: float
    swing: float
    parts: tuple[Part, ...]
    beats_s: tuple[float, ...]

    def time_s(self, beat: float) -> float:
        """Seconds of a beat position, swing included; positions past the last beat continue at the last beat's length."""
        whole = int(beat // 1)
        share = swung(beat - whole, self.swing, self.style.swing_unit)
        last = len(self.beats_s) - 2
        index = min(whole, last)
        length = self.beats_s[index + 1] - self.beats_s[index]
        return self.beats_s[index] + (whole - index + share) * length


def swung(share: float, swing: float, unit: int) -> float:
    """Where a position within a beat falls when the first half of every pair of notes of that unit lasts `swing` of the pair."""
    if unit == 16:
        half = 0.5 if share >= 0.5 else 0.0
        return half + swung((share - half) * 2, swing, 8) / 2
    return share * 2 * swing if share < 0.5 else swing + (share - 0.5) * 2 * (1 - swing)


def _bars(form: str) -> int:
    return sum(int(token[1:]) for token in form.split())


def choose_form(target_bars: float, chance: Chance) -> str:
    """A form of about that many bars; longer than the longest, verses and choruses repeat."""
    forms = list(_FORMS)
    while _bars(forms[-1]) < target_bars:
        forms.append(forms[-1].replace(" O2", " V8 C8 O2") if len(forms) % 2 else forms[-1].replace(" O2", " B4 C8 O2"))
    nearest = min(abs(_bars(form) - target_bars) for form in forms)
    return chance.choice([form for form in forms if abs(_bars(form) - target_bars) <= max(nearest, 1.0)])


def make_frame(seed: int, duration_s: float) -> Frame:
    """Styles rotate with the seed, and keys, modes and tempi step evenly through their ranges, so that a small corpus has them all."""
    chance = Chance("form", seed)
    turn, index = divmod(seed, len(STYLES))
    style = STYLES[index]
    tonic = (7 * seed + seed // 24) % 12
    mode = "minor" if (2 * seed + turn) % 5 < 2 else "major"
    low, high = style.tempo_bpm
    tempo_bpm = round(low + (high - low) * ((turn * 0.618034 + index * 0.37) % 1.0), 1)
    bar_s = BEATS_PER_BAR * 60 / tempo_bpm
    form = choose_form(duration_s * chance.uniform(0.94, 1.08) / bar_s - 0.5, chance)
    parts: list[Part] = []
    bar = 0
    choruses = form.count("C")
    heard = dict.fromkeys(_NAMES, 0)
    tokens = form.split()
    for token in tokens:
        letter, bars = token[0], int(token[1:])
        heard[letter] += 1
        lift = 0.1 if letter == "V" and heard["V"] > 1 else -0.08 if letter == "C" and heard["C"] < choruses else 0.0
        parts.append(
            Part(name=_NAMES[letter], first_bar=bar, bars=bars, intensity=round(_INTENSITY[letter] + lift, 3), final=token is tokens[-1])
        )
        bar += bars
    time_s, drift = chance.uniform(0.15, 0.45), 0.0
    beats: list[float] = []
    for _ in range(bar * BEATS_PER_BAR + 1):
        beats.append(round(time_s, 6))
        drift = 0.9 * drift + chance.spread(0.0025)
        time_s += 60 / tempo_bpm * (1 + drift)
    return Frame(
        style=style,
        tonic=tonic,
        mode=mode,
        tempo_bpm=tempo_bpm,
        swing=round(chance.uniform(*style.swing) + (chance.uniform(0, 0.05) if style.swing[1] == 0.5 and chance.happens(0.3) else 0.0), 3),
        parts=tuple(parts),
        beats_s=tuple(beats),
    )


def part_of(parts: tuple[Part, ...], beat: float) -> Part:
    starts = [part.start for part in parts]
    return parts[max(0, bisect_right(starts, beat + 1e-6) - 1)]
