"""One split of a latent dataset: which rows there are, in which file each song lies, and what a file gives.

Row r of a split is the r-th by song and segment, whoever reads it and from whichever files.

Shapes: R rows, N of them, C channels, T frames.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.dataset.parquet import READERS, read_table
from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place

# What the readers of a split hold at once beside what they fill: a joined file is 256 MiB, and is held twice while it is read.
READING_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentTable:
    """Rows of a split in memory, sorted by song and segment: 256 KiB a segment."""

    song_ids: tuple[str, ...]
    segments: tuple[int, ...]
    vocal_RCT: NDArray[np.float16]
    accompaniment_RCT: NDArray[np.float16]
    valid_frames_R: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.song_ids)


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """What of a file belongs to a split."""

    file: str
    """Its name below the dataset."""
    song_ids: Sequence[str]
    """Sorted."""
    first: Sequence[int]
    """Row of each song's first segment."""
    counts: Sequence[int]
    """Segments of each song."""

    def rows(self) -> NDArray[np.int64]:
        """(N,): the rows that it gives, in order."""
        return np.concatenate([np.arange(first, first + count) for first, count in zip(self.first, self.counts, strict=True)])


@dataclass(frozen=True, kw_only=True, eq=False)
class FileRows:
    """Rows of one file."""

    rows_N: NDArray[np.int64]
    segments_N: NDArray[np.int64]
    valid_frames_N: NDArray[np.int64]
    vocal_NCT: NDArray[np.float16]
    accompaniment_NCT: NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitIndex:
    """The rows of a split, without their latents. Pickles, for use in Ray's workers."""

    place: Place
    parts: Sequence[FilePart]
    schema: pa.Schema
    """Of song_id, segment, valid_frames, vocal_latent and accompaniment_latent."""

    @staticmethod
    def of(place: Place, rows: pa.Table, schema: pa.Schema) -> "SplitIndex":
        """rows: song_id, segments and file, one row a song."""
        rows = rows.sort_by("song_id")
        counts = np.asarray(rows["segments"].to_numpy(), np.int64)
        first = np.cumsum(counts) - counts
        files: dict[str, list[int]] = {}
        for song, file in enumerate(rows["file"].to_pylist()):
            files.setdefault(file, []).append(song)
        names = rows["song_id"].to_pylist()
        parts = [
            FilePart(
                file=file,
                song_ids=tuple(names[song] for song in songs),
                first=tuple(first[songs].tolist()),
                counts=tuple(counts[songs].tolist()),
            )
            for file, songs in sorted(files.items())
        ]
        return SplitIndex(place=place, parts=parts, schema=schema)

    def __len__(self) -> int:
        return sum(sum(part.counts) for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(C, T) of a latent."""
        channels, frames = self.schema.field("vocal_latent").type.shape
        return channels, frames

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's two latents."""
        return 2 * 2 * self.shape[0] * self.shape[1]

    def versions(self) -> dict[str, str]:
        """File → what changes with its content, of each file of the split; one listing. MissingObjectError when one is gone."""
        folders = {part.file.rpartition("/")[0] for part in self.parts}
        found = {f"{folder}/{name}": version for folder in folders for name, version in (self.place / folder).entries()}
        for part in self.parts:
            if part.file not in found:
                raise MissingObjectError(f"{self.place / part.file} does not exist: check the path")
        return {part.file: found[part.file] for part in self.parts}

    def read(self, part: FilePart) -> FileRows:
        """A file's rows of this split, in order. UserError when it holds others than were counted in it."""
        file = self.place / part.file
        table = read_table([file], self.schema)
        # A joined file may hold songs that are gone since.
        table = table.filter(pc.is_in(table["song_id"], pa.array(part.song_ids, pa.string())))
        table = table.sort_by([("song_id", "ascending"), ("segment", "ascending")])
        if table["song_id"].to_pylist() != np.repeat(np.array(part.song_ids, object), part.counts).tolist():
            raise UserError(f"{file} does not hold the segments that the manifest counts in it: the dataset changed; run prepare again")
        return FileRows(
            rows_N=part.rows(),
            segments_N=table["segment"].to_numpy().astype(np.int64),
            valid_frames_N=table["valid_frames"].to_numpy().astype(np.int64),
            vocal_NCT=tensor_column(table, "vocal_latent"),
            accompaniment_NCT=tensor_column(table, "accompaniment_latent"),
        )

    def take(self, at_most: int | None = None) -> LatentTable:
        """All rows, or so many evenly spread ones, in memory: once, and the files that are being read. Raises what `read` raises."""
        chosen_N = evenly_spread(len(self), len(self) if at_most is None else at_most)
        vocal_NCT, accompaniment_NCT = (np.empty((len(chosen_N), *self.shape), np.float16) for _ in range(2))
        segments_N, valid_N = np.empty(len(chosen_N), np.int64), np.empty(len(chosen_N), np.int64)
        song_ids = np.empty(len(chosen_N), object)

        def fill(part: FilePart) -> None:
            rows_N = part.rows()
            to_N = np.searchsorted(chosen_N, rows_N)
            wanted_N = np.flatnonzero(chosen_N[np.minimum(to_N, len(chosen_N) - 1)] == rows_N)
            if not len(wanted_N):
                return
            read, to_N = self.read(part), to_N[wanted_N]
            vocal_NCT[to_N], accompaniment_NCT[to_N] = read.vocal_NCT[wanted_N], read.accompaniment_NCT[wanted_N]
            segments_N[to_N], valid_N[to_N] = read.segments_N[wanted_N], read.valid_frames_N[wanted_N]
            song_ids[to_N] = np.repeat(np.array(part.song_ids, object), part.counts)[wanted_N]

        if len(chosen_N):
            largest = max(sum(part.counts) for part in self.parts) * self.row_bytes
            with ThreadPoolExecutor(max_workers=max(1, min(READERS, READING_BYTES // (2 * max(1, largest))))) as pool:
                list(pool.map(fill, self.parts))
        return LatentTable(
            song_ids=tuple(song_ids.tolist()),
            segments=tuple(segments_N.tolist()),
            vocal_RCT=vocal_NCT,
            accompaniment_RCT=accompaniment_NCT,
            valid_frames_R=valid_N,
        )


def evenly_spread(rows: int, at_most: int) -> NDArray[np.int64]:
    """At most so many of the numbers below `rows`, the first and the last among them."""
    count = min(rows, at_most)
    return np.array(sorted({round(index * (rows - 1) / max(1, count - 1)) for index in range(count)}), np.int64)


def tensor_column(table: pa.Table, name: str) -> NDArray[np.float16]:
    """A fixed-shape tensor column as (R, C, T) float16."""
    if not len(table):
        return np.zeros((0, *table.schema.field(name).type.shape), np.float16)
    chunks = table[name].chunks
    return np.asarray((chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)).to_numpy_ndarray(), np.float16)
