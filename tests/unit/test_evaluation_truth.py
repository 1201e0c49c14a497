"""What is known of a segment, from its frames: chords as spans, beats from phases, and other chords to ask for instead."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.dataset.format import read_latents, read_manifest, read_truth
from infra.dataset.parquet import write_table
from infra.storage.place import Place
from model.chords import NO_CHORD, QUALITIES
from model.controls import Controls
from model.dimensions import FRAME_RATE_HZ
from model.errors import ModelError
from model.network.conditions import conditions_of, frame_times_s
from tests.tiny_latents import write_latents
from training.evaluation.truth import NOTHING, Truth, a_fifth_away, beats_of_phases, composed_truths, key_number, relative, truth_of_frames

FRAMES = 400
MIDDLE_S = frame_times_s(FRAMES).numpy()
UNKNOWN = np.full(FRAMES, np.nan)
MIN7, MAJ = QUALITIES.index("min7"), QUALITIES.index("maj")


def frames(*runs: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(count, value) for value, count in runs]).astype(np.int8)


CHORDS = (
    frames((9, 100), (5, 150), (NO_CHORD, 50), (0, 100)),
    frames((MIN7, 100), (MAJ, 150), (NO_CHORD, 50), (MAJ, 100)),
    frames((0, 100), (5, 150), (NO_CHORD, 50), (4, 100)),
)


def test_runs_of_frames_become_chords_and_these_the_same_frames_again() -> None:
    truth = truth_of_frames(*CHORDS, UNKNOWN, UNKNOWN)
    assert truth.chords is not None
    assert [span.chord.name for span in truth.chords] == ["A:min7/b3", "F:maj", "N", "C:maj/3"]
    assert [span.start_s for span in truth.chords] == pytest.approx(np.array([0, 100, 250, 300]) / FRAME_RATE_HZ)
    assert truth.chords[-1].end_s == pytest.approx(FRAMES / FRAME_RATE_HZ)
    asked = Controls(chords=truth.chords)
    given = conditions_of(asked, FRAMES, styles=(), duration_s=FRAMES / FRAME_RATE_HZ).chords_BCT[0].numpy()
    assert (given[36] == 1).all(), "every frame is told, also where no chord sounds"
    assert (given[:12].argmax(axis=0)[given[:12].any(axis=0)] == CHORDS[0][CHORDS[0] >= 0]).all()
    assert not given[:36, 250:300].any()
    assert truth.beats is None
    assert truth_of_frames(None, None, None, UNKNOWN, UNKNOWN) == NOTHING


@pytest.mark.parametrize(("bpm", "length", "start_s"), [(120.0, 4, 0.31), (97.3, 3, 0.02), (240.0, 2, 0.0), (61.0, 4, 1.4)])
def test_beats_come_back_from_their_phases(bpm: float, length: int, start_s: float) -> None:
    """A grid that begins with a downbeat, as float16 as a dataset stores it."""
    number_T = (MIDDLE_S - start_s) * bpm / 60
    beat_T, bar_T = (number_T % 1).astype(np.float16), (number_T / length % 1).astype(np.float16)
    beats = beats_of_phases(beat_T, bar_T)
    first = np.ceil(-start_s * bpm / 60 - 1e-9)
    expected = np.arange(first, (FRAMES / FRAME_RATE_HZ - start_s) * bpm / 60 - 1e-9)
    assert [beat.time_s for beat in beats] == pytest.approx(start_s + expected * 60 / bpm, abs=0.003)
    assert [beat.position for beat in beats] == [int(number % length) + 1 for number in expected]


def test_beats_are_found_only_where_they_are_known() -> None:
    number_T = MIDDLE_S * 2.0
    beat_T = np.where((MIDDLE_S > 3.2) & (MIDDLE_S < 7.7), number_T % 1, np.nan)
    beats = beats_of_phases(beat_T, UNKNOWN)
    assert [beat.time_s for beat in beats] == pytest.approx(np.arange(3.5, 7.6, 0.5), abs=1e-6)
    assert {beat.position for beat in beats} == {None}
    assert beats_of_phases(UNKNOWN, UNKNOWN) == ()


def test_a_segment_that_is_cut_has_what_lies_before() -> None:
    number_T = MIDDLE_S * 2.0
    truth = truth_of_frames(*CHORDS, number_T % 1, number_T / 4 % 1).until(6.0)
    assert truth.chords is not None
    assert truth.beats_s is not None
    assert [span.end_s for span in truth.chords] == pytest.approx([100 / FRAME_RATE_HZ, 6.0])
    assert truth.beats_s == pytest.approx(np.arange(0, 6, 0.5), abs=1e-6)
    assert Controls(chords=truth.chords, beats=truth.beats or ()).within(6.0).names == ("chords", "beats")
    assert NOTHING.until(3.0) == NOTHING
    assert Truth(beats=(truth.beats or ())[:1]).beats_s is None


def test_other_chords_to_ask_for() -> None:
    spans = truth_of_frames(*CHORDS, UNKNOWN, UNKNOWN).chords
    assert spans is not None
    assert [span.chord.name for span in a_fifth_away(spans)] == ["E:min7/b3", "C:maj", "N", "G:maj/3"]
    assert [span.chord.name for span in relative(spans)] == ["C:maj", "D:min", "N", "A:min"]
    assert [span.asked for span in relative(spans)] == ["C:maj", "D:min", "N", "A:min"]
    assert [(span.start_s, span.end_s) for span in relative(spans)] == [(span.start_s, span.end_s) for span in spans]


def test_keys_by_name() -> None:
    assert [key_number(name) for name in ("C major", "A minor", "F# minor", "Bb major", "A# major")] == [0, 19, 13, 20, 20]
    for wrong in ("H major", "C", "C dorian"):
        with pytest.raises(ModelError, match="F# minor"):
            key_number(wrong)


def test_a_dataset_tells_what_was_composed_and_not_what_was_estimated(tmp_path: Path) -> None:
    data = Place(write_latents(tmp_path, songs=4, held_out=2, frames=64, styles=("rock", "waltz")))
    for song, source in (("song-000", "composed"), ("song-001", "estimated"), ("song-003", "composed")):
        row = {"song_id": song, "style": "waltz", "tempo_bpm": 90.0, "key": "F# minor", "truth_source": source}
        write_table(data / f"songs/{song}.parquet", pa.Table.from_pylist([row]))
    store = read_latents(data, "validation")
    told = composed_truths(data, store)
    known = told("song-000", 1)
    assert (known.key, known.tempo_bpm, known.style) == (13, 90.0, "waltz")
    assert known.beats_s == pytest.approx((np.arange(0, 64, 8) + 0.5) / FRAME_RATE_HZ, abs=1e-3)
    assert [beat.position for beat in known.beats or ()] == [1, 2, 3, 4, 1, 2, 3, 4]
    truth = read_truth(data, "validation", read_manifest(data))
    assert truth is not None
    row = [*zip(store.song_ids, store.segments, strict=True)].index(("song-000", 1))
    roots = np.concatenate([[span.chord.root] * round((span.end_s - span.start_s) * FRAME_RATE_HZ) for span in known.chords or ()])
    assert np.array_equal(roots, truth.frames.chord_root_RT[row])
    assert told("song-001", 0) == NOTHING
    assert told("song-003", 0) == Truth(key=13, tempo_bpm=90.0, style="waltz"), "a training song's key and tempo find it"
    silent = Place(write_latents(tmp_path / "plain", songs=2, held_out=1))
    assert composed_truths(silent, read_latents(silent, "validation"))("song-000", 0) == NOTHING
