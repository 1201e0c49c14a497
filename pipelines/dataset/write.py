"""The stored side of `prepare`: what is done already, and one song's commit.

A song is the unit of work: its latents first, then its row in songs/. File names derive from the song, so a song written twice is written
once. Nothing here depends on the order in which songs arrive. What a reader sees is a manifest and its snapshot
(`pipelines.dataset.commit`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.dataset.format import PREPARATION, REJECTS, SONGS, Split, latents, tensors
from infra.dataset.parquet import read_table, write_table
from infra.dataset.truth import frame_columns, read_frames, truth_sha256
from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from pipelines.dataset.contents import DUPLICATE, PART, Stored, read_song
from pipelines.song import EncodedSegment, EncodedSong, FoundSong, Reject
from pipelines.stages.segment import SegmentConfig
from pipelines.stages.truth import frames_of

if TYPE_CHECKING:
    from model.codec.base import CodecIdentity

SEPARATION = "separation.json"


def begin(out: Place, codec: "CodecIdentity", segment: SegmentConfig, validation_share: float) -> None:
    """Claim `out` for this codec and these settings; UserError when it was begun with others."""
    chosen = {**segment.__dict__, "validation_share": validation_share}
    settings = {**chosen, "codec_id": codec.id, "codec_weights_sha256": codec.weights_sha256}
    before = _claim(out / PREPARATION, settings)
    if before.get("codec_weights_sha256") != codec.weights_sha256:
        raise UserError(
            f"{out} was prepared with codec {before.get('codec_id')!r} (weights {str(before.get('codec_weights_sha256'))[:12]}), now "
            f"{codec.id!r} ({codec.weights_sha256[:12]}) is asked for; latents of two codecs do not mix: choose another --out"
        )
    changed = [f"{name} {before[name]} → {value}" for name, value in chosen.items() if name in before and before[name] != value]
    if changed:
        raise UserError(f"{out} was prepared with other settings ({', '.join(changed)}): keep them, or choose another --out")


def begin_separation(out: Place, separator_id: str, weights_sha256: str) -> None:
    """Claim `out` for this separator; UserError when songs in it went through another."""
    before = _claim(out / SEPARATION, {"separator_id": separator_id, "separator_weights_sha256": weights_sha256})
    if before.get("separator_weights_sha256") != weights_sha256:
        earlier = f"{before.get('separator_id')!r} (weights {str(before.get('separator_weights_sha256'))[:12]})"
        raise UserError(
            f"{out} holds songs separated by {earlier}, now "
            f"{separator_id!r} ({weights_sha256[:12]}) is asked for: name the same --separator, or choose another --out"
        )


def separator_of(out: Place) -> str | None:
    """The separator that songs here went through, if any did."""
    try:
        return str(json.loads((out / SEPARATION).read_bytes())["separator_id"])
    except MissingObjectError:
        return None


def _claim(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """What `place` holds after this: `settings`, unless it was written before."""
    if place.put_if_absent((json.dumps(settings, indent=1) + "\n").encode()):
        return settings
    held: dict[str, Any] = json.loads(place.read_bytes())
    return held


def split_of(group: str, validation_share: float) -> Split:
    """The split of a song, from its id alone: it stays when songs are added. Songs that share a vocal are one group, under the id of the
    song that the vocal was sung for."""
    return "validation" if position(group) < validation_share else "train"


def position(group: str) -> float:
    """0 to 1, even over songs, the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def group_of(row: Mapping[str, Any]) -> str:
    """Equal for the rows of songs that share a vocal."""
    return str(row.get("vocal_of") or row["song_id"])


def moved_groups(stored: Stored, validation_share: float) -> dict[str, Split]:
    """The split of each vocal group that is elsewhere than its hash says: what is added to it follows."""
    splits = {group_of(row): row["split"] for row in stored.songs.values()}
    return {group: split for group, split in splits.items() if split != split_of(group, validation_share)}


def write_song(out: Place, found: FoundSong, song: EncodedSong, split: Split) -> None:
    """Commit one song: rejects, latents, and last its row."""
    song_id = song.identity.song_id
    if not song.identity.audio_sha256 and not song.segments:  # nobody has seen its audio: what is stored of this address stands
        earlier = [row for row in _reject_rows(out, found.url) if row["segment"] is not None]
        write_reject_rows(out, found.url, [*reject_rows(found, song_id, song.rejects), *earlier])
        return
    # A known song comes without either: its files were touched, its segments' rejects stand.
    known = not song.segments and not song.rejects
    write_rejects(out, found, song_id, segment_rejects(out, found.url, song_id) if known else song.rejects)
    if song.segments:
        table = _latent_rows(song, found.source)
        write_table(latents_place(out, song_id, split), table)
        write_row(out, _with_truth(_song_row(found, song, split), song, table))


def write_row(out: Place, row: Mapping[str, Any]) -> None:
    """A song's row, in a file of its own."""
    write_table(song_place(out, row["song_id"]), pa.Table.from_pylist([row], schema=SONGS))


def remove_rows(out: Place, stored: Stored, song_ids: Set[str], *, keep: Sequence[Place] = ()) -> None:
    """Take songs' rows away: without it their latents do not count. A joined file is written anew without them, then the old one goes."""
    for file in sorted({file for song_id in song_ids for file in stored.row_files.get(song_id, ())}):
        place = out / file
        if place in keep:
            continue
        if place.name.startswith(PART):
            rows = read_table([place], SONGS)
            kept = rows.filter(pc.invert(pc.is_in(rows["song_id"], pa.array(sorted(song_ids), pa.string()))))
            if len(kept):
                write_table(out / f"songs/{part_name(kept['song_id'].to_pylist())}", kept)
        place.delete()


def settle_duplicate(out: Place, found: FoundSong, song_id: str, owner: str, how: str = "the same audio as") -> None:
    """Two addresses with the same recording are one song, `song_id`; the other address is a reject."""
    write_rejects(out, found, song_id, [Reject(stage=DUPLICATE, reason=f"{how} {owner}: remove one of them")])


def balance(out: Place, stored: Stored, movable: Sequence[str]) -> bool:
    """At least one song in each split, as soon as there are two: the lowest (for train: highest) hash among `movable` moves there, with
    every song that shares its vocal. What its source gave a split stays there.

    Whether one moved. It moves only while its new split is empty, so that the next run finds it settled. Its latents come first, then its
    row, so that it is whole in the one split or in the other; the next commit removes the latents that it left.
    """
    moved = False
    may_move = set(movable)
    groups: dict[str, list[str]] = {}
    for song_id, row in stored.songs.items():
        groups.setdefault(group_of(row), []).append(song_id)
    free = {group: set(members) for group, members in groups.items() if not any(stored.songs[one]["split_given"] for one in members)}
    for split, pick in (("validation", min), ("train", max)):
        held = [song_id for song_id, row in stored.songs.items() if row["split"] == split]
        candidates = [group for group, members in free.items() if members <= may_move] or list(free)
        if held or not candidates or (split == "validation" and len(groups) < 2):
            continue
        members = free[pick(candidates, key=position)]
        for song_id in sorted(members):
            row = {**stored.whole_row(out, song_id), "split": split}
            write_table(latents_place(out, song_id, split), read_song(out, stored, song_id))
            write_row(out, row)
        remove_rows(out, stored, members, keep=[song_place(out, song_id) for song_id in members])
        moved = True
    return moved


def song_place(out: Place, song_id: str) -> Place:
    return out / f"songs/{song_id}.parquet"


def latents_place(out: Place, song_id: str, split: str) -> Place:
    return out / f"latents/split={split}/{song_id}.parquet"


def rejects_place(out: Place, url: str) -> Place:
    return out / f"rejects/{hashlib.sha256(url.encode()).hexdigest()[:24]}.parquet"


def part_name(song_ids: Sequence[str]) -> str:
    """The name of a file that joins these songs: the same songs give the same file."""
    return f"{PART}{hashlib.sha256(json.dumps(sorted(song_ids)).encode()).hexdigest()[:24]}.parquet"


def segment_rejects(out: Place, url: str, song_id: str) -> list[Reject]:
    """The rejected segments of this song that are stored under this address."""
    return [
        Reject(stage=row["stage"], reason=row["reason"], segment=row["segment"])
        for row in _reject_rows(out, url)
        if row["song_id"] == song_id and row["segment"] is not None
    ]


def drop_segment_rejects(out: Place, url: str, song_id: str) -> None:
    """Of this address: no segments of this song any more, which is elsewhere now, or gone."""
    rows = _reject_rows(out, url)
    write_reject_rows(out, url, [row for row in rows if row["segment"] is None or row["song_id"] != song_id])


def _reject_rows(out: Place, url: str) -> list[dict[str, Any]]:
    place = rejects_place(out, url)
    rows: list[dict[str, Any]] = read_table([place], REJECTS).to_pylist() if place.exists() else []
    return rows


def write_rejects(out: Place, found: FoundSong, song_id: str, rejects: Sequence[Reject]) -> None:
    """Every reject of one address, in place of those before."""
    write_reject_rows(out, found.url, reject_rows(found, song_id, rejects))


def reject_rows(found: FoundSong, song_id: str, rejects: Sequence[Reject]) -> list[dict[str, Any]]:
    """Rows of REJECTS."""
    origin = {"url": found.url, "source_version": found.version, "listed_by": found.listed_by or None}
    return [{"song_id": song_id, **origin, **reject.__dict__} for reject in rejects]


def write_reject_rows(out: Place, url: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """These rows of REJECTS, in place of what was stored of this address."""
    place = rejects_place(out, url)
    if rows:
        write_table(place, pa.Table.from_pylist(list(rows), schema=REJECTS))
    else:
        place.delete()


def _latent_rows(song: EncodedSong, source: str) -> pa.Table:
    def column(name: str) -> list[Any]:
        return [getattr(segment, name) for segment in song.segments]

    frames = frames_of(song.truth, column("start_s"), column("valid_frames"), SEGMENT_FRAMES)
    columns = {
        "song_id": [song.identity.song_id] * len(song.segments),
        "segment": column("index"),
        **{name: column(name) for name in ("start_s", "duration_s", "valid_frames", "vocal_active", "gain_db", "separation_quality")},
        "vocal_latent": tensors(np.stack(column("vocal_CT"))),
        "accompaniment_latent": tensors(np.stack(column("accompaniment_CT"))),
        "source": [source] * len(song.segments),
        "license": [song.identity.license] * len(song.segments),
        **frame_columns(frames, None if song.truth is None else song.truth.source),
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
        "separator_id": song.separator_id,
        "split_given": found.split is not None,
        "fingerprint": song.fingerprint,
    }
    for stem in ("vocal", "accompaniment"):
        valid_CT = np.concatenate([_valid(segment, stem) for segment in song.segments], axis=1)
        row[f"{stem}_latent_sum"] = valid_CT.sum(axis=1).tolist()
        row[f"{stem}_latent_square_sum"] = np.square(valid_CT).sum(axis=1).tolist()
    return row


def _with_truth(row: dict[str, Any], song: EncodedSong, table: pa.Table) -> dict[str, Any]:
    """A song's row with what its band plays; `table` are its latents."""
    truth = song.truth
    if truth is None:
        return {**row, "truth_fault": song.truth_fault or None}
    said = {
        "style": truth.style,
        "tempo_bpm": truth.tempo_bpm,
        "key": truth.key,
        "metre": truth.metre,
        "sections": [asdict(section) for section in truth.sections] or None,
        "truth_source": truth.source,
        "tempo_confidence": None if truth.tempo_bpm is None else truth.tempo_confidence,
        "key_confidence": None if truth.key is None else truth.key_confidence,
    }
    return {**row, **said, "truth_fault": song.truth_fault or None, "truth_sha256": truth_sha256(said, read_frames(table, SEGMENT_FRAMES))}


def _valid(segment: EncodedSegment, stem: str) -> NDArray[np.float64]:
    latent_CT = segment.vocal_CT if stem == "vocal" else segment.accompaniment_CT
    return latent_CT[:, : segment.valid_frames].astype(np.float64)
