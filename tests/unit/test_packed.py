"""Networks as a CPU runs them, recorded and with weights laid out: the plain network's answers, whatever the length and the thread."""

import copy
import gc
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import model.inference.cpu_network
from model.errors import ModelError
from model.inference.cpu_network import PackedConv1d, PackedNetwork
from model.inference.network_runner import Evaluation, ThreadedEvaluator
from model.network.unet import AccompanimentUNet, UNetConfig, paper, sized, small

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this machine has no oneDNN: nothing is laid out")


def network(config: UNetConfig) -> AccompanimentUNet:
    torch.manual_seed(0)
    unet = AccompanimentUNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    return unet


def latent(seed: int, frames: int) -> Tensor:
    return torch.randn(1, 64, frames, generator=torch.Generator().manual_seed(seed))


TINY = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32)


@pytest.mark.parametrize("config", [paper(), small(), sized(paper(), depth=3, width=0.5), TINY], ids=["paper", "small", "3 levels", "tiny"])
def test_it_answers_as_the_network_does_at_any_length(config: UNetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    if config is TINY:
        monkeypatch.setattr(model.inference.cpu_network, "LEAST_WEIGHTS", 0)
    unet = network(config)
    before = copy.deepcopy(unet.state_dict())
    laid_out = PackedNetwork(unet)
    with torch.inference_mode(), warnings.catch_warnings():
        # What a recording would not follow from its inputs, such as a comparison of lengths, it warns of.
        warnings.simplefilter("error", torch.jit.TracerWarning)
        for frames in (333, 8, 40, 1, 216, 600, 9):
            x_BCT, t_B, features = latent(1, frames), torch.tensor([frames]), unet.encode_vocal(latent(2, frames))
            made_BCT = laid_out(x_BCT, t_B, features)
            torch.testing.assert_close(made_BCT, unet(x_BCT, t_B, features), rtol=1e-4, atol=1e-4)
            assert torch.equal(laid_out(x_BCT, t_B, features), made_BCT)
        assert torch.equal(PackedNetwork(unet)(x_BCT, t_B, features), made_BCT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert not any(isinstance(module, PackedConv1d) for module in unet.modules())


def test_weights_are_shared_but_for_those_that_are_laid_out() -> None:
    unet = network(paper())
    shared = {id(tensor) for tensor in (*unet.parameters(), *unet.buffers())}
    copied = PackedNetwork(unet)._network
    assert {id(tensor) for tensor in (*copied.parameters(), *copied.buffers())} == shared
    if torch.backends.mkldnn.is_available():
        assert sum(isinstance(module, PackedConv1d) for module in copied.modules()) > 10


@needs_onednn
def test_recordings_keep_no_weights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    laid = list[weakref.ref[Tensor]]()
    lay_out = PackedConv1d.lay_out

    def noted(self: PackedConv1d, frames: int) -> Tensor:
        found = lay_out(self, frames)
        laid.append(weakref.ref(found))
        return found

    monkeypatch.setattr(PackedConv1d, "lay_out", noted)
    laid_out = PackedNetwork(network(paper()))
    laid_out.record()
    gc.collect()
    assert len(laid) > 2
    assert all(one() is None for one in laid)


def test_another_length_than_the_vocal_s_is_refused() -> None:
    unet = network(TINY)
    with pytest.raises(ModelError, match="x has 9 frames and the vocal 8"):
        PackedNetwork(unet)(latent(1, 9), torch.tensor([0]), unet.encode_vocal(latent(2, 8)))


def test_without_onednn_nothing_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    unet = network(paper())
    x_BCT, t_B, features = latent(1, 40), torch.tensor([300]), unet.encode_vocal(latent(2, 40))
    with torch.inference_mode():
        assert torch.equal(PackedNetwork(unet)(x_BCT, t_B, features), unet(x_BCT, t_B, features))


def test_without_the_operation_it_can_be_imported() -> None:
    script = (
        "import torch\n"
        "class Without:\n"
        "    def __getattr__(self, name): raise AttributeError(name)\n"
        "torch.ops.mkldnn = Without()\n"
        "import model.inference.network_runner\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_onednn
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"), [(3, 1, 1, 1, 1), (4, 2, 1, 1, 1), (1, 1, 0, 1, 1), (5, 1, 4, 2, 4)]
)
@pytest.mark.parametrize("frames", [16, 27])
def test_any_convolution(kernel: int, stride: int, padding: int, dilation: int, groups: int, frames: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(64, 32, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups).requires_grad_(False)
    laid_out = PackedConv1d(conv)
    for length in (frames, 2 * frames, frames):
        x_BCT = latent(length, length)
        laid_out.laid = laid_out.lay_out(length)
        torch.testing.assert_close(laid_out(x_BCT), conv(x_BCT), rtol=1e-4, atol=1e-5)


@needs_onednn
def test_few_lengths_are_kept_and_threads_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.inference.cpu_network, "LEAST_WEIGHTS", 0)
    unet = network(TINY)
    laid_out = PackedNetwork(unet, lengths=3)
    lengths = [20, 30, 40, 51, 20, 62, 52, 19] * 3
    asked = [(latent(n, n), torch.tensor([10 * n]), unet.encode_vocal(latent(100 + n, n))) for n in lengths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: laid_out(*one), asked))
    for one, made_BCT in zip(asked, together, strict=True):
        assert torch.equal(laid_out(*one), made_BCT)
    assert list(laid_out._laid) == [62, 52, 20]  # padded to whole frames of the coarsest level, the latest last


def test_an_evaluator_s_answers_do_not_depend_on_what_is_beside() -> None:
    unet = network(TINY)
    evaluator = ThreadedEvaluator(unet, threads=2)
    lengths = [20, 30, 40, 51, 20, 62]
    asked = [Evaluation(x_CT=latent(n, n)[0], t=10 * n, vocal=evaluator.encode([latent(100 + n, n)], n)[0]) for n in lengths]
    for one, made_CT in zip(asked, evaluator(asked), strict=True):
        assert torch.equal(evaluator([one])[0], made_CT)
