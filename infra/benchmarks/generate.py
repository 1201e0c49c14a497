"""How fast a request is, by stage, and how near one evaluation of the network is to its floor.

`python infra/benchmarks/generate.py [--preset paper] [--threads 2] [--duration 47.55]`; weights are random, speed does not depend on them.
Figures and their machine: infra/benchmarks/generate.md.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from model.accompany import Accompanist
    from model.unet import AccompanimentUNet


def best_s(work: Callable[[], object], rounds: int = 10) -> float:
    """Least of several wall times, after two to warm up: what the machine does when nothing else disturbs it."""
    times = []
    for index in range(rounds + 2):
        start = time.perf_counter()
        work()
        if index >= 2:
            times.append(time.perf_counter() - start)
    return min(times)


def matmul_gflops() -> float:
    """Rate of a large float32 matrix product in this run: the floor's yardstick."""
    one, other = torch.randn(1536, 1536), torch.randn(1536, 1536)
    return 2 * 1536**3 / best_s(lambda: one @ other) / 1e9


def evaluation(unet: "AccompanimentUNet", frames: int) -> list[str]:
    """Rows on one guided evaluation (batch 2), its parts and its floor."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    vocal_BCT, x_BCT, t_B = torch.randn(2, 64, frames), torch.randn(2, 64, frames), torch.tensor([400, 400])
    features = unet.encode_vocal(vocal_BCT)
    with FlopCounterMode(display=False) as counter:
        unet(x_BCT, t_B, features)
    gflop = counter.get_total_flops() / 1e9
    rate = matmul_gflops()
    guided_s = best_s(lambda: unet(x_BCT, t_B, features))
    encode_s = best_s(lambda: unet.encode_vocal(vocal_BCT))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        unet(x_BCT, t_B, features)
    totals: dict[str, float] = {"convolution": 0.0, "attention": 0.0, "linear": 0.0, "norm": 0.0, "other": 0.0}
    kinds = {"mkldnn_convolution": "convolution", "scaled_dot_product": "attention", "addmm": "linear", "group_norm": "norm"}
    for event in profiler.key_averages():
        kind = next((kind for part, kind in kinds.items() if part in event.key), "other")
        totals[kind] += event.self_cpu_time_total
    whole = sum(totals.values())
    shares = ", ".join(f"{kind} {100 * value / whole:.0f}%" for kind, value in totals.items())
    return [
        f"| matrix product 1536³, float32 | {rate:.0f} GFLOP/s |",
        f"| one guided evaluation (batch 2, {frames} frames) | {1e3 * guided_s:.1f} ms, {gflop:.2f} GFLOP |",
        f"| its floor at that rate; ratio | {1e3 * gflop / rate:.1f} ms; {guided_s * rate / gflop:.2f} |",
        f"| its time by operation | {shares} |",
        f"| encoding the vocal (batch 2), once a request | {1e3 * encode_s:.1f} ms |",
    ]


def request(accompanist: "Accompanist", duration_s: float, candidates: int, rounds: int) -> str:
    """A row on the whole request; the fastest of some rounds."""
    from model.accompany import GenerationConfig
    from model.geometry import SAMPLE_RATE_HZ

    time_N = np.arange(int(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    vocal_N = 0.1 * np.sin(2 * np.pi * 220 * time_N) * (time_N % 0.5 < 0.4)
    vocal_CN = np.stack([vocal_N, vocal_N]).astype(np.float32)
    config = GenerationConfig(candidates=candidates)
    made = min((accompanist.accompany(vocal_CN, config) for _ in range(rounds)), key=lambda one: sum(one.stage_s.values()))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in made.stage_s.items())
    whole_s = sum(made.stage_s.values())
    what = f"{duration_s:g} s, {config.steps} guided steps, {candidates} candidate{'s' if candidates > 1 else ''}"
    return f"| {what} | {whole_s:.2f} s = {stages}; {duration_s / whole_s:.0f}× real time |"


def resident_gb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


@torch.inference_mode()
def main() -> None:
    """Prints the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=("paper", "small"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=47.55, help="seconds of vocal")
    parser.add_argument("--candidates", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from model.accompany import Accompanist
    from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics
    from model.codec import load_codec
    from model.geometry import SEGMENT_FRAMES
    from model.unet import PRESETS, AccompanimentUNet

    imported_gb = resident_gb()
    codec, network = load_codec("embedded"), PRESETS[arguments.preset]()
    torch.manual_seed(0)
    unet = AccompanimentUNet(network).eval()
    flat, unit = (0.0,) * 64, (1.0,) * 64
    checkpoint = Checkpoint(
        name=f"random-{arguments.preset}",
        network=network,
        state=unet.state_dict(),
        statistics=LatentStatistics(vocal_mean=flat, vocal_std=unit, accompaniment_mean=flat, accompaniment_std=unit, vocal_level_db=-20.0),
        codec=codec.identity,
        dataset=DatasetIdentity(uri="none", digest="none"),
        step=0,
        metrics={},
    )
    accompanist = Accompanist(checkpoint, codec)
    print(f"| preset {arguments.preset}, {torch.get_num_threads()} threads, torch {torch.__version__} | |\n|---|---|")
    for row in evaluation(unet, SEGMENT_FRAMES):
        print(row)
    for candidates in arguments.candidates:
        print(request(accompanist, arguments.duration, candidates, arguments.rounds))
    print(f"| peak resident memory, and above the imports | {resident_gb():.2f} GB, {resident_gb() - imported_gb:.2f} GB |")


if __name__ == "__main__":
    main()
