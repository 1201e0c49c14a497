"""Recorded samples: what a file's name says, and its audio from the attack on."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile as sf

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array

AUDIO_KINDS = (".ogg", ".flac", ".wav")
LAYERS = ("pp", "p", "mp", "mf", "f", "ff")
_PITCH = re.compile(r"([a-g])(b|s|#)?(-?\d)")
_PITCH_CLASS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_LONGEST_S = 4.0
_LEAD = 32


@dataclass(frozen=True, kw_only=True)
class SampleName:
    """`twang_As3_mf_rr2` is the pitch 58 (octaves as the folder counts them), layer 3 (of pp to ff), of kind "twang"."""

    path: Path
    midi: int
    layer: int
    kind: str


def read_name(path: Path, root: Path) -> SampleName | None:
    """None for a file whose name holds no pitch. Folders below `root` and words that say neither pitch, layer nor turn are the kind."""
    midi, layer, words = None, LAYERS.index("mf"), [*path.parent.relative_to(root).parts]
    for word in path.stem.lower().split("_"):
        pitch = _PITCH.fullmatch(word)
        if pitch:
            letter, accidental, octave = pitch.groups()
            midi = 12 * (int(octave) + 1) + _PITCH_CLASS[letter] + {"b": -1, "s": 1, "#": 1, None: 0}[accidental]
        elif word in LAYERS:
            layer = LAYERS.index(word)
        elif not re.fullmatch(r"rr\d+", word):
            words.append(word)
    return None if midi is None else SampleName(path=path, midi=midi, layer=layer, kind="/".join(words).lower())


def audio_files(folder: Path, option: str = "--bank ") -> list[Path]:
    """Every sample below a folder, checked to be audio of the corpus' rate. `option` stands before the folder in errors.

    Raises: UserError naming the first file that is not, and the remedy.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_KINDS)
    for path in files:
        try:
            found = sf.info(path)
        except (sf.LibsndfileError, OSError) as error:
            raise UserError(f"{option}{folder}: {path.relative_to(folder)} is no audio ({error}): remove it, or copy it again") from error
        if not found.frames or found.channels > 2:
            raise UserError(
                f"{option}{folder}: {path.relative_to(folder)} has {found.frames} samples in {found.channels} channels: "
                "give mono or stereo, or remove it"
            )
        if found.samplerate != SAMPLE_RATE_HZ:
            raise UserError(
                f"{option}{folder}: {path.relative_to(folder)} has a rate of {found.samplerate} Hz, samples must have {SAMPLE_RATE_HZ}: "
                f"convert it, for example ffmpeg -i IN -ar {SAMPLE_RATE_HZ} OUT"
            )
    return files


@lru_cache(maxsize=256)
def read_sample(path: Path, seconds: float = _LONGEST_S) -> Array:
    """The sample from just before its attack, shape (1 or 2, n), at most `seconds` long, float32."""
    audio_NC, _ = sf.read(path, dtype="float32", always_2d=True, frames=int((seconds + 0.5) * SAMPLE_RATE_HZ))
    power = np.convolve(np.mean(audio_NC**2, axis=1), np.ones(64, np.float32) / 64, mode="same")
    start = max(0, int(np.argmax(power > 1e-3 * power.max())) - _LEAD) if power.size else 0
    return np.ascontiguousarray(audio_NC[start : start + int(seconds * SAMPLE_RATE_HZ)].T)


def rms(audio_CN: Array, seconds: float) -> float:
    """Root mean square of the first seconds; never zero."""
    return float(np.sqrt(np.mean(audio_CN[:, : int(seconds * SAMPLE_RATE_HZ)] ** 2)) + 1e-7)


def digest(folder: Path, files: list[Path]) -> str:
    """Of the names and sizes of the files: another folder has another, wherever it lies."""
    entries = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:12]
