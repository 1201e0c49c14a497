"""The network: a U-Net over the noisy accompaniment, told about the vocal frame by frame at every resolution.

Shapes: B batch, C channels, T frames (each level has half the frames of the one before).

Padding: what lies in invalid frames never reaches a valid one. Convolutions see zeros there, norms count valid frames only,
attention masks them; so a padded segment's valid frames equal those of the segment alone, up to rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.diffusion.objective import Schedule
from model.dimensions import LATENT_CHANNELS
from model.errors import ModelError
from model.network.attention import AlignmentKeys, SoftAlignmentAttention
from model.network.conditions import CONTROLS, Conditions, ConditionStream, check_controls


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of an AccompanimentUNet."""

    channels: tuple[int, ...]
    """Width of each level, finest first; each level halves the frames of the one before."""
    vocal_blocks: tuple[int, ...]
    """Residual blocks of the vocal stream a level. They run once a request, so they are cheap at inference."""
    bottleneck_blocks: int = 2
    """Residual blocks around the attention: the first before it, the others after."""
    heads: int = 8
    head_channels: int = 64
    window: int = 16
    """Vocal frames of local attention, at the bottleneck's frame rate."""
    time_channels: int = 256
    groups: int = 8
    latent_channels: int = LATENT_CHANNELS
    diffusion_steps: int = 800
    controls: tuple[str, ...] = ()
    """What may be given beside the vocal, of `model.network.conditions.CONTROLS`."""
    styles: tuple[str, ...] = ()
    """Names, in the order of their embeddings."""
    condition_channels: int = 96

    def __post_init__(self) -> None:
        check_controls(self.controls, self.styles)
        if len(self.channels) < 2 or any(width < 1 or width % self.groups for width in self.channels):
            raise ModelError(f"channels={self.channels}: needs two levels or more, each a multiple of groups={self.groups}")
        if len(self.vocal_blocks) != len(self.channels) or any(blocks < 1 for blocks in self.vocal_blocks):
            raise ModelError(f"vocal_blocks={self.vocal_blocks}: needs one count of at least 1 for each of {len(self.channels)} levels")
        if self.bottleneck_blocks < 1:
            raise ModelError(f"bottleneck_blocks={self.bottleneck_blocks}: must be at least 1")
        if self.time_channels < 4 or self.time_channels % 2:
            raise ModelError(f"time_channels={self.time_channels}: must be even and at least 4")

    @property
    def frame_multiple(self) -> int:
        """Frames are padded inside to a multiple of this."""
        return 2 ** (len(self.channels) - 1)


def paper() -> UNetConfig:
    """The paper's sizes, about 15 M parameters: 64×1024 → 128×512 → 256×256 → 512×128, 8 heads of 64 at the bottleneck."""
    return UNetConfig(channels=(64, 128, 256, 512), vocal_blocks=(2, 2, 2, 1))


def small() -> UNetConfig:
    """About 2 M parameters, for two CPU cores."""
    return UNetConfig(channels=(64, 96, 128, 144), vocal_blocks=(1, 1, 1, 1), heads=4, head_channels=32, time_channels=64)


PRESETS: dict[str, Callable[[], UNetConfig]] = {"paper": paper, "small": small}
DEEPEST = 7
"""Levels at which a segment of 1,024 frames has 16 left at the bottleneck, one window of attention."""


def sized(config: UNetConfig, *, depth: int = 0, width: float = 1.0) -> UNetConfig:
    """The same network with `depth` levels (0: its own) and every level `width` times as wide, in whole groups of the normalisation.

    Levels are taken off, or added with the last one's width, at the bottom. Raises ModelError.
    """
    levels = depth or len(config.channels)
    if not 2 <= levels <= DEEPEST:
        raise ModelError(f"depth is {depth}, outside 2 to {DEEPEST} levels: choose one inside, or 0 for the preset's own")
    if not 0 < width <= 16:
        raise ModelError(f"width is {width:g}, outside 0 to 16: give a factor inside, for example 0.5")
    more = max(0, levels - len(config.channels))
    channels = (*config.channels[:levels], *(config.channels[-1],) * more)
    blocks = (*config.vocal_blocks[:levels], *(config.vocal_blocks[-1],) * more)
    groups = config.groups
    return replace(config, channels=tuple(max(groups, groups * round(width * wide / groups)) for wide in channels), vocal_blocks=blocks)


def with_controls(config: UNetConfig, *, styles: tuple[str, ...] = (), controls: tuple[str, ...] = CONTROLS) -> UNetConfig:
    """The same network told of `controls` too; without styles, of all but these. A twelfth of its widths together is for them."""
    controls = tuple(name for name in controls if name != "style" or styles)
    return replace(config, controls=controls, styles=styles, condition_channels=max(config.groups, sum(config.channels) // 12))


def without_controls(config: UNetConfig) -> UNetConfig:
    """The same network told of the vocal alone."""
    return replace(config, controls=(), styles=(), condition_channels=UNetConfig.condition_channels)


@dataclass(frozen=True, kw_only=True)
class VocalFeatures:
    """What the network knows of a vocal that depends on neither x nor t: computed once a request, used at every step."""

    frames: int
    """Frames of the latent that these features belong to, before padding inside the network."""
    films: tuple[Tensor, ...]
    """Scale and shift of each residual block of the accompaniment stream, (B, 2C, T) at its level."""
    alignment: AlignmentKeys
    valid: tuple[Tensor, ...] | None
    """(B, 1, T) float mask of each level, finest first; None: every frame is valid."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same features with every tensor changed along its batch dimension, or moved to a device or dtype."""
        return type(self)(
            frames=self.frames,
            films=tuple(change(film) for film in self.films),
            alignment=self.alignment.map(change),
            valid=None if self.valid is None else tuple(change(mask) for mask in self.valid),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, in an order that is the same for all features of one structure."""
        yield from self.films
        yield from self.alignment.tensors()
        yield from self.valid or ()


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation whose mean and variance count valid frames only."""

    def forward(self, x_BCT: Tensor, valid_B1T: Tensor | None = None) -> Tensor:
        if valid_B1T is None:
            return super().forward(x_BCT)
        batch, channels, frames = x_BCT.shape
        x_BGCT = x_BCT.float().view(batch, self.num_groups, channels // self.num_groups, frames)
        valid_B11T = valid_B1T.unsqueeze(1)
        count_B111 = valid_B11T.sum(dim=(2, 3), keepdim=True).clamp(min=1) * (channels // self.num_groups)
        mean = (x_BGCT * valid_B11T).sum(dim=(2, 3), keepdim=True) / count_B111
        centred = (x_BGCT - mean) * valid_B11T
        variance = centred.square().sum(dim=(2, 3), keepdim=True) / count_B111
        normal_BCT = (centred * torch.rsqrt(variance + self.eps)).view(batch, channels, frames)
        return torch.addcmul(self.bias[:, None], normal_BCT, self.weight[:, None]).to(x_BCT.dtype)


def masked(x_BCT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Zeros in invalid frames, as the zero padding of a convolution at a segment's end."""
    return x_BCT if valid_B1T is None else x_BCT * valid_B1T.to(x_BCT.dtype)


class ResidualBlock(nn.Module):
    """GroupNorm → SiLU → Conv1d, twice, with FiLM between: scale and shift by the step, and frame by frame by the vocal.

    Perez et al. 2018; the paper's FiLM averages over time, and so loses the vocal's timing at every level but the last.
    """

    def __init__(self, channels: int, out_channels: int, groups: int, *, time_channels: int = 0) -> None:
        super().__init__()
        self.norm_in = MaskedGroupNorm(groups, channels)
        self.conv_in = nn.Conv1d(channels, out_channels, 3, padding=1)
        self.norm_out = MaskedGroupNorm(groups, out_channels)
        self.conv_out = nn.Conv1d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * out_channels) if time_channels else None
        self.shortcut = nn.Conv1d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x_BCT: Tensor, valid_B1T: Tensor | None, film_BCT: Tensor | None = None, time_BC: Tensor | None = None) -> Tensor:
        h_BCT = self.conv_in(masked(F.silu(self.norm_in(x_BCT, valid_B1T)), valid_B1T))
        h_BCT = self.norm_out(h_BCT, valid_B1T)
        if film_BCT is not None and self.time is not None and time_BC is not None:
            scale_BCT, shift_BCT = (film_BCT + self.time(time_BC).unsqueeze(2)).chunk(2, dim=1)
            h_BCT = torch.addcmul(h_BCT + shift_BCT, h_BCT, scale_BCT)
        h_BCT = self.conv_out(masked(F.silu(h_BCT), valid_B1T))
        return self.shortcut(x_BCT) + h_BCT


class VocalStream(nn.Module):
    """The vocal latent → one normalised feature map a level."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.groups
        self.stem = nn.Conv1d(config.latent_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width, width, groups) for _ in range(blocks))
            for width, blocks in zip(widths, config.vocal_blocks, strict=True)
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(groups, width) for width in widths)
        self.downs = nn.ModuleList(nn.Conv1d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in pairwise(widths))

    def forward(self, vocal_BCT: Tensor, valid: tuple[Tensor, ...] | None, added: list[Tensor] | None = None) -> list[Tensor]:
        """added: of each level, what the conditions add to it."""
        h_BCT = self.stem(masked(vocal_BCT, None if valid is None else valid[0]))
        features = []
        for level, norm in enumerate(self.norms):
            mask = None if valid is None else valid[level]
            if level:
                h_BCT = self.downs[level - 1](h_BCT)
            if added is not None:
                h_BCT = h_BCT + masked(added[level], mask)
            for block in self.levels[level].children():
                h_BCT = block(h_BCT, mask)
            h_BCT = masked(h_BCT, mask)
            features.append(masked(F.silu(norm(h_BCT, mask)), mask))
        return features


class AccompanimentUNet(nn.Module):
    """v̂(x_t, t, vocal): 64 channels in and out, any number of frames."""

    alpha_bar_T: Tensor

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups, time_channels = config.channels, config.groups, config.time_channels
        bottom = widths[-1]
        self.register_buffer("alpha_bar_T", Schedule(steps=config.diffusion_steps).alpha_bar.float(), persistent=False)
        self.null_vocal_C = nn.Parameter(torch.zeros(config.latent_channels))
        self.vocal_stream = VocalStream(config)
        self.condition_stream = (
            ConditionStream(config.channels, config.controls, len(config.styles), config.condition_channels) if config.controls else None
        )
        self.time = nn.Sequential(nn.Linear(time_channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels), nn.SiLU())
        self.stem = nn.Conv1d(config.latent_channels, widths[0], 3, padding=1)
        # Levels of every block in the order that they run: down, bottleneck, up. The last keeps the width of both streams it joins,
        # because 64 channels are too few to carry 64 of noise and anything else.
        finest_first = list(range(len(widths) - 1))
        shapes = [(widths[level], widths[level], level) for level in finest_first]
        shapes += [(bottom, bottom, len(widths) - 1)] * config.bottleneck_blocks
        shapes += [(2 * widths[level], widths[level] if level else 2 * widths[0], level) for level in reversed(finest_first)]
        self.film_levels = [level for _, _, level in shapes]
        self.blocks = nn.ModuleList(ResidualBlock(into, out, groups, time_channels=time_channels) for into, out, _ in shapes)
        self.films = nn.ModuleList(nn.Conv1d(widths[level], 2 * out, 1) for _, out, level in shapes)
        self.downs = nn.ModuleList(nn.Conv1d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv1d(coarse, fine, 3, padding=1) for fine, coarse in pairwise(widths))
        self.attention_norm = MaskedGroupNorm(groups, bottom)
        self.attention = SoftAlignmentAttention(
            bottom, bottom, heads=config.heads, head_channels=config.head_channels, window=config.window
        )
        self.output_norm = MaskedGroupNorm(groups, 2 * widths[0])
        self.output = nn.Conv1d(2 * widths[0], config.latent_channels, 3, padding=1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def null_vocal(self, frames: int) -> Tensor:
        """(1, C, frames): the learned latent that stands for no vocal at all."""
        return self.null_vocal_C[None, :, None].expand(1, -1, frames)

    def encode_vocal(
        self,
        vocal_BCT: Tensor,
        valid_BT: Tensor | None = None,
        drop_B: Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> VocalFeatures:
        """Everything that does not depend on x or t. valid_BT: true frames (None: all). drop_B: samples told nothing of the vocal,
        which get the learned null condition; their mask stays. conditions: given beside it (None: nothing; the same as zeros)."""
        batch, channels, frames = vocal_BCT.shape
        if channels != self.config.latent_channels:
            raise ModelError(f"vocal latent of {channels} channels: the network takes {self.config.latent_channels}")
        if drop_B is not None:
            null_BCT = self.null_vocal(frames).to(vocal_BCT.dtype)
            vocal_BCT = torch.where(drop_B.to(vocal_BCT.device)[:, None, None], null_BCT, vocal_BCT)
        pad = -frames % self.config.frame_multiple
        if pad and valid_BT is None:
            valid_BT = torch.ones(batch, frames, dtype=torch.bool, device=vocal_BCT.device)
        valid = None
        if valid_BT is not None:
            mask_B1T = F.pad(valid_BT.to(vocal_BCT.device).bool(), (0, pad)).float().unsqueeze(1)
            levels = [mask_B1T]
            for _ in self.config.channels[1:]:
                # a coarse frame is valid when any of its two fine ones is
                levels.append(F.max_pool1d(levels[-1], 2))
            valid = tuple(levels)
        added = self._added(conditions, batch, frames, pad, None if valid is None else valid[0])
        features = self.vocal_stream(F.pad(vocal_BCT, (0, pad)), valid, added)
        return VocalFeatures(
            frames=frames,
            films=tuple(film(features[level]) for film, level in zip(self.films, self.film_levels, strict=True)),
            alignment=self.attention.project_vocal(features[-1], None if valid is None else valid[-1][:, 0] > 0),
            valid=valid,
        )

    def _added(self, conditions: Conditions | None, batch: int, frames: int, pad: int, valid_B1T: Tensor | None) -> list[Tensor] | None:
        if self.condition_stream is None:
            if conditions is not None:
                raise ModelError("this network knows no controls: give the vocal alone, or a checkpoint that was trained with them")
            return None
        device = self.null_vocal_C.device
        conditions = Conditions.none(batch, frames, device) if conditions is None else conditions.map(lambda value: value.to(device))
        if conditions.chords_BCT.shape[2] != frames:
            raise ModelError(f"conditions of {conditions.chords_BCT.shape[2]} frames beside a vocal of {frames}: cut them alike")
        return self.condition_stream(conditions.window(0, frames + pad), valid_B1T)

    def _embed(self, t_B: Tensor) -> Tensor:
        half = self.config.time_channels // 2
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t_B.device, dtype=torch.float32) / half)
        angle_BC = t_B.float()[:, None] * (1_000 / self.config.diffusion_steps) * frequency
        return self.time(torch.cat((angle_BC.sin(), angle_BC.cos()), dim=1))

    def forward(self, x_BCT: Tensor, t_B: Tensor, vocal: VocalFeatures) -> Tensor:
        """x_t (B, 64, T) and integer steps (B,) → v̂ (B, 64, T); zeros in invalid frames."""
        self.check(x_BCT, vocal)
        return self.velocity(x_BCT, t_B, vocal)

    @staticmethod
    def check(x_BCT: Tensor, vocal: VocalFeatures) -> None:
        """Raises ModelError where x and the vocal's features are not of one length."""
        if x_BCT.shape[2] != vocal.frames:
            raise ModelError(f"x has {x_BCT.shape[2]} frames and the vocal {vocal.frames}: encode the vocal at the length to be generated")

    def velocity(self, x_BCT: Tensor, t_B: Tensor, vocal: VocalFeatures) -> Tensor:
        """`forward` without its check, of tensors alone: this is what a recording may hold (model/inference/cpu_network.py)."""
        frames = x_BCT.shape[2]
        time_BC = self._embed(t_B)
        valid = vocal.valid or (None,) * len(self.config.channels)
        run = zip(self.blocks, vocal.films, self.film_levels, strict=True)

        def block(h_BCT: Tensor) -> Tensor:
            module, film_BCT, level = next(run)
            return module(h_BCT, valid[level], film_BCT, time_BC)

        h_BCT = self.stem(masked(F.pad(x_BCT, (0, -frames % self.config.frame_multiple)), valid[0]))
        skips = []
        for level, down in enumerate(self.downs):
            h_BCT = masked(block(h_BCT), valid[level])
            skips.append(h_BCT)
            h_BCT = down(h_BCT)
        h_BCT = block(h_BCT)
        query_BCT = masked(self.attention_norm(h_BCT, valid[-1]), valid[-1])
        h_BCT = h_BCT + self.attention(query_BCT, vocal.alignment, self.alpha_bar_T[t_B])
        for _ in range(self.config.bottleneck_blocks - 1):
            h_BCT = block(h_BCT)
        for level in reversed(range(len(self.ups))):
            finer_BCT = F.interpolate(masked(h_BCT, valid[level + 1]), scale_factor=2.0, mode="nearest")
            h_BCT = block(torch.cat((self.ups[level](masked(finer_BCT, valid[level])), skips[level]), dim=1))
        h_BCT = self.output(masked(F.silu(self.output_norm(h_BCT, valid[0])), valid[0]))
        return masked(h_BCT, valid[0])[:, :, :frames]


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
