"""Many small files of a dataset joined into few large ones: a million songs are a million files else, and listing them takes minutes.

Songs keep their rows and their split. The joined files are written first, then committed, then the small ones go: who reads through the
manifest sees the one or the other. (Who lists the folder instead may see both for a moment.)
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.dataset.format import SONGS, SPLITS, Manifest, latents, read_manifest
from infra.dataset.parquet import read_table, read_tables, write_table
from infra.errors import UserError
from infra.storage.lease import held
from infra.storage.place import Place
from model.codec.base import CodecIdentity
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from pipelines.dataset import write as dataset
from pipelines.dataset.commit import commit
from pipelines.dataset.contents import PART, Stored, read_stored

SEGMENT_MIB = 2 * 2 * LATENT_CHANNELS * SEGMENT_FRAMES / 2**20
# 12 kB each, most of it the fingerprint.
ROWS_A_SONGS_FILE = 5_000


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Join a dataset's small files."""

    data: str
    """The dataset's place."""
    file_mib: float = 256.0
    """About how large a joined file of latents becomes. A song is never torn apart."""

    def __post_init__(self) -> None:
        if self.file_mib < SEGMENT_MIB:
            raise UserError(f"file_mib is {self.file_mib}: choose at least {SEGMENT_MIB}, which is one segment")


@dataclass(frozen=True, kw_only=True)
class CompactSummary:
    """How many files before and after."""

    data: str
    before: int
    after: int
    manifest: Manifest

    def __str__(self) -> str:
        return f"{self.data}: {self.before} files of latents and songs joined into {self.after}; {self.manifest.counts}"


def compact(config: CompactConfig) -> CompactSummary:
    """Join what is small; what is joined already stays. UserError when there is no dataset."""
    data = Place(config.data)
    read_manifest(data)  # where no dataset is, nothing is written
    with held(data, "compact"):
        return _compact(data, config)


def _compact(data: Place, config: CompactConfig) -> CompactSummary:
    manifest = read_manifest(data)
    stored = read_stored(data)
    if waiting := len(stored.songs.keys() - stored.committed):
        raise UserError(
            f"{data} holds {waiting} songs that are in no commit yet: end the prepare that runs, or run it again, and then compact"
        )
    before = _files(stored)
    files = dict(stored.files)
    for split in SPLITS:
        for group in _groups(stored, split, config.file_mib):
            name = f"latents/split={split}/{dataset.part_name(group)}"
            _join(data, stored, group, name)
            files.update(dict.fromkeys(group, name))
    codec = CodecIdentity(id=manifest.codec_id, weights_sha256=manifest.codec_weights_sha256)
    committed = commit(data, replace(stored, files=files), codec)
    if committed is None:
        raise UserError(f"{data} holds no songs any more: prepare it again")
    _join_rows(data, stored)
    return CompactSummary(data=str(data), before=before, after=_files(read_stored(data)), manifest=committed)


def _groups(stored: Stored, split: str, file_mib: float) -> Iterator[Sequence[str]]:
    """Songs that become one file: those with a file of their own, by id, until it is full."""
    group: list[str] = []
    mib = 0.0
    for song_id, row in stored.songs.items():
        if row["split"] != split or stored.files[song_id].rpartition("/")[2].startswith(PART):
            continue
        group.append(song_id)
        mib += row["segments"] * SEGMENT_MIB
        if mib >= file_mib:
            yield group
            group, mib = [], 0.0
    if len(group) > 1:
        yield group


def _join(data: Place, stored: Stored, song_ids: Sequence[str], name: str) -> None:
    """One file with a row group a song, so that one song can be read without the others."""
    schema = latents(LATENT_CHANNELS, SEGMENT_FRAMES)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd", use_dictionary=False) as writer:
        for song_id in song_ids:
            writer.write_table(read_table([data / stored.files[song_id]], schema))
    (data / name).write_bytes(buffer.getvalue())


def _join_rows(data: Place, stored: Stored) -> None:
    """The songs' rows likewise: the joined file first, then the small ones go."""
    alone = [
        song_id
        for song_id, files in stored.row_files.items()
        if song_id in stored.songs and all(not file.startswith(f"songs/{PART}") for file in files)
    ]
    for start in range(0, len(alone), ROWS_A_SONGS_FILE):
        group = sorted(alone)[start : start + ROWS_A_SONGS_FILE]
        if len(group) < 2:
            continue
        place = data / f"songs/{dataset.part_name(group)}"
        rows = pa.concat_tables(read_tables([data / stored.row_files[song_id][0] for song_id in group], SONGS))
        write_table(place, rows.filter(pc.is_in(rows["song_id"], pa.array(group, pa.string()))))
        dataset.remove_rows(data, stored, set(group), keep=[place])


def _files(stored: Stored) -> int:
    return len(set(stored.files.values())) + len({file for files in stored.row_files.values() for file in files})
