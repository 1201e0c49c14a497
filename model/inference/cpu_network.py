"""A network as a CPU runs it best: large convolutions' weights laid out beforehand as oneDNN's kernels read them, and its operations
recorded once, to run one after another without Python between them.

PyTorch lays weights out anew at every call: for 15 M weights that takes as long as half the arithmetic for 10 s of music. Python takes 2 to
3 ms of an evaluation, and only one thread at a time runs it: two hold each other up for longer than a short window's arithmetic takes
(infra/benchmarks/service/engine.md). The record is TorchScript's, which holds no lock while it runs and needs no compiler.

Shapes: B = 1, C channels, T frames.
"""

import copy
import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import List, Optional  # noqa: UP035 (TorchScript reads these)

import torch
from torch import Tensor, nn

from model.network.unet import AccompanimentUNet, VocalFeatures

# Below this many weights the other kernel that goes with the layout loses more than the layout saves (T = 1,024).
LEAST_WEIGHTS = 150_000
RECORDED_FRAMES = 2
"""Frames at the coarsest level while operations are recorded. Sizes are recorded as they follow from the input's, so any may come later."""


# Recording uses variables of the process; one at a time.
RECORDING = threading.Lock()


def _convolution(
    x_BC1T: Tensor,
    laid: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    padding: List[int],  # noqa: UP006
    stride: List[int],  # noqa: UP006
    dilation: List[int],  # noqa: UP006
    groups: int,
) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x_BC1T, laid, bias, padding, stride, dilation, groups, "none", [], "")


@functools.cache
def _scripted() -> Callable[..., Tensor]:
    """A script, as a recording cannot hold the operation's empty list; compiled when needed, as some PyTorch has no such operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_convolution)


class PackedConv1d(nn.Module):
    """`conv` with the weights that were laid out in `laid` for inputs (1, C, T) of one length; as it is while there are none."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self._conv = conv
        # oneDNN knows this layout of two-dimensional convolutions only: these are 1 high
        self._stride, self._padding, self._dilation = [1, *conv.stride], [0, *conv.padding], [1, *conv.dilation]
        self.laid: Tensor | None = None
        self.frames = 0
        """Of the last input that no weights were laid out for."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        conv = self._conv
        if self.laid is None:
            self.frames = x_BCT.shape[2]
            y_BCT: Tensor = conv(x_BCT)
            return y_BCT
        y_BC1T = _scripted()(x_BCT.unsqueeze(2), self.laid, conv.bias, self._padding, self._stride, self._dilation, conv.groups)
        return y_BC1T.squeeze(2)

    @torch.inference_mode()
    def lay_out(self, frames: int) -> Tensor:
        """The weights for inputs of `frames`, about as many bytes as before."""
        weight_OC1K = self._conv.weight.detach().unsqueeze(2).contiguous().to_mkldnn()
        size = [1, self._conv.in_channels, 1, frames]
        lay_out = torch._C._nn.mkldnn_reorder_conv2d_weight
        laid: Tensor = lay_out(weight_OC1K, self._padding, self._stride, self._dilation, self._conv.groups, size)  # type: ignore[call-arg]
        return laid


class _Recordable(nn.Module):
    """The network as a function of tensors alone: x, the step, a window's features, and laid-out weights."""

    def __init__(self, network: AccompanimentUNet, convolutions: list[PackedConv1d], like: VocalFeatures) -> None:
        super().__init__()
        self.network = network
        self._convolutions, self._like = convolutions, like

    def forward(self, x_BCT: Tensor, t_B: Tensor, *tensors: Tensor) -> Tensor:
        features = len(tensors) - len(self._convolutions)
        for convolution, laid in zip(self._convolutions, tensors[features:], strict=True):
            convolution.laid = laid
        given = iter(tensors[:features])
        return self.network.velocity(x_BCT, t_B, self._like.map(lambda _: next(given)))


class PackedNetwork:
    """`network` for windows of any lengths, one at a time in each thread; its weights must not change meanwhile.

    What it gives has the same bits whichever lengths came before, and in any thread that computes with as many of torch's threads.
    """

    def __init__(self, network: AccompanimentUNet, *, lengths: int = 1) -> None:
        """lengths: for how many, asked for last, laid-out weights are kept."""
        self._original, self._most = network, lengths
        self._network = _packed_copy(network)
        self._convolutions: list[tuple[PackedConv1d, int]] | None = None  # those that run; their input has 1/n of the padded frames
        self._records: dict[bool, torch.jit.ScriptModule] = {}  # by whether frames are masked
        self._laid: OrderedDict[int, list[Tensor]] = OrderedDict()  # by padded frames
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, x_BCT: Tensor, t_B: Tensor, vocal: VocalFeatures) -> Tensor:
        """See `AccompanimentUNet.forward`."""
        self._original.check(x_BCT, vocal)
        with self._lock:
            record = self._record(is_masked=vocal.valid is not None)
            laid = self._laid_out(x_BCT.shape[2])
        # Without rewriting: the operations as they were recorded.
        with torch.jit.optimized_execution(False):
            v_BCT: Tensor = record(x_BCT, t_B, *vocal.tensors(), *laid)
        return v_BCT

    def record(self) -> None:
        """Does beforehand what the first windows would wait for, some 0.5 s."""
        with self._lock, torch.inference_mode():
            self._record(is_masked=False)
            self._record(is_masked=True)

    def _record(self, *, is_masked: bool) -> torch.jit.ScriptModule:
        if is_masked in self._records:
            return self._records[is_masked]
        padded = RECORDED_FRAMES * self._network.config.frame_multiple
        frames = padded - is_masked
        vocal = self._original.encode_vocal(self._original.null_vocal(frames).contiguous())
        x_BCT, t_B = torch.zeros(1, self._network.config.latent_channels, frames), torch.tensor([0])
        if self._convolutions is None:
            self._network.velocity(x_BCT, t_B, vocal)
            every = (module for module in self._network.modules() if isinstance(module, PackedConv1d))
            self._convolutions = [(convolution, padded // convolution.frames) for convolution in every if convolution.frames]
        convolutions = [convolution for convolution, _ in self._convolutions]
        recordable = _Recordable(self._network, convolutions, vocal)
        with RECORDING, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            # group_norm looks whether there is more than one value, which is so at any length
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.functional")
            try:
                # Without its inputs, which it would keep for ever: laid-out weights among them.
                self._records[is_masked] = torch.jit.trace(
                    recordable, (x_BCT, t_B, *vocal.tensors(), *self._lay_out(padded)), check_trace=False, _store_inputs=False
                )
            finally:
                for convolution in convolutions:
                    convolution.laid = None
        return self._records[is_masked]

    def _laid_out(self, frames: int) -> list[Tensor]:
        padded = frames + -frames % self._network.config.frame_multiple
        found = self._laid.get(padded)
        if found is None:
            found = self._laid[padded] = self._lay_out(padded)
        self._laid.move_to_end(padded)
        if len(self._laid) > self._most:
            self._laid.popitem(last=False)
        return found

    def _lay_out(self, padded: int) -> list[Tensor]:
        assert self._convolutions is not None, "nothing is recorded"
        return [convolution.lay_out(padded // part) for convolution, part in self._convolutions]


def _packed_copy(network: AccompanimentUNet) -> AccompanimentUNet:
    """A copy whose large convolutions are to be laid out, where this machine has oneDNN; it shares all weights."""
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    if torch.backends.mkldnn.is_available():
        for module in list(copied.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv1d) and child.weight.numel() >= LEAST_WEIGHTS:
                    setattr(module, name, PackedConv1d(child))
    return copied
