"""The tuning of a vocal: heard where there is one, and audio moved there and back without a trace."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from model.dimensions import SAMPLE_RATE_HZ
from model.inference.intonation import IN_TUNE, speed_into_tune, stretched, stretched_pieces, tuning_cents

MELODY = (57, 60, 62, 64, 60, 55, 57, 59, 60, 57)


def sung(cents: list[float], note_s: float = 0.5) -> np.ndarray:
    """(2, N) a melody of harmonic notes, each off by its cents, with a slow vibrato."""
    t = np.arange(round(note_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    notes = []
    for midi, off in zip(MELODY, cents, strict=True):
        hz = 440 * 2 ** ((midi - 69 + off / 100 + 0.15 * np.sin(2 * np.pi * 5 * t)) / 12)
        phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE_HZ
        notes.append(0.1 * sum(np.sin(k * phase) / k for k in range(1, 8)) * np.sin(np.pi * t / note_s) ** 0.3)
    return np.stack([np.concatenate(notes)] * 2).astype(np.float32)


@pytest.mark.parametrize("cents", [-45.0, -20.0, 0.0, 30.0])
def test_the_tuning_is_heard(cents: float) -> None:
    assert tuning_cents(sung([cents] * len(MELODY))) == pytest.approx(cents, abs=3)


def test_a_singer_who_strays_a_little_has_a_tuning_and_one_in_tune_is_left_alone() -> None:
    random = np.random.default_rng(1)
    strayed = sung([float(-40 + 12 * off) for off in random.standard_normal(len(MELODY))])
    assert tuning_cents(strayed) == pytest.approx(-40, abs=8)
    assert speed_into_tune(strayed) < 1
    assert speed_into_tune(sung([6.0] * len(MELODY))) == IN_TUNE


def test_what_has_no_tuning_is_left_alone() -> None:
    spread = sung([float(off) for off in np.linspace(-50, 40, len(MELODY))])
    noise_CN = np.random.default_rng(0).standard_normal((2, 4 * SAMPLE_RATE_HZ)).astype(np.float32)
    for vocal_CN in (spread, noise_CN, np.zeros_like(noise_CN), sung([-40.0] * len(MELODY))[:, :SAMPLE_RATE_HZ], noise_CN[:, :1]):
        assert tuning_cents(vocal_CN) == 0.0
        assert speed_into_tune(vocal_CN) == IN_TUNE


def test_a_vocal_brought_into_tune_is_in_tune() -> None:
    vocal_CN = sung([-40.0] * len(MELODY))
    ratio = speed_into_tune(vocal_CN)
    assert 1200 * np.log2(float(ratio)) == pytest.approx(-40, abs=3)
    tuned_CN = stretched(vocal_CN, ratio)
    assert tuned_CN.shape[1] == -(-vocal_CN.shape[1] * ratio.numerator // ratio.denominator)
    assert tuning_cents(tuned_CN) == pytest.approx(0, abs=1.5)


@pytest.mark.parametrize("hz", [60.0, 1_000.0, 15_000.0])
def test_there_and_back_is_where_it_was(hz: float) -> None:
    tone_CN = np.stack([np.sin(2 * np.pi * hz * np.arange(100_000) / SAMPLE_RATE_HZ)] * 2).astype(np.float32)
    ratio = Fraction(171, 175)
    back_CN = stretched(stretched(tone_CN, ratio), 1 / ratio)[:, :100_000]
    assert np.abs(back_CN - tone_CN)[:, 500:-500].max() < 5e-4


@pytest.mark.parametrize("samples", [1, 2_048, 40_000, 100_001])
@pytest.mark.parametrize("piece", [1_000, 2_048, 70_000])
def test_pieces_change_no_bit_and_no_length(samples: int, piece: int) -> None:
    audio_CN = np.random.default_rng(samples).standard_normal((2, samples)).astype(np.float32)
    ratio = Fraction(89, 87)
    whole_CN = stretched(audio_CN, ratio)
    pieces = (audio_CN[:, start : start + piece] for start in range(0, samples, piece))
    joined_CN = np.concatenate(list(stretched_pieces(pieces, ratio, whole_CN.shape[1])), axis=1)
    assert joined_CN.dtype == np.float32
    assert np.array_equal(joined_CN, whole_CN)


def test_what_is_ready_comes_before_the_rest_is_there() -> None:
    asked = []

    def slowly() -> Iterator[np.ndarray]:
        for index in range(20):
            asked.append(index)
            yield np.zeros((2, 10_000), np.float32)

    next(stretched_pieces(slowly(), Fraction(43, 44), 190_000))
    assert len(asked) < 8
