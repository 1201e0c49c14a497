"""Faster layers for a loaded Oobleck autoencoder (Evans et al. 2024): the same function and weights, other memory layouts and number types.

Shapes: B batch, C channels, T positions at a layer's own rate. A tensor (B, C, T) is "channels last" if its memory is that of (B, T, C).
Figures: infra/benchmarks/model/full_codec.md; reasons: infra/decisions/0008-full-size-codec.md.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Values that an activation takes through all its steps before the next ones: 0.5 MB a step stay in a core's own cache.
SNAKE_BLOCK = 1 << 17
# Blocks at the fine end of a decoder whose residual units may run in bfloat16: half of the decoder's work, and few layers follow that
# amplify the rounding.
FINE_BLOCKS = 2


class FastSnake(nn.Module):
    """x + sin²(αx) / β of a channel (Ziyin, Hartwig & Ueda 2020; logarithmic α and β of BigVGAN, Lee et al. 2023), always in float32.

    What depends on the parameters alone is computed once; √(1/β) goes under the square, so that four steps do it.
    """

    def __init__(self, snake: Any, dtype: torch.dtype) -> None:
        """`snake` is stable-audio-tools' SnakeBeta with logarithmic parameters; the result has type `dtype`."""
        super().__init__()
        self.dtype = dtype
        self.register_buffer("alpha", snake.alpha.detach().exp())
        self.register_buffer("root", (snake.beta.detach().exp() + snake.no_div_by_zero).reciprocal().sqrt())
        self.alpha: Tensor
        self.root: Tensor

    def forward(self, x_BCT: Tensor, *, into: Tensor | None = None) -> Tensor:
        """(B, C, T) float32 or bfloat16 → the same shape; on a CPU channels last. The result may be written `into` x itself."""
        if x_BCT.device.type != "cpu":
            x_BCT = x_BCT.float()
            sine = (x_BCT * self.alpha[:, None]).sin_().mul_(self.root[:, None])
            return torch.addcmul(x_BCT, sine, sine).to(self.dtype)
        x_BTC = x_BCT.transpose(1, 2)
        fits = into is not None and into.dtype == self.dtype and x_BTC.is_contiguous()
        made_BTC = x_BTC if fits else torch.empty(x_BTC.shape, dtype=self.dtype)
        rows, made_rows = x_BTC.reshape(-1, x_BTC.shape[2]), made_BTC.view(-1, x_BTC.shape[2])
        step = max(1, SNAKE_BLOCK // rows.shape[1])
        for start in range(0, len(rows), step):
            x = rows[start : start + step].float()
            sine = (x * self.alpha).sin_().mul_(self.root)
            made = made_rows[start : start + step]
            torch.addcmul(x, sine, sine, out=made) if made.dtype == x.dtype else made.copy_(sine.square_().add_(x))
        return made_BTC.transpose(1, 2)


class FastUnit(nn.Module):
    """x + conv(snake(conv(snake(x)))). It takes x over: its memory becomes the sum's, and the second snake works in place.

    Fresh memory for tensors of this size is paid for page by page: a fifth of a decode's time.
    """

    def __init__(self, unit: Any) -> None:
        """`unit` is stable-audio-tools' ResidualUnit with fast layers."""
        super().__init__()
        self.layers = unit.layers

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) → the same tensor, changed."""
        snake, conv, second_snake, second_conv = self.layers
        y_BCT = conv(snake(x_BCT))
        return x_BCT.add_(second_conv(second_snake(y_BCT, into=y_BCT)))


class FastConv(nn.Conv1d):
    """A convolution computed in `dtype` on its weights' device; on a CPU channels last, as oneDNN wants it: up to twice as fast."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        has_bias = conv.bias is not None
        super().__init__(conv.in_channels, conv.out_channels, kernel, stride, int(conv.padding[0]), dilation, bias=has_bias, device="meta")
        self.weight, self.bias = _weights(conv, dtype)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) → (B, C', T')."""
        x, weight = _as_image(x_BCT.to(self.weight.dtype)), _as_image(self.weight)
        # A kernel of 1 has nothing to spread; yet a dilation makes torch take oneDNN for it on one thread too, twice as fast.
        dilation = 2 if self.kernel_size[0] == 1 and x.device.type == "cpu" else self.dilation[0]
        image = nn.functional.conv2d(x, weight, self.bias, (1, self.stride[0]), (0, int(self.padding[0])), (1, dilation))
        return image.squeeze(2)


class FastConvTranspose(nn.ConvTranspose1d):
    """The transposed convolution of FastConv."""

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        has_bias = conv.bias is not None
        super().__init__(conv.in_channels, conv.out_channels, kernel, stride, int(conv.padding[0]), bias=has_bias, device="meta")
        self.weight, self.bias = _weights(conv, dtype)

    def forward(self, x_BCT: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, T) → (B, C', T')."""
        assert output_size is None
        x, weight = _as_image(x_BCT.to(self.weight.dtype)), _as_image(self.weight)
        return nn.functional.conv_transpose2d(x, weight, self.bias, (1, self.stride[0]), (0, int(self.padding[0]))).squeeze(2)


def _weights(conv: nn.Conv1d | nn.ConvTranspose1d, dtype: torch.dtype) -> tuple[nn.Parameter, nn.Parameter | None]:
    weight = _as_image(conv.weight.detach().to(dtype)).squeeze(2)
    bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().to(dtype), requires_grad=False)
    return nn.Parameter(weight, requires_grad=False), bias


def _as_image(x: Tensor) -> Tensor:
    """(B, C, T) → (B, C, 1, T), on a CPU channels last."""
    image = x.unsqueeze(2)
    return image.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else image


def quicken(autoencoder: nn.Module) -> None:
    """Replaces snakes, plain convolutions and residual units of them in this autoencoder, which must be on its device, by faster ones."""
    for parent in list(autoencoder.modules()):
        for name, layer in list(parent.named_children()):
            faster = _faster(layer, torch.float32)
            if faster is not None:
                setattr(parent, name, faster)
    for parent in list(autoencoder.modules()):
        for name, layer in list(parent.named_children()):
            layers = getattr(layer, "layers", None)
            if not isinstance(layers, nn.Sequential) or type(layer).__name__ != "ResidualUnit":
                continue
            if [type(one) for one in layers] == [FastSnake, FastConv] * 2:
                setattr(parent, name, FastUnit(layer))


def round_fine_blocks(decoder: nn.Module) -> int:
    """Lets the residual units of a quickened decoder's last blocks compute in bfloat16, not their sums; returns how many units."""
    blocks = [module for module in decoder.modules() if type(module).__name__ == "DecoderBlock"][-FINE_BLOCKS:]
    units = [unit for block in blocks for unit in block.modules() if isinstance(unit, FastUnit)]
    for unit in units:
        for parent in list(unit.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, FastConv):
                    setattr(parent, name, FastConv(layer, torch.bfloat16))
                elif isinstance(layer, FastSnake):
                    layer.dtype = torch.bfloat16
    return len(units)


def _faster(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The faster twin of a layer, None where there is none."""
    if type(layer).__name__ == "SnakeBeta" and layer.alpha_logscale:
        return FastSnake(layer, dtype)
    if isinstance(layer, nn.Conv1d) and layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return FastConv(layer, dtype)
    if isinstance(layer, nn.ConvTranspose1d) and layer.groups == 1 and layer.dilation == (1,) and layer.output_padding == (0,):
        return FastConvTranspose(layer, dtype)
    return None
