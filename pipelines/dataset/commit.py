"""Commits of a dataset: the statistics, the snapshot, the manifest, and what goes once nothing counts on it any more.

The order is the contract: new files, then the manifest that names them, then the removal of what it does without. Whoever reads through
the manifest sees one commit, before or after; a kill at any point leaves one of them, and the next commit removes what lies around. What
lies around may also be another command's work in progress, so only who holds the dataset's lease commits, removes rows or begins.
"""

import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.dataset.credits import CREDITS, credits_of, stored_credits, write_credits
from infra.dataset.format import MANIFEST, SPLITS, Counts, Manifest, code_version, latents
from infra.dataset.parquet import read_table, write_table
from infra.dataset.snapshots import read_rows, write_snapshot
from infra.storage.lease import check_held
from infra.storage.place import MissingObjectError, Place
from model.chords import QUALITIES
from model.dimensions import HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ, SEGMENT_FRAMES
from pipelines.dataset.contents import PART, Stored, read_stored
from pipelines.dataset.kept_stems import remove_stems_but
from pipelines.dataset.write import balance, part_name, remove_rows, separator_of

if TYPE_CHECKING:
    from model.codec.base import CodecIdentity

# A channel that never varies would be divided by zero.
LEAST_DEVIATION = 1e-4


def commit(out: Place, stored: Stored, codec: "CodecIdentity", *, keep: Set[str] = frozenset()) -> Manifest | None:
    """Make `stored` what readers see, and remove the rest but for `keep`; None, and no manifest, when not one song is left."""
    check_held(out)
    if not stored.songs:
        (out / MANIFEST).delete()  # an earlier one would vouch for songs that are gone
        (out / CREDITS).delete()
        _collect(out, stored, keep)
        return None
    files = _without_the_gone(out, stored)
    manifest = describe(out, stored, codec)
    rows = [
        {"song_id": song_id, "split": row["split"], "segments": row["segments"], "file": files[song_id]}
        for song_id, row in stored.songs.items()
    ]
    manifest = replace(manifest, snapshot=write_snapshot(out, manifest.digest, pa.Table.from_pylist(rows)))
    try:
        before = Manifest.from_json((out / MANIFEST).read_bytes(), str(out / MANIFEST))
        unchanged = replace(before, commit=manifest.commit) == manifest
    except MissingObjectError:
        unchanged = False
    credits = credits_of(stored.songs)
    if stored_credits(out) != credits:
        write_credits(out, credits)
    if not unchanged:
        (out / MANIFEST).write_bytes(manifest.to_json().encode())
    _collect(out, stored, keep | set(files.values()))
    return manifest


def finish(
    out: Place, stored: Stored, codec: "CodecIdentity", prepared: Sequence[str], *, keep: Set[str] = frozenset()
) -> tuple[Stored, Manifest | None]:
    """Balance the splits and commit; what is stored after it, and the manifest. `keep` are files of songs that wait for another commit."""
    check_held(out)
    # Before the first manifest nobody has trained on a split, so any song may move.
    movable = prepared if (out / MANIFEST).exists() else list(stored.songs)
    if balance(out, stored, movable):
        stored = read_stored(out).only(stored.songs.keys())
    return stored, commit(out, stored, codec, keep=keep)


def _without_the_gone(out: Place, stored: Stored) -> dict[str, str]:
    """Song id → file, where joined files that hold songs which are gone are written anew without them."""
    files = dict(stored.files)
    try:
        name = Manifest.from_json((out / MANIFEST).read_bytes(), str(out / MANIFEST)).snapshot
    except MissingObjectError:
        return files
    before = read_rows(out, name).to_pylist() if name else []
    # Gone, or moved to the other split.
    gone = {row["file"] for row in before if files.get(row["song_id"]) != row["file"] and row["file"].rpartition("/")[2].startswith(PART)}
    for file in sorted(gone):
        kept = sorted(song_id for song_id, held in files.items() if held == file)
        if kept:
            anew = f"{file.rpartition('/')[0]}/{part_name(kept)}"
            table = read_table([out / file], latents(LATENT_CHANNELS, SEGMENT_FRAMES))
            write_table(out / anew, table.filter(pc.is_in(table["song_id"], pa.array(kept, pa.string()))))
            files.update(dict.fromkeys(kept, anew))
    return files


def _collect(out: Place, stored: Stored, files: Set[str]) -> None:
    """Delete latents and stems that the commit does without (what a kill, a replaced or a removed song left), and rows of songs taken
    down."""
    for split in SPLITS:
        for place in (out / f"latents/split={split}").list(suffix=".parquet"):
            if f"latents/split={split}/{place.name}" not in files:
                place.delete()
    # Songs that wait for another commit have rows too.
    remove_stems_but(out, stored.row_files.keys() - stored.taken)
    if taken := stored.taken & stored.row_files.keys():
        remove_rows(out, stored, taken)


def describe(out: Place, stored: Stored, codec: "CodecIdentity") -> Manifest:
    """The manifest of these songs, but for its snapshot."""
    rows = list(stored.songs.values())
    train = stored.table.filter(pc.equal(stored.table["split"], "train"))
    held = [row for row in rows if row["split"] == "train"]
    vocal_mean, vocal_std = _statistics(train, "vocal")
    accompaniment_mean, accompaniment_std = _statistics(train, "accompaniment")
    content = json.dumps([[row["song_id"], row["audio_sha256"], row["split"], row["segments"]] for row in rows])
    truth = [[row["song_id"], row["truth_sha256"]] for row in rows if row["truth_sha256"] is not None]
    return Manifest(
        codec_id=codec.id,
        codec_weights_sha256=codec.weights_sha256,
        separator_id=separator_of(out),
        sample_rate_hz=SAMPLE_RATE_HZ,
        hop_samples=HOP_SAMPLES,
        latent_channels=LATENT_CHANNELS,
        segment_frames=SEGMENT_FRAMES,
        vocal_mean=vocal_mean,
        vocal_std=vocal_std,
        accompaniment_mean=accompaniment_mean,
        accompaniment_std=accompaniment_std,
        vocal_level_db=round(float(np.median(_lists(train, "vocal_levels_db"))), 4),
        duration_h=round(sum(row["valid_frames"] for row in rows) * HOP_SAMPLES / SAMPLE_RATE_HZ / 3600, 6),
        counts=Counts(
            songs=len(rows),
            train_songs=len(held),
            validation_songs=len(rows) - len(held),
            segments=sum(row["segments"] for row in rows),
            train_segments=sum(row["segments"] for row in held),
            validation_segments=sum(row["segments"] for row in rows) - sum(row["segments"] for row in held),
            rejected_songs=sum(row["segment"] is None for row in stored.rejects),
            rejected_segments=sum(row["segment"] is not None for row in stored.rejects),
        ),
        content_sha256=hashlib.sha256(content.encode()).hexdigest(),
        commit=code_version(),
        chord_qualities=QUALITIES if truth else None,
        truth_sha256=hashlib.sha256(json.dumps(truth).encode()).hexdigest() if truth else None,
    )


def _statistics(train: pa.Table, stem: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel (mean, deviation) over the valid frames of these songs."""
    frames = float(pc.sum(train["valid_frames"]).as_py())
    mean_C = _lists(train, f"{stem}_latent_sum").reshape(len(train), -1).sum(axis=0) / frames
    square_C = _lists(train, f"{stem}_latent_square_sum").reshape(len(train), -1).sum(axis=0) / frames
    deviation_C = np.sqrt(np.maximum(square_C - mean_C**2, LEAST_DEVIATION**2))
    return tuple(mean_C.tolist()), tuple(deviation_C.tolist())


def _lists(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Every value of a column of lists, in order."""
    chunks: Sequence[NDArray[np.float64]] = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0)
