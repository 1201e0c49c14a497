"""Where training's segments come from: one protocol, and the split in memory. Streaming is `training.data.ray_stream`.

Shapes: C channels, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.dataset.splits import LatentTable
from infra.dataset.truth import SplitTruth
from infra.errors import UserError
from model.chords import UNTOLD
from training.data.mixture import Mixture
from training.data.random_streams import epoch_order


class Segment(NamedTuple):
    """One pair of latents, as stored."""

    vocal_CT: NDArray[np.float16]
    accompaniment_CT: NDArray[np.float16]
    valid_frames: int
    told: "Told | None" = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What is known of a segment's band, as it may be told to the network."""

    style: str | None
    chords_3T: NDArray[np.int8]
    """Root, quality and bass of `model.chords`; a root of `UNTOLD` where nothing is known."""
    phases_2T: NDArray[np.float16]
    """Of the beat and the bar; NaN where nothing is known."""


class Truths:
    """What is known of a split's rows."""

    def __init__(self, truth: SplitTruth) -> None:
        frames = truth.frames
        known_R1 = frames.chords_known_R[:, None]
        root_RT = np.where(known_R1, frames.chord_root_RT, np.int8(UNTOLD))
        self._chords_R3T = np.stack([root_RT, frames.chord_quality_RT, frames.chord_bass_RT], axis=1)
        self._phases_R2T = np.stack([frames.beat_phase_RT, frames.bar_phase_RT], axis=1)
        self._styles_R = truth.styles_R

    def of(self, row: int) -> Told:
        return Told(style=self._styles_R[row], chords_3T=self._chords_R3T[row], phases_2T=self._phases_R2T[row])


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

    def __init__(self, table: LatentTable, seed: int, truths: Truths | None = None) -> None:
        refuse_empty(len(table))
        self.table, self.seed, self.frames, self.truths = table, seed, table.vocal_RCT.shape[2], truths

    def row(self, sample: int) -> Segment:
        epoch, place = divmod(sample, len(self.table))
        return segment_of(self.table, int(epoch_order(self.seed, epoch, len(self.table))[place]), self.truths)

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


def segment_of(table: LatentTable, row: int, truths: Truths | None = None) -> Segment:
    told = None if truths is None else truths.of(row)
    return Segment(table.vocal_RCT[row], table.accompaniment_RCT[row], int(table.valid_frames_R[row]), told)


def refuse_empty(segments: int) -> None:
    """UserError when a training split has nothing to train on."""
    if not segments:
        raise UserError("the training split has no segments: prepare a dataset with more songs, and look into its rejects/")
