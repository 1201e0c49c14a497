"""Networks that tell decoded spectrograms from true ones, patch by patch.

Shapes: B batch, C channels, J spectral frames, K bands or bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

# Of a spectrogram's loudest value: what is softer looks all the same.
DEPTH_NEPERS = 9.2  # 80 dB
LOUDEST_SILENCE = 1e-3
SLOPE = 0.1


class PatchDiscriminator(nn.Module):
    """Convolutions over time and frequency whose outputs each judge one patch (Isola et al. 2017, sec. 3.2).

    A second input channel says where on the frequency axis a patch lies: hiss at 200 Hz is wrong, hiss at 10 kHz is not.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (2, width, 2 * width, 2 * width, 2 * width)
        strides = ((1, 2), (2, 2), (1, 4), (2, 2))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (3, 5), stride, (1, 2)))
            for before, after, stride in zip(channels[:-1], channels[1:], strides, strict=True)
        )
        self.judge = weight_norm(nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, picture_BJK: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A picture as `picture` makes it → a judgement of each patch, and what the layers saw."""
        place = torch.linspace(-1, 1, picture_BJK.shape[-1], device=picture_BJK.device).expand_as(picture_BJK)
        x_BCJK = torch.stack([picture_BJK, place], dim=1).contiguous(memory_format=torch.channels_last)
        seen = []
        for layer in self.layers:
            x_BCJK = nn.functional.leaky_relu(layer(x_BCJK), SLOPE)
            seen.append(x_BCJK)
        return self.judge(x_BCJK), seen


def picture(log_magnitude_BJK: Tensor, loudest_B: Tensor) -> Tensor:
    """Log-magnitudes (nepers) → 1 at the loudest value given (B, 1, 1), −1 at 80 dB below it and softer."""
    return ((log_magnitude_BJK - loudest_B) / DEPTH_NEPERS).clamp(-1, 0.2) * 2 + 1


def loudest(log_magnitude_BJK: Tensor) -> Tensor:
    """(B, J, K) → (B, 1, 1): its highest value, or of a silent one what makes all of it black."""
    return log_magnitude_BJK.amax(dim=(1, 2), keepdim=True).clamp_min(torch.tensor(LOUDEST_SILENCE).log().item())


@dataclass(frozen=True, kw_only=True)
class GeneratorLoss:
    """What the decoder learns from a discriminator."""

    fooled: Tensor
    matched: Tensor


def discriminator_loss(network: PatchDiscriminator, true_BJK: Tensor, decoded_BJK: Tensor) -> Tensor:
    """Least squares: true patches are 1, decoded ones 0 (Mao et al. 2017, eq. 2)."""
    judgement, _ = network(torch.cat([true_BJK, decoded_BJK.detach()]))
    on_true, on_decoded = judgement.float().chunk(2)
    return (on_true - 1).square().mean() + on_decoded.square().mean()


def generator_loss(network: PatchDiscriminator, true_BJK: Tensor, decoded_BJK: Tensor) -> GeneratorLoss:
    """Least squares towards 1, and L1 between what layers see of either (Kumar et al. 2019, eq. 4), as a share of the true."""
    with torch.no_grad():
        _, seen_true = network(true_BJK)
    judgement, seen = network(decoded_BJK)
    matched = torch.stack(
        [(own.float() - true.float()).abs().mean() / (true.float().abs().mean() + 1e-6) for own, true in zip(seen, seen_true, strict=True)]
    ).mean()
    return GeneratorLoss(fooled=(judgement.float() - 1).square().mean(), matched=matched)
