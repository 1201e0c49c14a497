"""A vocal as some microphone in some room takes it: colour, reverberation, noise floor, compression, distortion.

For training: a third of the draws is nearly clean, a third moderate, a third rough. Nothing moves in time (the direct sound passes only
short causal filters), nothing depends on the band, and the level of the singing stays.

Shapes: C channels, N samples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance, noise
from pipelines.corpus.sound.dsp import db, room, tilt

Grade = Literal["near-clean", "moderate", "rough"]
Fault = Literal["room", "noise", "band", "drive"]
GRADES: tuple[Grade, ...] = ("near-clean", "moderate", "rough")
FAULTS: tuple[Fault, ...] = ("room", "noise", "band", "drive")
HIGHEST_PEAK = 0.999
_BLOCK = 512
_ACTIVE_RANGE_DB = 30.0
_RELEASE_S = 0.08
# Kellet's filter: -3 dB an octave within 0.3 dB from 10 Hz up.
_PINK = ([0.049922035, -0.095993537, 0.050612699, -0.004408786], [1.0, -2.494956002, 2.017265875, -0.522189400])


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One microphone, its room and its preamplifier; levels are relative to the singing."""

    grade: Grade
    mono: bool
    """One microphone; else the vocal's two channels stay apart."""
    low_cut_hz: float
    high_cut_hz: float
    tilt_db: float
    presence_hz: float
    presence_db: float
    room_s: float
    """Reverberation time; 0 is none."""
    reverb_db: float
    """Energy of the room's answer beside the direct sound."""
    floor_db: float | None
    """Level of the room's noise; None keeps digital silence."""
    hum_hz: int
    """Mains frequency that hums 6 dB below the noise; 0 is none."""
    ratio: float
    """Of the compressor, which works above the singing's own level; 1 is none."""
    drive_db: float | None
    """How far above its knee the singing lies in a preamplifier that clips softly; None is none."""


def draw_capture(chance: Chance) -> Capture:
    """One capture. A rough one has a main fault, and each other fault now and then."""
    grade = chance.choice(GRADES)
    main = chance.choice(FAULTS)
    faults = {fault for fault in FAULTS if chance.happens(0.35) or fault == main}
    rough, moderate = grade == "rough", grade == "moderate"
    narrow, live = rough and "band" in faults, rough and "room" in faults
    loud, driven = rough and "noise" in faults, rough and "drive" in faults
    colour = {"near-clean": 1.5, "moderate": 4.0, "rough": 6.0}[grade]
    return Capture(
        grade=grade,
        mono=chance.happens({"near-clean": 0.2, "moderate": 0.5, "rough": 0.8}[grade]),
        low_cut_hz=round(chance.uniform(150, 330) if narrow else chance.uniform(30, 120 if rough or moderate else 70), 1),
        high_cut_hz=round(chance.uniform(3_200, 8_000) if narrow else chance.uniform(10_000 if rough or moderate else 16_000, 19_000), 1),
        tilt_db=round(chance.spread(colour), 2),
        presence_hz=round(chance.uniform(1_200, 5_000), 1),
        presence_db=round(chance.spread(1.5 * colour), 2),
        room_s=round(chance.uniform(0.5, 1.6) if live else chance.uniform(0.25, 0.6), 3),
        reverb_db=round(chance.uniform(-10, 0) if live else chance.uniform(-22, -12) if rough or moderate else chance.uniform(-34, -24), 2),
        floor_db=round(chance.uniform(-30, -14) if loud else chance.uniform(-58, -36), 2) if rough or moderate else None,
        hum_hz=chance.choice((50, 60)) if (rough or moderate) and chance.happens(0.35) else 0,
        ratio=round(chance.uniform(2, 8) if driven else chance.uniform(1, 3 if rough or moderate else 1.5), 2),
        drive_db=round(chance.uniform(2, 14) if driven else chance.uniform(-16, -6), 2) if driven or moderate else None,
    )


def apply_capture(vocal_CN: NDArray[np.floating], capture: Capture, name: str) -> Array:
    """(2, N) → (2, N): the vocal as captured, the level of its singing kept, peak below 1. `name` draws the noise and the room.

    Silence before the first sound stays exact where the capture has no noise floor; a silent vocal is returned as it is.
    """
    source_CN = np.asarray(vocal_CN, dtype=np.float64)
    sung_T = _block_power(source_CN)
    active_T = sung_T > sung_T.max(initial=0.0) * 10 ** (-_ACTIVE_RANGE_DB / 10)
    if not active_T.any():
        return source_CN.copy()
    level = float(np.sqrt(sung_T[active_T].mean()))
    first = int(np.argmax(np.any(source_CN != 0, axis=0)))
    audio_CN = (source_CN.mean(axis=0, keepdims=True) if capture.mono else source_CN) / level
    if capture.room_s > 0:
        audio_CN = audio_CN + _reverberation(audio_CN, capture, name)
    if capture.floor_db is None:
        audio_CN[:, :first] = 0.0
    else:
        audio_CN = audio_CN + _floor(audio_CN.shape, capture, name)
    audio_CN = _coloured(audio_CN, capture)
    if capture.ratio > 1:
        audio_CN = _compressed(audio_CN, capture.ratio)
    if capture.drive_db is not None:
        knee = db(3.0 - capture.drive_db)
        audio_CN = np.tanh(audio_CN / knee) * knee
    taken = float(np.sqrt(_block_power(audio_CN)[active_T].mean()))
    gain = min(level / taken, HIGHEST_PEAK / float(np.abs(audio_CN).max()))
    return np.array(np.broadcast_to(audio_CN * gain, source_CN.shape))


def _block_power(audio_CN: Array) -> Array:
    """Mean square of each block, the last one as long as it is."""
    starts = np.arange(0, audio_CN.shape[1], _BLOCK)
    sizes = np.diff(np.append(starts, audio_CN.shape[1]))
    return np.asarray(np.add.reduceat(np.einsum("cn,cn->n", audio_CN, audio_CN), starts) / (sizes * len(audio_CN)))


def _reverberation(audio_CN: Array, capture: Capture, name: str) -> Array:
    response_CN = room(capture.room_s, f"capture/{name}")[: len(audio_CN)]
    send = audio_CN.mean(axis=0) * db(capture.reverb_db)
    return np.stack([scipy.signal.oaconvolve(send, response_N)[: send.size] for response_N in response_CN])


def _floor(shape: tuple[int, ...], capture: Capture, name: str) -> Array:
    """Pink noise of the room, apart in each channel, with the hum of the mains in all."""
    channels, n = shape
    white_CN = np.stack([noise(n, "capture", name, channel) for channel in range(channels)])
    pink_CN = scipy.signal.lfilter(*_PINK, white_CN)
    pink_CN *= db(capture.floor_db or 0.0) / np.sqrt(np.mean(pink_CN**2))
    if not capture.hum_hz:
        return np.asarray(pink_CN)
    period = SAMPLE_RATE_HZ // capture.hum_hz
    k = np.arange(1, 8)[:, None]
    wave = np.sum(np.sin(2 * np.pi * k * np.arange(period) / period) / k**1.2, axis=0)
    wave *= db((capture.floor_db or 0.0) - 6.0) / np.sqrt(np.mean(wave**2))
    return np.asarray(pink_CN + np.resize(wave, n))


def _coloured(audio_CN: Array, capture: Capture) -> Array:
    """Both cuts (12 dB an octave) and the presence bell (Bristow-Johnson's peaking equaliser, Q = 0.8), then the tilt."""
    w = 2 * np.pi * capture.presence_hz / SAMPLE_RATE_HZ
    alpha, a = np.sin(w) / 1.6, db(capture.presence_db / 2)
    bell = np.array([1 + alpha * a, -2 * np.cos(w), 1 - alpha * a, 1 + alpha / a, -2 * np.cos(w), 1 - alpha / a]) / (1 + alpha / a)
    cuts = scipy.signal.butter(2, (capture.low_cut_hz, capture.high_cut_hz), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    return tilt(scipy.signal.sosfilt(np.vstack([cuts, bell]), audio_CN), capture.tilt_db)


def _compressed(audio_CN: Array, ratio: float) -> Array:
    """Above the singing's own level (1) the output rises by 1/ratio of what the input does; attack of a block, release of 80 ms."""
    level_T = np.sqrt(_block_power(audio_CN))
    keep = float(np.exp(-_BLOCK / (_RELEASE_S * SAMPLE_RATE_HZ)))
    held_T = level_T.copy()
    for t in range(1, held_T.size):
        held_T[t] = max(held_T[t], keep * held_T[t - 1])
    gain_T = np.maximum(held_T, 1.0) ** (1 / ratio - 1)
    centres = np.arange(gain_T.size) * _BLOCK + _BLOCK / 2
    return audio_CN * np.interp(np.arange(audio_CN.shape[1]), centres, gain_T)
