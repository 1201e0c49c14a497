"""A vocal in, its band out: the one path of inference, for the command line, evaluation and the service.

Shapes: B batch, K candidates, W windows, C channels, T latent frames, N samples.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import Checkpoint, load_checkpoint
from model.codec import load_codec
from model.codec_base import Codec
from model.diffusion import Denoiser, Schedule
from model.errors import ModelError
from model.fit import Fit, fit
from model.geometry import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS, SEGMENT_FRAMES
from model.sampling import Progress, SamplerConfig, Solver, guided, sample
from model.unet import VocalFeatures

NOISE_WINDOW_FRAMES = SEGMENT_FRAMES
PEAK_DBFS = -1.0
# Below this much under its loudest frame, and below this level at all, a vocal counts as resting.
ACTIVE_RANGE_DB, ACTIVE_FLOOR_DB = 35.0, -60.0


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What may be asked of one accompaniment."""

    seed: int = 0
    steps: int = 20
    guidance: float = 2.0
    """1 follows the vocal as learned, more follows it harder, 0 ignores it."""
    guidance_rescale: float = 0.7
    """φ of Lin et al. 2023, 0 to 1: how much of guidance's gain in level is taken back."""
    solver: Solver = "dpmpp-2m"
    candidates: int = 1
    """How many are made; the best fitting is returned."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ModelError(f"seed={self.seed}: must lie in 0..{2**63 - 1}")
        if not 0 <= self.guidance <= 20:
            raise ModelError(f"guidance={self.guidance}: must lie in 0..20; 2 is usual")
        if not 0 <= self.guidance_rescale <= 1:
            raise ModelError(f"guidance_rescale={self.guidance_rescale}: must lie in 0..1")
        if not 1 <= self.candidates <= 64:
            raise ModelError(f"candidates={self.candidates}: must lie in 1..64")
        if not 1 <= self.steps <= 800:
            raise ModelError(f"steps={self.steps}: must lie in 1..800; 20 is usual")
        SamplerConfig(solver=self.solver, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Accompaniment:
    """audio_CN (2, N) float32, as long as the vocal and at its level; it may exceed full scale as the vocal may, see `mix`."""

    audio_CN: np.ndarray
    seed: int
    fit: Fit
    candidate_fits: tuple[Fit, ...]
    stage_s: dict[str, float]
    """Seconds of encode, diffuse, render (the codec's decoding) and fit."""


class Accompanist:
    """A checkpoint's network with its codec, ready for vocals. Not thread-safe; what it answers depends on its arguments alone."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        codec: Codec,
        *,
        device: str = "cpu",
        window_frames: int = SEGMENT_FRAMES,
        overlap_frames: int = SEGMENT_FRAMES // 4,
        rows_per_call: int = 4,
    ) -> None:
        """rows_per_call: candidates × windows denoised in one call of the network, which bounds its memory."""
        if codec.identity.weights_sha256 != checkpoint.codec.weights_sha256:
            raise ModelError(
                f"checkpoint {checkpoint.name} was trained on latents of codec {checkpoint.codec.id} "
                f"({checkpoint.codec.weights_sha256[:12]}), not {codec.identity.id} ({codec.identity.weights_sha256[:12]}): give that codec"
            )
        if not 0 < overlap_frames < window_frames or rows_per_call < 1:
            raise ModelError(
                f"overlap_frames={overlap_frames}: must lie in 1..{window_frames - 1}, and rows_per_call={rows_per_call} above 0"
            )
        self.checkpoint, self.codec, self.device = checkpoint, codec, torch.device(device)
        self.window_frames, self.overlap_frames, self.rows_per_call = window_frames, overlap_frames, rows_per_call
        self._unet = checkpoint.build(self.device)
        self._schedule = Schedule(steps=checkpoint.network.diffusion_steps)

    @torch.inference_mode()
    def accompany(self, vocal_CN: np.ndarray, config: GenerationConfig | None = None, *, progress: Progress | None = None) -> Accompaniment:
        """(2, N) float at 44.1 kHz, one sample or more (memory grows with length) → its accompaniment.

        progress: called after each step, and after each candidate's fit with (steps, steps); what it raises ends the work.
        ModelError: another shape, no samples, or not finite.
        """
        config = config or GenerationConfig()
        vocal_CN = _checked(vocal_CN)
        stage_s: dict[str, float] = {}
        with self._timed(stage_s, "encode"):
            gain = level_gain(vocal_CN, self.checkpoint.statistics.vocal_level_db)
            latent_BCT = self.codec.encode(torch.from_numpy(vocal_CN * np.float32(gain))[None]).to(self.device)
            vocal_BCT = self.checkpoint.statistics.normalise_vocal(latent_BCT)
        with self._timed(stage_s, "diffuse"):
            normal_KCT = self.diffuse(vocal_BCT, config, progress)
        best: tuple[Fit, np.ndarray] | None = None
        fits = []
        for normal_CT in normal_KCT:  # one after the other: a long song's audio is large
            with self._timed(stage_s, "render"):
                restored_BCT = self.checkpoint.statistics.restore_accompaniment(normal_CT[None])
                audio_CN = self.codec.decode(restored_BCT)[0, :, : vocal_CN.shape[1]].numpy() / np.float32(gain)
            with self._timed(stage_s, "fit"):
                fits.append(fit(vocal_CN, audio_CN))
            if best is None or fits[-1].overall > best[0].overall:
                best = fits[-1], audio_CN
            if progress is not None:
                progress(config.steps, config.steps)
        assert best is not None  # candidates ≥ 1
        return Accompaniment(audio_CN=best[1], seed=config.seed, fit=best[0], candidate_fits=tuple(fits), stage_s=stage_s)

    def diffuse(self, vocal_BCT: Tensor, config: GenerationConfig, progress: Progress | None = None) -> Tensor:
        """The normalised vocal latent (1, 64, T) → normalised accompaniment latents (K, 64, T)."""
        frames = vocal_BCT.shape[2]
        streams = [
            [noise_stream(config.seed, candidate, window) for window in range(-(-frames // NOISE_WINDOW_FRAMES))]
            for candidate in range(config.candidates)
        ]

        def fresh_noise() -> Tensor:
            return torch.stack([_draw(windows, frames) for windows in streams]).to(self.device)

        denoiser = self._denoiser(vocal_BCT, config)
        sampler = SamplerConfig(solver=config.solver, steps=config.steps)
        return sample(denoiser, fresh_noise(), self._schedule, sampler, fresh_noise=fresh_noise, progress=progress)

    def _denoiser(self, vocal_BCT: Tensor, config: GenerationConfig) -> Denoiser:
        """A denoiser of whole songs (K, 64, T): windows denoised apart, velocities averaged where they overlap (MultiDiffusion,
        Bar-Tal et al. 2023, eq. 5). At one x and t, averaging v is averaging x₀."""
        frames = vocal_BCT.shape[2]
        starts = window_starts(frames, self.window_frames, self.overlap_frames)
        length = min(frames, self.window_frames)
        features = [self._unet.encode_vocal(vocal_BCT[:, :, start : start + length]) for start in starts]
        null = self._unet.encode_vocal(vocal_BCT[:, :, :length], drop_B=torch.ones(1, dtype=torch.bool))
        weights = window_weights(starts, length, frames, self.overlap_frames)
        weights_WT = [weight_T.to(self.device) for weight_T in weights]
        rows = [(candidate, window) for window in range(len(starts)) for candidate in range(config.candidates)]
        calls = [rows[first : first + self.rows_per_call] for first in range(0, len(rows), self.rows_per_call)]

        def condition(call: Sequence[tuple[int, int]]) -> VocalFeatures:
            of_windows = [features[window] for _, window in call]
            return VocalFeatures.concatenate(of_windows if config.guidance == 1 else [*of_windows, null.repeat(len(call))])

        # For a usual request the rows are put together once, not at every step; for a long song that would cost memory.
        kept = [condition(call) for call in calls] if len(calls) <= 4 else None

        def denoise(x_KCT: Tensor, t_K: Tensor) -> Tensor:
            total_KCT = torch.zeros_like(x_KCT)
            for index, call in enumerate(calls):
                vocal = kept[index] if kept is not None else condition(call)

                def network(x_BCT: Tensor, t_B: Tensor, vocal: VocalFeatures = vocal) -> Tensor:
                    return self._unet(x_BCT, t_B, vocal)

                guide = guided(network, guidance=config.guidance, rescale=config.guidance_rescale)
                x_BCT = torch.stack([x_KCT[candidate, :, starts[window] : starts[window] + length] for candidate, window in call])
                v_BCT = (network if config.guidance == 1 else guide)(x_BCT, t_K[:1].expand(len(call)))
                for (candidate, window), v_CT in zip(call, v_BCT, strict=True):
                    total_KCT[candidate, :, starts[window] : starts[window] + length] += v_CT * weights_WT[window]
            return total_KCT

        return denoise

    @contextmanager
    def _timed(self, stage_s: dict[str, float], stage: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        stage_s[stage] = stage_s.get(stage, 0.0) + time.perf_counter() - start_s


def load_accompanist(folder: Path, *, codec: str | None = None, device: str = "auto") -> Accompanist:
    """The accompanist of a checkpoint's folder (or a training run's), with its codec or the one that `codec` names.

    device: auto is the accelerator where there is one. Raises ModelError when either cannot be loaded, or they do not belong together.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = load_checkpoint(folder)
    return Accompanist(checkpoint, load_codec(codec or checkpoint.codec.id, device=device), device=device)


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """First frames of windows that cover `frames`, each overlapping the one before by `overlap` or, the last, by more."""
    if frames <= window:
        return [0]
    return [*range(0, frames - window, window - overlap), frames - window]


def window_weights(starts: Sequence[int], length: int, frames: int, overlap: int) -> list[Tensor]:
    """Per window (T,), summing to 1 in every frame: flat, with sin² slopes of `overlap` frames where a neighbour is."""
    rise = torch.sin((torch.arange(overlap) + 0.5) / overlap * (torch.pi / 2)) ** 2
    weights = []
    for start in starts:
        weight_T = torch.ones(length)
        if start > 0:
            weight_T[:overlap] *= rise
        if start + length < frames:
            weight_T[-overlap:] *= rise.flip(0)
        weights.append(weight_T)
    total_T = torch.zeros(frames)
    for start, weight_T in zip(starts, weights, strict=True):
        total_T[start : start + length] += weight_T
    return [weight_T / total_T[start : start + length] for start, weight_T in zip(starts, weights, strict=True)]


def noise_stream(seed: int, candidate: int, window: int) -> torch.Generator:
    """The random stream of a request's candidate in a window of 1,024 frames: noise depends on neither batch, length nor device."""
    digest = hashlib.sha256(f"{seed}/{candidate}/{window}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _draw(streams: Sequence[torch.Generator], frames: int) -> Tensor:
    """(64, T): the next noise of each window, side by side. Whole windows are drawn, so that a longer vocal begins with the same noise."""
    return torch.cat([torch.randn(LATENT_CHANNELS, NOISE_WINDOW_FRAMES, generator=stream) for stream in streams], dim=1)[:, :frames]


def active_level_db(audio_CN: np.ndarray) -> float:
    """RMS in dBFS over the latent frames in which the voice sounds; −inf for silence. A gain moves it by exactly that gain, as long as
    the voice is above −60 dBFS."""
    audio = torch.from_numpy(np.ascontiguousarray(audio_CN, dtype=np.float32))
    padded = F.pad(audio, (0, -audio.shape[1] % HOP_SAMPLES)).double()
    power_T = padded.view(audio.shape[0], -1, HOP_SAMPLES).square().mean(dim=(0, 2))
    threshold = max(float(power_T.max()) * 10 ** (-ACTIVE_RANGE_DB / 10), 10 ** (ACTIVE_FLOOR_DB / 10))
    active_T = power_T[power_T >= threshold]
    return 10 * float(torch.log10(active_T.mean())) if len(active_T) else -np.inf


def level_gain(vocal_CN: np.ndarray, target_db: float) -> float:
    """The gain that brings a vocal to the level of the training set's, short of clipping; 1 for silence."""
    level_db = active_level_db(vocal_CN)
    if level_db == -np.inf:
        return 1.0
    return min(10 ** ((target_db - level_db) / 20), 1.0 / float(np.abs(vocal_CN).max()))


def mix(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(vocal, accompaniment, mixture) under one common gain, 1 or less, that keeps every peak at −1 dBFS or below."""
    if vocal_CN.shape != accompaniment_CN.shape:
        raise ModelError(f"mix: a vocal of shape {vocal_CN.shape} and an accompaniment of {accompaniment_CN.shape}; both must be equal")
    stems = (vocal_CN, accompaniment_CN, vocal_CN + accompaniment_CN)
    peak = max(float(np.abs(stem).max(initial=0.0)) for stem in stems)
    gain = np.float32(min(1.0, 10 ** (PEAK_DBFS / 20) / peak) if peak else 1.0)
    vocal, accompaniment = vocal_CN * gain, accompaniment_CN * gain
    return vocal, accompaniment, vocal + accompaniment


def within_full_scale(audio_CN: np.ndarray) -> np.ndarray:
    """Audio that stands alone: turned down to a peak of −1 dBFS where it exceeds that, else as it is."""
    return mix(np.zeros_like(audio_CN), audio_CN)[1]


def _checked(vocal_CN: np.ndarray) -> np.ndarray:
    vocal_CN = np.asarray(vocal_CN)
    if vocal_CN.ndim != 2 or vocal_CN.shape[0] != AUDIO_CHANNELS:
        raise ModelError(f"vocal of shape {vocal_CN.shape}: must be ({AUDIO_CHANNELS}, samples) at 44.1 kHz; decode it to stereo first")
    if vocal_CN.shape[1] == 0:
        raise ModelError("vocal of zero samples: there is nothing to accompany")
    if not np.issubdtype(vocal_CN.dtype, np.floating):
        raise ModelError(f"vocal of type {vocal_CN.dtype}: must be float in -1..1; divide integers by their full scale")
    if not np.isfinite(vocal_CN).all():
        raise ModelError("vocal with NaN or infinite samples: repair the recording")
    return np.ascontiguousarray(vocal_CN, dtype=np.float32)
