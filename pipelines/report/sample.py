"""The latents of some songs of a dataset, read a few segments at a time: what they hold, and whether it is what rows and manifest say.

Shapes: R segments, C channels, T frames.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.dataset.format import Manifest, latents
from infra.dataset.splits import tensor_column
from infra.dataset.truth import NO_CHORD, read_frames
from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place
from model.codec.base import CodecIdentity
from pipelines.chance import Chance
from pipelines.dataset.commit import LEAST_DEVIATION, describe
from pipelines.dataset.contents import Stored
from pipelines.report.figures import Histogram, histogram

STEMS = ("vocal", "accompaniment")
STATISTICS = tuple(f"{stem}_{figure}" for stem in STEMS for figure in ("mean", "std"))
BATCH = 8  # segments in memory at a time, 256 KiB each as stored
OUTLIER_DEVIATIONS = 4
DEAD_BELOW = 10 * LEAST_DEVIATION
# Sums of the same values in another order.
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class StemFigures:
    """One stem's latents over the valid frames of the training songs read; outliers are by the manifest's mean and deviation."""

    name: str
    mean_C: tuple[float, ...]
    deviation_C: tuple[float, ...]
    outlier_share: float
    most_outliers_channel: int
    most_outliers_share: float
    dead_channels: tuple[int, ...]
    mean_difference: float
    """Largest difference of a channel's mean from the manifest's, in the manifest's deviations."""
    deviation_difference: float
    """Largest relative difference of a channel's deviation from the manifest's."""


@dataclass(frozen=True, kw_only=True)
class SampleFigures:
    """What the segments read say."""

    songs_read: int
    segments_read: int
    training_segments_read: int
    stems: tuple[StemFigures, ...]
    differing_songs: tuple[str, ...]
    """Songs read whose latents do not add up to the sums in their rows."""
    manifest_is_of_rows: bool | None
    """Whether the manifest's statistics are those of all rows in songs/; None while some songs are missing."""
    histograms: tuple[Histogram, ...]
    chord_share: float
    """Share of the valid frames read under a chord, as far as chords are known."""
    beat_share: float
    """Share of the valid frames read with a place in a beat."""

    @property
    def statistics_equal(self) -> bool | None:
        """Whether the manifest's statistics follow from the latents, as far as they were read; None when it cannot be told."""
        return False if self.differing_songs else self.manifest_is_of_rows


def draw_songs(held: Sequence[Mapping[str, Any]], digest: str, segments: int) -> list[Mapping[str, Any]]:
    """Songs of a snapshot's rows, at random, until they have so many segments; at least one that is trained on, where there is one."""
    chance = Chance("dataset report", digest, "sample")
    shuffled = sorted(sorted(held, key=lambda row: str(row["song_id"])), key=lambda _: chance.uniform())
    first = next((index for index, row in enumerate(shuffled) if row["split"] == "train"), 0)
    order = [*shuffled[first:], *shuffled[:first]]
    before = accumulate((row["segments"] for row in order), initial=0)
    return [row for row, count in zip(order, before, strict=False) if count < segments]


def by_file(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """File → song ids, of a snapshot's rows."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row["file"]].add(row["song_id"])
    return dict(sorted(found.items()))


def song_batches(data: Place, wanted: Mapping[str, Collection[str]], manifest: Manifest) -> Iterator[pa.Table]:
    """Rows of the wanted songs (file → song ids), in the files' order, a few at a time, whatever a file's size.

    Raises MissingObjectError for a file that is gone, UserError for one that is damaged.
    """
    schema = latents(manifest.latent_channels, manifest.segment_frames)
    filesystem, root = data.filesystem()
    for name, song_ids in wanted.items():
        try:
            with filesystem.open_input_file(f"{root}/{name}") as file:
                parquet = pq.ParquetFile(file, buffer_size=2**20)
                held = [field for field in schema.names if field in parquet.schema_arrow.names]
                row_groups = [index for index in range(parquet.num_row_groups) if _may_hold(parquet.metadata.row_group(index), song_ids)]
                for batch in parquet.iter_batches(BATCH, row_groups=row_groups, columns=held):
                    table = pa.Table.from_batches([batch])
                    for field in (field for field in schema if field.name not in held):
                        table = table.append_column(field, pa.nulls(len(table), field.type))
                    yield table.filter(pc.is_in(table["song_id"], pa.array(sorted(song_ids), pa.string())))
        except FileNotFoundError as error:
            raise MissingObjectError(f"{data / name} does not exist: check the path") from error
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{data / name} cannot be read ({error}): run `backline check --data {data}`") from error


def _may_hold(row_group: Any, song_ids: Collection[str]) -> bool:
    """Whether one of these songs may be in a row group; a joined file has one for each song."""
    columns = (row_group.column(index) for index in range(row_group.num_columns))
    statistics = next(column.statistics for column in columns if column.path_in_schema == "song_id")
    return statistics is None or not statistics.has_min_max or any(statistics.min <= song_id <= statistics.max for song_id in song_ids)


class Sample:
    """Adds up the segments that it is given; `figures` says what they hold."""

    def __init__(self, manifest: Manifest, training: Collection[str]) -> None:
        self.manifest = manifest
        self.training = frozenset(training)
        self.sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros((2, 2, manifest.latent_channels)))
        """Song id → (stem, sum and sum of squares, channel)."""
        self.segments: dict[str, int] = defaultdict(int)
        self.frames: dict[str, int] = defaultdict(int)
        self.with_chord = self.with_beat = 0
        """Frames."""
        self.outliers = np.zeros((2, manifest.latent_channels), np.int64)
        self.columns: dict[str, list[float]] = {"vocal_active": [], "separation_quality": [], "gain_db": []}

    def add(self, table: pa.Table) -> None:
        """Rows of latents."""
        for name, values in self.columns.items():
            values += [value for value in table[name].to_pylist() if value is not None]
        song_ids, frames = table["song_id"].to_pylist(), table["valid_frames"].to_pylist()
        for stem, name in enumerate(STEMS):
            mean_C1 = np.array(getattr(self.manifest, f"{name}_mean"))[:, None]
            far_C1 = OUTLIER_DEVIATIONS * np.array(getattr(self.manifest, f"{name}_std"))[:, None]
            for song_id, latent_CT, valid in zip(song_ids, tensor_column(table, f"{name}_latent"), frames, strict=True):
                # A value that is not finite makes the song's sums differ from its row's, which is said.
                valid_CT = np.nan_to_num(latent_CT[:, :valid].astype(np.float64), posinf=0, neginf=0)
                self.sums[song_id][stem] += valid_CT.sum(axis=1), np.square(valid_CT).sum(axis=1)
                if song_id in self.training:
                    self.outliers[stem] += (np.abs(valid_CT - mean_C1) > far_C1).sum(axis=1)
        truth = read_frames(table, self.manifest.segment_frames)
        self.with_chord += int((truth.chord_root_RT != NO_CHORD).sum())
        self.with_beat += int(np.isfinite(truth.beat_phase_RT).sum())
        for song_id, valid in zip(song_ids, frames, strict=True):
            self.segments[song_id] += 1
            self.frames[song_id] += valid

    def figures(self, data: Place, stored: Stored, complete: bool) -> SampleFigures:
        """`stored` are the songs of the manifest, `complete` says that it has all of them."""
        codec = CodecIdentity(id=self.manifest.codec_id, weights_sha256=self.manifest.codec_weights_sha256)
        again = describe(data, stored, codec) if complete else None
        pairs = [(getattr(self.manifest, name), getattr(again, name)) for name in STATISTICS] if again else []
        drawn = [
            histogram("Share of frames with voice", self.columns["vocal_active"], span=(0, 1)),
            histogram("Quality of the separation", self.columns["separation_quality"], span=(0, 1)),
            histogram("Gain", self.columns["gain_db"], "dB"),
        ]
        return SampleFigures(
            songs_read=len(self.segments),
            segments_read=sum(self.segments.values()),
            training_segments_read=sum(self.segments[song_id] for song_id in self.segments.keys() & self.training),
            stems=tuple(self._stem(stem) for stem in range(len(STEMS))),
            differing_songs=tuple(song_id for song_id in sorted(self.segments) if not self._as_in_its_row(stored, song_id)),
            manifest_is_of_rows=all(np.allclose(was, now, rtol=TOLERANCE, atol=1e-12) for was, now in pairs) if pairs else None,
            histograms=tuple(each for each in drawn if each),
            chord_share=self.with_chord / max(1, sum(self.frames.values())),
            beat_share=self.with_beat / max(1, sum(self.frames.values())),
        )

    def _as_in_its_row(self, stored: Stored, song_id: str) -> bool:
        row = stored.row(song_id)
        names = [(f"{stem}_latent_sum", f"{stem}_latent_square_sum") for stem in STEMS]
        kept = np.array([[row[first], row[second]] for first, second in names])
        squares_SC = self.sums[song_id][:, 1]
        scale = np.stack([np.sqrt(self.frames[song_id] * squares_SC) + 1e-12, squares_SC + 1e-12], axis=1)
        return self.segments[song_id] == row["segments"] and bool(np.all(np.abs(self.sums[song_id] - kept) <= TOLERANCE * scale))

    def _stem(self, stem: int) -> StemFigures:
        held = sorted(self.segments.keys() & self.training)
        frames = max(1, sum(self.frames[song_id] for song_id in held))
        mean_C, square_C = sum((self.sums[song_id][stem] for song_id in held), np.zeros((2, self.manifest.latent_channels))) / frames
        deviation_C = np.sqrt(np.maximum(square_C - mean_C**2, LEAST_DEVIATION**2))
        was_mean_C, was_deviation_C = (np.array(getattr(self.manifest, f"{STEMS[stem]}_{figure}")) for figure in ("mean", "std"))
        return StemFigures(
            name=STEMS[stem],
            mean_C=tuple(mean_C.tolist()),
            deviation_C=tuple(deviation_C.tolist()),
            outlier_share=float(self.outliers[stem].mean() / frames),
            most_outliers_channel=int(self.outliers[stem].argmax()),
            most_outliers_share=float(self.outliers[stem].max() / frames),
            dead_channels=tuple(np.flatnonzero(deviation_C <= DEAD_BELOW).tolist()),
            mean_difference=float(np.max(np.abs(mean_C - was_mean_C) / was_deviation_C)),
            deviation_difference=float(np.max(np.abs(deviation_C / was_deviation_C - 1))),
        )
