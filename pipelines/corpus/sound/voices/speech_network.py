"""The network of hibari-tts 0.2 (Apache-2.0), read from the installed package: phonemes to spectra, 80 frames a second, at 24 kHz.

It is distilled from Kokoro-82M. Its sound is the sum of three branches: exp(harmonic) on a train of pulses at F0, exp(noise) on noise,
and exp(free) with phases of its own, which carries unvoiced consonants. The last step takes F0 from outside: a melody can be its F0.

Shapes: F bins of 20 Hz (601), T frames of 12.5 ms, L phonemes. Levels are natural logarithms of magnitudes.
"""

import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError
from pipelines.chance import Array, noise

RATE_HZ = 24_000
FRAME_S = 0.0125
BIN_HZ = 20.0
BINS = 601
PACKAGE, VERSION = "hibari-tts", "0.2.1"
BUNDLED = "heart"
REMEDY = f'pip install "{PACKAGE}=={VERSION}" onnxruntime, or take --voice numpy'
# Of natural speech; slower, its phonemes are clearer, and its vowels leave more to stretch.
_PACE = 0.8
_OUTPUTS = ("lh", "theta", "ln", "lr", "phi", "f0")
_DURATIONS = "/Sub_output_0"
# The network swallows the last word that it is given, and the last before a pause: these follow every line at once. Lips close on it.
_CARRIER = "pˈʌ ðˈɛn."
_FRAMES_PER_UNIT = 2
_VOICED_HZ = 60.0

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What a line sounds like."""

    harmonic_FT: Floats
    phase_FT: Floats
    """Of the harmonics, as the inverse hyperbolic tangent of a share of π."""
    noise_FT: Floats
    free_FT: Floats
    free_phase_FT: Floats
    f0_T: Floats
    """Of the speech, in Hz; 0 where unvoiced."""

    @property
    def voiced(self) -> NDArray[np.bool_]:
        return self.f0_T > _VOICED_HZ


def missing() -> str | None:
    """What the neural voice lacks on this machine, with its remedy; None where it can sing."""
    for module in ("hibari", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            return f"{PACKAGE if module == 'hibari' else module} is not installed: {REMEDY}"
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # another module of that name
        return f"{PACKAGE} is not installed: {REMEDY}"
    if found != VERSION:
        return f"{PACKAGE} {found} is installed, and only the network of {VERSION} is known: {REMEDY}"
    return None


def _file_of(voice: str) -> Path:
    """Where a voice's network lies: one is in the package, the others are files that the package's own command downloads.

    Raises: UserError for a voice that the package does not know, or that is not on this machine.
    """
    from hibari.voices import VOICES, voice_path

    if voice not in VOICES:
        raise UserError(f"--voice neural:{voice}: {PACKAGE} has no such voice; it has {', '.join(VOICES)}")
    try:
        return Path(voice_path(voice, download_missing=False))
    except FileNotFoundError as error:
        raise UserError(
            f"--voice neural:{voice}: its network is not on this machine ({error}): download it once with "
            f"hibari --voice {voice} la -o la.wav, or take --voice neural"
        ) from error


def is_man(voice: str) -> bool:
    from hibari.voices import VOICES

    return bool(VOICES[voice]["gender"] == "male")


@lru_cache(maxsize=8)
def _session(voice: str) -> tuple[Any, dict[str, int]]:
    """A voice's network on one thread, with its raw durations as an output too, and its alphabet."""
    import hibari
    import onnxruntime

    path = _file_of(voice)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        model = with_output(path.read_bytes(), _DURATIONS)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session, json.loads((Path(hibari.__file__).parent / "assets" / "vocab.json").read_text(encoding="utf-8"))
    except Exception as error:  # of onnxruntime's own kinds
        remedy = f"pip install --force-reinstall {PACKAGE}=={VERSION}" if voice == BUNDLED else "remove the file and download it again"
        raise UserError(f"--voice neural:{voice}: {path} cannot be used ({' '.join(str(error).split())}): {remedy}") from error


def with_output(model: bytes, name: str) -> bytes:
    """An ONNX file that has an inner value as one more output.

    A protobuf message that occurs twice is merged: the file is followed by its graph (field 7) again, with the output (field 12) alone.
    """

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    return model + field(7, field(12, field(1, name.encode())))


def open_network(voice: str) -> None:
    """Loads a voice's network (0.15 s, 75 MB). Raises: UserError when it cannot be read."""
    _session(voice)


@lru_cache(maxsize=32)
def say(phonemes: str, voice: str) -> tuple[Frames, Array]:
    """A line as spoken, and the frame at which each phoneme's slot starts, shape (L + 1,); what follows the line is not part of it.

    A phoneme's sound comes some frames before its slot, and beside stress marks and stops up to a whole slot.
    """
    session, alphabet = _session(voice)
    ids = [0, *(alphabet[phoneme] for phoneme in phonemes + _CARRIER), 0]
    given = {"ids": np.array([ids], np.int64), "speed": np.array([_PACE], np.float32)}
    *spectra, durations = (np.asarray(value) for value in session.run([*_OUTPUTS, _DURATIONS], given))
    harmonic, phase, hiss, free, free_phase, f0 = (value[0] for value in spectra)
    lengths = _FRAMES_PER_UNIT * np.maximum(1, np.round(durations / _PACE))
    slots = np.concatenate([[0], np.cumsum(lengths)])[1 : len(phonemes) + 2]
    frames = Frames(harmonic_FT=harmonic, phase_FT=phase, noise_FT=hiss, free_FT=free, free_phase_FT=free_phase, f0_T=f0)
    return frames, slots


class _Draws:
    """Noise for the package's synthesis: of its generator it asks only this. Values of variance 1 that no version of numpy changes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def standard_normal(self, shape: tuple[int, int], dtype: type) -> NDArray[Any]:
        return (noise(shape[0] * shape[1], "voice", self._name) * np.sqrt(3)).reshape(shape).astype(dtype)


def sound(frames: Frames, f0_hz_T: Array, name: str) -> Floats:
    """The audio of frames at another F0 (0 where unvoiced), shape (300 T,), at 24 kHz; `name` is its noise's."""
    from hibari import dsp

    out: Floats = dsp.synth(
        frames.harmonic_FT, frames.phase_FT, frames.noise_FT, frames.free_FT, frames.free_phase_FT, f0_hz_T.astype(np.float32), _Draws(name)
    )
    return out
