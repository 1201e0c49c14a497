"""`python -m training codec-adversarial`: the embedded codec's second stage, in which the decoder alone learns.

L1 seeks the median of what a latent may stand for, and a median of noise is no noise. Here the decoder also answers to short-time
spectra of a waveform made from its magnitudes and the true phase, and to discriminators. The encoder and all statistics stay as they
are, bit for bit.

Shapes: B batch, C channels, F features of a latent frame, T latent frames, J spectral frames, K bands or bins, N samples.
"""

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from infra.errors import UserError
from model.codec.embedded import EMBEDDED_FOLDER, load_embedded, save_embedded
from model.codec.magnitude_vae import FRAMES_PER_LATENT, MAGNITUDE_BANDS, MagnitudeVAE, features_of, magnitudes_of
from model.codec.phase import decorrelate, impose, spectrum, waveform
from model.dimensions import HOP_SAMPLES, LATENT_CHANNELS
from training.codec.data import LOG_MAGNITUDES, audio_crops, find_songs
from training.codec.losses import PatchDiscriminator, discriminator_loss, generator_loss, loudest, picture
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
from training.codec.stft import WINDOWS, magnitudes, stft_loss
from training.codec.train import feature_loss

log = logging.getLogger(__name__)

ATTACK_WINDOW, ATTACK_HOP = 512, 256


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A run of the second stage. infra/benchmarks/model/codec.md says what made the weights that ship."""

    corpus: Path
    """Song folders, each with vocals.wav, accompaniment.wav and mixture.wav."""
    out: Path
    """codec/ (a codec folder), last/ (to resume), log.jsonl."""
    init: Path = EMBEDDED_FOLDER
    """The codec folder whose decoder learns on: of `python -m training codec`, or the one that ships."""
    resume: bool = False
    seed: int = 0
    steps: int = 2_000
    max_minutes: float = 0.0
    """Ends the run earlier, annealed all the same; 0: no limit."""
    batch_size: int = 6
    crop_frames: int = 48
    """Latent frames of a crop; 48 are 2.2 s."""
    held_out: int = 3
    """Songs never trained on, on which the musical figures are measured."""
    speeds: tuple[float, ...] = (1.0, 0.95, 1.03)
    readers: int = 1
    """Threads that read crops a step ahead."""
    learning_rate: float = 3e-4
    discriminator_rate: float = 3e-4
    warmup_steps: int = 100
    adversarial_after: int = 200
    """Steps in which the discriminators learn before the decoder listens to them."""
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    blend: float = 0.6
    """How far the exported decoder lies from the one it began with towards the averaged one (Wortsman et al. 2022, robust fine-tuning)."""
    latent_noise: float = 0.15
    """Most noise on a training latent beside the posterior's own, in its deviations: a diffusion model's latents are not exact."""
    pitch_weight: float = 3.0
    level_weight: float = 0.3
    stereo_weight: float = 0.5
    stft_weight: float = 1.0
    stft_windows: int = 2
    """How many of the windows, drawn anew, a step compares."""
    adversarial_share: float = 0.4
    """Length of the discriminators' gradient at the decoder's output, as a share of that of all other terms."""
    matching_weight: float = 4.0
    """Of what discriminators' layers see, beside their judgement."""
    discriminator_width: int = 16
    evaluate_every: int = 1_000
    save_every: int = 250
    device: str = "auto"
    threads: int = 1
    precision: Literal["auto", "float32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "held_out", "readers", "discriminator_width", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.crop_frames < 8:
            raise UserError(f"crop_frames={self.crop_frames}: must be 8 or more, for the discriminators and the longest window")
        if not 1 <= self.stft_windows <= len(WINDOWS):
            raise UserError(f"stft_windows={self.stft_windows}: must be 1 to {len(WINDOWS)}")
        for name in ("learning_rate", "discriminator_rate"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be between 0 and 1; 3e-4 is usual")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay}: must be in [0, 1); 0.995 is usual")
        if not 0 < self.blend <= 1:
            raise UserError(f"blend={self.blend}: must be in (0, 1]; 1 exports the averaged decoder as it is")
        for name in ("max_minutes", "latent_noise", "stft_weight", "adversarial_share", "matching_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not self.speeds or min(self.speeds) <= 0.25 or max(self.speeds) >= 4:
            raise UserError(f"speeds={self.speeds}: give one or more between 0.25 and 4")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the crops of a batch are like, without the latent frame at either end, whose spectra read beyond the crop."""

    features_BTF: Tensor
    mid_BJK: Tensor
    audio_BN: Tensor
    """The mids, then the sides."""


@torch.no_grad()
def truth_of(crops_BCN: Tensor) -> Truth:
    """Crops (B, 2, N) → features, spectra of the mid, and waveforms."""
    mid_BN, side_BN = (crops_BCN[:, 0] + crops_BCN[:, 1]) / 2, (crops_BCN[:, 0] - crops_BCN[:, 1]) / 2
    mid_BJK = spectrum(mid_BN)
    return Truth(
        features_BTF=features_of(mid_BJK, spectrum(side_BN))[:, 1:-1],
        mid_BJK=mid_BJK[:, FRAMES_PER_LATENT:-FRAMES_PER_LATENT],
        audio_BN=torch.cat([mid_BN, side_BN])[:, HOP_SAMPLES:-HOP_SAMPLES],
    )


@torch.no_grad()
def inexact_latent(network: MagnitudeVAE, truth: Truth, most_noise: float, rng: torch.Generator) -> Tensor:
    """A draw (B, T, 64) from the posterior, with up to `most_noise` deviations of noise more in each crop; before standardising."""
    mean_BTC, log_variance_BTC = network.posterior(truth.features_BTF)
    batch, frames, _ = mean_BTC.shape
    noise_BTC = torch.randn(batch, frames, LATENT_CHANNELS, generator=rng).to(mean_BTC.device)
    share_B = most_noise * torch.rand(batch, 1, 1, generator=rng).to(mean_BTC.device)
    return mean_BTC + noise_BTC * (log_variance_BTC.exp() + (share_B * network.latent_std).square()).sqrt()


def under_true_phase(features_BTF: Tensor, mid_BJK: Tensor) -> Tensor:
    """Waveforms (2B, N), mids then sides, of predicted magnitudes and stereo and the phase of the true mid; differentiable."""
    magnitude_BJK, pan_BJK, width_BJK = magnitudes_of(features_BTF)
    mid_BJK = impose(magnitude_BJK, mid_BJK)
    return waveform(torch.cat([mid_BJK, pan_BJK * mid_BJK + width_BJK * decorrelate(mid_BJK)]))


def pictures(features_BTF: Tensor, audio_BN: Tensor) -> tuple[Tensor, Tensor]:
    """What the discriminators look at: the log-magnitudes as the decoder gives them, and the mid's on windows of 12 ms."""
    bands_BJK = features_BTF[..., :LOG_MAGNITUDES].unflatten(-1, (FRAMES_PER_LATENT, MAGNITUDE_BANDS)).flatten(1, 2)
    attacks_BKJ = magnitudes(audio_BN[: len(features_BTF)], ATTACK_WINDOW, ATTACK_HOP)
    return bands_BJK, attacks_BKJ.log().transpose(1, 2)


def train_adversarially(config: AdversarialConfig) -> dict[str, float]:
    """Trains, saves and evaluates; returns the last figures on held-out songs. The codec is in `config.out / "codec"`."""
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(config.precision, device))
    state_file = config.out / "last" / "adversarial.safetensors"
    if not config.resume and state_file.exists():
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")
    songs = find_songs(config.corpus, config.held_out)
    crops = audio_crops(
        songs.training,
        samples=(config.crop_frames + 2) * HOP_SAMPLES,
        batch_size=config.batch_size,
        speeds=config.speeds,
        seed=config.seed,
        readers=config.readers,
    )
    torch.manual_seed(config.seed)
    started_from = load_embedded(config.init, codec_id="init", device=str(device))
    network, phase = started_from.network, started_from.phase
    for part in (network.decoder_in, network.decoder, network.decoder_norm, network.decoder_out):
        part.requires_grad_(True)
    decoder = [parameter for parameter in network.parameters() if parameter.requires_grad]
    bands_judge, attacks_judge = (PatchDiscriminator(config.discriminator_width) for _ in range(2))
    judges = nn.ModuleList([bands_judge, attacks_judge]).to(device)
    optimizer = torch.optim.AdamW(decoder, lr=config.learning_rate, betas=(0.8, 0.98), weight_decay=0.0)
    judges_optimizer = torch.optim.AdamW(judges.parameters(), lr=config.discriminator_rate, betas=(0.8, 0.98), weight_decay=0.01)
    # The decoder alone: even the mean of twice the same encoder is not the same, it loses the sign of a zero.
    beginning = {name: value.detach().clone() for name, value in network.state_dict().items() if name.startswith("decoder")}
    average = {name: value.clone() for name, value in beginning.items()}
    step, minutes = 0, 0.0
    if config.resume and state_file.is_file():
        step, tensors = load_state(state_file)
        minutes = float(tensors["minutes"])
        if any(not torch.equal(tensors[f"beginning.{name}"].to(device), value) for name, value in beginning.items()):
            raise UserError(
                f"the run at {config.out} began from another decoder than {config.init} holds: give that --init, or another --out"
            )
        network.load_state_dict(under("network", tensors))
        judges.load_state_dict(under("judges", tensors))
        set_moments(network, optimizer, under("optimizer", tensors))
        set_moments(judges, judges_optimizer, under("judges_optimizer", tensors))
        average = {name: value.to(device) for name, value in under("average", tensors).items()}
    log.info("codec: %d stems, %s, steps %d to %d", len(crops.stems), device, step, config.steps)
    figures: dict[str, float] = {}
    earlier, began = minutes, time.monotonic()

    def over() -> bool:
        return step >= config.steps or 0 < config.max_minutes <= minutes

    with tqdm(desc="codec: adversarial", initial=step, total=config.steps, disable=None) as bar:
        while not over():
            minutes = earlier + (time.monotonic() - began) / 60
            progress = max(step / config.steps, minutes / config.max_minutes if config.max_minutes else 0.0)
            rate = anneal(step, progress, config.warmup_steps)
            for group, base in zip(
                optimizer.param_groups + judges_optimizer.param_groups, (config.learning_rate, config.discriminator_rate), strict=True
            ):
                group["lr"] = base * rate
            # Every draw is a function of (seed, step): a resumed run sees what an uninterrupted one sees.
            truth = truth_of(crops.at(step).to(device))
            rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            windows = np.random.default_rng([config.seed, step]).choice(WINDOWS, size=config.stft_windows, replace=False).tolist()
            latent_BTC = inexact_latent(network, truth, config.latent_noise, rng)
            with autocast:
                output_BTF = network.reconstruct(latent_BTC).float()
            # The terms' gradients are weighed where they meet, at the decoder's output (Défossez et al. 2022, sec. 3.4).
            features_BTF = output_BTF.detach().requires_grad_()
            audio_BN = under_true_phase(features_BTF, truth.mid_BJK)
            true_pictures, pictures_BJK = pictures(truth.features_BTF, truth.audio_BN), pictures(features_BTF, audio_BN)
            views = [
                (judge, picture(true, loudest(true)), picture(decoded, loudest(true)))
                for judge, true, decoded in zip((bands_judge, attacks_judge), true_pictures, pictures_BJK, strict=True)
            ]

            with autocast:
                judged = torch.stack([discriminator_loss(*view) for view in views]).sum()
            judges_optimizer.zero_grad()
            judged.backward()
            judges_optimizer.step()

            compared = feature_loss(features_BTF, truth.features_BTF, config.pitch_weight)
            stft = stft_loss(audio_BN, truth.audio_BN, windows)
            total = compared.total(config.level_weight, config.stereo_weight) + config.stft_weight * stft
            judges.requires_grad_(False)
            with autocast:
                answers = [generator_loss(*view) for view in views]
            fooled, matched = (torch.stack([getattr(answer, name) for answer in answers]).mean() for name in ("fooled", "matched"))
            (pull,) = torch.autograd.grad(total, features_BTF, retain_graph=True)
            if step >= config.adversarial_after:
                (push,) = torch.autograd.grad(fooled + config.matching_weight * matched, features_BTF)
                pull = pull + config.adversarial_share * pull.norm() / (push.norm() + 1e-12) * push
            optimizer.zero_grad()
            output_BTF.backward(pull)
            judges.requires_grad_(True)
            norm = nn.utils.clip_grad_norm_(decoder, config.gradient_clip)
            optimizer.step()
            average_in(average, network, min(config.ema_decay, (step + 1) / (step + 10)))
            step += 1
            minutes = earlier + (time.monotonic() - began) / 60
            bar.update()

            last = over()
            if step % 50 == 0 or last:
                write_log(
                    config.out,
                    step=step,
                    magnitude=compared.magnitude.item(),
                    level=compared.level.item(),
                    stereo=compared.stereo.item(),
                    stft=stft.item(),
                    fooled=fooled.item(),
                    matched=matched.item(),
                    judged=judged.item(),
                    gradient=float(norm),
                    rate=rate,
                    elapsed_s=60 * minutes,
                )
            # The codec before the state: what says that the run is over comes last.
            if step % config.evaluate_every == 0 or last:
                blended = copy.deepcopy(network)
                blended.load_state_dict(
                    {name: torch.lerp(beginning[name], value, config.blend) for name, value in average.items()}, strict=False
                )
                save_embedded(config.out / "codec", blended, phase)
                figures = measure_songs(load_embedded(config.out / "codec", codec_id="trained", device=str(device)), songs.held_out)
                write_log(config.out, step=step, **figures)
            if step % config.save_every == 0 or last:
                tensors = prefixed("network", network.state_dict()) | prefixed("average", average) | prefixed("judges", judges.state_dict())
                tensors |= prefixed("optimizer", moments(network, optimizer)) | prefixed("beginning", beginning)
                tensors |= prefixed("judges_optimizer", moments(judges, judges_optimizer)) | {"minutes": torch.tensor(minutes)}
                save_state(state_file, step, tensors, config)
    return figures
