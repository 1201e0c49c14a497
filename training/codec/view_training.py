"""`python -m training codec-2`: trains codec 2's autoencoder of views on a folder of recordings, on one core or a GPU.

Shapes: B batch, T latent frames, F features of a latent frame, C latent channels, J spectral frames, M bands.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from infra.errors import UserError
from model.codec.embedded_2 import SoundConfig, load_embedded_2, save_embedded_2
from model.codec.phase import OVERLAP
from model.codec.view_vae import ViewVAE, ViewVAEConfig
from model.codec.views import FEATURE_SIZES, FLOOR, views_in
from model.dimensions import LATENT_CHANNELS
from training.codec.fidelity import audio_files, fidelity
from training.codec.material import Material, open_material
from training.codec.state import (
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

# How far under a crop's loudest band a view counts, in nepers: 80 dB, as the measure of fidelity has it; 70 for partials, 60 for attacks.
MEL_DEPTH, FINE_DEPTH, ATTACK_DEPTH = 9.2, 8.0, 6.9
# Of a feature of each view in the components with which training begins: the square roots of what one weighs in the loss.
LINEAR_WEIGHTS = (1.0, 0.5, 1.3, 1.0, 0.5)
LINEAR_CROPS = 24
# Of the rate, for the linear path: it begins where it should be, and its layers sum 1,456 features without a norm behind them.
LINE_RATE = 0.03


@dataclass(frozen=True, kw_only=True)
class ViewTrainConfig:
    """A run of codec 2's training; infra/benchmarks/training.md says why these settings and what they have cost."""

    corpus: Path
    """Recordings to learn from, at any depth: 44.1 kHz stereo, WAV, FLAC or OGG."""
    out: Path
    """codec/ (a codec folder, to load by path), last/ (to resume), material/ (the corpus as features), log.jsonl."""
    judge: Path | None = None
    """Recordings that each evaluation decodes and compares; never trained on."""
    resume: bool = False
    seed: int = 0
    steps: int = 100_000
    """A longer run may be asked for at any --resume: only the last `cool_down_steps` depend on this number."""
    cool_down_steps: int = 2_000
    batch_size: int = 12
    crop_frames: int = 32
    """Latent frames of a crop; 32 are 1.5 s."""
    speeds: tuple[float, ...] = (1.0, 1.06)
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_after: int = 3_000
    """Steps after which the rate falls with the root of the step."""
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    kl_weight: float = 3e-3
    """Of the posterior's divergence from the unit Gaussian, mean over channels."""
    fine_weight: float = 0.5
    attack_weight: float = 1.0
    side_weight: float = 0.25
    width_weight: float = 0.25
    lean_weight: float = 0.1
    freeze_encoder: bool = False
    """From here on the decoder alone learns: latents, and with them the codec's identity, stay what they are bit for bit."""
    evaluate_every: int = 2_000
    save_minutes: float = 10.0
    device: str = "auto"
    threads: int = 1
    precision: Literal["auto", "float32", "bf16"] = "auto"
    network: ViewVAEConfig = field(default_factory=ViewVAEConfig)
    sound: SoundConfig = field(default_factory=SoundConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "cool_down_steps", "batch_size", "crop_frames", "warmup_steps", "decay_after", "evaluate_every", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        if not 0 < self.learning_rate < 1:
            raise UserError(f"learning_rate={self.learning_rate}: must be between 0 and 1; 1e-3 is usual")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay}: must be in [0, 1); 0.999 is usual")
        for name in ("kl_weight", "fine_weight", "attack_weight", "side_weight", "width_weight", "lean_weight", "save_minutes"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not self.speeds or min(self.speeds) <= 0.25 or max(self.speeds) >= 4:
            raise UserError(f"speeds={self.speeds}: give one or more between 0.25 and 4")

    @property
    def state_file(self) -> Path:
        return self.out / "last" / "views.safetensors"


@dataclass(frozen=True, kw_only=True)
class ViewLoss:
    """How far predicted views are from the true ones, in nepers."""

    mel: Tensor
    fine: Tensor
    attack: Tensor
    side: Tensor
    width: Tensor
    """Of the side's power over a whole crop: a loss in logarithms seeks the median of each frame, which holds less power than the mean."""
    lean: Tensor

    def total(self, config: ViewTrainConfig) -> Tensor:
        return (
            self.mel
            + config.fine_weight * self.fine
            + config.attack_weight * self.attack
            + config.side_weight * self.side
            + config.width_weight * self.width
            + config.lean_weight * self.lean
        )


LOSSES = tuple(ViewLoss.__dataclass_fields__)


def view_loss(predicted_BTF: Tensor, true_BTF: Tensor) -> ViewLoss:
    """L1 on each view; what lies too far under the loudest band of a crop is the same as silence. Attacks count where they are."""
    predicted, true = views_in(predicted_BTF), views_in(true_BTF)
    attack_BJM, true_attack_BJM = _audible(predicted.attack_BJM, true.attack_BJM, ATTACK_DEPTH)
    level_BJ, true_level_BJ = (0.5 * torch.logsumexp(2 * part, dim=-1) for part in (attack_BJM, true_attack_BJM))
    # Twice for the level of all bands: how steep an attack is, is heard and measured there.
    error_BJ = ((attack_BJM - true_attack_BJM).abs().mean(-1) + 2 * (level_BJ - true_level_BJ).abs()) / 3
    weight_BJ = _attack_weights(true_level_BJ)

    def compared(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().mean()

    return ViewLoss(
        mel=compared(*_audible(predicted.mel_BJM, true.mel_BJM, MEL_DEPTH)),
        fine=compared(*_audible(predicted.fine_BJM, true.fine_BJM, FINE_DEPTH)),
        attack=(weight_BJ * error_BJ).sum() / weight_BJ.sum(),
        side=(predicted.side_BTM - true.side_BTM).abs().mean(),
        width=compared(*(_side_levels(views.side_BTM, true.mel_BJM) for views in (predicted, true))),
        lean=(predicted.lean_BTM - true.lean_BTM).abs().mean(),
    )


def _side_levels(side_BTM: Tensor, mel_BJM: Tensor) -> Tensor:
    """(B, 1 + M) nepers: of the side over a crop, altogether and in each of its bands, beside a mid as `mel_BJM` says."""
    frames, bands = side_BTM.shape[1:]
    # Both banks are even on one scale, so a mean over neighbours makes the side's bands of the mel view's.
    mid_BTM = nn.functional.adaptive_avg_pool2d((2 * mel_BJM).exp(), (frames, bands))
    power_BM = (mid_BTM * (2 * side_BTM).exp()).mean(1)
    return 0.5 * (torch.cat([power_BM.sum(-1, keepdim=True), power_BM], dim=-1) + FLOOR**2).log()


def _audible(predicted_BJM: Tensor, true_BJM: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """Both, nowhere lower than `depth` under the loudest band of the true crop."""
    floor_B = true_BJM.amax(dim=(1, 2), keepdim=True) - depth
    return torch.maximum(predicted_BJM, floor_B), torch.maximum(true_BJM, floor_B)


def _attack_weights(level_BJ: Tensor) -> Tensor:
    """1 where a sound goes on, up to 9 around frames whose level (nepers) has grown within a window."""
    grown_BJ = nn.functional.pad(level_BJ[:, OVERLAP:] - level_BJ[:, :-OVERLAP], (OVERLAP // 2, OVERLAP // 2)).clamp(0, 2)
    return 1 + 4 * nn.functional.max_pool1d(grown_BJ.unsqueeze(1), 2 * OVERLAP + 1, 1, OVERLAP).squeeze(1)


def rate_at(step: int, config: ViewTrainConfig) -> float:
    """Warm-up, a fall with the root of the step, and a straight line to a hundredth at the end."""
    held = min(1.0, (step + 1) / config.warmup_steps) * min(1.0, (config.decay_after / (step + 1)) ** 0.5)
    return config.learning_rate * held * max(0.01, min(1.0, (config.steps - step) / config.cool_down_steps))


def train_views(config: ViewTrainConfig) -> dict[str, float]:
    """Trains, saves and evaluates; returns the last figures on `config.judge`. The codec is in `config.out / "codec"`."""
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(config.precision, device))
    if not config.resume and config.state_file.exists():
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")
    judged = audio_files(config.judge) if config.judge else []
    learnt = {path.resolve() for path in audio_files(config.corpus)}
    if both := [path for path in judged if path.resolve() in learnt]:
        raise UserError(f"{both[0]} is in --judge and in --corpus: a recording that judges must not be trained on")
    material = open_material(config.corpus, config.out / "material", config.crop_frames, config.speeds, config.seed)
    torch.manual_seed(config.seed)
    network = ViewVAE(config.network)
    weights_F = torch.cat([torch.full((size,), weight) for size, weight in zip(FEATURE_SIZES, LINEAR_WEIGHTS, strict=True)])
    run = _Run(config, network, device)
    if not run.restore():
        network.begin_linear(_sample(material, config).flatten(0, 1), weights_F)
        run.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if config.freeze_encoder:
        run.freeze()
    log.info("codec-2: %.1f h, %s, steps %d to %d", material.hours(), device, run.step, config.steps)
    figures: dict[str, float] = {}
    since: list[Tensor] = []  # what has been lost at each step since the last line of the log
    began, saved = time.process_time() - 60 * run.minutes, time.monotonic()
    for step in tqdm(range(run.step, config.steps), desc="codec-2: train", initial=run.step, total=config.steps, disable=None):
        for group in run.optimizer.param_groups:
            group["lr"] = group["share"] * rate_at(step, config)
        # Every draw is a function of (seed, step): a resumed run sees what an uninterrupted one sees.
        batch_BTF = material.crops(config.batch_size, config.crop_frames, np.random.default_rng([config.seed, step])).to(device)
        noise_BTC = torch.randn(
            *batch_BTF.shape[:2], LATENT_CHANNELS, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        )
        with autocast:
            mean_BTC, log_variance_BTC = (part.float() for part in network.posterior(batch_BTF))
            predicted_BTF = network.reconstruct(mean_BTC + noise_BTC.to(device) * (0.5 * log_variance_BTC).exp()).float()
        loss = view_loss(predicted_BTF, batch_BTF)
        kl = 0.5 * (mean_BTC.square() + log_variance_BTC.exp() - 1 - log_variance_BTC).mean()
        run.optimizer.zero_grad()
        (loss.total(config) + config.kl_weight * kl).backward()
        norm = nn.utils.clip_grad_norm_(run.learning(), config.gradient_clip)
        run.optimizer.step()
        average_in(run.average_learning(), network, min(config.ema_decay, (step + 1) / (step + 10)))
        run.step, run.minutes = step + 1, (time.process_time() - began) / 60
        last = step + 1 == config.steps
        since.append(torch.stack([getattr(loss, name).detach() for name in LOSSES] + [kl.detach(), norm.detach()]))
        if (step + 1) % 100 == 0 or last:
            terms = dict(zip((*LOSSES, "kl", "gradient"), torch.stack(since).mean(0).tolist(), strict=True))
            write_log(config.out, step=step, **terms, rate=rate_at(step, config), minutes=run.minutes)
            since.clear()
        if (step + 1) % config.evaluate_every == 0 or last:
            statistics = export(run, material)
            if not last:
                run.save()  # first: a recording that cannot be judged must not cost the steps
            if judged:
                figures = fidelity(load_embedded_2(config.out / "codec", codec_id="trained", device=str(device)), judged)
            write_log(config.out, step=step, minutes=run.minutes, **statistics, **figures)
        # The codec before the state: what says that the run is over comes last.
        if last or time.monotonic() - saved > 60 * config.save_minutes:
            run.save()
            saved = time.monotonic()
    return figures


class _Run:
    """What a run carries from step to step, and how it is stored."""

    def __init__(self, config: ViewTrainConfig, network: ViewVAE, device: torch.device) -> None:
        self.config, self.network = config, network.to(device)
        parts: dict[float, list[nn.Parameter]] = {1.0: [], LINE_RATE: []}
        for name, parameter in network.named_parameters():
            parts[LINE_RATE if "_line" in name else 1.0].append(parameter)
        groups = [{"params": part, "share": share} for share, part in parts.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
        self.average: dict[str, Tensor] = {}
        self.step, self.minutes, self.frozen = 0, 0.0, False

    def learning(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def average_learning(self) -> dict[str, Tensor]:
        """The averages that still move. An average of equals is not equal: it loses the sign of a zero, and with it the identity."""
        return {name: value for name, value in self.average.items() if not self.frozen or name.startswith("decoder")}

    def freeze(self) -> None:
        """The averaged encoder, with the statistics of its last export, is the encoder from here on. Without effect on a frozen run."""
        if not self.frozen:
            if not bool(self.average["latent_std"].ne(1).any()):
                raise UserError(f"{self.config.out}: no codec has been exported yet; train on without --freeze-encoder first")
            self.network.load_state_dict(self.average)
            self.frozen = True
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith("decoder"))

    def save(self) -> None:
        tensors = prefixed("network", self.network.state_dict()) | prefixed("average", self.average)
        tensors |= {"minutes": torch.tensor(self.minutes, dtype=torch.float64), "frozen": torch.tensor(self.frozen)}
        save_state(self.config.state_file, self.step, tensors | prefixed("optimizer", moments(self.network, self.optimizer)), self.config)

    def restore(self) -> bool:
        """Whether there was a stored run to go on with."""
        if not self.config.state_file.is_file():
            return False
        self.step, tensors = load_state(self.config.state_file)
        self.network.load_state_dict(under("network", tensors))
        device = self.network.feature_mean.device
        self.average = {name: value.to(device) for name, value in under("average", tensors).items()}
        self.minutes, self.frozen = float(tensors["minutes"]), bool(tensors["frozen"])
        if self.frozen:
            self.freeze()
        set_moments(self.network, self.optimizer, under("optimizer", tensors))
        return True


def _sample(material: Material, config: ViewTrainConfig) -> Tensor:
    """Crops (B, T, F) that the linear path and the latents' statistics are measured on."""
    parts = [material.crops(64, config.crop_frames, np.random.default_rng([config.seed, 10**9, index])) for index in range(LINEAR_CROPS)]
    return torch.cat(parts)


@torch.no_grad()
def export(run: _Run, material: Material) -> dict[str, float]:
    """Writes OUT/codec from the averages, its latents standardised over a sample; returns what the channels are like."""
    device = run.network.feature_mean.device
    network = ViewVAE(run.config.network).to(device).eval()
    network.load_state_dict(run.average)
    posteriors = [network.posterior(part_BTF.to(device)) for part_BTF in _sample(material, run.config).split(64)]
    mean_NC = torch.cat([mean.flatten(0, 1) for mean, _ in posteriors])
    variance_NC = torch.cat([log_variance.flatten(0, 1) for _, log_variance in posteriors]).exp()
    if not run.frozen:
        network.latent_mean, network.latent_std = mean_NC.mean(0), mean_NC.std(0).clamp_min(1e-4)
        for name in ("latent_mean", "latent_std"):
            run.average[name].copy_(getattr(network, name))
            getattr(run.network, name).copy_(run.average[name])
    save_embedded_2(run.config.out / "codec", network, run.config.sound)
    share_C = variance_NC.mean(0).sqrt() / network.latent_std  # of the posterior's noise in the latent's own deviation
    return {
        "latent_std_min": float(network.latent_std.min()),
        "latent_std_max": float(network.latent_std.max()),
        "posterior_share_median": float(share_C.median()),
        "dead_channels": int((share_C > 2).sum()),
    }
