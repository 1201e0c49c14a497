"""How a song is cut for a separation network, and how its chunks become a song again: the arithmetic of demucs.apply, chunk by chunk.

Shapes: C channels, N samples, S sources of a network, K the two stems (vocal, accompaniment).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.dimensions import AUDIO_CHANNELS, SAMPLE_RATE_HZ
from model.errors import ModelError

# Songs are looked at in blocks for their statistics: no mono copy of an hour.
STATISTICS_SAMPLES = 1 << 20

Read = Callable[[int, int], Any]


@dataclass(frozen=True, kw_only=True)
class Song:
    """A mixture read piece by piece; `mean` and `std` are those of its mono sum, over the whole song."""

    read: Read
    samples: int
    mean: float
    std: float

    def normalised(self, start: int, stop: int) -> np.ndarray:
        """(2, stop − start) float32 of mean 0 and deviation 1; zeros where the song is not."""
        first, last = max(0, start), min(self.samples, stop)
        found_CN = np.zeros((AUDIO_CHANNELS, stop - start), np.float32)
        found_CN[:, first - start : last - start] = (self.read(first, last) - np.float32(self.mean)) / np.float32(self.std)
        return found_CN

    def restored(self, stems_KCN: np.ndarray, others: int) -> np.ndarray:
        """The stems at the song's level, in the same memory; each of the `others` sources in the accompaniment carries the mean."""
        stems_KCN *= np.float32(self.std)
        stems_KCN[0] += np.float32(self.mean)
        stems_KCN[1] += np.float32(self.mean * others)
        return stems_KCN


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Samples start..stop are wanted; the network is given read_start..read_stop, which may reach beyond the song."""

    start: int
    stop: int
    read_start: int
    read_stop: int

    @property
    def length(self) -> int:
        return self.read_stop - self.read_start


class Network:
    """One network of a bag: how it cuts a song, and how its sources add up to the two stems."""

    def __init__(self, module: Any, stems_KS: torch.Tensor, overlap: float) -> None:
        self.module = module
        self.stems_KS = stems_KS
        self.segment = int(module.samplerate * module.segment)
        self.stride = int((1 - overlap) * self.segment)
        if self.stride < 1:
            raise ModelError(f"overlap={overlap}: chunks of {self.segment} samples would not advance; demucs uses 0.25")
        up = np.arange(1, self.segment // 2 + 1)
        self.weight_N = np.concatenate([up, np.arange(self.segment - self.segment // 2, 0, -1)]) / (self.segment - self.segment // 2)

    def chunks(self, samples: int) -> list[Chunk]:
        """Every `stride` samples a chunk, in the middle of what the network reads; the song's real neighbours stand around it."""
        found = []
        for start in range(0, samples, self.stride):
            stop = min(start + self.segment, samples)
            valid = self.module.valid_length(stop - start) if hasattr(self.module, "valid_length") else stop - start
            read_start = start - (valid - (stop - start)) // 2
            found.append(Chunk(start=start, stop=stop, read_start=read_start, read_stop=read_start + valid))
        return found

    def share(self, chunk: Chunk, samples: int) -> np.ndarray:
        """(N,) float32: the chunk's triangle over the sum of all triangles there. Known beforehand, so a stretch is final once added up."""
        total_N = np.zeros(chunk.stop - chunk.start)
        reach = (self.segment - 1) // self.stride * self.stride
        for start in range(max(0, chunk.start - reach), min(samples, chunk.stop), self.stride):
            first, last = max(chunk.start, start), min(chunk.stop, start + self.segment)
            total_N[first - chunk.start : last - chunk.start] += self.weight_N[first - start : last - start]
        return (self.weight_N[: len(total_N)] / total_N).astype(np.float32)


def song_of(mixture: Any, samples: int | None) -> Song:
    """A mixture with its statistics, as demucs.api takes them: the mono sum's mean, and its unbiased deviation + 1e-8."""
    if callable(mixture):
        if samples is None or samples < 1:
            raise ModelError(f"separator: samples={samples} with a function that reads the mixture; give its length, 1 or more")
        shape: tuple[int, ...] = (AUDIO_CHANNELS, samples)
        source: Read = mixture
    else:
        shape = tuple(np.shape(mixture))

        def source(start: int, stop: int) -> Any:
            return mixture[:, start:stop]

    if len(shape) != 2 or shape[0] != AUDIO_CHANNELS or shape[1] == 0:
        raise ModelError(
            f"separator: mixture of shape {shape}, want ({AUDIO_CHANNELS}, samples) at {SAMPLE_RATE_HZ} Hz, one sample or more"
        )

    def read(start: int, stop: int) -> np.ndarray:
        found_CN = np.asarray(source(start, stop), dtype=np.float32)
        if found_CN.shape != (AUDIO_CHANNELS, stop - start):
            raise ModelError(f"separator: samples {start} to {stop} came as {found_CN.shape}; want {(AUDIO_CHANNELS, stop - start)}")
        return found_CN

    count, mean, squares = 0, 0.0, 0.0
    for start in range(0, shape[1], STATISTICS_SAMPLES):
        mono_N = read(start, min(start + STATISTICS_SAMPLES, shape[1])).mean(axis=0, dtype=np.float64)
        if not np.isfinite(mono_N).all():
            raise ModelError("separator: the mixture holds NaN or infinite samples; replace or remove them")
        # Merging of moments (Chan, Golub & LeVeque 1983).
        apart, merged = mono_N.mean() - mean, count + len(mono_N)
        squares += ((mono_N - mono_N.mean()) ** 2).sum() + apart**2 * count * len(mono_N) / merged
        mean, count = mean + apart * len(mono_N) / merged, merged
    return Song(read=read, samples=count, mean=float(mean), std=float(np.sqrt(squares / max(1, count - 1))) + 1e-8)
