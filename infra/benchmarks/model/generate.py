"""How fast a request is, by stage, and how near one evaluation of the network is to its floor.

`python infra/benchmarks/model/generate.py [--preset paper] [--threads 2] [--duration 47.55] [--device cuda]`; weights are random, speed
does not depend on them. `--compile` adds torch.compile. Figures and their machine: infra/benchmarks/model/generate.md.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import (
    best_s,
    machine,
    matmul_gflops,
    peak_resident_gb,
    random_accompanist,
    resident_gb,
    sung,
)

if TYPE_CHECKING:
    from model.accompany import Accompanist
    from model.inference.network_runner import Evaluator
    from model.network.unet import AccompanimentUNet


def evaluation_floor(unet: "AccompanimentUNet", frames: int, device: str) -> list[str]:
    """Rows on one guided evaluation as one batch of 2, kernel by kernel: its operations, its floor, and where its time goes."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    vocal_BCT, x_BCT = torch.randn(2, 64, frames, device=device), torch.randn(2, 64, frames, device=device)
    t_B, features = torch.tensor([400, 400], device=device), unet.encode_vocal(vocal_BCT)
    with FlopCounterMode(display=False) as counter:
        unet(x_BCT, t_B, features)
    gflop = counter.get_total_flops() / 1e9
    guided_s = best_s(lambda: unet(x_BCT, t_B, features), 30, device=device)
    rate = matmul_gflops(device)
    on_cuda = device.startswith("cuda")
    # CUDA's own events are kernels of many names; the operations that launched them carry their time
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        unet(x_BCT, t_B, features)
    totals: dict[str, float] = {"convolution": 0.0, "attention": 0.0, "linear": 0.0, "norm": 0.0, "other": 0.0}
    kinds = {"conv": "convolution", "scaled_dot_product": "attention", "fmha": "attention", "addmm": "linear", "norm": "norm"}
    for event in profiler.key_averages():
        if on_cuda and not event.key.startswith("aten::"):
            continue
        kind = next((kind for part, kind in kinds.items() if part in event.key.lower()), "other")
        totals[kind] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
    whole = sum(totals.values())
    shares = ", ".join(f"{kind} {100 * value / whole:.0f}%" for kind, value in totals.items())
    encode_s = best_s(lambda: unet.encode_vocal(vocal_BCT), device=device)
    return [
        f"| large matrix product, float32 | {rate:,.0f} GFLOP/s |",
        f"| one guided evaluation as a batch of 2, {frames} frames | {1e3 * guided_s:.1f} ms, {gflop:.2f} GFLOP |",
        f"| its floor at that rate; ratio | {1e3 * gflop / rate:.1f} ms; {guided_s * rate / gflop:.2f} |",
        f"| its time by operation | {shares} |",
        f"| encoding the vocal (batch of 2), once a request | {1e3 * encode_s:.1f} ms |",
    ]


def evaluators(unet: "AccompanimentUNet", frames: int, device: str, compiled: bool) -> list[str]:
    """Rows on a guided evaluation alone and sixteen at a time, as each way to run them takes them."""
    from model.inference.network_runner import BatchedEvaluator, ThreadedEvaluator

    ways: dict[str, Evaluator] = {}
    if device == "cpu":
        ways["each alone on a thread"] = ThreadedEvaluator(unet)
        if compiled:
            ways["each alone on a thread, torch.compile"] = ThreadedEvaluator(unet, execution="compile")
    else:
        ways["32 slots, kernel by kernel"] = BatchedEvaluator(unet, execution="eager")
        ways["32 slots, float32, CUDA graph"] = BatchedEvaluator(unet, bfloat16=False)
        ways["32 slots, CUDA graph"] = BatchedEvaluator(unet)
        ways["2 slots, CUDA graph"] = BatchedEvaluator(unet, 2)
        if compiled:
            ways["32 slots, torch.compile, CUDA graph"] = BatchedEvaluator(unet, execution="compile")
    return [evaluator_row(name, evaluator, frames, device) for name, evaluator in ways.items()]


def evaluator_row(name: str, evaluator: "Evaluator", frames: int, device: str) -> str:
    from model.inference.network_runner import Evaluation

    features = evaluator.encode([torch.randn(1, 64, frames), None], frames)
    x_CT = torch.randn(64, frames, device=device)
    guided = [Evaluation(x_CT=x_CT, t=400, vocal=one) for one in features]
    start_s = time.perf_counter()
    evaluator(guided)
    first_s = time.perf_counter() - start_s
    one_s = best_s(lambda: evaluator(guided), 30, device=device)
    many_s = best_s(lambda: evaluator(guided * 16), 5, device=device)
    return f"| guided, {name} | {1e3 * one_s:.1f} ms; of 16 together {1e3 * many_s / 16:.1f} ms each; the first call {first_s:.1f} s |"


def request(accompanist: "Accompanist", duration_s: float, candidates: int, rounds: int) -> str:
    """A row on the whole request; the fastest of some rounds."""
    from model.accompany import GenerationConfig

    config = GenerationConfig(candidates=candidates)
    vocal_CN = sung(duration_s)
    made = min((accompanist.accompany(vocal_CN, config) for _ in range(rounds)), key=lambda one: sum(one.stage_s.values()))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in made.stage_s.items())
    whole_s = sum(made.stage_s.values())
    what = f"{duration_s:g} s, {accompanist.checkpoint.sampling.steps} guided steps, {candidates} candidate{'s' if candidates > 1 else ''}"
    return f"| {what} | {whole_s:.2f} s = {stages}; {duration_s / whole_s:.0f}× real time |"


@torch.inference_mode()
def main() -> None:
    """Prints the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=("paper", "small"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--codec", default="embedded", help="a codec's name or folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=47.55, help="seconds of vocal")
    parser.add_argument("--candidates", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile beside the others; takes a minute or more")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from model.accompany import Accompanist  # noqa: F401 - whatever it imports does not count as memory of a request
    from model.dimensions import SEGMENT_FRAMES

    imported_gb = resident_gb()
    accompanist = random_accompanist(arguments.preset, arguments.codec, device=arguments.device)
    print(f"{machine(arguments.device)}\n\n| preset {arguments.preset}, codec {arguments.codec} | |\n|---|---|")
    for candidates in arguments.candidates:
        print(request(accompanist, arguments.duration, candidates, arguments.rounds))
    print(f"| peak resident memory, and above the imports | {peak_resident_gb():.2f} GB, {peak_resident_gb() - imported_gb:.2f} GB |")
    unet = accompanist.checkpoint.build(arguments.device)
    for row in evaluation_floor(unet, SEGMENT_FRAMES, arguments.device):
        print(row)
    for row in evaluators(unet, SEGMENT_FRAMES, arguments.device, arguments.compile):
        print(row)


if __name__ == "__main__":
    main()
