"""Onsets, tempo and beats.

Shape legend: F bands, T frames at `ONSET_RATE_HZ`.
"""

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from model.listen.spectrum import magnitudes, mel_matrix, mono

_WINDOW_SAMPLES, _HOP_SAMPLES, _BANDS = 2_048, 512, 48
ONSET_RATE_HZ = SAMPLE_RATE_HZ / _HOP_SAMPLES
_MIN_BPM, _MAX_BPM, _PRIOR_BPM, _PRIOR_OCTAVES = 60.0, 200.0, 110.0, 0.6
_TIGHTNESS = 400.0
_UNDIVIDED = 0.62
_SWING_BEATS = 8  # as many beats must agree on which half is the long one


def onset_strength(audio: np.ndarray) -> np.ndarray:
    """(T,) float64 ≥ 0: rectified rise of the log mel spectrum, T = N // 512 + 1 (SuperFlux, Böck and Widmer 2013).

    The previous frame is widened by a band on either side, so that vibrato is no onset. Silence gives zeros.
    """
    return _flux(audio).mean(axis=0)


def onsets(audio: np.ndarray, *, delta: float = 0.06, wait_s: float = 0.06) -> np.ndarray:
    """Times in seconds of the peaks of `onset_strength` that stand out of their surroundings (Böck et al. 2012, peak picking).

    `delta` is how far, relative to the strongest 2% of frames; `wait_s` the shortest distance between two.
    """
    return peak_times(onset_strength(audio), delta=delta, wait_s=wait_s)


def peak_times(strength_T: np.ndarray, *, delta: float = 0.06, wait_s: float = 0.06) -> np.ndarray:
    """Times in seconds of an onset curve's peaks; see `onsets`."""
    scale = float(np.percentile(strength_T, 98)) if strength_T.size else 0.0
    if scale <= 1e-9:
        return np.zeros(0)
    relative_T = strength_T / scale
    wait = max(1, round(wait_s * ONSET_RATE_HZ))
    is_peak = relative_T == scipy.ndimage.maximum_filter1d(relative_T, 2 * wait + 1)
    stands_out = relative_T > scipy.ndimage.uniform_filter1d(relative_T, round(0.2 * ONSET_RATE_HZ)) + delta
    return np.flatnonzero(is_peak & stands_out) / ONSET_RATE_HZ


def tempo_bpm(audio: np.ndarray) -> float:
    """Tempo of the strongest pulse between 60 and 200 bpm; 0 where there is none (Ellis 2007, section 3.2)."""
    return _tempo(beat_curve(audio))


def track_beats(audio: np.ndarray) -> np.ndarray:
    """Beat times in seconds, ascending; empty where nothing pulses (Ellis 2007, "Beat tracking by dynamic programming").

    Tempo comes from the autocorrelation of the onset strength, the beats from the path that maximises onset strength at the beats less the
    squared log deviation of each interval from that tempo.
    """
    return beats_of(beat_curve(audio))


def beats_of(curve_T: np.ndarray) -> np.ndarray:
    """Beat times from an onset curve at `ONSET_RATE_HZ`; see `track_beats`."""
    bpm = _tempo(curve_T)
    if bpm == 0.0:
        return np.zeros(0)
    period = 60 * ONSET_RATE_HZ / bpm
    local_T = scipy.ndimage.gaussian_filter1d(curve_T / curve_T.std(), period / 32, mode="constant")
    lags = np.arange(round(period / 2), round(2 * period) + 1)
    penalty = -_TIGHTNESS * np.log(lags / period) ** 2
    total_T, previous_T = local_T.copy(), np.full(len(local_T), -1)
    for t in range(int(lags[0]), len(local_T)):
        reach = min(len(lags), t - int(lags[0]) + 1)
        scores = total_T[t - lags[:reach]] + penalty[:reach]
        best = int(scores.argmax())
        # A path may start anywhere: better no predecessor than one that costs.
        if scores[best] > 0:
            total_T[t] += scores[best]
            previous_T[t] = t - lags[best]
    tail = max(0, len(total_T) - round(period))
    path = [tail + int(total_T[tail:].argmax())]
    while previous_T[path[-1]] >= 0:
        path.append(int(previous_T[path[-1]]))
    beats_T = np.array(path[::-1])
    # Beats in a silent lead-in or tail are extrapolation, not hearing (Ellis 2007, section 3.3).
    strong = np.flatnonzero(local_T[beats_T] > 0.5 * np.sqrt(np.mean(local_T[beats_T] ** 2)))
    beats_T = beats_T[strong[0] : strong[-1] + 1] if strong.size else beats_T[:0]
    beats_T = _long_half_first(local_T, beats_T)
    return _between_frames(local_T, beats_T) / ONSET_RATE_HZ


def _flux(audio: np.ndarray) -> np.ndarray:
    """(F, T) rectified differences of the compressed mel spectrum over two hops."""
    magnitude_FT = magnitudes(mono(audio), window_samples=_WINDOW_SAMPLES, hop_samples=_HOP_SAMPLES)
    # log(1 + γ x) is finite for exact zeros and lets the noise floor count for nothing.
    mel_FT = np.log1p(1_000 * (mel_matrix(_WINDOW_SAMPLES, _BANDS) @ magnitude_FT))
    widened_FT = scipy.ndimage.maximum_filter1d(mel_FT, 3, axis=0)
    flux_FT = np.zeros(mel_FT.shape)
    if mel_FT.shape[1] > 2:
        # A rise enters the window before its centre does: counted here, an attack is heard within 3 ms of where it is.
        flux_FT[:, 2:] = np.maximum(mel_FT[:, 2:] - widened_FT[:, :-2], 0)
    return flux_FT


def beat_curve(audio: np.ndarray) -> np.ndarray:
    """(T,) onset strength in which kick, snare and cymbals weigh alike, though the cymbals have most of the bands.

    Cymbals at half that weight lose the beat of a shuffle, where chords stab on the swung eighths and the ride alone tells which is which.
    """
    return curve_of(onset_bands(audio))


def curve_of(bands_3T: np.ndarray) -> np.ndarray:
    """(T,) from `onset_bands`; see `beat_curve`."""
    low_T, mid_T, high_T = bands_3T
    return low_T * 1.5 + mid_T + high_T


def onset_bands(audio: np.ndarray) -> np.ndarray:
    """(3, T) onset strength of kick, snare and cymbals: below 0.4 kHz, up to 2.9 kHz, above."""
    return np.stack([bands_FT.mean(axis=0) for bands_FT in np.array_split(_flux(audio), [6, 24])])


def _tempo(curve_T: np.ndarray) -> float:
    if len(curve_T) < 4 * ONSET_RATE_HZ or curve_T.std() < 1e-6:
        return 0.0
    centred_T = curve_T - scipy.ndimage.uniform_filter1d(curve_T, round(2 * ONSET_RATE_HZ))
    size = scipy.fft.next_fast_len(2 * len(centred_T), real=True)
    correlation = scipy.fft.irfft(np.abs(scipy.fft.rfft(centred_T, size)) ** 2, size)[: round(5 * ONSET_RATE_HZ)]
    correlation /= correlation[0]
    bpm = np.exp(np.linspace(np.log(_MIN_BPM), np.log(_MAX_BPM), 500))
    lag = 60 * ONSET_RATE_HZ / bpm
    lags = np.arange(len(correlation))

    def at(beats: float) -> np.ndarray:
        return np.interp(beats * lag, lags, correlation)

    # A beat is also where two and four of them repeat: a comb over the multiples (Klapuri et al. 2006).
    comb = np.maximum(at(1) + 0.6 * at(2) + 0.4 * at(4), 0)
    prior = np.exp(-0.5 * (np.log2(bpm / _PRIOR_BPM) / _PRIOR_OCTAVES) ** 2)
    # A pulse that nothing divides is more often the eighths of a slow song than the beat of a fast one.
    divided = np.clip(np.maximum(at(1 / 2), at(1 / 3)) / 0.2, 0, 1)
    scores = comb**2 * prior * (_UNDIVIDED + (1 - _UNDIVIDED) * divided)
    return float(bpm[scores.argmax()]) if scores.max() > 0.001 else 0.0


def _long_half_first(curve_T: np.ndarray, beats_T: np.ndarray) -> np.ndarray:
    """Beats that fell on swung eighths, moved on to the beats that follow.

    A swung pair is long, then short (Friberg and Sundström 2002), so what sounds between two beats sounds late. Where, over some bars, it
    sounds early and nothing answers it late, as a triplet would, the tracked beats are the off-beats.
    """
    if len(beats_T) < _SWING_BEATS:
        return beats_T
    span_B = np.diff(beats_T)
    phase_P = np.linspace(0.2, 0.8, 31)
    strength_BP = np.interp(beats_T[:-1, None] + phase_P * span_B[:, None], np.arange(len(curve_T)), curve_T)
    mean_BP = scipy.ndimage.uniform_filter1d(strength_BP, _SWING_BEATS, axis=0, mode="nearest")
    mean_B = scipy.ndimage.uniform_filter1d(curve_T[beats_T[:-1]], _SWING_BEATS, mode="nearest")
    row_B, peak_B = np.arange(len(span_B)), mean_BP.argmax(axis=1)
    strongest_B, phase_B = mean_BP[row_B, peak_B], phase_P[peak_B]
    early_B = (phase_B > 0.3) & (phase_B < 0.43) & (strongest_B > 0.4 * mean_B) & (strongest_B > 1.5 * mean_BP[row_B, -1 - peak_B])
    moved_T = beats_T.copy()
    moved_T[:-1] += np.rint(np.where(early_B, phase_B * span_B, 0)).astype(int)
    return moved_T


def _between_frames(curve_T: np.ndarray, at_T: np.ndarray) -> np.ndarray:
    """Peak positions refined to fractions of a frame by a parabola through three values."""
    inner_T = np.clip(at_T, 1, len(curve_T) - 2)
    left, centre, right = curve_T[inner_T - 1], curve_T[inner_T], curve_T[inner_T + 1]
    bend = left - 2 * centre + right
    offset = np.where(bend < -1e-12, 0.5 * (left - right) / np.where(bend < -1e-12, bend, 1.0), 0.0)
    return np.where(inner_T == at_T, at_T + np.clip(offset, -0.5, 0.5), at_T)
