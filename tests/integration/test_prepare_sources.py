"""Sources that have to be fetched or separated, through a real Ray cluster: from a list on a real web server to latents, and out again."""

import csv
import io
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from infra.cluster import Cluster
from infra.dataset.format import SPLITS, read_latents, read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from model.dimensions import SAMPLE_RATE_HZ
from model.errors import ModelError
from pipelines.acquire.acquire import AcquireConfig
from pipelines.corpus import compose, render
from pipelines.dataset.takedown import TakedownConfig, takedown
from pipelines.run.prepare import PrepareConfig, prepare
from pipelines.song import SongIdentity
from pipelines.stages.encode import Encoder, open_codec
from pipelines.stages.segment import SegmentConfig, segment_audio
from tests import http_server
from tests.demucs_parts import write_tiny_repository
from tests.http_server import WebServer
from tests.source_examples import musdb18_streams, write_moisesdb, write_musdb18, write_musdb18_hq

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def mixtures() -> list[np.ndarray]:
    """Three demo songs as a listener hears them, (2, N)."""
    songs = [render(compose(seed, 12.0)) for seed in (100, 101, 102)]
    return [song.vocals_CN + song.accompaniment_CN for song in songs]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_repository(tmp_path_factory.mktemp("demucs"))


@pytest.fixture
def web() -> Iterator[WebServer]:
    with http_server.serve() as server:
        yield server


def encoded(audio_CN: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio_CN.T, SAMPLE_RATE_HZ, format=format)
    return buffer.getvalue()


def metric(name: str) -> float:
    """The sum of a metric over all its labels, from what Prometheus would scrape on this node."""
    import ray

    (node,) = (node for node in ray.nodes() if node["Alive"])
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"ray_{name}{{"))


def test_songs_from_the_web_become_latents_once_and_can_be_taken_down(
    tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path, repository: Path, web: WebServer, mixtures: list[np.ndarray]
) -> None:
    """The list names good songs, a dead link, a forbidden one, a text, and an MP3 of a song that is there as FLAC already."""
    assert ray_cluster.address
    web.files = {
        "one.flac": encoded(mixtures[0], "FLAC"),
        "two.ogg": encoded(mixtures[1], "OGG"),
        "one-again.mp3": encoded(0.7 * mixtures[0], "MP3"),
        "text.json": b'{"not": "audio"}',
    }
    web.robots["127.0.0.1"] = (200, "User-agent: *\nDisallow: /file/private\n")
    rows = [
        ("file/one.flac", "One", "CC-BY-4.0"),
        ("busy/two.ogg?status=503&times=1&after=0", "Two", "CC0-1.0"),
        ("file/one-again.mp3", "One again", "CC0-1.0"),
        ("missing/gone.flac", "Gone", ""),
        ("file/private.flac", "Private", ""),
        ("file/text.json", "Text", ""),
    ]
    sheet = tmp_path / "songs.csv"

    def write_list(rows: list[tuple[str, str, str]]) -> None:
        with sheet.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("url", "title", "artist", "license"))
            writer.writerows((web.url(path), title, "The Example", license) for path, title, license in rows)

    write_list(rows)
    out = tmp_path / "out"
    config = PrepareConfig(
        source=f"urls:{sheet}",
        out=str(out),
        codec=str(tiny_codec),
        separator=str(repository),
        encoders=1,
        batch_songs=2,
        acquire=AcquireConfig(operator="tests@example.org", requests_per_s=50, backoff_s=0.1, private_hosts=("127.0.0.1",)),
    )
    with pytest.raises(UserError, match="operator"):
        prepare(PrepareConfig(source=config.source, out=config.out, codec=config.codec, separator=config.separator))
    with pytest.raises(ModelError, match="0 networks in the folder"):
        prepare(PrepareConfig(source=config.source, out=config.out, codec=config.codec, separator=str(tmp_path), acquire=config.acquire))
    assert not web.seen

    before = metric("backline_prepare_songs_total")
    summary = prepare(config)
    assert (summary.found, summary.prepared, len(summary.rejects)) == (6, 2, 4), summary
    assert "the same recording" in next(line for line in summary.rejects if "(duplicate)" in line)
    assert "404" in next(line for line in summary.rejects if "gone.flac" in line)
    assert "robots" in next(line for line in summary.rejects if "private.flac" in line)
    assert "(acquire)" in next(line for line in summary.rejects if "text.json" in line)
    assert summary.manifest is not None
    assert summary.manifest.separator_id
    songs = {row["title"]: row for row in pq.read_table(out / "songs").to_pylist()}
    kept = next(title for title in ("One", "One again") if title in songs)
    assert songs.keys() == {kept, "Two"}
    assert (songs["Two"]["license"], songs["Two"]["artist"], songs["Two"]["source"]) == ("CC0-1.0", "The Example", "urls")
    assert songs["Two"]["separator_id"] == summary.manifest.separator_id
    latents = pq.read_table(out / "latents", columns=["separation_quality", "license"]).to_pylist()
    assert all(0 <= row["separation_quality"] <= 1 for row in latents)
    assert all("tests@example.org" in seen.headers["user-agent"] for seen in web.seen)
    assert "separate" in str(summary)
    deadline = time.monotonic() + 60  # workers send their metrics every few seconds
    while metric("backline_prepare_songs_total") <= before:
        assert time.monotonic() < deadline, "Prometheus does not see what the stages did"
        time.sleep(0.5)

    other = write_tiny_repository(tmp_path / "other", bag=True)
    with pytest.raises(UserError, match="holds songs separated by"):
        prepare(replace(config, separator=f"{other}#tiny"))

    asked = len(web.seen)
    again = prepare(config)
    assert (again.prepared, len(again.rejects), len(web.seen)) == (0, 4, asked)

    # The list is corrected: a licence that is forbidden, and the dead link is left out.
    copy = {"One": "One again", "One again": "One"}[kept]
    write_list([(path, title, "All rights reserved" if title == kept else license) for path, title, license in rows if title != "Gone"])
    corrected = prepare(replace(config, acquire=replace(config.acquire, licenses=("CC-BY-4.0", "CC0-1.0"))))
    assert (corrected.found, corrected.prepared, len(corrected.rejects)) == (5, 1, 3), corrected
    assert any("(license): licence 'All rights reserved' is not one of CC-BY-4.0" in line for line in corrected.rejects)
    assert set(pq.read_table(out / "songs")["title"].to_pylist()) == {copy, "Two"}, "the permitted copy takes its place"
    assert corrected.manifest is not None
    assert (corrected.manifest.counts.songs, corrected.manifest.counts.rejected_songs) == (2, 3), "the dead link counts no longer"
    assert len(list((out / "media/files").iterdir())) == 2

    victim = songs["Two"]["song_id"]
    held = len(list((out / "media/files").iterdir()))
    takedown(TakedownConfig(data=str(out), song=victim))
    assert len(list((out / "media/files").iterdir())) == held - 1
    after = prepare(config)
    assert any("taken down" in line for line in after.rejects)
    assert victim not in pq.read_table(out / "songs")["song_id"].to_pylist()
    assert read_manifest(Place(str(out))).counts.songs == 1


def test_musdb18_and_moisesdb_become_latents_whose_accompaniment_is_all_that_is_not_vocals(
    tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path
) -> None:
    """Two stem files and an HQ folder, then a song of MoisesDB, into one dataset."""
    assert ray_cluster.address
    musdb18, out = tmp_path / "musdb18", tmp_path / "out"
    red_seed, green_seed = 10, 20
    blue, red, green = write_musdb18(musdb18), musdb18_streams(red_seed), write_musdb18_hq(musdb18 / "hq", "Green", green_seed)
    moises = write_moisesdb(tmp_path / "moisesdb", seed=30)
    # Vocals, and everything else.
    stems = {("musdb18", title): (mix[4], mix[1:4]) for title, mix in (("Blue", blue), ("Red - Live", red), ("Green", green))}
    stems["moisesdb", "Blue"] = (
        sum(audio for name, audio in moises.items() if name.startswith("vocals/")),
        [audio for name, audio in moises.items() if not name.startswith("vocals/")],
    )
    shared = {"out": str(out), "codec": str(tiny_codec), "encoders": 1, "segment": SegmentConfig(min_duration_s=0.5)}
    configs = [PrepareConfig(source=f"{kind}:{tmp_path / kind}", **shared) for kind in ("musdb18", "moisesdb")]
    summaries = [prepare(config) for config in configs]
    assert [(summary.found, summary.prepared, summary.rejects) for summary in summaries] == [(3, 3, ()), (1, 1, ())]

    songs = {(row["source"], row["title"]): row for row in pq.read_table(out / "songs").to_pylist()}
    assert {key: row["artist"] for key, row in songs.items()} == {
        ("musdb18", "Blue"): "Ann",
        ("musdb18", "Red - Live"): "Bob & Co",
        ("musdb18", "Green"): "Ann",
        ("moisesdb", "Blue"): "Ann",
    }
    rows = pq.read_table(out / "latents", columns=["song_id", "segment", "source", "license", "separation_quality"]).to_pylist()
    assert Counter((row["song_id"], row["segment"]) for row in rows) == Counter((row["song_id"], 0) for row in songs.values())
    for row in rows:
        assert ("educational" if row["source"] == "musdb18" else "MoisesDB: CC BY-NC-SA") in row["license"]
        assert row["separation_quality"] is None
    assert {row["separator_id"] for row in songs.values()} == {None}

    codec = open_codec(str(tiny_codec), Place(str(out)).access, "cpu")
    encoder = Encoder(str(tiny_codec), codec.identity, Place(str(out)).access)
    read = [read_latents(Place(str(out)), split) for split in SPLITS]
    stored = {
        song_id: (table.vocal_RCT[index], table.accompaniment_RCT[index], table.valid_frames_R[index])
        for table in read
        for index, song_id in enumerate(table.song_ids)
    }
    for key, row in songs.items():
        vocals_CT, accompaniment_CT, frames = stored[row["song_id"]]
        vocal_CN, others = stems[key]
        cuts = [segment_audio(SongIdentity(song_id="x"), vocal_CN, sum(parts), shared["segment"]) for parts in (others, others[1:])]
        (right,), (lacking,) = (song.segments for song in encoder.encode(cuts))
        inner = slice(1, min(frames, right.valid_frames) - 1)  # AAC pads the end

        def far(found_CT: np.ndarray, other_CT: np.ndarray, inner: slice = inner) -> float:
            return float(np.abs(found_CT[:, inner].astype(np.float64) - other_CT[:, inner]).mean())

        assert far(vocals_CT, right.vocal_CT) < 0.2 * far(vocals_CT, right.accompaniment_CT), key
        assert far(accompaniment_CT, right.accompaniment_CT) < 0.3 * far(accompaniment_CT, lacking.accompaniment_CT), key

    before = dict(Place(str(out)).entries())
    for config in configs:
        again = prepare(config)
        assert (again.prepared, again.already, again.rejects) == (0, again.found, ())
    assert dict(Place(str(out)).entries()) == before
