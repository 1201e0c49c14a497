"""Snapshots of a latent dataset: which songs a manifest vouches for, and in which file each lies.

A manifest names its snapshot, so whoever reads through it sees one commit: songs that a running prepare adds do not count yet, and files
are deleted only after a manifest that does without them. Snapshots stay: they tell which datasets, and so which checkpoints, held a song.
"""

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset.parquet import read_table, table_bytes
from infra.storage.place import Place

FOLDER = "snapshots"
SNAPSHOT = pa.schema(
    [
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("segments", pa.int32(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
    ]
)


def write_snapshot(place: Place, digest: str, rows: pa.Table) -> str:
    """Store `rows` (of SNAPSHOT) for the dataset of this digest, under a name that its content gives; the name below the dataset."""
    data = table_bytes(rows.cast(SNAPSHOT))
    name = f"{FOLDER}/{digest[:16]}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    if not (place / name).exists():
        (place / name).write_bytes(data)
    return name


def read_rows(place: Place, name: str) -> pa.Table:
    """A snapshot's table; MissingObjectError when it is not there."""
    return read_table([place / name], SNAPSHOT)


def digests_with(place: Place, song_id: str) -> set[str]:
    """The first 16 digits of the digest of every dataset, of all that this place ever was, that held the song."""
    found = set()
    for snapshot in (place / FOLDER).list(suffix=".parquet"):
        if pc.any(pc.equal(read_table([snapshot], SNAPSHOT)["song_id"], song_id)).as_py():
            found.add(snapshot.name.partition("-")[0])
    return found
