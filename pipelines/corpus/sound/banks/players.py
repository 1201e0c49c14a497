"""Two players of soundfonts, in this process: tinysoundfont (exact, small) and FluidSynth's library (all modulators).

Both are asked for audio in whole blocks of 64 samples only: either rounds something to its own blocks, so that other cuts would give
other bytes.
"""

import ctypes
import ctypes.util
import importlib.util
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.corpus.sound.banks.sf2 import DRUM_BANK, Soundfont

BLOCK = 64
_VOICES = 256
_SILENCE_BLOCKS = 2 * SAMPLE_RATE_HZ // BLOCK
_BEND_CENTRE = 8192
_FLUID_WARNING = 2
_FLUID_SETTINGS = {
    b"synth.reverb.active": 0, b"synth.chorus.active": 0, b"synth.cpu-cores": 1, b"synth.dynamic-sample-loading": 1,
    b"synth.polyphony": _VOICES,
}  # fmt: skip
BEND_SEMITONES = 2.0
# Its own dependency pyaudio wants PortAudio's headers and is never imported.
TINY_REMEDY = "pip install --no-deps tinysoundfont, or take --bank numpy"
NO_WHEEL = "tinysoundfont has no wheel for Python 3.13 yet: use Python 3.11 or 3.12, or take --bank numpy"
FLUIDSYNTH_REMEDY = "install FluidSynth's library (Debian, Ubuntu: apt-get install libfluidsynth3), or take --bank numpy"


class Player(Protocol):
    """One part at a time; `select` begins it in silence, whatever sounded before."""

    def select(self, bank: int, program: int) -> None: ...

    def note_on(self, midi: int, velocity: float) -> None:
        """`velocity` from 0 to 1."""

    def note_off(self, midi: int) -> None: ...

    def bend(self, semitones: float) -> None: ...

    def render(self, blocks: int) -> NDArray[np.float32]:
        """The next blocks of 64 samples, shape (64 * blocks, 2)."""


class TinyPlayer:
    """tinysoundfont plays velocity linearly in amplitude and no modulators: velocity is squared here, as the standard's default is."""

    def __init__(self, path: Path) -> None:
        import tinysoundfont

        self._synth = tinysoundfont.Synth(gain=0, samplerate=SAMPLE_RATE_HZ)
        try:
            self._font = self._synth.sfload(str(path), gain=0, max_voices=_VOICES)
        except Exception as error:
            raise UserError(f"--bank {path}: tinysoundfont cannot read this font ({error}): copy it again, or give another") from error
        self._channel = 0

    def select(self, bank: int, program: int) -> None:
        self._synth.sounds_off()
        self.render(_SILENCE_BLOCKS)
        self._channel = 9 if bank == DRUM_BANK else 0
        self._synth.program_select(self._channel, self._font, bank, program, bank == DRUM_BANK)
        self._synth.pitchbend_range(self._channel, BEND_SEMITONES)
        self.bend(0.0)

    def note_on(self, midi: int, velocity: float) -> None:
        self._synth.soundfonts[self._font].channel_note_on(self._channel, midi, velocity**2)

    def note_off(self, midi: int) -> None:
        self._synth.noteoff(self._channel, midi)

    def bend(self, semitones: float) -> None:
        self._synth.pitchbend(self._channel, _wheel(semitones))

    def render(self, blocks: int) -> NDArray[np.float32]:
        audio_N2 = np.zeros((blocks * BLOCK, 2), np.float32)
        if blocks:
            self._synth.generate_simple(blocks * BLOCK, buffer=audio_N2.view(np.uint8).reshape(-1).data)
        return audio_N2


class FluidPlayer:
    """FluidSynth 2, without its reverberation and chorus; a preset's samples are loaded when it is first chosen.

    Its voices sound otherwise the first time that they are used: the font stays, but each part has a synthesiser of its own.
    """

    def __init__(self, path: Path) -> None:
        library = fluidsynth_library()
        if library is None:
            raise UserError(f"--bank {path} needs FluidSynth for its velocity rules, and its library is not here: {FLUIDSYNTH_REMEDY}")
        self._library = library
        self._settings = library.new_fluid_settings()
        for name, number in _FLUID_SETTINGS.items():
            library.fluid_settings_setint(self._settings, name, number)
        library.fluid_settings_setnum(self._settings, b"synth.gain", 0.5)
        library.fluid_settings_setnum(self._settings, b"synth.sample-rate", float(SAMPLE_RATE_HZ))
        holder = library.new_fluid_synth(self._settings)  # it read the font, whose samples are loaded through it: it stays
        number = library.fluid_synth_sfload(holder, str(path).encode(), 1)
        if number < 0:
            raise UserError(f"--bank {path}: FluidSynth cannot read this font: copy it again, or give another")
        self._font = library.fluid_synth_get_sfont_by_id(holder, number)
        library.fluid_synth_remove_sfont(holder, self._font)
        self._synth: int | None = None
        self._path, self._channel = path, 0
        self._held: Counter[int] = Counter()

    def select(self, bank: int, program: int) -> None:
        library = self._library
        if self._synth is not None:
            library.fluid_synth_remove_sfont(self._synth, self._font)
            library.delete_fluid_synth(self._synth)
        self._synth = library.new_fluid_synth(self._settings)
        number = library.fluid_synth_add_sfont(self._synth, self._font)
        self._channel = 9 if bank == DRUM_BANK else 0
        if library.fluid_synth_program_select(self._synth, self._channel, number, bank, program) < 0:
            raise UserError(f"--bank {self._path}: no bank {bank}, program {program} in FluidSynth: copy the font again, or give another")
        self._held.clear()

    def note_on(self, midi: int, velocity: float) -> None:
        self._held[midi] += 1
        self._library.fluid_synth_noteon(self._synth, self._channel, midi, max(1, min(127, round(127 * velocity))))

    def note_off(self, midi: int) -> None:
        # A player may strike a note again before it has ended, and FluidSynth would end both.
        self._held[midi] -= 1
        if not self._held[midi]:
            self._library.fluid_synth_noteoff(self._synth, self._channel, midi)

    def bend(self, semitones: float) -> None:
        self._library.fluid_synth_pitch_bend(self._synth, self._channel, _wheel(semitones))

    def render(self, blocks: int) -> NDArray[np.float32]:
        n = blocks * BLOCK
        sides = np.zeros((2, max(n, 1)), np.float32)
        if n:
            self._library.fluid_synth_write_float(self._synth, n, sides[0].ctypes.data, 0, 1, sides[1].ctypes.data, 0, 1)
        return np.ascontiguousarray(sides[:, :n].T)


def _wheel(semitones: float) -> int:
    """A bend within ±2 semitones as MIDI's 14 bits."""
    return max(0, min(2 * _BEND_CENTRE - 1, _BEND_CENTRE + round(semitones / BEND_SEMITONES * _BEND_CENTRE)))


@lru_cache(maxsize=1)
def fluidsynth_library() -> Any:
    """FluidSynth's shared library with its signatures, or None where it is not installed."""
    name = ctypes.util.find_library("fluidsynth") or "libfluidsynth.so.3"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[Any, ...]] = {
        "fluid_set_log_function": (handle, number, handle, handle),
        "new_fluid_settings": (handle,),
        "fluid_settings_setint": (number, handle, text, number),
        "fluid_settings_setnum": (number, handle, text, ctypes.c_double),
        "new_fluid_synth": (handle, handle),
        "fluid_synth_sfload": (number, handle, text, number),
        "fluid_synth_get_sfont_by_id": (handle, handle, number),
        "fluid_synth_add_sfont": (number, handle, handle),
        "fluid_synth_remove_sfont": (number, handle, handle),
        "delete_fluid_synth": (None, handle),
        "fluid_synth_program_select": (number, handle, number, number, number, number),
        "fluid_synth_noteon": (number, handle, number, number, number),
        "fluid_synth_noteoff": (number, handle, number, number),
        "fluid_synth_pitch_bend": (number, handle, number, number),
        "fluid_synth_write_float": (number, handle, number, handle, number, number, handle, number, number),
    }
    for function, (result, *arguments) in signatures.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    library.fluid_set_log_function(_FLUID_WARNING, None, None)  # it warns of each channel that has no font yet
    return library


def needs_fluidsynth(font: Soundfont) -> bool:
    """Fonts whose levels rest on modulators need a player of modulators; FluidR3's own are cosmetic, and tinysoundfont plays it well."""
    return font.modulators > 0 and not font.path.name.lower().startswith("fluidr3")


def missing_player(font: Soundfont) -> str | None:
    """What is missing to play this font, with its remedy; None where all is there."""
    if needs_fluidsynth(font):
        return None if fluidsynth_library() else f"FluidSynth's library is not here: {FLUIDSYNTH_REMEDY}"
    if importlib.util.find_spec("tinysoundfont"):
        return None
    return NO_WHEEL if sys.version_info >= (3, 13) else f"the package tinysoundfont is not installed: {TINY_REMEDY}"
