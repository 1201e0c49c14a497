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

    def total(self, values: Tensor) -> Tensor:
        """The sum over workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_leader(self, *values: float) -> tuple[float, ...]:
        """The leader's values, so that all decide alike. Waits for the device."""
        if self.size == 1:
            return values
        box = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(box, src=0)
        return tuple(box.tolist())

    def word_from_leader(self, value: str) -> str:
        """The leader's text, on every worker."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum over workers: one message of 60 MB for 15 M parameters."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
