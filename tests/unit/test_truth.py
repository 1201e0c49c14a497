"""What the band plays, beside the latents: by frame and by song, as composed and as heard, through a dataset's whole life."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import mir_eval
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_dataset_life import CODEC, commit_all, encoded
from test_dataset_life import write as write_songs

from infra.dataset.format import MANIFEST, read_latents, read_manifest
from infra.dataset.truth import CONFIDENCES, FRAME_FIELDS, SONG_FIELDS, read_frames
from infra.errors import UserError
from infra.storage.place import Place
from model.chords import NO_CHORD, QUALITIES, pitch_classes, quality_chroma, quality_number, spelling
from model.dimensions import FRAME_RATE_HZ, SAMPLE_RATE_HZ, SEGMENT_FRAMES
from model.errors import ModelError
from pipelines.corpus import compose
from pipelines.corpus.score.record import as_json
from pipelines.dataset import write as dataset
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.compact import CompactConfig, compact
from pipelines.dataset.contents import read_stored
from pipelines.dataset.takedown import TakedownConfig, takedown
from pipelines.report.page import DatasetReportConfig, dataset_report
from pipelines.song import Beat, ChordSpan, FoundSong, SongTruth
from pipelines.stages.truth import composed_truth, estimated_truth, frames_of, parsed_truth, truth_at_speed, truth_of
from tests.dataset_parts import finished
from tests.unit.listen_songs import compose as play

SEED = 1002  # latin, its tempo drifts


@pytest.fixture(scope="module")
def truth() -> SongTruth:
    return parsed_truth(as_json(compose(SEED)))


def test_every_chord_has_the_spelling_and_the_notes_that_harte_gives_it() -> None:
    for quality, name in enumerate(QUALITIES):
        for root, bass in ((0, None), (9, 9), (6, (6 + pitch_classes(0, quality)[1]) % 12)):
            root_pc, bitmap_12, bass_pc = mir_eval.chord.encode(spelling(root, quality, bass), reduce_extended_chords=False)
            extended = {2} if "9" in name else set()  # mir_eval leaves what lies beyond the octave out of its bitmap
            assert root_pc == root, name
            assert set(np.flatnonzero(bitmap_12)) - extended == set(np.flatnonzero(quality_chroma()[quality])) - extended, name
            assert (root + bass_pc) % 12 == (root if bass is None else bass), name
    assert spelling(NO_CHORD, NO_CHORD) == "N"
    assert pitch_classes(NO_CHORD, NO_CHORD) == ()
    assert quality_number("add9") == quality_number("maj(9)")
    with pytest.raises(ModelError, match="not one of maj, min"):
        quality_number("quartal")


@pytest.mark.parametrize("start_s", [0.0, SEGMENT_FRAMES / FRAME_RATE_HZ])
def test_frames_are_what_the_composition_says_at_their_times(truth: SongTruth, start_s: float) -> None:
    record, valid = compose(SEED), 400
    frames = frames_of(truth, [start_s], [valid], SEGMENT_FRAMES)
    bars = sorted(record.downbeats_s)
    for frame in range(valid):
        at_s = start_s + (frame + 0.5) / FRAME_RATE_HZ
        chord = next((chord for chord in record.chords if chord.start_s <= at_s < chord.end_s), None)
        found = (frames.chord_root_RT[0, frame], frames.chord_quality_RT[0, frame], frames.chord_bass_RT[0, frame])
        wanted = (NO_CHORD,) * 3 if chord is None else (chord.root, quality_number(chord.quality), chord.root)
        assert found == wanted, at_s
        after = np.searchsorted(record.beats_s, at_s, side="right")
        if 0 < after < len(record.beats_s):
            before_s, after_s = record.beats_s[after - 1], record.beats_s[after]
            assert frames.beat_phase_RT[0, frame] == pytest.approx((at_s - before_s) / (after_s - before_s), abs=1e-3)
            if bars[0] <= at_s < bars[-1]:
                beat = after - 1 - record.beats_s.index(max(bar for bar in bars if bar <= before_s))
                assert frames.bar_phase_RT[0, frame] == pytest.approx((beat + float(frames.beat_phase_RT[0, frame])) / 4, abs=1e-3)
    assert (frames.chord_root_RT[0, valid:] == NO_CHORD).all()
    assert np.isnan(frames.beat_phase_RT[0, valid:]).all()
    assert np.nanmax(frames.beat_phase_RT) < 1
    assert np.nanmax(frames.bar_phase_RT) < 1


def test_a_take_at_another_speed_is_transposed_or_without_chords(truth: SongTruth) -> None:
    faster = truth_at_speed(truth, 2 ** (1 / 12))
    assert faster.chords is not None
    assert truth.chords is not None
    assert [chord.root for chord in faster.chords] == [(chord.root + 1) % 12 for chord in truth.chords]
    assert faster.beats[5].time_s == pytest.approx(truth.beats[5].time_s / 2 ** (1 / 12))
    assert faster.tempo_bpm == pytest.approx(truth.tempo_bpm * 2 ** (1 / 12))
    detuned = truth_at_speed(truth, 1.03)
    assert (detuned.chords, detuned.key) == (None, None)
    frames = frames_of(detuned, [0.0], [400], SEGMENT_FRAMES)
    assert not frames.chords_known_R.any()
    assert np.isfinite(frames.beat_phase_RT[0, 20:300]).all()


def test_a_band_is_heard() -> None:
    song = play(3)
    heard = estimated_truth(np.stack([song.band_N, song.band_N]))
    frames = frames_of(heard, [0.0], [round(len(song.band_N) / 2048)], SEGMENT_FRAMES)
    times_T = (np.arange(SEGMENT_FRAMES) + 0.5) / FRAME_RATE_HZ
    for start_s, end_s, label in song.chords[1:-1]:
        inside_T = (times_T > start_s + 0.2) & (times_T < end_s - 0.2)
        assert (frames.chord_root_RT[0, inside_T] == label // 2).mean() > 0.8
    assert heard.source == "estimated"
    assert mir_eval.beat.f_measure(song.beats_s, np.array([beat.time_s for beat in heard.beats])) > 0.9
    assert all(0 <= getattr(heard, name) <= 1 for name in (*CONFIDENCES, "tempo_confidence", "key_confidence"))
    assert (heard.style, heard.sections) == (None, ())


@pytest.mark.parametrize("samples", [0, 1, 3_000, 2 * SAMPLE_RATE_HZ])
def test_silence_and_scraps_are_heard_as_nothing(samples: int) -> None:
    heard = estimated_truth(np.zeros((2, samples), np.float32))
    assert (heard.beats, heard.chords, heard.key, heard.tempo_bpm, heard.metre) == ((), (), None, None, None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda record: record["chords"][0].update(quality="quartal"), "quartal"),
        (lambda record: record["chords"][0].update(root=12), "0 to 11"),
        (lambda record: record["chords"][0].pop("end_s"), "end_s"),
        (lambda record: record["beats_s"].reverse(), "ascending"),
        (lambda record: record["sections"].reverse(), "not in order"),
        (lambda record: record.update(tempo_bpm="fast"), "fast"),
        (lambda record: record.update(chords=7), "TypeError"),
    ],
)
def test_what_is_wrong_in_a_record_is_named_and_the_band_is_heard_instead(damage: Callable[[dict], object], words: str) -> None:
    record = json.loads(json.dumps(as_json(compose(SEED, 8.0))))
    damage(record)
    composed, fault = composed_truth(json.dumps(record).encode())
    assert composed is None
    assert words in fault
    song = play(3, bars=3)
    found, said = truth_of(composed, fault, np.stack([song.band_N, song.band_N]), "estimate", "a song")
    assert found is not None
    assert (found.source, said) == ("estimated", fault)
    assert truth_of(composed, fault, np.zeros((2, 9), np.float32), "composed", "a song") == (None, fault)
    assert truth_of(composed, fault, np.zeros((2, 9), np.float32), "none", "a song") == (None, "")


def test_a_record_without_truth_is_no_fault() -> None:
    assert composed_truth(b'{"title": "a title"}') == (None, "")


def test_listening_that_fails_costs_the_truth_alone(caplog: pytest.LogCaptureFixture) -> None:
    found, why = truth_of(None, "", np.zeros((2, 3, 4), np.float32), "estimate", "a song")
    assert found is None
    assert why.startswith("listening failed (")
    assert "a song: listening to the band failed" in caplog.text


def written(out: Place, seeds: range, truth: SongTruth) -> Place:
    """Songs with truth, and one without."""
    for seed in seeds:
        song = replace(encoded(seed), truth=replace(truth, style=f"style {seed}"))
        dataset.write_song(out, FoundSong(url=f"/songs/{seed}", source="demo", version="1"), song, "validation" if seed == 0 else "train")
    write_songs(out, 99)
    commit_all(out)
    return out


def test_truth_goes_through_a_datasets_life(tmp_path: Path, truth: SongTruth) -> None:
    out = written(Place(str(tmp_path / "latents")), range(4), truth)
    manifest = read_manifest(out)
    assert manifest.chord_qualities == QUALITIES
    assert check(CheckConfig(data=str(out))).faults == ()
    glob = f"read_parquet('{out}/latents/**/*.parquet', hive_partitioning=true)"
    query = f"select song_id, segment, chord_root, chord_quality, beat_phase, truth_source, bar_confidence from {glob} order by all"
    before = duckdb.sql(query).fetchall()

    def unchanged(kept: list[tuple[object, ...]]) -> bool:
        return repr(duckdb.sql(query).fetchall()) == repr(kept)  # NaN is not equal to itself

    wanted = frames_of(truth, [0.0, 47.5], [SEGMENT_FRAMES, 200], SEGMENT_FRAMES)
    assert before[0][2] == wanted.chord_root_RT[0].tolist()
    assert before[0][3] == wanted.chord_quality_RT[0].tolist()
    np.testing.assert_array_equal(np.array(before[1][4], np.float16), wanted.beat_phase_RT[1])
    assert before[0][5:] == ("composed", 1.0)
    assert before[-1][2:] == (None,) * 5
    frame = pd.read_parquet(out.path / "latents").sort_values(["song_id", "segment"])
    np.testing.assert_array_equal(frame.iloc[0]["chord_root"], wanted.chord_root_RT[0])
    songs = duckdb.sql(
        f"select style, tempo_bpm, key, metre, sections[1].label, truth_source from read_parquet('{out}/songs/*') order by all"
    )
    record = compose(SEED)
    assert songs.fetchall()[0] == ("style 0", record.tempo_bpm, record.key, record.metre, record.sections[0].name, "composed")
    compact(CompactConfig(data=str(out)))
    assert unchanged(before)
    assert check(CheckConfig(data=str(out))).faults == ()
    assert read_manifest(out).digest == manifest.digest
    takedown(TakedownConfig(data=str(out), song=f"{3:016x}"))
    assert unchanged([row for row in before if row[0] != f"{3:016x}"])
    assert check(CheckConfig(data=str(out))).faults == ()
    assert "style 2" in {row["style"] for row in read_stored(out).songs.values()}


def test_the_report_shows_what_the_bands_play(tmp_path: Path, truth: SongTruth) -> None:
    out = written(Place(str(tmp_path / "latents")), range(4), truth)
    report = dataset_report(DatasetReportConfig(data=str(out), out=str(tmp_path / "page"), pairs=0)).report
    assert {(each.name, each.songs) for each in report.truths} == {("composed", 4), ("not given", 1)}
    assert {each.name for each in report.styles} == {"style 0", "style 1", "style 2", "style 3", "not given"}
    assert report.tempi is not None
    assert report.tempi.values == 4
    assert 0.3 < report.sample.chord_share < 0.9
    page = (tmp_path / "page/index.html").read_text()
    assert "What the bands play" in page
    assert "style 3" in page


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("chord_root", lambda values: [12, *values[1:]], "chord_root is not a pitch class"),
        ("chord_quality", lambda values: [len(QUALITIES), *values[1:]], "chord_quality is none"),
        ("chord_bass", lambda values: [(values[300] + 1) % 12] * len(values), "its truth is not what was written"),
        ("beat_phase", lambda values: [1.5, *values[1:]], "beat_phase is not 0 up to 1"),
        ("bar_phase", lambda values: values[:-1], "bar_phase has lists of"),
        ("truth_source", lambda _: "estimated", "truth_source is"),
        ("bar_confidence", lambda _: 1.5, "bar_confidence is not 0 to 1"),
    ],
)
def test_a_check_finds_a_damaged_column(
    tmp_path: Path, truth: SongTruth, column: str, change: Callable[[object], object], words: str
) -> None:
    out = written(Place(str(tmp_path / "latents")), range(1), truth)
    path = out.path / f"latents/split=validation/{0:016x}.parquet"
    if not path.exists():
        path = out.path / f"latents/split=train/{0:016x}.parquet"
    table = pq.ParquetFile(path).read()
    values = table[column].to_pylist()
    values[0] = change(values[0])
    index = table.schema.get_field_index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(index, field, [dataset._array(values, field)]), path)
    (fault,) = check(CheckConfig(data=str(out))).faults
    assert words in fault


def test_a_check_finds_a_song_whose_style_was_changed(tmp_path: Path, truth: SongTruth) -> None:
    out = written(Place(str(tmp_path / "latents")), range(2), truth)
    stored = read_stored(out)
    dataset.write_row(out, {**stored.whole_row(out, f"{1:016x}"), "style": "polka"})
    (fault,) = check(CheckConfig(data=str(out))).faults
    assert "its truth is not what was written" in fault


def older(out: Place) -> Place:
    """The dataset as it was written before there were these columns."""
    for folder, fields in (("latents", FRAME_FIELDS), ("songs", SONG_FIELDS)):
        for place in (out / folder).list(suffix=".parquet"):
            table = pq.ParquetFile(place.path).read().drop_columns([field.name for field in fields])
            pq.write_table(table, place.path, compression="zstd", use_dictionary=False)
    manifest = json.loads((out / MANIFEST).read_bytes())
    for name in ("chord_qualities", "truth_sha256"):
        assert manifest.pop(name) is None
    (out / MANIFEST).write_bytes(json.dumps(manifest).encode())
    return out


def test_an_older_dataset_stays_readable_by_everything_and_grows(tmp_path: Path, truth: SongTruth) -> None:
    out = Place(str(tmp_path / "latents"))
    write_songs(out, *range(5))
    commit_all(out)
    digest, rows = read_manifest(out).digest, read_latents(out, "train").song_ids
    older(out)
    assert (read_manifest(out).digest, read_latents(out, "train").song_ids) == (digest, rows)
    assert check(CheckConfig(data=str(out))).faults == ()
    report = dataset_report(DatasetReportConfig(data=str(out), out=str(tmp_path / "page"), pairs=0)).report
    assert [each.name for each in report.truths] == ["not given"]
    compact(CompactConfig(data=str(out)))
    assert check(CheckConfig(data=str(out))).faults == ()
    assert read_manifest(out).digest == digest
    table = pq.ParquetFile((out / "latents/split=train").list()[0].path).read()
    frames = read_frames(table, SEGMENT_FRAMES)
    assert not frames.known_R.any()
    song = replace(encoded(50), truth=truth)
    dataset.write_song(out, FoundSong(url="/songs/50", source="demo", version="1"), song, "train")
    finished(out, read_stored(out), CODEC)
    assert check(CheckConfig(data=str(out))).faults == ()
    assert read_manifest(out).truth_sha256 is not None
    assert read_manifest(out).digest != digest
    takedown(TakedownConfig(data=str(out), song=f"{50:016x}"))
    assert read_manifest(out).digest == digest


def test_lists_of_another_length_are_named() -> None:
    song = replace(encoded(1), truth=SongTruth(source="composed", chords=(ChordSpan(start_s=0, end_s=9, root=1, quality=0, bass=1),)))
    table = dataset._latent_rows(song, "demo")
    with pytest.raises(UserError, match="not one for each of 512"):
        read_frames(table, 512)
    assert np.isnan(read_frames(table, SEGMENT_FRAMES).beat_confidence_R).all()
    assert Beat(time_s=0.0, position=0, bar_beats=0).bar_beats == 0
