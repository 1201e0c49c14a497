"""What a dataset holds: its songs' rows, where their latents lie, its rejects, and the songs that were taken down.

Everything here reads; `pipelines.dataset.write` writes, `pipelines.dataset.commit` decides what readers see.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.dataset.format import MANIFEST, REJECTS, SONGS, Manifest, latents
from infra.dataset.parquet import READERS, TableCache, read_table, read_tables
from infra.dataset.snapshots import read_rows
from infra.storage.place import MissingObjectError, Place
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES

DUPLICATE = "duplicate"  # the stage of a reject that has the audio of another song
TAKEDOWNS = "takedowns"
PART = "part-"  # how the names of joined files begin
# What only statistics and checks need: 10 kB a song as Python's objects, 2 kB in a table.
_SUMS = ("vocal_levels_db", *(name for name in SONGS.names if name.endswith("_sum")), "sections")
# A fingerprint is 10 kB: read when recordings are compared.
_HELD = pa.schema([field for field in SONGS if field.name != "fingerprint"])
_ADDRESSES = pa.schema([SONGS.field("song_id"), SONGS.field("url"), SONGS.field("source_version")])
_FINGERPRINTS = pa.schema([SONGS.field("song_id"), SONGS.field("fingerprint")])


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """What a dataset holds, committed or about to be."""

    songs: dict[str, dict[str, Any]]
    """Rows of songs/ by song id, without sums and fingerprints."""
    rejects: list[dict[str, Any]]
    table: pa.Table = field(default_factory=_HELD.empty_table)
    """The same rows with their sums, in the same order."""
    files: dict[str, str] = field(default_factory=dict)
    """Song id → the file of its latents, below the dataset."""
    row_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Song id → the files in songs/ that hold its row; songs that were taken down are among them."""
    committed: frozenset[str] = frozenset()
    """Song ids of the last commit; the others are what a run has written since, or left when it was killed."""
    taken: frozenset[str] = frozenset()
    """Song ids that were taken down: they never come back."""

    def done(self, present: Mapping[str, str], elsewhere: Callable[[Mapping[str, Any]], bool] = lambda _: False) -> dict[str, str]:
        """Address → version of each song that needs no work; `present` are the source's songs, likewise; `elsewhere` says of a row that it
        belongs to another source.

        Two rows of one address are what a kill leaves of a replaced song: it is done again. So is a duplicate whose owner went or changed.
        """
        rows = Counter(row["url"] for row in self.songs.values())
        owners = {song_id for song_id, row in self.songs.items() if elsewhere(row) or present.get(row["url"]) == row["source_version"]}
        whole = [row for row in self.rejects if row["segment"] is None and (row["stage"] != DUPLICATE or row["song_id"] in owners)]
        single = [row for row in self.songs.values() if rows[row["url"]] == 1]
        return {row["url"]: row["source_version"] for row in (*whole, *single)}

    @cached_property
    def indices(self) -> dict[str, int]:
        """Song id → its row in `table`."""
        return {song_id: index for index, song_id in enumerate(self.songs)}

    def only(self, song_ids: Set[str]) -> "Stored":
        """The same with these songs alone."""
        kept = [song_id for song_id in self.songs if song_id in song_ids]
        return replace(
            self,
            songs={song_id: self.songs[song_id] for song_id in kept},
            table=self.table.take(pa.array([self.indices[song_id] for song_id in kept], pa.int64())),
            files={song_id: self.files[song_id] for song_id in kept},
        )

    def row(self, song_id: str) -> dict[str, Any]:
        """A song's row with its sums."""
        return self.table.slice(self.indices[song_id], 1).to_pylist()[0]

    def whole_row(self, out: Place, song_id: str) -> dict[str, Any]:
        """The row as it is stored in `out`."""
        return {**self.row(song_id), "fingerprint": read_fingerprints(out, self, [song_id]).get(song_id)}


class Tables:
    """What was read of a dataset's rows, for whoever reads them again and again."""

    def __init__(self) -> None:
        self.songs, self.rejects = TableCache(_HELD), TableCache(REJECTS)


def read_stored(out: Place, tables: Tables | None = None) -> Stored:
    """Everything that is stored; a song whose latents are gone does not count, nor does one that was taken down.

    With `tables` only rows that are new or changed since it was last given are read.
    """
    tables = tables or Tables()
    names = {f"latents/{name}" for name, _ in (out / "latents").entries() if name.endswith(".parquet")}
    taken = frozenset(place.name.removesuffix(".json") for place in (out / TAKEDOWNS).list(suffix=".json"))
    committed = _snapshot_files(out)
    joined = {song_id: file for song_id, file in committed.items() if file.rpartition("/")[2].startswith(PART)}
    held = tables.songs.read(out / "songs")
    row_files: dict[str, tuple[str, ...]] = {}
    for name, rows in held.items():
        for song_id in rows["song_id"].to_pylist():
            row_files[song_id] = (*row_files.get(song_id, ()), f"songs/{name}")
    whole = pa.concat_tables([_HELD.empty_table(), *held.values()]).combine_chunks()
    light = whole.drop_columns(list(_SUMS)).to_pylist()
    first: dict[str, int] = {}  # the song's own file lists before or after a joined one; both hold the same row
    files: dict[str, str] = {}
    for index, row in enumerate(light):
        song_id = row["song_id"]
        folder = f"latents/split={row['split']}/"
        file = joined.get(song_id, "")
        if file not in names or not file.startswith(folder):  # a joined file comes first: a cut-short join leaves the song's own beside it
            file = f"{folder}{song_id}.parquet"
        if song_id not in first and song_id not in taken and file in names:
            first[song_id], files[song_id] = index, file
    order = sorted(first)
    return Stored(
        songs={song_id: light[first[song_id]] for song_id in order},
        rejects=pa.concat_tables([REJECTS.empty_table(), *tables.rejects.read(out / "rejects").values()]).to_pylist(),
        table=whole.take(pa.array([first[song_id] for song_id in order], pa.int64())),
        files=files,
        row_files=row_files,
        committed=frozenset(committed),
        taken=taken,
    )


def _snapshot_files(out: Place) -> dict[str, str]:
    """Song id → file, as the last commit says."""
    try:
        name = Manifest.from_json((out / MANIFEST).read_bytes(), str(out / MANIFEST)).snapshot
    except MissingObjectError:
        return {}
    if name is None:
        return {}
    rows = read_rows(out, name)
    return dict(zip(rows["song_id"].to_pylist(), rows["file"].to_pylist(), strict=True))


def read_song(out: Place, stored: Stored, song_id: str) -> pa.Table:
    """A song's latents, wherever they lie."""
    table = read_table([out / stored.files[song_id]], latents(LATENT_CHANNELS, SEGMENT_FRAMES))
    return table.filter(pc.equal(table["song_id"], song_id))


def read_fingerprints(out: Place, stored: Stored, song_ids: Sequence[str]) -> dict[str, NDArray[np.uint32]]:
    """The fingerprints of these songs, of those that have one."""
    wanted = pa.array(sorted(set(song_ids)), pa.string())
    files = sorted({stored.row_files[song_id][0] for song_id in song_ids})
    found: dict[str, NDArray[np.uint32]] = {}
    for start in range(0, len(files), READERS):  # a joined file is 50 MB
        for table in read_tables([out / file for file in files[start : start + READERS]], _FINGERPRINTS):
            table = table.filter(pc.and_(pc.is_in(table["song_id"], wanted), pc.is_valid(table["fingerprint"])))
            for song_id, words in zip(table["song_id"].to_pylist(), table["fingerprint"], strict=True):
                found[song_id] = words.values.to_numpy().astype(np.uint32)
    return found


@dataclass(frozen=True, kw_only=True)
class Takedown:
    """The note that a song is not wanted, in takedowns/. It knows the recording again; nothing that can be heard is in it."""

    song_id: str
    taken_down: str
    """ISO 8601, UTC."""
    fingerprint: str = ""
    """Of the recording's middle, little-endian words in hexadecimal digits; empty when none was taken."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Where it and its copies were found, each with its version."""

    @property
    def words(self) -> NDArray[np.uint32]:
        return np.frombuffer(bytes.fromhex(self.fingerprint), "<u4").astype(np.uint32)


def note_takedown(out: Place, stored: Stored, song_id: str) -> Takedown:
    """From now on no run takes this song; the note that stands then. One that is there stays, but for addresses found since."""
    place = out / TAKEDOWNS / f"{song_id}.json"
    # Its row too when a note hides it from `stored`: a kill, or a prepare that ran meanwhile, left it.
    rows = read_table([out / file for file in stored.row_files.get(song_id, ())], _ADDRESSES).to_pylist()
    found = {row["url"]: row["source_version"] for row in [*rows, *stored.rejects] if row["song_id"] == song_id and row["url"]}
    if song_id in stored.taken:
        before = read_takedown(out, song_id)
        note = replace(before, addresses={**before.addresses, **found})
        if note != before:
            place.write_bytes(_json(note))
        return note
    words = read_fingerprints(out, stored, [song_id]).get(song_id) if song_id in stored.songs else None
    note = Takedown(
        song_id=song_id,
        taken_down=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint="" if words is None else words.astype("<u4").tobytes().hex(),
        addresses=found,
    )
    return note if place.put_if_absent(_json(note)) else read_takedown(out, song_id)


def _json(note: Takedown) -> bytes:
    return (json.dumps(asdict(note), indent=1) + "\n").encode()


def read_takedown(out: Place, song_id: str) -> Takedown:
    return Takedown(**json.loads((out / TAKEDOWNS / f"{song_id}.json").read_bytes()))
