"""`python -m training codec`: trains the embedded codec's magnitude VAE on song folders, on two CPU cores or a GPU.

Shapes: B batch, F features of a latent frame, T latent frames, C latent channels.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from infra.errors import UserError
from model.codec.embedded import PhaseConfig, load_embedded, save_embedded
from model.codec.magnitude_vae import BAND_SEGMENTS, FRAMES_PER_LATENT, MAGNITUDE_BANDS, STEREO_BANDS, MagnitudeVAE, MagnitudeVAEConfig
from model.dimensions import LATENT_CHANNELS
from training.codec.data import LOG_MAGNITUDES, corpus_features, crop, feature_statistics, find_songs, passes
from training.codec.report import measure_songs
from training.codec.state import (
    anneal,
    average_in,
    choose_device,
    load_state,
    moments,
    prefixed,
    save_state,
    set_moments,
    under,
    wants_bf16,
    write_log,
)

log = logging.getLogger(__name__)

NEPERS_60_DB = 60 / 20 * math.log(10)


@dataclass(frozen=True, kw_only=True)
class CodecTrainConfig:
    """A run of the codec's first training; infra/benchmarks/model/codec.md says what made the weights that ship."""

    corpus: Path
    """Song folders, each with vocals.wav, accompaniment.wav and mixture.wav."""
    out: Path
    """codec/ (a codec folder, also to load by path), last/ (to resume), log.jsonl."""
    resume: bool = False
    seed: int = 0
    steps: int = 4_500
    batch_size: int = 16
    crop_frames: int = 64
    """Latent frames of a crop; 64 are 3 s."""
    held_out: int = 3
    """Songs never trained on, on which the musical figures are measured."""
    speeds: tuple[float, ...] = (1.0, 0.95, 1.03)
    """Each stem is also read at these speeds: 1.06 is a semitone higher and 6% shorter."""
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    kl_weight: float = 5e-3
    """Of the posterior's divergence from the unit Gaussian, mean over channels; small, for latents that are smooth and yet exact."""
    pitch_weight: float = 3.0
    """Of the bins below 4.3 kHz, where chords and melodies are told apart."""
    level_weight: float = 0.3
    """Of the error in a frame's level, in nepers."""
    stereo_weight: float = 0.5
    evaluate_every: int = 1_500
    save_every: int = 500
    device: str = "auto"
    threads: int = 1
    """CPU threads; on a busy machine one is faster than two that wait for each other."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    network: MagnitudeVAEConfig = field(default_factory=MagnitudeVAEConfig)
    phase: PhaseConfig = field(default_factory=PhaseConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop_frames", "held_out", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        if not 0 < self.learning_rate < 1:
            raise UserError(f"learning_rate={self.learning_rate}: must be between 0 and 1; 1e-3 is usual")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay}: must be in [0, 1); 0.998 is usual")
        if self.kl_weight < 0:
            raise UserError(f"kl_weight={self.kl_weight}: must be 0 or more")
        if not self.speeds or min(self.speeds) <= 0.25 or max(self.speeds) >= 4:
            raise UserError(f"speeds={self.speeds}: give one or more between 0.25 and 4")


@dataclass(frozen=True, kw_only=True)
class FeatureLoss:
    """The terms that compare features."""

    magnitude: Tensor
    level: Tensor
    stereo: Tensor

    def total(self, level_weight: float, stereo_weight: float) -> Tensor:
        return self.magnitude + level_weight * self.level + stereo_weight * self.stereo


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The terms of one batch."""

    features: FeatureLoss
    kl: Tensor


def codec_loss(network: MagnitudeVAE, features_BTF: Tensor, noise_BTC: Tensor, pitch_weight: float) -> Loss:
    """L1 on log-magnitudes (heavier at low bins and where a frame is loud), on frames' levels and on the stereo image; KL a channel."""
    mean, log_variance = network.posterior(features_BTF)
    mean, log_variance = mean.float(), log_variance.float()
    predicted = network.reconstruct(mean + noise_BTC * (0.5 * log_variance).exp()).float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return Loss(features=feature_loss(predicted, features_BTF, pitch_weight), kl=kl)


def feature_loss(predicted: Tensor, features_BTF: Tensor, pitch_weight: float) -> FeatureLoss:
    """How far predicted features (B, T, F) are from the true ones."""
    target = features_BTF[..., :LOG_MAGNITUDES].unflatten(-1, (FRAMES_PER_LATENT, MAGNITUDE_BANDS))
    error = (predicted[..., :LOG_MAGNITUDES] - features_BTF[..., :LOG_MAGNITUDES]).abs().unflatten(-1, (FRAMES_PER_LATENT, MAGNITUDE_BANDS))
    # What lies 60 dB below a frame's loudest band is hardly heard beside it; a fifth of the weight keeps silence silent.
    depth = (target.amax(-1, keepdim=True) - target) / NEPERS_60_DB
    weight = (1 - depth).clamp_min(0.2) * band_weights(pitch_weight, error.device)
    magnitude = (weight * error).sum() / weight.sum()
    restored = predicted[..., :LOG_MAGNITUDES].unflatten(-1, (FRAMES_PER_LATENT, MAGNITUDE_BANDS))
    level = (frame_level(restored) - frame_level(target)).abs().mean()
    audible = (target.amax(dim=(-1, -2)) > math.log(1e-3)).float().unsqueeze(-1)
    stereo_error = (predicted[..., LOG_MAGNITUDES:] - features_BTF[..., LOG_MAGNITUDES:]).abs()
    stereo = (stereo_error * audible).sum() / (audible.sum() * 2 * STEREO_BANDS + 1)
    return FeatureLoss(magnitude=magnitude, level=level, stereo=stereo)


def frame_level(log_magnitude: Tensor) -> Tensor:
    """(…, bands) → (…): log of a spectral frame's level. A median of log-magnitudes, which L1 seeks, would be too soft."""
    widths = torch.cat([torch.full((bins // width,), float(width)) for bins, width in BAND_SEGMENTS]).to(log_magnitude.device)
    return 0.5 * torch.logsumexp(2 * log_magnitude.float() + widths.log(), dim=-1)


def band_weights(pitch_weight: float, device: torch.device) -> Tensor:
    """A weight a band: `pitch_weight` below 4.3 kHz, 1 above."""
    single_bins = BAND_SEGMENTS[0][0]
    weights = torch.ones(MAGNITUDE_BANDS, device=device)
    weights[: min(400, single_bins)] = pitch_weight
    return weights


def learning_rate_at(step: int, config: CodecTrainConfig) -> float:
    return config.learning_rate * anneal(step, step / config.steps, config.warmup_steps)


def train_codec(config: CodecTrainConfig) -> dict[str, float]:
    """Trains, saves and evaluates; returns the last figures on held-out songs. The codec is in `config.out / "codec"`."""
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(config.precision, device))
    if not config.resume and _state_file(config).exists():
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")
    songs = find_songs(config.corpus, config.held_out)
    features = corpus_features(songs.training, config.crop_frames, config.speeds)
    hours = sum(len(part) for part in features) * 2048 / 44_100 / 3600
    torch.manual_seed(config.seed)
    network = MagnitudeVAE(config.network)
    network.feature_mean, network.feature_std = feature_statistics(features)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    start = _restore(config, network, optimizer, average) if config.resume else 0
    log.info("codec: %d songs, %.2f h of stems, %s, steps %d to %d", len(songs.training), hours, device, start, config.steps)
    figures: dict[str, float] = {}
    began = time.monotonic()

    for step in tqdm(range(start, config.steps), desc="codec: train", initial=start, total=config.steps, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        # Every draw is a function of (seed, step): a resumed run sees what an uninterrupted one sees.
        batch = crop(features, config.batch_size, config.crop_frames, np.random.default_rng([config.seed, step]), device)
        noise = torch.randn(*batch.shape[:2], LATENT_CHANNELS, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step)).to(
            device
        )
        with autocast:
            loss = codec_loss(network, batch, noise, config.pitch_weight)
        total = loss.features.total(config.level_weight, config.stereo_weight) + config.kl_weight * loss.kl
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        average_in(average, network, min(config.ema_decay, (step + 1) / (step + 10)))

        last = step + 1 == config.steps
        if step % 50 == 0 or last:
            write_log(
                config.out,
                step=step,
                magnitude=loss.features.magnitude.item(),
                level=loss.features.level.item(),
                stereo=loss.features.stereo.item(),
                kl=loss.kl.item(),
                gradient=float(norm),
                learning_rate=learning_rate_at(step, config),
                elapsed_s=time.monotonic() - began,
            )
        # The codec before the state: what says that the run is over comes last.
        if (step + 1) % config.evaluate_every == 0 or last:
            statistics = export(config, average, features, device)
            figures = measure_songs(load_embedded(config.out / "codec", codec_id="trained", device=str(device)), songs.held_out)
            write_log(config.out, step=step, **statistics, **figures)
        if (step + 1) % config.save_every == 0 or last:
            _save(config, step + 1, network, optimizer, average)
    return figures


@torch.inference_mode()
def export(config: CodecTrainConfig, average: dict[str, Tensor], features: list[Tensor], device: torch.device) -> dict[str, float]:
    """Standardises the latents of the averaged network over the training set, writes OUT/codec, returns what the channels are like."""
    network = MagnitudeVAE(config.network).to(device).eval()
    network.load_state_dict(average)
    count, total, squares, variance = 0, *(torch.zeros(LATENT_CHANNELS, dtype=torch.float64, device=device) for _ in range(3))
    for batch in passes(features, 1024, device):
        mean, log_variance = (part.double().flatten(0, 1) for part in network.posterior(batch))
        count, total, squares, variance = (
            count + len(mean),
            total + mean.sum(0),
            squares + mean.square().sum(0),
            variance + log_variance.exp().sum(0),
        )
    center = total / count
    spread = (squares / count - center.square()).clamp_min(1e-8).sqrt()
    network.latent_mean, network.latent_std = center.float(), spread.float()
    save_embedded(config.out / "codec", network, config.phase)
    noise = (variance / count).sqrt() / spread  # of the posterior, beside the latent's own deviation
    return {
        "latent_std_min": float(spread.min()),
        "latent_std_max": float(spread.max()),
        "posterior_share_median": float(noise.median()),
        "dead_channels": int((noise > 2).sum()),
    }


def _save(config: CodecTrainConfig, step: int, network: MagnitudeVAE, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> None:
    tensors = prefixed("network", network.state_dict()) | prefixed("average", average)
    save_state(_state_file(config), step, tensors | prefixed("optimizer", moments(network, optimizer)), config)


def _restore(config: CodecTrainConfig, network: MagnitudeVAE, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    """The step at which the stored run stopped, its state loaded; 0 where there is none."""
    if not _state_file(config).is_file():
        return 0
    step, tensors = load_state(_state_file(config))
    network.load_state_dict(under("network", tensors))
    for name, value in under("average", tensors).items():
        average[name].copy_(value)
    set_moments(network, optimizer, under("optimizer", tensors))
    return step


def _state_file(config: CodecTrainConfig) -> Path:
    return config.out / "last" / "training.safetensors"
