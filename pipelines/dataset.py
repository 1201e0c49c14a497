"""The stored side of `prepare`: what is done already, one song's commit, the split, and the manifest.

A song is the unit of commit: its latents first, then its row in songs/. File names derive from the song, so a song written twice is
written once. Nothing here depends on the order in which songs arrive.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import UserError
from infra.records import (
    MANIFEST,
    PREPARATION,
    REJECTS,
    SONGS,
    SPLITS,
    Counts,
    Manifest,
    Split,
    code_version,
    latents,
    read_table,
    tensors,
    write_table,
)
from infra.storage import MissingObjectError, Place
from model.geometry import HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ, SEGMENT_FRAMES
from pipelines.encode import EncodedSegment, EncodedSong
from pipelines.segment import Reject, SegmentConfig
from pipelines.songs import FoundSong

if TYPE_CHECKING:
    from model.codec_base import CodecIdentity

# A channel that never varies would be divided by zero.
LEAST_DEVIATION = 1e-4
DUPLICATE = "duplicate"  # the stage of a reject that has the audio of another song


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a dataset holds: rows of songs/ by song id, and whole-song rejects' versions by address."""

    songs: dict[str, dict[str, Any]]
    rejects: list[dict[str, Any]]

    def done(self, present: Mapping[str, str]) -> dict[str, str]:
        """Address → version of each song that needs no work; `present` are the source's songs, likewise.

        Two rows of one address are what a kill leaves of a replaced song: it is done again. So is a duplicate whose owner went or changed.
        """
        rows = Counter(row["url"] for row in self.songs.values())
        owners = {song_id for song_id, row in self.songs.items() if present.get(row["url"]) == row["source_version"]}
        whole = [row for row in self.rejects if row["segment"] is None and (row["stage"] != DUPLICATE or row["song_id"] in owners)]
        single = [row for row in self.songs.values() if rows[row["url"]] == 1]
        return {row["url"]: row["source_version"] for row in (*whole, *single)}


def read_stored(out: Place) -> Stored:
    """Everything that is committed; a song whose latents are gone does not count."""
    names = {place.name for split in SPLITS for place in (out / f"latents/split={split}").list(suffix=".parquet")}
    rows = read_table((out / "songs").list(suffix=".parquet"), SONGS).to_pylist()
    songs = {row["song_id"]: row for row in sorted(rows, key=lambda row: row["song_id"]) if f"{row['song_id']}.parquet" in names}
    return Stored(songs=songs, rejects=read_table((out / "rejects").list(suffix=".parquet"), REJECTS).to_pylist())


def begin(out: Place, codec: "CodecIdentity", segment: SegmentConfig, validation_share: float) -> None:
    """Claim `out` for this codec and these settings; UserError when it was begun with others."""
    chosen = {**segment.__dict__, "validation_share": validation_share}
    settings = {**chosen, "codec_id": codec.id, "codec_weights_sha256": codec.weights_sha256}
    place = out / PREPARATION
    if place.put_if_absent((json.dumps(settings, indent=1) + "\n").encode()):
        return
    before = json.loads(place.read_bytes())
    if before.get("codec_weights_sha256") != codec.weights_sha256:
        raise UserError(
            f"{out} was prepared with codec {before.get('codec_id')!r} (weights {str(before.get('codec_weights_sha256'))[:12]}), now "
            f"{codec.id!r} ({codec.weights_sha256[:12]}) is asked for; latents of two codecs do not mix: choose another --out"
        )
    changed = [f"{name} {before[name]} → {value}" for name, value in chosen.items() if name in before and before[name] != value]
    if changed:
        raise UserError(f"{out} was prepared with other settings ({', '.join(changed)}): keep them, or choose another --out")


def split_of(song_id: str, validation_share: float) -> Split:
    """The split of a song, from its id alone: it stays when songs are added."""
    return "validation" if position(song_id) < validation_share else "train"


def write_song(out: Place, found: FoundSong, song: EncodedSong, split: Split) -> None:
    """Commit one song: rejects, latents, and last its row."""
    song_id = song.identity.song_id
    # A known song comes without either: its files were touched, its segments' rejects stand.
    known = not song.segments and not song.rejects
    _write_rejects(out, found, song_id, _segment_rejects(out, found.url, song_id) if known else song.rejects)
    if song.segments:
        _write_latents(out, song_id, _latent_rows(song, found.source), split)
        write_table(_song_place(out, song_id), pa.Table.from_pylist([_song_row(found, song, split)], schema=SONGS))


def remove_song(out: Place, song_id: str) -> None:
    """Take a song's row away first: without it the latents do not count."""
    _song_place(out, song_id).delete()
    for split in SPLITS:
        _latents_place(out, song_id, split).delete()


def settle_duplicate(out: Place, found: FoundSong, song_id: str, owner: str) -> None:
    """Two folders with the same audio are one song; the other folder is a reject."""
    reason = f"the same audio as {owner}: remove one of them"
    _write_rejects(out, found, song_id, [Reject(stage=DUPLICATE, reason=reason)])


def adopt(out: Place, row: dict[str, Any], found: FoundSong) -> None:
    """A stored song's files were moved or touched: note the new address and version."""
    if row["url"] != found.url and (kept := _segment_rejects(out, row["url"], row["song_id"])):
        _write_rejects(out, found, row["song_id"], kept)
        _rejects_place(out, row["url"]).delete()
    moved = {**row, "url": found.url, "source_version": found.version, "source": found.source}
    write_table(_song_place(out, row["song_id"]), pa.Table.from_pylist([moved], schema=SONGS))


def balance(out: Place, songs: dict[str, dict[str, Any]], movable: Sequence[str]) -> None:
    """At least one song in each split, as soon as there are two: the lowest (for train: highest) hash among `movable` moves there.

    It moves only while its new split is empty, so that the next run finds it settled. Its row goes first and comes back last: a kill in
    between leaves a song that the next run writes again.
    """
    for split, pick in (("validation", min), ("train", max)):
        held = [song_id for song_id, row in songs.items() if row["split"] == split]
        candidates = [song_id for song_id in movable if song_id in songs] or list(songs)
        if held or not candidates or (split == "validation" and len(songs) < 2):
            continue
        song_id = pick(candidates, key=position)
        row = songs[song_id]
        place = _latents_place(out, song_id, row["split"])
        table = read_table([place], latents(LATENT_CHANNELS, SEGMENT_FRAMES))
        _song_place(out, song_id).delete()
        _write_latents(out, song_id, table, "validation" if split == "validation" else "train")
        row["split"] = split
        write_table(_song_place(out, song_id), pa.Table.from_pylist([row], schema=SONGS))


def remove_orphans(out: Place, stored: Stored) -> None:
    """Latents without a row are what a killed run left of songs that the source no longer has."""
    for split in SPLITS:
        for place in (out / f"latents/split={split}").list(suffix=".parquet"):
            row = stored.songs.get(place.name.removesuffix(".parquet"))
            if row is None or row["split"] != split:
                place.delete()


def commit(out: Place, stored: Stored, codec: "CodecIdentity", separator: str | None) -> Manifest:
    """Write the manifest, unless one with the same content is there already."""
    rows = [stored.songs[song_id] for song_id in sorted(stored.songs)]
    train = [row for row in rows if row["split"] == "train"]
    vocal_mean, vocal_std = _statistics(train, "vocal")
    accompaniment_mean, accompaniment_std = _statistics(train, "accompaniment")
    content = json.dumps([[row["song_id"], row["audio_sha256"], row["split"], row["segments"]] for row in rows])
    manifest = Manifest(
        codec_id=codec.id,
        codec_weights_sha256=codec.weights_sha256,
        separator_id=separator,
        sample_rate_hz=SAMPLE_RATE_HZ,
        hop_samples=HOP_SAMPLES,
        latent_channels=LATENT_CHANNELS,
        segment_frames=SEGMENT_FRAMES,
        vocal_mean=vocal_mean,
        vocal_std=vocal_std,
        accompaniment_mean=accompaniment_mean,
        accompaniment_std=accompaniment_std,
        vocal_level_db=round(float(np.median([level for row in train for level in row["vocal_levels_db"]])), 4),
        duration_h=round(sum(row["valid_frames"] for row in rows) * HOP_SAMPLES / SAMPLE_RATE_HZ / 3600, 6),
        counts=Counts(
            songs=len(rows),
            train_songs=len(train),
            validation_songs=len(rows) - len(train),
            segments=sum(row["segments"] for row in rows),
            train_segments=sum(row["segments"] for row in train),
            validation_segments=sum(row["segments"] for row in rows if row["split"] == "validation"),
            rejected_songs=sum(row["segment"] is None for row in stored.rejects),
            rejected_segments=sum(row["segment"] is not None for row in stored.rejects),
        ),
        content_sha256=hashlib.sha256(content.encode()).hexdigest(),
        commit=code_version(),
    )
    try:
        unchanged = replace(Manifest.from_json((out / MANIFEST).read_bytes()), commit=manifest.commit) == manifest
    except MissingObjectError:
        unchanged = False
    if not unchanged:
        (out / MANIFEST).write_bytes(manifest.to_json().encode())
    return manifest


def position(song_id: str) -> float:
    """0 to 1, even over songs, the same on every machine."""
    return int.from_bytes(hashlib.sha256(song_id.encode()).digest()[:8], "big") / 2**64


def _song_place(out: Place, song_id: str) -> Place:
    return out / f"songs/{song_id}.parquet"


def _latents_place(out: Place, song_id: str, split: str) -> Place:
    return out / f"latents/split={split}/{song_id}.parquet"


def _write_latents(out: Place, song_id: str, table: pa.Table, split: Split) -> None:
    # A killed run may have left the song in the other split.
    for other in SPLITS:
        if other != split:
            _latents_place(out, song_id, other).delete()
    write_table(_latents_place(out, song_id, split), table)


def _rejects_place(out: Place, url: str) -> Place:
    return out / f"rejects/{hashlib.sha256(url.encode()).hexdigest()[:24]}.parquet"


def _segment_rejects(out: Place, url: str, song_id: str) -> list[Reject]:
    """The rejected segments of this song that are stored under this address."""
    place = _rejects_place(out, url)
    rows = read_table([place], REJECTS).to_pylist() if place.exists() else []
    return [
        Reject(stage=row["stage"], reason=row["reason"], segment=row["segment"])
        for row in rows
        if row["song_id"] == song_id and row["segment"] is not None
    ]


def _write_rejects(out: Place, found: FoundSong, song_id: str, rejects: Sequence[Reject]) -> None:
    place = _rejects_place(out, found.url)
    if not rejects:
        place.delete()
        return
    rows = [{"song_id": song_id, "url": found.url, "source_version": found.version, **reject.__dict__} for reject in rejects]
    write_table(place, pa.Table.from_pylist(rows, schema=REJECTS))


def _latent_rows(song: EncodedSong, source: str) -> pa.Table:
    def column(name: str) -> list[Any]:
        return [getattr(segment, name) for segment in song.segments]

    columns = {
        "song_id": [song.identity.song_id] * len(song.segments),
        "segment": column("index"),
        **{name: column(name) for name in ("start_s", "duration_s", "valid_frames", "vocal_active", "gain_db")},
        "vocal_latent": tensors(np.stack(column("vocal_CT"))),
        "accompaniment_latent": tensors(np.stack(column("accompaniment_CT"))),
        "source": [source] * len(song.segments),
        "license": [song.identity.license] * len(song.segments),
    }
    schema = latents(LATENT_CHANNELS, SEGMENT_FRAMES)
    return pa.table([_array(columns[field.name], field) for field in schema], schema=schema)


def _array(values: Any, field: pa.Field) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, field.type)


def _song_row(found: FoundSong, song: EncodedSong, split: Split) -> dict[str, Any]:
    row: dict[str, Any] = {
        **song.identity.__dict__,
        "source": found.source,
        "url": found.url,
        "duration_s": song.duration_s,
        "split": split,
        "source_version": found.version,
        "segments": len(song.segments),
        "rejected_segments": len(song.rejects),
        "valid_frames": sum(segment.valid_frames for segment in song.segments),
        "vocal_levels_db": [segment.vocal_level_db for segment in song.segments],
    }
    for stem in ("vocal", "accompaniment"):
        valid_CT = np.concatenate([_valid(segment, stem) for segment in song.segments], axis=1)
        row[f"{stem}_latent_sum"] = valid_CT.sum(axis=1).tolist()
        row[f"{stem}_latent_square_sum"] = np.square(valid_CT).sum(axis=1).tolist()
    return row


def _valid(segment: EncodedSegment, stem: str) -> NDArray[np.float64]:
    latent_CT = segment.vocal_CT if stem == "vocal" else segment.accompaniment_CT
    return latent_CT[:, : segment.valid_frames].astype(np.float64)


def _statistics(rows: Sequence[dict[str, Any]], stem: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel (mean, deviation) over the valid frames of these songs."""
    frames = sum(row["valid_frames"] for row in rows)
    mean_C = np.sum([row[f"{stem}_latent_sum"] for row in rows], axis=0) / frames
    square_C = np.sum([row[f"{stem}_latent_square_sum"] for row in rows], axis=0) / frames
    deviation_C = np.sqrt(np.maximum(square_C - mean_C**2, LEAST_DEVIATION**2))
    return tuple(mean_C.tolist()), tuple(deviation_C.tolist())
