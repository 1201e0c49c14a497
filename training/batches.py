"""Batches from a latent dataset held in memory, every random draw from a named stream.

Shapes: R segments of a split, B samples of a micro-batch, C channels, T frames.

A stream is counter-based: sample n of a run (n = step × batch_size + slot) draws its crop, timestep, noise and dropout from
Philox(key = (seed, stream), counter = n). So draws differ between samples, ranks and streams; they do not depend on how many workers
share the batch; and the state of every stream is the number of samples drawn, which a checkpoint saves.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import UserError
from infra.records import Manifest, read_latents
from infra.storage import Place
from model.checkpoint import LatentStatistics

STREAMS = ("order", "crop", "timestep", "noise", "dropout", "validation")


def stream(seed: int, name: str, sample: int) -> np.random.Generator:
    """The generator of one named stream at one sample. Raises ValueError for a name that is not in STREAMS."""
    if name not in STREAMS:
        raise ValueError(f"stream {name!r} is not one of {', '.join(STREAMS)}: add it there")
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    # The sample is the counter's high half: no two samples can ever overlap.
    return np.random.Generator(np.random.Philox(key=key, counter=sample << 128))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, segments: int) -> NDArray[np.int64]:
    """The order of an epoch's segments: each exactly once."""
    return stream(seed, "order", epoch).permutation(segments)


@dataclass(frozen=True, kw_only=True)
class LatentStore:
    """One split in memory, as stored (float16): about 256 KiB a segment."""

    vocal_RCT: NDArray[np.float16]
    accompaniment_RCT: NDArray[np.float16]
    valid_frames_R: NDArray[np.int64]
    song_ids: tuple[str, ...]
    segments: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.song_ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, normalised; everything random about it is already drawn."""

    vocal_BCT: Tensor
    accompaniment_BCT: Tensor
    valid_BT: Tensor
    """True where the segment has audio."""
    t_B: Tensor
    noise_BCT: Tensor
    drop_B: Tensor
    """True where the vocal is hidden from the network."""

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        return Batch(**{name: value.pin_memory().to(device, non_blocking=True) for name, value in vars(self).items()})


def load_split(data: str, split: str) -> LatentStore:
    """Reads a split, ordered by song and segment whatever the files' order."""
    rows = read_latents(Place(data), split)
    order = sorted(range(len(rows.song_ids)), key=lambda row: (rows.song_ids[row], rows.segments[row]))
    return LatentStore(
        vocal_RCT=rows.vocal_RCT[order],
        accompaniment_RCT=rows.accompaniment_RCT[order],
        valid_frames_R=np.asarray(rows.valid_frames_R, np.int64)[order],
        song_ids=tuple(rows.song_ids[row] for row in order),
        segments=tuple(int(rows.segments[row]) for row in order),
    )


class Batches:
    """What one rank sees: its slots of every global batch."""

    def __init__(
        self,
        store: LatentStore,
        statistics: LatentStatistics,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        crop_frames: int,
        timesteps: int,
        condition_dropout: float,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(store):
            raise UserError("the training split has no segments: prepare a dataset with more songs, and look into its rejects/")
        self.store, self.seed, self.crop_frames, self.timesteps = store, seed, crop_frames, timesteps
        self.batch_size, self.micro_batch, self.condition_dropout = batch_size, micro_batch, condition_dropout
        share = batch_size // world_size
        self.slots = range(rank * share, (rank + 1) * share)
        self.vocal_scale_C1, self.accompaniment_scale_C1 = scales(statistics)

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one step: a function of (seed, step) alone."""
        samples = [self._sample(step * self.batch_size + slot) for slot in self.slots]
        return [collate(samples[start : start + self.micro_batch]) for start in range(0, len(samples), self.micro_batch)]

    def ahead(self, step: int) -> Iterator[list[Batch]]:
        """Steps from `step` on, the next one drawn in a thread while the network works on this one."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            following = pool.submit(self.at, step)
            while True:
                batches = following.result()
                step += 1
                following = pool.submit(self.at, step)
                yield batches

    def _sample(self, sample: int) -> Batch:
        epoch, position = divmod(sample, len(self.store))
        row = int(epoch_order(self.seed, epoch, len(self.store))[position])
        # Crops start where there is audio to fill them; a short segment keeps its padding, masked.
        latest = max(0, int(self.store.valid_frames_R[row]) - self.crop_frames)
        start = int(stream(self.seed, "crop", sample).integers(latest + 1))
        return crop(
            self.store,
            row,
            start,
            self.crop_frames,
            self.vocal_scale_C1,
            self.accompaniment_scale_C1,
            t=int(stream(self.seed, "timestep", sample).integers(self.timesteps)),
            noise=stream(self.seed, "noise", sample),
            drop=bool(stream(self.seed, "dropout", sample).random() < self.condition_dropout),
        )


def validation_batches(
    store: LatentStore,
    statistics: LatentStatistics,
    *,
    segments: int,
    crop_frames: int,
    timesteps: int,
    per_segment: int,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[Batch]]:
    """Held-out crops with fixed windows, timesteps and noise, so that any two validations of any two runs compare.

    One list for each timestep: quantile middles of 0..T-1. A rank gets every world_size-th segment.
    """
    chosen = np.unique(np.linspace(0, len(store) - 1, min(segments, len(store))).round().astype(int)) if len(store) else []
    scale = scales(statistics)
    groups = []
    for quantile in range(per_segment):
        samples = []
        for index, row in enumerate(chosen):
            if index % world_size != rank:
                continue
            draw = stream(0, "validation", index * per_segment + quantile)
            start = max(0, int(store.valid_frames_R[row]) - crop_frames) // 2
            t = int((quantile + 0.5) / per_segment * timesteps)
            samples.append(crop(store, int(row), start, crop_frames, *scale, t=t, noise=draw, drop=False))
        groups.append([collate(samples[first : first + micro_batch]) for first in range(0, len(samples), micro_batch)])
    return groups


def scales(statistics: LatentStatistics) -> tuple[tuple[NDArray[np.float32], ...], tuple[NDArray[np.float32], ...]]:
    """((mean_C1, std_C1) of vocals, of accompaniments)."""
    columns = [np.asarray(values, np.float32)[:, None] for values in (
        statistics.vocal_mean, statistics.vocal_std, statistics.accompaniment_mean, statistics.accompaniment_std,
    )]  # fmt: skip
    return (columns[0], columns[1]), (columns[2], columns[3])


def crop(
    store: LatentStore,
    row: int,
    start: int,
    frames: int,
    vocal_scale: tuple[NDArray[np.float32], ...],
    accompaniment_scale: tuple[NDArray[np.float32], ...],
    *,
    t: int,
    noise: np.random.Generator,
    drop: bool,
) -> Batch:
    """One sample as a batch of one: a normalised window of a segment, zero where the segment has no audio."""
    window = slice(start, start + frames)
    valid_T = np.arange(start, start + frames) < store.valid_frames_R[row]

    def normalised(latent_RCT: NDArray[np.float16], mean_C1: NDArray[np.float32], std_C1: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.where(valid_T, (latent_RCT[row, :, window].astype(np.float32) - mean_C1) / std_C1, 0.0)[None])

    accompaniment_1CT = normalised(store.accompaniment_RCT, *accompaniment_scale)
    return Batch(
        vocal_BCT=normalised(store.vocal_RCT, *vocal_scale),
        accompaniment_BCT=accompaniment_1CT,
        valid_BT=torch.from_numpy(valid_T[None]),
        t_B=torch.tensor([t]),
        noise_BCT=torch.from_numpy(noise.standard_normal(accompaniment_1CT.shape, dtype=np.float32)),
        drop_B=torch.tensor([drop]),
    )


def collate(samples: list[Batch]) -> Batch:
    return Batch(**{name: torch.cat([getattr(sample, name) for sample in samples]) for name in Batch.__dataclass_fields__})


def statistics_of(manifest: Manifest) -> LatentStatistics:
    """The manifest's channel statistics as a checkpoint carries them."""
    return LatentStatistics(
        vocal_mean=manifest.vocal_mean,
        vocal_std=manifest.vocal_std,
        accompaniment_mean=manifest.accompaniment_mean,
        accompaniment_std=manifest.accompaniment_std,
        vocal_level_db=manifest.vocal_level_db,
    )
