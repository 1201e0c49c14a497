"""A singer without a reference is in tune with herself, not with A4 = 440 Hz: how far off she is, and audio moved there and back.

Networks know the tuning that they were trained in, so a vocal between two semitones is played a little faster or slower, as a tape would
be, and its band is brought back the same way.

Shapes: C channels, N samples, T frames.
"""

from collections.abc import Generator, Iterator
from fractions import Fraction

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from model.listen import F0_RATE_HZ, f0

IN_TUNE = Fraction(1)
# What a singer who hears the band is off by anyway.
_UNHEARD_CENTS = 12.0
# What is sung first tells; a song of ten minutes need not be heard to its end before its band begins.
HEARD_S = 48.0
_LEAST_HELD_S = 2.0
_HELD_CENTS = 25.0
_AGREEMENT = 0.35  # of notes that stray by some 23 cents; the mean of what strays further brings no better band
_LARGEST_TERM = 250
_BLOCK = 1 << 15
_REACH = 10  # of resample_poly's filter on either side, in samples at the lower rate
_WINDOW = ("kaiser", 7.0)


def tuning_cents(vocal_CN: np.ndarray) -> float:
    """How far the held notes lie from the nearest semitones of A4 = 440 Hz, above −50 to 50; 0 where they agree on nothing.

    The circular mean of their pitches modulo a semitone. Speech, a whisper, and notes that each miss by another amount agree on nothing.
    """
    if vocal_CN.shape[1] < _LEAST_HELD_S * SAMPLE_RATE_HZ:
        return 0.0
    _, hz_T, voiced_T = f0(vocal_CN[:, : round(HEARD_S * SAMPLE_RATE_HZ)])
    cents_T = 1200 * np.log2(np.where(voiced_T, hz_T, 440.0) / 440)
    padded_T = np.pad(np.where(voiced_T, cents_T, np.nan), 5, constant_values=np.nan)
    held_T = np.nan_to_num(np.abs(padded_T[10:] - padded_T[:-10]), nan=np.inf) < _HELD_CENTS
    if held_T.sum() < _LEAST_HELD_S * F0_RATE_HZ:
        return 0.0
    mean = np.exp(2j * np.pi * cents_T[held_T] / 100).mean()
    return float(100 * np.angle(mean) / (2 * np.pi)) if abs(mean) > _AGREEMENT else 0.0


def speed_into_tune(vocal_CN: np.ndarray) -> Fraction:
    """How much longer a vocal must be played to be in tune; `IN_TUNE` within 12 cents, and where its notes agree on nothing."""
    cents = tuning_cents(vocal_CN)
    return Fraction(2 ** (cents / 1200)).limit_denominator(_LARGEST_TERM) if abs(cents) > _UNHEARD_CENTS else IN_TUNE


def stretched(audio_CN: np.ndarray, ratio: Fraction) -> np.ndarray:
    """(C, N) → (C, ⌈N · ratio⌉): played slower and lower by `ratio`."""
    pieces = list(stretched_pieces(iter([audio_CN]), ratio, -(-audio_CN.shape[1] * ratio.numerator // ratio.denominator)))
    return np.concatenate(pieces, axis=1)


def stretched_pieces(pieces: Iterator[np.ndarray], ratio: Fraction, samples: int) -> Generator[np.ndarray, None, None]:
    """The same for audio that comes in pieces (C, n), `samples` of it, as soon as they can be had; how it was cut changes no bit.

    Beyond the pieces' end lies silence.
    """
    up, down = ratio.numerator, ratio.denominator
    longer = max(up, down)
    block = -(-_BLOCK // down) * down
    margin = -(-(_REACH * longer // up + 1) // down) * down
    held_CN: np.ndarray | None = None
    made = 0
    ended = False
    while made < samples:
        while not ended and (held_CN is None or held_CN.shape[1] < block + 2 * margin):
            piece_CN = next(pieces, None)
            ended = piece_CN is None
            if piece_CN is not None:
                before_CN = np.zeros((len(piece_CN), margin), np.float32) if held_CN is None else held_CN
                held_CN = np.concatenate([before_CN, piece_CN], axis=1)
        if held_CN is None:
            raise ValueError("no audio to stretch: give one sample or more")
        window_CN = held_CN[:, : block + 2 * margin]
        window_CN = np.pad(window_CN, ((0, 0), (0, block + 2 * margin - window_CN.shape[1])))
        skipped, kept = margin // down * up, block // down * up
        part_CN = scipy.signal.resample_poly(window_CN, up, down, axis=1, window=_WINDOW)[:, skipped : skipped + min(kept, samples - made)]
        made += part_CN.shape[1]
        held_CN = held_CN[:, block:]
        yield part_CN
