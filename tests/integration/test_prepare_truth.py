"""Truth through prepare on a real cluster: composed where song.json states it, heard elsewhere, kept by a rerun."""

import json
from pathlib import Path

import pandas as pd
import pytest
import soundfile

from infra.cluster import Cluster
from infra.dataset.format import read_manifest
from infra.dataset.truth import read_frames
from infra.storage.place import Place
from model.chords import NO_CHORD, QUALITIES, quality_number
from model.dimensions import FRAME_RATE_HZ, SAMPLE_RATE_HZ, SEGMENT_FRAMES
from pipelines.corpus import CorpusConfig, compose, write_corpus
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.contents import read_song, read_stored
from pipelines.run.prepare import PrepareConfig, prepare
from tests.song_parts import files_of
from tests.unit.listen_songs import compose as play

pytestmark = pytest.mark.ray
SEED, DURATION_S = 1002, 52.0  # two segments, and a tempo that drifts


def test_composed_and_heard_truth_lie_beside_the_latents(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    songs, out = tmp_path / "songs", Place(str(tmp_path / "out"))
    write_corpus(CorpusConfig(out=str(songs), songs=1, seed=SEED, duration_s=DURATION_S, workers=1, bank=("numpy",)))
    records = {
        "heard": None,
        "broken": {"chords": [{"start_s": 1.0, "end_s": 0.0, "root": 0, "quality": "maj"}]},
        "titled": {"title": "one"},
    }
    for seed, (name, record) in enumerate(records.items()):
        song, folder = play(seed), songs / name
        folder.mkdir()
        soundfile.write(folder / "vocals.wav", song.vocal_N, SAMPLE_RATE_HZ)
        soundfile.write(folder / "accompaniment.wav", song.band_N, SAMPLE_RATE_HZ)
        if record is not None:
            (folder / "song.json").write_text(json.dumps(record))
    config = PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=str(tiny_codec), encoders=1)
    assert ray_cluster.address or not ray_cluster.started_here
    summary = prepare(config)
    assert (summary.prepared, summary.rejects) == (4, ())
    assert any(line.startswith("listen") for line in summary.table)
    assert check(CheckConfig(data=str(out))).faults == ()
    assert read_manifest(out).chord_qualities == QUALITIES
    stored = read_stored(out)
    rows = {row["url"].rsplit("/", 1)[-1]: row for row in stored.songs.values()}
    composed, score = rows[f"song-{SEED:06d}"], compose(SEED, DURATION_S)
    assert (composed["truth_source"], composed["style"], composed["tempo_bpm"]) == ("composed", score.style, score.tempo_bpm)
    table = read_song(out, stored, composed["song_id"]).sort_by("segment")
    assert len(table) == 2
    frames = read_frames(table, SEGMENT_FRAMES)
    for segment, (start_s, valid) in enumerate(zip(table["start_s"].to_pylist(), table["valid_frames"].to_pylist(), strict=True)):
        for frame in range(0, valid, 7):
            at_s = start_s + (frame + 0.5) / FRAME_RATE_HZ
            chord = next((chord for chord in score.chords if chord.start_s <= at_s < chord.end_s), None)
            found = frames.chord_root_RT[segment, frame], frames.chord_quality_RT[segment, frame]
            assert found == ((NO_CHORD, NO_CHORD) if chord is None else (chord.root, quality_number(chord.quality)))
    heard = [row for name, row in rows.items() if not name.startswith("song-")]
    assert len(heard) == 3
    assert {row["truth_source"] for row in heard} == {"estimated"}
    assert all(row["style"] is None and row["tempo_bpm"] > 0 and 0 <= row["tempo_confidence"] <= 1 for row in heard)
    for name, row in rows.items():
        assert ("cannot be read" in (row["truth_fault"] or "")) == (name == "broken")
    frame = pd.read_parquet(out.path / "latents")
    assert set(frame["truth_source"]) == {"composed", "estimated"}
    assert {len(values) for values in frame["beat_phase"]} == {SEGMENT_FRAMES}
    before = files_of(out.path)
    assert prepare(config).prepared == 0
    assert files_of(out.path) == before


def test_truth_can_be_left_out(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    songs, out = tmp_path / "songs", Place(str(tmp_path / "out"))
    write_corpus(CorpusConfig(out=str(songs), songs=1, seed=SEED, duration_s=8.0, workers=1, bank=("numpy",)))
    assert ray_cluster.address or not ray_cluster.started_here
    prepare(PrepareConfig(source=f"demo:{songs}", out=str(out), codec=str(tiny_codec), encoders=1, truth="none"))
    (row,) = read_stored(out).songs.values()
    assert (row["truth_source"], row["truth_fault"], read_manifest(out).truth_sha256) == (None, None, None)
