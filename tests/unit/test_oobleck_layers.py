"""Faster layers of an Oobleck autoencoder: the function of stable-audio-tools' own."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from model.codec.base import CodecIdentity
from model.codec.load import Precision, StableAudioCodec, build_autoencoder
from model.codec.stable_audio_layers import FINE_BLOCKS, FastConv, FastConvTranspose, FastSnake, quicken
from model.errors import ModelError
from tests.codec_parts import autoencoder_document, small_weights


@pytest.fixture(scope="module")
def plain() -> Any:
    """stable-audio-tools' own small autoencoder, its weight norms folded."""
    autoencoder = build_autoencoder(autoencoder_document(), "small")
    autoencoder.load_state_dict(small_weights())
    for module in autoencoder.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return autoencoder.eval().requires_grad_(False)


def codec_of(plain: Any, precision: Precision) -> StableAudioCodec:
    return StableAudioCodec(deepcopy(plain), CodecIdentity(id="small", weights_sha256="0"), precision=precision)


@pytest.mark.parametrize("channels", [3, 128, 2048])
@torch.no_grad()
def test_the_fast_snake_is_the_snake(channels: int) -> None:
    from stable_audio_tools.models.blocks import SnakeBeta

    torch.manual_seed(channels)
    snake = SnakeBeta(channels)
    for parameter in (snake.alpha, snake.beta):
        parameter.add_(0.3 * torch.randn(channels).clamp(-2, 2))
    x_BCT = 2 * torch.randn(2, channels, 301)
    kept = x_BCT.clone()
    for given in (x_BCT, x_BCT.transpose(1, 2).contiguous().transpose(1, 2)):
        made = FastSnake(snake, torch.float32)(given)
        assert (made - snake(x_BCT)).abs().max() < 2e-6  # values up to 10
        assert torch.equal(given, kept)
    own = x_BCT.transpose(1, 2).contiguous().transpose(1, 2)
    assert FastSnake(snake, torch.float32)(own, into=own).data_ptr() == own.data_ptr()
    assert torch.equal(own, made)
    assert FastSnake(snake, torch.bfloat16)(x_BCT.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("kernel", "stride", "dilation", "bias"), [(7, 1, 9, True), (1, 1, 1, True), (16, 8, 1, False), (4, 2, 1, True)])
@torch.no_grad()
def test_the_fast_convolutions_are_the_convolutions(kernel: int, stride: int, dilation: int, bias: bool) -> None:
    torch.manual_seed(0)
    x_BCT = torch.randn(2, 6, 160)
    conv = torch.nn.Conv1d(6, 10, kernel, stride, dilation * (kernel - 1) // 2, dilation, bias=bias)
    assert (FastConv(conv, torch.float32)(x_BCT) - conv(x_BCT)).abs().max() < 1e-6
    transposed = torch.nn.ConvTranspose1d(6, 10, 2 * stride, stride, -(-stride // 2), bias=bias)
    assert (FastConvTranspose(transposed, torch.float32)(x_BCT) - transposed(x_BCT)).abs().max() < 1e-6


def test_what_has_no_faster_twin_stays() -> None:
    from stable_audio_tools.models.blocks import SnakeBeta

    linear = SnakeBeta(4, alpha_logscale=False)
    layers = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, padding="same"), torch.nn.Conv1d(4, 4, 3, groups=2), torch.nn.ELU(), linear)
    before = list(layers)
    quicken(layers)
    assert list(layers) == before


def test_a_quickened_autoencoder_is_the_same_function(plain: Any) -> None:
    codec = codec_of(plain, "float32")
    assert any(isinstance(module, FastSnake) for module in codec.autoencoder.modules())
    audio_BCN = 0.3 * torch.randn(2, 2, 12 * 2048, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted_latent = plain.encoder(audio_BCN)[:, :64]
        wanted_audio = plain.decoder(wanted_latent)
    assert (codec.encode(audio_BCN) - wanted_latent).abs().max() < 1e-5
    assert (codec.decode(wanted_latent) - wanted_audio).abs().max() < 1e-5


def test_bfloat16_rounds_in_the_finest_blocks_alone(plain: Any) -> None:
    exact, rounded = codec_of(plain, "float32"), codec_of(plain, "bfloat16")
    types = [parameter.dtype for parameter in rounded.autoencoder.parameters()]
    assert types.count(torch.bfloat16) == FINE_BLOCKS * 3 * 2 * 2  # units, convolutions in each, weight and bias
    latent_BCT = torch.randn(1, 64, 20, generator=torch.Generator().manual_seed(0))
    exact_BCN, rounded_BCN = exact.decode(latent_BCT), rounded.decode(latent_BCT)
    assert rounded_BCN.dtype == torch.float32
    assert not torch.equal(exact_BCN, rounded_BCN)
    assert 10 * torch.log10(exact_BCN.square().mean() / (exact_BCN - rounded_BCN).square().mean()) > 40
    audio_BCN = 0.1 * torch.randn(1, 2, 9 * 2048)
    assert torch.equal(exact.encode(audio_BCN), rounded.encode(audio_BCN))
    assert (exact.encode_halo, exact.decode_halo) == (rounded.encode_halo, rounded.decode_halo)


def test_auto_on_a_processor_is_float32_and_another_word_is_refused(plain: Any) -> None:
    assert codec_of(plain, "auto").precision == "float32"
    with pytest.raises(ModelError, match="float16"):
        codec_of(plain, "float16")  # type: ignore[arg-type]
