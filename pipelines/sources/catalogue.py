"""catalogue:FILE: titles without media, as the Song Popularity Dataset has them, resolved by a provider.

Kaggle's "19,000 Spotify songs": song_data.csv (song_name, song_popularity, song_duration_ms, …), and beside it song_info.csv (song_name,
artist_name, album_names, playlist), line by line the same songs. Other spellings of these columns are accepted, see `SPELLINGS`.

Everything is done on whole columns: a catalogue may have a million rows.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources.names import artist_keys, first_artists, title_keys
from pipelines.sources.providers import Provider, WantedSong
from pipelines.sources.sheet import Sheet, open_sheet

log = logging.getLogger(__name__)

SISTER = "song_info.csv"
EXPECTED = f"the Song Popularity Dataset's song_data.csv (with {SISTER} beside it), or a CSV with title, artist, year, popularity"
SPELLINGS = {
    "title": ("song_name", "track_name", "title", "name", "song", "track"),
    "artist": ("artist_name", "track_artist", "artist", "artists", "artist_names", "artist(s)_name"),
    "year": ("year", "release_year", "released_year", "release_date", "album_release_date", "track_album_release_date"),
    "popularity": ("song_popularity", "track_popularity", "popularity"),
}
_NO_YEAR = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True)
class CatalogueConfig:
    """Which songs of a catalogue are taken."""

    from_year: int = 2000
    """The first year of release; songs without a year are taken too."""

    def __post_init__(self) -> None:
        if not 0 <= self.from_year <= 9999:
            raise UserError(f"from_year is {self.from_year}: choose a year of four digits, or 0 for all")


@dataclass(frozen=True, kw_only=True)
class CatalogueCounts:
    """What became of a catalogue's rows: all are songs or dropped."""

    rows: int
    unreadable: int
    """Lines whose number of columns is not the header's."""
    untitled: int
    repeated: int
    """The same title and artist as a more popular row."""
    early: int
    """Released before `from_year`."""
    same_media: int
    """Resolved to the same media as a more popular song."""
    songs: int


def list_catalogue(kind: str, place: Place, provider: Provider, config: CatalogueConfig) -> tuple[list[FoundSong], CatalogueCounts]:
    """The songs, the most popular first, and what was dropped. UserError when the file cannot be used or no song is left."""
    sheet = open_sheet(place, EXPECTED)
    columns = {name: sheet.column(spellings) for name, spellings in SPELLINGS.items()}
    if columns["title"] is None:
        raise UserError(
            f"{place} has no column for titles ({', '.join(SPELLINGS['title'])}) but {', '.join(sheet.header)}: give {EXPECTED}"
        )
    read = sheet.read([written for written in columns.values() if written is not None])
    texts = {name: read[written].combine_chunks() for name, written in columns.items() if written is not None}
    titles = texts["title"]
    artists = first_artists(texts["artist"] if "artist" in texts else _sister_artists(place, titles))
    year = _years(texts["year"]) if "year" in texts else np.full(len(titles), _NO_YEAR)
    popularity = _numbers(texts["popularity"]) if "popularity" in texts else np.zeros(len(titles))
    names = pa.table([titles, artists, title_keys(titles), artist_keys(artists)], names=["title", "artist", "title_key", "artist_key"])
    kept, counts = _select(names, year, popularity, config)
    songs = _resolve(kind, place, provider, names.take(kept))
    found = CatalogueCounts(
        rows=len(titles) + len(sheet.unreadable),
        unreadable=len(sheet.unreadable),
        **counts,
        same_media=len(kept) - len(songs),
        songs=len(songs),
    )
    log.info(
        "%s:%s: %d songs of %d rows; dropped %d repeated, %d before %d, %d untitled, %d unreadable, %d with the same media",
        *(kind, place, found.songs, found.rows, found.repeated, found.early, config.from_year),
        *(found.untitled, found.unreadable, found.same_media),
    )
    if not songs:
        raise UserError(
            f"{kind}:{place} leaves no songs of its {found.rows} rows ({found.early} are before {config.from_year}): give {EXPECTED}"
        )
    return songs, found


def _select(
    names: pa.Table, year: NDArray[np.integer], popularity: NDArray[np.float64], config: CatalogueConfig
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(rows that are kept, the most popular first; how many were dropped and why). A song is as old as its earliest row says."""
    keys = pc.binary_join_element_wise(names["title_key"], names["artist_key"], pa.scalar("\0", pa.large_string()))
    codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    titled = pc.not_equal(names["title"], "").to_numpy()
    # Stable: of equals the first row stays.
    order = np.lexsort((np.arange(len(codes)), -popularity))
    order = order[titled[order]]
    _, first = np.unique(codes[order], return_index=True)
    unique = order[np.sort(first)]
    earliest = np.full(int(codes.max(initial=-1)) + 1, _NO_YEAR, np.int64)
    np.minimum.at(earliest, codes, year)
    kept = unique[earliest[codes[unique]] >= config.from_year]
    counts = {
        "untitled": int(len(titled) - np.count_nonzero(titled)),
        "repeated": len(order) - len(unique),
        "early": len(unique) - len(kept),
    }
    return kept, counts


def _resolve(kind: str, place: Place, provider: Provider, names: pa.Table) -> list[FoundSong]:
    """One song for each media; where two names lead to the same, the first, which is the more popular."""
    songs: dict[str, FoundSong] = {}
    for title, artist, title_key, artist_key in zip(*(column.to_pylist() for column in names.columns), strict=True):
        address = f"{kind}:{place}#{artist} - {title}"
        song = provider.find(WantedSong(title, artist, title_key, artist_key, address))
        songs.setdefault(song.url, song)
    return list(songs.values())


def _sister_artists(place: Place, titles: pa.Array) -> pa.Array:
    """Artists from song_info.csv beside the catalogue; "" where there is none, or where a title has several."""
    nobody = pa.array([""] * len(titles), pa.large_string())
    sister = Place(f"{place.uri.rsplit('/', 1)[0]}/{SISTER}", place.access)
    if place.name == SISTER or not sister.exists():
        log.warning("%s names no artists, and there is no %s beside it: titles alone are searched", place, SISTER)
        return nobody
    sheet: Sheet = open_sheet(sister, EXPECTED)
    title, artist = (sheet.column(SPELLINGS[name]) for name in ("title", "artist"))
    if title is None or artist is None:
        raise UserError(f"{sister} has no columns song_name and artist_name but {', '.join(sheet.header)}: mend or remove it")
    read = sheet.read([title, artist])
    named, artists = read[title].combine_chunks(), read[artist].combine_chunks()
    if named.equals(titles):
        return artists
    # Rows were removed or sorted in one of the two: then only a title with one artist says who sang it.
    pairs = pa.table({"title": named, "artist": artists}).group_by("title").aggregate([("artist", "min"), ("artist", "max")])
    sure = pairs.filter(pc.equal(pairs["artist_min"], pairs["artist_max"]))
    at = pc.index_in(titles, sure["title"].combine_chunks())
    return pc.fill_null(sure["artist_min"].combine_chunks().take(at), "")


def _years(texts: pa.Array) -> NDArray[np.int64]:
    """The first four digits of 2005, 2005.0 or 2005-03-01, or those of 01/03/2005; a large number where there are none."""
    found = pc.struct_field(pc.extract_regex(texts, r"(?:^|\D)(?P<year>[12]\d{3})(?:\D|$)"), "year")
    return pc.fill_null(pc.cast(found, pa.int64()), _NO_YEAR).to_numpy(zero_copy_only=False)


def _numbers(texts: pa.Array) -> NDArray[np.float64]:
    """Numbers; what is none counts as below all."""
    is_number = pc.match_substring_regex(texts, r"^[-+]?\d+(\.\d*)?$")
    return pc.fill_null(pc.cast(pc.if_else(is_number, texts, None), pa.float64()), -1.0).to_numpy(zero_copy_only=False)
