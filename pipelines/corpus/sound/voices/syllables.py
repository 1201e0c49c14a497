"""A singer of recorded syllables: a folder of consonant and vowel pairs, moved to the melody by WORLD.

Words are English and the syllables Japanese: each sound is taken from the syllable that is nearest.
Shapes: T frames of 5 ms, D bins, N samples.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance, noise
from pipelines.corpus.score.record import SongRecord, VocalNote
from pipelines.corpus.sound.banks.licence import bank_licence
from pipelines.corpus.sound.banks.samples import audio_files, digest
from pipelines.corpus.sound.delivery import singer_seed
from pipelines.corpus.sound.dsp import hertz
from pipelines.corpus.sound.mix import active_rms
from pipelines.corpus.sound.phones import nucleus
from pipelines.corpus.sound.voice import F0_RATE_HZ, pitch_curve
from pipelines.corpus.sound.voices.breath import air, breaths
from pipelines.corpus.sound.voices.lines import lines_of
from pipelines.corpus.sound.voices.world import FRAME_S, Syllable, analyse, check_syllable, missing, sound

_OPTION = "--voice syllables:"
_VOWELS = {
    "AA": "a", "AE": "a", "AH": "a", "AO": "o", "EH": "e", "ER": "a", "IH": "i", "IY": "i", "UH": "u", "UW": "u", "AY": "ai", "EY": "ei",
    "OW": "ou", "AW": "au", "OY": "oi",
}  # fmt: skip
_CONSONANTS = {
    "B": "b", "CH": "ch", "D": "d", "DH": "z", "F": "f", "G": "g", "HH": "h", "JH": "j", "K": "k", "L": "r", "M": "m", "N": "n", "NG": "n",
    "P": "p", "R": "r", "S": "s", "SH": "sh", "T": "t", "TH": "s", "V": "b", "W": "w", "Y": "y", "Z": "z", "ZH": "j",
}  # fmt: skip
_FADE, _GLIDE = 6, 20
_GLIDE_AT = 0.62
_ATTACK = 8
_CONSONANT_SHARE = 0.4
_SHORTEST_HEAD = 4
_WANDER = 1.5
_RELEASE_DB = -30.0
_USUAL_VELOCITY = 0.88
_TILT_FROM_HZ, _POWER_BELOW_HZ = 300.0, 5_000.0
_MOST_KEPT = 2.8
_SILENCE = np.log(1e-16)


Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Piece:
    """Frames of one syllable, in order: where they lie on the song's frames, and which they are (fractional)."""

    source: Syllable
    start: int
    position: Array
    fade: int


class SyllableSinger:
    performs = True

    def __init__(self, folder: Path) -> None:
        """Raises: UserError for a folder without syllables, a file that is no audio or holds no sound, or no vocoder."""
        files = audio_files(folder, _OPTION) if folder.is_dir() else []
        self._files = {path.stem.lower(): path for path in files}
        lacking = [vowel for vowel in "aiueo" if vowel not in self._files]
        if lacking:
            raise UserError(
                f"{_OPTION}{folder}: no syllables, there is no file {', '.join(lacking)}: give a folder of sung syllables in Latin "
                "letters, a.ogg, ka.ogg, shi.ogg (.ogg, .flac or .wav)"
            )
        for file in files:
            check_syllable(file)
        lacks = missing()
        if lacks:
            raise UserError(f"{_OPTION}{folder}: {lacks}")
        self.licence = bank_licence(folder)
        self.name = f"syllables {folder.name}@{digest(folder, files)}"

    def timbre(self, record: SongRecord) -> dict[str, float]:
        chance = Chance("timbre", singer_seed(record))
        return {
            "formants": round(record.voice.tract * chance.uniform(0.97, 1.03), 4),
            "tilt_db_per_octave": round(4.0 * (0.85 - record.voice.tilt), 4),
            "breath_db": round(record.voice.breathiness_db + 40.0, 4),
        }

    def sing(self, record: SongRecord, samples: int) -> tuple[Array, Array]:
        f0_hz = hertz(pitch_curve(record, samples))
        voiced = np.zeros(f0_hz.size, bool)
        out = np.zeros(samples)
        starts_s: list[float] = []
        for index, notes in enumerate(lines_of(record.vocal)):
            pieces = self._pieces(notes, f"{record.seed}/{index}")
            start, stop = pieces[0].start, max(piece.start + piece.position.size for piece in pieces)
            log_power, aperiodicity, voiced_T = _joined(pieces, start, stop)
            inside = np.clip(np.arange(start, stop), 0, f0_hz.size - 1)
            log_power = _shaped(log_power, self.timbre(record), _dynamics(notes, start, stop))
            log_power += np.where(voiced_T, _kept(log_power, f0_hz[inside]), 0.0).astype(np.float32)[:, None]
            aperiodicity *= np.float32(10 ** (self.timbre(record)["breath_db"] / 20))
            aperiodicity[~voiced_T] = 1.0
            audio = sound(np.where(voiced_T, f0_hz[inside], 0.0), log_power, aperiodicity)
            at = round(start * FRAME_S * SAMPLE_RATE_HZ)
            skip, end = max(0, -at), min(audio.size, samples - at)
            out[at + skip : at + end] += audio[skip:end]
            voiced[inside] |= voiced_T
            starts_s.append(start * FRAME_S)
        out += air(out, record.seed)
        out += breaths(record, starts_s, active_rms(out[None]), samples)
        out[: max(0, int((record.vocal[0].onset_s - 0.7) * SAMPLE_RATE_HZ))] = 0.0
        return out, np.where(voiced, f0_hz, 0.0)

    def _consonant(self, phone: str, vowel: str) -> Syllable | None:
        """The recorded syllable whose head is nearest to a consonant, before the same vowel where there is one."""
        for follower in (vowel, *"aoeui"):
            path = self._files.get(_CONSONANTS[phone] + follower)
            if path is not None:
                return analyse(path)
        return None

    def _pieces(self, notes: list[VocalNote], name: str) -> list[_Piece]:
        """A line laid out: consonants at their own pace before the note, vowels from the note on, at the end the consonants that close."""
        pieces: list[_Piece] = []
        starts = [round(note.onset_s / FRAME_S) for note in notes]
        ends = [*starts[1:], round(notes[-1].offset_s / FRAME_S)]
        heads: list[list[Syllable]] = []
        tails: list[list[Syllable]] = []
        for note in notes:
            centre = nucleus(note.phones)
            vowel = _VOWELS[note.phones[centre]]
            heads.append([found for phone in note.phones[:centre] if (found := self._consonant(phone, vowel[0]))])
            tails.append([found for phone in note.phones[centre + 1 :] if (found := self._consonant(phone, "u"))])
        for index, note in enumerate(notes):
            vowel = _VOWELS[note.phones[nucleus(note.phones)]]
            room = ends[index - 1] - starts[index - 1] if index else 10**6
            pieces += _heads(heads[index], starts[index], _CONSONANT_SHARE * room)
            following = heads[index + 1] if index + 1 < len(notes) else []
            length = ends[index] - starts[index]
            behind = sum(syllable.vowel for syllable in following)
            closing = sum(syllable.vowel for syllable in tails[index])
            stop = ends[index] - min(round(_CONSONANT_SHARE * length), behind) - min(round(0.25 * length), closing)
            own = heads[index][-1] if heads[index] and self._has(note, vowel[0]) else analyse(self._files[vowel[0]])
            pieces += _vowel(own, starts[index], stop, f"{name}/{index}")
            if len(vowel) > 1:
                turn = starts[index] + round(_GLIDE_AT * (stop - starts[index]))
                pieces += _vowel(
                    analyse(self._files[vowel[1]]), turn, stop, f"{name}/{index}+", fade=min(_GLIDE, stop - turn), attack=False
                )
            pieces += _heads(tails[index], ends[index] - min(round(_CONSONANT_SHARE * length), behind), 0.25 * length)
        return pieces

    def _has(self, note: VocalNote, vowel: str) -> bool:
        """Whether the note's last consonant was recorded before its vowel."""
        return _CONSONANTS[note.phones[nucleus(note.phones) - 1]] + vowel in self._files


def _heads(syllables: list[Syllable], stop: int, room: float) -> list[_Piece]:
    """Consonants one after the other until frame `stop`, shortened where they have not the room."""
    scale = min(1.0, room / max(sum(syllable.vowel for syllable in syllables), 1))
    lengths = [max(_SHORTEST_HEAD, round(scale * syllable.vowel)) for syllable in syllables]
    pieces, start = [], stop - sum(lengths)
    for syllable, length in zip(syllables, lengths, strict=True):
        # Shortened ones keep their end, where the burst is.
        position = np.arange(length + _FADE) + max(0.0, syllable.vowel - length)
        pieces.append(_Piece(syllable, start, np.minimum(position, syllable.vowel + _FADE), _FADE))
        start += length
    return pieces


def _vowel(source: Syllable, start: int, stop: int, name: str, *, fade: int = _FADE, attack: bool = True) -> list[_Piece]:
    """A vowel from `start` to `stop` and a fade more: its attack as recorded, its middle to and fro for as long as it takes."""
    size = max(stop - start, _SHORTEST_HEAD) + _FADE
    head = min(_ATTACK, size) if attack else 0
    low = min(source.vowel + _ATTACK, source.end)
    high = max(low + 1, source.end - 2)
    rest = size - head
    turns = max(1.0, np.ceil(rest / (high - low)))
    middle = low + (high - low) * (0.5 - 0.5 * np.cos(np.pi * turns * np.linspace(0, 1, rest))) if rest else np.zeros(0)
    wander = np.convolve(noise(rest + 20, "wander", name), np.hanning(21) / 2, "valid")[:rest]
    position = np.concatenate([source.vowel + np.arange(head), middle + _WANDER * wander])
    return [_Piece(source, start, position, fade)]


def _joined(pieces: list[_Piece], start: int, stop: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """One piece after another, each faded in over what the last left behind its end."""
    bins = pieces[0].source.log_power_TD.shape[1]
    log_power = np.full((stop - start, bins), _SILENCE, np.float32)
    aperiodicity = np.ones((stop - start, bins), np.float32)
    voiced = np.zeros(stop - start, bool)
    written = np.zeros(stop - start, bool)
    for piece in pieces:
        position = np.clip(piece.position, 0, piece.source.voiced_T.size - 1.001)
        low, share = position.astype(int), (position % 1).astype(np.float32)[:, None]
        power = piece.source.log_power_TD[low] * (1 - share) + piece.source.log_power_TD[low + 1] * share
        rough = piece.source.aperiodicity_TD[low] * (1 - share) + piece.source.aperiodicity_TD[low + 1] * share
        at = slice(piece.start - start, piece.start - start + position.size)
        fading = np.clip((np.arange(position.size) + 1) / max(piece.fade, 1), 0, 1)[:, None]
        fading = np.where(written[at][:, None], fading, 1.0).astype(np.float32)
        log_power[at] += fading * (power - log_power[at])
        aperiodicity[at] += fading * (rough - aperiodicity[at])
        voiced[at] = piece.source.voiced_T[low]
        written[at] = True
    release = np.linspace(0, _RELEASE_DB, 2 * _FADE)[:, None] / 10 * np.log(10)
    log_power[-2 * _FADE :] += release.astype(np.float32)[-log_power.shape[0] :]
    return log_power, aperiodicity, voiced


def _dynamics(notes: list[VocalNote], start: int, stop: int) -> Array:
    """Nepers of power, from the notes' velocities."""
    centres = [(note.onset_s + note.offset_s) / 2 / FRAME_S for note in notes]
    return np.interp(np.arange(start, stop), centres, [2 * np.log(note.velocity / _USUAL_VELOCITY) for note in notes])


def _shaped(log_power_TD: Floats, timbre: dict[str, float], gain_T: Array) -> Floats:
    """Spectra in the song's timbre, bins moved by its formants and tilted; gain_T are nepers of power to add."""
    bins = log_power_TD.shape[1]
    at = np.minimum(np.arange(bins) / timbre["formants"], bins - 1.001)
    low, share = at.astype(int), (at % 1).astype(np.float32)
    octaves = np.log2(np.maximum(np.arange(bins) * _bin_hz(bins), _TILT_FROM_HZ) / _TILT_FROM_HZ)
    tilt = (timbre["tilt_db_per_octave"] / 10 * np.log(10) * octaves).astype(np.float32)
    return log_power_TD[:, low] * (1 - share) + log_power_TD[:, low + 1] * share + tilt + gain_T.astype(np.float32)[:, None]


def _kept(log_power_TD: Floats, f0_hz_T: Array) -> Array:
    """Nepers that keep a frame's power whatever harmonics its note puts under the envelope: a sum over bins against one over harmonics."""
    bins = log_power_TD.shape[1]
    top = int(_POWER_BELOW_HZ / _bin_hz(bins))
    power_TD = np.exp(log_power_TD[:, :top])
    rows, sounding = np.arange(f0_hz_T.size), np.zeros(f0_hz_T.size)
    for harmonic in range(1, int(_POWER_BELOW_HZ / f0_hz_T.min()) + 1):
        at = (harmonic * f0_hz_T / _bin_hz(bins)).round().astype(int)
        sounding += np.where(at < top, power_TD[rows, np.minimum(at, top - 1)], 0.0)
    kept = np.log(power_TD.sum(axis=1) * _bin_hz(bins) / np.maximum(sounding * f0_hz_T, 1e-12))
    return scipy.ndimage.uniform_filter1d(np.clip(kept, -_MOST_KEPT, _MOST_KEPT), 2 * _FADE, mode="nearest")


def _bin_hz(bins: int) -> float:
    return SAMPLE_RATE_HZ / 2 / (bins - 1)


assert F0_RATE_HZ * FRAME_S == 1, "a frame is a step of the pitch curve"
