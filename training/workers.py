"""What one of several workers does together with the others; with one worker, nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This worker's place among all of them, over torch.distributed's default group (gloo on CPU, NCCL on GPU)."""

    rank: int = 0
    size: int = 1
    on_node: int = 1
    """How many of all share this one's machine, with it."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that logs and saves."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum over workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_leader(self, value: float) -> float:
        """The leader's value, so that all decide alike."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(box, src=0)
        return float(box)

    def word_from_leader(self, value: str) -> str:
        """The leader's text, on every worker."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the mean over workers: one message of 60 MB for 15 M parameters.

        The whole batch's gradient, since every worker holds an equal share and the loss is a mean over samples.
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, averaged in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(averaged.view_as(gradient))
