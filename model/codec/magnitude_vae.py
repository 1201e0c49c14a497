"""The embedded codec's network: a variational autoencoder of log-magnitudes, two spectral frames a latent frame.

Blocks are ConvNeXt (Liu et al. 2022) along time; norms act on one frame's channels, so the receptive field is that of the convolutions.
Shapes: B batch, C channels, F features of a latent frame, T latent frames, K frequency bins, J spectral frames (two a latent frame).
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.dimensions import HOP_SAMPLES, LATENT_CHANNELS

WINDOW_SAMPLES = 4_096
SPECTRAL_HOP_SAMPLES = 1_024
FRAMES_PER_LATENT = HOP_SAMPLES // SPECTRAL_HOP_SAMPLES
BINS = WINDOW_SAMPLES // 2  # the Nyquist bin is left out
# (bins, bins a band): single bins to 5 kHz, where notes are told apart; then bands that still resolve a voice's harmonics.
BAND_SEGMENTS = ((464, 1), (328, 2), (408, 4), (848, 8))
MAGNITUDE_BANDS = sum(bins // width for bins, width in BAND_SEGMENTS)
# Stereo is read in bands that widen with frequency; edges in bins of 10.77 Hz.
STEREO_EDGES = (0, 10, 16, 24, 34, 46, 60, 80, 104, 136, 180, 236, 310, 400, 520, 680, 880, 1140, 1460, 2048)
STEREO_BANDS = len(STEREO_EDGES) - 1
FEATURES = FRAMES_PER_LATENT * MAGNITUDE_BANDS + 2 * STEREO_BANDS
# A full-scale sine is 1; what lies 100 dB below it is silence.
MAGNITUDE_FLOOR = 1e-5
MAX_PAN = 1.5
MAX_WIDTH = 2.0


@dataclass(frozen=True, kw_only=True)
class MagnitudeVAEConfig:
    """Sizes of the network; the defaults are the embedded codec's 5.5 M parameters."""

    width: int = 320
    expansion: int = 3
    encoder_blocks: int = 2
    decoder_blocks: int = 5
    kernel: int = 7

    def __post_init__(self) -> None:
        for name in ("width", "expansion", "encoder_blocks", "decoder_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: must be odd, so that a frame sees as far back as ahead")


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution along time, then a two-layer perceptron at each frame, added to its input (Liu et al. 2022, fig. 4)."""

    def __init__(self, width: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.mix_time = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x_BTC: Tensor) -> Tensor:
        mixed_BTC = self.mix_time(x_BTC.transpose(1, 2)).transpose(1, 2)
        return x_BTC + self.scale * self.narrow(nn.functional.gelu(self.widen(self.norm(mixed_BTC)), approximate="tanh"))


class MagnitudeVAE(nn.Module):
    """Features of a latent frame ↔ 64 latent channels, Gaussian posterior (Kingma & Welling 2014)."""

    feature_mean: Tensor
    feature_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: MagnitudeVAEConfig) -> None:
        super().__init__()
        self.config = config
        width, expansion, kernel = config.width, config.expansion, config.kernel
        self.encoder_in = nn.Linear(FEATURES, width)
        self.encoder = nn.Sequential(*(ConvNeXtBlock(width, expansion, kernel) for _ in range(config.encoder_blocks)))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder_out = nn.Linear(width, 2 * LATENT_CHANNELS)
        self.decoder_in = nn.Linear(LATENT_CHANNELS, width)
        self.decoder = nn.Sequential(*(ConvNeXtBlock(width, expansion, kernel) for _ in range(config.decoder_blocks)))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_out = nn.Linear(width, FEATURES)
        # Measured on the training set: features enter standardised, latents leave with mean 0 and deviation 1.
        self.register_buffer("feature_mean", torch.zeros(FEATURES))
        self.register_buffer("feature_std", torch.ones(FEATURES))
        self.register_buffer("latent_mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("latent_std", torch.ones(LATENT_CHANNELS))

    def posterior(self, features_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) → mean and log-variance, (B, T, 64) each, before latents are standardised."""
        x_BTC = self.encoder(self.encoder_in((features_BTF - self.feature_mean) / self.feature_std))
        mean_BTC, log_variance_BTC = self.encoder_out(self.encoder_norm(x_BTC)).chunk(2, dim=-1)
        return mean_BTC, log_variance_BTC.clamp(-10.0, 2.0)

    def reconstruct(self, raw_latent_BTC: Tensor) -> Tensor:
        """(B, T, 64) before standardising → features (B, T, F)."""
        x_BTC = self.decoder(self.decoder_in(raw_latent_BTC))
        return self.decoder_out(self.decoder_norm(x_BTC)) * self.feature_std + self.feature_mean

    def encode(self, features_BTF: Tensor) -> Tensor:
        """Features (B, T, F) → latent (B, 64, T): the posterior's mean, standardised."""
        mean_BTC, _ = self.posterior(features_BTF)
        return ((mean_BTC - self.latent_mean) / self.latent_std).transpose(1, 2)

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Latent (B, 64, T) → features (B, T, F)."""
        return self.reconstruct(latent_BCT.transpose(1, 2) * self.latent_std + self.latent_mean)


def features_of(mid_BJK: Tensor, side_BJK: Tensor) -> Tensor:
    """Spectra (B, 2T, K + 1) complex, a full-scale sine being 1 → features (B, T, F).

    Per spectral frame the mid's log-magnitude in bands; per latent frame and stereo band the side as a share of the mid
    (pan) and what of the side the mid does not explain (width), as in parametric stereo (Breebaart et al. 2005).
    """
    batch, frames, _ = mid_BJK.shape
    mid, side = torch.view_as_real(mid_BJK[..., :BINS]), torch.view_as_real(side_BJK[..., :BINS])
    mid_power = mid.square().sum(-1)
    log_magnitude = 0.5 * (_pool(mid_power) + MAGNITUDE_FLOOR**2).log()
    mid_band = _stereo_sums(mid_power)
    cross_band = _stereo_sums((mid * side).sum(-1))
    side_band = _stereo_sums(side.square().sum(-1))
    # 1e-9: below −90 dB the mid is silence, and its stereo image is centred.
    pan = cross_band / (mid_band + 1e-9)
    width = ((side_band - pan * cross_band).clamp_min(0) / (mid_band + 1e-9)).sqrt()
    half = frames // FRAMES_PER_LATENT
    stereo = torch.cat([pan.clamp(-MAX_PAN, MAX_PAN), width.clamp_max(MAX_WIDTH)], dim=-1)
    return torch.cat([log_magnitude.reshape(batch, half, -1), stereo], dim=-1)


def magnitudes_of(features_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, T, F) → mid's magnitudes (B, 2T, K + 1), pan and width gains (B, 2T, K + 1)."""
    batch, frames, _ = features_BTF.shape
    log_magnitude, pan, width = features_BTF.split([FRAMES_PER_LATENT * MAGNITUDE_BANDS, STEREO_BANDS, STEREO_BANDS], dim=-1)
    log_magnitude = log_magnitude.reshape(batch, frames * FRAMES_PER_LATENT, MAGNITUDE_BANDS).clamp(-14.0, 3.0)
    # The floor is taken off, and half as much again for the network's error: silence is silence, not 2,048 bins of floor.
    power = (2 * log_magnitude).exp() - 1.5 * MAGNITUDE_FLOOR**2
    # No root of zero: its slope is infinite, and training differentiates this.
    magnitude = torch.where(power > 0, power.clamp_min(MAGNITUDE_FLOOR**4).sqrt(), 0.0)
    return _spread(magnitude), _spread_stereo(pan.clamp(-MAX_PAN, MAX_PAN)), _spread_stereo(width.clamp(0, MAX_WIDTH))


def _pool(power_BJK: Tensor) -> Tensor:
    """Mean power in each band: (B, J, K) → (B, J, bands)."""
    parts, start = [], 0
    for bins, width in BAND_SEGMENTS:
        segment = power_BJK[..., start : start + bins]
        parts.append(segment.unflatten(-1, (bins // width, width)).mean(-1) if width > 1 else segment)
        start += bins
    return torch.cat(parts, dim=-1)


def _spread(bands_BJK: Tensor) -> Tensor:
    """Each band's value in each of its bins, 0 at Nyquist: (B, J, bands) → (B, J, K + 1)."""
    parts, start = [], 0
    for bins, width in BAND_SEGMENTS:
        parts.append(bands_BJK[..., start : start + bins // width].repeat_interleave(width, dim=-1))
        start += bins // width
    return nn.functional.pad(torch.cat(parts, dim=-1), (0, 1))


def _stereo_sums(power_BJK: Tensor) -> Tensor:
    """Sum in each stereo band over the spectral frames of a latent frame: (B, 2T, K) → (B, T, bands)."""
    batch, frames, bins = power_BJK.shape
    pair = power_BJK.reshape(batch, frames // FRAMES_PER_LATENT, FRAMES_PER_LATENT, bins).sum(2)
    return torch.stack([pair[..., low:high].sum(-1) for low, high in itertools.pairwise(STEREO_EDGES)], dim=-1)


def _spread_stereo(gain_BTK: Tensor) -> Tensor:
    """(B, T, bands) → (B, 2T, K + 1), linear between the bands' centres."""
    edges = torch.tensor(STEREO_EDGES, dtype=torch.float32)
    centres = (edges[1:] + edges[:-1]) / 2
    position = torch.arange(BINS + 1, dtype=torch.float32)
    upper = torch.searchsorted(centres, position).clamp(1, STEREO_BANDS - 1)
    share = ((position - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1).to(gain_BTK.device)
    upper = upper.to(gain_BTK.device)
    spread = torch.lerp(gain_BTK[..., upper - 1], gain_BTK[..., upper], share)
    return spread.repeat_interleave(FRAMES_PER_LATENT, dim=1)
