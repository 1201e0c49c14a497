"""The exact receptive field of a chain of convolutions, from its layers (Araujo et al. 2019, "Computing receptive fields of CNNs").

An interval of outputs is walked back through the layers to the interval of inputs that it reads.
"""

from collections.abc import Iterator

from torch import nn

from model.codec.base import Halo

# Layers that act on each position alone. A layer outside this list and the convolutions has an unknown field.
POINTWISE = {"ELU", "SnakeBeta", "FastSnake", "Tanh", "Identity"}
# Containers that run their children in order of registration; a residual's skip reads less than its branch.
CHAINS = {"Sequential", "OobleckEncoder", "OobleckDecoder", "EncoderBlock", "DecoderBlock", "ResidualUnit", "FastUnit"}

Interval = tuple[int, int]


class UnknownFieldError(Exception):
    """A layer whose receptive field is not known here."""


def chain(module: nn.Module) -> Iterator[nn.Module]:
    """The leaf layers in the order in which they run."""
    kind = type(module).__name__
    if kind in CHAINS:
        for child in module.children():
            yield from chain(child)
    else:
        yield module


def read_by(layer: nn.Module, outputs: Interval) -> Interval:
    """The inputs that a layer reads for an interval of its outputs (both ends included)."""
    first, last = outputs
    if isinstance(layer, nn.Conv1d):
        kernel, stride, dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
        reach = dilation * (kernel - 1)
        padding = reach // 2 if isinstance(layer.padding, str) else int(layer.padding[0])
        return first * stride - padding, last * stride - padding + reach
    if isinstance(layer, nn.ConvTranspose1d):
        stride, cut = layer.stride[0], int(layer.padding[0])
        reach = layer.dilation[0] * (layer.kernel_size[0] - 1)
        return -((reach - first - cut) // stride), (last + cut) // stride
    if isinstance(layer, nn.Upsample) and layer.mode == "nearest" and isinstance(layer.scale_factor, float):
        scale = int(layer.scale_factor)
        return first // scale, last // scale
    if type(layer).__name__ in POINTWISE:
        return outputs
    raise UnknownFieldError(f"layer {type(layer).__name__}")


def walk_back(module: nn.Module, outputs: Interval) -> Interval:
    """The inputs that a whole module reads for an interval of its outputs. Raises UnknownFieldError."""
    for layer in reversed(list(chain(module))):
        outputs = read_by(layer, outputs)
    return outputs


def encoder_halo(encoder: nn.Module, hop: int) -> Halo:
    """Latent frames on either side of a frame that an encoder with `hop` inputs a frame reads."""
    first, last = walk_back(encoder, (0, 0))
    return Halo(left=max(0, -(first // hop)), right=max(0, last // hop))


def decoder_halo(decoder: nn.Module, hop: int) -> Halo:
    """Latent frames on either side of a frame that a decoder with `hop` outputs a frame reads."""
    first, last = walk_back(decoder, (0, hop - 1))
    return Halo(left=max(0, -first), right=max(0, last))
