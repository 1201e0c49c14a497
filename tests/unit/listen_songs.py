"""Small songs with known truth for the listening tests: a few lines of additive synthesis, independent of the demo corpus."""

from dataclasses import dataclass

import numpy as np

RATE_HZ = 44_100
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 3, 4, 3), (1, 4, 0, 5), (0, 5, 1, 4))


@dataclass(frozen=True, kw_only=True)
class Song:
    """`chords` are (start_s, end_s, root · 2 + minor), `notes` (start_s, end_s, midi) of the vocal."""

    vocal_N: np.ndarray
    band_N: np.ndarray
    beats_s: np.ndarray
    chords: list[tuple[float, float, int]]
    notes: list[tuple[float, float, int]]


def hz(midi: float) -> float:
    return 440 * 2 ** ((midi - 69) / 12)


def pluck(midi: int, duration_s: float, partials: int = 8) -> np.ndarray:
    t = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    tone = sum(np.sin(2 * np.pi * hz(midi) * k * t) / k for k in range(1, partials + 1))
    return 0.1 * tone * np.exp(-2 * t) * np.minimum(1, (duration_s - t) / 0.01)


def sung(midi: int, duration_s: float, rng: np.random.Generator, *, vibrato_cents: float = 30.0) -> np.ndarray:
    """A vowel of three formants with vibrato, after 40 ms of consonant."""
    t = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    track_hz = hz(midi) * 2 ** (vibrato_cents / 1200 * np.sin(2 * np.pi * 5.5 * t + rng.uniform(0, 6)) * np.minimum(1, t / 0.3))
    phase = 2 * np.pi * np.cumsum(track_hz) / RATE_HZ
    first, second = rng.choice([(730, 1090), (270, 2290), (570, 840), (530, 1840)])
    vowel = np.zeros_like(t)
    for k in range(1, 24):
        partial_hz = k * hz(midi)
        gain = sum(a / (1 + ((partial_hz - f) / w) ** 2) for a, f, w in ((1, first, 90), (0.5, second, 120), (0.2, 2_900, 200)))
        vowel += gain / np.sqrt(k) * np.sin(k * phase)
    envelope = np.minimum(1, t / 0.02) * np.minimum(1, (duration_s - t) / 0.03)
    consonant = 0.05 * rng.normal(size=len(t)) * (t < 0.04)
    return 0.1 * vowel * envelope + consonant


def compose(seed: int, *, bpm: float | None = None, tonic: int | None = None, minor: bool = False, bars: int = 8) -> Song:
    """Four-chord pop: block chords, bass, kick, snare, hi-hats; a melody on chord tones with passing notes in eighths."""
    rng = np.random.default_rng(seed)
    bpm = rng.uniform(80, 138) if bpm is None else bpm
    tonic = int(rng.integers(12)) if tonic is None else tonic
    progression = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    beat_s = 60 / bpm
    samples = round((bars * 4 * beat_s + 1.0) * RATE_HZ)
    vocal_N, band_N = np.zeros(samples), np.zeros(samples)
    beats_s, chords, notes = [], [], []

    def add(to_N: np.ndarray, sound_N: np.ndarray, at_s: float) -> None:
        start = round(at_s * RATE_HZ)
        to_N[start : start + len(sound_N)] += sound_N[: samples - start]

    for bar in range(bars):
        degree = progression[bar % 4] + (5 if minor else 0)
        triad = [tonic + _SCALE[(degree + step) % 7] + 12 * ((degree + step) // 7) for step in (0, 2, 4)]
        start_s = 0.4 + bar * 4 * beat_s
        chords.append((start_s, start_s + 4 * beat_s, triad[0] % 12 * 2 + (triad[1] - triad[0] == 3)))
        for beat in range(4):
            at_s = start_s + beat * beat_s
            beats_s.append(at_s)
            for midi in triad:
                add(band_N, pluck(54 + (midi - 54) % 12, 0.9 * beat_s), at_s)
            add(band_N, 1.5 * pluck(36 + triad[0] % 12, 0.9 * beat_s, 5), at_s)
            t = np.arange(round(0.15 * RATE_HZ)) / RATE_HZ
            kick = 0.6 * np.sin(2 * np.pi * (50 * t + 3 * (1 - np.exp(-30 * t)))) * np.exp(-25 * t)
            snare = 0.2 * rng.normal(size=len(t)) * np.exp(-30 * t)
            add(band_N, kick if beat % 2 == 0 else snare, at_s)
            for eighth in (0, 0.5):
                add(band_N, 0.06 * np.diff(rng.normal(size=2_205), prepend=0) * np.exp(-80 * t[:2_205]), at_s + eighth * beat_s)
        eighth = 0
        while eighth < 7:
            length = int(rng.choice([1, 2, 3]))
            midi = int(rng.choice(triad)) if eighth % 2 == 0 or rng.random() < 0.5 else tonic + int(rng.choice(_SCALE))
            midi = 57 + (midi - 57) % 12
            at_s = start_s + eighth * beat_s / 2 + rng.normal(0, 0.008)
            duration_s = min(length, 8 - eighth) * beat_s / 2 * 0.92
            add(vocal_N, sung(midi, duration_s, rng), at_s)
            notes.append((at_s, at_s + duration_s, midi))
            eighth += length
    return Song(vocal_N=vocal_N.astype(np.float32), band_N=band_N.astype(np.float32), beats_s=np.array(beats_s), chords=chords, notes=notes)
