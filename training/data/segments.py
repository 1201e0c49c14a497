"""Where training's segments come from: one protocol, and the split in memory. Streaming is `training.data.ray_stream`.

Shapes: C channels, T frames.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.dataset.splits import LatentTable
from infra.errors import UserError
from training.data.mixture import Mixture
from training.data.random_streams import epoch_order


class Segment(NamedTuple):
    """One pair of latents, as stored."""

    vocal_CT: NDArray[np.float16]
    accompaniment_CT: NDArray[np.float16]
    valid_frames: int


class Segments(Protocol):
    """A training split in the order of a run: sample n of epoch n // R is row epoch_order(seed, epoch)[n mod R], in every mode. Of several
    datasets each has samples and epochs of its own, and a `Mixture` says which of them a sample of the run is."""

    frames: int
    """T."""

    def row(self, sample: int) -> Segment:
        """A sample's segment. A rank asks for its own samples, in order; one thread asks at a time."""

    def close(self) -> None:
        """Gives up what is held; a call of `row` that waits in another thread ends with an error."""


class InMemory:
    """The whole split in this process."""

    def __init__(self, table: LatentTable, seed: int) -> None:
        refuse_empty(len(table))
        self.table, self.seed, self.frames = table, seed, table.vocal_RCT.shape[2]

    def row(self, sample: int) -> Segment:
        epoch, place = divmod(sample, len(self.table))
        return segment_of(self.table, int(epoch_order(self.seed, epoch, len(self.table))[place]))

    def close(self) -> None:
        """Nothing is held elsewhere."""


class Mixed:
    """Several datasets' segments, each in the order of its own samples."""

    def __init__(self, mixture: Mixture, each: Sequence[Segments]) -> None:
        self.mixture, self.each, self.frames = mixture, each, each[0].frames

    def row(self, sample: int) -> Segment:
        dataset, own = self.mixture.draw(sample)
        return self.each[dataset].row(own)

    def close(self) -> None:
        for segments in self.each:
            segments.close()


def segment_of(table: LatentTable, row: int) -> Segment:
    return Segment(table.vocal_RCT[row], table.accompaniment_RCT[row], int(table.valid_frames_R[row]))


def refuse_empty(segments: int) -> None:
    """UserError when a training split has nothing to train on."""
    if not segments:
        raise UserError("the training split has no segments: prepare a dataset with more songs, and look into its rejects/")
