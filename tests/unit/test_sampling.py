"""Samplers on denoisers whose answer is known, guidance and its rescale."""

import pytest
import torch
from torch import Tensor

from model.diffusion.objective import Denoiser, Schedule
from model.diffusion.sampling import SamplerConfig, guide, sample, solve, timesteps
from model.errors import ModelError

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


def test_guidance_is_linear_in_both_branches() -> None:
    x = noise(1, 2, 4, 9)
    for guidance, factor in ((0.0, 1.0), (1.0, 3.0), (2.5, 6.0)):
        torch.testing.assert_close(guide(3 * x, x, guidance=guidance), factor * x)


def test_rescale_returns_the_conditional_deviation() -> None:
    x = noise(1, 2, 4, 9)
    torch.testing.assert_close(guide(3 * x, x, guidance=4.0, rescale=1.0), 3 * x)
    torch.testing.assert_close(guide(3 * x, x, guidance=2.0, rescale=0.5), 4 * x)  # half of the way from 5 to 3


def test_rescale_is_each_sample_s_own() -> None:
    x = noise(1, 2, 4, 9)
    together = guide(3 * x, x.flip(0), guidance=3.0, rescale=0.7)
    for row in range(2):
        alone = guide(3 * x[row : row + 1], x.flip(0)[row : row + 1], guidance=3.0, rescale=0.7)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_that_take_turns_do_not_disturb_each_other(solver: str) -> None:
    """Two requests at different steps, each asked when it suits: as each for itself."""
    starts, config = (noise(1, 1, 4, 9), noise(2, 1, 4, 9)), SamplerConfig(solver=solver, steps=6)
    alone = [sample(gaussian(0.7), x, SCHEDULE, config, fresh_noise=lambda x=x: 0.5 * x) for x in starts]
    solving = [solve(x, SCHEDULE, config, lambda x=x: 0.5 * x) for x in starts]
    asked = [next(one) for one in solving]
    found: list[Tensor | None] = [None, None]
    for turn in [0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1]:
        x, t = asked[turn]
        try:
            asked[turn] = solving[turn].send(gaussian(0.7)(x, torch.tensor([t])))
        except StopIteration as end:
            found[turn] = end.value
    for wanted, made in zip(alone, found, strict=True):
        assert made is not None
        assert torch.equal(made, wanted)


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
