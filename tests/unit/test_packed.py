"""Networks whose weights are laid out for one length of window: the plain network's answers, whatever the length."""

import copy

import pytest
import torch
from torch import Tensor, nn

import model.packed
from model.evaluator import PACKED_LENGTHS, Evaluation, ThreadedEvaluator
from model.packed import PackedConv1d, packed
from model.unet import AccompanimentUNet, UNetConfig, paper

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this machine has no oneDNN: nothing is laid out")


def network(config: UNetConfig) -> AccompanimentUNet:
    torch.manual_seed(0)
    unet = AccompanimentUNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    return unet


def latent(seed: int, frames: int) -> Tensor:
    return torch.randn(1, 64, frames, generator=torch.Generator().manual_seed(seed))


def packed_convolutions(module: nn.Module) -> int:
    return sum(isinstance(child, PackedConv1d) for child in module.modules())


@needs_onednn
@pytest.mark.parametrize("frames", [8, 40, 216, 333])
def test_the_paper_s_network_answers_as_before(frames: int) -> None:
    unet = network(paper())
    before = copy.deepcopy(unet.state_dict())
    laid_out = packed(unet)
    assert packed_convolutions(laid_out) > 10
    assert packed_convolutions(unet) == 0
    assert laid_out.stem.weight is unet.stem.weight
    x_BCT, t_B, features = latent(1, frames), torch.tensor([300]), unet.encode_vocal(latent(2, frames))
    with torch.inference_mode():
        wanted_BCT = unet(x_BCT, t_B, features)
        made_BCT = laid_out(x_BCT, t_B, features)
        torch.testing.assert_close(made_BCT, wanted_BCT, rtol=1e-4, atol=1e-4)
        assert torch.equal(laid_out(x_BCT, t_B, features), made_BCT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


@needs_onednn
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"), [(3, 1, 1, 1, 1), (4, 2, 1, 1, 1), (1, 1, 0, 1, 1), (5, 1, 4, 2, 4)]
)
@pytest.mark.parametrize("frames", [16, 27])
def test_any_convolution(kernel: int, stride: int, padding: int, dilation: int, groups: int, frames: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(64, 32, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups).requires_grad_(False)
    laid_out = PackedConv1d(conv)
    for length in (frames, 2 * frames, frames):  # laid out anew for another length
        x_BCT = latent(length, length)
        torch.testing.assert_close(laid_out(x_BCT), conv(x_BCT), rtol=1e-4, atol=1e-5)


@needs_onednn
def test_an_evaluator_keeps_networks_of_few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.packed, "LEAST_WEIGHTS", 0)
    unet = network(UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32))
    evaluator = ThreadedEvaluator(unet, threads=2)
    lengths = [20, 30, 40, 51, 20, 62]
    asked = [Evaluation(x_CT=latent(n, n)[0], t=10 * n, vocal=evaluator.encode([latent(100 + n, n)], n)[0]) for n in lengths]
    together = evaluator(asked)
    assert len(evaluator._packed) == PACKED_LENGTHS
    assert all(packed_convolutions(laid_out) for laid_out in evaluator._packed.values())
    for one, made_CT in zip(asked, together, strict=True):
        assert torch.equal(evaluator([one])[0], made_CT)
        with torch.inference_mode():
            torch.testing.assert_close(made_CT, unet(one.x_CT[None], torch.tensor([one.t]), one.vocal)[0], rtol=1e-4, atol=1e-5)


def test_without_onednn_the_network_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    unet = network(paper())
    assert packed(unet) is unet
