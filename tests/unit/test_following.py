"""Whether a band did what it was asked, heard from made bands whose chords and beats are known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from model.chords import NO_CHORD, QUALITIES
from model.controls import ChordSpan, Controls, read_chords
from model.listen import chord_agreement, chroma, recognise_chords, track_beats
from model.metrics.following import beat_f1, drift_ms_per_minute, shadowed, sung_classes, triad_of, triads_of

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


def followed(asked: Sequence[ChordSpan]) -> float:
    return chord_agreement(triads_of(asked), recognise_chords(PLAYED, track_beats(PLAYED)))


def spans(names: list[str]) -> Controls:
    return Controls(chords=read_chords("\n".join(f"{2 * index} {2 * index + 2} {name}" for index, name in enumerate(names))))


def test_the_chords_that_sound_are_followed_and_others_are_not() -> None:
    assert followed(spans(["Am7", "F", "C/E", "G7"] * 2).chords) > 0.85
    assert followed(spans(["C", "Am", "F", "Em"] * 2).chords) < 0.15
    assert triads_of(spans(["A5", "N"] * 4).chords) == []


def test_a_triad_is_root_and_third() -> None:
    assert triad_of(9, QUALITIES.index("min7")) == 19
    assert triad_of(0, QUALITIES.index("maj(9)")) == 0
    assert triad_of(2, QUALITIES.index("sus4")) is None
    assert triad_of(NO_CHORD, NO_CHORD) is None


def test_beats_on_the_clicks_are_followed() -> None:
    assert beat_f1(track_beats(PLAYED), np.arange(0, 16, 0.5)) > 0.85
    assert beat_f1(track_beats(PLAYED), np.arange(0.2, 16, 0.5)) < 0.3
    assert beat_f1(track_beats(np.zeros_like(PLAYED)), np.arange(0, 16, 0.5)) == 0.0


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


@pytest.mark.parametrize("bpm", [90, 101, 104, 110, 120, 150])
def test_another_tempo_runs_away_as_fast_as_it_does(bpm: int) -> None:
    """A beat that is asked each 600 ms; of 150 every third second one is that beat's half."""
    drift = drift_ms_per_minute(np.arange(0, 24, 60 / bpm), np.arange(0, 24, 0.6))
    beats_behind = {90: 1 / 9, 101: -1 / 101, 104: -4 / 104, 110: -1 / 11, 120: -1 / 6, 150: 1 / 6}[bpm] * bpm
    assert drift == pytest.approx(abs(beats_behind) * 600, rel=0.02)


@pytest.mark.parametrize("step", [0.3, 1.2])
def test_half_and_double_time_and_beats_that_are_not_heard_are_no_drift(step: float) -> None:
    asked_s, heard_s = np.arange(0, 24, 0.6), np.arange(0, 24, step)
    assert drift_ms_per_minute(heard_s, asked_s) == pytest.approx(0, abs=1e-6)
    assert drift_ms_per_minute(np.delete(heard_s, [3, 4, 9]), asked_s) == pytest.approx(0, abs=1e-6)


def shadowing(vocal_CN: np.ndarray, band_CN: np.ndarray) -> float:
    return shadowed(*sung_classes(vocal_CN), chroma(band_CN))


def test_a_band_that_doubles_the_voice_shadows_it() -> None:
    sung_N = np.concatenate([tone(57 + note, 1.0) for note in (0, 3, 7, 5, 3, 0, 2, 0)]) * 0.1
    vocal_CN = np.stack([sung_N, sung_N]).astype(np.float32)
    assert shadowing(vocal_CN, vocal_CN) > 0.9
    assert shadowing(vocal_CN, band([F_MAJOR, G_MAJOR, F_MAJOR, G_MAJOR])) < 0.5
    assert shadowing(np.zeros_like(vocal_CN), PLAYED[:, : vocal_CN.shape[1]]) == 0.0
