"""Which of several datasets each sample of a run is drawn from: a fixed share of each, in an order that the seed gives.

Samples come in blocks of BLOCK; each block holds the same number of samples of every dataset, in a random order of its own. So what sample
n of a run is, is a function of (seed, shares, n), and a run that goes on somewhere needs no history.

Shapes: N samples, D datasets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError
from training.data.random_streams import stream

BLOCK = 4_096
"""Shares are kept to within half of 1 / BLOCK."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How the samples of a run are shared by its datasets."""

    seed: int
    counts: tuple[int, ...]
    """Samples of each dataset in a block."""

    @staticmethod
    def of(seed: int, shares: Sequence[float]) -> "Mixture":
        """The largest remainders take what rounding leaves. UserError when a share is too small to be drawn at all."""
        wanted_D = BLOCK * np.array(shares) / sum(shares)
        counts_D = np.floor(wanted_D).astype(int)
        counts_D[np.argsort(counts_D - wanted_D, kind="stable")[: BLOCK - counts_D.sum()]] += 1
        if not counts_D.all():
            raise UserError(
                f"a dataset's weight is {min(shares):g} of {sum(shares):g} in all, below one sample in {BLOCK}: give it a larger weight, "
                "or leave it out"
            )
        return Mixture(seed=seed, counts=tuple(counts_D.tolist()))

    def draw(self, sample: int) -> tuple[int, int]:
        """(dataset, which of that dataset's samples) of a sample of the run."""
        block, place = divmod(sample, BLOCK)
        order, within, _ = _block(self, block)
        dataset = int(order[place])
        return dataset, block * self.counts[dataset] + int(within[place])

    def drawn_before(self, dataset: int, sample: int) -> int:
        """How many samples of a dataset come before a sample of the run."""
        block, place = divmod(sample, BLOCK)
        order, _, _ = _block(self, block)
        return block * self.counts[dataset] + int((order[:place] == dataset).sum())

    def samples_of(self, dataset: int, own_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of the run that a dataset's samples are; ascending, if those are."""
        blocks_N, within_N = np.divmod(own_N, self.counts[dataset])
        found_N = np.empty_like(own_N)
        for block in np.unique(blocks_N).tolist():
            here_N = blocks_N == block
            _, _, places = _block(self, block)
            found_N[here_N] = block * BLOCK + places[dataset][within_N[here_N]]
        return found_N


@dataclass(frozen=True, kw_only=True)
class Part:
    """One dataset's part in a mixture."""

    mixture: Mixture
    dataset: int

    def run_samples(self, own_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.mixture.samples_of(self.dataset, own_N)


@lru_cache(maxsize=4)
def _block(mixture: Mixture, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
    """(N,) dataset of each place of a block, (N,) which of the dataset's samples in the block it is, and the places of each dataset."""
    order_N = stream(mixture.seed, "mixture", block).permutation(np.repeat(np.arange(len(mixture.counts)), mixture.counts))
    places = [np.flatnonzero(order_N == dataset) for dataset in range(len(mixture.counts))]
    within_N = np.empty(BLOCK, np.int64)
    for own in places:
        within_N[own] = np.arange(len(own))
    return order_N, within_N, places
