"""Truth beside the latents: what the band plays, by frame in latents/ and by song in songs/, and where each is known from.

All columns may be null: in datasets of before, and where nothing is known. Numbers of chord qualities are places in the manifest's
`chord_qualities`. Frame t of a row is the middle of its latent's frame, start_s + (t + 0.5) · hop / rate.

Shapes: R segments, T frames.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import UserError

TruthSource = Literal["composed", "estimated"]
SOURCES: tuple[TruthSource, ...] = ("composed", "estimated")
CHORD_FRAMES = ("chord_root", "chord_quality", "chord_bass")
PHASE_FRAMES = ("beat_phase", "bar_phase")
CONFIDENCES = ("chord_confidence", "beat_confidence", "bar_confidence")
SONG_TRUTH = ("style", "tempo_bpm", "key", "metre", "sections", "truth_source", "tempo_confidence", "key_confidence")
NO_CHORD = -1
# Phases lie below 1, also where float16 would round them up to it.
HIGHEST_PHASE = np.nextafter(np.float16(1), np.float16(0))

SONG_FIELDS = [
    pa.field("style", pa.string()),
    pa.field("tempo_bpm", pa.float64()),
    pa.field("key", pa.string()),  # as "F# minor"
    pa.field("metre", pa.string()),  # as "6/8"
    pa.field(
        "sections",
        pa.list_(pa.struct([pa.field("start_s", pa.float64()), pa.field("end_s", pa.float64()), pa.field("label", pa.string())])),
    ),
    pa.field("truth_source", pa.string()),  # composed or estimated; null: nothing is known
    pa.field("tempo_confidence", pa.float64()),  # 0 to 1, 1 where composed
    pa.field("key_confidence", pa.float64()),
    pa.field("truth_fault", pa.string()),  # why there is no truth, or none of the better kind
    pa.field("truth_sha256", pa.string()),  # over all truth of the song, here and in latents/
]


# The columns of latents/. Each list has as many values as a latent has frames; Arrow reads no nulls among lists of a fixed size.
FRAME_FIELDS = [
    *(pa.field(name, pa.list_(pa.int8())) for name in CHORD_FRAMES),  # −1: no chord sounds
    *(pa.field(name, pa.list_(pa.float16())) for name in PHASE_FRAMES),  # 0 up to 1; NaN: no beat or no bar is known
    *(pa.field(name, pa.float32()) for name in CONFIDENCES),  # 0 to 1, 1 where composed
    pa.field("truth_source", pa.string()),
]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTruth:
    """The truth of some segments, as arrays. Segments without any hold −1 and NaN, like frames of which nothing is known."""

    chord_root_RT: NDArray[np.int8]
    """Pitch class, 0 = C."""
    chord_quality_RT: NDArray[np.int8]
    chord_bass_RT: NDArray[np.int8]
    """Pitch class."""
    beat_phase_RT: NDArray[np.float16]
    """0 on a beat, up to 1 before the next."""
    bar_phase_RT: NDArray[np.float16]
    chord_confidence_R: NDArray[np.float32]
    beat_confidence_R: NDArray[np.float32]
    bar_confidence_R: NDArray[np.float32]
    known_R: NDArray[np.bool_]
    """Whether the segment has truth at all."""
    chords_known_R: NDArray[np.bool_]
    """Whether its chords are known; without them −1 says nothing, with them that no chord sounds."""

    def __len__(self) -> int:
        return len(self.known_R)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTruth:
    """The truth of a split's rows, in their order."""

    frames: FrameTruth
    styles_R: tuple[str | None, ...]


def read_frames(table: pa.Table, frames: int) -> FrameTruth:
    """The truth in rows of latents/; UserError when a list has another length than `frames`."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in CHORD_FRAMES:
        arrays[f"{name}_RT"] = _lists(table, name, frames, np.int8(NO_CHORD))
    for name in PHASE_FRAMES:
        arrays[f"{name}_RT"] = _lists(table, name, frames, np.float16(np.nan))
    for name in CONFIDENCES:
        values = table[name].to_pylist()
        arrays[f"{name}_R"] = np.array([np.nan if value is None else value for value in values], np.float32)
    return FrameTruth(**arrays, known_R=_valid(table, "truth_source"), chords_known_R=_valid(table, "chord_root"))


def frame_columns(truth: FrameTruth, source: TruthSource | None) -> dict[str, pa.Array]:
    """Inverse of `read_frames`; all null where `source` is None."""
    rows, frames = truth.chord_root_RT.shape
    types = {field.name: field.type for field in FRAME_FIELDS}
    if source is None:
        return {name: pa.nulls(rows, kind) for name, kind in types.items()}
    columns = {}
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * frames)
    for name in (*CHORD_FRAMES, *PHASE_FRAMES):
        flat = pa.array(getattr(truth, f"{name}_RT").reshape(-1), types[name].value_type)
        unknown = pa.array(~truth.chords_known_R) if name in CHORD_FRAMES else None
        columns[name] = pa.ListArray.from_arrays(offsets, flat, mask=unknown)
    columns |= {name: pa.array(getattr(truth, f"{name}_R"), pa.float32(), from_pandas=True) for name in CONFIDENCES}
    return {**columns, "truth_source": pa.array([source] * rows, pa.string())}


def no_truth(rows: int, frames: int) -> FrameTruth:
    """Of so many segments of which nothing is known."""
    return FrameTruth(
        **{f"{name}_RT": np.full((rows, frames), NO_CHORD, np.int8) for name in CHORD_FRAMES},  # type: ignore[arg-type]
        **{f"{name}_RT": np.full((rows, frames), np.nan, np.float16) for name in PHASE_FRAMES},  # type: ignore[arg-type]
        **{f"{name}_R": np.full(rows, np.nan, np.float32) for name in CONFIDENCES},  # type: ignore[arg-type]
        known_R=np.zeros(rows, bool),
        chords_known_R=np.zeros(rows, bool),
    )


def truth_sha256(song: Mapping[str, Any], frames: FrameTruth) -> str | None:
    """Over all that is known of a song: its row of songs/ and its segments, in order; None when nothing is."""
    if song.get("truth_source") is None:
        return None
    said = json.dumps([song.get(name) for name in SONG_TRUTH], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for field in fields(frames):
        digest.update(np.ascontiguousarray(getattr(frames, field.name)).tobytes())
    return digest.hexdigest()


def _valid(table: pa.Table, name: str) -> NDArray[np.bool_]:
    return np.array(table[name].is_valid().to_pylist(), bool)


def _lists(table: pa.Table, name: str, frames: int, unknown: Any) -> NDArray[Any]:
    """(R, T) of a column of lists, `unknown` where a row is null."""
    found = np.full((len(table), frames), unknown)
    held_R = _valid(table, name)
    chunks = [chunk.drop_null() for chunk in table[name].chunks]
    lengths = {length for chunk in chunks for length in chunk.value_lengths().to_pylist()}
    if lengths - {frames}:
        raise UserError(f"{name} has lists of {sorted(lengths)} values, not one for each of {frames} frames")
    if held_R.any():
        found[held_R] = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]).reshape(-1, frames)
    return found
