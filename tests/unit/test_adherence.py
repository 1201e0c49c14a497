"""Accompaniment Prompt Adherence: its formula, its ends, and how vocal and band are mixed for it."""

import numpy as np
import pytest

from model.listen import loudness_db
from model.metrics.adherence import MIX_LUFS, Adherence, mixed, paired_and_swapped
from model.metrics.set_distances import EmbeddedSet, FrechetDistance
from tests.bands import band


def windows(offset: float, seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 5)) + offset


def test_it_is_the_published_formula() -> None:
    paired, swapped, candidates = windows(0.0, 0), windows(2.0, 1), windows(0.7, 2)
    to_swapped, to_paired = FrechetDistance(swapped)(candidates), FrechetDistance(paired)(candidates)
    expected = 0.5 + (to_swapped - to_paired) / (2 * FrechetDistance(paired)(swapped))
    assert 0.5 < expected < 1
    assert Adherence(paired, swapped)(candidates) == pytest.approx(expected)


def test_true_pairs_reach_one_swapped_ones_zero_and_what_lies_between_a_half() -> None:
    adherence = Adherence(windows(0.0, 0), windows(2.0, 1))
    assert adherence(windows(0.0, 3)) > 0.97
    assert adherence(windows(2.0, 4)) < 0.03
    assert adherence(windows(1.0, 5)) == pytest.approx(0.5, abs=0.03)
    assert (adherence(windows(-9.0, 6)), adherence(windows(9.0, 7))) == (1.0, 0.0)
    same = windows(0.0, 0)
    assert Adherence(same, same)(windows(1.0, 5)) == 0.5


def test_its_interval_holds_it_and_stays_within_its_range() -> None:
    adherence = Adherence(windows(0.0, 0), windows(2.0, 1))
    songs = np.repeat(np.arange(8), 10)
    found = adherence.with_interval(EmbeddedSet(windows_RD=windows(1.0, 8, 80), song_R=songs))
    assert found.low < found.value < found.high
    top = adherence.with_interval(EmbeddedSet(windows_RD=windows(-1.0, 8, 80), song_R=songs))
    assert (top.value, top.high) == (1.0, 1.0)


def test_a_mix_has_both_alike_loud_and_one_level() -> None:
    vocal, other = band(4), 0.05 * band(5, root_hz=330.0, bpm=90)
    mix = mixed(vocal, other)
    assert mix.shape == vocal.shape
    assert loudness_db(mix) == pytest.approx(MIX_LUFS, abs=0.1)
    assert mix == pytest.approx(mixed(0.2 * vocal, 3 * other), abs=1e-4)
    alone = mixed(vocal, np.zeros_like(vocal))
    assert alone == pytest.approx(vocal * 10 ** ((MIX_LUFS - loudness_db(vocal)) / 20), abs=1e-5)
    assert not mixed(np.zeros_like(vocal), np.zeros_like(vocal)).any()


def test_each_vocal_is_mixed_with_its_own_band_and_with_another_songs() -> None:
    songs = ["a", "b", "b", "c", "a"]
    vocals = [band(1, root_hz=200.0 + 10 * index) for index in range(5)]
    bands = [band(1, root_hz=400.0 + 10 * index, bpm=90) for index in range(5)]
    found = list(paired_and_swapped(zip(songs, vocals, bands, strict=True)))
    assert [song for true, song, _ in found if true] == songs
    assert all(np.array_equal(mix, mixed(vocals[at], bands[at])) for at, mix in enumerate(mix for true, _, mix in found if true))
    dealt = [(0, 1), (1, 3), (2, 3), (3, 4), (4, 1)]  # the last one's is the first of another song
    expected = [mixed(vocals[voice], bands[other]) for voice, other in dealt]
    swapped = [(song, mix) for true, song, mix in found if not true]
    assert [song for song, _ in swapped] == songs
    assert all(np.array_equal(mix, wanted) for (_, mix), wanted in zip(swapped, expected, strict=True))


def test_of_one_song_nothing_can_be_swapped() -> None:
    assert [true for true, _, _ in paired_and_swapped([("a", band(1), band(1)), ("a", band(1), band(1))])] == [True, True]
