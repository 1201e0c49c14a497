"""The page on a dataset: numbers against pyarrow and numpy, sounds against the songs, and nothing of a song that runs in a browser."""

import hashlib
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.audio import files as audio_files
from infra.cli import exit_codes as commands
from infra.dataset.format import read_latents, read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from model.codec.base import CodecIdentity
from model.codec.load import load_codec
from model.dimensions import HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ, SEGMENT_FRAMES
from model.errors import CodecUnavailable
from pipelines.__main__ import app
from pipelines.corpus import compose, render
from pipelines.dataset import write as dataset
from pipelines.dataset.compact import CompactConfig, compact
from pipelines.dataset.contents import read_stored
from pipelines.report.page import DatasetReportConfig, dataset_report, render_page
from pipelines.report.pairs import draw
from pipelines.report.sample import draw_songs
from pipelines.song import EncodedSegment, EncodedSong, FoundSong, Reject, SongIdentity
from pipelines.stages.encode import Encoder
from pipelines.stages.segment import SegmentConfig, segment_audio
from tests.dataset_parts import finished

TITLE = """<script>alert("title")</script> & 'quotes'"""
ADDRESSES = ("https://example.org/1.flac?q=<b>&x", "javascript:alert(1)")
UNKNOWN = CodecIdentity(id="elsewhere", weights_sha256="ab" * 32)
DEAD = 7


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, np.ndarray]]:
    """Two demo songs with the embedded codec, and (vocal, accompaniment) as they were encoded, by song id."""
    out, heard = Place(str(tmp_path_factory.mktemp("real") / "latents")), {}
    codec = load_codec("embedded").identity
    encoder = Encoder("embedded", codec, None)
    for index, url in enumerate(ADDRESSES):
        song = render(compose(1700 + index, 8.0))
        digest = hashlib.sha256(song.vocals_CN.tobytes()).hexdigest()
        identity = SongIdentity(song_id=digest[:16], audio_sha256=digest, title=TITLE, artist="", license=("CC0-1.0", "")[index])
        cut = segment_audio(identity, song.vocals_CN, song.accompaniment_CN, SegmentConfig())
        heard[identity.song_id] = np.stack([cut.segments[0].vocal_CN, cut.segments[0].accompaniment_CN])
        found = FoundSong(url=url, source=("urls", "<i>pairs</i>")[index], version="1")
        dataset.write_song(out, found, encoder.encode([cut])[0], ("train", "validation")[index])
    for index in range(3):
        found = FoundSong(url=f"/rejected/{index}", source="pairs", version="1")
        gate = [Reject(stage="gate", segment=index, reason=f"segment {index} at 0.0 s: voice in {index}.1% of it, less than 5%")]
        dataset.write_rejects(out, found, f"rejected-{index}", gate if index else [Reject(stage="decode", reason="<img src=x onerror=y>")])
    finished(out, read_stored(out), codec)
    return out, heard


@pytest.fixture(scope="module")
def report(songs: tuple[Place, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its report, where an earlier one had more pairs."""
    out = tmp_path_factory.mktemp("report")
    (out / "pair-09-mix.ogg").write_bytes(b"an earlier report's")
    (out / "pair-up.ogg").write_bytes(b"somebody's own")
    summary = dataset_report(DatasetReportConfig(data=str(songs[0]), out=str(out), pairs=10))
    assert "2 pairs to listen to" in str(summary)
    return out


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def tiny(out: Place, songs: int = 6, train: int = 4) -> Place:
    """Random latents of a codec that nobody has; channel 7 is dead, two segments a song."""
    for seed in range(songs):
        random = np.random.default_rng(seed)
        segments = []
        for index, valid in enumerate((SEGMENT_FRAMES, 200)):
            stems = np.zeros((2, LATENT_CHANNELS, SEGMENT_FRAMES), np.float16)
            stems[..., :valid] = random.standard_t(4, (2, LATENT_CHANNELS, valid)) + np.arange(LATENT_CHANNELS)[:, None] / 16
            stems[:, DEAD] = 0
            segments.append(
                EncodedSegment(
                    index=2 * index + 1, start_s=95.1 * index, duration_s=valid / 21.6, valid_frames=valid, vocal_CT=stems[0],
                    accompaniment_CT=stems[1], vocal_active=0.5, vocal_level_db=-20.0, gain_db=float(seed), separation_quality=0.9,
                )
            )  # fmt: skip
        identity = SongIdentity(song_id=f"{seed:016x}", audio_sha256=f"{seed:064x}", title=f"song {seed}")
        song = EncodedSong(identity=identity, duration_s=150.0, segments=tuple(segments), rejects=())
        dataset.write_song(out, FoundSong(url=f"/{seed}", source="pairs", version="1"), song, "train" if seed < train else "validation")
    finished(out, read_stored(out), UNKNOWN)
    return out


def ask(data: Place, out: Path, **options: Any) -> Any:
    return dataset_report(DatasetReportConfig(data=str(data), out=str(out), **options)).report


def test_counts_and_hours_are_those_of_the_files(songs: tuple[Place, dict[str, np.ndarray]], report: Path) -> None:
    found, rows = numbers(report), pq.read_table(songs[0].path / "latents").to_pylist()
    assert [(split["name"], split["songs"], split["segments"]) for split in found["splits"]] == [("train", 1, 1), ("validation", 1, 1)]
    for table, column in (("sources", "source"), ("licenses", "license")):
        held = {(row[column] or "not given"): row["valid_frames"] * HOP_SAMPLES / SAMPLE_RATE_HZ / 3600 for row in rows}
        assert {group["name"]: group["hours"] for group in found[table]} == pytest.approx(held)
    assert found["identity"]["digest"] == read_manifest(songs[0]).digest
    assert sum(found["durations"]["counts"]) == 2
    activity = next(each for each in found["sample"]["histograms"] if each["name"] == "Share of frames with voice")
    values = [row["vocal_active"] for row in rows]
    assert activity["counts"] == np.histogram(values, np.linspace(0, 1, len(activity["counts"]) + 1))[0].tolist()
    assert activity["median"] == pytest.approx(np.median(values))
    assert [(kind["stage"], kind["count"]) for kind in found["rejected_songs"]] == [("decode", 1)]
    (kind,) = found["rejected_segments"]
    assert (kind["kind"], kind["count"], kind["example_url"]) == ("voice in n% of it, less than n%", 2, "/rejected/1")


def test_sounds_are_the_songs_at_their_level_and_length(songs: tuple[Place, dict[str, np.ndarray]], report: Path) -> None:
    pairs = numbers(report)["pairs"]
    assert [pair["split"] for pair in pairs] == ["train", "validation"]
    for pair in pairs:
        played = [audio_files.decode((report / f"{pair['name']}-{name}.ogg").read_bytes()) for name in ("vocal", "accompaniment", "mix")]
        heard_SCN = songs[1][pair["song_id"]]
        attenuation = 10 ** (-pair["attenuation_db"] / 20)
        for audio, stem_CN in zip(played, (*heard_SCN, heard_SCN.sum(axis=0)), strict=True):
            assert (audio.samples_CN.shape, audio.sample_rate_hz) == (stem_CN.shape, SAMPLE_RATE_HZ)
            level_db = 10 * math.log10(np.square(audio.samples_CN).mean() / np.square(attenuation * stem_CN).mean())
            assert abs(level_db) < 1.5
        difference_CN = played[0].samples_CN + played[1].samples_CN - played[2].samples_CN
        assert np.square(difference_CN).mean() < 0.02 * np.square(played[2].samples_CN).mean(), "the mix is the sum, but for OGG's loss"
        for stem in ("vocal", "accompaniment"):
            assert (report / f"{pair['name']}-{stem}.png").read_bytes().startswith(b"\x89PNG")
    assert not (report / "pair-09-mix.ogg").exists()
    assert (report / "pair-up.ogg").exists()


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_comes_with_a_song_is_text_and_all_else_lies_beside_the_page(report: Path) -> None:
    page = Page((report / "index.html").read_text())
    assert not {"script", "i", "b", "iframe", "link"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(TITLE) == 2
    assert "<img src=x onerror=y>" in page.text
    assert "<i>pairs</i>" in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert ADDRESSES[0] in links
    assert all(link.startswith("https://") or link == "report.json" for link in links if link)
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 2 * (3 + 2)
    assert all((report / source).is_file() for source in sources if source)


def test_latent_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    data = tiny(Place(str(tmp_path / "data")))
    manifest, table = read_manifest(data), read_latents(data, "train")
    found = ask(data, tmp_path / "out", pairs=0).sample
    assert (found.songs_read, found.segments_read, found.training_segments_read) == (6, 12, 8)
    for stem, latents_RCT in zip(found.stems, (table.vocal_RCT, table.accompaniment_RCT), strict=True):
        pieces = [latent_CT[:, :valid] for latent_CT, valid in zip(latents_RCT, table.valid_frames_R, strict=True)]
        values_CT = np.concatenate(pieces, axis=1).astype(np.float64)
        live = np.arange(LATENT_CHANNELS) != DEAD
        np.testing.assert_allclose(stem.mean_C, values_CT.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(np.array(stem.deviation_C)[live], values_CT.std(axis=1)[live], rtol=1e-9)
        far_CT = np.abs(values_CT - values_CT.mean(axis=1, keepdims=True)) > 4 * values_CT.std(axis=1, keepdims=True)
        assert 0 < stem.outlier_share == pytest.approx(far_CT.mean(), rel=1e-6)
        assert stem.most_outliers_share == pytest.approx(far_CT.mean(axis=1).max(), rel=1e-6)
        assert stem.dead_channels == (DEAD,)
        assert stem.mean_difference < 1e-9
    assert found.statistics_equal is True
    (data / "manifest.json").write_bytes(manifest.to_json().replace(str(manifest.vocal_mean[3]), "9.5").encode())
    assert ask(data, tmp_path / "out", pairs=0).sample.statistics_equal is False


def test_a_sample_is_bounded_and_finds_the_song_whose_latents_changed(tmp_path: Path) -> None:
    data = tiny(Place(str(tmp_path / "data")))
    part = ask(data, tmp_path / "out", pairs=0, sample_segments=3).sample
    assert (part.songs_read, part.segments_read, part.statistics_equal) == (2, 4, True)
    assert part.training_segments_read > 0
    assert part.stems[0].mean_difference > 1e-6, "a part of the songs has another mean"
    victim = f"{0:016x}"
    place = data / f"latents/split=train/{victim}.parquet"
    table = pq.read_table(place.path)
    dataset.write_table(place, table.set_column(5, table.schema.field(5), table["accompaniment_latent"]))
    report = ask(data, tmp_path / "out", pairs=0)
    assert report.sample.differing_songs == (victim,)
    assert report.sample.statistics_equal is False
    assert victim in render_page(report)


def test_the_same_dataset_gives_the_same_pairs_also_when_its_files_are_joined(tmp_path: Path) -> None:
    data = tiny(Place(str(tmp_path / "data")))

    def pairs(count: int) -> list[tuple[str, int, str]]:
        return [(pair.song_id, pair.segment, pair.split) for pair in ask(data, tmp_path / "out", pairs=count).pairs]

    before = pairs(4)
    assert before == pairs(4)
    assert len({song for song, _, _ in before}) == 4
    assert [split for _, _, split in before] == ["train", "train", "validation", "validation"]
    assert len(set(pairs(12))) == len(pairs(99)) == 12, "every segment, once"
    assert {segment for _, segment, _ in pairs(12)} == {1, 3}
    compact(CompactConfig(data=str(data)))
    assert pairs(4) == before
    rows = [{"song_id": f"{song:04d}", "split": "train", "segments": 3, "file": "f"} for song in range(200)]
    assert draw(rows, "a" * 64, 5) == draw(rows[::-1], "a" * 64, 5) == draw(rows, "a" * 64, 9)[:5]
    assert draw(rows, "a" * 64, 5) != draw(rows, "b" * 64, 5)
    assert [row["song_id"] for row in draw_songs(rows, "a" * 64, 7)] == [row["song_id"] for row in draw_songs(rows[::-1], "a" * 64, 7)]
    assert len(draw_songs(rows, "a" * 64, 7)) == 3


def test_without_its_codec_the_page_says_why_there_is_no_sound(tmp_path: Path, tiny_codec: Path) -> None:
    data, out = tiny(Place(str(tmp_path / "data"))), tmp_path / "out"
    report = ask(data, out, pairs=2)
    assert "codec 'elsewhere'" in report.silence
    page = Page((out / "index.html").read_text())
    assert report.silence in page.text
    assert report.pairs[0].title in page.text
    assert not {"audio", "img"} & {tag for tag, _ in page.tags}
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "report.json"]
    with pytest.raises(UserError, match="the dataset was encoded with 'elsewhere'"):
        ask(data, out, codec=str(tiny_codec))
    with pytest.raises(CodecUnavailable, match="/nowhere"):
        ask(data, out, codec="/nowhere")
    with pytest.raises(UserError, match="choose 0 to 99"):
        DatasetReportConfig(data="x", out="y", pairs=100)


def test_only_songs_of_the_commit_count_and_missing_ones_are_said(tmp_path: Path) -> None:
    data, out = tiny(Place(str(tmp_path / "data")), songs=3, train=2), tmp_path / "out"
    dataset.write_row(data, {**read_stored(data).whole_row(data, f"{1:016x}"), "song_id": "f" * 16})
    (data / f"latents/split=train/{'f' * 16}.parquet").write_bytes((data / f"latents/split=train/{1:016x}.parquet").read_bytes())
    assert len(read_stored(data).songs) == 4
    assert ask(data, out, pairs=0).total.songs == 3
    dataset.song_place(data, f"{1:016x}").delete()
    report = ask(data, out, pairs=0)
    assert (report.total.songs, report.missing_songs, report.sample.statistics_equal) == (2, 1, None)
    assert "have no row" in (out / "index.html").read_text()
    assert commands.run(app, ["dataset-report", "--data", str(tmp_path / "nothing"), "--out", str(out)]) == commands.WRONG_USAGE
