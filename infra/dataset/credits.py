"""Whose recordings a dataset holds, and so a model learnt from: sources, licences and the credits that these ask for."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from infra.dataset.format import SONGS, Manifest
from infra.dataset.licences import asks_for_credit
from infra.dataset.parquet import read_table
from infra.dataset.snapshots import read_rows
from infra.storage.place import MissingObjectError, Place

CREDITS = "credits.json"
FEW_TITLES = 20
_NAMES = ("song_id", "title", "artist", "source", "license", "duration_s", "split", "credit", "page_url")
_READ = pa.schema([SONGS.field(name) for name in _NAMES])


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Songs of one source, licence, split and credit."""

    source: str
    license: str
    split: str
    songs: int
    duration_h: float
    credit: str = ""
    """What the licence asks to be said; empty where it asks for nothing."""
    artist: str = ""
    page_url: str = ""
    titles: tuple[str, ...] = ()
    """Of the songs, where a page or a credit is known and they are few."""


def read_credits(data: Place, manifest: Manifest) -> tuple[Credit, ...]:
    """The credits of a dataset: what its last commit wrote; of a dataset of before there were any, from its songs' rows."""
    if (data / CREDITS).exists():
        return stored_credits(data)
    rows = read_table((data / "songs").list(suffix=".parquet"), _READ).to_pylist()
    committed = None if manifest.snapshot is None else set(read_rows(data, manifest.snapshot)["song_id"].to_pylist())
    return credits_of({row["song_id"]: row for row in rows if committed is None or row["song_id"] in committed})


def credits_of(songs: Mapping[str, Mapping[str, Any]]) -> tuple[Credit, ...]:
    """The credits of these rows of songs/, by song id, in a fixed order."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for _, row in sorted(songs.items()):
        text = {name: str(row[name] or "") for name in ("source", "license", "split", "page_url", "title", "artist")}
        credit = str(row["credit"] or "")
        if not credit and text["artist"] and text["license"] and asks_for_credit(text["license"]):
            credit = f"{text['title']} by {text['artist']}"
        artist = text["artist"] if credit or text["page_url"] else ""
        groups[text["source"], text["license"], text["split"], credit, artist, text["page_url"]].append({**row, **text})
    return tuple(
        Credit(
            source=source,
            license=licence,
            split=split,
            songs=len(held),
            duration_h=round(sum(song["duration_s"] for song in held) / 3600, 4),
            credit=credit,
            artist=artist,
            page_url=page_url,
            titles=_titles(held),
        )
        for (source, licence, split, credit, artist, page_url), held in sorted(groups.items())
    )


def _titles(songs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    if len(songs) > FEW_TITLES or not any(song["page_url"] or song["credit"] for song in songs):
        return ()
    return tuple(sorted(str(song["title"]) for song in songs))


def joined(*many: Iterable[Credit]) -> tuple[Credit, ...]:
    """Each credit once, in the order in which they come."""
    return tuple(dict.fromkeys(credit for credits in many for credit in credits))


def write_credits(place: Place, credits: Sequence[Credit]) -> None:
    """Stored as credits.json at the place of a dataset, a run or a checkpoint."""
    (place / CREDITS).write_bytes((json.dumps([asdict(credit) for credit in credits], indent=1) + "\n").encode())


def stored_credits(place: Place) -> tuple[Credit, ...]:
    """What `write_credits` left there; nothing for a run of before there were credits."""
    try:
        rows = json.loads((place / CREDITS).read_bytes())
    except MissingObjectError:
        return ()
    return tuple(Credit(**{**row, "titles": tuple(row["titles"])}) for row in rows)
