"""From a seed to a song record: the frame, the harmony, the sung line with its words, the band."""

from dataclasses import dataclass

from pipelines.chance import Chance
from pipelines.corpus.score.band import Hook, arrange
from pipelines.corpus.score.form import METRES, Frame, make_frame
from pipelines.corpus.score.harmony import NAMES, PlacedChord, numeral
from pipelines.corpus.score.lyrics import Syllable, Word, line, title
from pipelines.corpus.score.melody import MelodyNote, Motif, make_motif, sing_section
from pipelines.corpus.score.record import Chord, Mix, Section, SongRecord, VocalNote, Voice
from pipelines.corpus.score.variation import invent_loop

DEFAULT_DURATION_S = 62.0
SUNG = ("verse", "pre-chorus", "chorus", "bridge")
TAIL_S = 2.2
# Kind of voice, lowest and highest note, tract scale, vibrato rates (Hz).
_VOICES = (
    ("baritone", 45, 62, 1.0, (4.9, 5.5)),
    ("tenor", 50, 67, 1.05, (5.2, 5.9)),
    ("alto", 55, 71, 1.13, (5.2, 5.9)),
    ("mezzo-soprano", 57, 74, 1.16, (5.3, 6.1)),
    ("soprano", 60, 77, 1.19, (5.6, 6.4)),
)


@dataclass(frozen=True, kw_only=True)
class LeadSheet:
    """A song before its band: what a singer and any band share, and the chords that the melody was written over."""

    seed: int
    frame: Frame
    chords: tuple[PlacedChord, ...]
    voice: Voice
    melody: tuple[MelodyNote, ...]
    lines: tuple[tuple[Word, ...], ...]
    hook: Hook


def write_lead_sheet(seed: int, duration_s: float = DEFAULT_DURATION_S) -> LeadSheet:
    """The lead sheet of a seed's song, about `duration_s` long."""
    frame = make_frame(seed, duration_s)
    chords = _harmonise(frame, Chance("harmony", seed))
    voice = _choose_voice(Chance("voice", seed))
    melody, lines, hook = _write_song(frame, chords, voice, seed)
    return LeadSheet(seed=seed, frame=frame, chords=tuple(chords), voice=voice, melody=tuple(melody), lines=tuple(lines), hook=hook)


def compose(seed: int, duration_s: float = DEFAULT_DURATION_S) -> SongRecord:
    """The song of a seed, about `duration_s` long. Equal arguments give equal records, in any process and order."""
    return compose_sheet(write_lead_sheet(seed, duration_s))


def compose_sheet(sheet: LeadSheet) -> SongRecord:
    """The song with the band that it was written for."""
    seed, frame, chords = sheet.seed, sheet.frame, list(sheet.chords)
    tracks = arrange(frame, chords, list(sheet.melody), sheet.hook, seed)
    beats = frame.beats_s
    return SongRecord(
        seed=seed,
        title=title(sheet.hook[1]),
        style=frame.style.name,
        key=f"{NAMES[frame.tonic]} {frame.mode}",
        tonic=frame.tonic,
        mode=frame.mode,
        tempo_bpm=frame.tempo_bpm,
        metre=frame.style.metre,
        swing=frame.swing,
        swing_unit=frame.style.swing_unit,
        duration_s=round(beats[-1] + TAIL_S, 6),
        beats_s=beats[:-1],
        downbeats_s=beats[: -1 : round(frame.bar_beats / METRES[frame.style.metre][1])],
        chords=timed_chords(frame, chords),
        sections=tuple(
            Section(
                name=part.name,
                start_s=round(frame.time_s(part.start), 6),
                end_s=round(frame.time_s(part.end), 6),
                first_bar=part.first_bar,
                bars=part.bars,
                intensity=part.intensity,
            )
            for part in frame.parts
        ),
        vocal=_perform(frame, list(sheet.melody), list(sheet.lines), Chance("singer", seed)),
        tracks=tracks,
        voice=sheet.voice,
        mix=choose_mix(frame, Chance("mix", seed)),
        drift=frame.drift,
    )


def timed_chords(frame: Frame, chords: list[PlacedChord]) -> tuple[Chord, ...]:
    """Chords of the beat grid in seconds."""
    return tuple(
        Chord(
            start_s=round(frame.time_s(chord.start), 6),
            end_s=round(frame.time_s(chord.end), 6),
            root=chord.root,
            quality=chord.quality,
            pitch_classes=chord.pitch_classes,
            label=chord.label,
        )
        for chord in chords
    )


def _choose_voice(chance: Chance) -> Voice:
    kind, low, high, tract, vibrato = chance.choice(_VOICES)
    shift = chance.integer(-1, 1)
    return Voice(
        kind=kind,
        low_midi=low + shift,
        high_midi=high + shift,
        tract=round(tract * chance.uniform(0.94, 1.06), 4),
        tilt=round(chance.uniform(0.68, 1.1), 3),
        breathiness_db=round(chance.uniform(-46, -34), 2),
        vibrato_hz=round(chance.uniform(*vibrato), 3),
        vibrato_cents=round(chance.uniform(6, 38), 1),
        glide_s=round(chance.uniform(0.04, 0.1), 4),
        scoop_semitones=round(chance.uniform(0.3, 1.8), 3),
    )


def choose_mix(frame: Frame, chance: Chance) -> Mix:
    return Mix(
        loudness_lufs=round(chance.uniform(-17, -12), 2),
        peak_dbfs=-1.0,
        side_to_mid_db=round(-8.5 + chance.uniform(-0.4, 0.4), 2),
        room_s=round(chance.uniform(0.9, 1.7) * (1.25 if frame.tempo_bpm < 90 else 1.0), 3),
        vocal_room_s=round(chance.uniform(1.0, 1.9), 3),
        vocal_reverb_db=round(chance.uniform(-24, -17), 2),
        vocal_echo_db=round(chance.uniform(-34, -24), 2),
        pump=frame.style.pump,
        kit=chance.choice(frame.style.kits),
        kit_tune=round(2 ** (chance.integer(-3, 3) / 12), 4),
        kit_damp=round(0.8 + 0.15 * chance.integer(0, 3), 2),
    )


def _harmonise(frame: Frame, chance: Chance) -> list[PlacedChord]:
    """One chord a bar from loops of four; sections of a name share their loop, the last bar of the song rests on the tonic."""
    loops = [*frame.style.loops[frame.mode], *(invent_loop(frame.mode, chance) for _ in range(2))]
    first = chance.choice(loops)
    chorus = chance.choice([loop for loop in loops if loop != first])
    bridge = chance.choice([loop for loop in loops if loop not in (first, chorus)])
    by_name = {"verse": first, "intro": chance.choice((first, chorus)), "chorus": chorus, "outro": chorus, "bridge": bridge}
    by_name |= {"pre-chorus": bridge, "instrumental": chance.choice((first, chorus))}
    placed: list[PlacedChord] = []
    for index, part in enumerate(frame.parts):
        numerals = by_name[part.name].split()
        if part.name == "pre-chorus":
            numerals = numerals[: max(part.bars - 1, 1)] + (["V"] if part.bars > 1 else [])
        for bar in range(part.bars):
            symbol = numerals[bar % len(numerals)]
            if part.final and bar == part.bars - 1:
                symbol = "I" if frame.mode == "major" else "i"
            root, quality = numeral(symbol, frame.tonic)
            start = part.start + bar * part.bar_beats
            end = start + part.bar_beats
            turn = (
                frame.bar_beats == 4 and index + 1 < len(frame.parts) and bar == part.bars - 1 and frame.parts[index + 1].name == "chorus"
            )
            if turn and quality == "maj" and root == (frame.tonic + 7) % 12:
                placed += [PlacedChord(start, end - 2, root, "sus4"), PlacedChord(end - 2, end, root, "maj")]
            elif placed and placed[-1].root == root and placed[-1].quality == quality:
                placed[-1] = PlacedChord(placed[-1].start, end, root, quality)
            else:
                placed.append(PlacedChord(start, end, root, quality))
    return placed


def _write_song(frame: Frame, chords: list[PlacedChord], voice: Voice, seed: int) -> tuple[list[MelodyNote], list[tuple[Word, ...]], Hook]:
    """Melody and words: verses share their tune and change their words, choruses share both; phrases follow the plan A B A C."""
    slow, fast = frame.tempo_bpm < 84, frame.tempo_bpm > 118
    melody: list[MelodyNote] = []
    lines: list[tuple[Word, ...]] = []
    hook: Hook | None = None
    span = voice.high_midi - voice.low_midi
    registers = {"verse": (0, span - 4), "pre-chorus": (2, span - 2), "chorus": (4, span), "bridge": (2, span)}
    words: dict[tuple[str, str, int], tuple[Word, ...]] = {}
    heard: dict[str, int] = {}
    for part in frame.parts:
        if part.name not in SUNG:
            continue
        heard[part.name] = heard.get(part.name, 0) + 1
        bars = 2 if part.bars % 2 == 0 else 1
        count = part.bars // bars
        plan = {1: "A", 2: "AB", 4: "ABAC"}[count]
        motifs: dict[str, Motif] = {}
        for letter in sorted(set(plan)):
            name = f"{part.name}/{letter}"
            wide = (part.name == "chorus" and letter != "B") or (fast and letter == "C")
            motifs[letter] = make_motif(Chance("motif", seed, name), bars=bars, metre=frame.style.metre, wide=wide, slow=slow, taste=name)
        low, high = registers[part.name]
        sung = sing_section(
            [motifs[letter] for letter in plan],
            start=part.start,
            phrase_beats=float(bars * frame.bar_beats),
            chords=chords,
            tonic=frame.tonic,
            mode=frame.mode,
            low=voice.low_midi + low,
            high=voice.low_midi + high,
            accent=frame.accent,
            seed=f"pitches/{seed}",
        )
        melody += sung
        for index, letter in enumerate(plan):
            size = len(motifs[letter].rhythm)
            verse = heard["verse"] if part.name == "verse" else 0
            spoken = (part.name, letter if part.name == "chorus" else f"{letter}{index}", verse)
            if spoken not in words:
                words[spoken] = line(size, Chance("words", seed, *spoken))
            lines.append(words[spoken])
        if part.name == "chorus" and (hook is None or heard["chorus"] == 1):
            size = len(motifs["A"].rhythm)
            hook = ([(note.beat - part.start, note.beats, note.midi) for note in sung[:size]], words["chorus", "A", 0])
    if hook is None:
        size = len(lines[0])
        hook = ([(note.beat - melody[0].beat, note.beats, note.midi) for note in melody[:size]], lines[0])
    return melody, lines, hook


def _perform(frame: Frame, melody: list[MelodyNote], lines: list[tuple[Word, ...]], chance: Chance) -> tuple[VocalNote, ...]:
    """Score to singing: a little before or behind the beat, phrases legato, rests kept for breath, a syllable to each note."""
    syllables: list[Syllable] = [syllable for words in lines for word in words for syllable in word.syllables]
    notes: list[VocalNote] = []
    phrase = 0
    for index, (note, syllable) in enumerate(zip(melody, syllables, strict=True)):
        score = frame.time_s(note.beat)
        onset = score + frame.style.layback_s + chance.spread(0.012)
        end = frame.time_s(note.beat + note.beats)
        following = melody[index + 1] if index + 1 < len(melody) else None
        if note.last:
            end -= chance.uniform(0.02, 0.08)
        elif following is not None and following.beat - (note.beat + note.beats) < 0.01:
            end -= 0.01
        intensity = next(part.intensity for part in frame.parts if part.start <= note.beat < part.end)
        accent = 0.06 if note.beat % frame.accent == 0 else 0.0
        notes.append(
            VocalNote(
                score_onset_s=round(score, 6),
                onset_s=round(onset, 6),
                offset_s=round(max(end, onset + 0.09), 6),
                midi=note.midi,
                velocity=round(0.68 + 0.24 * intensity + accent + chance.spread(0.04), 4),
                syllable=syllable.text,
                phones=syllable.phones,
                phrase=phrase,
            )
        )
        phrase += note.last
    return tuple(notes)
