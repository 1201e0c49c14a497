"""A network for one length of window on a CPU, its large convolutions' weights laid out beforehand as oneDNN's kernels read them.

PyTorch lays them out anew at every call: for 15 M weights that takes as long as half the arithmetic for 10 s of music
(infra/benchmarks/engine.md).

Shapes: B = 1, C channels, T frames.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

# Below this many weights the other kernel that goes with the layout loses more than the layout saves (T = 1,024).
LEAST_WEIGHTS = 150_000

Network = TypeVar("Network", bound=nn.Module)


class PackedConv1d(nn.Module):
    """`conv` for inputs (1, C, T) of one T, that of the first one it is given. For any threads; its weights must not change afterwards."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self._conv = conv
        # oneDNN knows this layout of two-dimensional convolutions only: these are 1 high
        self._stride, self._padding, self._dilation = [1, *conv.stride], [0, *conv.padding], [1, *conv.dilation]
        self._packed: tuple[int, Tensor] | None = None

    @torch.inference_mode()
    def forward(self, x_BCT: Tensor) -> Tensor:
        packed = self._packed
        if packed is None or packed[0] != x_BCT.shape[2]:
            packed = self._packed = x_BCT.shape[2], self._pack(x_BCT.shape[2])
        y_BC1T = torch.ops.mkldnn._convolution_pointwise(
            x_BCT.unsqueeze(2), packed[1], self._conv.bias, self._padding, self._stride, self._dilation, self._conv.groups, "none", [], ""
        )
        y_BCT: Tensor = y_BC1T.squeeze(2)
        return y_BCT

    def _pack(self, frames: int) -> Tensor:
        weight_OC1K = self._conv.weight.detach().unsqueeze(2).contiguous().to_mkldnn()
        size = [1, self._conv.in_channels, 1, frames]
        lay_out = torch._C._nn.mkldnn_reorder_conv2d_weight
        laid: Tensor = lay_out(weight_OC1K, self._padding, self._stride, self._dilation, self._conv.groups, size)  # type: ignore[call-arg]
        return laid


def packed(network: Network) -> Network:
    """A copy of `network` for windows of the length that it is first asked for, one at a time; it shares the weights that are not laid out
    anew. The network itself where this machine has no oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return network
    found = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    for module in list(found.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv1d) and child.weight.numel() >= LEAST_WEIGHTS:
                setattr(module, name, PackedConv1d(child))
    return found
