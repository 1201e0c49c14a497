"""What an evaluation plays: held-out pairs decoded from their latents, the accompaniments scored beside them, and the reference set.

Shapes: C channels, N samples, T frames.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from infra.dataset.format import LatentTable, read_latents
from infra.errors import UserError
from infra.storage.place import Place
from model.codec.base import Codec
from model.dimensions import FRAME_RATE_HZ
from training.evaluation.measures import COPY, GENERATED, NOISE, OTHER, REAL, ROUND_TRIP, SILENCE, STRANGER

SHORTEST_S = 4


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One held-out pair, decoded."""

    song_id: str
    segment: int
    vocal_CN: np.ndarray
    real_CN: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.song_id}-{self.segment}"

    def seed(self, seed: int) -> int:
        """One of its own: bands that share their noise share style and tempo, and a distance between sets then measures that."""
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.name}".encode()).digest()[:6], "big")


def claim_rows(pairs: list[HeldOut], generated: list[np.ndarray], index: int, other_CN: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What is scored against vocal `index`: the accompaniment of which something is claimed, and what it is held against."""
    yield GENERATED, generated[index]
    yield REAL, pairs[index].real_CN
    yield OTHER, other_CN


def baseline_rows(
    pairs: list[HeldOut], generated: list[np.ndarray], index: int, round_trip_CN: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """The other kinds of accompaniment, which say what a figure means."""
    real_CN = pairs[index].real_CN
    stranger = generated_stranger(pairs, index)
    if stranger is not None:
        yield STRANGER, generated[stranger]
    yield ROUND_TRIP, round_trip_CN
    yield COPY, pairs[index].vocal_CN
    yield SILENCE, np.zeros_like(real_CN)
    level = float(np.sqrt(np.mean(real_CN**2)))
    yield NOISE, level * np.random.default_rng(index).standard_normal(real_CN.shape, dtype=np.float32)


def generated_stranger(pairs: list[HeldOut], index: int) -> int | None:
    """The pair whose generated accompaniment stands for another song's: each vocal a different one, not all the same."""
    turned = [(index + shift) % len(pairs) for shift in range(1, len(pairs))]
    return next((other for other in turned if pairs[other].song_id != pairs[index].song_id), None)


def round_trip(audio_CN: np.ndarray, codec: Codec) -> np.ndarray:
    """Encoded and decoded once more."""
    with torch.inference_mode():
        latent_BCT = codec.encode(torch.from_numpy(audio_CN)[None])
        return codec.decode(latent_BCT).cpu().numpy()[0, :, : audio_CN.shape[1]]


def spread(store: LatentTable, count: int) -> list[int]:
    """Rows of the first segments of every song, then of the second ones, and so on; segments under 4 s last."""
    if not len(store):
        raise UserError("the validation split has no segments: prepare a dataset with more songs, one in ten is held out")
    return by_turns(store, count)


def by_turns(store: LatentTable, count: int) -> list[int]:
    seen: dict[str, int] = {}
    keys = []
    for row, song in enumerate(store.song_ids):
        seen[song] = seen.get(song, -1) + 1
        keys.append((int(store.valid_frames_R[row]) < SHORTEST_S * FRAME_RATE_HZ, seen[song], row))
    return [row for _, _, row in sorted(keys)[:count]]


def strangers(store: LatentTable, chosen: list[int], data: Place) -> list[tuple[LatentTable, int]]:
    """A row of another song for each chosen one: held out where there is one, else from the training split."""
    found = []
    fallback: LatentTable | None = None
    for position, row in enumerate(chosen):
        turned = chosen[position + 1 :] + chosen[:position]
        other = next((candidate for candidate in turned if store.song_ids[candidate] != store.song_ids[row]), None)
        if other is not None:
            found.append((store, other))
            continue
        fallback = fallback or read_latents(data, "train")
        longest = np.argsort(-fallback.valid_frames_R, kind="stable")
        found.append((fallback, int(longest[position % len(longest)])))
    return found


def reference_rows(training: LatentTable, count: int, used: set[str]) -> list[int]:
    """Training segments for the reference, spread over songs; songs that stand in a row of the table only where there are no others."""
    turns = by_turns(training, len(training))
    free = [row for row in turns if training.song_ids[row] not in used]
    return (free or turns)[:count]


def decode_row(store: LatentTable, row: int, codec: Codec, seconds: float, *, vocal: bool = True) -> np.ndarray:
    """(2, C, N): vocal and real accompaniment of a segment, from their latents; (1, C, N) without the vocal."""
    frames = int(store.valid_frames_R[row])
    if seconds:
        frames = min(frames, int(seconds * FRAME_RATE_HZ))
    stems = (store.vocal_RCT, store.accompaniment_RCT) if vocal else (store.accompaniment_RCT,)
    latents_BCT = torch.from_numpy(np.stack([latent[row, :, :frames] for latent in stems])).float()
    with torch.inference_mode():
        return codec.decode(latents_BCT.to(codec.device)).cpu().numpy()


def decode_pair(store: LatentTable, row: int, codec: Codec, seconds: float) -> HeldOut:
    """Vocal and real accompaniment of a segment, from their latents."""
    vocal_CN, real_CN = decode_row(store, row, codec, seconds)
    return HeldOut(song_id=store.song_ids[row], segment=store.segments[row], vocal_CN=vocal_CN, real_CN=real_CN)
