"""Captures of a vocal: what each part does by measurement, and what none of them may do."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance, noise
from pipelines.corpus.vocals.capture import Capture, apply_capture, draw_capture

ENTRY_S = 1.0
CLEAN = Capture(
    grade="near-clean", mono=False, low_cut_hz=40.0, high_cut_hz=18_000.0, tilt_db=0.0, presence_hz=2_000.0, presence_db=0.0,
    room_s=0.0, reverb_db=-30.0, floor_db=None, hum_hz=0, ratio=1.0, drive_db=None,
)  # fmt: skip


@pytest.fixture(scope="module", name="vocal_CN")
def bright_tone() -> Array:
    """A second of silence, then a breathy tone that comes and goes, twice 10 dB louder, a little apart in both channels."""
    t = np.arange(6 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * np.cumsum(220 + 4 * np.sin(2 * np.pi * 5 * t)) / SAMPLE_RATE_HZ
    tone_N = sum(np.sin(k * phase) / k for k in range(1, 40))
    loud_N = np.where((t % 2 > 1.5) & (t > 2), 0.16, 0.05)
    tone_N = (tone_N + 0.3 * noise(t.size, "breath")) * loud_N * (t >= ENTRY_S) * (t % 0.5 < 0.4)
    return np.stack([tone_N, 0.9 * tone_N])


def active_db(audio_CN: Array, vocal_CN: Array) -> float:
    """Level where the vocal sounds."""
    return float(10 * np.log10(np.mean(audio_CN[np.abs(vocal_CN) > 1e-3] ** 2)))


def band_db(audio_CN: Array, low_hz: float, high_hz: float) -> float:
    sos = scipy.signal.butter(6, (low_hz, high_hz), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    return float(10 * np.log10(np.mean(scipy.signal.sosfilt(sos, audio_CN) ** 2) + 1e-20))


def lag_ms(one_CN: Array, other_CN: Array) -> float:
    """By which the second's direct sound comes after the first: cross-correlation of the phases (Knapp and Carter 1976)."""
    size = 1 << 20
    cross = np.fft.rfft(other_CN[0], size) * np.fft.rfft(one_CN[0], size).conj()
    correlation = np.fft.irfft(cross / np.maximum(np.abs(cross), 1e-12), size)
    lags = np.arange(-2_000, 2_001)
    return float(lags[correlation[lags].argmax()] / SAMPLE_RATE_HZ * 1e3)


def test_about_a_third_of_the_draws_is_of_each_grade_and_every_fault_occurs() -> None:
    drawn = [draw_capture(Chance("capture", seed)) for seed in range(600)]
    counts = Counter(capture.grade for capture in drawn)
    assert all(150 < counts[grade] < 250 for grade in ("near-clean", "moderate", "rough"))
    rough = [capture for capture in drawn if capture.grade == "rough"]
    share = {
        "room": np.mean([capture.reverb_db > -10 for capture in rough]),
        "noise": np.mean([(capture.floor_db or -99) > -30 for capture in rough]),
        "band": np.mean([capture.high_cut_hz < 8_000 for capture in rough]),
        "drive": np.mean([(capture.drive_db or -99) > 2 for capture in rough]),
    }
    assert all(0.35 < value < 0.7 for value in share.values()), share
    assert all(capture.floor_db is None and capture.drive_db is None for capture in drawn if capture.grade == "near-clean")


def test_every_draw_keeps_length_level_time_and_bounds(vocal_CN: Array) -> None:
    for seed in range(30):
        capture = draw_capture(Chance("capture", seed))
        taken_CN = apply_capture(vocal_CN.astype(np.float32), capture, str(seed))
        assert taken_CN.shape == vocal_CN.shape
        assert np.isfinite(taken_CN).all()
        assert np.abs(taken_CN).max() < 1
        assert active_db(taken_CN, vocal_CN) == pytest.approx(active_db(vocal_CN, vocal_CN), abs=1.0)
        assert abs(lag_ms(vocal_CN, taken_CN)) < 1
        silent = not taken_CN[:, : int(ENTRY_S * SAMPLE_RATE_HZ)].any()
        assert silent == (capture.grade == "near-clean")
        assert np.array_equal(taken_CN, apply_capture(vocal_CN.astype(np.float32), capture, str(seed)))


def test_the_floor_has_the_wanted_level_and_is_pink(vocal_CN: Array) -> None:
    taken_CN = apply_capture(vocal_CN, replace(CLEAN, floor_db=-20.0), "floor")
    silence_CN = taken_CN[:, 2_000 : int(ENTRY_S * SAMPLE_RATE_HZ)]
    below_db = 10 * np.log10(np.mean(silence_CN**2)) - active_db(taken_CN, vocal_CN)
    assert below_db == pytest.approx(-20, abs=2.5)  # the cuts take some of the noise
    octaves = [band_db(silence_CN, low, 2 * low) for low in (250, 1_000, 4_000)]
    assert np.ptp(octaves) < 1.5
    assert not np.array_equal(silence_CN[0], silence_CN[1])
    other_CN = apply_capture(vocal_CN, replace(CLEAN, floor_db=-20.0), "another")
    assert abs(np.corrcoef(silence_CN[0], other_CN[0, 2_000 : int(ENTRY_S * SAMPLE_RATE_HZ)])[0, 1]) < 0.05


def test_hum_stands_out_of_the_floor(vocal_CN: Array) -> None:
    quiet_CN, humming_CN = (apply_capture(vocal_CN, replace(CLEAN, floor_db=-30.0, hum_hz=hz), "hum")[:, :44_100] for hz in (0, 60))
    assert band_db(humming_CN, 50, 72) > band_db(quiet_CN, 50, 72) + 6


def test_a_narrow_band_is_narrow(vocal_CN: Array) -> None:
    whole_CN = apply_capture(vocal_CN, CLEAN, "band")
    narrow_CN = apply_capture(vocal_CN, replace(CLEAN, low_cut_hz=300.0, high_cut_hz=3_400.0), "band")
    assert band_db(narrow_CN, 6_000, 8_000) < band_db(whole_CN, 6_000, 8_000) - 6


def test_a_room_rings_on_and_mono_is_one(vocal_CN: Array) -> None:
    dry_CN = apply_capture(vocal_CN, CLEAN, "room")
    wet_CN = apply_capture(vocal_CN, replace(CLEAN, room_s=1.2, reverb_db=-3.0, mono=True), "room")
    gap = slice(int(5.42 * SAMPLE_RATE_HZ), int(5.5 * SAMPLE_RATE_HZ))
    assert np.mean(wet_CN[:, gap] ** 2) > 100 * np.mean(dry_CN[:, gap] ** 2)
    assert np.array_equal(wet_CN[0], wet_CN[1])
    assert not np.array_equal(dry_CN[0], dry_CN[1])


def test_compression_brings_loud_and_soft_together_and_drive_adds_harmonics(vocal_CN: Array) -> None:
    t = np.arange(vocal_CN.shape[1]) / SAMPLE_RATE_HZ

    def contrast_db(audio_CN: Array) -> float:
        loud, soft = ((t > a) & (t < a + 0.3) for a in (3.55, 3.05))
        return float(10 * np.log10(np.mean(audio_CN[:, loud] ** 2) / np.mean(audio_CN[:, soft] ** 2)))

    assert contrast_db(apply_capture(vocal_CN, CLEAN, "c")) == pytest.approx(10, abs=0.5)
    assert contrast_db(apply_capture(vocal_CN, replace(CLEAN, ratio=6.0), "c")) < 7
    sine_CN = np.stack([0.1 * np.sin(2 * np.pi * 500 * t)] * 2)
    clean_CN, driven_CN = (apply_capture(sine_CN, replace(CLEAN, drive_db=drive_db), "d") for drive_db in (None, 10.0))
    assert band_db(driven_CN, 1_400, 1_600) > band_db(clean_CN, 1_400, 1_600) + 20


def test_silence_stays_silence() -> None:
    assert not apply_capture(np.zeros((2, 5_000)), replace(CLEAN, floor_db=-20.0), "s").any()
