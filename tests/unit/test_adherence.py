"""Accompaniment Prompt Adherence: its formula, its ends, and how vocal and band are mixed for it."""

import numpy as np
import pytest

from model.errors import ModelError
from model.listen import loudness_db
from model.metrics.adherence import MIX_LUFS, Adherence, mismatched, mixed
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


def test_each_vocal_is_dealt_another_songs_band() -> None:
    songs = ["a", "a", "b", "c"]
    dealt = mismatched(songs)
    assert all(songs[other] != song for song, other in zip(songs, dealt, strict=True))
    with pytest.raises(ModelError, match="two songs"):
        mismatched(["a", "a"])
