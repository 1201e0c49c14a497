"""The songs as heard: exact stems, pitch, chords, beats, loudness, and the same audio in another process."""

import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.benchmarks.data.corpus import Figures, listen
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.corpus import RenderedSong, SongRecord, compose, render
from pipelines.corpus.sound.dsp import good_length, loudness_lufs, partials
from pipelines.corpus.sound.mix import limit

ROOT = Path(__file__).resolve().parents[2]
DURATION_S = 18.0
SEEDS = (1, 5, 12)  # synth-pop, folk, and a slow ballad


def fingerprint(record: SongRecord, song: RenderedSong) -> str:
    return record.sha256() + hashlib.sha256(song.vocals_CN.tobytes() + song.accompaniment_CN.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def songs() -> dict[int, tuple[SongRecord, RenderedSong]]:
    records = {seed: compose(seed, DURATION_S) for seed in SEEDS}
    return {seed: (record, render(record)) for seed, record in records.items()}


@pytest.fixture(scope="module")
def heard(songs: dict[int, tuple[SongRecord, RenderedSong]]) -> list[Figures]:
    return [listen(record, song, 0.0) for record, song in songs.values()]


def test_stems_add_up_to_the_sample_without_clipping(songs: dict[int, tuple[SongRecord, RenderedSong]]) -> None:
    for record, song in songs.values():
        assert song.mixture_CN.shape == (2, int(record.duration_s * SAMPLE_RATE_HZ))
        assert song.mixture_CN.dtype == np.float32
        assert np.array_equal(song.vocals_CN + song.accompaniment_CN, song.mixture_CN)
        assert np.abs(song.mixture_CN).max() < 1
        assert np.array_equal(song.mixture_CN * 32768, np.round(song.mixture_CN * 32768))


def test_the_voice_is_silent_before_it_enters_and_sounds_on_its_notes(songs: dict[int, tuple[SongRecord, RenderedSong]]) -> None:
    for record, song in songs.values():
        entry = int((record.vocal[0].onset_s - 0.7) * SAMPLE_RATE_HZ)
        assert not song.vocals_CN[:, :entry].any()
        for note in record.vocal:
            inside = song.vocals_CN[:, int(note.onset_s * SAMPLE_RATE_HZ) : int(note.offset_s * SAMPLE_RATE_HZ)]
            assert np.sqrt(np.mean(inside**2)) > 0.01


def test_the_pitch_curve_is_the_melody(songs: dict[int, tuple[SongRecord, RenderedSong]]) -> None:
    for record, song in songs.values():
        times_s = np.arange(song.f0_hz.size) / 200
        for note in record.vocal:
            inside = (times_s > note.onset_s + 0.05) & (times_s < note.offset_s - 0.03) & (song.f0_hz > 0)
            if inside.any():
                heard_midi = 69 + 12 * np.log2(np.median(song.f0_hz[inside]) / 440)
                assert abs(heard_midi - note.midi) < 0.35


def test_the_bars_of_the_corpus(songs: dict[int, tuple[SongRecord, RenderedSong]], heard: list[Figures]) -> None:
    for figures, (record, _) in zip(heard, songs.values(), strict=True):
        assert figures.loudness_lufs == pytest.approx(record.mix.loudness_lufs, abs=1)
        assert figures.f0_frame_cents < 10
        assert figures.f0_note_cents < 10
        assert figures.peak_dbfs == pytest.approx(-1.0, abs=0.02)
        assert -9.3 < figures.side_to_mid_db < -7.7
        assert -6 < figures.vocal_over_band_db < 4
    assert statistics.mean(figures.chord_frames for figures in heard) > 0.85
    assert statistics.mean(figures.beat_f for figures in heard) > 0.85
    assert statistics.mean(figures.notes_within_50 for figures in heard) > 0.9


def test_another_process_in_another_order_makes_the_same_songs(songs: dict[int, tuple[SongRecord, RenderedSong]]) -> None:
    first, second = SEEDS[0], SEEDS[1]
    code = (
        "import json, sys; sys.path.insert(0, 'tests/unit')\n"
        "from test_corpus_audio import DURATION_S, fingerprint\n"
        "from pipelines.corpus import compose, render\n"
        f"records = [compose(seed, DURATION_S) for seed in ({second}, {first})]\n"
        "print(json.dumps([records[0].sha256(), fingerprint(records[1], render(records[1]))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout) == [songs[second][0].sha256(), fingerprint(*songs[first])]


def test_partials_are_the_sum_of_their_sines() -> None:
    n, f, a, d, p = 1000, np.array([220.0, 3000.5]), np.array([0.5, 0.2]), np.array([3.0, 40.0]), np.array([0.1, 2.0])
    t = np.arange(n)[:, None] / SAMPLE_RATE_HZ
    direct = np.sum(a * np.exp(-d * t) * np.cos(2 * np.pi * f * t + p), axis=1)
    assert partials(f, a, d, p, n) == pytest.approx(direct, abs=1e-9)


def test_loudness_agrees_with_an_independent_meter() -> None:
    import pyloudnorm

    t = np.arange(6 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    audio_CN = np.stack([0.3 * np.sin(2 * np.pi * 90 * t), 0.2 * np.sin(2 * np.pi * 3000 * t) * (t > 2)])
    assert loudness_lufs(audio_CN) == pytest.approx(pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(audio_CN.T), abs=0.1)
    assert loudness_lufs(np.zeros((2, 44_100))) == -70.0


def test_the_limiter_holds_its_ceiling_and_leaves_quiet_sound_alone() -> None:
    t = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    audio_CN = np.stack([np.sin(2 * np.pi * 110 * t) * np.where((t > 0.3) & (t < 0.35), 2.0, 0.2)] * 2)
    limited = limit(audio_CN, 0.9)
    assert np.abs(limited).max() <= 0.9 + 1e-9
    assert np.array_equal(limited[:, : int(0.25 * SAMPLE_RATE_HZ)], audio_CN[:, : int(0.25 * SAMPLE_RATE_HZ)])


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 44_100, 2_646_001])
def test_good_lengths_hold_the_signal_and_factor(n: int) -> None:
    size = good_length(n)
    assert n <= size < 1.2 * n + 2
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    assert size == 1
