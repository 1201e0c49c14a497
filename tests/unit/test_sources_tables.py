"""Sources that are tables: web addresses, and catalogues whose titles a provider resolves."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.audio.files import decode
from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources import CatalogueConfig, list_songs, parse_source
from pipelines.sources.catalogue import CatalogueCounts, list_catalogue
from pipelines.sources.names import artist_keys, title_keys
from pipelines.sources.providers import parse_provider
from tests.source_examples import write_catalogue, write_folder

SEARCH = "yt-dlp:ytsearch1"


def table(path: Path, header: Sequence[str], *rows: Sequence[object]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def catalogue(path: Path, config: CatalogueConfig | None = None, provider: str = SEARCH) -> tuple[list[FoundSong], CatalogueCounts]:
    return list_catalogue("catalogue", Place(str(path)), parse_provider(provider), config or CatalogueConfig())


def test_urls_from_csv_and_parquet_are_the_same(tmp_path: Path) -> None:
    rows = [("https://h/a.mp3", "A", "Ann", "CC0"), ("https://h/b.mp3", "Déjà, vu", "", "")]
    columns = ("url", "title", "artist", "license")
    table(tmp_path / "u.csv", columns, *rows)
    pq.write_table(pa.table({name: [row[at] or None for row in rows] for at, name in enumerate(columns)}), tmp_path / "u.parquet")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "u.csv").read_bytes())
    (tmp_path / "semicolons.csv").write_text("URL ;Title;artist;license\nhttps://h/a.mp3;A;Ann;CC0\n\nhttps://h/b.mp3;Déjà, vu;;\n")
    expected = list_songs(parse_source(f"urls:{tmp_path / 'u.csv'}"))
    assert [(song.fetch, song.url, song.title, song.artist, song.license) for song in expected] == [(row[0], *row) for row in rows]
    for other in ("u.parquet", "bom.csv", "semicolons.csv"):
        assert list_songs(parse_source(f"urls:{tmp_path / other}")) == expected


def test_urls_need_only_their_own_column(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("url\nhttps://h/a.mp3\n\n   \nhttps://h/a.mp3\nHTTPS://h/c.mp3\n")
    songs = list_songs(parse_source(f"urls:{tmp_path / 'u.csv'}"))
    assert [song.fetch for song in songs] == ["https://h/a.mp3", "HTTPS://h/c.mp3"]
    assert all(song.is_mixture for song in songs)


def test_an_address_that_stands_twice_keeps_its_first_line(tmp_path: Path) -> None:
    path = table(tmp_path / "u.csv", ("url", "title"), ("https://h/a", "first"), ("https://h/a", "second"))
    assert [song.title for song in list_songs(parse_source(f"urls:{path}"))] == ["first"]


@pytest.mark.parametrize(
    ("url", "words"),
    [("ftp://h/a.mp3", "scheme 'ftp'"), ("/home/a.mp3", "scheme ''"), ("https:///a.mp3", "host"), ("https://[/a", "address")],
)
def test_a_wrong_address_is_a_fault_of_its_song(url: str, words: str, tmp_path: Path) -> None:
    bad, good = list_songs(parse_source(f"urls:{table(tmp_path / 'u.csv', ['url'], [url], ['http://h/b.wav'])}"))
    assert words in bad.fault
    assert (bad.url, bad.fetch, good.fault) == (url, "", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("address,title\nhttps://h/a,A\n", "no column url but address, title"),
        ("url,title\nhttps://h/a,A, B\nhttps://h/b,B\n", r"1 rows \(row 2\).*2 columns.*quotes"),
        ("url,url\nhttps://h/a,b\n", "column 'url' twice"),
        ("url,title\n,A\n", "its column url is empty"),
        ("url,title\nhttps://h/a,\xe9\n", "UTF-8"),
    ],
)
def test_a_wrong_table_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words) as error:
        list_songs(parse_source(f"urls:{tmp_path / 'u.csv'}"))
    assert "\n" not in str(error.value)


def test_an_address_that_is_described_anew_is_a_new_version(tmp_path: Path) -> None:
    def version(title: str) -> str:
        return list_songs(parse_source(f"urls:{table(tmp_path / 'u.csv', ['url', 'title'], ['https://h/a.mp3', title])}"))[0].version

    assert version("A") == version("A") != version("B")


def test_a_catalogue_with_its_sister(tmp_path: Path) -> None:
    songs = list_songs(parse_source(f"catalogue:{write_catalogue(tmp_path)}"), provider=SEARCH)
    assert [song.fetch for song in songs] == [
        "ytsearch1:Ann BLUE - Remastered 2011",
        "ytsearch1:Bob Red (feat. Cy)",
        "ytsearch1:Éva Déjà vu",
        'ytsearch1:Earth, Wind & Fire Say "Yes", please',
        "ytsearch1:Dee Red",
    ]


def test_a_catalogue_counts_what_it_drops(tmp_path: Path) -> None:
    path = table(
        tmp_path / "c.csv",
        ("track_name", "track_artist", "track_popularity", "track_album_release_date"),
        ("Old", "Ann", 90, "1999-12-31"),
        ("New", "Ann", 10, "2000-01-01"),
        ("Undated", "Ann", 20, ""),
        ("Remastered - 2011 Remaster", "Bob", 99, "2011"),
        ("Remastered", "Bob", 5, "1975-03-01"),
        ("", "Bob", 5, "2010"),
        ("new", "ANN", 9, "2005"),
    )
    with path.open("a") as file:
        file.write("Too,many,1,2001,columns\n")
    songs, counts = catalogue(path)
    assert [song.title for song in songs] == ["Undated", "New"]
    assert counts == CatalogueCounts(rows=8, unreadable=1, untitled=1, repeated=2, early=2, same_media=0, songs=2)
    everything, counts = catalogue(path, CatalogueConfig(from_year=0))
    assert [song.title for song in everything] == ["Remastered - 2011 Remaster", "Old", "Undated", "New"]
    assert counts.early == 0
    with pytest.raises(UserError, match=r"no songs of its 8 rows \(3 are before 2030\)"):
        catalogue(table(tmp_path / "d.csv", ("title", "year"), *[("a", 2000.0), ("b", 2001), ("c", "01/02/2003")] + [("", "")] * 5), FUTURE)


FUTURE = CatalogueConfig(from_year=2030)


def test_a_year_that_no_calendar_has_is_refused() -> None:
    with pytest.raises(UserError, match="from_year is -1"):
        CatalogueConfig(from_year=-1)


@pytest.mark.parametrize(
    "header",
    [
        ("song_name", "artist_name", "song_popularity", "year"),
        ("name", "artists", "popularity", "release_date"),
        ("Title", "Artist", "Popularity", "Year"),
        ("track_name", "track_artist", "track_popularity", "album_release_date"),
    ],
)
def test_other_spellings_of_the_columns(header: Sequence[str], tmp_path: Path) -> None:
    path = table(tmp_path / "c.csv", header, ("Low", "['Ann', 'Bob']", 1, 2001), ("High", "Cy;Dee", 2, 2001), ("Gone", "Ann", 3, 1970))
    songs, _ = catalogue(path)
    assert [(song.title, song.artist) for song in songs] == [("High", "Cy"), ("Low", "Ann")]


def test_a_catalogue_without_titles_names_the_spellings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column for titles.*song_name.*but tempo, key"):
        catalogue(table(tmp_path / "c.csv", ("tempo", "key"), (1, 2)))


def test_a_sister_of_other_lines_names_only_artists_that_are_sure(tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    lines = (tmp_path / "song_info.csv").read_text().splitlines()
    (tmp_path / "song_info.csv").write_text("\n".join([*lines[:1], *reversed(lines[1:]), "Red (feat. Cy),Eve,x,y"]))
    artists = {song.title: song.artist for song in catalogue(tmp_path / "song_data.csv")[0]}
    assert artists["Déjà vu"] == "Éva"
    assert artists["Red (feat. Cy)"] == ""
    (tmp_path / "song_info.csv").unlink()
    assert {song.artist for song in catalogue(tmp_path / "song_data.csv")[0]} == {""}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Déjà Vu", "deja vu", True),
        ("Help! (Remastered 2009)", "Help", True),
        ("Help! - 2009 Digital Remaster", "help", True),
        ("Help! - Remastered", "Help!", True),
        ("Stay (feat. Mikky Ekko)", "Stay [ft. Mikky Ekko]", True),
        ("Stay feat. Mikky Ekko", "Stay", True),
        ("Don’t Stop", "Dont stop", True),
        ("Rock & Roll", "Rock and Roll", True),
        ("Blue - Live", "Blue", False),
        ("Blue (Part 2)", "Blue (Part 1)", False),
        ("Left", "Le", False),
        ("Defeat the Foe", "De", False),
        ("???", "!!!", False),
        ("东风破", "东风", False),
    ],
)
def test_titles_that_are_the_same(one: str, other: str, same: bool) -> None:
    keys = title_keys(pa.array([one, other], pa.large_string())).to_pylist()
    assert (keys[0] == keys[1]) is same
    assert all(keys)


def test_artists_that_are_the_same() -> None:
    spelled = ["['Beyoncé', 'Jay-Z']", "Beyoncé;Jay-Z", "BEYONCE", "Beyoncé feat. Jay-Z"]
    assert set(artist_keys(pa.array(spelled, pa.large_string())).to_pylist()) == {"beyonce"}
    assert len(set(artist_keys(pa.array(["Earth, Wind & Fire", "Earth"], pa.large_string())).to_pylist())) == 2


def test_a_library_gives_its_files(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    write_folder(tmp_path / "library")
    (tmp_path / "library" / "ann - BLUE (Remastered 2011).flac").write_bytes(b"x")
    path = table(
        tmp_path / "c.csv",
        ("title", "artist", "popularity"),
        ("Red - Remastered 2011", "BOB", 3),
        ("Blue", "Ann", 2),
        ("Take 3", "Cy", 1),
        ("Green", "Somebody else", 0),
        ("Never", "Ann", -1),
    )
    red, blue, take, green, never = list_songs(parse_source(f"catalogue:{path}"), provider=f"library:{tmp_path / 'library'}")
    assert (red.url, red.title, red.source) == (f"{tmp_path}/library/album/01 Bob - Red.flac", "Red - Remastered 2011", "catalogue")
    assert decode(Path(red.media[0].address).read_bytes()).duration_s == 1.0
    assert red.media[0].role == "mixture"
    assert "2 files of the library match (Ann - Blue.wav, ann - BLUE" in blue.fault
    assert take.record.endswith("take_3.json")
    assert "not in the library" in green.fault
    assert "not in the library" in never.fault
    assert len({song.url for song in (red, blue, take, green, never)}) == 5


def test_a_template_is_percent_encoded(tmp_path: Path) -> None:
    path = table(tmp_path / "c.csv", ("title", "artist"), ("AC/DC? {artist} é", "A&B"), ("No artist", ""))
    song, nobody = list_songs(parse_source(f"catalogue:{path}"), provider="https://h/{artist}/{title}.mp3?a={artist}")
    assert song.fetch == "https://h/A%26B/AC%2FDC%3F%20%7Bartist%7D%20%C3%A9.mp3?a=A%26B"
    assert song.url == song.fetch
    assert "names no artist" in nobody.fault


def test_two_names_of_one_address_are_one_song(tmp_path: Path) -> None:
    path = table(tmp_path / "c.csv", ("title", "artist", "popularity"), ("Blue", "Ann", 1), ("Blue", "Bob", 2))
    songs, counts = catalogue(path, provider="https://h/{title}")
    assert [song.artist for song in songs] == ["Bob"]
    assert counts.same_media == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, "--provider"),
        ("", "--provider"),
        ("library:", "library:FOLDER"),
        ("spotify:x", "'spotify:x' is unknown"),
        ("https://h/song.mp3", r"needs a host and \{title\}"),
        ("https:///{title}", "needs a host"),
        ("https://h/{name}/{title}", r"\{name\} is neither"),
        ("yt-dlp:", "ytsearch1"),
        ("yt-dlp:ytsearch5", "one result"),
        ("yt-dlp:ytsearchall", "one result"),
        ("yt-dlp:--exec", "ytsearch1"),
    ],
)
def test_a_wrong_provider_is_one_line(spec: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        parse_provider(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["ytsearch", "ytsearch1", "scsearch1", "ytsearchdate1"])
def test_search_keys_of_yt_dlp(key: str, tmp_path: Path) -> None:
    songs, _ = catalogue(table(tmp_path / "c.csv", ("title", "artist"), ("A\nb", "C")), provider=f"yt-dlp:{key}")
    assert [song.fetch for song in songs] == [f"{key}:C A b"]
