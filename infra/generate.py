"""`backline generate`: one vocal file in, its band out, without a server."""

import sys
from dataclasses import dataclass
from pathlib import Path

from infra import audio_files
from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Place, localise


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What `backline generate` was asked; see the command's help."""

    vocal: str
    out: Path
    checkpoint: str | None = None
    codec: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    candidates: int = 1
    mix: bool = False

    def __post_init__(self) -> None:
        if self.out.suffix.lstrip(".").lower() not in audio_files.MEDIA_TYPES:
            endings = ", ".join(f".{name}" for name in audio_files.MEDIA_TYPES)
            raise UserError(f"--out {self.out}: its ending must be one of {endings}")


def generate_file(request: GenerateRequest) -> int:
    """Writes the accompaniment (or the mix) of a vocal file and says how well it fits."""
    from model.accompany import GenerationConfig, mix

    config = GenerationConfig(
        seed=request.seed,
        candidates=request.candidates,
        **{name: value for name, value in (("steps", request.steps), ("guidance", request.guidance)) if value is not None},
    )
    vocal = Place(request.vocal)
    if not vocal.exists():
        raise UserError(f"{request.vocal}: no such file; give an audio file of a vocal")
    vocal_CN = audio_files.to_stereo_44k(audio_files.decode(vocal.read_bytes()))
    accompanist = load_accompanist(request.checkpoint, request.codec)
    result = accompanist.accompany(vocal_CN, config)
    written_CN = mix(vocal_CN, result.audio_CN)[2] if request.mix else result.audio_CN
    request.out.parent.mkdir(parents=True, exist_ok=True)
    request.out.write_bytes(audio_files.encode(written_CN, request.out.suffix.lstrip(".").lower()))
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.stage_s.items())
    sys.stdout.write(
        f"{request.out}: {vocal_CN.shape[1] / 44_100:.1f} s, seed {result.seed}, "
        f"fit {result.fit.overall:.2f} (harmony {result.fit.harmony:.2f}, rhythm {result.fit.rhythm:.2f}, leakage {result.fit.leakage:.2f}); {stages}\n"
    )
    return 0


def load_accompanist(checkpoint: str | None, codec: str | None):  # type: ignore[no-untyped-def]  # model is imported only where it is used
    """The accompanist of a checkpoint's place; without one, of the setting BACKLINE_CHECKPOINT, else of the weights that ship."""
    from model.accompany import Accompanist
    from model.checkpoint import SHIPPED_CHECKPOINT, load_checkpoint
    from model.codec import load_codec

    settings = Settings.from_environment()
    place = checkpoint or settings.checkpoint
    folder = localise(place, settings.cache) if place else SHIPPED_CHECKPOINT
    loaded = load_checkpoint(folder)
    return Accompanist(loaded, load_codec(codec or settings.codec or loaded.codec.id, device=device()), device=device())


def device() -> str:
    """The accelerator of this machine, or its CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
