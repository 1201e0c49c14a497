"""Codec 2's network: a variational autoencoder of views, linear at heart, with convolutions along time beside the linear path.

The linear path is begun as the principal components of the features, which alone keep the mel view to 2.2 dB; the rest learns what they
leave over. Norms act on one frame's channels, so the receptive field is that of the convolutions.

Shapes: B batch, C channels, F features of a latent frame, T latent frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.codec.magnitude_vae import ConvNeXtBlock
from model.codec.views import FEATURES
from model.dimensions import LATENT_CHANNELS

# Log-variance of the posterior at the beginning: a tenth of the latents' own deviation.
FIRST_LOG_VARIANCE = -4.6


@dataclass(frozen=True, kw_only=True)
class ViewVAEConfig:
    """Sizes of the network; the defaults are the 7.0 M parameters of embedded-2."""

    encoder_width: int = 256
    encoder_blocks: int = 2
    decoder_width: int = 448
    decoder_blocks: int = 4
    expansion: int = 3
    kernel: int = 7

    def __post_init__(self) -> None:
        for name in ("encoder_width", "encoder_blocks", "decoder_width", "decoder_blocks", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: must be odd, so that a frame sees as far back as ahead")


class Trunk(nn.Module):
    """Frames in, ConvNeXt blocks along time, frames out; the last layer begins at zero."""

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, expansion, kernel) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.leave = nn.Linear(width, outputs)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.leave(self.norm(self.blocks(self.enter(x_BTC))))


class ViewVAE(nn.Module):
    """Features of a latent frame ↔ 64 latent channels, Gaussian posterior (Kingma & Welling 2014)."""

    feature_mean: Tensor
    feature_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ViewVAEConfig) -> None:
        super().__init__()
        self.config = config
        sizes = {"expansion": config.expansion, "kernel": config.kernel}
        self.encoder_line = nn.Linear(FEATURES, LATENT_CHANNELS, bias=False)
        self.encoder = Trunk(FEATURES, 2 * LATENT_CHANNELS, config.encoder_width, config.encoder_blocks, **sizes)
        self.decoder_line = nn.Linear(LATENT_CHANNELS, FEATURES, bias=False)
        self.decoder = Trunk(LATENT_CHANNELS, FEATURES, config.decoder_width, config.decoder_blocks, **sizes)
        # Measured on the training set: features enter standardised, latents leave with mean 0 and deviation 1.
        self.register_buffer("feature_mean", torch.zeros(FEATURES))
        self.register_buffer("feature_std", torch.ones(FEATURES))
        self.register_buffer("latent_mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("latent_std", torch.ones(LATENT_CHANNELS))

    def posterior(self, features_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) → mean and log-variance, (B, T, 64) each, before latents are standardised."""
        x_BTF = (features_BTF - self.feature_mean) / self.feature_std
        mean_BTC, log_variance_BTC = self.encoder(x_BTF).chunk(2, dim=-1)
        return self.encoder_line(x_BTF) + mean_BTC, (log_variance_BTC + FIRST_LOG_VARIANCE).clamp(-10.0, 2.0)

    def reconstruct(self, raw_latent_BTC: Tensor) -> Tensor:
        """(B, T, 64) before standardising → features (B, T, F)."""
        return (self.decoder_line(raw_latent_BTC) + self.decoder(raw_latent_BTC)) * self.feature_std + self.feature_mean

    def encode(self, features_BTF: Tensor) -> Tensor:
        """Features (B, T, F) → latent (B, 64, T): the posterior's mean, standardised."""
        mean_BTC, _ = self.posterior(features_BTF)
        return ((mean_BTC - self.latent_mean) / self.latent_std).transpose(1, 2)

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Latent (B, 64, T) → features (B, T, F)."""
        return self.reconstruct(latent_BCT.transpose(1, 2) * self.latent_std + self.latent_mean)

    @torch.no_grad()
    def begin_linear(self, features_NF: Tensor, weights_F: Tensor) -> None:
        """Sets statistics and the linear path from samples (N, F): the 64 principal components of the features times `weights_F`,
        whitened, and the least-squares way back (Baldi & Hornik 1989)."""
        mean_F = features_NF.mean(0)
        self.feature_mean.copy_(mean_F)
        self.feature_std.copy_(features_NF.std(0).clamp_min(0.05))
        weighted_NF = (features_NF - mean_F) * weights_F
        values, vectors_FC = torch.linalg.eigh((weighted_NF.T @ weighted_NF / len(weighted_NF)).double())
        top = vectors_FC[:, -LATENT_CHANNELS:] / values[-LATENT_CHANNELS:].clamp_min(1e-9).sqrt()
        self.encoder_line.weight.copy_((top.float() * (weights_F * self.feature_std).unsqueeze(1)).T)
        x_NF = (features_NF - mean_F) / self.feature_std
        # In float64, so that the same samples give the same weights wherever they lie in memory.
        latent_NC = self.encoder_line(x_NF).double()
        self.decoder_line.weight.copy_(torch.linalg.solve(latent_NC.T @ latent_NC, latent_NC.T @ x_NF.double()).T)
