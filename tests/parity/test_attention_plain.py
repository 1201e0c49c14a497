"""Blocked and fused attention against the plain masked form: T×T scores, softmax, rotary embedding by complex numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.attention import SoftAlignmentAttention

CHANNELS, VOCAL_CHANNELS, HEADS, HEAD_CHANNELS = 24, 40, 3, 8
LENGTHS = [1, 2, 7, 15, 16, 17, 31, 33, 64, 129, 200]


def heads(x_BCT: Tensor) -> Tensor:
    batch, _, frames = x_BCT.shape
    return x_BCT.reshape(batch, HEADS, HEAD_CHANNELS, frames).permute(0, 1, 3, 2)


def turned(x_BHTD: Tensor) -> Tensor:
    """Channel d and d + D/2 as one complex number, multiplied by e^{i·position·frequency}."""
    half = HEAD_CHANNELS // 2
    number = torch.complex(x_BHTD[..., :half].contiguous(), x_BHTD[..., half:].contiguous())
    frequency = 1 / 10_000 ** (torch.arange(half) * 2 / HEAD_CHANNELS)
    number = number * torch.polar(torch.ones(1), torch.arange(x_BHTD.shape[2])[:, None] * frequency)
    return torch.cat((number.real, number.imag), dim=-1)


def plain(query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, allowed_BTT: Tensor) -> Tensor:
    scores = query_BHTD @ key_BHTD.transpose(2, 3) / HEAD_CHANNELS**0.5
    return scores.masked_fill(~allowed_BTT[:, None], -torch.inf).softmax(-1) @ value_BHTD


def reference(module: SoftAlignmentAttention, x_BCT: Tensor, vocal_BCT: Tensor, valid_BT: Tensor, alpha_bar_B: Tensor) -> Tensor:
    frames = x_BCT.shape[2]
    distance_TT = torch.arange(frames) - torch.arange(frames)[:, None]
    window = module.window
    near_TT = (distance_TT >= -(window // 2)) & (distance_TT < window // 2)
    key, value = (heads(part) for part in module.local_key_value(vocal_BCT).chunk(2, dim=1))
    local = plain(heads(module.local_query(x_BCT)), key, value, near_TT & valid_BT[:, None, :])
    key, value = (heads(part) for part in F.conv1d(vocal_BCT, module.global_key_value.weight, module.global_key_value.bias).chunk(2, dim=1))
    everywhere = valid_BT[:, None, :].expand(-1, frames, -1)
    far = plain(turned(heads(module.global_query(x_BCT))), turned(key), value, everywhere)
    share = alpha_bar_B[:, None, None, None]
    context = share * local + (1 - share) * far
    return module.output(context.permute(0, 1, 3, 2).reshape(len(x_BCT), -1, frames))


@pytest.fixture(params=[4, 16], ids=["window 4", "window 16"])
def attention(request: pytest.FixtureRequest) -> SoftAlignmentAttention:
    torch.manual_seed(0)
    return SoftAlignmentAttention(CHANNELS, VOCAL_CHANNELS, heads=HEADS, head_channels=HEAD_CHANNELS, window=request.param)


@pytest.mark.parametrize("frames", LENGTHS)
def test_equals_plain_masked_attention(attention: SoftAlignmentAttention, frames: int) -> None:
    torch.manual_seed(frames)
    x_BCT, vocal_BCT = torch.randn(3, CHANNELS, frames), torch.randn(3, VOCAL_CHANNELS, frames)
    alpha_bar_B = torch.tensor([0.0, 0.37, 1.0])
    ours = attention(x_BCT, attention.project_vocal(vocal_BCT), alpha_bar_B)
    theirs = reference(attention, x_BCT, vocal_BCT, torch.ones(3, frames, dtype=torch.bool), alpha_bar_B)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [9, 33, 100])
def test_equals_plain_masked_attention_with_padding(attention: SoftAlignmentAttention, frames: int) -> None:
    torch.manual_seed(frames)
    lengths_B = torch.tensor([1, frames // 2, frames])
    valid_BT = torch.arange(frames) < lengths_B[:, None]
    x_BCT, vocal_BCT = torch.randn(3, CHANNELS, frames), torch.randn(3, VOCAL_CHANNELS, frames) * valid_BT[:, None]
    alpha_bar_B = torch.tensor([0.5, 0.2, 0.9])
    ours = attention(x_BCT, attention.project_vocal(vocal_BCT, valid_BT), alpha_bar_B)
    theirs = reference(attention, x_BCT, vocal_BCT, valid_BT, alpha_bar_B)
    assert ours.isfinite().all()  # also where a query has no valid frame in its window
    for row, length in enumerate(lengths_B):
        torch.testing.assert_close(ours[row, :, :length], theirs[row, :, :length], rtol=1e-5, atol=1e-5)


def test_gradients_equal_the_plain_form(attention: SoftAlignmentAttention) -> None:
    x_BCT, vocal_BCT = torch.randn(1, CHANNELS, 37), torch.randn(1, VOCAL_CHANNELS, 37)
    alpha_bar_B, probe = torch.tensor([0.5]), torch.randn(1, CHANNELS, 37)
    weights = list(attention.parameters())
    ours = torch.autograd.grad((attention(x_BCT, attention.project_vocal(vocal_BCT), alpha_bar_B) * probe).sum(), weights)
    everywhere = torch.ones(1, 37, dtype=torch.bool)
    theirs = torch.autograd.grad((reference(attention, x_BCT, vocal_BCT, everywhere, alpha_bar_B) * probe).sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
