"""How far apart two sets of sounds lie: Fréchet audio distance and kernel audio distance (KAD) between their embeddings.

Windows of one song are alike, so songs are the independent witnesses: bias is taken off, pairs are counted and intervals are drawn by
song. Decision 15 has the reasons.

Shapes: R windows, D dimensions, S songs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

from model.errors import ModelError

DRAWS = 200
MEDIAN_WINDOWS = 2_000  # as many windows, evenly taken, give the reference's median distance
# Chung et al. 2025 give MMD² times 100, so that figures have digits before the point.
KERNEL_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 90% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedSet:
    """windows_RD, and which song (0 to S − 1) each comes from."""

    windows_RD: np.ndarray
    song_R: np.ndarray

    def __post_init__(self) -> None:
        if self.windows_RD.ndim != 2 or len(self.windows_RD) < 2 or len(self.windows_RD) != len(self.song_R):
            raise ModelError(
                f"an embedded set has windows of shape {self.windows_RD.shape} and {len(self.song_R)} songs' numbers: "
                "it needs two windows or more, and a song's number for each; give longer or more segments"
            )

    @staticmethod
    def of(pieces: list[np.ndarray], names: list[str]) -> "EmbeddedSet":
        """From the windows (R, D) of each piece and the name of its song."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        song_R = np.concatenate([np.full(len(piece), numbers[name]) for piece, name in zip(pieces, names, strict=True)])
        return EmbeddedSet(windows_RD=np.concatenate(pieces).astype(np.float64), song_R=song_R)

    @property
    def songs(self) -> int:
        return int(self.song_R.max()) + 1

    def by_song(self) -> list[np.ndarray]:
        """The windows (R, D) of each song."""
        return [self.windows_RD[self.song_R == song] for song in range(self.songs)]

    def drawn(self, songs: np.ndarray) -> "EmbeddedSet":
        """The windows of the songs named, each as often as it is named."""
        rows = np.concatenate([np.flatnonzero(self.song_R == song) for song in songs])
        return EmbeddedSet(windows_RD=self.windows_RD[rows], song_R=np.unique(self.song_R[rows], return_inverse=True)[1])


class FrechetDistance:
    """Distance of Gaussians with the sets' moments (Dowson & Landau 1982; Heusel et al. 2017; for audio Kilgour et al. 2019):

    |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½
    """

    def __init__(self, reference_RD: np.ndarray) -> None:
        self._mean_D, covariance_DD = moments(reference_RD)
        self._trace = float(np.trace(covariance_DD))
        values_D, vectors_DD = np.linalg.eigh(covariance_DD)
        self._root_DD = (vectors_DD * np.sqrt(np.maximum(values_D, 0))) @ vectors_DD.T

    def __call__(self, windows_RD: np.ndarray) -> float:
        """The distance of another set, 0 or more.

        The last trace is the sum of the singular values of (centred windows) Σ₁^½: nothing is inverted, and no root is taken of a matrix
        that rounding made indefinite, so fewer windows than dimensions, or silence, need no regularisation, and none is added.
        """
        mean_D = windows_RD.mean(axis=0)
        centred_RD = (windows_RD - mean_D) / np.sqrt(len(windows_RD) - 1)
        product_RD = centred_RD @ self._root_DD
        gram = product_RD @ product_RD.T if len(product_RD) < product_RD.shape[1] else product_RD.T @ product_RD
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum()
        distance = np.square(mean_D - self._mean_D).sum() + self._trace + np.square(centred_RD).sum() - 2 * overlap
        return max(float(distance), 0.0)


def moments(windows_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D)."""
    return windows_RD.mean(axis=0), np.atleast_2d(np.cov(windows_RD, rowvar=False))


def extrapolated(distance: Callable[[np.ndarray], float], sample: EmbeddedSet) -> float | None:
    """The Fréchet distance for ever more songs: its bias goes with 1/S (Chong & Forsyth 2020, for audio Gui et al. 2024), so the line
    through all songs and all but one (the jackknife, Quenouille 1956) gives its value at 1/S = 0. None for a single song; may pass below 0.
    """
    songs = np.arange(sample.songs)
    if len(songs) < 2:
        return None
    without = [distance(sample.drawn(np.delete(songs, song)).windows_RD) for song in songs]
    return len(songs) * distance(sample.windows_RD) - (len(songs) - 1) * float(np.mean(without))


class KernelDistance:
    """KAD (Chung et al. 2025): MMD² with a Gaussian kernel, unbiased (Gretton et al. 2012, eq. 3), times 100.

    The bandwidth is the reference's median distance between windows, as there. Unlike there, pairs within a song are left out where a set
    has several songs: only pairs of independent windows estimate without bias. With a window a song the two are the same number.
    """

    def __init__(self, reference: EmbeddedSet) -> None:
        self._reference = reference
        some_RD = reference.windows_RD[:: -(-len(reference.windows_RD) // MEDIAN_WINDOWS)]
        self.bandwidth = float(np.median(scipy.spatial.distance.pdist(some_RD))) or 1.0
        self._within = _mean_of_pairs(*self._blocks(reference), np.ones(reference.songs))

    def __call__(self, sample: EmbeddedSet) -> float:
        """The distance of another set; about 0 for one of the same kind, below it by chance."""
        return self.weighted(sample)(np.ones(sample.songs))

    def weighted(self, sample: EmbeddedSet) -> Callable[[np.ndarray], float]:
        """The distance as a function of how often each song counts: a draw of songs costs S² additions."""
        blocks_SS, counts_SS = self._blocks(sample)
        size_S = np.bincount(sample.song_R).astype(float)
        between_S = np.array([self._kernel(part_RD, self._reference.windows_RD).mean(axis=1).sum() for part_RD in sample.by_song()])

        def distance(weight_S: np.ndarray) -> float:
            between = float(weight_S @ between_S / (weight_S @ size_S))
            return KERNEL_SCALE * (self._within + _mean_of_pairs(blocks_SS, counts_SS, weight_S) - 2 * between)

        return distance

    def _kernel(self, one_RD: np.ndarray, other_RD: np.ndarray) -> np.ndarray:
        return np.exp(-scipy.spatial.distance.cdist(one_RD, other_RD, "sqeuclidean") / (2 * self.bandwidth**2))

    def _blocks(self, sample: EmbeddedSet) -> tuple[np.ndarray, np.ndarray]:
        """(S, S) sums of the kernel over pairs of two different windows of two songs, and how many pairs these are."""
        blocks_SS = np.empty((sample.songs, sample.songs))
        for song, part_RD in enumerate(sample.by_song()):  # a song's rows at a time: all pairs would be 5 GB for a thousand songs
            blocks_SS[song] = np.bincount(sample.song_R, weights=self._kernel(part_RD, sample.windows_RD).sum(axis=0))
        size_S = np.bincount(sample.song_R).astype(float)
        return blocks_SS - np.diag(size_S), np.outer(size_S, size_S) - np.diag(size_S)


def _mean_of_pairs(blocks_SS: np.ndarray, counts_SS: np.ndarray, weight_S: np.ndarray) -> float:
    """Mean over pairs of windows of different songs; of a single song, over its pairs of different windows."""
    weight_SS = np.outer(weight_S, weight_S)
    if np.count_nonzero(weight_S) > 1:
        weight_SS = weight_SS - np.diag(np.diag(weight_SS))
    return float((weight_SS * blocks_SS).sum() / (weight_SS * counts_SS).sum())


def frechet_with_interval(distance: Callable[[np.ndarray], float], sample: EmbeddedSet) -> Interval:
    """The distance of all windows, with an interval from drawing songs with replacement."""
    drawn = [distance(sample.drawn(songs).windows_RD) for songs in draws(sample.songs)]
    interval = around(distance(sample.windows_RD), drawn)
    return Interval(value=interval.value, low=max(interval.low, 0.0), high=interval.high)


def kernel_with_interval(distance: KernelDistance, sample: EmbeddedSet) -> Interval:
    """The kernel distance with an interval from drawing songs with replacement."""
    weighted = distance.weighted(sample)
    return around(weighted(np.ones(sample.songs)), [weighted(np.bincount(songs, minlength=sample.songs)) for songs in draws(sample.songs)])


def draws(songs: int) -> np.ndarray:
    """(DRAWS, songs): songs drawn with replacement, always the same."""
    return np.random.default_rng(0).integers(songs, size=(DRAWS, songs))


def around(value: float, drawn: list[float]) -> Interval:
    """A draw repeats songs, so it knows fewer and lies further away: its spread is used, its offset is not."""
    low, high = np.quantile(np.array(drawn) - np.mean(drawn), (0.05, 0.95))
    return Interval(value=value, low=float(value + low), high=float(value + high))
