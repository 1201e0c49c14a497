"""The band's pitched instruments, each a function from pitch, length and velocity to a stereo note, all of them sums of partials."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, noise
from pipelines.corpus.sound.dsp import band, envelope, hertz, partials


@dataclass(frozen=True)
class Key:
    """A note to sound: `hold_s` from key down to key up."""

    midi: int
    hold_s: float
    velocity: float

    @property
    def hz(self) -> float:
        return float(hertz(self.midi))


Instrument = Callable[[Key], Array]


def _ladder(key: Key, top_hz: float, most: int) -> Array:
    return np.arange(1, max(2, min(most, int(top_hz / key.hz))) + 1, dtype=np.float64)


def _stereo(left: Array, right: Array, shape: Array) -> Array:
    return np.stack([left * shape, right * shape])


def _samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE_HZ)


def _knock(key: Key, n: int, name: str, low_hz: float, high_hz: float, decay_s: float, gain: float) -> Array:
    """The noise of a hammer, pick or finger at a note's start, shape (n,)."""
    size = min(n, _samples(0.12))
    burst = band(noise(size, "knock", name), low_hz, high_hz, 1) * np.exp(-np.arange(size) / (decay_s * SAMPLE_RATE_HZ))
    out = np.zeros(n)
    out[:size] = gain * key.velocity * burst
    return out


def _struck(
    *, name: str, sustain_s: float, bright: float, stiffness: float, pluck_at: float, damp: float, release_s: float, knock: float,
    width: float, knock_hz: tuple[float, float] = (200.0, 3500.0), top_hz: float = 9000.0, attack_s: float = 0.002,
) -> Instrument:  # fmt: skip
    """Strings that are hit or plucked: stretched harmonics, dull where the player touches them, highs dying first."""

    def play(key: Key) -> Array:
        n = _samples(min(key.hold_s, 4.0) + release_s)
        k = _ladder(key, top_hz, 36)
        stretched = key.hz * k * np.sqrt((1 + stiffness * k**2) / (1 + stiffness))
        slope = bright + 0.5 * (1 - key.velocity)
        amplitude = np.abs(np.sin(np.pi * k * pluck_at)) * k**-slope
        amplitude /= np.sqrt(np.sum(amplitude**2))
        decay = 6.91 / (sustain_s * (220 / key.hz) ** 0.5) * (1 + damp * (k - 1))
        spread = np.pi * k * (k - 1) / k.size  # Schroeder's phases (1970): partials that start apart, not as one click
        detune = 1 + 0.0004 * width * np.sin(k * 2.3)
        left = partials(stretched * detune, amplitude, decay, spread, n)
        right = partials(stretched / detune, amplitude, decay, spread + 0.9 * width * np.sin(1.7 * k), n)
        hit = _knock(key, n, name, *knock_hz, 0.012, knock)
        return _stereo(left + hit, right + hit, envelope(n, attack_s, release_s))

    return play


def _sustained(
    *, slope: float, attack_s: float, release_s: float, detune: float, odd: float = 1.0, top_hz: float = 6000.0,
    drawbars: tuple[float, ...] = (), vibrato: float = 0.0, air: float = 0.0,
) -> Instrument:  # fmt: skip
    """Bowed, blown and synthetic tones: steady harmonics, several players a little apart in pitch and place."""

    def play(key: Key) -> Array:
        n = _samples(key.hold_s + release_s)
        k = np.array((0.5, 1.5, 1, 2, 3, 4, 5, 6, 8)[: len(drawbars)]) if drawbars else _ladder(key, top_hz, 28)
        amplitude = np.array(drawbars) if drawbars else k ** -(slope + 0.4 * (1 - key.velocity)) * np.where(k % 2 == 1, 1.0, odd)
        amplitude = amplitude / np.sqrt(np.sum(amplitude**2))
        offsets = (-1.0, 0.15, 1.0) if detune > 0 else (0.0,)
        channels = []
        for side in (1.0, -1.0):
            tone = np.zeros(n)
            for index, offset in enumerate(offsets):
                ratio = 2 ** (side * offset * detune / 1200)
                tone += partials(key.hz * k * ratio, amplitude / np.sqrt(len(offsets)), 0.0, k * (1.3 + index + side * 0.4), n)
            channels.append(tone)
        left, right = channels
        if vibrato > 0:
            t = np.arange(n) / SAMPLE_RATE_HZ
            tremolo = 1 + vibrato * np.sin(2 * np.pi * 5.3 * t) * np.minimum(1, t / 0.4)
            left, right = left * tremolo, right * tremolo
        if air > 0:
            breath = air * band(noise(n, "air", key.midi), key.hz, 4 * key.hz, 1)
            left, right = left + breath, right + breath
        return _stereo(left, right, envelope(n, min(attack_s, key.hold_s * 0.5), release_s))

    return play


def _bars(ratios: tuple[float, ...], amplitudes: tuple[float, ...], sustain_s: float, knock: float, release_s: float) -> Instrument:
    """Struck bars: a few inharmonic modes."""

    def play(key: Key) -> Array:
        n = _samples(min(key.hold_s + release_s, sustain_s * 1.2))
        ratio = np.array(ratios)
        decay = 6.91 / sustain_s * ratio**0.6
        left = partials(key.hz * ratio, np.array(amplitudes), decay, 0.0, n)
        right = partials(key.hz * ratio * 1.0006, np.array(amplitudes), decay, 0.5, n)
        hit = _knock(key, n, "mallet", 400, 4000, 0.006, knock)
        return _stereo(left + hit, right + hit, envelope(n, 0.002, release_s))

    return play


def _electric_piano(key: Key) -> Array:
    """Two-operator frequency modulation after Chowning (1973), a tine that dies quickly over a bar that rings."""
    n = _samples(min(key.hold_s, 3.5) + 0.15)
    t = np.arange(n) / SAMPLE_RATE_HZ
    base = 2 * np.pi * key.hz * t
    body = np.sin(base + (0.5 + 1.1 * key.velocity) * np.exp(-t / 0.5) * np.sin(base)) * np.exp(-t / (1.4 * (220 / key.hz) ** 0.4))
    tine = 0.16 * key.velocity * np.sin(base + 0.4 * np.sin(14 * base) * np.exp(-t / 0.1)) * np.exp(-t / 0.3)
    tremolo = 0.16 * np.sin(2 * np.pi * 4.6 * t)
    shape = envelope(n, 0.002, 0.15)
    return np.stack([(body * (1 + tremolo) + tine) * shape, (body * (1 - tremolo) + tine) * shape])


def _bass(*, bright: float, sustain_s: float, knock: float, drive: float, top_hz: float, release_s: float = 0.04) -> Instrument:
    """A bass note: centred, its fundamental firm, its upper partials driven a little so that small speakers carry it."""

    def play(key: Key) -> Array:
        n = _samples(min(key.hold_s, 3.0) + release_s)
        k = _ladder(key, top_hz, 24)
        amplitude = k ** -(bright + 0.4 * (1 - key.velocity)) * (0.4 + np.abs(np.sin(np.pi * k * 0.21)))
        amplitude /= np.sqrt(np.sum(amplitude**2))
        decay = 6.91 / sustain_s * (1 + 0.35 * (k - 1))
        tone = partials(key.hz * k, amplitude, decay, 0.0, n)
        tone = np.tanh(drive * tone) / np.tanh(drive)
        tone = (tone + _knock(key, n, "bass", 150, 2500, 0.01, knock)) * envelope(n, 0.004, release_s)
        return np.stack([tone, tone])

    return play


INSTRUMENTS: dict[str, Instrument] = {
    "piano": _struck(
        name="piano", sustain_s=5.5, bright=1.15, stiffness=0.0004, pluck_at=0.12, damp=0.14, release_s=0.18, knock=0.12, width=1.0
    ),
    "guitar": _struck(
        name="pick", sustain_s=3.2, bright=0.75, stiffness=0.0001, pluck_at=0.17, damp=0.3, release_s=0.12, knock=0.16, width=0.9,
        knock_hz=(1500.0, 7000.0),
    ),
    "nylon_guitar": _struck(
        name="nylon", sustain_s=2.2, bright=1.2, stiffness=0.00005, pluck_at=0.22, damp=0.35, release_s=0.12, knock=0.14, width=0.8,
        top_hz=6000,
    ),
    "muted_guitar": _struck(
        name="mute", sustain_s=0.55, bright=0.9, stiffness=0.0001, pluck_at=0.12, damp=0.5, release_s=0.06, knock=0.2, width=0.6
    ),
    "crunch_guitar": _struck(
        name="crunch", sustain_s=4.5, bright=0.8, stiffness=0.0001, pluck_at=0.14, damp=0.12, release_s=0.07, knock=0.1, width=0.5,
        top_hz=5000,
    ),
    "lead_guitar": _struck(
        name="lead", sustain_s=4.0, bright=0.9, stiffness=0.0001, pluck_at=0.2, damp=0.1, release_s=0.12, knock=0.08, width=0.5, top_hz=5000
    ),
    "pluck": _struck(
        name="pluck", sustain_s=0.9, bright=0.7, stiffness=0.0, pluck_at=0.03, damp=0.55, release_s=0.1, knock=0.0, width=1.2
    ),
    "synth_keys": _struck(
        name="keys", sustain_s=2.6, bright=0.9, stiffness=0.0, pluck_at=0.05, damp=0.35, release_s=0.12, knock=0.0, width=1.8, top_hz=7000,
        attack_s=0.004,
    ),
    "clean_guitar": _struck(
        name="clean", sustain_s=3.6, bright=0.85, stiffness=0.0001, pluck_at=0.15, damp=0.22, release_s=0.1, knock=0.12, width=0.7,
        top_hz=6000,
    ),
    "banjo": _struck(
        name="banjo", sustain_s=0.8, bright=0.55, stiffness=0.0002, pluck_at=0.1, damp=0.3, release_s=0.06, knock=0.2, width=0.4
    ),
    "clavinet": _struck(
        name="clavinet", sustain_s=1.2, bright=0.5, stiffness=0.0001, pluck_at=0.06, damp=0.35, release_s=0.03, knock=0.1, width=0.3
    ),
    "electric_piano": _electric_piano,
    "organ": _sustained(slope=1, attack_s=0.008, release_s=0.05, detune=3.0, drawbars=(0.25, 0.1, 1.0, 0.7, 0.35, 0.25, 0.08, 0.1, 0.12)),
    "strings": _sustained(slope=1.1, attack_s=0.14, release_s=0.3, detune=9.0, vibrato=0.05),
    "warm_pad": _sustained(slope=1.6, attack_s=0.2, release_s=0.35, detune=8.0, top_hz=3500),
    "bright_pad": _sustained(slope=1.0, attack_s=0.09, release_s=0.25, detune=11.0, top_hz=8000),
    "synth_lead": _sustained(slope=1.0, attack_s=0.012, release_s=0.09, detune=5.0, odd=0.5, top_hz=7000),
    "fiddle": _sustained(slope=0.95, attack_s=0.06, release_s=0.09, detune=0.0, vibrato=0.08, top_hz=8000),
    "choir": _sustained(slope=1.4, attack_s=0.16, release_s=0.3, detune=12.0, vibrato=0.06, top_hz=3500, air=0.03),
    "brass": _sustained(slope=0.9, attack_s=0.035, release_s=0.08, detune=6.0, top_hz=5500),
    "sax": _sustained(slope=0.8, attack_s=0.03, release_s=0.07, detune=0.0, vibrato=0.08, air=0.04, top_hz=5000),
    "accordion": _sustained(slope=0.8, attack_s=0.03, release_s=0.06, detune=7.0, top_hz=6000),
    "harmonica": _sustained(slope=0.7, attack_s=0.03, release_s=0.06, detune=0.0, odd=0.7, vibrato=0.12, air=0.03, top_hz=6000),
    "flute": _sustained(slope=2.0, attack_s=0.05, release_s=0.09, detune=0.0, vibrato=0.1, air=0.05),
    "vibraphone": _bars((1, 4.0, 10.0), (1.0, 0.22, 0.06), 2.6, 0.05, 0.25),
    "marimba": _bars((1, 3.93, 9.5), (1.0, 0.3, 0.08), 0.9, 0.12, 0.3),
    "bell": _bars((1, 2.0, 3.01, 5.4), (1.0, 0.45, 0.3, 0.12), 1.8, 0.03, 0.3),
    "finger_bass": _bass(bright=1.25, sustain_s=3.0, knock=0.1, drive=1.1, top_hz=2200),
    "pick_bass": _bass(bright=0.9, sustain_s=3.0, knock=0.22, drive=1.6, top_hz=3500),
    "round_bass": _bass(bright=1.8, sustain_s=4.0, knock=0.04, drive=0.8, top_hz=1200),
    "synth_bass": _bass(bright=1.0, sustain_s=2.2, knock=0.0, drive=1.4, top_hz=3000),
    "upright_bass": _bass(bright=1.5, sustain_s=1.6, knock=0.16, drive=0.7, top_hz=1600, release_s=0.07),
}  # fmt: skip
