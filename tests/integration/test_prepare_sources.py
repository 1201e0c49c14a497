"""Sources that have to be fetched or separated, through a real Ray cluster: from a list on a real web server to latents, and out again."""

import csv
import io
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from infra.cluster import Cluster
from infra.errors import UserError
from infra.records import read_manifest
from infra.storage import Place
from model.errors import ModelError
from model.geometry import SAMPLE_RATE_HZ
from pipelines.acquire import AcquireConfig
from pipelines.corpus import compose, render
from pipelines.prepare import PrepareConfig, prepare
from pipelines.takedown import TakedownConfig, takedown
from tests import http_server
from tests.demucs_parts import write_tiny_repository
from tests.http_server import WebServer

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

    (node,) = ray.nodes()
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
    with sheet.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("url", "title", "artist", "license"))
        writer.writerows((web.url(path), title, "The Example", license) for path, title, license in rows)
    out = tmp_path / "out"
    config = PrepareConfig(
        source=f"urls:{sheet}",
        out=str(out),
        codec=str(tiny_codec),
        separator=str(repository),
        encoders=1,
        acquire=AcquireConfig(operator="tests@example.org", requests_per_s=50, backoff_s=0.1),
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

    asked = len(web.seen)
    again = prepare(config)
    assert (again.prepared, len(again.rejects), len(web.seen)) == (0, 4, asked)

    victim = songs["Two"]["song_id"]
    held = len(list((out / "media/files").iterdir()))
    takedown(TakedownConfig(data=str(out), song=victim))
    assert len(list((out / "media/files").iterdir())) == held - 1
    after = prepare(config)
    assert any("taken down" in line for line in after.rejects)
    assert victim not in pq.read_table(out / "songs")["song_id"].to_pylist()
    assert read_manifest(Place(str(out))).counts.songs == 1


def test_another_separator_is_refused_and_finished_songs_are_separated(
    tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path, repository: Path, mixtures: list[np.ndarray]
) -> None:
    """folder: two songs in one batch, beside a dataset of pairs; the stems of both sum to what was heard."""
    assert ray_cluster.address
    songs, out = tmp_path / "songs", tmp_path / "out"
    (songs / "An Artist").mkdir(parents=True)
    for name, mixture_CN in zip(("An Artist - First", "An Artist - Second"), mixtures[1:], strict=True):
        soundfile.write(songs / f"An Artist/{name}.flac", mixture_CN.T, SAMPLE_RATE_HZ)
    config = PrepareConfig(
        source=f"folder:{songs}", out=str(out), codec=str(tiny_codec), separator=str(repository), encoders=1, batch_songs=2
    )
    summary = prepare(config)
    assert (summary.prepared, summary.rejects) == (2, ())
    assert {row["artist"] for row in pq.read_table(out / "songs").to_pylist()} == {"An Artist"}
    other = write_tiny_repository(tmp_path / "other", bag=True)
    with pytest.raises(UserError, match="holds songs separated by"):
        prepare(PrepareConfig(source=config.source, out=config.out, codec=config.codec, separator=f"{other}#tiny"))
