"""prepare on a real Ray cluster: bad songs, reruns, kills, S3."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.cluster import Cluster
from infra.dataset.format import read_latents, read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from model.codec.load import load_codec
from model.dimensions import SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from pipelines.run.prepare import PrepareConfig, prepare
from pipelines.stages.segment import SegmentConfig
from tests.song_parts import files_of, rows_of, write_song

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


def test_an_empty_source_fails_before_any_work(tmp_path: Path, tiny_codec: Path) -> None:
    (tmp_path / "songs").mkdir()
    with pytest.raises(UserError, match="holds no songs"):
        prepare(PrepareConfig(source=f"pairs:{tmp_path / 'songs'}", out=str(tmp_path / "out"), codec=str(tiny_codec)))
    assert not (tmp_path / "out").exists()


def test_the_command_says_an_empty_source_in_one_line_and_ends_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "prepare", "--source", f"pairs:{tmp_path}", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "holds no songs" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_share": 0.0},
        {"encoders": 0},
        {"separator": "htdemucs"},
        {"source": "musdb18:/x", "separator": "htdemucs"},
        {"keep_stems": True},
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        PrepareConfig(**{"source": "pairs:/x", "out": "/y", **wrong})


def test_good_songs_are_prepared_and_bad_ones_are_rows(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    """One dataset through its life: bad songs, a rerun, another codec, a moved, a copied, a replaced and a new song."""
    songs, out = tmp_path / "songs", tmp_path / "out"
    for seed in range(4):
        write_song(songs / f"good{seed}", seed)
    write_song(songs / "long", 90, duration_s=SEGMENT_SAMPLES / SAMPLE_RATE_HZ + 7)
    write_song(songs / "copy", 3)
    write_song(songs / "words", 50)
    (songs / "words/vocals.wav").write_bytes(b"these are words")
    write_song(songs / "short", 51, duration_s=2)
    write_song(songs / "alone", 52)
    (songs / "alone/accompaniment.flac").unlink()
    config = PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=str(tiny_codec), encoders=1)
    assert not ray_cluster.started_here or ray_cluster.address

    summary = prepare(config)
    assert (summary.found, summary.prepared, summary.already, summary.exit_code) == (9, 5, 0, 1)
    rejected = {line.split(" ")[0].rsplit("/", 1)[-1]: line for line in summary.rejects}
    assert rejected.keys() == {"alone", "good3", "short", "words"}
    assert "(decode): vocals: " in rejected["words"]
    assert "(segment): 2.00 s" in rejected["short"]
    assert "(source): no accompaniment" in rejected["alone"]
    assert f"the same audio as {songs / 'copy'}" in rejected["good3"]
    assert set(pq.read_table(out / "rejects")["stage"].to_pylist()) == {"decode", "duplicate", "segment", "source"}
    assert rows_of(out).total() == 6
    assert max(rows_of(out).values()) == 1

    manifest = read_manifest(Place(str(out)))
    assert manifest == summary.manifest
    assert (manifest.counts.songs, manifest.counts.segments, manifest.counts.rejected_songs) == (5, 6, 4)
    assert manifest.counts.validation_songs >= 1
    assert manifest.codec_weights_sha256 == load_codec(str(tiny_codec)).identity.weights_sha256
    train = read_latents(Place(str(out)), "train")
    valid = np.concatenate([rows[:, :frames] for rows, frames in zip(train.vocal_RCT, train.valid_frames_R, strict=True)], axis=1)
    np.testing.assert_allclose(manifest.vocal_mean, valid.astype(np.float64).mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(manifest.vocal_std, np.maximum(valid.astype(np.float64).std(axis=1), 1e-4), rtol=1e-6)
    assert all(not rows[:, frames:].any() for rows, frames in zip(train.vocal_RCT, train.valid_frames_R, strict=True))

    before = files_of(out)
    again = prepare(config)
    assert (again.prepared, again.exit_code, again.stage_s.get("run", 0)) == (0, 1, 0)
    assert files_of(out) == before

    with pytest.raises(UserError, match=r"other settings \(min_duration_s 5.0 → 4"):
        prepare(PrepareConfig(source=config.source, out=str(out), codec=str(tiny_codec), segment=SegmentConfig(min_duration_s=4)))
    with pytest.raises(UserError, match="latents of two codecs do not mix"):
        prepare(PrepareConfig(source=config.source, out=str(out), codec="embedded"))

    splits = {row["song_id"]: row["split"] for row in pq.read_table(out / "songs").to_pylist()}
    (songs / "good0").rename(songs / "moved")
    for path in (songs / "good1").iterdir():
        path.unlink()
    (songs / "good1").rmdir()
    write_song(songs / "good1", 61)
    write_song(songs / "new", 60)
    os.utime(songs / "good2/vocals.wav")
    changed = prepare(config)
    assert changed.prepared == 2
    table = {row["url"].rsplit("/", 1)[-1]: row for row in pq.read_table(out / "songs").to_pylist()}
    assert table.keys() == {"copy", "good1", "good2", "long", "moved", "new"}
    assert all(row["split"] == splits[row["song_id"]] for row in table.values() if row["song_id"] in splits)
    assert rows_of(out).total() == 7
    assert max(rows_of(out).values()) == 1
    assert prepare(config).prepared == 0


@pytest.mark.soak
def test_a_killed_driver_leaves_nothing_twice(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    songs, out = tmp_path / "songs", tmp_path / "out"
    for seed in range(7):
        write_song(songs / f"song{seed:02}", seed)
    command = [sys.executable, "-m", "pipelines", "prepare", "--source", f"pairs:{songs}", "--out", str(out), "--codec", str(tiny_codec)]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
    driver = subprocess.Popen([*command, "--encoders", "1"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 180
    while driver.poll() is None and time.monotonic() < deadline and len(list((out / "songs").glob("*.parquet"))) < 2:
        time.sleep(0.05)
    assert driver.poll() is None, "the driver ended before it could be killed"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (out / "manifest.json").exists()
    committed = len(list((out / "songs").glob("*.parquet")))
    summary = prepare(PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=str(tiny_codec), encoders=1))
    assert (summary.found, summary.exit_code) == (7, 0)
    assert 0 < summary.prepared <= 7 - committed + 1
    assert rows_of(out).total() == 7
    assert max(rows_of(out).values()) == 1
    assert summary.manifest is not None
    assert summary.manifest.counts.songs == 7


def test_s3_in_and_out_equals_the_local_dataset(tmp_path: Path, bucket: str, ray_cluster: Cluster, tiny_codec: Path) -> None:
    """The cluster was started before the server: places carry their access to the workers."""
    songs = tmp_path / "songs"
    for seed in range(2):
        write_song(songs / f"song{seed}", seed)
    (Place(bucket) / "songs").upload(songs)
    (Place(bucket) / "codecs/tiny").upload(tiny_codec)
    assert ray_cluster.address
    config = PrepareConfig(source=f"pairs:{bucket}/songs", out=f"{bucket}/latents", codec=f"{bucket}/codecs/tiny", encoders=1)
    summary = prepare(config)
    assert (summary.prepared, summary.rejects) == (2, ())
    place = Place(bucket) / "latents"
    before = dict(place.entries())
    assert prepare(config).prepared == 0
    assert dict(place.entries()) == before
    read = {split: read_latents(place, split) for split in ("train", "validation")}
    assert [len(rows) for rows in read.values()] == [1, 1]
    filesystem, path = place.filesystem()
    assert pq.read_table(f"{path}/latents", filesystem=filesystem).num_rows == 2
    place.download(tmp_path / "local")
    assert read_manifest(Place(str(tmp_path / "local"))).digest == read_manifest(place).digest
