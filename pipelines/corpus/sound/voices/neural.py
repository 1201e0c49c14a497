"""The neural singer: a line is spoken once by the network, its vowels are stretched onto the notes, and the melody takes its F0's place.

Shapes: T frames of speech, S frames of song (12.5 ms), N samples.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soxr
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, noise
from pipelines.corpus.score.record import SongRecord, VocalNote
from pipelines.corpus.sound.dsp import hertz
from pipelines.corpus.sound.mix import active_rms
from pipelines.corpus.sound.phones import nucleus
from pipelines.corpus.sound.voice import F0_RATE_HZ, pitch_curve
from pipelines.corpus.sound.voices.alignment import Span, stretch, vowel_spans
from pipelines.corpus.sound.voices.breath import air, breaths
from pipelines.corpus.sound.voices.lines import lines_of
from pipelines.corpus.sound.voices.speech_network import (
    BINS,
    BUNDLED,
    FRAME_S,
    PACKAGE,
    RATE_HZ,
    VERSION,
    Floats,
    Frames,
    is_man,
    open_network,
    say,
    sound,
)  # fmt: skip
from pipelines.corpus.sound.voices.timbre import Timbre, shaped, timbre_of

_PHONEMES = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "ER": "ɜɹ", "EY": "A", "IH": "ɪ", "IY": "i", "OW": "O",
    "OY": "Y", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð", "F": "f", "G": "ɡ", "HH": "h", "JH": "ʤ", "K": "k", "L": "l",
    "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z",
    "ZH": "ʒ",
}  # fmt: skip
_STRESS = "ˈ"
_LEAD = 3.5
_VOWEL_BINS = slice(10, 175)
_UNVOICED_DB = 20.0
_AUDIBLE_DB = 12.0
_EARLIEST = 20
_LATEST = 16
_FADE_S = 0.06
_EVENED, _EVENED_DB = 0.7, 9.0
# Formants of the packages' speakers beside a grown man's, as of `Voice.tract`.
_MAN_TRACT, _WOMAN_TRACT = 1.0, 1.16
_USUAL_VELOCITY = 0.88
_NEPER_DB = 20 / np.log(10)


@dataclass(frozen=True)
class _SpokenLine:
    frames: Frames
    vowels: list[Span]
    first: int
    """Where its sound starts and ends, in frames."""
    last: int
    evening: Array
    """Nepers for each vowel: speech stresses some three times as loud as others, singing does not."""


class NeuralSinger:
    licence = ""
    performs = True

    def __init__(self, voice: str = BUNDLED) -> None:
        """Raises: UserError when the voice's network is not on this machine or cannot be read."""
        open_network(voice)
        self.voice = voice
        self.name = f"{PACKAGE} {VERSION} {voice}"
        self._tract = _MAN_TRACT if is_man(voice) else _WOMAN_TRACT

    def timbre(self, record: SongRecord) -> dict[str, float]:
        return timbre_of(record, self._tract).as_figures()

    def sing(self, record: SongRecord, samples: int) -> tuple[Array, Array]:
        timbre = timbre_of(record, self._tract)
        f0_hz = hertz(pitch_curve(record, samples))
        voiced = np.zeros(f0_hz.size, bool)
        out = np.zeros(int(samples * RATE_HZ / SAMPLE_RATE_HZ) + 1, np.float32)
        starts_s: list[float] = []
        for index, notes in enumerate(lines_of(record.vocal)):
            audio, voiced_S, origin_s = _sing_line(notes, f0_hz, timbre, self.voice, f"{record.seed}/{index}")
            starts_s.append(origin_s)
            _add(out, audio, round(origin_s * RATE_HZ))
            times = np.arange(f0_hz.size) / F0_RATE_HZ - origin_s
            inside = (times >= 0) & (times < voiced_S.size * FRAME_S)
            voiced[inside] |= voiced_S[(times[inside] / FRAME_S).astype(int)]
        dry = np.zeros(samples)
        wide = soxr.resample(out.astype(np.float64), RATE_HZ, SAMPLE_RATE_HZ, quality="HQ")[:samples]
        dry[: wide.size] = wide
        dry += air(dry, record.seed)
        dry += breaths(record, starts_s, active_rms(dry[None]), samples)
        dry[: max(0, int((record.vocal[0].onset_s - 0.7) * SAMPLE_RATE_HZ))] = 0.0
        return dry, np.where(voiced, f0_hz, 0.0)


def _add(out: Floats, audio: Floats, start: int) -> None:
    """Into `out`, as far as it reaches, with soft ends."""
    fade = int(_FADE_S * RATE_HZ)
    audio = audio.copy()
    audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    audio[:64] *= np.linspace(0, 1, 64, dtype=np.float32)
    skip, stop = max(0, -start), min(audio.size, out.size - start)
    if stop > skip:
        out[start + skip : start + stop] += audio[skip:stop]


def _sing_line(notes: list[VocalNote], f0_hz: Array, timbre: Timbre, voice: str, name: str) -> tuple[Floats, NDArray[np.bool_], float]:
    """The line's audio at 24 kHz, which of its frames are voiced, and when it starts."""
    line = _spoken(tuple(note.phones for note in notes), voice)
    times_s = [(note.onset_s, note.offset_s) for note in notes]
    position, origin_s = stretch(line.vowels, times_s, first=line.first, last=line.last, frame_s=FRAME_S, name=name)
    frames = _at(line.frames, position)
    voiced = frames.voiced.copy()
    for span in line.vowels:
        voiced |= (position >= span.start) & (position <= span.end)
    middles_s = origin_s + (np.arange(position.size) + 0.5) * FRAME_S
    pitch = np.interp(middles_s, np.arange(f0_hz.size) / F0_RATE_HZ, f0_hz)
    # Under one envelope higher notes have fewer harmonics: their power is kept.
    spoken_hz = np.where(frames.voiced, frames.f0_T, 200.0)
    power = np.where(voiced, 0.5 * np.log(pitch / spoken_hz), 0.0)
    centres_s = [(start_s + end_s) / 2 for start_s, end_s in times_s]
    dynamics = np.interp(middles_s, centres_s, np.log([note.velocity / _USUAL_VELOCITY for note in notes]) + line.evening)
    phases = (noise(BINS * position.size, "phases", name) * np.pi).reshape(BINS, -1).astype(np.float32)
    shape = shaped(frames, timbre, voiced_T=voiced, f0_hz_T=pitch, gain_T=power + dynamics, phases_FT=phases)
    return sound(shape, np.where(voiced, pitch, 0.0), name), voiced, origin_s


@lru_cache(maxsize=32)
def _spoken(syllables: tuple[tuple[str, ...], ...], voice: str) -> _SpokenLine:
    """A line as the network speaks it, with each syllable's vowel found."""
    phonemes, vowel_at = "", []
    for index, phones in enumerate(syllables):
        centre = nucleus(phones)
        onset, vowel, coda = (
            "".join(_PHONEMES[phone] for phone in part) for part in (phones[:centre], phones[centre : centre + 1], phones[centre + 1 :])
        )
        phonemes += onset + (_STRESS if index % 2 == 0 else "")
        vowel_at.append((len(phonemes), len(phonemes) + len(vowel)))
        phonemes += vowel + coda
    frames, slots = say(phonemes, voice)
    end = int(slots[-1])
    loud = np.log(np.exp(frames.harmonic_FT[_VOWEL_BINS]).sum(axis=0) + 1e-3) * _NEPER_DB
    level = np.convolve(np.where(frames.voiced, loud, loud - _UNVOICED_DB), (0.25, 0.5, 0.25), "same")
    level[end:] = -60.0
    vowels = vowel_spans(level, [(slots[start] + slots[stop]) / 2 - _LEAD for start, stop in vowel_at])
    heard = np.log(np.exp(frames.harmonic_FT).sum(axis=0) + np.exp(frames.free_FT).sum(axis=0)) * _NEPER_DB > _AUDIBLE_DB
    first = int(np.argmax(heard)) - 1 if heard.any() else 0
    first = min(max(0, first, vowels[0].start - _EARLIEST), vowels[0].start)
    last = min(max(end - round(_LEAD), vowels[-1].end + 4), vowels[-1].end + _LATEST, frames.f0_T.size - 1)
    levels = np.array([loud[vowel.start : vowel.end + 1].mean() for vowel in vowels])
    evening = np.clip(_EVENED * (np.median(levels) - levels), -_EVENED_DB, _EVENED_DB) / _NEPER_DB
    return _SpokenLine(frames, vowels, first, last, evening)


def _at(frames: Frames, position: Array) -> Frames:
    """Frames at fractional places: levels between the two nearest, phases and F0 of the nearest."""
    position = np.clip(position, 0, frames.f0_T.size - 1)
    low = np.minimum(position.astype(int), frames.f0_T.size - 2)
    share, near = (position - low).astype(np.float32), np.round(position).astype(int)

    def mix(values_FT: Floats) -> Floats:
        return values_FT[:, low] * (1 - share) + values_FT[:, low + 1] * share

    return Frames(
        harmonic_FT=mix(frames.harmonic_FT),
        phase_FT=mix(frames.phase_FT),
        noise_FT=mix(frames.noise_FT),
        free_FT=mix(frames.free_FT),
        free_phase_FT=frames.free_phase_FT[:, near],
        f0_T=frames.f0_T[near],
    )
