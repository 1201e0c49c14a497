"""Segments: lengths, gain, voice, gates, and what is wrong with a song."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from model.inference.gain import active_level_db
from pipelines.corpus import compose, render
from pipelines.song import Reject, Segment, SongError
from pipelines.stages.segment import SegmentConfig, clipped_share, cut, voice

LEAST = round(SegmentConfig().min_duration_s * SAMPLE_RATE_HZ)


def stems(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A tone that stops now and then, and noise."""
    random = np.random.default_rng(seed)
    time_N = np.arange(samples) / SAMPLE_RATE_HZ
    vocal_N = 0.2 * np.sin(2 * np.pi * 330 * time_N) * (np.sin(2 * np.pi * 0.5 * time_N) > -0.5)
    return (
        np.stack([vocal_N, vocal_N]).astype(np.float32),
        0.05 * random.standard_normal((2, samples), dtype=np.float32),
    )


@settings(max_examples=8)
@given(st.integers(LEAST, 2 * SEGMENT_SAMPLES + LEAST + 1))
def test_segments_tile_the_song_and_only_a_short_rest_is_lost(samples: int) -> None:
    vocal_CN, accompaniment_CN = stems(samples)
    pieces = list(cut(vocal_CN, accompaniment_CN, SegmentConfig()))
    assert all(isinstance(piece, Segment) for piece in pieces)
    covered = sum(piece.vocal_CN.shape[1] for piece in pieces)
    assert 0 <= samples - covered < LEAST
    for index, piece in enumerate(pieces):
        assert (piece.index, piece.start_s) == (index, index * SEGMENT_SAMPLES / SAMPLE_RATE_HZ)
        assert piece.vocal_CN.shape == piece.accompaniment_CN.shape
        assert index == len(pieces) - 1 or piece.vocal_CN.shape[1] == SEGMENT_SAMPLES


def test_one_gain_brings_the_mixture_to_full_scale_and_keeps_the_balance() -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    (segment,) = cut(vocal_CN, accompaniment_CN, SegmentConfig())
    assert np.abs(segment.vocal_CN + segment.accompaniment_CN).max() == pytest.approx(1, abs=1e-6)
    gain = 10 ** (segment.gain_db / 20)
    np.testing.assert_allclose(segment.vocal_CN, vocal_CN * gain, rtol=1e-5)
    np.testing.assert_allclose(segment.accompaniment_CN, accompaniment_CN * gain, rtol=1e-5)
    assert gain != pytest.approx(1, abs=0.01)


def test_voice_is_measured_where_somebody_sings() -> None:
    frames = 100
    vocal_CN = np.zeros((2, frames * HOP_SAMPLES), np.float32)
    time_N = np.arange(25 * HOP_SAMPLES) / SAMPLE_RATE_HZ
    vocal_CN[:, : len(time_N)] = 0.5 * np.sin(2 * np.pi * 441 * time_N)
    active, level_db = voice(vocal_CN, SegmentConfig())
    assert active == pytest.approx(0.25)
    assert level_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.05)
    assert voice(np.zeros((2, 5_000), np.float32), SegmentConfig()) == (0.0, -120.0)


def test_inference_measures_a_vocal_as_preparation_does() -> None:
    vocal_CN, _ = stems(10 * SAMPLE_RATE_HZ)
    assert active_level_db(vocal_CN) == pytest.approx(voice(vocal_CN, SegmentConfig())[1], abs=0.3)


@pytest.mark.parametrize(
    ("vocal_gain", "band_gain", "reason"), [(0, 0, "silence"), (0, 1, "voice in 0.0%"), (1, 0, "no accompaniment"), (1e-4, 1e-4, "silence")]
)
def test_a_gate_names_segment_value_and_limit(vocal_gain: float, band_gain: float, reason: str) -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    (reject,) = cut(vocal_CN * np.float32(vocal_gain), accompaniment_CN * np.float32(band_gain), SegmentConfig())
    assert isinstance(reject, Reject)
    assert (reject.stage, reject.segment) == ("gate", 0)
    assert reason in reject.reason


def test_a_song_below_the_least_duration_is_refused() -> None:
    with pytest.raises(SongError, match=r"4\.99 s of audio are less than the 5 s"):
        list(cut(*stems(LEAST - 441), SegmentConfig()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_duration_s": 0},
        {"min_duration_s": 60},
        {"min_vocal_active": 1.5},
        {"voice_floor_db": 3},
        {"voice_range_db": 0},
        {"max_duration_s": 1},
        {"max_clipped": 2},
        {"min_separation_quality": -1},
        {"max_fingerprint_errors": 0.5},
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SegmentConfig(**wrong)


def test_clipped_songs_are_rejected_and_loud_ones_are_not() -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    assert clipped_share(vocal_CN + accompaniment_CN) < 1e-3
    mixture_CN = np.clip(8 * (vocal_CN + accompaniment_CN), -1, 1)
    assert clipped_share(mixture_CN) > 0.2
    (reject,) = cut(0 * vocal_CN, mixture_CN, SegmentConfig())
    assert isinstance(reject, Reject)
    assert "clipped, more than 2%" in reject.reason


def test_separated_stems_are_judged_by_the_mixture_they_came_from() -> None:
    song = render(compose(103, 12.0))
    mixture_CN = song.vocals_CN + song.accompaniment_CN
    (whole,) = cut(song.vocals_CN, song.accompaniment_CN, SegmentConfig(), mixture_CN)
    (leaking,) = cut(song.vocals_CN, song.accompaniment_CN + 0.5 * song.vocals_CN, SegmentConfig(), mixture_CN)
    (given,) = cut(song.vocals_CN, song.accompaniment_CN, SegmentConfig())
    assert isinstance(whole, Segment)
    assert isinstance(leaking, Segment)
    assert isinstance(given, Segment)
    assert given.separation_quality is None
    assert whole.separation_quality is not None
    assert leaking.separation_quality is not None
    assert 0 <= leaking.separation_quality < whole.separation_quality - 0.1 <= 1
    strict = SegmentConfig(min_separation_quality=(leaking.separation_quality + whole.separation_quality) / 2)
    (reject,) = cut(song.vocals_CN, song.accompaniment_CN + 0.5 * song.vocals_CN, strict, mixture_CN)
    assert isinstance(reject, Reject)
    assert "separation quality" in reject.reason
    assert isinstance(next(cut(song.vocals_CN, song.accompaniment_CN, strict, mixture_CN)), Segment)
