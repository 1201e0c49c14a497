"""Batches from a latent dataset held in memory, every random draw from a named stream.

Shapes: R segments of a split, B samples of a micro-batch, C channels, T frames.

A stream is counter-based: sample n of a run (n = step × batch_size + slot) draws its crop, timestep, noise and dropout from
Philox(key = (seed, stream), counter = n). So draws differ between samples, ranks and streams; they do not depend on how many workers
share the batch; and the state of every stream is the number of samples drawn, which a checkpoint saves.
"""

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import UserError
from infra.records import LatentTable, Manifest
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
        if device.type == self.t_B.device.type:
            return self
        return Batch(**{name: value.pin_memory().to(device, non_blocking=True) for name, value in vars(self).items()})


class Batches:
    """What one rank sees: its slots of every global batch."""

    def __init__(
        self,
        store: LatentTable,
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
        self.store, self.statistics, self.seed, self.timesteps = store, statistics, seed, timesteps
        self.crop_frames = min(crop_frames, store.vocal_RCT.shape[2])
        self.batch_size, self.micro_batch, self.condition_dropout = batch_size, micro_batch, condition_dropout
        # Shares differ by one segment at most.
        self.slots = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one step: a function of (seed, step) alone."""
        samples = [self._sample(step * self.batch_size + slot) for slot in self.slots]
        return [collate(samples[start : start + self.micro_batch]) for start in range(0, len(samples), self.micro_batch)]

    def ahead(self, step: int) -> Generator[list[Batch], None, None]:
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
            self.statistics,
            t=int(stream(self.seed, "timestep", sample).integers(self.timesteps)),
            noise=stream(self.seed, "noise", sample),
            drop=bool(stream(self.seed, "dropout", sample).random() < self.condition_dropout),
        )


def validation_batches(
    store: LatentTable,
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
    chosen = sorted({round(index * (len(store) - 1) / max(1, min(segments, len(store)) - 1)) for index in range(min(segments, len(store)))})
    crop_frames = min(crop_frames, store.vocal_RCT.shape[2])
    groups = []
    for quantile in range(per_segment):
        samples = []
        for index, row in enumerate(chosen):
            if index % world_size != rank:
                continue
            draw = stream(0, "validation", index * per_segment + quantile)
            start = max(0, int(store.valid_frames_R[row]) - crop_frames) // 2
            t = int((quantile + 0.5) / per_segment * timesteps)
            samples.append(crop(store, row, start, crop_frames, statistics, t=t, noise=draw, drop=False))
        groups.append([collate(samples[first : first + micro_batch]) for first in range(0, len(samples), micro_batch)])
    return groups


def crop(
    store: LatentTable, row: int, start: int, frames: int, statistics: LatentStatistics, *, t: int, noise: np.random.Generator, drop: bool
) -> Batch:
    """One sample as a batch of one: a normalised window of a segment, zero where the segment has no audio."""
    window = slice(start, start + frames)
    valid_1T = torch.arange(start, start + frames)[None] < int(store.valid_frames_R[row])
    vocal_1CT = statistics.normalise_vocal(torch.from_numpy(store.vocal_RCT[row : row + 1, :, window].astype(np.float32)))
    accompaniment_1CT = statistics.normalise_accompaniment(
        torch.from_numpy(store.accompaniment_RCT[row : row + 1, :, window].astype(np.float32))
    )
    return Batch(
        vocal_BCT=torch.where(valid_1T, vocal_1CT, 0.0),
        accompaniment_BCT=torch.where(valid_1T, accompaniment_1CT, 0.0),
        valid_BT=valid_1T,
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
