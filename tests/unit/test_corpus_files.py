"""The corpus on disk and in a bucket: complete folders, runs that resume, mistakes that are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.corpus import CorpusConfig, compose, read_song_json, write_corpus

DURATION_S = 5.0
SEED = 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    summary = write_corpus(CorpusConfig(out=str(out), songs=2, seed=SEED, duration_s=DURATION_S))
    assert (summary.songs, summary.written, summary.reused) == (2, 2, 0)
    assert summary.song_ids == ("song-000010", "song-000011")
    return out


def test_a_song_folder_holds_exact_stems_and_the_truth(corpus: Path) -> None:
    folder = corpus / "song-000010"
    assert {path.name for path in folder.iterdir()} == {"vocals.wav", "accompaniment.wav", "mixture.wav", "song.json", "f0.npy"}
    vocals, accompaniment, mixture = (sf.read(folder / f"{name}.wav", dtype="int16")[0] for name in ("vocals", "accompaniment", "mixture"))
    assert sf.info(folder / "mixture.wav").subtype == "PCM_16"
    assert np.array_equal(vocals.astype(int) + accompaniment, mixture)
    record, rendering, stored = read_song_json((folder / "song.json").read_bytes())
    assert record == compose(SEED, DURATION_S)
    assert stored == record.sha256()
    assert rendering.samples == len(mixture)
    assert len(np.load(folder / "f0.npy")) == pytest.approx(len(mixture) / 44_100 * rendering.f0_rate_hz, abs=2)
    plain = json.loads((folder / "song.json").read_text())
    assert {
        "title",
        "tempo_bpm",
        "key",
        "mode",
        "metre",
        "swing",
        "beats_s",
        "downbeats_s",
        "chords",
        "vocal",
        "sections",
        "license",
    } <= set(plain)
    assert plain["license"] == "CC0-1.0"


def test_a_second_run_keeps_what_is_complete_and_mends_what_is_not(corpus: Path) -> None:
    config = CorpusConfig(out=str(corpus), songs=2, seed=SEED, duration_s=DURATION_S, workers=1)
    before = (corpus / "song-000010" / "mixture.wav").stat().st_mtime_ns
    (corpus / "song-000011" / "song.json").write_text("{")
    wanted = (corpus / "song-000011" / "vocals.wav").read_bytes()
    (corpus / "song-000011" / "vocals.wav").write_bytes(b"cut")
    summary = write_corpus(config)
    assert (summary.written, summary.reused) == (1, 1)
    assert (corpus / "song-000010" / "mixture.wav").stat().st_mtime_ns == before
    assert (corpus / "song-000011" / "vocals.wav").read_bytes() == wanted
    (corpus / "song-000010" / "f0.npy").unlink()
    assert write_corpus(config).written == 1


def test_other_songs_of_the_same_seeds_replace_the_old(tmp_path: Path) -> None:
    for duration_s in (4.0, 13.0):
        summary = write_corpus(CorpusConfig(out=str(tmp_path), songs=1, seed=4, duration_s=duration_s))
        assert summary.written == 1
    record, _, _ = read_song_json((tmp_path / "song-000004" / "song.json").read_bytes())
    assert record == compose(4, 13.0)


def test_a_bucket_holds_a_corpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import httpx

        httpx.put(f"http://{host}:{port}/songs").raise_for_status()
        config = CorpusConfig(out="s3://songs/demo", songs=1, seed=4, duration_s=4.0, workers=1)
        assert write_corpus(config).written == 1
        assert write_corpus(config).reused == 1
        folder = Place("s3://songs/demo/song-000004")
        assert (folder / "mixture.wav").exists()
        assert read_song_json((folder / "song.json").read_bytes())[0] == compose(4, 4.0)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"songs": 0}, "--songs 0"),
        ({"songs": 1, "seed": -1}, "--seed -1"),
        ({"songs": 1, "workers": 0}, "--workers 0"),
        ({"songs": 1, "duration_s": 1.0}, "--duration-s 1.0"),
        ({"songs": 1, "band": "numpy"}, "--band numpy: --bank took its place"),
    ],
)
def test_a_wrong_configuration_names_value_and_constraint(wrong: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        CorpusConfig(out="corpus", **wrong)
