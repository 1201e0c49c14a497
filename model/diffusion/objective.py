"""The noise schedule, the velocity target and its loss. It knows nothing of networks: a denoiser is any callable.

Shapes: B batch, C channels, T frames. Steps are integers 0 .. steps - 1, 0 the cleanest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from model.errors import ModelError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_BCT, t_B integer steps) → v_BCT."""


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """β of the cosine schedule, float64 (Nichol & Dhariwal 2021, eq. 17): 1 − ᾱ(t+1)/ᾱ(t), clipped."""
    # On the CPU also where a network is built without memory for its weights: arange on PyTorch's meta device imports sympy and dynamo.
    time = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    signal = torch.cos((time + offset) / (1 + offset) * (math.pi / 2)) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=largest)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Cosine schedule of `steps` steps; tables in float64, because 1 − ᾱ at the clean end loses half its digits in float32."""

    steps: int = 800
    beta: Tensor = field(init=False, repr=False, compare=False)
    alpha_bar: Tensor = field(init=False, repr=False, compare=False)
    alpha: Tensor = field(init=False, repr=False, compare=False)
    sigma: Tensor = field(init=False, repr=False, compare=False)
    snr: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ModelError(f"steps={self.steps}: a schedule needs at least 2 steps; the method uses 800")
        beta = cosine_betas(self.steps)
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        tables = {
            "beta": beta,
            "alpha_bar": alpha_bar,
            "alpha": alpha_bar.sqrt(),
            "sigma": (1 - alpha_bar).sqrt(),
            "snr": alpha_bar / (1 - alpha_bar),
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    def to(self, device: str | torch.device) -> Self:
        """The same schedule with its tables on a device, so that a training step copies nothing from the host."""
        moved = type(self)(steps=self.steps)
        for name in ("beta", "alpha_bar", "alpha", "sigma", "snr"):
            object.__setattr__(moved, name, getattr(self, name).to(device))
        return moved

    def rates(self, t_B: Tensor, like_BCT: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at t as (B, 1, 1), in the data's dtype and on its device."""
        shape = (-1,) + (1,) * (like_BCT.ndim - 1)
        index = t_B.to(self.alpha.device)
        return self.alpha[index].to(like_BCT).view(shape), self.sigma[index].to(like_BCT).view(shape)

    def add_noise(self, clean_BCT: Tensor, noise_BCT: Tensor, t_B: Tensor) -> Tensor:
        """x_t = α x₀ + σ ε."""
        alpha, sigma = self.rates(t_B, clean_BCT)
        return alpha * clean_BCT + sigma * noise_BCT

    def velocity(self, clean_BCT: Tensor, noise_BCT: Tensor, t_B: Tensor) -> Tensor:
        """v = α ε − σ x₀ (Salimans & Ho 2022, appendix D)."""
        alpha, sigma = self.rates(t_B, clean_BCT)
        return alpha * noise_BCT - sigma * clean_BCT

    def invert_velocity(self, x_BCT: Tensor, v_BCT: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """(x₀, ε) from x_t and v: x₀ = α x_t − σ v, ε = σ x_t + α v, the exact inverse since α² + σ² = 1."""
        alpha, sigma = self.rates(t_B, x_BCT)
        return alpha * x_BCT - sigma * v_BCT, sigma * x_BCT + alpha * v_BCT


@dataclass(frozen=True, kw_only=True)
class DiffusionLossConfig:
    """How the loss weighs the steps."""

    weighting: Literal["min-snr", "uniform"] = "min-snr"
    snr_cap: float = 5.0
    """γ of Min-SNR-γ (Hang et al. 2023)."""

    def __post_init__(self) -> None:
        if self.weighting not in ("min-snr", "uniform"):
            raise ModelError(f"weighting={self.weighting!r}: must be 'min-snr' or 'uniform'")
        if not self.snr_cap > 0:
            raise ModelError(f"snr_cap={self.snr_cap}: must be above 0; the method uses 5")

    def weights(self, schedule: Schedule, t_B: Tensor) -> Tensor:
        """w(t) for v-prediction, float64: min(SNR, γ)/(SNR + 1) (Hang et al. 2023, section 3.4), or 1."""
        snr = schedule.snr[t_B.to(schedule.snr.device)]
        return torch.ones_like(snr) if self.weighting == "uniform" else snr.clamp(max=self.snr_cap) / (snr + 1)


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """loss: the scalar to minimise. per_sample_B: weighted, mse_B: unweighted, both detached."""

    loss: Tensor
    per_sample_B: Tensor
    mse_B: Tensor


def velocity_loss(
    denoiser: Denoiser,
    schedule: Schedule,
    clean_BCT: Tensor,
    noise_BCT: Tensor,
    t_B: Tensor,
    valid_BT: Tensor | None = None,
    config: DiffusionLossConfig | None = None,
) -> DiffusionLoss:
    """mean over samples of w(t)·mean over valid frames of (v − v̂)², at given noise and steps (`training.data.batches` draws them).

    The mean is taken sample by sample, so that the average over workers is the loss of the whole batch.
    """
    config = config or DiffusionLossConfig()
    x_BCT = schedule.add_noise(clean_BCT, noise_BCT, t_B)
    error_BCT = (denoiser(x_BCT, t_B).float() - schedule.velocity(clean_BCT, noise_BCT, t_B).float()) ** 2
    if valid_BT is None:
        mse_B = error_BCT.mean(dim=(1, 2))
    else:
        kept_B1T = valid_BT.to(error_BCT).unsqueeze(1)
        frames_B = kept_B1T.sum(dim=(1, 2)).clamp(min=1)
        # where, not a product: a padded frame's prediction may be anything, and 0 × inf is NaN
        mse_B = torch.where(kept_B1T > 0, error_BCT, 0.0).sum(dim=(1, 2)) / (frames_B * error_BCT.shape[1])
    per_sample_B = config.weights(schedule, t_B).to(mse_B) * mse_B
    return DiffusionLoss(loss=per_sample_B.mean(), per_sample_B=per_sample_B.detach(), mse_B=mse_B.detach())
