"""What musicians write becomes chords and beats, and what cannot be understood is named with its line."""

import json
import math
from dataclasses import replace

import pytest

from model.controls import Beat, Controls, phases, read_beats, read_chord, read_chords
from model.errors import ControlError, ModelError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("C", "C:maj"), ("Am", "A:min"), ("A-7", "A:min7"), ("C/E", "C:maj/3"), ("F#m7b5", "F#:hdim7"), ("A:min7/b3", "A:min7/b3"),
        ("F#m7b5/E", "F#:hdim7/b7"), ("Gsus", "G:sus4"), ("Cadd9", "C:maj(9)"), ("Ebm(maj7)", "Eb:minmaj7"), ("CΔ", "C:maj7"),
        ("Caug", "C:aug"), ("C:maj/3", "C:maj/3"), ("D:(1,4,5)", "D:sus4"), ("C:maj(*3)", "C:5"), ("Cno3", "C:5"), ("Bbb", "A:maj"),
        ("N", "N"), ("N.C.", "N"), ("C:maj9/9", "C:maj9/2"), ("E♭7", "Eb:7"), ("C6", "C:maj6"), ("Bdim7", "B:dim7"), (" Dm9 ", "D:min9"),
    ],
)  # fmt: skip
def test_a_symbol_is_understood(written: str, meant: str) -> None:
    chord, exact = read_chord(written)
    assert chord is not None
    assert (chord.name, exact) == (meant, True)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("C7b9", "C:7"), ("C7#9", "C:7"), ("Bb13", "Bb:9"), ("Cmaj7#11", "C:maj7"), ("G7sus4", "G:sus4"), ("C+7", "C:aug")],
)
def test_what_the_vocabulary_lacks_is_taken_for_the_nearest_and_said(written: str, nearest: str) -> None:
    controls = Controls(chords=read_chords(f"0 1 {written}\n1 2 Am\n2 3 {written}"))
    assert controls.chords[0].chord.name == nearest
    assert controls.replaced == (f"chord {written} is taken for {nearest}, the nearest that the model knows",)


def test_lab_and_json_say_the_same() -> None:
    lab = read_chords("# a comment\n0 1.5 Am\n\n1.5\t3 C/E\n")
    listed = read_chords(json.dumps([{"start_s": 0, "end_s": 1.5, "chord": "Am"}, {"start_s": 1.5, "end_s": 3, "chord": "C/E"}]))
    assert [replace(span, where="") for span in lab] == [replace(span, where="") for span in listed]
    assert [span.where for span in (*lab, *listed)] == ["line 2", "line 4", "item 1", "item 2"]
    assert [(span.start_s, span.end_s, span.chord.name) for span in lab] == [(0.0, 1.5, "A:min"), (1.5, 3.0, "C:maj/3")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 1 H", r"line 1: chord 'H'.*A to G"),
        ("0 1 C\n1 2 Cfoo", r"line 2: chord 'Cfoo'.*for example"),
        ("0 1 C:foo", r"line 1: chord 'C:foo'.*Harte"),
        ("0 1 C/Q", r"line 1: chord 'C/Q'.*bass"),
        ("0 1 C:maj(8)", r"degree 8"),
        ("0 2 C\n1 3 Am", r"line 2: begins at 1 s.*ends at 2 s"),
        ("2 3 C\n0 1 Am", r"line 2: begins at 0 s"),
        ("1 1 C", r"line 1: '1' to '1'"),
        ("-1 1 C", r"line 1: '-1' to '1'"),
        ("0 1,5 C", r"line 1: '0' to '1,5'"),
        ("# two\n\n0 1 C\n1 2 H", r"line 4: chord 'H'"),
        ("nan 1 C", r"line 1"),
        ("one 1 C", r"line 1"),
        ("0 1", r"line 1: '0 1'; must be start_s end_s chord"),
        ("[1", r"no JSON"),
        ("[null]", r"item 1: null; must be an object"),
        ("0 1 C:", r"line 1: chord 'C:'.*Harte"),
        ("0 1 Cadd" + "9" * 5_000, r"line 1: chord 'Cadd9+'….*longer than 40"),
        ("", r"0 lines; give 1"),
        ('[{"start_s": 0}]', r"item 1: .*must be an object with start_s, end_s, chord"),
    ],
)
def test_a_wrong_line_of_chords_is_named(text: str, said: str) -> None:
    with pytest.raises(ControlError, match=rf"^chords: .*{said}"):
        read_chords(text)


def test_chords_are_cut_at_the_vocals_end_and_may_not_lie_beyond() -> None:
    controls = Controls(chords=read_chords("0 5 C\n5 10.2 Am"))
    assert controls.within(10.0).chords[-1].end_s == 10.0
    with pytest.raises(ModelError, match=r"line 2: 5 to 10.2 s lies beyond the vocal, which ends at 9.00 s"):
        controls.within(9.0)
    last = Controls(chords=read_chords("0 5 C\n5 5.1 N"))
    assert [span.chord.name for span in last.within(5.0).chords] == ["C:maj"]


def test_a_chord_that_nobody_knows_is_the_bands_choice_and_a_windows_file_is_read() -> None:
    assert [span.chord.name for span in read_chords("\ufeff0 1 C\r\n1 2 X\r\n2 3 N\r\n")] == ["C:maj", "N"]
    assert [beat.position for beat in read_beats('\ufeff[{"time_s": 0, "position": 1}, {"time_s": 1, "position": 2}]')] == [1, 2]


def test_phases_run_from_beat_to_beat_and_from_downbeat_to_downbeat() -> None:
    beats = read_beats("0.5 3\n1 1\n1.5 2\n2.1 3\n2.6 1\n3.1 2")
    beat_T, bar_T = phases(beats, [0.2, 0.75, 1.0, 1.8, 2.6, 3.1, 3.2])
    assert beat_T[1:6] == pytest.approx([0.5, 0.0, 0.5, 0.0, 0.0])
    assert bar_T[1:6] == pytest.approx([2.5 / 3, 0.0, 1.5 / 3, 0.0, 1 / 3])
    assert all(math.isnan(value) for value in (beat_T[0], bar_T[0], beat_T[6], bar_T[6]))


def test_beats_without_a_bar_have_a_beats_phase_alone() -> None:
    beat_T, bar_T = phases(read_beats('[{"time_s": 0}, {"time_s": 1, "position": null}]'), [0.25])
    assert beat_T == [0.25]
    assert math.isnan(bar_T[0])


def test_a_tempo_is_a_grid_over_the_whole_vocal() -> None:
    grid = Controls(tempo_bpm=120, first_beat_s=1.0).grid(10.0)
    assert grid[0].time_s < 0 < 10 < grid[-1].time_s
    assert Beat(time_s=1.0, position=1) in grid
    assert Beat(time_s=0.5, position=4) in grid
    assert phases(grid, [1.25, 2.0])[1] == pytest.approx([0.125, 0.5])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 1\n1 2", "line 2: 1 s is not after"),
        ("2 1\n1 2", "line 2: 1 s is not after"),
        ("0 1\n0.01 2", "line 2: 0.01 s after"),
        ("0 1\n9 2", "line 2: 9 s after"),
        ("0 1\n0.5 3", "line 2: position 3 after 1"),
        ("0 0\n0.5 1", "line 1: position is '0'"),
        ("0 1.5\n0.5 1", "line 1: position is '1.5'"),
        ("-1 1\n0 2", "line 1: time_s is '-1'"),
        ("0 1", "1 of them"),
        ("0 nan\n1 1", "line 1: position is 'nan'"),
        ('[{"time_s": 0, "position": true}, {"time_s": 1, "position": 1}]', "item 1: position is True"),
        ('[{"time_s": 0, "position": 1}, {"time_s": 1, "position": 1e999}]', "item 2: position is inf"),
        ("x 1\n0 2", "line 1: time_s is 'x'"),
    ],
)
def test_a_wrong_line_of_beats_is_named(text: str, said: str) -> None:
    with pytest.raises(ControlError, match=rf"^beats: .*{said}"):
        read_beats(text)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tempo_bpm": 0.0}, "tempo_bpm: is 0; must lie in 30..300"),
        ({"tempo_bpm": 999.0}, "tempo_bpm: is 999"),
        ({"tempo_bpm": math.nan}, "tempo_bpm: is nan"),
        ({"first_beat_s": 1.0}, "first_beat_s: given without tempo_bpm"),
        ({"beats": read_beats("0 1\n1 2"), "first_beat_s": 1.0}, "leave it out"),
        ({"beats": read_beats("0 1\n1 2")[:1]}, "beats: .*two or more"),
        ({"chords": read_chords("0 1 C\n1 2 Am")[::-1]}, "chords: must be in order"),
        ({"tempo_bpm": 100.0, "first_beat_s": -1.0}, "first_beat_s: is -1"),
        ({"tempo_bpm": 100.0, "beats": read_beats("0 1\n1 2")}, "beats: given beside tempo_bpm"),
    ],
)
def test_a_wrong_tempo_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ControlError, match=said):
        Controls(**values)  # type: ignore[arg-type]


def test_beats_beyond_the_vocal_are_refused() -> None:
    for controls in (Controls(beats=read_beats("0 1\n1 2\n2 3")), Controls(tempo_bpm=60, first_beat_s=2.0)):
        assert controls.within(2.0) == controls
        with pytest.raises(ModelError, match="beyond the vocal, which ends at 1"):
            controls.within(1.5)
