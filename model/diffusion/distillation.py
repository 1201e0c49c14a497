"""What a student of few steps learns: to land in one DDIM step where its teacher lands in two. It knows nothing of networks.

Shapes: B batch, C channels, T frames, G the teacher's timesteps and the clean end behind them. Both take "trailing" timesteps
(`model.diffusion.sampling.timesteps`): a student of N steps stands on every other one of its teacher's 2 N.
"""

import torch
from torch import Tensor

from model.diffusion.objective import Denoiser, Schedule
from model.diffusion.sampling import timesteps


def lesson(teacher: Denoiser, schedule: Schedule, x_BCT: Tensor, place_B: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(x̃₀, ε̃) that a student of `steps` steps should see in x_BCT at its place_B-th timestep, 0 the noisiest: αx̃₀ + σε̃ is x_BCT, and
    DDIM's step from it ends where two of the teacher's end (Salimans & Ho 2022, algorithm 2).
    """
    t_G = torch.tensor(timesteps(schedule, 2 * steps), device=x_BCT.device)
    alpha_bar_G = torch.cat([schedule.alpha_bar.to(x_BCT.device)[t_G], torch.ones(1, dtype=torch.float64, device=x_BCT.device)])

    def rates(index_B: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar_B11 = alpha_bar_G[index_B].view(-1, 1, 1)
        return alpha_bar_B11.sqrt(), (1 - alpha_bar_B11).sqrt()

    first_B = 2 * place_B.to(x_BCT.device)
    there_BCT = x_BCT
    for index_B in (first_B, first_B + 1):
        alpha, sigma, next_alpha, next_sigma = (rate.to(x_BCT) for rate in (*rates(index_B), *rates(index_B + 1)))
        v_BCT = teacher(there_BCT, t_G[index_B]).to(x_BCT)
        there_BCT = next_alpha * (alpha * there_BCT - sigma * v_BCT) + next_sigma * (sigma * there_BCT + alpha * v_BCT)
    (alpha, sigma), (end_alpha, end_sigma) = rates(first_B), rates(first_B + 2)
    # In float64 up to here: rates that lie close together have few digits of their difference in float32.
    ratio, share = (end_sigma / sigma).to(x_BCT), (end_alpha - end_sigma / sigma * alpha).to(x_BCT)
    clean_BCT = (there_BCT - ratio * x_BCT) / share
    return clean_BCT, (x_BCT - alpha.to(x_BCT) * clean_BCT) / sigma.to(x_BCT)
