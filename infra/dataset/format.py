"""Stored records of a latent dataset: Parquet schemas, the manifest, and reading it back.

    OUT/manifest.json                     written last; a dataset without it is unfinished
    OUT/preparation.json                  written first; a run with other settings is refused
    OUT/songs/ID.parquet                  one row; written after the song's latents, so it commits them
    OUT/latents/split=S/ID.parquet        a row a segment
    OUT/rejects/….parquet                 a row a rejected song or segment, with stage and reason
    OUT/stems/ID/….flac                   what a song was separated into, where `prepare --keep-stems` was asked for
    OUT/credits.json                      whose recordings these are, under which licences (`infra.dataset.credits`)
    OUT/snapshots/….parquet               which songs the manifest vouches for, and in which file each lies (`infra.dataset.snapshots`)

ID is a song's, or part-… where `backline compact` joined many songs in one file.

Shapes: R segments, C channels, T frames.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.dataset.parquet import read_table, read_tables
from infra.dataset.snapshots import read_rows
from infra.dataset.splits import LatentTable, SplitIndex
from infra.dataset.truth import FRAME_FIELDS, SONG_FIELDS, SplitTruth, read_frames
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import MissingObjectError, Place

# Columns are only ever added, and may be null: who reads an older dataset finds nulls, an older reader passes over what it does not know.
SCHEMA_VERSION = 1
Split = Literal["train", "validation"]
MANIFEST = "manifest.json"
PREPARATION = "preparation.json"
SPLITS: tuple[Split, ...] = ("train", "validation")
# Demo songs of these seeds are for evaluation: no weights that ship may have heard them.
RESERVED_SEEDS = range(1000)
# A commit may replace files while a reader reads them: then it reads the newer snapshot.
READ_ATTEMPTS = 3
ROOT = Path(__file__).resolve().parents[2]

_SUMS = [
    pa.field(f"{stem}_{sums}", pa.list_(pa.float64()))
    for stem in ("vocal", "accompaniment")
    for sums in ("latent_sum", "latent_square_sum")
]
SONGS = pa.schema(
    [
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("artist", pa.string()),
        pa.field("source", pa.string()),
        pa.field("license", pa.string()),
        pa.field("url", pa.string()),
        pa.field("audio_sha256", pa.string(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        # Beyond the public columns: what a later run needs to know that this song is done, and to extend the dataset's statistics.
        pa.field("source_version", pa.string(), nullable=False),
        pa.field("segments", pa.int32(), nullable=False),
        pa.field("rejected_segments", pa.int32(), nullable=False),
        pa.field("valid_frames", pa.int64(), nullable=False),
        pa.field("vocal_levels_db", pa.list_(pa.float64())),
        *_SUMS,
        pa.field("separator_id", pa.string()),  # null: the stems came separate
        pa.field("fingerprint", pa.list_(pa.uint32())),  # of its middle; null: not taken
        *SONG_FIELDS,  # what the band plays: `infra.dataset.truth`
        pa.field("credit", pa.string()),  # the attribution that its licence asks for, as its source words it
        pa.field("page_url", pa.string()),  # where it can be read about
        pa.field("vocal_of", pa.string()),  # the song, by id, whose vocal it shares: both are in one split
        pa.field("split_given", pa.bool_()),  # whether its source chose the split
    ],
    metadata={"backline.schema_version": str(SCHEMA_VERSION)},
)
REJECTS = pa.schema(
    [
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("segment", pa.int32()),  # null: the whole song
        pa.field("url", pa.string()),
        pa.field("source_version", pa.string()),
        pa.field("listed_by", pa.string()),  # the source that named the address, as --source was given; null: not known
    ],
    metadata={"backline.schema_version": str(SCHEMA_VERSION)},
)


def latents(channels: int, frames: int) -> pa.Schema:
    """The schema of latents/: fixed-shape float16 tensors that plain pyarrow gives back as (R, channels, frames).

    pandas and DuckDB see flat lists of channels × frames values in row-major order, so the shape is in the metadata too.
    """
    tensor = pa.fixed_shape_tensor(pa.float16(), (channels, frames), dim_names=("channel", "frame"))
    shape = json.dumps([channels, frames])
    return pa.schema(
        [
            pa.field("song_id", pa.string(), nullable=False),
            pa.field("segment", pa.int32(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("duration_s", pa.float64(), nullable=False),
            pa.field("valid_frames", pa.int32(), nullable=False),
            pa.field("vocal_latent", tensor, nullable=False, metadata={"shape": shape}),
            pa.field("accompaniment_latent", tensor, nullable=False, metadata={"shape": shape}),
            pa.field("vocal_active", pa.float32(), nullable=False),
            pa.field("gain_db", pa.float32(), nullable=False),
            pa.field("source", pa.string()),
            pa.field("license", pa.string()),
            # 0 to 1 by `model.separation.quality`; null: the stems came separate.
            pa.field("separation_quality", pa.float32()),
            *FRAME_FIELDS,  # what the band plays: `infra.dataset.truth`
        ],
        metadata={"backline.schema_version": str(SCHEMA_VERSION), "backline.latent_shape": shape},
    )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much a dataset holds."""

    songs: int
    train_songs: int
    validation_songs: int
    segments: int
    train_segments: int
    validation_segments: int
    rejected_songs: int
    rejected_segments: int

    def __str__(self) -> str:
        return (
            f"{self.songs} songs ({self.train_songs} train, {self.validation_songs} validation), {self.segments} segments, "
            f"{self.rejected_songs} songs and {self.rejected_segments} segments rejected"
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset is, in one JSON file. The statistics are over the valid frames of the training split, as stored (float16)."""

    schema_version: int = SCHEMA_VERSION
    codec_id: str
    codec_weights_sha256: str
    separator_id: str | None
    sample_rate_hz: int
    hop_samples: int
    latent_channels: int
    segment_frames: int
    vocal_mean: tuple[float, ...]
    vocal_std: tuple[float, ...]
    accompaniment_mean: tuple[float, ...]
    accompaniment_std: tuple[float, ...]
    vocal_level_db: float
    """Median over the training segments of the active RMS of the normalised vocal, dBFS."""
    duration_h: float
    counts: Counts
    content_sha256: str
    """Over (song, hash of its audio, split, segments) of every song."""
    commit: str
    """The code that wrote it: a git commit, or the package's version."""
    snapshot: str | None = None
    """The file below the dataset that names its songs and their files; without it every file counts."""
    chord_qualities: tuple[str, ...] | None = None
    """What the numbers in `chord_quality` stand for, in Harte's syntax; None in a dataset without truth."""
    truth_sha256: str | None = None
    """Over the truth of every song that has any; None in a dataset without truth."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise UserError(f"the dataset has schema version {self.schema_version}, this backline reads {SCHEMA_VERSION}: prepare it again")
        for name in ("vocal_mean", "vocal_std", "accompaniment_mean", "accompaniment_std"):
            given = len(getattr(self, name))
            if given != self.latent_channels:
                raise UserError(f"{MANIFEST}: {name} has {given} values, not one a channel ({self.latent_channels}): prepare it again")

    @property
    def digest(self) -> str:
        """Identity of the content: equal for equal songs, settings and codec, wherever the dataset lies and whichever commit wrote it.

        Over the manifest but for the code's version, the counts, among which are rejects, and where the files lie: they change no latent.
        Truth counts where there is any, so that a dataset without it keeps the digest that it always had.
        """
        left_out = {"commit", "counts", "snapshot", "chord_qualities", *([] if self.truth_sha256 else ["truth_sha256"])}
        identity = {name: value for name, value in asdict(self).items() if name not in left_out}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes, where: str = MANIFEST) -> "Manifest":
        try:
            given = json.loads(text)
            known = {field.name for field in fields(Manifest)}
            values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            values["counts"] = Counts(**given["counts"])
            return Manifest(**{name: value for name, value in values.items() if name in known})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{where} is no manifest of a latent dataset ({error}): name the folder that `backline prepare --out` wrote"
            ) from error


def read_manifest(place: Place) -> Manifest:
    """The manifest of the dataset at `place`; UserError when there is none."""
    try:
        text = (place / MANIFEST).read_bytes()
    except MissingObjectError as error:
        raise UserError(f"{place} holds no finished dataset (no {MANIFEST}): run `backline prepare --source SPEC --out {place}`") from error
    return Manifest.from_json(text, str(place / MANIFEST))


def read_latents(place: Place, split: Split | str, manifest: Manifest | None = None, *, at_most: int | None = None) -> LatentTable:
    """All segments of one split of the dataset at `place`, or so many evenly spread ones, as its manifest vouches for them, whatever a
    running prepare adds meanwhile.

    `manifest` is the commit that was read before, when both splits, or their statistics, have to be of one.

    UserError when the dataset is unfinished or the split unknown.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    for attempt in range(1, READ_ATTEMPTS + 1):
        commit = manifest or read_manifest(place)
        try:
            return split_index(place, split, commit).take(at_most)
        except MissingObjectError as error:
            if attempt == READ_ATTEMPTS or manifest is not None or read_manifest(place) == commit:
                raise UserError(f"{place} lacks a file that its {MANIFEST} counts on ({error}): run prepare again") from error
    raise AssertionError("the last attempt returns or raises")


def read_truth(place: Place, split: str, manifest: Manifest) -> SplitTruth | None:
    """The truth of a split's rows, as `manifest` vouches for them; None in a dataset without any. Raises what `split_index` raises."""
    if manifest.truth_sha256 is None:
        return None
    index = split_index(place, split, manifest)
    named = [pa.field("song_id", pa.string(), nullable=False), pa.field("segment", pa.int32(), nullable=False)]
    tables = read_tables([place / part.file for part in index.parts], pa.schema([*named, *FRAME_FIELDS]))
    order = []
    for part, table in zip(index.parts, tables, strict=True):
        # A joined file may hold songs that are gone since.
        kept = table.filter(pc.is_in(table["song_id"], pa.array(part.song_ids, pa.string())))
        order.append(kept.sort_by([("song_id", "ascending"), ("segment", "ascending")]))
    rows = pa.concat_tables(order) if order else pa.schema([*named, *FRAME_FIELDS]).empty_table()
    if len(rows) != len(index):
        raise UserError(f"{place} holds {len(rows)} segments with truth for {split}, its {MANIFEST} counts {len(index)}: run prepare again")
    rows = rows.sort_by([("song_id", "ascending"), ("segment", "ascending")])
    songs = read_table((place / "songs").list(suffix=".parquet"), pa.schema([named[0], pa.field("style", pa.string())]))
    styles = dict(zip(songs["song_id"].to_pylist(), songs["style"].to_pylist(), strict=True))
    return SplitTruth(
        frames=read_frames(rows, manifest.segment_frames), styles_R=tuple(styles.get(song) for song in rows["song_id"].to_pylist())
    )


def split_index(place: Place, split: str, manifest: Manifest) -> SplitIndex:
    """Which rows a split has, and where, as `manifest` vouches for them.

    MissingObjectError when its snapshot is gone; UserError when they are not as many as the manifest counts.
    """
    schema = latents(manifest.latent_channels, manifest.segment_frames)
    columns = ["song_id", "segment", "valid_frames", "vocal_latent", "accompaniment_latent"]
    if manifest.snapshot is None:
        rows = _listed(place, f"latents/split={split}")
    else:
        rows = read_rows(place, manifest.snapshot)
        rows = rows.filter(pc.equal(rows["split"], split)).select(["song_id", "segments", "file"])
    index = SplitIndex.of(place, rows, pa.schema([schema.field(name) for name in columns]))
    expected = getattr(manifest.counts, f"{split}_segments")
    if len(index) != expected:
        raise UserError(
            f"{place} holds {len(index)} segments for {split}, its {MANIFEST} counts {expected}: a prepare was cut short or is running; "
            "run it again"
        )
    return index


def _listed(place: Place, folder: str) -> pa.Table:
    """The songs of a dataset without a snapshot: every file counts."""
    files = (place / folder).list(suffix=".parquet")
    tables = read_tables(files, pa.schema([pa.field("song_id", pa.string(), nullable=False)]))
    rows = [
        {"song_id": counted["values"], "segments": counted["counts"], "file": file.uri.removeprefix(f"{place.uri}/")}
        for file, table in zip(files, tables, strict=True)
        for counted in pc.value_counts(table["song_id"]).to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([("song_id", pa.string()), ("segments", pa.int32()), ("file", pa.string())]))


def tensors(values_RCT: NDArray[np.float16]) -> pa.ExtensionArray:
    """(R, C, T) float16 as a fixed-shape tensor column of `latents(C, T)`."""
    _, channels, frames = values_RCT.shape
    flat = pa.array(np.ascontiguousarray(values_RCT, dtype=np.float16).reshape(-1))
    kind = latents(channels, frames).field("vocal_latent").type
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, channels * frames))


def code_version(root: Path = ROOT) -> str:
    """The git commit of this checkout; without one (a Ray job's folder, an installed wheel) BACKLINE_COMMIT, or the package's version."""
    try:
        installed = Settings.from_environment().commit or f"backline {version('backline')}"
    except PackageNotFoundError:
        installed = "backline, not installed"
    try:
        head = (root / ".git/HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        loose = root / ".git" / reference
        if loose.exists():
            return loose.read_text().strip()
        packed = (root / ".git/packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), installed)
    except OSError:
        return installed
