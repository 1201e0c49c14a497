"""The songs as written: variety over seeds, truth that agrees with itself, rules of melody and harmony."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from model.dimensions import SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from pipelines.chance import Chance, noise
from pipelines.corpus.score.compose import compose
from pipelines.corpus.score.form import swung
from pipelines.corpus.score.harmony import PlacedChord, numeral, voice_lead
from pipelines.corpus.score.lyrics import WORDS, line
from pipelines.corpus.score.record import Rendering, SongRecord, read_song_json, song_json
from pipelines.corpus.score.variation import invent_fill, invent_loop, vary_bass, vary_groove
from pipelines.corpus.sound.phones import CONSONANTS, DIPHTHONGS, VOWELS

SEEDS = range(48)
PINNED_UNIFORM = 0.3319052505526885
PINNED_NOISE = [0.2915821597838075, 0.46894275045187417, 0.5118930385594898]


RENDERING = Rendering(
    renderer="numpy", loudness_lufs=-14.0, peak_dbfs=-1.0, side_to_mid_db=-8.5, vocal_gain_db=-18.0, accompaniment_gain_db=-17.0,
    samples=10, f0_rate_hz=200, sha256={"vocals.wav": "0"}, banks={"drums": "numpy"},
)  # fmt: skip
BEATS = {"4/4": 4, "3/4": 3, "6/8": 2}


def bar_s(record: SongRecord) -> float:
    return BEATS[record.metre] * 60 / record.tempo_bpm


@pytest.fixture(scope="module")
def records() -> list[SongRecord]:
    return [compose(seed) for seed in SEEDS]


def test_seeds_cover_styles_keys_modes_tempi_and_voices(records: list[SongRecord]) -> None:
    assert len({record.style for record in records[:12]}) == 12
    assert {record.tonic for record in records[:12]} == set(range(12))
    assert {record.mode for record in records[:5]} == {"major", "minor"}
    tempi = [record.tempo_bpm for record in records]
    assert 48 <= min(tempi) < 56
    assert 132 < max(tempi) <= 138
    assert len({record.voice.kind for record in records}) == 5
    assert len({tuple(chord.label for chord in record.chords) for record in records}) >= 44
    assert any(record.swing > 0.6 for record in records)
    assert len({track.instrument for record in records for track in record.tracks}) >= 24
    assert {record.metre for record in records[:12]} == {"4/4", "3/4", "6/8"}
    for style in {record.style for record in records}:
        assert len({record.tonic for record in records if record.style == style}) == 4, "no style is bound to its keys"
        assert {record.mode for record in records if record.style == style} == {"major", "minor"}


def test_songs_are_long_enough_for_a_segment_and_sung_from_early_on(records: list[SongRecord]) -> None:
    for record in records:
        assert SEGMENT_SAMPLES / SAMPLE_RATE_HZ < record.duration_s < 80
        assert bar_s(record) < record.vocal[0].onset_s < 8.5 * bar_s(record)
        assert sum(note.offset_s - note.onset_s for note in record.vocal) > 0.28 * record.duration_s
    for record in [compose(seed, 44) for seed in SEEDS]:
        assert sum(note.offset_s - note.onset_s for note in record.vocal) > 0.45 * record.duration_s, "short songs are sung from early on"


def test_from_a_minute_on_the_voice_rests_and_the_band_plays(records: list[SongRecord]) -> None:
    for record in [*records, *(compose(seed, 150) for seed in range(12))]:
        names = [section.name for section in record.sections]
        assert names[0] == "intro"
        assert names[-1] == "outro"
        assert "instrumental" in names[1:-1]
        for section in record.sections:
            inside = [note for note in record.vocal if section.start_s <= note.score_onset_s < section.end_s]
            played = [note for track in record.tracks for note in track.notes if section.start_s <= note.onset_s < section.end_s]
            assert bool(inside) == (section.name not in ("intro", "instrumental", "outro"))
            if not inside:
                assert 4 <= section.bars <= 16
            assert len(played) > 4 * section.bars
        assert max(section.intensity for section in record.sections) - min(section.intensity for section in record.sections) > 0.3


def test_beats_follow_a_tempo_that_drifts_in_a_third_of_the_songs(records: list[SongRecord]) -> None:
    free = [record for record in records if record.drift]
    assert len(free) == pytest.approx(len(records) / 3, abs=4)
    for record in records:
        paces = 1 / np.diff(record.downbeats_s)
        wander = float(np.std(paces) / np.mean(paces))
        assert (wander > 0.003) == bool(record.drift), record.seed
        for section in record.sections:
            assert section.start_s in record.downbeats_s


def test_truth_agrees_with_itself(records: list[SongRecord]) -> None:
    for record in records:
        beats = np.array(record.beats_s)
        assert beats[0] > 0
        assert np.all(np.diff(beats) > 0)
        assert np.mean(np.diff(beats)) == pytest.approx(60 / record.tempo_bpm, rel=0.02)
        assert record.downbeats_s == record.beats_s[:: BEATS[record.metre]]
        assert bar_s(record) == pytest.approx(np.mean(np.diff(record.downbeats_s)), rel=0.03)
        for before, after in pairwise(record.chords):
            assert before.end_s == after.start_s
        for before, after in pairwise(record.sections):
            assert before.end_s == after.start_s
        assert record.chords[0].start_s == record.sections[0].start_s == beats[0]
        assert all(chord.root in chord.pitch_classes for chord in record.chords)
        assert record.chords[-1].root == record.tonic


def test_melody_stays_in_the_voice_on_the_chords_and_never_overlaps(records: list[SongRecord]) -> None:
    for record in records:
        assert all(record.voice.low_midi <= note.midi <= record.voice.high_midi for note in record.vocal)
        for before, after in pairwise(record.vocal):
            assert before.offset_s <= after.onset_s + 0.03
            assert abs(after.midi - before.midi) <= (9 if before.phrase == after.phrase else 16)
        long_notes = [note for note in record.vocal if note.offset_s - note.onset_s > 0.9 * 60 / record.tempo_bpm]
        on_chord = [
            note.midi % 12 in chord.pitch_classes
            for note in long_notes
            for chord in record.chords
            if chord.start_s <= note.score_onset_s + 0.3 * 60 / record.tempo_bpm < chord.end_s
        ]
        assert np.mean(on_chord) > 0.85


def test_bass_plays_the_roots_on_the_downbeats(records: list[SongRecord]) -> None:
    for record in records:
        bass = next(track for track in record.tracks if track.name == "bass")
        onsets = np.array([note.onset_s for note in bass.notes])
        hits = []
        for chord in record.chords:
            nearest = int(np.argmin(np.abs(onsets - chord.start_s)))
            if chord.start_s in record.downbeats_s and abs(onsets[nearest] - chord.start_s) < 0.03:
                hits.append(bass.notes[nearest].midi % 12 == chord.root)
        assert np.mean(hits) > 0.95


def test_equal_seeds_give_equal_records_and_others_differ() -> None:
    assert compose(7).sha256() == compose(7).sha256()
    assert compose(7).sha256() != compose(19).sha256()
    assert compose(7, 30).duration_s < compose(7, 120).duration_s


def test_song_json_reads_back(records: list[SongRecord]) -> None:
    record = records[3]
    read, read_rendering, stored = read_song_json(song_json(record, RENDERING))
    assert read == record
    assert read_rendering == RENDERING
    assert stored == record.sha256() == read.sha256()


def test_a_song_of_an_earlier_generator_reads_too(records: list[SongRecord]) -> None:
    record = dataclasses.replace(records[4], drift=0.0, generator_version="2")
    tracks = tuple(
        dataclasses.replace(track, notes=tuple(dataclasses.replace(note, slide=0.0) for note in track.notes)) for track in record.tracks
    )
    record = dataclasses.replace(record, tracks=tracks)
    old = json.loads(song_json(record, RENDERING))
    del old["drift"], old["rendering"]["banks"]
    assert all(len(note) == 4 for track in old["tracks"] for note in track["notes"])
    read, rendering, _ = read_song_json(json.dumps(old))
    assert read == record
    assert rendering.banks == {}


def test_every_syllable_can_be_sung() -> None:
    for words in WORDS.values():
        for word in words:
            assert "".join(s.text.removesuffix("-") for s in word.syllables) == word.text
            for syllable in word.syllables:
                vowels = [phone for phone in syllable.phones if phone in VOWELS or phone in DIPHTHONGS]
                assert len(vowels) == 1, word
                assert all(phone in CONSONANTS or phone in vowels for phone in syllable.phones), word


@pytest.mark.parametrize("syllables", range(1, 17))
def test_a_line_has_its_syllables(syllables: int) -> None:
    words = line(syllables, Chance("test", syllables))
    assert sum(len(word.syllables) for word in words) == syllables


def test_numerals_are_read_in_their_key() -> None:
    assert numeral("vi", 0) == (9, "min")
    assert numeral("bVII", 2) == (0, "maj")
    assert numeral("IV7", 7) == (0, "maj7")
    assert numeral("V7", 0) == (7, "7")
    assert numeral("ii7", 0) == (2, "min7")
    assert numeral("Vsus4", 0) == (7, "sus4")
    assert numeral("IVd7", 0) == (5, "7")
    assert numeral("bIIId7", 0) == (3, "7")


def test_voice_leading_moves_little_and_keeps_the_chord() -> None:
    first = voice_lead(PlacedChord(0, 4, 0, "maj"), None, low=52, high=72, voices=4)
    second = voice_lead(PlacedChord(4, 8, 9, "min"), first, low=52, high=72, voices=4)
    assert {midi % 12 for midi in first} == {0, 4, 7}
    assert {midi % 12 for midi in second} == {9, 0, 4}
    assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) <= 5


def test_swing_moves_the_off_beat_only() -> None:
    assert [swung(x, 0.5, 8) for x in (0, 0.25, 0.5, 0.75)] == [0, 0.25, 0.5, 0.75]
    assert swung(0.0, 0.66, 8) == 0.0
    assert swung(0.5, 0.66, 8) == pytest.approx(0.66)
    assert [swung(x, 0.6, 16) for x in (0, 0.5)] == [0, 0.5]
    assert swung(0.25, 0.6, 16) == pytest.approx(0.3)


def test_draws_are_pinned() -> None:
    """These values are what the libraries promise to keep; another generator version may change them, nothing else may."""
    assert Chance("a", 1).uniform() == pytest.approx(PINNED_UNIFORM, abs=1e-15)
    assert noise(3, "a", 1) == pytest.approx(np.array(PINNED_NOISE), abs=1e-15)


def test_patterns_vary_within_their_style() -> None:
    groove = {"kick": "9000000080300000", "snare": "0000900000009000", "hat": "7020702070207020"}
    varied = [vary_groove(groove, Chance("groove", seed)) for seed in range(200)]
    assert len({repr(sorted(one.items())) for one in varied}) > 40
    for one in varied:
        assert all(len(line) == 16 and line.isdigit() for line in one.values())
        assert one["kick"][0] == "9", "the bar's first beat stays"
        assert one["snare"][4] == one["snare"][12] == "9", "the backbeat stays"
        assert len(one) == 3
    bass = ((0, 3, "R"), (3, 3, "R"), (6, 2, "R"), (8, 4, "R"), (12, 2, "F"), (14, 2, "A"))
    lines = [vary_bass(bass, Chance("bass", seed)) for seed in range(200)]
    assert len(set(lines)) > 20
    assert all(line[0] == bass[0] and set(line) <= {(s, n, w) for s, n, _ in bass for w in "RFOA"} for line in lines)


def test_fills_stay_within_their_bar_and_grow() -> None:
    fills = [invent_fill(Chance("fill", seed)) for seed in range(100)]
    assert len(set(fills)) > 30
    for fill in fills:
        steps = [step for step, _, _ in fill]
        assert steps == sorted(set(steps))
        assert 8 <= steps[0] <= steps[-1] <= 15
        assert all(1 <= strength <= 9 for _, _, strength in fill)


@pytest.mark.parametrize("mode", ["major", "minor"])
def test_invented_loops_never_stand_still(mode: str) -> None:
    loops = [invent_loop(mode, Chance("loop", seed)).split() for seed in range(100)]
    assert len({tuple(loop) for loop in loops}) > 40
    for loop in loops:
        assert len(loop) == 4
        assert all(one != other for one, other in zip(loop, [*loop[1:], loop[0]], strict=True))
        assert all(numeral(symbol, 0)[1] in {"maj", "min", "dim"} for symbol in loop)
