"""Sources: SPEC parsing and what counts as a song folder."""

import os
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines.sources import list_songs, parse_source


@pytest.mark.parametrize("spec", ["folder:/x", "musdb18:/x", "moisesdb:/x", "urls:x.csv", "catalogue:x.csv"])
def test_planned_sources_say_what_is_supported(spec: str) -> None:
    with pytest.raises(UserError, match=r"not yet supported.*demo:URI, pairs:URI"):
        parse_source(spec)


@pytest.mark.parametrize("spec", ["", "pairs", "pairs:", "spotify:/x", "/a/folder"])
def test_a_wrong_spec_is_refused(spec: str) -> None:
    with pytest.raises(UserError):
        parse_source(spec)


def test_a_spec_keeps_its_uri() -> None:
    assert str(parse_source("pairs:s3://bucket/songs")) == "pairs:s3://bucket/songs"


def test_an_empty_or_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no songs"):
        list_songs(parse_source(f"pairs:{tmp_path}"))
    with pytest.raises(UserError, match="not a folder"):
        list_songs(parse_source(f"pairs:{tmp_path / 'nowhere'}"))


def test_folders_are_songs_or_say_why_not(tmp_path: Path) -> None:
    def put(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")

    put(
        "README.md",
        ".DS_Store",
        "artist/good/Vocals.WAV",
        "artist/good/accompaniment.flac",
        "artist/good/song.json",
        "artist/good/mixture.wav",
    )
    put("one/vocals.wav", "two/vocals.wav", "two/vocals.mp3", "two/accompaniment.ogg", ".hidden/vocals.wav")
    good, one, two = list_songs(parse_source(f"pairs:{tmp_path}"))
    assert (good.url, good.media[0].address, good.fault) == (str(tmp_path / "artist/good"), str(tmp_path / "artist/good/Vocals.WAV"), "")
    assert good.record.endswith("song.json")
    assert "no accompaniment" in one.fault
    assert "2 files for vocals" in two.fault


def test_a_name_that_is_not_utf8_is_a_fault_of_its_song(tmp_path: Path) -> None:
    for folder in (b"caf\xe9", b"good"):
        song = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
        song.mkdir()
        for stem in ("vocals", "accompaniment"):
            (song / f"{stem}.wav").write_bytes(b"x")
    faults = {song.url.encode().decode().rsplit("/", 1)[-1]: song.fault for song in list_songs(parse_source(f"pairs:{tmp_path}"))}
    assert faults.keys() == {"caf\\udce9", "good"}
    assert "not UTF-8" in faults["caf\\udce9"]
    assert not faults["good"]


def test_the_version_changes_with_the_files_that_are_used(tmp_path: Path) -> None:
    song = tmp_path / "song"
    song.mkdir()
    for name in ("vocals.wav", "accompaniment.wav", "mixture.wav"):
        (song / name).write_bytes(b"x")
    spec = parse_source(f"pairs:{tmp_path}")
    before = list_songs(spec)[0].version
    (song / "mixture.wav").write_bytes(b"longer")
    assert list_songs(spec)[0].version == before
    (song / "vocals.wav").write_bytes(b"longer")
    assert list_songs(spec)[0].version != before
