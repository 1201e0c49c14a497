"""Is a dataset what its manifest says? Every row of every file, read and compared.

Shapes: C channels, T frames.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.dataset.format import SPLITS, Manifest, latents, read_manifest
from infra.dataset.parquet import read_table
from infra.dataset.snapshots import read_rows
from infra.dataset.splits import tensor_column
from infra.dataset.truth import CONFIDENCES, NO_CHORD, PHASE_FRAMES, read_frames, truth_sha256
from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place
from model.chords import QUALITIES
from model.codec.base import CodecIdentity
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from pipelines.dataset.commit import describe
from pipelines.dataset.contents import Stored, read_stored
from pipelines.dataset.kept_stems import FOLDER, NAMES, kept_stems

READERS = 8
# The sums were added up by the same routine over the same float16 values; another machine's vector width may reorder them.
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Verify a dataset, row by row."""

    data: str
    """The dataset's place."""


@dataclass(frozen=True, kw_only=True)
class CheckSummary:
    """What is wrong, a line each; none means that all is as the manifest says."""

    data: str
    songs: int
    segments: int
    faults: tuple[str, ...]
    remarks: tuple[str, ...]
    """What is not wrong but worth knowing, such as songs that no commit holds yet."""

    @property
    def exit_code(self) -> int:
        return 1 if self.faults else 0

    def __str__(self) -> str:
        verdict = (
            "all as the manifest says" if not self.faults else f"{len(self.faults)} faults: run prepare again, which mends what it can"
        )
        lines = [f"{self.data}: {self.songs} songs, {self.segments} segments read; {verdict}"]
        return "\n".join([*lines, *(f"fault: {fault}" for fault in self.faults), *(f"note: {remark}" for remark in self.remarks)])


def check(config: CheckConfig) -> CheckSummary:
    """Read all of it; UserError when there is no manifest."""
    data = Place(config.data)
    manifest = read_manifest(data)
    stored = read_stored(data)
    if manifest.snapshot is None:
        raise UserError(f"{data} was written before snapshots were: run prepare once, then check it")
    held = read_rows(data, manifest.snapshot).to_pylist()
    faults: list[str] = []
    by_file: dict[str, list[str]] = {}
    for row in held:
        by_file.setdefault(row["file"], []).append(row["song_id"])
    segments = 0
    with ThreadPoolExecutor(READERS) as pool:
        for rows, found in pool.map(partial(_check_file, data, stored), by_file.items()):
            segments += rows
            faults += found
    names = [row["song_id"] for row in held]
    faults += [f"song {song_id} is in the snapshot {count} times" for song_id, count in Counter(names).items() if count > 1]
    stems = kept_stems(data)
    faults += [
        f"{FOLDER}/{song_id} holds {', '.join(sorted(held))}, not {' and '.join(NAMES)}: the next prepare removes what is amiss"
        for song_id, held in sorted(stems.items())
        if song_id in stored.songs and held != set(NAMES)
    ]
    faults += _check_manifest(data, manifest, stored, set(names))
    return CheckSummary(
        data=str(data),
        songs=len(held),
        segments=segments,
        faults=tuple(faults),
        remarks=tuple(_remarks(data, stored, by_file, set(names), stems)),
    )


def _check_file(data: Place, stored: Stored, file: tuple[str, Sequence[str]]) -> tuple[int, list[str]]:
    """(rows read, what is wrong) of one file and the songs that the snapshot says are in it."""
    name, song_ids = file
    try:
        table = read_table([data / name], latents(LATENT_CHANNELS, SEGMENT_FRAMES))
    except (MissingObjectError, UserError) as error:
        return 0, [f"{name}: {error}"]
    faults: list[str] = []
    for song_id in song_ids:
        faults += [
            f"{name}, song {song_id}: {fault}" for fault in _check_song(table.filter(pc.equal(table["song_id"], song_id)), stored, song_id)
        ]
    return len(table), faults


def _check_song(table: pa.Table, stored: Stored, song_id: str) -> Iterator[str]:
    if song_id not in stored.songs:
        yield "it has no row in songs/"
        return
    row = stored.row(song_id)
    yield from _check_truth(table, row)
    if len(table) != row["segments"]:
        yield f"{len(table)} segments, its row says {row['segments']}"
        return
    if len(set(table["segment"].to_pylist())) != len(table):
        yield "a segment is there twice"
    frames = table["valid_frames"].to_pylist()
    if not all(0 < count <= SEGMENT_FRAMES for count in frames):
        yield f"valid_frames {frames} are not all 1 to {SEGMENT_FRAMES}"
        return
    for stem in ("vocal", "accompaniment"):
        latents_RCT = tensor_column(table, f"{stem}_latent")
        if not np.isfinite(latents_RCT).all():
            yield f"{stem}_latent holds NaN or infinite values"
            continue
        if any(latent_CT[:, count:].any() for latent_CT, count in zip(latents_RCT, frames, strict=True)):
            yield f"{stem}_latent is not zero after its valid frames"
        valid_CT = np.concatenate([latent_CT[:, :count] for latent_CT, count in zip(latents_RCT, frames, strict=True)], axis=1)
        if not _same_sums(valid_CT.astype(np.float64), row[f"{stem}_latent_sum"], row[f"{stem}_latent_square_sum"]):
            yield f"{stem}_latent is not what was written: its sums differ from those in its row"


def _check_truth(table: pa.Table, row: Mapping[str, Any]) -> Iterator[str]:
    """Each column of truth against what it may hold; then all of them together against what was written."""
    table = table.sort_by("segment")
    try:
        frames = read_frames(table, SEGMENT_FRAMES)
    except UserError as error:
        yield str(error)
        return
    faults = []
    for name in ("chord_root", "chord_bass"):
        pitch_RT = getattr(frames, f"{name}_RT")
        if ((pitch_RT < NO_CHORD) | (pitch_RT > 11)).any():
            faults.append(f"{name} is not a pitch class, 0 to 11, or −1")
    if ((frames.chord_quality_RT < NO_CHORD) | (frames.chord_quality_RT >= len(QUALITIES))).any():
        faults.append(f"chord_quality is none of the vocabulary's {len(QUALITIES)}, or −1")
    for name in PHASE_FRAMES:
        phase_RT = getattr(frames, f"{name}_RT")
        if ((phase_RT < 0) | (phase_RT >= 1)).any():
            faults.append(f"{name} is not 0 up to 1")
    for name in CONFIDENCES:
        confidence_R = getattr(frames, f"{name}_R")
        if ((confidence_R < 0) | (confidence_R > 1)).any():
            faults.append(f"{name} is not 0 to 1")
    if strange := set(table["truth_source"].to_pylist()) - {row["truth_source"]}:
        faults.append(f"truth_source is {sorted(map(str, strange))}, its row in songs/ says {row['truth_source']}")
    if not faults and truth_sha256(row, frames) != row["truth_sha256"]:
        faults.append("its truth is not what was written: the digest differs from that in its row")
    yield from faults


def _same_sums(valid_CT: NDArray[np.float64], sums: Sequence[float], square_sums: Sequence[float]) -> bool:
    scale_C = np.sqrt(valid_CT.shape[1] * np.array(square_sums)) + 1e-12
    return bool(
        np.all(np.abs(valid_CT.sum(axis=1) - sums) <= SUM_TOLERANCE * scale_C)
        and np.allclose(np.square(valid_CT).sum(axis=1), square_sums, rtol=SUM_TOLERANCE, atol=0)
    )


def _check_manifest(data: Place, manifest: Manifest, stored: Stored, names: set[str]) -> Iterator[str]:
    """Counts, statistics and content, computed anew from the rows that the snapshot names."""
    missing = names - stored.songs.keys()
    if missing:
        return  # said for each song already
    codec = CodecIdentity(id=manifest.codec_id, weights_sha256=manifest.codec_weights_sha256)
    again = describe(data, stored.only(names), codec)
    figures = ("vocal_mean", "vocal_std", "accompaniment_mean", "accompaniment_std", "vocal_level_db", "duration_h")
    for name in ("content_sha256", "truth_sha256", *figures):
        was, now = getattr(manifest, name), getattr(again, name)
        if was != now and not (name in figures and np.allclose(was, now, rtol=1e-9, atol=1e-12)):
            yield f"the manifest's {name} is not that of its songs"
    was_counts, now_counts = manifest.counts, replace(again.counts, rejected_songs=manifest.counts.rejected_songs)
    if was_counts != replace(now_counts, rejected_segments=was_counts.rejected_segments):
        yield f"the manifest counts {was_counts}, its songs are {now_counts}"


def _remarks(data: Place, stored: Stored, by_file: dict[str, list[str]], names: set[str], stems: Collection[str]) -> Iterator[str]:
    if waiting := stored.songs.keys() - names:
        yield f"{len(waiting)} songs are stored and in no commit yet: a prepare was cut short or is running; run it again"
    listed = {
        f"latents/split={split}/{place.name}" for split in SPLITS for place in (data / f"latents/split={split}").list(suffix=".parquet")
    }
    stray = listed - by_file.keys() - set(stored.files.values())
    if stray:
        yield f"{len(stray)} files of latents belong to no song: the next prepare removes them"
    if strange := set(stems) - stored.row_files.keys():
        yield f"{len(strange)} folders of {FOLDER} belong to no song: the next prepare removes them"
