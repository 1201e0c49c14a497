"""Codecs on a CUDA device: float32 as on a processor, bfloat16 more than 40 dB under the audio."""

from pathlib import Path

import pytest
import torch

from model.codec.load import Codec, StableAudioCodec, load_codec
from tests.codec_parts import checkpoint_document, full_checkpoint, small_weights, write_folder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("cuda") / "sao", checkpoint_document(), full_checkpoint(small_weights()))


def sound(samples: int = 100 * 2048 - 7) -> torch.Tensor:
    """(1, 2, N): three tones in noise."""
    time_s = torch.arange(samples) / 44_100
    tones = sum(torch.sin(2 * torch.pi * hz * time_s) for hz in (220.0, 277.2, 659.3))
    return 0.1 * tones + 0.01 * torch.randn(1, 2, samples, generator=torch.Generator().manual_seed(0))


def snr_db(exact: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(exact.square().mean() / (exact - other).square().mean()))


def both(spec: str) -> tuple[Codec, Codec]:
    return load_codec(spec, precision="float32"), load_codec(spec, device="cuda", precision="float32")


def test_the_embedded_codec_on_both_devices() -> None:
    """Its phase search decides by thresholds, so that a rounding can turn a bin: latents are equal, audio in the mean."""
    on_cpu, on_cuda = both("embedded")
    latent_BCT = on_cpu.encode(sound())
    assert (on_cuda.encode(sound()) - latent_BCT).abs().max() < 1e-4
    assert snr_db(on_cpu.decode(latent_BCT), on_cuda.decode(latent_BCT)) > 40


def test_a_stable_audio_codec_on_both_devices(folder: Path) -> None:
    on_cpu, on_cuda = both(f"stable-audio-open:{folder}")
    allowed = torch.backends.cudnn.allow_tf32
    latent_BCT = on_cpu.encode(sound())
    assert (on_cuda.encode(sound()) - latent_BCT).abs().max() < 1e-4
    assert (on_cuda.decode(latent_BCT) - on_cpu.decode(latent_BCT)).abs().max() < 1e-4
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_bfloat16_is_the_default_and_is_not_heard(folder: Path) -> None:
    _, exact = both(f"stable-audio-open:{folder}")
    rounded = load_codec(f"stable-audio-open:{folder}", device="cuda")
    assert isinstance(rounded, StableAudioCodec)
    assert rounded.precision == "bfloat16"
    assert rounded.identity == exact.identity
    latent_BCT = exact.encode(sound())
    assert torch.equal(rounded.encode(sound()), latent_BCT)
    assert snr_db(exact.decode(latent_BCT), rounded.decode(latent_BCT)) > 40


def test_pieces_are_the_whole(folder: Path) -> None:
    codec = load_codec(f"stable-audio-open:{folder}", device="cuda")
    codec.chunk_frames = 16
    latent_BCT = codec.encode(sound())
    pieces = list(codec.decode_pieces(latent_BCT.split(11, dim=2)))
    assert all(piece.device.type == "cpu" for piece in pieces)
    assert (torch.cat(pieces, dim=2) - codec.decode(latent_BCT)).abs().max() < 1e-5
