"""Speech to the times of a song: where the vowels of a spoken line are, and how far each is stretched.

Shapes: T frames of speech, S frames of song, K syllables.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.chance import Array, noise

_APART = 5
_NEAR = 3.0
_STRAY_COST_DB = 0.25
_EDGE_DB = 7.0
# Of a note, what consonants behind its vowel may take.
_CONSONANT_SHARE = 0.45
_WANDER_FRAMES = 0.5
_STRETCHED = 0.6


@dataclass(frozen=True)
class Span:
    """A vowel's frames: where it starts, where it is loudest, where it ends."""

    start: int
    peak: int
    end: int


def vowel_spans(level_db_T: Array, expected: list[float]) -> list[Span]:
    """One vowel near each expected frame, in order: the path of peaks with the most voiced level, less what they stray (Viterbi 1967).

    The sound decides, because phonemes' slots do not say where their sound is.
    """
    size = level_db_T.size
    frames = np.arange(size)
    scores: list[Array] = []
    origins: list[NDArray[np.int_]] = []
    for index, centre in enumerate(expected):
        score = level_db_T - _STRAY_COST_DB * np.maximum(0, np.abs(frames - centre) - _NEAR) ** 1.5
        origin = np.zeros(size, int)
        if index:
            before = np.full(size, -1e9)
            before[_APART:] = scores[-1][:-_APART]
            best = np.maximum.accumulate(before)
            origin = np.maximum.accumulate(np.where(before >= best, frames, 0)) - _APART
            score = score + best
        scores.append(score)
        origins.append(origin)
    peaks = [int(np.argmax(scores[-1]))]
    for origin in origins[:0:-1]:
        peaks.append(max(0, int(origin[peaks[-1]])))
    peaks.reverse()
    return [_around(level_db_T, peaks, index) for index in range(len(peaks))]


def _around(level_db_T: Array, peaks: list[int], index: int) -> Span:
    """A peak's frames within 7 dB of it, as far as the quietest frame towards each neighbour."""
    peak = peaks[index]
    low = peaks[index - 1] + int(np.argmin(level_db_T[peaks[index - 1] : peak + 1])) if index else 0
    high = peak + int(np.argmin(level_db_T[peak : peaks[index + 1] + 1])) if index + 1 < len(peaks) else level_db_T.size - 1
    start = end = peak
    while start > low + 1 and level_db_T[start - 1] > level_db_T[peak] - _EDGE_DB:
        start -= 1
    while end < high - 1 and level_db_T[end + 1] > level_db_T[peak] - _EDGE_DB:
        end += 1
    return Span(start, peak, max(end, start + 1))


def stretch(
    spans: list[Span], notes_s: list[tuple[float, float]], *, first: int, last: int, frame_s: float, name: str
) -> tuple[Array, float]:
    """Which frame of speech sounds in each frame of song, shape (S,), fractional; and when the first of these sounds.

    Vowels start on their notes and fill them; consonants keep their own pace, before the note and at its end. A stretched vowel wanders by
    half a frame about its place, since frozen spectra buzz.
    notes_s: start and end of each syllable's note. first, last: where the line's sound starts and ends, in frames of speech.
    """
    origin_s = notes_s[0][0] - (spans[0].start - first) * frame_s
    song, speech = [0.0], [float(first)]
    for index, (span, (start_s, end_s)) in enumerate(zip(spans, notes_s, strict=True)):
        start = (start_s - origin_s) / frame_s
        joined = index + 1 < len(spans)
        end = ((notes_s[index + 1][0] if joined else end_s) - origin_s) / frame_s
        behind = (spans[index + 1].start if joined else last) - span.end
        stop = end - min(behind, _CONSONANT_SHARE * (end - start))
        edge = min(2.5, 0.25 * (span.end - span.start), 0.2 * (stop - start))
        song += [start, start + edge, stop - edge, stop]
        speech += [span.start, span.start + edge, span.end - edge, span.end]
    song.append(song[-1] + max(last - speech[-1], 1))
    speech.append(max(float(last), speech[-1] + 1))
    ordered = np.maximum.accumulate(np.array(song)) + 1e-6 * np.arange(len(song))
    position = np.interp(np.arange(int(ordered[-1])), ordered, speech)
    slow = np.gradient(position) < _STRETCHED
    wander = np.convolve(noise(position.size + 20, "wander", name), np.hanning(21) / 2, "valid")[: position.size]
    return position + _WANDER_FRAMES * wander * np.convolve(slow, np.ones(9) / 9, "same"), origin_s
