"""Sources that are folders: finished songs, MUSDB18 in both forms, MoisesDB; listed from their true layout, and decoded."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from infra.audio.files import decode
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources import list_songs, parse_source
from pipelines.sources.folder import title_of
from tests.source_examples import write_folder, write_moisesdb, write_musdb18, write_musdb18_hq


def heard(song: FoundSong, role: str) -> np.ndarray:
    """(C, N) the sum of a song's files of one role."""
    audios = [decode(Place(file.address).read_bytes(), stream=file.stream).samples_CN for file in song.media if file.role == role]
    return np.sum(audios, axis=0)


def alike(found_CN: np.ndarray, written_CN: np.ndarray) -> bool:
    """Whether the difference is below a twentieth of the power: AAC is not exact."""
    samples = written_CN.shape[1]
    return float(np.square(found_CN[:, :samples] - written_CN).mean()) < 0.05 * float(np.square(written_CN).mean())


def test_a_folder_of_finished_songs(tmp_path: Path) -> None:
    write_folder(tmp_path)
    songs = {song.url.removeprefix(f"{tmp_path}/"): song for song in list_songs(parse_source(f"folder:{tmp_path}"))}
    assert list(songs) == ["Ann - Blue.wav", "album/01 Bob - Red.flac", "album/12 Bob - Green.mp3", "album/deep/take_3.m4a"]
    assert [(song.title, song.artist) for song in songs.values()] == [("Blue", "Ann"), ("Red", "Bob"), ("Green", "Bob"), ("take 3", "")]
    assert [bool(song.record) for song in songs.values()] == [False, False, False, True]
    for song in songs.values():
        assert song.is_mixture
        assert not song.fault
        assert heard(song, "mixture").shape[1] == pytest.approx(44_100, abs=1_024)


def test_a_folders_version_changes_with_a_songs_own_files_only(tmp_path: Path) -> None:
    write_folder(tmp_path)

    def versions() -> dict[str, str]:
        return {song.url: song.version for song in list_songs(parse_source(f"folder:{tmp_path}"))}

    before = versions()
    (tmp_path / "album" / "deep" / "take_3.json").write_text("{}")
    (tmp_path / "album" / "cover.jpg").write_bytes(b"other")
    after = versions()
    assert {url for url in before if before[url] != after[url]} == {f"{tmp_path}/album/deep/take_3.m4a"}


def test_a_folders_name_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")).write_bytes(b"x")
    (song,) = list_songs(parse_source(f"folder:{tmp_path}"))
    assert "not UTF-8" in song.fault
    assert song.url.encode().decode().endswith("caf\\udce9.wav")


@pytest.mark.parametrize(
    ("name", "title", "artist"),
    [
        ("Artist - Title", "Title", "Artist"),
        ("01 Artist - Title", "Title", "Artist"),
        ("1. Artist - Title - Live", "Title - Live", "Artist"),
        ("07 - Title", "Title", ""),
        ("02_Artist_-_Title", "Title", "Artist"),
        ("Artist – Title", "Title", "Artist"),
        ("99 Problems", "99 Problems", ""),
        ("50 Cent - In da Club", "In da Club", "50 Cent"),
        ("1-800-273-8255", "1-800-273-8255", ""),
        ("3.14", "3.14", ""),
        ("Jay-Z", "Jay-Z", ""),
        ("07", "07", ""),
        (" - ", "-", ""),
    ],
)
def test_titles_from_names(name: str, title: str, artist: str) -> None:
    assert title_of(name) == (title, artist)


def test_a_bare_number_counts_where_its_neighbours_are_numbered() -> None:
    assert title_of("12 Artist - Title", numbered=True) == ("Title", "Artist")
    assert title_of("12 Artist - Title") == ("Title", "12 Artist")


def test_musdb18_stem_files(tmp_path: Path) -> None:
    _, *stems = write_musdb18(tmp_path)
    other, song = list_songs(parse_source(f"musdb18:{tmp_path}"))
    assert (song.title, song.artist, song.url) == ("Blue", "Ann", f"{tmp_path}/train/Ann - Blue.stem.mp4")
    assert (other.title, other.artist) == ("Red - Live", "Bob & Co")
    assert "educational" in song.license
    assert not song.is_mixture
    assert alike(heard(song, "vocals"), stems[3])
    assert alike(heard(song, "accompaniment"), stems[0] + stems[1] + stems[2])
    assert not alike(heard(song, "vocals"), stems[0])


def test_musdb18_hq_folders(tmp_path: Path) -> None:
    _, *stems = write_musdb18_hq(tmp_path)
    (song,) = list_songs(parse_source(f"musdb18:{tmp_path}"))
    assert (song.title, song.artist, song.url) == ("Blue", "Ann", f"{tmp_path}/train/Ann - Blue")
    np.testing.assert_allclose(heard(song, "vocals"), stems[3], atol=1e-4)
    np.testing.assert_allclose(heard(song, "accompaniment"), stems[0] + stems[1] + stems[2], atol=1e-4)


def test_musdb18_hq_with_a_missing_stem_is_a_fault(tmp_path: Path) -> None:
    write_musdb18_hq(tmp_path)
    before = list_songs(parse_source(f"musdb18:{tmp_path}"))[0].version
    (tmp_path / "train" / "Ann - Blue" / "bass.wav").unlink()
    (song,) = list_songs(parse_source(f"musdb18:{tmp_path}"))
    assert "bass.wav missing" in song.fault
    assert not song.media
    assert song.version != before


def test_moisesdb(tmp_path: Path) -> None:
    written = write_moisesdb(tmp_path)
    (song,) = list_songs(parse_source(f"moisesdb:{tmp_path}"))
    assert (song.title, song.artist, song.fault) == ("Blue", "Ann", "")
    assert "CC BY-NC-SA" in song.license
    vocals = [samples_CN for name, samples_CN in written.items() if name.startswith("vocals/")]
    others = [samples_CN for name, samples_CN in written.items() if not name.startswith("vocals/")]
    assert (len(vocals), len(others)) == (2, 3)
    np.testing.assert_allclose(heard(song, "vocals"), np.sum(vocals, axis=0), atol=1e-4)
    np.testing.assert_allclose(heard(song, "accompaniment"), np.sum(others, axis=0), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["stems"].pop(0), "nobody sings"),
        (lambda record: record["stems"].__delitem__(slice(1, 3)), "no accompaniment"),
        (lambda record: record["stems"][1]["tracks"][0].update(id="elsewhere"), r"1 of its 5 tracks are missing: bass/elsewhere\.wav"),
        (lambda record: record["stems"][1]["tracks"][0].update(id="../../../escape"), "1 of its 5 tracks are missing"),
        (lambda record: record["stems"][0].pop("tracks"), "not as MoisesDB's"),
        (lambda record: record.pop("stems"), "not as MoisesDB's"),
        (lambda record: record.update(stems=["vocals"]), "not as MoisesDB's"),
    ],
)
def test_a_song_of_moisesdb_that_cannot_be_used_says_why(change, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_moisesdb(tmp_path)
    (path,) = tmp_path.rglob("data.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    (song,) = list_songs(parse_source(f"moisesdb:{tmp_path}"))
    assert not song.media
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(song.fault)


def test_a_record_of_moisesdb_that_is_not_json_costs_one_song(tmp_path: Path) -> None:
    write_moisesdb(tmp_path)
    broken = tmp_path / "moisesdb_v0.1" / "broken"
    broken.mkdir()
    (broken / "data.json").write_text('{"song": ')
    good, bad = list_songs(parse_source(f"moisesdb:{tmp_path}"))
    assert not good.fault
    assert "not JSON" in bad.fault
