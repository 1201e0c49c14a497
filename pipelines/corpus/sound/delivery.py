"""How a song is delivered by a voice that sings words: verses half spoken, choruses sung twice."""

from dataclasses import replace

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance
from pipelines.corpus.score.record import SongRecord, VocalNote
from pipelines.corpus.sound.dsp import db
from pipelines.corpus.sound.mix import active_rms

_SPOKEN_SONGS, _DOUBLED_SONGS = 0.15, 0.4
# Speech lies low in a voice and falls from a line's start to its end.
_SPEECH_OVER_LOWEST, _SPEECH_FALL, _SPEECH_STRAY = 3.0, 6.0, 2.0
SECOND_TAKE_SEED = 1_000_000_000
"""Added to the song's seed in a second take: other chances, the same singer (`singer_seed`)."""
_DOUBLE_DB = (-13.0, -8.0)
_DOUBLE_LATE_S, _DOUBLE_OFF_SEMITONES = 0.018, 0.07


def speak_verses(record: SongRecord) -> SongRecord:
    """The record with its verses spoken, in one song of seven; others as they are.

    A spoken note keeps its time and its words, and leaves the melody: `midi` is then the semitone that its speech is nearest to.
    """
    verses = [(part.start_s, part.end_s) for part in record.sections if part.name == "verse"]
    chance = Chance("delivery", record.seed)
    spoken = {note.phrase for note in record.vocal if any(start <= note.score_onset_s < end for start, end in verses)}
    if not chance.happens(_SPOKEN_SONGS) or len(spoken) == len({note.phrase for note in record.vocal}):
        return record
    notes: list[VocalNote] = []
    for phrase in sorted({note.phrase for note in record.vocal}):
        words = [note for note in record.vocal if note.phrase == phrase]
        if phrase not in spoken:
            notes += words
            continue
        for index, note in enumerate(words):
            height = _SPEECH_OVER_LOWEST + _SPEECH_FALL * (0.5 - (index + 1) / len(words)) + chance.spread(_SPEECH_STRAY)
            notes.append(replace(note, midi=round(record.voice.low_midi + height), spoken=True))
    return replace(record, vocal=tuple(notes))


def doubled_part(record: SongRecord) -> SongRecord | None:
    """The choruses as the same singer sings them a second time: a little apart in time and pitch. None for a song without doubles."""
    choruses = [(part.start_s, part.end_s) for part in record.sections if part.name == "chorus"]
    chance = Chance("doubles", record.seed)
    notes = [note for note in record.vocal if any(start <= note.score_onset_s < end for start, end in choruses)]
    if not chance.happens(_DOUBLED_SONGS) or not notes:
        return None
    again: list[VocalNote] = []
    late_s = off = 0.0
    for index, note in enumerate(notes):
        if not index or note.phrase != notes[index - 1].phrase:
            late_s, off = chance.spread(_DOUBLE_LATE_S), chance.spread(_DOUBLE_OFF_SEMITONES)
        moved = replace(note, onset_s=note.onset_s + late_s, offset_s=note.offset_s + late_s)
        again.append(replace(moved, midi=note.midi + off))  # type: ignore[arg-type]  # the singer takes any pitch
    return replace(record, vocal=tuple(again), seed=record.seed + SECOND_TAKE_SEED)


def singer_seed(record: SongRecord) -> int:
    """Of the song, whichever take of it the record is: two takes are of one person."""
    return record.seed % SECOND_TAKE_SEED


def beside(lead: Array, double: Array, seed: int) -> Array:
    """The second take beside the placed lead (level 1), heard from both sides, the right one a little later: shape (2, n) to add."""
    chance = Chance("double's place", seed)
    level = db(chance.uniform(*_DOUBLE_DB)) / max(active_rms(lead[None]), 1e-9)
    late = int(chance.uniform(0.008, 0.016) * SAMPLE_RATE_HZ)
    double = np.where(np.arange(double.size) < np.argmax(np.abs(lead) > 0), 0.0, double)
    right = np.concatenate([np.zeros(late), double[: double.size - late]])
    return level * np.stack([double, right])
