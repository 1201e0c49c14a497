"""Our samplers against diffusers' schedulers, step for step on the same model outputs.

In float64 for DDIM and DDPM; diffusers' DPM-Solver casts its state to float32 at every step, hence the wider tolerance.
"""

import pytest
import torch
from torch import Tensor

from model.diffusion.objective import Schedule
from model.diffusion.sampling import SamplerConfig, sample, timesteps

SCHEDULE = Schedule()
SHAPE = (2, 3, 17)


def velocity(x_BCT: Tensor, t_B: Tensor) -> Tensor:
    """A smooth stand-in for a network: what is compared is the arithmetic around it."""
    time = t_B.to(x_BCT).view(-1, 1, 1) / SCHEDULE.steps
    return torch.tanh(x_BCT.roll(1, dims=-1) * (1 - time)) - 0.7 * time * x_BCT + 0.1 * torch.cos(5 * x_BCT)


def theirs(name: str, steps: int, noise_BCT: Tensor, seed: int) -> Tensor:
    import diffusers

    options = {
        "dpmpp-2m": (
            diffusers.DPMSolverMultistepScheduler,
            {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
        ),
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
        "ancestral": (diffusers.DDPMScheduler, {"clip_sample": False, "variance_type": "fixed_small"}),
    }
    kind, extra = options[name]
    scheduler = kind(
        num_train_timesteps=SCHEDULE.steps,
        trained_betas=SCHEDULE.beta.numpy(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        **extra,
    )
    # diffusers keeps its tables in float32; ours are put in their place, so that the comparison is of formulas, not of rounding
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar.clone()
    scheduler.set_timesteps(steps)
    if name == "dpmpp-2m":
        bars = SCHEDULE.alpha_bar[timesteps(SCHEDULE, steps)]
        scheduler.sigmas = torch.cat([((1 - bars) / bars).sqrt(), torch.zeros(1, dtype=torch.float64)])
    assert scheduler.timesteps.tolist() == timesteps(SCHEDULE, steps)
    x_BCT = noise_BCT
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        output = velocity(x_BCT, t.expand(len(x_BCT)))
        extra_step = {"generator": generator} if name == "ancestral" else {}
        x_BCT = scheduler.step(output, t, x_BCT, **extra_step).prev_sample
    return x_BCT


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "ancestral"])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 16, 20, 50, 100, 800])
def test_equals_diffusers(solver: str, steps: int) -> None:
    noise_BCT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours_generator = torch.Generator().manual_seed(2)
    ours = sample(
        velocity,
        noise_BCT,
        SCHEDULE,
        SamplerConfig(solver=solver, steps=steps),
        fresh_noise=lambda: torch.randn(SHAPE, generator=ours_generator, dtype=torch.float64),
    )
    tolerance = 2e-5 if solver == "dpmpp-2m" else 1e-9
    torch.testing.assert_close(ours, theirs(solver, steps, noise_BCT, 2), rtol=tolerance, atol=tolerance, check_dtype=False)
