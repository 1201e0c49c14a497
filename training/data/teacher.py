"""A checkpoint as a teacher: a batch goes in, and comes out as what its student of half the steps should see in it.

Shapes: B samples, C channels, T frames.
"""

from dataclasses import replace

import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.diffusion.distillation import lesson
from model.diffusion.objective import Denoiser, Schedule
from model.diffusion.sampling import Sampling, guide, timesteps
from model.network.unet import AccompanimentUNet
from training.config import Distillation
from training.data.batches import Batch


class Teacher:
    """Twice the student's steps of DDIM, guided as in generation."""

    def __init__(self, checkpoint: Checkpoint, config: Distillation, schedule: Schedule) -> None:
        """schedule: its tables lie on the device of the work."""
        self.config, self.schedule = config, schedule
        self._network = checkpoint.build(schedule.alpha.device)
        self._t_G = torch.tensor(timesteps(schedule, config.steps), device=schedule.alpha.device)

    @property
    def sampling(self) -> Sampling:
        """How its student is sampled: guidance is folded in, one evaluation a step."""
        return Sampling(solver="ddim", steps=self.config.steps, guidance=1.0)

    @torch.no_grad()
    def lesson(self, batch: Batch) -> Batch:
        """A batch whose t_B are places 0 … steps − 1 in the student's timesteps → the batch at these timesteps, its latent and noise
        replaced by what the student should find in the same noisy latent. So its velocity loss is the loss of distillation."""
        t_B = self._t_G[batch.t_B]
        x_BCT = self.schedule.add_noise(batch.accompaniment_BCT, batch.noise_BCT, t_B)
        teacher = guided(self._network, batch, self.config.guidance, self.config.guidance_rescale)
        clean_BCT, noise_BCT = lesson(teacher, self.schedule, x_BCT, batch.t_B, self.config.steps)
        return replace(batch, accompaniment_BCT=clean_BCT, noise_BCT=noise_BCT, t_B=t_B)


def guided(network: AccompanimentUNet, batch: Batch, guidance: float, rescale: float) -> Denoiser:
    """The network under the batch's vocals, and what is told beside them, as a denoiser; both branches of guidance are one batch, and
    guidance 1 needs no second one."""
    given = batch.conditions if network.config.controls else None
    if guidance == 1:
        vocal = network.encode_vocal(batch.vocal_BCT, batch.valid_BT, conditions=given)
        return lambda x_BCT, t_B: network(x_BCT, t_B, vocal).float()
    null_B = torch.arange(2 * len(batch.t_B), device=batch.t_B.device) >= len(batch.t_B)
    if given is not None:  # nothing at all beside the null vocal
        given = given.map(lambda value: torch.cat([value, torch.zeros_like(value)]))
    both = network.encode_vocal(batch.vocal_BCT.repeat(2, 1, 1), batch.valid_BT.repeat(2, 1), null_B, given)

    def denoise(x_BCT: Tensor, t_B: Tensor) -> Tensor:
        condition_BCT, null_BCT = network(x_BCT.repeat(2, 1, 1), t_B.repeat(2), both).float().chunk(2)
        return guide(condition_BCT, null_BCT, guidance=guidance, rescale=rescale, valid_BT=batch.valid_BT)

    return denoise
