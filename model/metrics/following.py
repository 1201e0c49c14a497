"""How well a band follows what it was asked: chords, beats, and a grid that does not drift; and how far it only doubles the voice.

Shapes: C channels, N samples, B beats, P pitch classes, T frames at `CHROMA_RATE_HZ`.
"""

from collections.abc import Sequence

import numpy as np
import scipy

from model.chords import NO_CHORD, pitch_classes
from model.controls import ChordSpan
from model.listen import CHROMA_RATE_HZ, F0_RATE_HZ, f0

# As beat trackers are judged (Davies et al. 2009).
BEAT_WINDOW_S = 0.07
_FEWEST_BEATS = 8


def triads_of(spans: Sequence[ChordSpan]) -> list[tuple[float, float, int]]:
    """(start_s, end_s, triad) of the chords that have a third, as `model.listen.chord_agreement` takes them."""
    return [(span.start_s, span.end_s, triad) for span in spans if (triad := triad_of(span.chord.root, span.chord.quality)) is not None]


def triad_of(root: int, quality: int) -> int | None:
    """root · 2 + minor, as `recognise_chords` names what it hears; None without a third."""
    if NO_CHORD in (root, quality):
        return None
    thirds = {3: 1, 4: 0}
    return next((2 * root + thirds[step] for note in pitch_classes(root, quality) if (step := (note - root) % 12) in thirds), None)


def beat_f1(heard_s: np.ndarray, asked_s: np.ndarray) -> float:
    """The F-measure of two sorted lists of beats."""
    matched = heard = asked = 0
    while heard < len(heard_s) and asked < len(asked_s):
        ahead_s = heard_s[heard] - asked_s[asked]
        if abs(ahead_s) <= BEAT_WINDOW_S:
            matched, heard, asked = matched + 1, heard + 1, asked + 1
        elif ahead_s < 0:
            heard += 1
        else:
            asked += 1
    return 2 * matched / (len(heard_s) + len(asked_s)) if len(heard_s) + len(asked_s) else 0.0


def drift_ms_per_minute(heard_s: np.ndarray, asked_s: np.ndarray) -> float:
    """How fast the heard beats run away from those asked, also where they are a beat behind by then: the slope of their distances (Theil
    1950 and Sen 1968, so that a few wrong beats do not count). Half and double time are no drift. NaN with fewer than eight."""
    inside_s = heard_s[(heard_s >= asked_s[0]) & (heard_s <= asked_s[-1])] if len(asked_s) > 1 else heard_s[:0]
    if len(inside_s) < _FEWEST_BEATS:
        return float("nan")
    step_B = np.diff(np.interp(inside_s, asked_s, np.arange(len(asked_s))))
    # What each step is longer than whole or half beats; a beat that was not heard is a longer whole.
    behind_B = np.concatenate([[0.0], np.cumsum(step_B - np.rint(2 * step_B) / 2)])
    slope = scipy.stats.theilslopes(behind_B, inside_s)[0]
    return float(abs(slope) * np.median(np.diff(asked_s)) * 60 * 1_000)


def sung_classes(vocal_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and pitch classes of the frames in which a vocal has a pitch."""
    times_s, hz_T, voiced_T = f0(vocal_CN)
    return times_s[voiced_T], np.rint(69 + 12 * np.log2(hz_T[voiced_T] / 440)).astype(int) % 12


def shadowed(times_s: np.ndarray, sung_T: np.ndarray, chroma_PT: np.ndarray) -> float:
    """Share of the sung frames in which the band's strongest pitch class is the voice's own: an instrument doubles it. 0 without singing.

    times_s, sung_T: of `sung_classes`. A band that plays chords under a melody does so now and then, so compare with the true band's.
    """
    frames_T = np.clip(np.rint(times_s * CHROMA_RATE_HZ).astype(int), 0, chroma_PT.shape[1] - 1)
    sounding_T = chroma_PT.sum(axis=0)[frames_T] > 0
    if sounding_T.sum() < F0_RATE_HZ:
        return 0.0
    return float((chroma_PT.argmax(axis=0)[frames_T[sounding_T]] == sung_T[sounding_T]).mean())
