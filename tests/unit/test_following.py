"""Whether a band did what it was asked, heard from made bands whose chords and beats are known."""

import math

import numpy as np
import pytest

from model.chords import NO_CHORD, QUALITIES
from model.controls import Controls, read_chords
from model.metrics.following import beat_f1, beats_followed, chords_followed, drift_ms_per_minute, shadowing, triad_of

RATE = 44_100


def tone(midi: float, seconds: float) -> np.ndarray:
    time_N = np.arange(round(seconds * RATE)) / RATE
    hz = 440 * 2 ** ((midi - 69) / 12)
    return sum(np.sin(2 * np.pi * hz * k * time_N) / k for k in range(1, 5)) * np.minimum(1, 8 * np.minimum(time_N, seconds - time_N))


def band(chords: list[tuple[int, ...]], seconds: float = 2.0) -> np.ndarray:
    """Chords on a piano that knows four partials, a click on every half second."""
    audio_N = np.concatenate([sum(tone(60 + note, seconds) for note in chord) for chord in chords]) * 0.05
    clicks = np.random.default_rng(0).standard_normal(400) * np.exp(-np.arange(400) / 80)
    for at in range(0, len(audio_N) - 400, RATE // 2):
        audio_N[at : at + 400] += 0.3 * clicks
    return np.stack([audio_N, audio_N]).astype(np.float32)


A_MINOR, F_MAJOR, C_MAJOR, G_MAJOR = (9, 12, 16), (5, 9, 12), (0, 4, 7), (7, 11, 14)
PLAYED = band([A_MINOR, F_MAJOR, C_MAJOR, G_MAJOR] * 2)


def spans(names: list[str]) -> Controls:
    return Controls(chords=read_chords("\n".join(f"{2 * index} {2 * index + 2} {name}" for index, name in enumerate(names))))


def test_the_chords_that_sound_are_followed_and_others_are_not() -> None:
    followed = chords_followed(PLAYED, spans(["Am7", "F", "C/E", "G7"] * 2).chords)
    others = chords_followed(PLAYED, spans(["C", "Am", "F", "Em"] * 2).chords)
    assert followed > 0.85
    assert others < 0.15
    assert math.isnan(chords_followed(PLAYED, spans(["A5", "N"] * 4).chords))


def test_a_triad_is_root_and_third() -> None:
    assert triad_of(9, QUALITIES.index("min7")) == 19
    assert triad_of(0, QUALITIES.index("maj(9)")) == 0
    assert triad_of(2, QUALITIES.index("sus4")) is None
    assert triad_of(NO_CHORD, NO_CHORD) is None


def test_beats_on_the_clicks_are_followed() -> None:
    assert beats_followed(PLAYED, np.arange(0, 16, 0.5)) > 0.85
    assert beats_followed(PLAYED, np.arange(0.2, 16, 0.5)) < 0.3
    assert beats_followed(np.zeros_like(PLAYED), np.arange(0, 16, 0.5)) == 0.0


def test_each_beat_counts_once() -> None:
    asked_s = np.arange(10.0)
    assert beat_f1(asked_s, asked_s) == 1.0
    assert beat_f1(np.repeat(asked_s, 2), asked_s) == pytest.approx(2 / 3)
    assert beat_f1(asked_s[::2], asked_s) == pytest.approx(2 / 3)
    assert beat_f1(asked_s + 0.1, asked_s) == 0.0


def test_drift_is_measured_in_spite_of_wrong_beats() -> None:
    asked_s = np.arange(0, 60, 0.5)
    heard_s = asked_s * (1 + 0.03 / 60)  # 30 ms later after a minute
    heard_s[::9] += 0.05
    assert drift_ms_per_minute(heard_s, asked_s) == pytest.approx(30, abs=3)
    assert math.isnan(drift_ms_per_minute(heard_s[:5], asked_s))


def test_a_band_that_doubles_the_voice_shadows_it() -> None:
    sung_N = np.concatenate([tone(57 + note, 1.0) for note in (0, 3, 7, 5, 3, 0, 2, 0)]) * 0.1
    vocal_CN = np.stack([sung_N, sung_N]).astype(np.float32)
    assert shadowing(vocal_CN, vocal_CN) > 0.9
    assert shadowing(vocal_CN, band([F_MAJOR, G_MAJOR, F_MAJOR, G_MAJOR])) < 0.5
    assert shadowing(np.zeros_like(vocal_CN), PLAYED[:, : vocal_CN.shape[1]]) == 0.0
