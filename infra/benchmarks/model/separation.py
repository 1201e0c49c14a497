"""Separation at full size: seconds a second of audio and memory by how many chunks go at a time, beside demucs.api on the same weights.

`python infra/benchmarks/model/separation.py [--device cpu] [--threads 1] [--duration 23.4] [--batches 1 2 4] [--separator SPEC]` prints
Markdown. Without a separator, htdemucs' shape with random weights, which speed and memory do not depend on; a SPEC is what
`load_separator` takes, and demucs.api stands beside it where it is a folder. Figures and their machine:
infra/benchmarks/model/separation.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import Memory

if TYPE_CHECKING:
    from model.separation.load import Separator

Stems = tuple[np.ndarray, np.ndarray]
RATE_HZ = 44_100


def song(duration_s: float) -> np.ndarray:
    """(2, N) float32: tones in noise."""
    draws = np.random.default_rng(0)
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    tones = sum(np.sin(2 * np.pi * hz * time_s) for hz in (110.0, 277.2, 659.3))
    return (0.1 * tones + 0.02 * draws.normal(size=(2, len(time_s)))).astype(np.float32)


def row(name: str, work: Callable[[], Stems], seconds: float, memory: Memory, exact: Stems | None) -> tuple[str, Stems]:
    """One table row of one pass, and what it gave."""
    memory.forget()
    before_gb, wall, core = memory.peak_gb(), time.perf_counter(), time.process_time()
    stems = work()
    wall, core = time.perf_counter() - wall, time.process_time() - core
    grown_gb = memory.peak_gb() - before_gb
    apart = "" if exact is None else f"{max(float(np.abs(one - two).max()) for one, two in zip(stems, exact, strict=True)):.1e}"
    return f"| {name} | {wall / seconds:.2f} | {core / seconds:.2f} | {grown_gb:.2f} | {apart} |", stems


def separated(separator: "Separator", mixture_CN: np.ndarray) -> Stems:
    """One song's vocal and accompaniment."""
    stems = separator.separate([mixture_CN])[0]
    return stems.vocal_CN, stems.accompaniment_CN


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--duration", type=float, default=23.4, help="seconds of audio: 23.4 is four chunks of htdemucs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], help="how many chunks at a time")
    parser.add_argument("--half", action="store_true", help="float16 on CUDA, beside float32")
    parser.add_argument("--separator", help="what to load; random weights without")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from model.separation.load import SeparatorConfig, load_separator
    from tests.demucs_parts import demucs_separator, write_full_size

    memory, mixture_CN = Memory(arguments.device), song(arguments.duration)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.separator is None:
            write_full_size(Path(scratch))
        spec = arguments.separator or scratch
        print(f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.duration:g} s of audio\n")
        print("| | wall, s a second of audio | core, s a second of audio | peak above what was loaded, GB | furthest from the first row |")
        print("|---|---|---|---|---|")
        exact: Stems | None = None
        loaded = load_separator(spec, device=arguments.device)
        if Path(spec).is_dir():
            theirs = demucs_separator(Path(spec), loaded.identity.id, device=arguments.device)

            def demucs() -> Stems:
                sources = theirs.separate_tensor(torch.from_numpy(mixture_CN))[1]
                vocal_CN = sources.pop("vocals")
                return vocal_CN.numpy(), torch.stack(list(sources.values())).sum(dim=0).numpy()

            line, exact = row("demucs.api, shifts 0", demucs, arguments.duration, memory, None)
            print(line, flush=True)
            del theirs
        for half in (False, True) if arguments.half else (False,):
            for batch in arguments.batches:
                separator = load_separator(spec, device=arguments.device, half=half, config=SeparatorConfig(batch_chunks=batch))

                name = f"{batch} {'chunk' if batch == 1 else 'chunks'} at a time{', half precision' if half else ''}"
                line, stems = row(name, partial(separated, separator, mixture_CN), arguments.duration, memory, exact)
                exact = stems if exact is None else exact
                print(line, flush=True)


if __name__ == "__main__":
    main()
