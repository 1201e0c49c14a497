"""A pitched instrument as a folder of notes, with velocity layers and round robins in their names."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from model.listen import f0
from pipelines.chance import Array, Chance
from pipelines.corpus.score.record import Note, SongRecord, Track
from pipelines.corpus.score.styles import PROGRAMS
from pipelines.corpus.sound.amplifier import AMPLIFIED, amplify
from pipelines.corpus.sound.banks.licence import bank_licence
from pipelines.corpus.sound.banks.samples import SampleName, audio_files, digest, read_name, read_sample, rms

# A word in the folder's name to the instruments that it can be.
_INSTRUMENTS = {
    "guitar": ("crunch_guitar", "lead_guitar", "clean_guitar", "muted_guitar"), "bass": ("finger_bass", "pick_bass", "round_bass"),
    "piano": ("piano",), "sax": ("sax",), "violin": ("fiddle",), "strings": ("strings",), "flute": ("flute",), "organ": ("organ",),
}  # fmt: skip
_NOT_NOTES = ("rel", "release", "fb", "btb", "hammer", "noise")
_SHORT = ("stac", "staccato", "mute")
_RELEASE_S = 0.09
_LOUDNESS_S = 0.2
_SECOND_PLAYER_S = 0.012


@dataclass(frozen=True, kw_only=True)
class Take:
    """The notes of one string set, microphone or playing style."""

    notes: dict[int, dict[int, list[Path]]]
    """Pitch to layer to files, in turn."""

    def choose(self, midi: int, velocity: float, turn: int) -> tuple[Path, float]:
        """A file and the semitones by which it has to be moved."""
        nearest = min(self.notes, key=lambda pitch: (abs(pitch - midi), pitch))
        layers = sorted(self.notes[nearest])
        files = self.notes[nearest][layers[min(len(layers) - 1, int(velocity * len(layers)))]]
        return files[turn % len(files)], float(midi - nearest)


class NoteFolder:
    def __init__(self, folder: Path) -> None:
        files = audio_files(folder)
        names = [name for path in files if (name := read_name(path, folder)) and not _is(name, _NOT_NOTES)]
        if not names:
            raise UserError(
                f"--bank {folder}: no file's name holds a note, such as piano_As3_mf_rr1.ogg: name the notes so, or give another folder"
            )
        octaves = _octaves_off(names)
        self._long = _takes([name for name in names if not _is(name, _SHORT)] or names, octaves)
        self._short = _takes([name for name in names if _is(name, _SHORT)], octaves) or self._long
        self._instruments = instruments_of(folder)
        self.name = f"{folder.name}@{digest(folder, files)}"
        self.licence = bank_licence(folder)

    def plays(self, instrument: str) -> bool:
        return instrument in self._instruments

    def play(self, track: Track, record: SongRecord, samples: int) -> Array:
        chance = Chance("notes", record.band_seed, track.name)
        takes = self._short if track.instrument == "muted_guitar" else self._long
        first = chance.integer(0, len(takes) - 1)
        one = _perform(takes[first], track, samples, chance.integer(0, 3))
        if track.instrument not in AMPLIFIED:
            return one
        left = amplify(one, track.instrument)
        if track.name not in ("chords", "pad") or len(takes) < 2:
            return left
        # Rhythm guitars are played twice, left and right, on two guitars if there are two.
        second = amplify(_perform(takes[(first + 1) % len(takes)], track, samples, chance.integer(0, 3)), track.instrument)
        late = int(_SECOND_PLAYER_S * SAMPLE_RATE_HZ)
        return np.stack([left[0], np.concatenate([np.zeros(late), second[1, : samples - late]])])


def instruments_of(folder: Path) -> tuple[str, ...]:
    """What the words in a folder's name can be."""
    name = folder.name.lower().replace("-", "_").replace(" ", "_")
    exact = tuple(instrument for instrument in PROGRAMS if "_" in instrument and instrument in name)
    if exact:
        return exact
    name = name.replace("bassoon", "").replace("bass_guitar", "bass")
    found = [instrument for word, instruments in _INSTRUMENTS.items() if word in name for instrument in instruments]
    return tuple(found or (instrument for instrument in PROGRAMS if instrument in name))


def _is(name: SampleName, words: tuple[str, ...]) -> bool:
    return any(word in words for word in name.kind.split("/"))


def _takes(names: list[SampleName], octaves: int) -> tuple[Take, ...]:
    kinds: dict[str, dict[int, dict[int, list[Path]]]] = {}
    for name in names:
        kinds.setdefault(name.kind, {}).setdefault(name.midi + 12 * octaves, {}).setdefault(name.layer, []).append(name.path)
    return tuple(Take(notes=notes) for _, notes in sorted(kinds.items()))


def _octaves_off(names: list[SampleName]) -> int:
    """Folders number octaves as they like: three notes of the middle are listened to, and the octave follows."""
    middle = sorted(names, key=lambda name: (name.midi, name.path))[len(names) // 4 :: max(1, len(names) // 6)][:3]
    off = []
    for name in middle:
        _, hz, voiced = f0(read_sample(name.path, 1.5).mean(axis=0))
        if np.any(voiced):
            off.append((69 + 12 * np.log2(np.median(hz[voiced]) / 440) - name.midi) / 12)
    return round(float(np.median(off))) if off else 0


def _perform(take: Take, track: Track, samples: int, turn: int) -> Array:
    out = np.zeros((2, samples))
    for index, note in enumerate(track.notes):
        path, semitones = take.choose(note.midi, note.velocity, turn + index)
        sound = _sound(read_sample(path), semitones, note)
        start = int(note.onset_s * SAMPLE_RATE_HZ)
        stop = min(start + sound.shape[1], samples)
        if stop > start:
            out[:, start:stop] += sound[:, : stop - start]
    return out


def _sound(sample_CN: Array, semitones: float, note: Note) -> Array:
    """The sample at the note's pitch, loudness and length, let go in 90 ms; a slide begins lower."""
    n = sample_CN.shape[1]
    length = int((note.duration_s + _RELEASE_S) * SAMPLE_RATE_HZ)
    ratio = np.full(min(length, int(n / 2 ** (semitones / 12))), 2 ** (semitones / 12))
    if note.slide:
        glide = np.maximum(0, 1 - np.arange(ratio.size) / (0.07 * SAMPLE_RATE_HZ))
        ratio = ratio * 2 ** (note.slide * glide / 12)
    at = np.cumsum(ratio) - ratio[:1]
    moved = (
        np.stack([np.interp(at, np.arange(n), channel) for channel in sample_CN]) if semitones or note.slide else sample_CN[:, : at.size]
    )
    fade = min(int(_RELEASE_S * SAMPLE_RATE_HZ), moved.shape[1])
    shape = np.ones(moved.shape[1])
    shape[moved.shape[1] - fade :] = np.linspace(1, 0, fade) ** 2
    return moved * shape * (note.velocity**1.5 / rms(sample_CN, _LOUDNESS_S))
