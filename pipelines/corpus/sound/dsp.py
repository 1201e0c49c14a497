"""Signal pieces that the voice and the band share: decaying partials, filters in the frequency domain, reverberation, loudness."""

import numpy as np
import scipy
from numpy.typing import ArrayLike

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, noise

_BLOCK = 256
_STEREO = 2


def db(gain_db: float) -> float:
    """Amplitude of a gain in decibels."""
    return float(10.0 ** (gain_db / 20.0))


def level_db(power: float) -> float:
    """Decibels of a mean square; silence is -120 dB, so that digital zeros pass the logarithm."""
    return float(10.0 * np.log10(max(power, 1e-12)))


def hertz(midi: ArrayLike) -> Array:
    return np.asarray(440.0 * 2.0 ** ((np.asarray(midi, dtype=np.float64) - 69.0) / 12.0))


def good_length(n: int) -> int:
    """The smallest length of at least n whose only prime factors are 2, 3 and 5, where an FFT is fast."""
    best = 1 << max(n - 1, 1).bit_length()
    for threes in range(6):
        for fives in range(4):
            factor = 3**threes * 5**fives
            rest = -(-n // factor)
            best = min(best, factor << max(rest - 1, 0).bit_length())
    return best


def partials(frequency_hz: ArrayLike, amplitude: ArrayLike, decay_hz: ArrayLike, phase: ArrayLike, n: int) -> Array:
    """A sum of exponentially decaying sinusoids, shape (n,).

    z^(256 i + j) = z^(256 i) z^j: two small tables of powers and one matrix product stand for n sines a partial. Partials above
    20 kHz are left out.
    """
    f, a, d, p = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (frequency_hz, amplitude, decay_hz, phase)))
    keep = (f < 20_000.0) & (np.abs(a) > 1e-6)
    log_z = (-d[keep] + 2j * np.pi * f[keep]) / SAMPLE_RATE_HZ
    blocks = -(-n // _BLOCK)
    slow = np.exp(np.arange(blocks)[:, None] * (_BLOCK * log_z)) * (a[keep] * np.exp(1j * p[keep]))
    fast = np.exp(log_z[:, None] * np.arange(_BLOCK))
    return np.asarray((slow.real @ fast.real - slow.imag @ fast.imag).reshape(-1)[:n])


def envelope(n: int, attack_s: float, release_s: float) -> Array:
    """Raised-cosine attack and release around a plateau, shape (n,)."""
    shape = np.ones(n)
    rise = min(n, max(2, int(attack_s * SAMPLE_RATE_HZ)))
    fall = min(n, max(2, int(release_s * SAMPLE_RATE_HZ)))
    shape[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / rise)
    shape[n - fall :] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(fall) + 1) / fall)
    return shape


def band(signal: Array, low_hz: float, high_hz: float, order: int = 2) -> Array:
    """Zero-phase band-pass with Butterworth magnitudes; 0 and infinity leave a side open. Shape (..., n)."""
    n = signal.shape[-1]
    size = good_length(n)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    response = np.ones_like(f)
    if low_hz > 0:
        response *= 1 / np.sqrt(1 + (low_hz / np.maximum(f, 1e-3)) ** (2 * order))
    if np.isfinite(high_hz):
        response *= 1 / np.sqrt(1 + (f / high_hz) ** (2 * order))
    return np.asarray(np.fft.irfft(np.fft.rfft(signal, size) * response, size)[..., :n])


def room(decay_s: float, name: str) -> Array:
    """A stereo impulse response, shape (2, n): decorrelated noise, highs dying first, unit energy, after Moorer (1979)."""
    n = int(decay_s * 1.1 * SAMPLE_RATE_HZ)
    t = np.arange(n) / SAMPLE_RATE_HZ
    delay = int(0.018 * SAMPLE_RATE_HZ)
    channels = []
    for channel in range(_STEREO):
        white = noise(n, "room", name, channel)
        low = band(white, 220, 2_200, 1) * np.exp(-6.91 * t / decay_s)
        high = band(white, 2_200, 7_500, 1) * np.exp(-6.91 * t / (0.45 * decay_s))
        response = (low + high) * np.minimum(1, t / 0.01)
        channels.append(np.concatenate([np.zeros(delay), response]))
    stereo = np.stack(channels)
    return stereo / np.sqrt(np.mean(np.sum(stereo**2, axis=1)))


def reverberate(send: Array, response_CN: Array) -> Array:
    """The room's answer to a mono send, shape (2, n), cut at the send's length."""
    return np.asarray(scipy.signal.oaconvolve(send[None], response_CN, axes=1)[:, : send.shape[-1]])


def loudness_lufs(audio_CN: Array) -> float:
    """Integrated loudness after ITU-R BS.1770-4: K-weighting as a frequency response, 400 ms blocks with 75% overlap, both gates."""
    return gated_loudness_lufs(k_weighted(audio_CN))


def gated_loudness_lufs(weighted_CN: Array) -> float:
    """Integrated loudness of audio that is K-weighted already; the weighting is linear, so a sum's is the sum of its parts'."""
    hop = SAMPLE_RATE_HZ // 10
    n = weighted_CN.shape[-1]
    blocks = max(n // hop, 4)
    energy = np.zeros(blocks)
    for weighted in weighted_CN:
        padded = np.zeros(blocks * hop)
        padded[: min(n, blocks * hop)] = weighted[: blocks * hop]
        energy += np.mean(padded.reshape(blocks, hop) ** 2, axis=1)
    windows = np.convolve(energy, np.full(4, 0.25), mode="valid")
    level = -0.691 + 10 * np.log10(np.maximum(windows, 1e-12))
    loud = windows[level > -70.0]
    if loud.size == 0:
        return -70.0
    gate = -0.691 + 10 * np.log10(loud.mean()) - 10.0
    return float(-0.691 + 10 * np.log10(windows[(level > -70.0) & (level > gate)].mean()))


def k_weighted(audio_CN: Array) -> Array:
    """Each channel through BS.1770's K-weighting (a high shelf near 1.7 kHz, a high-pass near 38 Hz), its biquads derived for 44.1 kHz."""
    k = np.tan(np.pi * 1681.974450955533 / SAMPLE_RATE_HZ)
    q, high = 0.7071752369554196, db(3.999843853973347)
    mid = high**0.4996667741545416
    above = (high + mid * k / q + k * k, 2 * (k * k - high), high - mid * k / q + k * k)
    shelf = _biquad(above, (1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k))
    k, q = np.tan(np.pi * 38.13547087602444 / SAMPLE_RATE_HZ), 0.5003270373238773
    a0 = 1 + k / q + k * k
    high_pass = _biquad((a0, -2 * a0, a0), (a0, 2 * (k * k - 1), 1 - k / q + k * k))
    return np.asarray(scipy.signal.sosfilt(np.stack([shelf, high_pass]), audio_CN))


def _biquad(above: tuple[float, float, float], below: tuple[float, float, float]) -> Array:
    return np.array([*above, *below]) / below[0]


def tilt(signal: Array, high_db: float) -> Array:
    """Highs by `high_db`, lows by as much the other way, around 800 Hz: the colour of an amplifier or a room. Shape (..., n)."""
    gain, k = db(high_db), np.tan(np.pi * 800.0 / SAMPLE_RATE_HZ)
    return np.asarray(scipy.signal.lfilter([gain + k, k - gain], [1 + gain * k, gain * k - 1], signal))
