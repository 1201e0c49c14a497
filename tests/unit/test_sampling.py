"""Samplers on denoisers whose answer is known, guidance and its rescale."""

import pytest
import torch
from torch import Tensor

from model.diffusion import Denoiser, Schedule
from model.errors import ModelError
from model.sampling import SamplerConfig, guided, sample, timesteps

SCHEDULE = Schedule()
SOLVERS = ["dpmpp-2m", "ddim", "ancestral"]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(denoiser: Denoiser, solver: str, steps: int, *shape: int) -> Tensor:
    fresh = torch.Generator().manual_seed(8)
    return sample(
        denoiser,
        noise(7, *shape),
        SCHEDULE,
        SamplerConfig(solver=solver, steps=steps),
        fresh_noise=lambda: torch.randn(shape, generator=fresh, dtype=torch.float64),
    )


def gaussian(deviation: float) -> Denoiser:
    """The optimal denoiser of data N(0, deviation²): E[x₀|x] = α s² x / (α² s² + σ²)."""

    def denoise(x_BCT: Tensor, t_B: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.rates(t_B, x_BCT)
        clean = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * x_BCT
        return (alpha * x_BCT - clean) / sigma

    return denoise


def known(clean_BCT: Tensor) -> Denoiser:
    def denoise(x_BCT: Tensor, t_B: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.rates(t_B, x_BCT)
        return (alpha * x_BCT - clean_BCT) / sigma

    return denoise


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_perfect_denoiser_gives_the_truth(solver: str, steps: int) -> None:
    clean = noise(1, 2, 4, 9)
    torch.testing.assert_close(run(known(clean), solver, steps, 2, 4, 9), clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("solver", "steps", "tolerance"), [("dpmpp-2m", 20, 0.03), ("ddim", 100, 0.05), ("ancestral", 800, 0.02)])
@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_a_gaussian_keeps_its_deviation(solver: str, steps: int, tolerance: float, deviation: float) -> None:
    made = run(gaussian(deviation), solver, steps, 1, 100, 100)
    assert float(made.std()) == pytest.approx(deviation, rel=tolerance)


def test_second_order_is_nearer_the_limit() -> None:
    limit = run(gaussian(0.5), "ddim", 800, 1, 10, 10)
    errors = {solver: float((run(gaussian(0.5), solver, 20, 1, 10, 10) - limit).norm()) for solver in ("dpmpp-2m", "ddim")}
    assert errors["dpmpp-2m"] < errors["ddim"] / 2


def test_timesteps_start_at_the_last() -> None:
    for steps in (1, 7, 20, 800):
        chosen = timesteps(SCHEDULE, steps)
        assert chosen[0] == 799
        assert len(chosen) == steps
        assert chosen == sorted(set(chosen), reverse=True)
        assert chosen[-1] < 800 / steps
    with pytest.raises(ModelError, match="steps=801"):
        timesteps(SCHEDULE, 801)


def two_branches(x_BCT: Tensor, _: Tensor) -> Tensor:
    """Conditional rows 3·x, null rows x."""
    return x_BCT * torch.cat([torch.full((len(x_BCT) // 2,), 3.0), torch.ones(len(x_BCT) // 2)]).to(x_BCT)[:, None, None]


def test_guidance_is_linear_in_both_branches() -> None:
    x, t_B = noise(1, 2, 4, 9), torch.tensor([5, 5])
    for guidance, factor in ((0.0, 1.0), (1.0, 3.0), (2.5, 6.0)):
        torch.testing.assert_close(guided(two_branches, guidance=guidance)(x, t_B), factor * x)


def test_rescale_returns_the_conditional_deviation() -> None:
    x, t_B = noise(1, 2, 4, 9), torch.tensor([5, 5])
    torch.testing.assert_close(guided(two_branches, guidance=4.0, rescale=1.0)(x, t_B), 3 * x)
    torch.testing.assert_close(guided(two_branches, guidance=2.0, rescale=0.5)(x, t_B), 4 * x)  # half of the way from 5 to 3


def test_progress_is_told_of_every_step() -> None:
    told: list[tuple[int, int]] = []
    sample(gaussian(1.0), noise(1, 1, 2, 3), SCHEDULE, SamplerConfig(steps=4), progress=lambda *now: told.append(now))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_refusals() -> None:
    with pytest.raises(ModelError, match="fresh_noise"):
        sample(gaussian(1.0), noise(1, 1, 2, 3), SCHEDULE, SamplerConfig(solver="ancestral"))
    with pytest.raises(ModelError, match="solver='euler'"):
        SamplerConfig(solver="euler")
    with pytest.raises(ModelError, match="steps=0"):
        SamplerConfig(steps=0)
