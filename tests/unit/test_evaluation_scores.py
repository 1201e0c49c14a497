"""Scores: what each measure answers for sounds whose answer is known, and what the intervals mean."""

from dataclasses import fields

import numpy as np
import pytest

from model.dimensions import SAMPLE_RATE_HZ
from model.metrics.fit import Listener
from training.evaluation.config import EvaluateConfig
from training.evaluation.measures import Measures, advantage, bands_db, interval_over_songs, measure, summarise
from training.evaluation.rows import HeldOut

SECONDS = 6


def tone(hz: float, gain: float = 0.2) -> np.ndarray:
    time_s = np.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    pulse = 0.6 + 0.4 * np.sign(np.sin(2 * np.pi * 2 * time_s))
    return (gain * pulse * np.stack([np.sin(2 * np.pi * hz * time_s)] * 2)).astype(np.float32)


def same(value: float) -> Measures:
    return Measures(**{field.name: value for field in fields(Measures)})


def test_silence_fits_nothing_and_the_real_one_is_no_distance_from_itself() -> None:
    vocal, real = tone(440), tone(220)
    silence, itself = measure(vocal, real, np.zeros_like(real)), measure(vocal, real, real)
    assert (silence.harmony, silence.rhythm, silence.overall) == (0.0, 0.0, 0.0)
    assert silence.loudness_lufs < -100
    assert itself.spectrum_db == 0.0
    assert itself.centroid_hz == pytest.approx(220, rel=0.3)
    assert measure(vocal, real, vocal).leakage > itself.leakage


def test_a_vocal_heard_before_gives_the_same_figures() -> None:
    vocal, real = tone(440), tone(220)
    assert measure(vocal, real, real, Listener(vocal)) == measure(vocal, real, real)
    short = real[:, : 5 * SAMPLE_RATE_HZ]
    assert measure(vocal, real, short, Listener(vocal)) == measure(vocal, real, short), "a shorter one is scored as far as it goes"


def test_the_spectrum_ignores_level_and_hears_pitch() -> None:
    quiet, loud, other = bands_db(tone(220, 0.1)), bands_db(tone(220, 0.4)), bands_db(tone(2_000))
    assert np.abs(quiet - loud).max() < 0.5
    assert np.abs(other - loud).mean() > 5


def test_intervals_are_over_songs_not_segments() -> None:
    values = [same(0.0)] * 3 + [same(1.0)]
    row = summarise("x", values, ["a", "a", "a", "b"])
    assert row.mean.overall == row.overall == 0.25
    # Drawing whole songs, a draw is all of a (0), all of b (1), or both.
    assert (row.low.overall, row.high.overall) == (0.0, 1.0)
    certain = summarise("x", [same(0.5)] * 4, ["a", "b", "c", "d"])
    assert (certain.low, certain.high) == (same(0.5), same(0.5))


def test_the_advantage_is_paired_and_its_interval_over_songs() -> None:
    one, other = [same(value) for value in (0.9, 0.5, 0.4, 0.6)], [same(value) for value in (0.8, 0.4, 0.3, 0.5)]
    # Every song gains the same, however far the songs are apart.
    gain = advantage(one, other, ["a", "b", "c", "d"])
    assert (gain.low, gain.value, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    none = advantage(one, list(reversed(one)), ["a", "b", "c", "d"])
    assert none.value == pytest.approx(0.0)
    assert none.low < 0 < none.high


def test_what_is_not_known_of_a_segment_leaves_the_others_mean() -> None:
    found = interval_over_songs([1.0, float("nan"), 0.0, 2.0], ["a", "b", "c", "c"])
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert interval_over_songs([float("nan")] * 2, ["a", "b"]) is None


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"samples": 0}, "number of"),
        ({"seconds": 1.0}, "4 or more"),
        ({"audio_files": -1}, "0 or more"),
        ({"reference": -1}, "no distances"),
        ({"embedding": (" ",)}, "smoke"),
        ({"embedding": ()}, "smoke"),
        ({"embedding": "smoke"}, "a tuple"),
        ({"embedding": ("smoke", "smoke")}, "each once"),
        ({"retrieval": -1}, "0 for no row"),
    ],
)
def test_a_wrong_config_names_its_remedy(changes: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        EvaluateConfig(checkpoint="c", data="d", out="o", **changes)


def test_every_segment_is_played_from_a_seed_of_its_own() -> None:
    silence_CN = np.zeros((2, 1), np.float32)
    pairs = [HeldOut(song_id=song, segment=segment, vocal_CN=silence_CN, real_CN=silence_CN) for song in "ab" for segment in range(3)]
    seeds = {pair.seed(run) for pair in pairs for run in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**53 for seed in seeds)
