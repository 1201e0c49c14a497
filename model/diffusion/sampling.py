"""Samplers: plain functions from pure noise to a clean latent over a denoiser callable.

Shapes: B batch, C channels, T frames. All start at the last timestep, where ᾱ ≈ 4e-9 and noise alone is consistent
(Lin et al. 2023), and take "trailing" timesteps, so that the last evaluation is near the clean end at any number of steps.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from model.diffusion.objective import Denoiser, Schedule
from model.errors import ModelError

Solver = Literal["dpmpp-2m", "ddim", "ancestral"]
Progress = Callable[[int, int], None]
"""(steps done, steps in all)."""
Solving = Generator[tuple[Tensor, int], Tensor, Tensor]
"""Yields (x_BCT, t), is sent v_BCT, returns x₀."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Which solver, and how many evaluations of the denoiser."""

    solver: Solver = "dpmpp-2m"
    steps: int = 20

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise ModelError(f"solver={self.solver!r}: must be one of {', '.join(get_args(Solver))}")
        if self.steps < 1:
            raise ModelError(f"steps={self.steps}: must be at least 1; 20 is enough for dpmpp-2m")


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplerConfig):
    """How a checkpoint is sampled where the caller does not say. A distilled student's names the timesteps that it has learned."""

    guidance: float = 2.0
    """1 follows the vocal as learned, more follows it harder, 0 ignores it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guidance <= 20:
            raise ModelError(f"guidance={self.guidance}: must lie in 0..20; 2 is usual")


USUAL_SAMPLING = Sampling()
"""Of checkpoints that name none."""


def timesteps(schedule: Schedule, steps: int) -> list[int]:
    """Descending steps from the last timestep down, evenly spaced ("trailing", Lin et al. 2023, table 2)."""
    if not 1 <= steps <= schedule.steps:
        raise ModelError(f"steps={steps}: must lie in 1..{schedule.steps}, the steps of the schedule")
    return [round(schedule.steps - index * schedule.steps / steps) - 1 for index in range(steps)]


def guide(condition_BCT: Tensor, null_BCT: Tensor, *, guidance: float, rescale: float = 0.0, valid_BT: Tensor | None = None) -> Tensor:
    """v_null + g·(v_cond − v_null) (Ho & Salimans 2022, eq. 6) with the rescale of Lin et al. 2023 (eq. 15, 16), each sample for itself.
    valid_BT: the frames that the rescale looks at; None is all."""
    v_BCT = torch.lerp(null_BCT, condition_BCT, guidance)
    if not rescale:
        return v_BCT
    wanted_B11, found_B11 = (_deviation(part_BCT, valid_BT) for part_BCT in (condition_BCT, v_BCT))
    gain_B11 = wanted_B11 / found_B11.clamp(min=torch.finfo(v_BCT.dtype).tiny)
    return v_BCT * (1 + rescale * (gain_B11 - 1))


def _deviation(v_BCT: Tensor, valid_BT: Tensor | None) -> Tensor:
    if valid_BT is None:
        return v_BCT.std(dim=(1, 2), correction=0, keepdim=True)
    share_B1T = valid_BT.to(v_BCT).unsqueeze(1) / (v_BCT.shape[1] * valid_BT.sum(dim=1).clamp(min=1).view(-1, 1, 1))
    mean_B11 = (v_BCT * share_B1T).sum(dim=(1, 2), keepdim=True)
    return ((v_BCT - mean_B11) ** 2 * share_B1T).sum(dim=(1, 2), keepdim=True).sqrt()


def solve(noise_BCT: Tensor, schedule: Schedule, config: SamplerConfig, fresh_noise: Callable[[], Tensor] | None = None) -> Solving:
    """A solver as a coroutine: it yields (x_t, t), wants v̂(x_t, t) sent, and returns x₀.

    So whoever evaluates the network decides what is evaluated together: candidates, windows and requests at different steps.
    noise_BCT ~ N(0, I). `fresh_noise` gives the (B, C, T) noise of each step of the ancestral solver, which needs it.
    """
    if config.solver == "ancestral" and fresh_noise is None:
        raise ModelError("solver='ancestral' draws noise at every step: give fresh_noise, or use dpmpp-2m or ddim")
    steps = timesteps(schedule, config.steps)
    alpha_bars = [float(schedule.alpha_bar[t]) for t in steps] + [1.0]
    return _solving(noise_BCT, steps, alpha_bars, config.solver, fresh_noise)


def _solving(x_BCT: Tensor, steps: list[int], alpha_bars: list[float], solver: Solver, fresh_noise: Callable[[], Tensor] | None) -> Solving:
    memory = _Memory()
    for t, here, there in zip(steps, alpha_bars, alpha_bars[1:], strict=False):
        v_BCT = yield x_BCT, t
        alpha, sigma = math.sqrt(here), math.sqrt(1 - here)
        clean_BCT = alpha * x_BCT - sigma * v_BCT
        if solver == "dpmpp-2m":
            x_BCT = _dpmpp_2m(x_BCT, clean_BCT, here, there, memory)
        elif solver == "ddim":
            x_BCT = math.sqrt(there) * clean_BCT + math.sqrt(1 - there) * (sigma * x_BCT + alpha * v_BCT)
        else:
            x_BCT = _ancestral(x_BCT, clean_BCT, here, there, fresh_noise)
    return x_BCT


def sample(
    denoiser: Denoiser,
    noise_BCT: Tensor,
    schedule: Schedule,
    config: SamplerConfig | None = None,
    *,
    fresh_noise: Callable[[], Tensor] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """noise_BCT ~ N(0, I) → x₀, the whole batch at one step at a time; see `solve`."""
    config = config or SamplerConfig()
    solving = solve(noise_BCT, schedule, config, fresh_noise)
    x_BCT, t = next(solving)
    for done in range(1, config.steps + 1):
        v_BCT = denoiser(x_BCT, torch.full((x_BCT.shape[0],), t, device=x_BCT.device, dtype=torch.long))
        try:
            x_BCT, t = solving.send(v_BCT)
        except StopIteration as end:
            x_BCT = end.value
        if progress is not None:
            progress(done, config.steps)
    return x_BCT


@dataclass
class _Memory:
    """What DPM-Solver++(2M) keeps of the step before."""

    clean_BCT: Tensor | None = None
    half_log_snr_step: float = 0.0


def _dpmpp_2m(x_BCT: Tensor, clean_BCT: Tensor, here: float, there: float, memory: _Memory) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), ᾱ `here` to ᾱ `there`; the first is of order 1, and at
    the last, to ᾱ = 1, the step is infinite in log-SNR and ends on the predicted x₀."""
    if there == 1.0:
        return clean_BCT
    step = 0.5 * (math.log(there / (1 - there)) - math.log(here / (1 - here)))
    ahead_BCT = clean_BCT
    if memory.clean_BCT is not None:
        ahead_BCT = clean_BCT + (clean_BCT - memory.clean_BCT) * (0.5 * step / memory.half_log_snr_step)
    memory.clean_BCT, memory.half_log_snr_step = clean_BCT, step
    return math.sqrt((1 - there) / (1 - here)) * x_BCT - math.sqrt(there) * math.expm1(-step) * ahead_BCT


def _ancestral(x_BCT: Tensor, clean_BCT: Tensor, here: float, there: float, fresh_noise: Callable[[], Tensor] | None) -> Tensor:
    """A draw from q(x_there | x_here, x₀) (Ho et al. 2020, eq. 6 and 7), for skipped steps too."""
    ratio = here / there
    mean_BCT = (math.sqrt(there) * (1 - ratio) / (1 - here)) * clean_BCT + (math.sqrt(ratio) * (1 - there) / (1 - here)) * x_BCT
    if there == 1.0 or fresh_noise is None:
        return mean_BCT
    return mean_BCT + math.sqrt((1 - there) / (1 - here) * (1 - ratio)) * fresh_noise()
