"""Eight styles of pop: tempo, feel, progressions, grooves, patterns, instruments. Data, with a word on notation.

A groove line has 16 steps a bar, a digit a step: 0 silent, 9 loudest. Bass and chord patterns are rows (step, length in steps, what).
"""

from dataclasses import dataclass

Groove = dict[str, str]
BassPattern = tuple[tuple[int, int, str], ...]
ChordPattern = tuple[tuple[int, int, str], ...]

BACKBEAT = "0000900000009000"
CHORD_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I V vi IV", "vi IV I V", "I vi IV V", "I IV vi V", "I iii IV V", "IV I V vi", "I ii vi IV", "I bVII IV I"),
    "minor": ("i bVI bIII bVII", "i iv bVI V", "i bVII bVI bVII", "i bIII bVII iv", "bVI bVII i bIII", "i bVI iv V", "i v bVI bVII"),
}
SEVENTH_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I7 vi7 ii7 V", "IV7 iii7 vi7 V", "I7 IV7 vi7 V", "vi7 ii7 V I"),
    "minor": ("i7 iv7 bVI7 V", "i7 bVI7 bIII bVII", "i7 bVII bVI7 v7", "iv7 i7 bVI7 V"),
}


@dataclass(frozen=True, kw_only=True)
class Style:
    name: str
    tempo_bpm: tuple[float, float]
    swing: tuple[float, float] = (0.5, 0.5)
    swing_unit: int = 8
    loops: dict[str, tuple[str, ...]]
    quiet: tuple[Groove, ...]
    """Grooves for intro, verse, bridge."""
    full: tuple[Groove, ...]
    """Grooves for the chorus."""
    bass: tuple[BassPattern, ...]
    chords: tuple[ChordPattern, ...]
    arpeggio: tuple[str, ...]
    """Digits: which note of the voicing sounds on each step, '-' none; empty for no arpeggio."""
    bass_instruments: tuple[str, ...]
    chord_instruments: tuple[str, ...]
    arpeggio_instruments: tuple[str, ...]
    pad_instruments: tuple[str, ...]
    answer_instruments: tuple[str, ...]
    kits: tuple[str, ...]
    strum_s: float = 0.0
    pump: float = 0.0
    layback_s: float = 0.0
    crash: bool = True


_HELD: ChordPattern = ((0, 16, "c"),)
_HALVES: ChordPattern = ((0, 8, "c"), (8, 8, "c"))
_QUARTERS: ChordPattern = ((0, 4, "c"), (4, 4, "c"), (8, 4, "c"), (12, 4, "c"))
_PUSHED: ChordPattern = ((0, 6, "c"), (6, 6, "c"), (12, 4, "c"))
_EIGHTHS: ChordPattern = tuple((step, 2, "c" if step % 4 == 0 else "t") for step in range(0, 16, 2))
_STRUM: ChordPattern = ((0, 4, "d"), (4, 2, "d"), (6, 2, "u"), (8, 2, "d"), (10, 2, "u"), (12, 2, "d"), (14, 2, "u"))
_ISLAND: ChordPattern = ((0, 4, "d"), (4, 2, "d"), (6, 4, "u"), (10, 2, "u"), (12, 2, "d"), (14, 2, "u"))
_SKANK: ChordPattern = ((2, 2, "c"), (6, 2, "c"), (10, 2, "c"), (14, 2, "c"))
_CHARLESTON: ChordPattern = ((0, 3, "c"), (6, 3, "c"), (10, 2, "t"))

COMMON_CHORDS: tuple[ChordPattern, ...] = (_HELD, _HALVES, _QUARTERS, _PUSHED, _EIGHTHS)

_B_HELD: BassPattern = ((0, 8, "R"), (8, 6, "R"), (14, 2, "A"))
_B_EIGHTHS: BassPattern = (*((step, 2, "R") for step in range(0, 14, 2)), (14, 2, "A"))
_B_POP: BassPattern = ((0, 3, "R"), (3, 3, "R"), (6, 2, "R"), (8, 4, "R"), (12, 2, "F"), (14, 2, "A"))
_B_OCTAVES: BassPattern = tuple((step, 2, "R" if step % 4 == 0 else "O") for step in range(0, 16, 2))
_B_SOUL: BassPattern = ((0, 3, "R"), (3, 1, "R"), (6, 2, "O"), (8, 2, "R"), (11, 1, "F"), (12, 2, "F"), (14, 2, "A"))
_B_WALK: BassPattern = ((0, 4, "R"), (4, 4, "T"), (8, 4, "F"), (12, 4, "A"))
_B_TWO: BassPattern = ((0, 7, "R"), (8, 6, "F"), (14, 2, "A"))
_B_TUMBAO: BassPattern = ((0, 5, "R"), (6, 2, "F"), (8, 3, "R"), (12, 2, "O"), (14, 2, "A"))

STYLES: tuple[Style, ...] = (
    Style(
        name="ballad",
        tempo_bpm=(66, 84),
        loops=CHORD_LOOPS,
        quiet=({"kick": "9000000080000000", "rim": "0000700000007000", "hat": "6010601060106010"},),
        full=(
            {"kick": "9000000080300000", "snare": BACKBEAT, "hat": "7020702070207020"},
            {"kick": "9000000090000000", "snare": BACKBEAT, "ride": "7020702070207020"},
        ),
        bass=(_B_HELD, _B_TWO),
        chords=(_QUARTERS, _HALVES),
        arpeggio=("0-1-2-3-2-1-2-1-", "0-2-1-3-2-1-3-1-"),
        bass_instruments=("finger_bass", "round_bass"),
        chord_instruments=("piano",),
        arpeggio_instruments=("piano", "guitar", "electric_piano"),
        pad_instruments=("strings", "warm_pad"),
        answer_instruments=("strings", "flute", "bell"),
        kits=("studio", "soft"),
    ),
    Style(
        name="synth-pop",
        tempo_bpm=(100, 124),
        loops=CHORD_LOOPS,
        quiet=({"kick": "9000000090000000", "clap": "0000800000008000", "hat": "6030603060306030"},),
        full=(
            {"kick": "9000003090900000", "snare": BACKBEAT, "clap": "0000700000007000", "hat": "7242724272427242"},
            {"kick": "9000900090009000", "snare": BACKBEAT, "hat": "6040604060406040", "open": "0000000000000050"},
        ),
        bass=(_B_EIGHTHS, _B_OCTAVES, _B_POP),
        chords=(_PUSHED, _HALVES, _QUARTERS),
        arpeggio=("0-1-2-1-3-2-1-2-", "0120123021012302"),
        bass_instruments=("synth_bass",),
        chord_instruments=("synth_keys", "electric_piano"),
        arpeggio_instruments=("pluck",),
        pad_instruments=("warm_pad", "bright_pad"),
        answer_instruments=("synth_lead", "bell", "pluck"),
        kits=("machine",),
        pump=0.25,
    ),
    Style(
        name="rock",
        tempo_bpm=(112, 138),
        loops=CHORD_LOOPS,
        quiet=({"kick": "9000000090900000", "snare": BACKBEAT, "hat": "8040804080408040"},),
        full=(
            {"kick": "9000009090900000", "snare": BACKBEAT, "ride": "8040804080408040"},
            {"kick": "9000000090900090", "snare": BACKBEAT, "open": "6000600060006000", "hat": "0030003000300030"},
        ),
        bass=(_B_EIGHTHS, _B_POP),
        chords=(_EIGHTHS, _STRUM, _PUSHED),
        arpeggio=("",),
        bass_instruments=("pick_bass",),
        chord_instruments=("crunch_guitar",),
        arpeggio_instruments=(),
        pad_instruments=("organ", "crunch_guitar"),
        answer_instruments=("lead_guitar", "organ"),
        kits=("studio",),
        strum_s=0.006,
    ),
    Style(
        name="soul",
        tempo_bpm=(72, 96),
        swing=(0.54, 0.6),
        swing_unit=16,
        loops=SEVENTH_LOOPS,
        quiet=({"kick": "9000000080300000", "snare": "0000900000009000", "hat": "7121712171217121"},),
        full=({"kick": "9000000380300000", "snare": "0000900100109000", "hat": "7121712171217121"},),
        bass=(_B_SOUL, _B_POP),
        chords=(_PUSHED, _HALVES, _CHARLESTON),
        arpeggio=("", "--2---3---1---2-"),
        bass_instruments=("finger_bass", "round_bass"),
        chord_instruments=("electric_piano", "organ"),
        arpeggio_instruments=("muted_guitar", "guitar"),
        pad_instruments=("strings", "organ", "warm_pad"),
        answer_instruments=("vibraphone", "lead_guitar", "strings"),
        kits=("soft", "studio"),
        layback_s=0.012,
    ),
    Style(
        name="dance",
        tempo_bpm=(116, 130),
        loops=CHORD_LOOPS,
        quiet=({"kick": "9000900090009000", "clap": "0000600000006000", "hat": "0050005000500050"},),
        full=(
            {"kick": "9000900090009000", "clap": BACKBEAT, "open": "0060006000600060", "shaker": "3232323232323232"},
            {"kick": "9000900090009000", "snare": BACKBEAT, "clap": BACKBEAT, "open": "0050005000500050", "hat": "4242424242424242"},
        ),
        bass=(_B_OCTAVES, _B_EIGHTHS),
        chords=(((0, 6, "c"), (6, 6, "c"), (12, 4, "c")), _QUARTERS),
        arpeggio=("0120120120120123", "0-2-1-2-3-2-1-2-"),
        bass_instruments=("synth_bass",),
        chord_instruments=("synth_keys", "piano"),
        arpeggio_instruments=("pluck", "bell"),
        pad_instruments=("bright_pad", "warm_pad"),
        answer_instruments=("synth_lead", "pluck"),
        kits=("machine",),
        pump=0.55,
    ),
    Style(
        name="folk",
        tempo_bpm=(84, 116),
        loops=CHORD_LOOPS,
        quiet=({"kick": "8000000080000000", "shaker": "6131613161316131"},),
        full=({"kick": "9000000090000000", "rim": "0000800000008000", "shaker": "7242724272427242", "tambourine": "0000500000005000"},),
        bass=(_B_TWO, _B_HELD),
        chords=(_STRUM, _ISLAND),
        arpeggio=("0-2-1-3-0-2-1-3-", "0-1-2-3-2-1-2-3-"),
        bass_instruments=("upright_bass",),
        chord_instruments=("guitar",),
        arpeggio_instruments=("guitar", "nylon_guitar"),
        pad_instruments=("strings", "organ"),
        answer_instruments=("flute", "guitar", "strings"),
        kits=("soft",),
        strum_s=0.011,
        crash=False,
    ),
    Style(
        name="latin",
        tempo_bpm=(88, 108),
        loops=CHORD_LOOPS,
        quiet=({"kick": "9000900090009000", "rim": "0005005000050050", "shaker": "6232623262326232"},),
        full=({"kick": "9000900090009000", "snare": "0006006000060060", "shaker": "7242724272427242", "tambourine": "0000500000005000"},),
        bass=(_B_TUMBAO, _B_TWO),
        chords=(((0, 3, "c"), (3, 3, "c"), (6, 2, "t"), (8, 3, "c"), (11, 3, "c"), (14, 2, "t")), _PUSHED),
        arpeggio=("0--1--2-3--2--1-", "0-2-1-2-0-3-1-2-"),
        bass_instruments=("round_bass", "upright_bass"),
        chord_instruments=("nylon_guitar", "piano"),
        arpeggio_instruments=("nylon_guitar", "marimba", "pluck"),
        pad_instruments=("warm_pad", "strings"),
        answer_instruments=("flute", "marimba", "vibraphone"),
        kits=("machine", "studio"),
        strum_s=0.008,
    ),
    Style(
        name="shuffle",
        tempo_bpm=(100, 132),
        swing=(0.6, 0.667),
        loops=SEVENTH_LOOPS,
        quiet=({"kick": "9000000090000000", "snare": "0000800000008000", "hat": "7020703070207030"},),
        full=({"kick": "9000000090300000", "snare": BACKBEAT, "ride": "8000803080008030"},),
        bass=(_B_WALK, _B_POP),
        chords=(_CHARLESTON, _SKANK, _QUARTERS),
        arpeggio=("",),
        bass_instruments=("upright_bass", "finger_bass"),
        chord_instruments=("piano", "organ", "electric_piano"),
        arpeggio_instruments=(),
        pad_instruments=("organ", "strings"),
        answer_instruments=("vibraphone", "lead_guitar", "flute"),
        kits=("studio", "soft"),
    ),
)

PROGRAMS: dict[str, int] = {
    "piano": 0, "electric_piano": 4, "bell": 9, "vibraphone": 11, "marimba": 12, "organ": 16, "nylon_guitar": 24, "guitar": 25,
    "muted_guitar": 28, "lead_guitar": 29, "crunch_guitar": 29, "upright_bass": 32, "finger_bass": 33, "pick_bass": 34, "round_bass": 33,
    "synth_bass": 38, "strings": 48, "flute": 73, "synth_lead": 81, "synth_keys": 90, "pluck": 88, "warm_pad": 89, "bright_pad": 90,
}  # fmt: skip
DRUM_KEYS: dict[str, int] = {
    "kick": 36, "snare": 38, "rim": 37, "clap": 39, "hat": 42, "open": 46, "ride": 51, "crash": 49,
    "tom_high": 50, "tom_mid": 47, "tom_low": 43, "shaker": 70, "tambourine": 54,
}  # fmt: skip
