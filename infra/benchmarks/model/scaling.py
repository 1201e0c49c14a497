"""Time and memory by length, and time by how many are made together: `python infra/benchmarks/model/scaling.py [--device cuda]`.

Every length runs in a process of its own, so that its peak memory is its own. Weights are random: speed does not depend on them.
Prints Markdown; figures: infra/benchmarks/model/scaling.md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import machine, peak_resident_gb, random_accompanist, resident_gb, sung

LENGTHS_S = (1.0, 10.0, 47.55, 120.0, 300.0, 600.0)
TOGETHER = (1, 2, 4, 8, 16)


def measure_length(duration_s: float, preset: str, device: str) -> dict[str, float]:
    """One streamed request in this process, after a short one to warm up."""
    from model.accompany import Accompanist, GenerationConfig  # noqa: F401 - its imports do not count as memory of a request

    imported_gb = resident_gb()
    accompanist = random_accompanist(preset, device=device)
    accompanist.accompany(sung(min(duration_s, 60.0)))  # on CUDA a graph is captured for each length of window
    vocal_CN = sung(duration_s)
    start_s = time.perf_counter()
    streaming = accompanist.stream(vocal_CN, GenerationConfig())
    next(streaming)
    first_s = time.perf_counter() - start_s
    while True:
        try:
            next(streaming)
        except StopIteration as end:
            made = end.value
            break
    whole_s = time.perf_counter() - start_s
    audio_gb = (vocal_CN.nbytes + made.audio_CN.nbytes) / 1e9
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else peak_resident_gb() - imported_gb - audio_gb
    return {"whole_s": whole_s, "first_s": first_s, "peak_gb": peak_gb, "audio_gb": audio_gb, **made.stage_s}


def length_row(duration_s: float, found: dict[str, float]) -> str:
    stages = ", ".join(f"{stage} {found[stage]:.2f}" for stage in ("encode", "diffuse", "render", "fit"))
    return (
        f"| {duration_s:g} s | {found['whole_s']:.2f} s | {1e3 * found['whole_s'] / duration_s:.0f} ms | {found['first_s']:.2f} s "
        f"({100 * found['first_s'] / found['whole_s']:.0f}%) | {stages} | {found['peak_gb']:.2f} GB | {found['audio_gb']:.2f} GB |"
    )


def together_rows(preset: str, device: str, duration_s: float) -> list[str]:
    """Rows on so many requests in one batch."""
    from model.accompany import GenerationConfig, Request

    accompanist = random_accompanist(preset, device=device)
    vocal_CN, rows = sung(duration_s), []
    for count in TOGETHER:
        requests = [Request(vocal_CN=vocal_CN, config=GenerationConfig(seed=seed)) for seed in range(count)]
        made = min((accompanist.accompany_batch(requests)[0] for _ in range(3)), key=lambda one: sum(one.stage_s.values()))
        whole_s = sum(made.stage_s.values())
        stages = ", ".join(f"{stage} {seconds / count:.3f}" for stage, seconds in made.stage_s.items())
        rows.append(f"| {count} | {whole_s:.2f} s | {count / whole_s:.2f} | {count / made.stage_s['diffuse']:.2f} | {stages} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=("paper", "small"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=float, nargs="*", default=list(LENGTHS_S), help="seconds of vocal")
    parser.add_argument("--together", type=float, default=47.55, help="seconds of each vocal of a batch; 0 leaves batches out")
    parser.add_argument("--one", type=float, help="this length alone, in this process; prints JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure_length(arguments.one, arguments.preset, arguments.device)))
        return
    print(f"{machine(arguments.device)}; preset {arguments.preset}, codec embedded, 20 guided steps\n")
    print(
        "| vocal | whole | a second of vocal | first sound | stages, s | peak memory above the imports, less the audio | vocal and band |"
    )
    print("|---|---|---|---|---|---|---|")
    for duration_s in arguments.lengths:
        options = [
            "--one",
            str(duration_s),
            "--preset",
            arguments.preset,
            "--device",
            arguments.device,
            "--threads",
            str(arguments.threads),
        ]
        child = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
        print(length_row(duration_s, json.loads(child.stdout.splitlines()[-1])), flush=True)
    if arguments.together:
        print(f"\n| requests of {arguments.together:g} s in one batch | whole | clips a second | denoising alone | seconds a clip |")
        print("|---|---|---|---|---|")
        for row in together_rows(arguments.preset, arguments.device, arguments.together):
            print(row, flush=True)


if __name__ == "__main__":
    main()
