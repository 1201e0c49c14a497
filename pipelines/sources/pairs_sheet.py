"""songs.csv in a folder of pairs: who made each song, under which licence, how to credit it, and which songs are held out."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace

from infra.dataset.format import SPLITS, Split
from infra.dataset.licences import asks_for_credit, known_licence
from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources.listing import digest
from pipelines.sources.sheet import open_sheet

SONGS_SHEET = "songs.csv"
NEEDED = ("folder", "license")
OPTIONAL = ("title", "artist", "credit", "url", "split")
EXPECTED = f"a CSV or Parquet file with the columns {', '.join(NEEDED)} and, where they are known, {', '.join(OPTIONAL)}"


@dataclass(frozen=True, kw_only=True)
class SheetSong:
    """One row."""

    folder: str
    """Below the source."""
    license: str
    title: str
    artist: str
    credit: str
    """The attribution in full; a licence that asks for one gets "TITLE by ARTIST" where this is empty."""
    url: str
    split: Split | None

    def applied(self, song: FoundSong) -> FoundSong:
        """The song with what the row says; another row is another version of it."""
        return replace(
            song,
            version=digest([song.version, self]),
            title=self.title,
            artist=self.artist,
            license=self.license,
            credit=self.credit,
            page_url=self.url,
            split=self.split,
        )


def read_songs_sheet(place: Place, folders: Collection[str]) -> dict[str, SheetSong]:
    """Folder → its row, one for each of the source's `folders`.

    Raises: UserError for the first thing that is wrong, before any work: a missing column, an unknown licence, a folder that is not there
    or has no row, a missing credit, an unknown split, and a sheet that leaves nothing to train on.
    """
    sheet = open_sheet(place, EXPECTED)
    missing = [name for name in NEEDED if sheet.column([name]) is None]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r} (it has {', '.join(sheet.header)}): give {EXPECTED}")
    written = {name: column for name in (*NEEDED, *OPTIONAL) if (column := sheet.column([name])) is not None}
    columns = {name: values.to_pylist() for name, values in sheet.read(sorted(set(written.values()))).items()}
    if sheet.unreadable:
        raise UserError(f"{place}, line {sheet.unreadable[0]}: not as many columns as the header's; put text with commas in double quotes")
    rows: dict[str, SheetSong] = {}
    for index in range(len(columns[written["folder"]])):
        said = {name: columns[written[name]][index] if name in written else "" for name in (*NEEDED, *OPTIONAL)}
        row = _row(f"{place}, row {index + 1}", said, folders)
        if row.folder in rows:
            raise UserError(f"{place}, row {index + 1}: {row.folder} has a row already: remove one")
        rows[row.folder] = row
    if without := sorted(set(folders) - rows.keys()):
        raise UserError(
            f"{place} has no row for {without[0]}" + (f" and {len(without) - 1} more folders" if len(without) > 1 else "")
            + ": say its licence in a row, or take the folder out"
        )  # fmt: skip
    if all(row.split == "validation" for row in rows.values()):
        raise UserError(f"{place} holds out every song, and nothing is left to train on: leave the split of some empty, or write train")
    return rows


def _row(where: str, said: dict[str, str], folders: Collection[str]) -> SheetSong:
    folder = said["folder"].strip("/")
    if folder not in folders:
        near = difflib.get_close_matches(folder, folders, n=1) or sorted(folders)[:1]
        held = ", which it holds out," if said["split"] == "validation" else ""
        raise UserError(f"{where}: there is no song folder {folder!r}{held} in the source: did you mean {near[0]!r}?")
    if not said["license"]:
        raise UserError(f"{where}: {folder} has no licence: write its SPDX identifier, such as CC0-1.0")
    try:
        licence = known_licence(said["license"])
    except UserError as error:
        raise UserError(f"{where}, {folder}: {error}") from error
    split: Split | None = next((split for split in SPLITS if split == said["split"].lower()), None)
    if said["split"] and split is None:
        raise UserError(f"{where}, {folder}: the split {said['split']!r} is neither train nor validation: write one of them, or nothing")
    title = said["title"] or folder.rpartition("/")[2]
    credit = said["credit"]
    if asks_for_credit(licence) and not credit:
        if not said["artist"]:
            raise UserError(f"{where}, {folder}: {licence} asks for a credit: fill in the column credit, or artist")
        credit = f"{title} by {said['artist']}"
    return SheetSong(folder=folder, license=licence, title=title, artist=said["artist"], credit=credit, url=said["url"], split=split)
