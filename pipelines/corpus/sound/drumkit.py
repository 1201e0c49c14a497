"""Drums: membranes as gliding sines, snares and cymbals as shaped noise and clusters of partials, placed as the audience sees them."""

from functools import lru_cache

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, noise
from pipelines.corpus.score.styles import DRUM_KEYS
from pipelines.corpus.sound.dsp import band, partials

# Kit: kick pitch and length, snare pitch and ring, brightness of cymbals, dryness of the snare.
_KITS = {"studio": (52.0, 0.24, 190.0, 0.15, 1.0), "soft": (56.0, 0.18, 170.0, 0.11, 0.75), "machine": (47.0, 0.32, 205.0, 0.12, 1.1)}
_PAN = {
    "hat": 0.35,
    "open": 0.35,
    "ride": -0.4,
    "crash": -0.3,
    "tom_high": 0.3,
    "tom_mid": 0.0,
    "tom_low": -0.35,
    "shaker": 0.5,
    "tambourine": -0.5,
}
_LEVEL = {
    "kick": 1.0, "snare": 0.72, "rim": 0.42, "clap": 0.55, "hat": 0.3, "open": 0.32, "ride": 0.3, "crash": 0.5, "tom_high": 0.7,
    "tom_mid": 0.7, "tom_low": 0.75, "shaker": 0.22, "tambourine": 0.28,
}  # fmt: skip


@lru_cache(maxsize=4)
def load_kit(kit: str, tune: float = 1.0, damp: float = 1.0) -> dict[int, Array]:
    """General MIDI drum key to a full-velocity stroke, shape (2, n), with level and place; `tune` scales the pitches of
    drums and cymbals, `damp` the lengths of kick, snare and cymbals."""
    kick_hz, kick_s, snare_hz, snare_s, bright = _KITS[kit]
    kick_hz, snare_hz, bright = kick_hz * tune, snare_hz * tune, bright * tune
    kick_s, snare_s = kick_s * damp, snare_s * damp
    strokes = {
        "kick": _membrane(kick_hz, 2.4, 0.035, kick_s, 0.5, f"{kit}/kick"),
        "snare": _snare(snare_hz, snare_s, bright, kit),
        "rim": _bright_hit((1700.0, 2650.0), 0.02, (900.0, 6000.0), 0.012, f"{kit}/rim"),
        "clap": _clap(kit),
        "hat": _cymbal(0.035 * damp, 7000.0 * bright**0.3, f"{kit}/hat", 0.16),
        "open": _cymbal(0.2 * damp, 6500.0 * tune, f"{kit}/open", 0.5),
        "ride": _cymbal(0.4 * damp, 4200.0 * tune, f"{kit}/ride", 1.1, ping=0.8),
        "crash": _cymbal(0.65 * damp, 3200.0 * tune, f"{kit}/crash", 2.4),
        "tom_high": _membrane(160.0 * tune, 1.5, 0.05, 0.2, 0.12, f"{kit}/high"),
        "tom_mid": _membrane(120.0 * tune, 1.5, 0.05, 0.24, 0.12, f"{kit}/mid"),
        "tom_low": _membrane(85.0 * tune, 1.5, 0.06, 0.3, 0.12, f"{kit}/low"),
        "shaker": _shaker(kit),
        "tambourine": _cymbal(0.07, 6800.0, f"{kit}/tambourine", 0.25),
    }
    return {DRUM_KEYS[name]: _seat(stroke, _LEVEL[name], _PAN.get(name, 0.0)) for name, stroke in strokes.items()}


def _seat(stroke: Array, level: float, pan: float) -> Array:
    stereo = stroke if stroke.ndim == 2 else np.stack([stroke, stroke])
    angle = (pan + 1) * np.pi / 4
    return stereo / np.max(np.abs(stereo)) * level * np.sqrt(2) * np.array([[np.cos(angle)], [np.sin(angle)]])


def _time(seconds: float) -> Array:
    return np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _fade(n: int) -> Array:
    """The last 5 ms, so that no stroke ends in a click."""
    shape = np.ones(n)
    tail = min(n, 220)
    shape[n - tail :] = np.linspace(1, 0, tail)
    return shape


def _membrane(hz: float, drop: float, drop_s: float, decay_s: float, click: float, name: str) -> Array:
    """A skin whose pitch falls from drop * hz to hz, with a beater's click."""
    t = _time(decay_s * 3.2)
    pitch = hz * (1 + (drop - 1) * np.exp(-t / drop_s))
    body = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ) * np.exp(-t / decay_s) * np.minimum(1, t / 0.001)
    tick = band(noise(t.size, "drum", name), 1500, 6000, 1) * np.exp(-t / 0.004)
    return np.tanh(1.5 * (body + click * tick)) * _fade(t.size)


def _snare(hz: float, decay_s: float, bright: float, kit: str) -> Array:
    t = _time(0.5)
    skin = np.sin(2 * np.pi * np.cumsum(hz * (1 + 0.5 * np.exp(-t / 0.012))) / SAMPLE_RATE_HZ) * np.exp(-t / 0.06)
    skin += 0.5 * np.sin(2 * np.pi * hz * 1.72 * t) * np.exp(-t / 0.045)
    sides = []
    for channel in range(2):
        shared = 0.75 * noise(t.size, "drum", kit, "snare") + 0.45 * noise(t.size, "drum", kit, "snare", channel)
        wires = band(shared, 900, 8500 * bright, 1) * np.exp(-t / decay_s)
        crack = band(shared, 2500, 9000, 1) * np.exp(-t / 0.012)
        sides.append(np.tanh(0.75 * skin + 1.3 * wires + 0.9 * crack) * _fade(t.size))
    return np.stack(sides)


def _clap(kit: str) -> Array:
    t = _time(0.4)
    hands = sum(np.exp(-np.maximum(t - at, 0) / 0.006) * (t >= at) for at in (0.0, 0.011, 0.021)) + 0.8 * np.exp(-t / 0.09) * (t >= 0.03)
    return np.stack([band(noise(t.size, "drum", kit, "clap", channel), 800, 4500, 1) * hands * _fade(t.size) for channel in range(2)])


def _bright_hit(modes_hz: tuple[float, ...], decay_s: float, hiss_hz: tuple[float, float], hiss_s: float, name: str) -> Array:
    t = _time(0.15)
    ring = partials(np.array(modes_hz), 0.6, 1 / decay_s, 0.0, t.size)
    return (ring + band(noise(t.size, "drum", name), *hiss_hz, 1) * np.exp(-t / hiss_s)) * _fade(t.size)


def _cymbal(decay_s: float, low_hz: float, name: str, length_s: float, ping: float = 0.0) -> Array:
    """Forty modes at places that no harmonic series shares, under a wash of noise; highs speak first and die first."""
    t = _time(length_s)
    spots = 0.5 + 0.5 * noise(40, "modes", name)
    modes = 2800.0 * 4.2 ** ((np.arange(40) + spots) / 40)
    sides = []
    for channel in range(2):
        ring = partials(modes * (1 + 0.0007 * channel), 0.16, 1 / decay_s * (0.6 + spots), 6 * spots + channel, t.size)
        wash = 0.6 * noise(t.size, "drum", name) + 0.6 * noise(t.size, "drum", name, channel)
        body = band(wash, low_hz, 13_000, 2) * np.exp(-t / decay_s) * (0.35 if ping else 1.0)
        tip = ping * partials(np.array([3150.0, 4710.0, 5980.0]), 0.4, 1 / 0.09, 0.0, t.size) if ping else 0.0
        sides.append((band(ring, low_hz * 0.8, 15_000) * 0.7 + body + tip) * np.minimum(1, t / 0.0015) * _fade(t.size))
    return np.stack(sides)


def _shaker(kit: str) -> Array:
    t = _time(0.11)
    return band(noise(t.size, "drum", kit, "shaker"), 4500, 11_000, 1) * np.minimum(1, t / 0.025) * np.exp(-t / 0.03) * _fade(t.size)
