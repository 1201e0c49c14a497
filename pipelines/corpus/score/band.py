"""The band of a song: which patterns, instruments and levels its sections get, and who plays when the singer rests."""

from dataclasses import replace

from pipelines.chance import Chance
from pipelines.corpus.score.arrange import Hit, Part, play_answers, play_arpeggio, play_bass, play_chords, play_hook, play_pad
from pipelines.corpus.score.drumming import play_drums
from pipelines.corpus.score.form import Frame
from pipelines.corpus.score.harmony import PlacedChord
from pipelines.corpus.score.lyrics import Word
from pipelines.corpus.score.melody import MelodyNote, make_motif, sing_section
from pipelines.corpus.score.patterns import COMMON_CHORDS
from pipelines.corpus.score.performance import perform
from pipelines.corpus.score.record import Note, Track
from pipelines.corpus.score.styles import PROGRAMS
from pipelines.corpus.score.variation import vary_bass, vary_groove

Hook = tuple[list[tuple[float, float, int]], tuple[Word, ...]]
"""The first phrase of the chorus: rows of (beat in phrase, beats, midi), and its words."""


def arrange(frame: Frame, chords: list[PlacedChord], melody: list[MelodyNote], hook: Hook, seed: int | str) -> tuple[Track, ...]:
    """Every part of the band; another `seed` is another band for the same song."""
    style, chance = frame.style, Chance("band", seed)
    bass_pattern, quiet_bass = (vary_bass(chance.choice(style.bass), chance) for _ in range(2))
    quiet_chords, full_chords = (
        chance.choice(style.chords if chance.happens(0.75) else COMMON_CHORDS[4 * frame.bar_beats]) for _ in range(2)
    )
    arpeggio = chance.choice(style.arpeggio)
    quiet, full = vary_groove(chance.choice(style.quiet), chance), vary_groove(chance.choice(style.full), chance)
    hits: dict[str, list[Hit]] = {name: [] for name in ("drums", "bass", "chords", "arpeggio", "pad", "answer")}
    voices = 3 if chance.happens(0.35) else 4
    low = chance.integer(50, 55)
    enter = chance.choice((0.0, 0.0, 0.5))
    for index, part in enumerate(frame.parts):
        loud = part.intensity > 0.78
        hits["drums"] += play_drums(
            part,
            full if loud else quiet,
            fill=index + 1 < len(frame.parts) and (part.bars > 1),
            crash=style.crash and loud,
            wild=part.intensity > 0.7,
            enter=enter if part.name == "intro" else 0.0,
            ghosts=style.ghosts,
            swung_eighths=frame.swing > 0.55 and style.swing_unit == 8,
            chance=chance,
        )
        if not (part.name == "intro" and enter > 0 and style.name in ("ballad", "folk")):
            hits["bass"] += play_bass(part, chords, bass_pattern if loud else quiet_bass, chance=chance, tonic=frame.tonic, mode=frame.mode)
        pattern = full_chords if loud else quiet_chords
        struck = play_chords(part, chords, pattern, low=low, high=low + 19, voices=voices, strum_s=style.strum_s, chance=chance)
        short = 0.45 if chance.happens(style.staccato) and not part.final else 1.0
        hits["chords"] += [replace(hit, beats=hit.beats * short) for hit in struck]
        if arpeggio and (loud or part.name in ("verse", "bridge", "intro")) and style.arpeggio_instruments:
            hits["arpeggio"] += play_arpeggio(part, chords, arpeggio, low=60, high=81, chance=chance)
        if part.intensity > 0.6 or part.name == "bridge":
            hits["pad"] += play_pad(part, chords, low=53, high=74)
        if part.name == "instrumental":
            hits["answer"] += _play_solo(frame, part, chords, seed)
        if part.name == "intro" or (part.name == "outro" and part.bars >= 4):
            hits["answer"] += play_hook(part, chords, hook[0], centre=72)
    hits["answer"] += play_answers(list(frame.parts), chords, melody, centre=74, chance=chance, tonic=frame.tonic, mode=frame.mode)
    return _seat(frame, hits, chance)


def _play_solo(frame: Frame, part: Part, chords: list[PlacedChord], seed: int | str) -> list[Hit]:
    """The answering instrument's own tune over the break, in phrases of two bars as a singer's, higher than a singer goes."""
    letters = ("ABACABAD"[: part.bars // 2]) if part.bars > 2 else "A"
    motifs = {
        letter: make_motif(Chance("solo", seed, letter), bars=2, metre=frame.style.metre, wide=False, slow=False, taste=letter)
        for letter in sorted(set(letters))
    }
    tune = sing_section(
        [motifs[letter] for letter in letters],
        start=part.start,
        phrase_beats=2.0 * frame.bar_beats,
        chords=chords,
        tonic=frame.tonic,
        mode=frame.mode,
        low=65,
        high=84,
        accent=frame.accent,
        seed=f"solo/{seed}",
    )
    return [Hit(note.beat, note.beats * 0.95, note.midi, 0.78) for note in tune]


def _seat(frame: Frame, hits: dict[str, list[Hit]], chance: Chance) -> tuple[Track, ...]:
    """Instruments, levels and places in the stereo picture; beat positions become seconds."""
    style = frame.style
    side = 1 if chance.happens(0.5) else -1
    # Part: instruments, level beside the vocal (dB), pan, reverb send.
    seats: dict[str, tuple[tuple[str, ...], float, float, float]] = {
        "drums": (("drums",), -2.5, 0.0, 0.08),
        "bass": (style.bass_instruments, -5.0, 0.0, 0.01),
        "chords": (style.chord_instruments, -5.5, -0.35 * side, 0.16),
        "arpeggio": (style.arpeggio_instruments, -11.0, 0.55 * side, 0.22),
        "pad": (style.pad_instruments, -12.5, 0.0, 0.3),
        "answer": (style.answer_instruments, -9.0, 0.3 * side, 0.25),
    }
    tracks = []
    for name, (instruments, level_db, pan, reverb) in seats.items():
        if not hits[name]:
            continue
        instrument = chance.choice(instruments)
        notes = []
        for hit in perform(name, instrument, hits[name], frame, chance):
            onset = max(0.0, frame.time_s(hit.beat) + hit.delay_s)
            length = max(0.04, frame.time_s(hit.beat + hit.beats) - frame.time_s(hit.beat))
            velocity = round(max(0.05, min(1.0, hit.velocity)), 4)
            notes.append(
                Note(onset_s=round(onset, 6), duration_s=round(length, 6), midi=hit.midi, velocity=velocity, slide=round(hit.slide, 2))
            )
        tracks.append(
            Track(
                name=name,
                instrument=instrument,
                program=chance.choice(PROGRAMS[instrument]) if instrument in PROGRAMS else 0,
                level_db=round(level_db + chance.spread(1.2 if name in ("drums", "bass") else 2.5), 2),
                pan=round(pan, 3),
                reverb=reverb,
                tilt_db=round(chance.spread(4.0), 2),
                notes=tuple(notes),
            )
        )
    return tuple(tracks)
