"""What is known of a held-out segment beside its sound: chords, beats, key, tempo and style, as its composer wrote them.

A dataset has them frame by frame, from the segment's start; here they become what a musician would ask for.

Shapes: T latent frames of 2,048 samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from infra.dataset.format import LatentTable, read_manifest, read_truth
from infra.dataset.parquet import read_table
from infra.dataset.truth import SONG_FIELDS
from infra.storage.place import Place
from model.chords import NO_CHORD, ROOTS, pitch_classes, quality_number
from model.controls import NONE, Beat, Chord, ChordSpan
from model.dimensions import FRAME_RATE_HZ
from model.errors import ModelError

# Of a beat: phases are stored as float16.
_ROUNDING = 2e-3
_ENHARMONIC = {"C#": "Db", "D#": "Eb", "Gb": "F#", "G#": "Ab", "A#": "Bb", "Cb": "B", "Fb": "E", "E#": "F", "B#": "C"}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """None where something is not known."""

    chords: tuple[ChordSpan, ...] | None = None
    beats: tuple[Beat, ...] | None = None
    key: int | None = None
    """Tonic · 2 + minor, tonic 0 = C."""
    tempo_bpm: float | None = None
    style: str | None = None

    def until(self, seconds: float) -> "Truth":
        """Of a segment that is cut after so many seconds."""
        chords = self.chords and tuple(replace(span, end_s=min(span.end_s, seconds)) for span in self.chords if span.start_s < seconds)
        beats = self.beats and tuple(beat for beat in self.beats if beat.time_s < seconds)
        return replace(self, chords=chords, beats=beats)

    @property
    def beats_s(self) -> np.ndarray | None:
        """Times of the beats, where two or more are known: one alone is no grid."""
        return np.array([beat.time_s for beat in self.beats]) if self.beats and len(self.beats) > 1 else None


NOTHING = Truth()
TruthReader = Callable[[str, int], Truth]
"""(song_id, segment) → what is known of it; `NOTHING` where that is nothing."""


def composed_truths(data: Place, store: LatentTable) -> TruthReader:
    """What a dataset says of its composed songs: all of the held-out segments in `store`, of others key, tempo and style.

    What was only estimated from their sound is left out: a band is not to be judged by what was heard in another.
    """
    manifest = read_manifest(data)
    held = read_truth(data, "validation", manifest)
    if held is None:
        return lambda _song_id, _segment: NOTHING
    table = read_table(
        (data / "songs").list(suffix=".parquet"), pa.schema([pa.field("song_id", pa.string(), nullable=False), *SONG_FIELDS])
    )
    songs = {song["song_id"]: song for song in table.to_pylist() if song["truth_source"] == "composed"}
    rows = {named: row for row, named in enumerate(zip(store.song_ids, store.segments, strict=True))}
    frames = held.frames

    def read(song_id: str, segment: int) -> Truth:
        song, row = songs.get(song_id), rows.get((song_id, segment))
        if song is None:
            return NOTHING
        key = None if song["key"] is None else key_number(song["key"])
        if row is None:
            return Truth(key=key, tempo_bpm=song["tempo_bpm"], style=song["style"])
        chords = (frames.chord_root_RT[row], frames.chord_quality_RT[row], frames.chord_bass_RT[row])
        root_T, quality_T, bass_T = chords if frames.chords_known_R[row] else (None, None, None)
        found = truth_of_frames(root_T, quality_T, bass_T, frames.beat_phase_RT[row], frames.bar_phase_RT[row])
        return replace(found, key=key, tempo_bpm=song["tempo_bpm"], style=song["style"])

    return read


def truth_of_frames(
    root_T: np.ndarray | None, quality_T: np.ndarray | None, bass_T: np.ndarray | None, beat_phase_T: np.ndarray, bar_phase_T: np.ndarray,
) -> Truth:  # fmt: skip
    """From numbers of `model.chords` (None: chords are not known) and phases in 0..1 (NaN: not known) at the middle of each frame."""
    chords = None
    if root_T is not None and quality_T is not None and bass_T is not None:
        chords = chord_spans(root_T, quality_T, bass_T)
    beats = beats_of_phases(beat_phase_T, bar_phase_T)
    return Truth(chords=chords, beats=beats or None)


def chord_spans(root_T: np.ndarray, quality_T: np.ndarray, bass_T: np.ndarray) -> tuple[ChordSpan, ...]:
    """A span for each run of frames of the same chord, `NO_CHORD` among them."""
    chord_T3 = np.stack([np.asarray(part_T, int) for part_T in (root_T, quality_T, bass_T)], axis=1)
    edges = [0, *(np.flatnonzero((np.diff(chord_T3, axis=0) != 0).any(axis=1)) + 1).tolist(), len(chord_T3)]
    spans = []
    for start, end in pairwise(edges):
        root, quality, bass = chord_T3[start].tolist()
        chord = NONE if NO_CHORD in (root, quality) else Chord(root=root, quality=quality, bass=root if bass == NO_CHORD else bass)
        spans.append(ChordSpan(start_s=start / FRAME_RATE_HZ, end_s=end / FRAME_RATE_HZ, chord=chord, asked=chord.name, exact=True))
    return tuple(spans)


def beats_of_phases(beat_phase_T: np.ndarray, bar_phase_T: np.ndarray) -> tuple[Beat, ...]:
    """Beats where the phase wraps, to a fraction of a frame, with their place in the bar where that is known.

    The half frames at either end of what is known are looked at too, at the pace of the frames beside them.
    """
    beat_T, bar_T = np.asarray(beat_phase_T, float), np.asarray(bar_phase_T, float)
    length = _beats_a_bar(beat_T, bar_T)
    beats = []
    for run in _known_runs(beat_T):
        # Unwrapped: phases that rise by less than 1 a frame, as down to 300 beats a minute they do.
        rising_T = beat_T[run.start] + np.concatenate([[0.0], np.cumsum(np.diff(beat_T[run]) % 1.0)])
        times_T = np.arange(run.start, run.stop) + 0.5
        first, last = rising_T[0] - (rising_T[1] - rising_T[0]) / 2, rising_T[-1] + (rising_T[-1] - rising_T[-2]) / 2
        rising_T, times_T = np.concatenate([[first], rising_T, [last]]), np.concatenate([[run.start], times_T, [run.stop]])
        for number in range(math.ceil(first - _ROUNDING), math.ceil(last - _ROUNDING)):
            frame = float(np.interp(number, rising_T, times_T))
            beats.append(Beat(time_s=frame / FRAME_RATE_HZ, position=_position(bar_T, frame, length)))
    return tuple(beats)


def _known_runs(phase_T: np.ndarray) -> list[slice]:
    """Of two frames or more."""
    known_T = np.concatenate([[False], np.isfinite(phase_T), [False]])
    edges = np.flatnonzero(np.diff(known_T.astype(int)))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop - start > 1]


def _beats_a_bar(beat_T: np.ndarray, bar_T: np.ndarray) -> int | None:
    """How much faster the beat's phase runs than the bar's."""
    beat_steps_T, bar_steps_T = np.diff(beat_T) % 1.0, np.diff(bar_T) % 1.0
    known_T = np.isfinite(beat_steps_T) & np.isfinite(bar_steps_T)
    turned = float(bar_steps_T[known_T].sum())
    return max(1, round(float(beat_steps_T[known_T].sum()) / turned)) if turned > 0 else None


def _position(bar_T: np.ndarray, frame: float, length: int | None) -> int | None:
    """1 for the downbeat; None where the bar is not known. Read at the frame next to the beat, moved on to the beat at the bar's pace."""
    if length is None:
        return None
    near = min(max(int(frame), 0), len(bar_T) - 2)
    here, step = bar_T[near], (bar_T[near + 1] - bar_T[near]) % 1.0
    if not (np.isfinite(here) and np.isfinite(step)):
        return None
    return round((here + (frame - near - 0.5) * step) * length) % length + 1


def key_number(name: str) -> int:
    """`F# minor` → tonic · 2 + minor."""
    tonic, _, mode = name.partition(" ")
    tonic = _ENHARMONIC.get(tonic, tonic)
    if tonic not in ROOTS or mode not in ("major", "minor"):
        raise ModelError(f"key {name!r}: must be a tonic and major or minor, as F# minor")
    return 2 * ROOTS.index(tonic) + (mode == "minor")


def a_fifth_away(spans: tuple[ChordSpan, ...]) -> tuple[ChordSpan, ...]:
    """The same chords a fifth up: none of a song's own progression is left, and all keep their sound."""
    return tuple(_with(span, 7, span.chord.quality) for span in spans)


def relative(spans: tuple[ChordSpan, ...]) -> tuple[ChordSpan, ...]:
    """Each chord with a major third as the minor triad a minor third below, each with a minor third as the major triad above: two of three
    notes stay, so that only a band which listens to its chords tells them apart. Chords without a third stay."""
    turned = []
    for span in spans:
        steps = {(note - span.chord.root) % 12 for note in pitch_classes(span.chord.root, span.chord.quality)}
        if 4 in steps:
            turned.append(_with(span, 9, quality_number("min")))
        elif 3 in steps:
            turned.append(_with(span, 3, quality_number("maj")))
        else:
            turned.append(span)
    return tuple(turned)


def _with(span: ChordSpan, steps: int, quality: int) -> ChordSpan:
    """The span's root so many semitones up. A bass that leaves its chord becomes the root."""
    if span.chord == NONE:
        return span
    root = (span.chord.root + steps) % 12
    bass = (span.chord.bass + steps) % 12 if quality == span.chord.quality else root
    chord = Chord(root=root, quality=quality, bass=bass)
    return replace(span, chord=chord, asked=chord.name)
