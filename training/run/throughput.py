"""How fast a run is: loss, samples a second, the share of time that it waits for data, and model FLOP utilisation."""

import time

import torch
from torch import Tensor

from model.network.flops import peak_flops, training_flops
from model.network.unet import UNetConfig
from training.ranks import Workers


class Meter:
    """What has been since the last reading. The loss stays on the device until it is read."""

    def __init__(self, workers: Workers, network: UNetConfig, frames: int, dtype: torch.dtype) -> None:
        """network, frames: what a sample is put through, at this precision."""
        self.workers = workers
        self.flops = training_flops(network, frames)
        # Of this worker: the others have the like.
        self.peak = peak_flops(workers.device, dtype)
        self._began = self._lap = time.monotonic()
        self._reset()

    def lap_s(self) -> float:
        """Seconds since the last call: steps, validations and saves alike."""
        now = time.monotonic()
        lap, self._lap = now - self._lap, now
        return lap

    def _reset(self) -> None:
        self.loss, self.steps, self.samples, self.busy_s, self.wait_s = torch.zeros((), device=self.workers.device), 0, 0, 0.0, 0.0

    def start(self) -> None:
        self._began = time.monotonic()

    def data_ready(self) -> None:
        self.wait_s += time.monotonic() - self._began

    def stepped(self, loss: Tensor, samples: int) -> None:
        """loss: this worker's part of the whole batch's. samples: of the whole batch."""
        self.loss += loss
        self.steps, self.samples = self.steps + 1, self.samples + samples
        self.busy_s += time.monotonic() - self._began

    def read(self, rate: float, norm: Tensor) -> dict[str, float]:
        began = time.monotonic()
        loss = float(self.workers.total(self.loss) / self.steps)  # waits for the device, whose time is the steps'
        self.busy_s += time.monotonic() - began
        samples_per_s = self.samples / self.busy_s
        row = {
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/gradient_norm": float(norm),
            "train/samples_per_s": samples_per_s,
            "train/data_wait": self.wait_s / self.busy_s,
            "train/flop_utilisation": samples_per_s * self.flops / (self.peak * self.workers.size),
        }
        self._reset()
        return row
