"""songs.csv in a folder of pairs: what its rows give the songs, and what is said of each mistake before any work."""

from pathlib import Path

import pytest

from infra.dataset.licences import asks_for_credit, known_licence
from infra.errors import UserError
from pipelines.song import FoundSong
from pipelines.sources import list_songs, parse_source

HEADER = "folder,title,artist,license,credit,url,split"
ROWS = (
    'one,First,"Ann, Bob",cc-by-4.0,,https://songs.example/1,train',
    "deep/two,,Cy,CC-BY-SA-4.0,Two by Cy at songs.example,,Validation",
    "three,,,CC0-1.0,,,",
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for name in ("one", "deep/two", "three"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        for stem in ("vocals.wav", "accompaniment.ogg"):
            (tmp_path / "pairs" / name / stem).write_bytes(name.encode())
    return tmp_path / "pairs"


def listed(pairs: Path, sheet: str | None = None) -> dict[str, FoundSong]:
    songs = list_songs(parse_source(f"pairs:{pairs}"), sheet=sheet)
    return {song.url.removeprefix(f"{pairs}/"): song for song in songs}


def write(pairs: Path, *rows: str, header: str = HEADER) -> None:
    (pairs / "songs.csv").write_text("\n".join((header, *rows)) + "\n")


def test_a_sheet_says_whose_each_song_is(pairs: Path) -> None:
    bare = listed(pairs)
    assert {song.license for song in bare.values()} == {""}
    write(pairs, *ROWS)
    songs = listed(pairs)
    one, two, three = songs["one"], songs["deep/two"], songs["three"]
    assert (one.title, one.artist, one.license, one.credit) == ("First", "Ann, Bob", "CC-BY-4.0", "First by Ann, Bob")
    assert (one.page_url, one.split) == ("https://songs.example/1", "train")
    assert (two.title, two.credit, two.split) == ("two", "Two by Cy at songs.example", "validation")
    assert (three.title, three.license, three.credit, three.split) == ("three", "CC0-1.0", "", None)
    assert all(songs[name].media == bare[name].media and songs[name].url == bare[name].url for name in bare)
    assert all(songs[name].version != bare[name].version for name in bare), "what is prepared already learns its licence"


def test_a_songs_version_follows_its_own_row(pairs: Path) -> None:
    write(pairs, *ROWS)
    before = listed(pairs)
    write(pairs, ROWS[0], ROWS[1].replace("Validation", "train"), ROWS[2])
    after = listed(pairs)
    assert {name for name in before if before[name].version != after[name].version} == {"deep/two"}


def test_a_sheet_may_lie_elsewhere(pairs: Path, tmp_path: Path) -> None:
    write(pairs, *ROWS)
    (pairs / "songs.csv").rename(tmp_path / "mine.csv")
    assert {song.license for song in listed(pairs, str(tmp_path / "mine.csv")).values()} == {"CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0"}
    with pytest.raises(UserError, match="does not exist: give a CSV"):
        listed(pairs, str(tmp_path / "other.csv"))
    with pytest.raises(UserError, match="leave --sheet out"):
        list_songs(parse_source(f"folder:{pairs}"), sheet=str(tmp_path / "mine.csv"))


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (ROWS, HEADER.replace("license", "licence"), "has no column 'license'"),
        (ROWS[:2], HEADER, "has no row for three"),
        ((*ROWS, ROWS[2]), HEADER, "row 4: three has a row already"),
        ((*ROWS, "tree,,,CC0-1.0,,,validation"), HEADER, "no song folder 'tree', which it holds out, .*did you mean 'three'"),
        ((ROWS[0], ROWS[1], "three,,,free,,,"), HEADER, "row 3, three: the licence 'free' is not known: write its SPDX"),
        ((ROWS[0], ROWS[1], "three,,,,,,"), HEADER, "three has no licence"),
        ((ROWS[0], ROWS[1], "three,,,CC-BY-3.0,,,"), HEADER, "CC-BY-3.0 asks for a credit: fill in the column credit, or artist"),
        ((ROWS[0], ROWS[1], "three,,,CC0-1.0,,,test"), HEADER, "'test' is neither train nor validation"),
        ((ROWS[0], ROWS[1], "three,,,CC0-1.0"), HEADER, "line 4: not as many columns"),
        (tuple(f"{name},,,CC0-1.0,,,validation" for name in ("one", "deep/two", "three")), HEADER, "holds out every song"),
    ],
)
def test_a_wrong_sheet_is_one_line_with_its_remedy(pairs: Path, rows: tuple[str, ...], header: str, said: str) -> None:
    write(pairs, *rows, header=header)
    with pytest.raises(UserError, match=said) as error:
        listed(pairs)
    assert "\n" not in str(error.value)


def test_licences_are_known_by_their_identifiers() -> None:
    assert known_licence("cc0-1.0") == "CC0-1.0"
    assert known_licence("LicenseRef-letter-of-May") == "LicenseRef-letter-of-May"
    with pytest.raises(UserError, match=r"such as CC-BY-4\.0"):
        known_licence("CC BY 4.0")
    assert not asks_for_credit("CC0-1.0")
    assert not asks_for_credit("")
    assert asks_for_credit("CC-BY-4.0")
    assert asks_for_credit("LicenseRef-letter-of-May")
