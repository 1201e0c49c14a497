"""Sources: SPEC parsing and what counts as a song folder."""

import os
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines.sources import list_songs, parse_source


@pytest.mark.parametrize("kind", ["demo", "pairs", "folder", "musdb18", "moisesdb", "urls", "catalogue"])
def test_every_source_of_the_interface_is_known(kind: str) -> None:
    source = parse_source(f"{kind}:/x/y")
    assert (source.kind, str(source.place), str(source)) == (kind, "/x/y", f"{kind}:/x/y")


def test_a_wrong_kind_names_them_all() -> None:
    with pytest.raises(UserError, match=r"demo:URI, pairs:URI, folder:URI, musdb18:URI, moisesdb:URI, urls:FILE, catalogue:FILE"):
        parse_source("spotify:/x")


@pytest.mark.parametrize(
    ("kind", "missing", "empty"),
    [
        ("pairs", "a folder for each song", "vocals.wav and accompaniment.wav"),
        ("folder", "finished songs", "audio files"),
        ("musdb18", "stem.mp4", "stem.mp4"),
        ("moisesdb", "data.json", "data.json"),
    ],
)
def test_a_missing_or_empty_folder_says_in_one_line_what_is_expected(kind: str, missing: str, empty: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is not a folder.*{missing}") as nowhere:
        list_songs(parse_source(f"{kind}:{tmp_path / 'nowhere'}"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=f"holds no songs.*{empty}") as nothing:
        list_songs(parse_source(f"{kind}:{tmp_path}"))
    assert "\n" not in f"{nowhere.value}{nothing.value}"


@pytest.mark.parametrize(("kind", "columns"), [("urls", "url, title, artist, license"), ("catalogue", "song_data.csv")])
def test_a_missing_or_empty_file_says_in_one_line_what_is_expected(kind: str, columns: str, tmp_path: Path) -> None:
    provider = "yt-dlp:ytsearch1" if kind == "catalogue" else None
    (tmp_path / "empty.csv").write_text("\n\n")
    (tmp_path / "binary.csv").write_bytes(b"\x00\x01\xff" * 99)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + bytes(99))
    for name, words in (
        ("nowhere.csv", "does not exist"),
        (".", "is a folder"),
        ("empty.csv", "is empty"),
        ("binary.csv", "neither Parquet nor CSV"),
        ("damaged.parquet", "damaged Parquet"),
    ):
        with pytest.raises(UserError, match=f"{words}.*{columns}") as error:
            list_songs(parse_source(f"{kind}:{tmp_path / name}"), provider=provider)
        assert "\n" not in str(error.value)


def test_a_provider_is_for_catalogues_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --provider out"):
        list_songs(parse_source(f"pairs:{tmp_path}"), provider="library:/x")


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
