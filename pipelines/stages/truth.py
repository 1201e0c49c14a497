"""What the band plays, as composed or as heard, and what of it belongs to each latent frame.

Reads: a song's song.json, or its accompaniment. Gives: a `SongTruth`, in seconds of the song; `frames_of` cuts it to segments.

Shapes: R segments, T frames, S spans of chords, B beats.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infra.dataset.truth import HIGHEST_PHASE, NO_CHORD, FrameTruth, no_truth
from model.chords import ROOTS, quality_number
from model.dimensions import FRAME_RATE_HZ
from model.errors import ModelError
from pipelines.song import SONG_RECORD, Beat, ChordSpan, Section, SongTruth

log = logging.getLogger(__name__)

TruthMode = Literal["estimate", "composed", "none"]
# A take so much beside the semitones, as a share of one, has no pitch classes that its chords could be named by.
MOST_DETUNED = 0.25


def composed_truth(record: bytes) -> tuple[SongTruth | None, str]:
    """(truth in song.json, what is wrong with it); (None, "") where song.json states none, as one with a title alone."""
    given = json.loads(record)
    if not isinstance(given, dict) or not {"chords", "beats_s"} & given.keys():
        return None, ""
    try:
        return parsed_truth(given), ""
    except (KeyError, TypeError, ValueError, ModelError) as error:
        fault = f"the truth in {SONG_RECORD} cannot be read ({type(error).__name__}: {error})"
        return None, fault


def estimated_truth(accompaniment_CN: NDArray[np.float32]) -> SongTruth:
    """What is heard of a band. Its style and its sections are not."""
    from model.listen import CHROMA_RATE_HZ, analyse

    heard = analyse(accompaniment_CN)
    edges = np.flatnonzero(np.diff(heard.chords, prepend=np.nan, append=np.nan))
    # A frame of the chroma is the middle of its window.
    times_s = np.maximum(edges - 0.5, 0) / CHROMA_RATE_HZ
    chords = tuple(
        ChordSpan(
            start_s=float(start_s),
            end_s=float(end_s),
            root=int(label) // 2,
            quality=quality_number("min" if label % 2 else "maj"),
            bass=int(bass) if (bass := heard.bass[at]) >= 0 else int(label) // 2,
        )
        for at, start_s, end_s in zip(edges[:-1].tolist(), times_s[:-1], times_s[1:], strict=True)
        if (label := heard.chords[at]) >= 0
    )
    in_bar = heard.positions.tolist() if heard.beats_a_bar else [0] * len(heard.beats_s)
    return SongTruth(
        source="estimated",
        chords=chords,
        beats=tuple(
            Beat(time_s=float(time_s), position=place, bar_beats=heard.beats_a_bar)
            for time_s, place in zip(heard.beats_s, in_bar, strict=True)
        ),
        tempo_bpm=heard.tempo_bpm or None,
        key=f"{ROOTS[heard.key // 2]} {'minor' if heard.key % 2 else 'major'}" if heard.key >= 0 else None,
        metre=f"{heard.beats_a_bar}/4" if heard.beats_a_bar else None,
        tempo_confidence=heard.beat_confidence,
        key_confidence=heard.key_confidence,
        chord_confidence=heard.chord_confidence,
        beat_confidence=heard.beat_confidence,
        bar_confidence=heard.bar_confidence,
    )


def truth_of(
    composed: SongTruth | None, fault: str, accompaniment_CN: NDArray[np.float32], mode: TruthMode, name: str
) -> tuple[SongTruth | None, str]:
    """(truth, why it is not there or not the composed one): composed where song.json has it, else heard, as far as `mode` allows.

    A band over which listening fails costs the song nothing but its truth: the reason is logged under `name` and stored with the song.
    """
    if mode == "none":
        return None, ""
    if fault:
        log.warning("%s: %s", name, fault)
    if composed is not None or mode == "composed":
        return composed, fault
    try:
        return estimated_truth(accompaniment_CN), fault
    except Exception as error:
        log.warning("%s: listening to the band failed, the song is kept without truth", name, exc_info=True)
        failed = f"listening failed ({type(error).__name__}: {error})"
        return None, f"{fault}; {failed}" if fault else failed


def truth_at_speed(truth: SongTruth, speed: float) -> SongTruth:
    """The truth of a song that is played faster, so higher, as a tape is. Between the semitones its chords and key are not known."""
    semitones = 12 * math.log2(speed)
    shift = round(semitones)
    in_tune = abs(semitones - shift) <= MOST_DETUNED
    tonic, _, mode = (truth.key or "").partition(" ")

    def moved(span: ChordSpan) -> ChordSpan:
        root, bass = (span.root + shift) % 12, (span.bass + shift) % 12
        return replace(span, start_s=span.start_s / speed, end_s=span.end_s / speed, root=root, bass=bass)

    return replace(
        truth,
        chords=None if truth.chords is None or not in_tune else tuple(moved(span) for span in truth.chords),
        beats=tuple(replace(beat, time_s=beat.time_s / speed) for beat in truth.beats),
        sections=tuple(replace(section, start_s=section.start_s / speed, end_s=section.end_s / speed) for section in truth.sections),
        tempo_bpm=truth.tempo_bpm and truth.tempo_bpm * speed,
        key=f"{ROOTS[(ROOTS.index(tonic) + shift) % 12]} {mode}" if in_tune and tonic in ROOTS else None,
    )


def frames_of(truth: SongTruth | None, starts_s: Sequence[float], valid_frames: Sequence[int], frames: int) -> FrameTruth:
    """The truth at the middle of each latent frame of segments that start at `starts_s`; unknown after their valid frames."""
    found = no_truth(len(starts_s), frames)
    if truth is None:
        return found
    for row, (start_s, valid) in enumerate(zip(starts_s, valid_frames, strict=True)):
        times_T = start_s + (np.arange(valid) + 0.5) / FRAME_RATE_HZ
        beat_T, bar_T = _phases_at(truth.beats, times_T)
        if truth.chords is not None:
            root_T, quality_T, bass_T = _chords_at(truth.chords, times_T)
            found.chord_root_RT[row, :valid] = root_T
            found.chord_quality_RT[row, :valid] = quality_T
            found.chord_bass_RT[row, :valid] = bass_T
        found.beat_phase_RT[row, :valid] = np.minimum(beat_T.astype(np.float16), HIGHEST_PHASE)
        found.bar_phase_RT[row, :valid] = np.minimum(bar_T.astype(np.float16), HIGHEST_PHASE)
    found.chord_confidence_R[:] = np.nan if truth.chords is None else truth.chord_confidence
    found.beat_confidence_R[:] = truth.beat_confidence if truth.beats else np.nan
    found.bar_confidence_R[:] = truth.bar_confidence if any(beat.bar_beats for beat in truth.beats) else np.nan
    found.known_R[:] = True
    found.chords_known_R[:] = truth.chords is not None
    return found


def _chords_at(spans: Sequence[ChordSpan], times_T: NDArray[np.floating]) -> NDArray[np.int8]:
    """(3, T): root, quality and bass; −1 between chords."""
    found_3T = np.full((3, len(times_T)), NO_CHORD, np.int8)
    if spans:
        at_T = np.searchsorted([span.start_s for span in spans], times_T, side="right") - 1
        inside_T = (at_T >= 0) & (times_T < np.array([span.end_s for span in spans])[at_T])
        values_S3 = np.array([[span.root, span.quality, span.bass] for span in spans], np.int8)
        found_3T[:, inside_T] = values_S3[at_T[inside_T]].T
    return found_3T


def _phases_at(beats: Sequence[Beat], times_T: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T,) and (T,): phase in the beat and in the bar, from the times of the beats themselves, so that they follow a tempo that drifts.

    The last beat is taken to be as long as the one before it; before the first and after the last, NaN.
    """
    beat_T, bar_T = np.full(len(times_T), np.nan), np.full(len(times_T), np.nan)
    if len(beats) > 1:
        beats_s = np.array([*(beat.time_s for beat in beats), 2 * beats[-1].time_s - beats[-2].time_s])
        at_T = np.searchsorted(beats_s, times_T, side="right") - 1
        inside_T = (at_T >= 0) & (at_T < len(beats))
        at_T = at_T[inside_T]
        beat_T[inside_T] = (times_T[inside_T] - beats_s[at_T]) / np.diff(beats_s)[at_T]
        bar_beats_B = np.array([beat.bar_beats or np.nan for beat in beats])
        bar_T[inside_T] = (np.array([beat.position for beat in beats])[at_T] + beat_T[inside_T]) / bar_beats_B[at_T]
    return beat_T, bar_T


def parsed_truth(given: Mapping[str, Any]) -> SongTruth:
    """song.json's truth; KeyError, TypeError, ValueError or ModelError when it is not as the corpus writes it."""
    spans = tuple(
        ChordSpan(
            start_s=float(row["start_s"]),
            end_s=float(row["end_s"]),
            root=int(row["root"]),
            quality=quality_number(str(row["quality"])),
            bass=int(row.get("bass", row["root"])),
        )
        for row in given.get("chords", ())
    )
    if not all(0 <= pitch < 12 for span in spans for pitch in (span.root, span.bass)):
        raise ValueError("a chord's root or bass is not 0 to 11")
    _check_spans("chords", spans)
    sections = tuple(
        Section(start_s=float(row["start_s"]), end_s=float(row["end_s"]), label=str(row["name"])) for row in given.get("sections", ())
    )
    _check_spans("sections", sections)
    tempo, style, key, metre = (given.get(name) for name in ("tempo_bpm", "style", "key", "metre"))
    if tempo is not None and not 0 < float(tempo) < math.inf:
        raise ValueError(f"tempo_bpm is {tempo}")
    return SongTruth(
        source="composed",
        chords=spans if "chords" in given else None,
        beats=_beats([float(time_s) for time_s in given.get("beats_s", ())], [float(time_s) for time_s in given.get("downbeats_s", ())]),
        style=None if style is None else str(style),
        tempo_bpm=None if tempo is None else float(tempo),
        key=None if key is None else str(key),
        metre=None if metre is None else str(metre),
        sections=sections,
    )


def _check_spans(name: str, spans: Sequence[ChordSpan | Section]) -> None:
    if not all(math.isfinite(span.start_s) and span.start_s < span.end_s < math.inf for span in spans):
        raise ValueError(f"{name} holds a span that does not end after its start")
    if not all(one.start_s <= other.start_s for one, other in pairwise(spans)):
        raise ValueError(f"{name} are not in order")


def _beats(beats_s: Sequence[float], downbeats_s: Sequence[float]) -> tuple[Beat, ...]:
    """Beats with their place in the bar, by the downbeats among them; bars of unknown length before the first and after the last are as
    long as the nearest that is known."""
    if not all(math.isfinite(time_s) for time_s in beats_s) or not all(one < other for one, other in pairwise(beats_s)):
        raise ValueError("beats_s are not ascending")
    starts = sorted({int(np.argmin(np.abs(np.array(beats_s) - time_s))) for time_s in downbeats_s}) if beats_s else []
    lengths = [after - before for before, after in pairwise(starts)]
    if not lengths:
        return tuple(Beat(time_s=time_s, position=0, bar_beats=0) for time_s in beats_s)
    bars = [(start, length) for start, length in zip(starts, [*lengths, lengths[-1]], strict=True)]
    found = []
    for index, time_s in enumerate(beats_s):
        start, length = next((bar for bar in reversed(bars) if bar[0] <= index), bars[0])
        found.append(Beat(time_s=time_s, position=(index - start) % length, bar_beats=length))
    return tuple(found)
