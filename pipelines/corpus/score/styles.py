"""Twelve styles: metre, tempo, feel, progressions, grooves, patterns, instruments. Data, with a word on notation.

A groove line has four steps a quarter (16 in 4/4, 12 in 3/4 and 6/8), a digit a step: 0 silent, 9 loudest. Bass and chord patterns are
rows (step, length in steps, what).
"""

from dataclasses import dataclass

from pipelines.corpus.score import patterns
from pipelines.corpus.score.patterns import BassPattern, ChordPattern, Groove


@dataclass(frozen=True, kw_only=True)
class Style:
    name: str
    tempo_bpm: tuple[float, float]
    """Beats a minute: quarters, in 6/8 dotted quarters."""
    metre: str = "4/4"
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
    loose_s: float = 0.006
    """How far players stray from the beat; 0 where machines play."""
    ghosts: float = 0.0
    """Chance of a soft stroke between the drummer's own, a step."""
    staccato: float = 0.0
    """Chance that a section's chords are cut short."""
    layback_s: float = 0.0
    crash: bool = True


STYLES: tuple[Style, ...] = (
    Style(
        name="ballad",
        tempo_bpm=(66, 84),
        loops=patterns.CHORD_LOOPS,
        quiet=({"kick": "9000000080000000", "rim": "0000700000007000", "hat": "6010601060106010"},),
        full=(
            {"kick": "9000000080300000", "snare": patterns.BACKBEAT, "hat": "7020702070207020"},
            {"kick": "9000000090000000", "snare": patterns.BACKBEAT, "ride": "7020702070207020"},
        ),
        bass=(patterns.B_HELD, patterns.B_TWO),
        chords=(patterns.QUARTERS, patterns.HALVES),
        arpeggio=("0-1-2-3-2-1-2-1-", "0-2-1-3-2-1-3-1-"),
        bass_instruments=("finger_bass", "round_bass"),
        chord_instruments=("piano",),
        arpeggio_instruments=("piano", "guitar", "electric_piano", "clean_guitar"),
        pad_instruments=("strings", "warm_pad"),
        answer_instruments=("strings", "flute", "sax", "clean_guitar"),
        kits=("studio", "soft"),
        ghosts=0.01,
    ),
    Style(
        name="synth-pop",
        tempo_bpm=(100, 124),
        loops=patterns.DANCE_LOOPS,
        quiet=({"kick": "9000000090000000", "clap": "0000800000008000", "hat": "6030603060306030"},),
        full=(
            {"kick": "9000003090900000", "snare": patterns.BACKBEAT, "clap": "0000700000007000", "hat": "7242724272427242"},
            {"kick": "9000900090009000", "snare": patterns.BACKBEAT, "hat": "6040604060406040", "open": "0000000000000050"},
        ),
        bass=(patterns.B_EIGHTHS, patterns.B_OCTAVES, patterns.B_POP),
        chords=(patterns.PUSHED, patterns.HALVES, patterns.QUARTERS),
        arpeggio=("0-1-2-1-3-2-1-2-", "0120123021012302"),
        bass_instruments=("synth_bass",),
        chord_instruments=("synth_keys", "electric_piano"),
        arpeggio_instruments=("pluck",),
        pad_instruments=("warm_pad", "bright_pad"),
        answer_instruments=("synth_lead", "bell", "pluck"),
        kits=("machine",),
        pump=0.25,
        loose_s=0.0,
    ),
    Style(
        name="rock",
        tempo_bpm=(112, 138),
        loops=patterns.ROCK_LOOPS,
        quiet=({"kick": "9000000090900000", "snare": patterns.BACKBEAT, "hat": "8040804080408040"},),
        full=(
            {"kick": "9000009090900000", "snare": patterns.BACKBEAT, "ride": "8040804080408040"},
            {"kick": "9000000090900090", "snare": patterns.BACKBEAT, "open": "6000600060006000", "hat": "0030003000300030"},
        ),
        bass=(patterns.B_EIGHTHS, patterns.B_POP),
        chords=(patterns.EIGHTHS, patterns.STRUM, patterns.PUSHED),
        arpeggio=("", "0-1-2-3-2-1-2-1-"),
        bass_instruments=("pick_bass",),
        chord_instruments=("crunch_guitar",),
        arpeggio_instruments=("clean_guitar", "muted_guitar"),
        pad_instruments=("organ", "crunch_guitar"),
        answer_instruments=("lead_guitar", "organ"),
        kits=("studio",),
        strum_s=0.006,
        ghosts=0.015,
        staccato=0.25,
        loose_s=0.007,
    ),
    Style(
        name="soul",
        tempo_bpm=(72, 96),
        swing=(0.54, 0.6),
        swing_unit=16,
        loops=patterns.SEVENTH_LOOPS,
        quiet=({"kick": "9000000080300000", "snare": "0000900000009000", "hat": "7121712171217121"},),
        full=({"kick": "9000000380300000", "snare": "0000900100109000", "hat": "7121712171217121"},),
        bass=(patterns.B_SOUL, patterns.B_POP),
        chords=(patterns.PUSHED, patterns.HALVES, patterns.CHARLESTON),
        arpeggio=("", "--2---3---1---2-"),
        bass_instruments=("finger_bass", "round_bass"),
        chord_instruments=("electric_piano", "organ"),
        arpeggio_instruments=("muted_guitar", "clean_guitar"),
        pad_instruments=("strings", "organ", "brass"),
        answer_instruments=("sax", "vibraphone", "brass", "clean_guitar"),
        kits=("soft", "studio"),
        layback_s=0.012,
        ghosts=0.05,
        loose_s=0.009,
    ),
    Style(
        name="dance",
        tempo_bpm=(116, 130),
        loops=patterns.DANCE_LOOPS,
        quiet=({"kick": "9000900090009000", "clap": "0000600000006000", "hat": "0050005000500050"},),
        full=(
            {"kick": "9000900090009000", "clap": patterns.BACKBEAT, "open": "0060006000600060", "shaker": "3232323232323232"},
            {
                "kick": "9000900090009000",
                "snare": patterns.BACKBEAT,
                "clap": patterns.BACKBEAT,
                "open": "0050005000500050",
                "hat": "4242424242424242",
            },
        ),
        bass=(patterns.B_OCTAVES, patterns.B_EIGHTHS),
        chords=(((0, 6, "c"), (6, 6, "c"), (12, 4, "c")), patterns.QUARTERS),
        arpeggio=("0120120120120123", "0-2-1-2-3-2-1-2-"),
        bass_instruments=("synth_bass",),
        chord_instruments=("synth_keys", "piano"),
        arpeggio_instruments=("pluck", "bell"),
        pad_instruments=("bright_pad", "warm_pad"),
        answer_instruments=("synth_lead", "pluck"),
        kits=("machine",),
        pump=0.55,
        loose_s=0.0,
    ),
    Style(
        name="folk",
        tempo_bpm=(84, 116),
        loops=patterns.FOLK_LOOPS,
        quiet=({"kick": "8000000080000000", "shaker": "6131613161316131"},),
        full=({"kick": "9000000090000000", "rim": "0000800000008000", "shaker": "7242724272427242", "tambourine": "0000500000005000"},),
        bass=(patterns.B_TWO, patterns.B_HELD),
        chords=(patterns.STRUM, patterns.ISLAND),
        arpeggio=("0-2-1-3-0-2-1-3-", "0-1-2-3-2-1-2-3-"),
        bass_instruments=("upright_bass",),
        chord_instruments=("guitar",),
        arpeggio_instruments=("guitar", "nylon_guitar", "banjo"),
        pad_instruments=("strings", "accordion"),
        answer_instruments=("flute", "fiddle", "harmonica", "guitar"),
        kits=("soft",),
        strum_s=0.011,
        crash=False,
        loose_s=0.01,
    ),
    Style(
        name="latin",
        tempo_bpm=(88, 108),
        loops=patterns.LATIN_LOOPS,
        quiet=({"kick": "9000900090009000", "rim": "0005005000050050", "shaker": "6232623262326232"},),
        full=({"kick": "9000900090009000", "snare": "0006006000060060", "shaker": "7242724272427242", "tambourine": "0000500000005000"},),
        bass=(patterns.B_TUMBAO, patterns.B_TWO),
        chords=(((0, 3, "c"), (3, 3, "c"), (6, 2, "t"), (8, 3, "c"), (11, 3, "c"), (14, 2, "t")), patterns.PUSHED),
        arpeggio=("0--1--2-3--2--1-", "0-2-1-2-0-3-1-2-"),
        bass_instruments=("round_bass", "upright_bass"),
        chord_instruments=("nylon_guitar", "piano"),
        arpeggio_instruments=("nylon_guitar", "marimba", "pluck"),
        pad_instruments=("strings", "brass"),
        answer_instruments=("flute", "brass", "marimba", "sax"),
        kits=("machine", "studio"),
        strum_s=0.008,
        loose_s=0.006,
    ),
    Style(
        name="shuffle",
        tempo_bpm=(100, 132),
        swing=(0.6, 0.667),
        loops=patterns.BLUES_LOOPS,
        quiet=({"kick": "9000000090000000", "snare": "0000800000008000", "hat": "7020703070207030"},),
        full=({"kick": "9000000090300000", "snare": patterns.BACKBEAT, "ride": "8000803080008030"},),
        bass=(patterns.B_WALK, patterns.B_POP),
        chords=(patterns.CHARLESTON, patterns.SKANK, patterns.QUARTERS),
        arpeggio=("",),
        bass_instruments=("upright_bass", "finger_bass"),
        chord_instruments=("piano", "organ", "clean_guitar"),
        arpeggio_instruments=(),
        pad_instruments=("organ", "brass"),
        answer_instruments=("harmonica", "lead_guitar", "sax", "vibraphone"),
        kits=("studio", "soft"),
        ghosts=0.03,
        loose_s=0.008,
    ),
    Style(
        name="waltz",
        metre="3/4",
        tempo_bpm=(92, 132),
        loops=patterns.FOLK_LOOPS,
        quiet=({"kick": "800000000000", "hat": "000050005000"}, {"kick": "800000000000", "shaker": "503050305030"}),
        full=(
            {"kick": "900000000000", "snare": "000060006000", "hat": "703070307030"},
            {"kick": "900000000030", "rim": "000060006000", "ride": "704070407040"},
        ),
        bass=(patterns.B_WALTZ, patterns.B_WALTZ_WALK),
        chords=(patterns.WALTZ, patterns.WALTZ_FULL, patterns.ROLLED),
        arpeggio=("0-1-2-3-2-1-", "0-2-3-1-2-3-"),
        bass_instruments=("upright_bass", "round_bass"),
        chord_instruments=("piano", "guitar", "nylon_guitar"),
        arpeggio_instruments=("piano", "guitar", "nylon_guitar"),
        pad_instruments=("strings", "accordion", "choir"),
        answer_instruments=("fiddle", "flute", "accordion", "strings"),
        kits=("soft",),
        strum_s=0.012,
        loose_s=0.011,
        crash=False,
    ),
    Style(
        name="gospel",
        metre="6/8",
        tempo_bpm=(48, 68),
        loops=patterns.GOSPEL_LOOPS,
        quiet=({"kick": "900000000000", "rim": "000000700000", "hat": "704040704040"},),
        full=(
            {"kick": "900000000090", "snare": "000000900000", "hat": "804050804050"},
            {"kick": "900030000040", "snare": "000000900000", "ride": "804050804050"},
        ),
        bass=(patterns.B_SIX, patterns.B_SIX_HELD),
        chords=(patterns.SIX_TRIPLETS, patterns.HELD_3, patterns.SIX_STRUM),
        arpeggio=("0-1-2-3-2-1-", "0-2-1-3-2-1-"),
        bass_instruments=("finger_bass", "round_bass"),
        chord_instruments=("piano", "organ"),
        arpeggio_instruments=("clean_guitar", "piano", "electric_piano"),
        pad_instruments=("organ", "choir", "strings"),
        answer_instruments=("clean_guitar", "organ", "sax", "brass"),
        kits=("studio",),
        strum_s=0.008,
        loose_s=0.01,
        ghosts=0.02,
        layback_s=0.01,
    ),
    Style(
        name="funk",
        tempo_bpm=(94, 116),
        swing=(0.5, 0.56),
        swing_unit=16,
        loops=patterns.FUNK_LOOPS,
        quiet=({"kick": "9000000900300000", "snare": "0000900100009000", "hat": "7373737373737373"},),
        full=(
            {"kick": "9003000000900300", "snare": "0000900101009001", "hat": "7373737373737370", "open": "0000000000000006"},
            {"kick": "9000003000900030", "snare": "0000900000009010", "hat": "8363836383638363", "tambourine": "0000500000005000"},
        ),
        bass=(patterns.B_FUNK, patterns.B_FUNK_ONE),
        chords=(patterns.SCRATCH, patterns.CHARLESTON, patterns.SKANK),
        arpeggio=("", "0--1--2---3--1--"),
        bass_instruments=("finger_bass", "pick_bass"),
        chord_instruments=("clean_guitar", "clavinet", "electric_piano"),
        arpeggio_instruments=("muted_guitar", "clavinet"),
        pad_instruments=("brass", "organ"),
        answer_instruments=("brass", "sax", "clean_guitar"),
        kits=("studio",),
        strum_s=0.004,
        loose_s=0.005,
        ghosts=0.08,
        staccato=0.5,
    ),
    Style(
        name="country",
        tempo_bpm=(98, 128),
        loops=patterns.COUNTRY_LOOPS,
        quiet=({"kick": "9000000090000000", "rim": "0000700000007000", "hat": "0050005000500050"},),
        full=(
            {"kick": "9000000090000000", "snare": "3232832332328323"},
            {"kick": "9000000090300000", "snare": patterns.BACKBEAT, "hat": "7040704070407040"},
        ),
        bass=(patterns.B_BOOM, patterns.B_BOOM_WALK),
        chords=(patterns.BOOM_CHICK, patterns.TRAIN_STRUM, patterns.STRUM),
        arpeggio=("0-1-2-0-1-2-0-1-", "0121032101210321"),
        bass_instruments=("finger_bass", "upright_bass"),
        chord_instruments=("guitar", "clean_guitar", "piano"),
        arpeggio_instruments=("banjo", "clean_guitar", "guitar"),
        pad_instruments=("strings", "organ", "accordion"),
        answer_instruments=("fiddle", "clean_guitar", "harmonica"),
        kits=("studio", "soft"),
        strum_s=0.009,
        loose_s=0.007,
        ghosts=0.02,
    ),
)

# General MIDI programs, 0-based, that an instrument may be.
PROGRAMS: dict[str, tuple[int, ...]] = {
    "piano": (0, 1), "electric_piano": (4, 5), "clavinet": (7,), "bell": (9, 14), "vibraphone": (11,), "marimba": (12,),
    "organ": (16, 17, 18), "accordion": (21,), "harmonica": (22,), "nylon_guitar": (24,), "guitar": (25,), "clean_guitar": (27, 26),
    "muted_guitar": (28,), "lead_guitar": (29, 30), "crunch_guitar": (29,), "banjo": (105,), "upright_bass": (32,), "finger_bass": (33,),
    "pick_bass": (34,), "round_bass": (33, 35), "synth_bass": (38, 39), "strings": (48, 49), "fiddle": (40,), "choir": (52, 53),
    "brass": (61,), "sax": (66, 65), "flute": (73,), "synth_lead": (81, 80), "synth_keys": (90, 81), "pluck": (88, 99),
    "warm_pad": (89, 95), "bright_pad": (90, 50),
}  # fmt: skip
DRUM_KEYS: dict[str, int] = {
    "kick": 36, "snare": 38, "rim": 37, "clap": 39, "hat": 42, "open": 46, "ride": 51, "crash": 49,
    "tom_high": 50, "tom_mid": 47, "tom_low": 43, "shaker": 70, "tambourine": 54,
}  # fmt: skip
