"""urls:FILE: a table of web addresses, each of a finished song: url, and where they are known title, artist and license."""

from urllib.parse import urlsplit

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources.listing import digest
from pipelines.sources.sheet import open_sheet

COLUMNS = ("url", "title", "artist", "license")
SCHEMES = ("http", "https")
EXPECTED = "a CSV or Parquet file with the columns url, title, artist, license (only url is needed)"
SHOWN_LINES = 3


def list_urls(kind: str, place: Place) -> list[FoundSong]:
    """A song for each address, in the order of the file; an address that stands twice is one song. UserError when there is none."""
    sheet = open_sheet(place, EXPECTED)
    columns = {name: sheet.column((name,)) for name in COLUMNS}
    if columns["url"] is None:
        raise UserError(f"{place} has no column url but {', '.join(sheet.header)}: give {EXPECTED}")
    read = sheet.read([written for written in columns.values() if written is not None])
    if sheet.unreadable:
        lines = ", ".join(str(line) for line in sheet.unreadable[:SHOWN_LINES])
        raise UserError(
            f"{place}: {len(sheet.unreadable)} rows (row {lines}{', …' if len(sheet.unreadable) > SHOWN_LINES else ''}) do not have the "
            f"header's {len(sheet.header)} columns: put values that hold a separator into quotes"
        )
    texts = {name: read[written].to_pylist() for name, written in columns.items() if written is not None}
    songs: dict[str, FoundSong] = {}
    for row, url in enumerate(texts["url"]):
        if url and url not in songs:
            title, artist, license = (texts[name][row] if name in texts else "" for name in COLUMNS[1:])
            version, fault = digest((url, title, artist, license)), _fault(url)
            songs[url] = (
                FoundSong(url=url, source=kind, version=version, fault=fault)
                if fault
                else FoundSong(url=url, source=kind, version=version, fetch=url, title=title, artist=artist, license=license)
            )
    if not songs:
        raise UserError(f"{kind}:{place} holds no songs: its column url is empty")
    return list(songs.values())


def _fault(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return f"not an address ({error}): correct it in the file"
    if parts.scheme.lower() not in SCHEMES:
        return f"its scheme {parts.scheme!r} is none of {', '.join(SCHEMES)}: give a web address, or use folder:URI for files"
    return "" if parts.hostname else "an address without a host: correct it in the file"
