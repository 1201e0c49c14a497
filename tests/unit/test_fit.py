"""True pairs fit better than any way to break or to game them."""

import functools
import tracemalloc
import warnings
from dataclasses import astuple

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from listen_songs import RATE_HZ, Song, compose

from model.dimensions import SEGMENT_SAMPLES
from model.listen import CHROMA_RATE_HZ, F0_RATE_HZ
from model.metrics.fit import NO_FIT, Fit, Listener, fit
from model.metrics.fit_readings import SungNotes, alignment_reading, odds
from model.metrics.leakage import leakage

SEEDS = range(3)


@functools.cache
def song_of(seed: int) -> Song:
    return compose(seed, bars=6)


@functools.cache
def true_fit(seed: int) -> Fit:
    return fit(song_of(seed).vocal_N, song_of(seed).band_N)


def at_level_of(audio_N: np.ndarray, reference_N: np.ndarray, gain_db: float) -> np.ndarray:
    return audio_N * (10 ** (gain_db / 20) * np.std(reference_N) / np.std(audio_N))


def with_lost_phase(audio_N: np.ndarray, rounds: int = 5) -> np.ndarray:
    """What a magnitude codec returns: the same spectrogram under another phase (Griffin and Lim 1984)."""
    spectrum_FT = scipy.signal.stft(audio_N, RATE_HZ, nperseg=4_096, noverlap=3_072)[2]
    phase_FT = np.exp(2j * np.pi * np.random.default_rng(0).random(spectrum_FT.shape))
    for _ in range(rounds):
        guess_N = scipy.signal.istft(np.abs(spectrum_FT) * phase_FT, RATE_HZ, nperseg=4_096, noverlap=3_072)[1]
        again_FT = scipy.signal.stft(guess_N, RATE_HZ, nperseg=4_096, noverlap=3_072)[2][:, : spectrum_FT.shape[1]]
        phase_FT = np.exp(1j * np.angle(again_FT))
    return guess_N[: len(audio_N)].astype(np.float32)


def clicks(song: Song) -> np.ndarray:
    audio_N = np.zeros_like(song.band_N)
    for beat_s in song.beats_s:
        start = round(beat_s * RATE_HZ)
        audio_N[start : start + 400] = np.random.default_rng(0).normal(size=400) * 0.3
    return audio_N


def drone(song: Song) -> np.ndarray:
    tonic = song.chords[0][2] // 2
    t = np.arange(len(song.band_N)) / RATE_HZ
    return (0.2 * sum(np.sin(2 * np.pi * 440 * 2 ** ((36 + tonic + step - 69) / 12) * t) for step in (0, 12, 24))).astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_true_pair_fits_and_does_not_leak(seed: int) -> None:
    assert true_fit(seed).harmony > 0.6
    assert true_fit(seed).rhythm > 0.6
    assert true_fit(seed).overall > 0.6
    assert true_fit(seed).leakage < 0.15


@pytest.mark.parametrize("seed", SEEDS)
def test_another_song_does_not_fit(seed: int) -> None:
    other = fit(song_of(seed).vocal_N, song_of((seed + 1) % len(SEEDS)).band_N)
    assert other.overall < true_fit(seed).overall - 0.2


@pytest.mark.parametrize("seed", [0, 3])
def test_transposition_breaks_the_harmony_and_leaves_the_rhythm(seed: int) -> None:
    tonic = 2 * seed
    home, away = (compose(seed, bpm=110, tonic=to % 12, bars=4) for to in (tonic, tonic + 6))
    true, wrong = fit(home.vocal_N, home.band_N), fit(home.vocal_N, away.band_N)
    assert wrong.harmony < true.harmony - 0.3
    assert wrong.rhythm > true.rhythm - 0.15
    assert wrong.overall < true.overall - 0.25


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shift_by_a_quarter_beat_breaks_the_rhythm_and_leaves_the_harmony(seed: int) -> None:
    song = song_of(seed)
    wrong = fit(song.vocal_N, np.roll(song.band_N, round(np.diff(song.beats_s).mean() / 4 * RATE_HZ)))
    assert wrong.rhythm < true_fit(seed).rhythm - 0.4
    assert wrong.harmony > true_fit(seed).harmony - 0.2
    assert wrong.overall < true_fit(seed).overall - 0.25


@pytest.mark.parametrize("beats", [-1, -0.5, 0.5, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_half_a_beat_or_a_beat_off_fits_less_overall_and_little_less_in_harmony(seed: int, beats: float) -> None:
    song = song_of(seed)
    wrong = fit(song.vocal_N, np.roll(song.band_N, round(beats * np.diff(song.beats_s).mean() * RATE_HZ)))
    assert wrong.overall < true_fit(seed).overall - 0.2
    assert wrong.harmony > true_fit(seed).harmony - 0.2


def two_chords(bar_s: float, bars: int) -> tuple[SungNotes, np.ndarray]:
    """Half of each bar sung on a tone of its own chord: C major and F sharp major in turn, which share none."""
    frame_s = np.arange(round(bars * bar_s * F0_RATE_HZ)) / F0_RATE_HZ
    sung_s = frame_s[(frame_s % bar_s < 0.25 * bar_s) | (frame_s % bar_s > 0.75 * bar_s)]
    tones_PT = np.zeros((12, round(bars * bar_s * CHROMA_RATE_HZ) + 1), bool)
    odd_T = (np.arange(tones_PT.shape[1]) / CHROMA_RATE_HZ // bar_s % 2).astype(int)
    for step in (0, 4, 7):
        tones_PT[(6 * odd_T + step) % 12, np.arange(len(odd_T))] = True
    return SungNotes(times_s=sung_s, class_T=(6 * (sung_s // bar_s % 2) + 4).astype(int) % 12), tones_PT


def test_alignment_is_heard_on_both_sides_and_a_chord_that_never_changes_says_nothing() -> None:
    sung, tones_PT = two_chords(bar_s=2.0, bars=10)
    assert alignment_reading(sung, tones_PT) > 0.1
    for moved in (-6, -4, -3, 3, 4, 6):  # chroma frames: 0.3 to 0.6 s
        assert alignment_reading(sung, np.roll(tones_PT, moved, axis=1)) < -0.05
    still_PT = np.repeat(tones_PT[:, :1], tones_PT.shape[1], axis=1)
    assert alignment_reading(sung, still_PT) == pytest.approx(0.0, abs=1e-12)
    assert odds(0.0) == 0.5
    unsung = SungNotes(times_s=np.zeros(0), class_T=np.zeros(0, int))
    assert alignment_reading(unsung, tones_PT) == 0.0


@pytest.mark.parametrize("seed", [0, 2])
def test_what_is_no_band_does_not_fit(seed: int) -> None:
    song, rng = song_of(seed), np.random.default_rng(seed)
    assert fit(song.vocal_N, np.zeros_like(song.band_N)) == NO_FIT
    for audio_N in (rng.normal(size=len(song.band_N)) * 0.1, drone(song), clicks(song)):
        assert fit(song.vocal_N, audio_N).overall < true_fit(seed).overall - 0.2


@pytest.mark.parametrize("seed", [0, 2])
def test_copies_are_leakage_and_do_not_fit(seed: int) -> None:
    vocal_N = song_of(seed).vocal_N
    copies = {
        "copy": vocal_N,
        "inverted and soft": -0.1 * vocal_N,
        "40 ms late": np.roll(vocal_N, 1_764),
        "filtered": scipy.signal.lfilter([1, 0.8], [1], vocal_N).astype(np.float32),
    }
    for name, copy_N in copies.items():
        copied = fit(vocal_N, copy_N)
        assert copied.leakage > 0.9, name
        assert copied.overall < 0.1, name
    redrawn = fit(vocal_N, with_lost_phase(vocal_N))
    assert redrawn.leakage > 0.5
    assert redrawn.overall < true_fit(seed).overall - 0.3


@pytest.mark.parametrize("seed", [2])
def test_leakage_rises_with_the_level_of_the_leak(seed: int) -> None:
    song = song_of(seed)
    for leak_N in (song.vocal_N, with_lost_phase(song.vocal_N)):
        leaks = [leakage(song.vocal_N, song.band_N + at_level_of(leak_N, song.band_N, gain_db)) for gain_db in (-30, -12, -6, 0)]
        assert leaks == sorted(leaks)
        assert leaks[0] < 0.25
        assert leaks[2] > 0.3
        assert leaks[3] > 0.4


def test_the_vocal_leaking_does_not_pay() -> None:
    song = song_of(1)
    leaking = fit(song.vocal_N, song.band_N + at_level_of(song.vocal_N, song.band_N, -6))
    assert leaking.overall < true_fit(1).overall


def test_level_channels_and_a_longer_accompaniment_change_nothing() -> None:
    song = song_of(0)
    stereo_CN = np.stack([song.band_N, song.band_N])
    longer_CN = np.concatenate([stereo_CN, stereo_CN[:, :RATE_HZ]], axis=1)
    assert astuple(fit(np.stack([song.vocal_N] * 2), longer_CN)) == pytest.approx(astuple(true_fit(0)), abs=1e-3)
    assert astuple(fit(0.01 * song.vocal_N, 0.5 * song.band_N)) == pytest.approx(astuple(true_fit(0)), abs=0.02)


def test_the_same_audio_gives_the_same_fit() -> None:
    assert fit(song_of(0).vocal_N, song_of(0).band_N) == true_fit(0)


def test_a_silent_vocal_or_too_little_audio_is_zero() -> None:
    song = song_of(0)
    assert fit(np.zeros_like(song.vocal_N), song.band_N) == NO_FIT
    assert fit(song.vocal_N[: 3 * RATE_HZ], song.band_N) == NO_FIT
    assert fit(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)) == NO_FIT


def tiled(audio_N: np.ndarray, samples: int) -> np.ndarray:
    return np.tile(audio_N, -(-samples // len(audio_N)))[:samples]


def averaged(fits: list[Fit], weights: list[float]) -> tuple[float, ...]:
    return tuple(np.average([astuple(found) for found in fits], axis=0, weights=weights))


def test_a_segment_is_one_piece_and_a_sample_more_is_two_equal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    vocal_N, band_N = (tiled(audio_N, SEGMENT_SAMPLES + 1) for audio_N in (song_of(0).vocal_N, song_of(0).band_N))
    one_piece = fit(vocal_N[:-1], band_N[:-1])
    half = SEGMENT_SAMPLES // 2
    halves = [fit(vocal_N[part], band_N[part]) for part in (slice(0, half), slice(half, None))]
    assert astuple(fit(vocal_N, band_N)) == pytest.approx(averaged(halves, [0.5, 0.5]), abs=0.01)
    monkeypatch.setattr("model.metrics.fit.SEGMENT_SAMPLES", 10 * SEGMENT_SAMPLES)
    assert fit(vocal_N[:-1], band_N[:-1]) == one_piece


def test_a_vocal_heard_once_fits_as_each_time_anew() -> None:
    vocal_N = song_of(0).vocal_N
    listener = Listener(vocal_N)
    for band_N in (song_of(0).band_N, tiled(song_of(1).band_N, len(vocal_N)), 0.01 * song_of(0).band_N, np.zeros_like(vocal_N), vocal_N):
        assert listener.fit(band_N) == fit(vocal_N, band_N)
    assert Listener(vocal_N[: 3 * RATE_HZ]).fit(song_of(0).band_N[: 3 * RATE_HZ]) == NO_FIT


def test_pieces_count_by_how_long_the_voice_sounds_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    third = 10 * RATE_HZ
    monkeypatch.setattr("model.metrics.fit.SEGMENT_SAMPLES", third)
    vocal_N, band_N = tiled(song_of(1).vocal_N, 3 * third), tiled(song_of(1).band_N, 3 * third)
    vocal_N[third : 2 * third] = 0  # a break that the band plays alone
    vocal_N[2 * third + third // 2 :] = 0
    band_N[2 * third :] = tiled(song_of(2).band_N, third)  # and a stranger's band at the end
    first, last = fit(vocal_N[:third], band_N[:third]), fit(vocal_N[2 * third :], band_N[2 * third :])
    assert last.overall < first.overall - 0.2
    heard = fit(vocal_N, band_N)
    assert astuple(heard) == pytest.approx(averaged([first, last], [2, 1]), abs=0.03)
    # Breath, or the band in the singer's microphone, is no singing.
    vocal_N[third : 2 * third] = 1e-3 * band_N[third : 2 * third]
    assert astuple(fit(vocal_N, band_N)) == pytest.approx(astuple(heard), abs=1e-3)
    band_N[third : 2 * third] = 0
    assert astuple(fit(vocal_N, band_N)) == pytest.approx(astuple(heard), abs=1e-3)


def test_a_song_whose_band_stops_halfway_fits_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    half = 8 * RATE_HZ
    monkeypatch.setattr("model.metrics.fit.SEGMENT_SAMPLES", half)
    vocal_N, band_N = tiled(song_of(1).vocal_N, 2 * half), tiled(song_of(1).band_N, 2 * half)
    band_N[half:] = 0
    assert fit(vocal_N, band_N).overall == pytest.approx(fit(vocal_N[:half], band_N[:half]).overall / 2, abs=0.03)


def test_memory_does_not_grow_with_the_song() -> None:
    def peak_bytes(samples: int) -> int:
        vocal_CN, band_CN = (np.stack([tiled(audio_N, samples)] * 2) for audio_N in (song_of(0).vocal_N, song_of(0).band_N))
        tracemalloc.start()
        try:
            fit(vocal_CN, band_CN)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(3 * SEGMENT_SAMPLES) < 1.1 * peak_bytes(SEGMENT_SAMPLES)


@settings(max_examples=15)
@given(
    seconds=st.floats(3.9, 8.0),
    vocal=st.sampled_from(["sung", "noise", "tone", "impulse", "constant", "late"]),
    band=st.sampled_from(["played", "noise", "tone", "impulse", "constant", "vocal"]),
)
def test_every_figure_lies_within_zero_and_one_and_nothing_warns(seconds: float, vocal: str, band: str) -> None:
    samples = round(seconds * RATE_HZ)
    song = song_of(0)
    sounds = {
        "sung": song.vocal_N[:samples],
        "vocal": song.vocal_N[:samples],
        "played": song.band_N[:samples],
        "noise": np.random.default_rng(0).normal(size=samples),
        "tone": np.sin(np.arange(samples) * 0.05),
        "impulse": np.eye(1, samples, samples // 2)[0],
        "constant": np.full(samples, 0.5),
        "late": np.concatenate([np.zeros(samples // 2), song.vocal_N[: samples - samples // 2]]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(sounds[vocal], sounds[band])
    assert isinstance(found, Fit)
    assert all(isinstance(figure, float) and 0 <= figure <= 1 for figure in astuple(found))
