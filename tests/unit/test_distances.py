"""Distances between sets: closed forms, an independent square root, and what few songs do to an estimate."""

import numpy as np
import pytest
import scipy

from model.errors import ModelError
from model.metrics.set_distances import (
    KERNEL_SCALE,
    EmbeddedSet,
    FrechetDistance,
    KernelDistance,
    extrapolated,
    frechet_with_interval,
    kernel_with_interval,
    moments,
)


def drawn(
    random: np.random.Generator, songs: int, windows: int, dimension: int, *, song_spread: float = 0.0, offset: float = 0.0
) -> EmbeddedSet:
    centre_SRD = song_spread * random.standard_normal((songs, 1, dimension)) + offset
    windows_SRD = centre_SRD + np.sqrt(1 - song_spread**2) * random.standard_normal((songs, windows, dimension))
    return EmbeddedSet(windows_RD=windows_SRD.reshape(-1, dimension), song_R=np.repeat(np.arange(songs), windows))


def with_moments(random: np.random.Generator, mean_D: np.ndarray, covariance_DD: np.ndarray, windows: int) -> np.ndarray:
    """Windows whose sample mean and covariance are exactly these."""
    raw_RD = random.standard_normal((windows, len(mean_D)))
    raw_RD -= raw_RD.mean(axis=0)
    white_RD = raw_RD @ np.linalg.inv(np.linalg.cholesky(np.cov(raw_RD, rowvar=False))).T
    return white_RD @ np.linalg.cholesky(covariance_DD).T + mean_D


def test_frechet_of_gaussians_with_diagonal_covariances_is_the_closed_form() -> None:
    random = np.random.default_rng(0)
    one = with_moments(random, np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]), 50)
    other = with_moments(random, np.array([1.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]), 70)
    # |μ₁ − μ₂|² + Σ (σ₁ − σ₂)²
    assert FrechetDistance(one)(other) == pytest.approx(1 + 4 + 1 + 0 + 4, abs=1e-9)
    assert FrechetDistance(other)(one) == pytest.approx(10, abs=1e-9)


@pytest.mark.parametrize(("windows", "dimension"), [(60, 5), (200, 40), (12, 30)])
def test_frechet_equals_the_form_with_a_matrix_square_root(windows: int, dimension: int) -> None:
    random = np.random.default_rng(windows)
    mixing = random.standard_normal((dimension, dimension))
    one, other = random.standard_normal((90, dimension)) @ mixing, random.standard_normal((windows, dimension)) + 0.3
    (mean, covariance), (other_mean, other_covariance) = moments(one), moments(other)
    root = scipy.linalg.sqrtm(covariance @ other_covariance)
    expected = np.square(mean - other_mean).sum() + np.trace(covariance + other_covariance) - 2 * np.trace(root).real
    assert FrechetDistance(one)(other) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_a_set_from_itself_is_nothing_and_of_one_sound_repeated_finite() -> None:
    random = np.random.default_rng(1)
    few = random.standard_normal((10, 64))  # fewer windows than dimensions: the covariance is singular
    assert FrechetDistance(few)(few) == pytest.approx(0, abs=1e-5)
    mean, covariance = moments(few)
    still = np.ones((10, 64))
    assert FrechetDistance(few)(still) == pytest.approx(np.square(mean - 1).sum() + np.trace(covariance), rel=1e-9)
    assert FrechetDistance(still)(few) == pytest.approx(FrechetDistance(few)(still), rel=1e-9)


def test_few_songs_bias_frechet_and_extrapolation_takes_most_of_it_off() -> None:
    random = np.random.default_rng(2)
    reference = drawn(random, 400, 10, 16, song_spread=0.7)
    plain, corrected = [], []
    for _ in range(12):
        sample = drawn(random, 12, 10, 16, song_spread=0.7)
        distance = FrechetDistance(reference.windows_RD)
        plain.append(distance(sample.windows_RD))
        corrected.append(extrapolated(distance, sample))
    assert np.mean(plain) > 1.0
    assert abs(np.mean(corrected)) < 0.35 * np.mean(plain)
    assert extrapolated(FrechetDistance(reference.windows_RD), drawn(random, 1, 10, 16)) is None


def test_the_kernel_distance_of_gaussians_is_the_closed_form() -> None:
    random = np.random.default_rng(3)
    dimension, offset = 4, 0.8
    distance = KernelDistance(drawn(random, 150, 10, dimension))
    b = distance.bandwidth**2
    assert b == pytest.approx(2 * dimension, rel=0.2)  # the median squared distance of unit Gaussians, nearly 2 D
    # E exp(−|x − y|² / 2b) for x − y ~ N(δ, 2 I)
    same = (b / (b + 2)) ** (dimension / 2)
    apart = same * np.exp(-dimension * offset**2 / (2 * (b + 2)))
    found = [distance(drawn(random, 150, 10, dimension, offset=offset)) for _ in range(3)]
    assert np.mean(found) == pytest.approx(KERNEL_SCALE * 2 * (same - apart), rel=0.1)


def test_the_kernel_distance_is_unbiased_for_few_songs_with_windows_alike() -> None:
    random = np.random.default_rng(4)
    distance = KernelDistance(drawn(random, 300, 8, 8, song_spread=0.8))
    found = np.array([distance(drawn(random, 4, 8, 8, song_spread=0.8)) for _ in range(150)])
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 4 * error
    # With the pairs within a song, four songs would stand this far from their own kind.
    as_one = np.array(
        [distance(EmbeddedSet(windows_RD=drawn(random, 4, 8, 8, song_spread=0.8).windows_RD, song_R=np.zeros(32, int))) for _ in range(40)]
    )
    assert as_one.mean() > 10 * error


def test_draws_of_songs_equal_the_songs_drawn() -> None:
    random = np.random.default_rng(5)
    sample, distance = drawn(random, 5, 6, 3), KernelDistance(drawn(random, 20, 6, 3))
    weighted = distance.weighted(sample)
    assert weighted(np.ones(5)) == pytest.approx(distance(sample))
    assert weighted(np.array([0, 1, 1, 0, 1])) == pytest.approx(distance(sample.drawn(np.array([1, 2, 4]))))
    assert weighted(np.array([0, 0, 3, 0, 0])) == pytest.approx(distance(sample.drawn(np.array([2]))))


def test_intervals_hold_the_estimate_and_shrink_with_songs() -> None:
    random = np.random.default_rng(6)
    reference = drawn(random, 60, 8, 6, song_spread=0.6)
    frechet, kernel = FrechetDistance(reference.windows_RD), KernelDistance(reference)
    widths = []
    for songs in (4, 40):
        sample = drawn(random, songs, 8, 6, song_spread=0.6, offset=0.5)
        intervals = frechet_with_interval(frechet, sample), kernel_with_interval(kernel, sample)
        assert all(interval.low < interval.value < interval.high for interval in intervals)
        assert intervals[0].value == frechet(sample.windows_RD)
        assert intervals == (frechet_with_interval(frechet, sample), kernel_with_interval(kernel, sample))
        widths.append([interval.high - interval.low for interval in intervals])
    assert np.all(np.array(widths[1]) < widths[0])
    alone = frechet_with_interval(frechet, drawn(random, 1, 8, 6))
    assert alone.low == alone.value == alone.high


def test_a_set_is_built_from_pieces_and_needs_two_windows() -> None:
    pieces = [np.full((3, 2), 1.0), np.full((1, 2), 2.0), np.full((2, 2), 3.0)]
    made = EmbeddedSet.of(pieces, ["b", "a", "b"])
    assert made.song_R.tolist() == [0, 0, 0, 1, 0, 0]
    assert made.songs == 2
    assert [part.mean() for part in made.by_song()] == [1.8, 2.0]
    with pytest.raises(ModelError, match="longer or more segments"):
        EmbeddedSet.of([np.zeros((1, 2))], ["a"])
