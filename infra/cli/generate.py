"""`backline generate`: one vocal file in, its band out, without a server."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.audio import files as audio_files
from infra.errors import UserError
from infra.resolve import checkpoint_folder, codec_spec
from infra.settings import Settings
from infra.storage.place import Place

if TYPE_CHECKING:
    from model.accompany import Accompanist

MAX_VOCAL_S = 600.0


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What `backline generate` was asked; see the command's help."""

    vocal: str
    out: str
    checkpoint: str | None = None
    codec: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    candidates: int = 1
    style: str | None = None
    chords: str | None = None
    beats: str | None = None
    tempo_bpm: float | None = None
    first_beat_s: float = 0.0
    mix: bool = False

    def __post_init__(self) -> None:
        self.format  # noqa: B018 (raises)

    @property
    def format(self) -> audio_files.FileFormat:
        """The format that the ending of `out` names."""
        for name in audio_files.MIME_TYPES:
            if self.out.lower().endswith(f".{name}"):
                return name
        raise UserError(f"--out {self.out}: its ending must be one of {', '.join(f'.{name}' for name in audio_files.MIME_TYPES)}")


def generate_file(request: GenerateRequest) -> int:
    """Writes the accompaniment (or the mix) of a vocal file and says how well it fits."""
    from model.accompany import GenerationConfig
    from model.controls import Controls, read_beats, read_chords
    from model.inference.gain import mix, within_full_scale

    controls = Controls(
        style=request.style,
        chords=read_chords(_text(request.chords, "--chords")) if request.chords else (),
        beats=read_beats(_text(request.beats, "--beats")) if request.beats else (),
        tempo_bpm=request.tempo_bpm,
        first_beat_s=request.first_beat_s,
    )
    config = GenerationConfig(
        seed=request.seed, candidates=request.candidates, steps=request.steps, guidance=request.guidance, controls=controls
    )
    vocal = Place(request.vocal)
    if not vocal.exists():
        raise UserError(f"{request.vocal}: no such file; give an audio file of a vocal")
    vocal_CN = audio_files.to_stereo_44k(audio_files.decode(vocal.read_bytes(), max_duration_s=MAX_VOCAL_S))
    accompanist = open_accompanist(request.checkpoint, request.codec)
    result = accompanist.accompany(vocal_CN, config)
    written_CN = mix(vocal_CN, result.audio_CN)[2] if request.mix else within_full_scale(result.audio_CN)
    Place(request.out).write_bytes(audio_files.encode(written_CN, request.format))
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.stage_s.items())
    fit = result.fit
    others = ", ".join(f"{other.overall:.2f}" for other in result.candidate_fits)
    chosen = f"; best of {len(result.candidate_fits)}: {others}" if len(result.candidate_fits) > 1 else ""
    sys.stdout.write(
        f"{request.out}: {vocal_CN.shape[1] / 44_100:.1f} s, seed {result.seed}, fit {fit.overall:.2f} "
        f"(harmony {fit.harmony:.2f}, rhythm {fit.rhythm:.2f}, leakage {fit.leakage:.2f}){chosen}; {stages}\n"
    )
    for sentence in controls.replaced:
        sys.stdout.write(f"{sentence}\n")
    return 0


def _text(uri: str, option: str) -> str:
    place = Place(uri)
    if not place.exists():
        raise UserError(f"{option} {uri}: no such file")
    try:
        return place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {uri}: is no text in UTF-8 ({error})") from error


def open_accompanist(checkpoint: str | None, codec: str | None) -> "Accompanist":
    """The accompanist of a checkpoint's place; without one, of BACKLINE_CHECKPOINT, else of the weights that ship."""
    from model.accompany import load_accompanist
    from model.checkpoint import SHIPPED_CHECKPOINT

    settings = Settings.from_environment()
    return load_accompanist(checkpoint_folder(checkpoint, settings, SHIPPED_CHECKPOINT), codec=codec_spec(codec, settings))
