"""What the benchmarks measure, and with what: backline with random weights, a vocal, and clocks.

Shapes: C channels, N samples. Weights are random where only speed is asked: it does not depend on them.
"""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from model.accompany import Accompanist
    from model.codec.base import Codec
    from model.inference.network_runner import Execution


def random_accompanist(
    preset: str = "paper", codec: "str | Codec" = "embedded", *, device: str = "cpu", execution: "Execution" = "auto"
) -> "Accompanist":
    """A preset with random weights, and a codec with its own."""
    import torch

    from model.accompany import Accompanist
    from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics
    from model.codec.load import load_codec
    from model.inference.network_runner import evaluator_for
    from model.network.unet import PRESETS, AccompanimentUNet

    codec = load_codec(codec, device=device) if isinstance(codec, str) else codec
    torch.manual_seed(0)
    unet = AccompanimentUNet(PRESETS[preset]())
    torch.nn.init.normal_(unet.output.weight, std=0.02)  # training begins at zero, which would be a denoiser that does nothing
    flat, unit = (0.0,) * 64, (1.0,) * 64
    checkpoint = Checkpoint(
        name=f"random-{preset}",
        network=unet.config,
        state=unet.state_dict(),
        statistics=LatentStatistics(vocal_mean=flat, vocal_std=unit, accompaniment_mean=flat, accompaniment_std=unit, vocal_level_db=-20.0),
        codec=codec.identity,
        dataset=DatasetIdentity(uri="none", digest="none"),
        step=0,
        metrics={},
    )
    return Accompanist(checkpoint, codec, device=device, evaluator=evaluator_for(checkpoint.build(device), execution=execution))


def sung(duration_s: float) -> np.ndarray:
    """(2, N) float32 at 44.1 kHz: a tone with rests."""
    time_N = np.arange(round(duration_s * 44_100), dtype=np.float32) / 44_100
    vocal_N = (0.1 * np.sin(2 * np.pi * (220 * time_N % 1)) * (time_N % 0.5 < 0.4)).astype(np.float32)
    return np.stack([vocal_N, vocal_N])


class Memory:
    """Peak memory since `forget`: of the device where there is one, else resident memory of this process."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.status, self.clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def forget(self) -> None:
        """Begins anew; elsewhere than on Linux and CUDA the peak is that of the whole process."""
        import torch

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self.clear.exists():
            self.clear.write_text("5")

    def peak_gb(self) -> float:
        """GB = 1e9 bytes."""
        import torch

        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        if self.status.exists():
            return next(int(line.split()[1]) for line in self.status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def synchronise(device: str) -> None:
    """Waits for what was launched."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def best_s(work: Callable[[], object], rounds: int = 10, *, device: str = "cpu") -> float:
    """Least of several wall times, after two to warm up: what the machine does when nothing else disturbs it."""
    times = []
    for index in range(rounds + 2):
        synchronise(device)
        start_s = time.perf_counter()
        work()
        synchronise(device)
        if index >= 2:
            times.append(time.perf_counter() - start_s)
    return min(times)


def matmul_gflops(device: str = "cpu", edge: int | None = None) -> float:
    """Best rate of a large float32 matrix product in this run: a floor's yardstick, and a sign of a busy machine when it falls."""
    import torch

    edge = edge or (8_192 if device.startswith("cuda") else 2_048)
    one, other = torch.randn(edge, edge, device=device), torch.randn(edge, edge, device=device)
    return 2 * edge**3 / best_s(lambda: one @ other, device=device) / 1e9


def resident_gb() -> float:
    """Resident memory of this process now."""
    import psutil

    return psutil.Process().memory_info().rss / 1e9


def peak_resident_gb() -> float:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_024) / 1e9


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(device: str = "cpu") -> str:
    """A line on where a figure was taken, with the load of the last minute."""
    import torch

    capability = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    what = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{processor()}, {capability}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{what}; {versions}; load {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}"
