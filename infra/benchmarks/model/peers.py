"""Backline beside its peers, in one run on one machine: seconds, parameters and memory for one piece of audio.

`make peers [ARGS="--quick"]` installs what the peers need and runs this. Every system runs in a process of its own, one after the other;
weights are random, in the published shapes: speed does not depend on them. Prints Markdown; figures: infra/benchmarks/model/peers.md.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.peers_systems import STABLE_AUDIO_MOST_S, SYSTEMS, Part, timed
from infra.benchmarks.model.subject import peak_resident_gb, processor

BAR = 40
"""How many times backline's request MusicGen-small with its defaults is to take at least."""
SHARED = """**The machine was shared during this run.** Threads that meet at barriers wait for each other's core, so a system of many small
operations (MusicGen) loses more than one of few. Repeat it on a quiet machine before quoting a ratio; `--threads 1` suffers less."""
TITLES = {
    "backline": "**backline**: whole request, 20 guided steps",
    "backline-paper": "backline: denoising alone, 800 guided ancestral steps",
    "musicgen": "MusicGen-small, its default guidance 3 (batch 2)",
    "musicgen-unguided": "MusicGen-small, unguided",
    "stable-audio": "Stable Audio Open 1.0, 100 steps, guidance 7",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system measured. gflops: rate of a matrix product before and after; load: load average (1 minute) before and after."""

    system: str
    parameters: int
    parts: tuple[Part, ...]
    memory_gb: float
    note: str = ""
    gflops: tuple[float, float] = (0.0, 0.0)
    load: tuple[float, float] = (0.0, 0.0)
    cores: float = 0.0
    """CPU seconds by wall seconds, imports and building included: below `--threads` where others took the processor."""
    machine: str = ""

    @property
    def seconds(self) -> float:
        return sum(part.whole_s for part in self.parts)

    @property
    def extrapolated(self) -> bool:
        return any(part.done < part.whole for part in self.parts)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Row":
        """What `to_json` wrote."""
        values = json.loads(text)
        parts = tuple(Part(**part) for part in values["parts"])
        return cls(**{**values, "parts": parts, "gflops": tuple(values["gflops"]), "load": tuple(values["load"])})


def table(rows: Sequence[Row], duration_s: float) -> str:
    """Markdown: the figures, how they were made, and whether the machine was quiet. ≥: a part alone was run, so the peak may be higher."""
    backline_s = next((row.seconds for row in rows if row.system == "backline"), None)
    lines = [
        f"| | parameters | seconds for {duration_s:g} s of audio | times backline's request | peak memory above the imports |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        times = "–" if backline_s is None else short(row.seconds / backline_s)
        memory = f"{'≥ ' if row.extrapolated else ''}{row.memory_gb:.2f} GB"
        seconds = short(row.seconds) + (" (extrapolated)" if row.extrapolated else "")
        lines.append(f"| {TITLES[row.system]} | {row.parameters / 1e6:,.1f} M | {seconds} | {times} | {memory} |")
    lines += ["", "| | what was run | cores used | matrix product before, after | load before, after |", "|---|---|---|---|---|"]
    for row in rows:
        run = ", ".join(map(str, row.parts)) + (f"; {row.note}" if row.note else "")
        rates, loads = (f"{row.gflops[0]:,.0f}, {row.gflops[1]:,.0f} GFLOP/s", f"{row.load[0]:.1f}, {row.load[1]:.1f}")
        lines.append(f"| {row.system} | {run} | {row.cores:.2f} | {rates} | {loads} |")
    musicgen = next((row for row in rows if row.system == "musicgen"), None)
    if musicgen is not None and backline_s is not None:
        times = f"{short(musicgen.seconds / backline_s)} times{' (extrapolated)' if musicgen.extrapolated else ''}"
        lines += ["", f"MusicGen-small with its defaults takes {times} as long as backline's whole request; the bar is {BAR}."]
    if crowded(rows, os.cpu_count() or 1):
        lines += ["", SHARED]
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def crowded(rows: Sequence[Row], cores: int) -> bool:
    """Whether more was waiting to run than there are cores, or the matrix product changed its rate by a third."""
    rates = [rate for row in rows for rate in row.gflops]
    return max(load for row in rows for load in row.load) > cores + 0.75 or min(rates) < 2 / 3 * max(rates)


def matrix_gflops(device: str) -> float:
    """Median rate of a float32 matrix product (1536³, on CUDA 8192³): lower after than before, or from one system to the next, says that
    others used the machine."""
    import torch

    edge = 8192 if device == "cuda" else 1536
    one, other = torch.randn(edge, edge, device=device), torch.randn(edge, edge, device=device)
    return 2 * edge**3 / 1e9 / statistics.median([timed(device, lambda: one @ other)[0] for _ in range(12)][2:])


def measure(system: str, options: argparse.Namespace) -> Row:
    """One system in this process."""
    import torch

    warnings.filterwarnings("ignore")  # torchsde's on rounding and torch's on weight norm: nothing to act on
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    load_before, gflops_before = os.getloadavg()[0], matrix_gflops(options.device)
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start_s, cpu_s = time.perf_counter(), time.process_time()
    outcome = SYSTEMS[system](options)
    cores = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
    memory_gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else peak_resident_gb() - outcome.imported_gb
    return Row(
        system=system,
        parameters=outcome.parameters,
        parts=outcome.parts,
        memory_gb=memory_gb,
        note=outcome.note,
        gflops=(gflops_before, matrix_gflops(options.device)),
        load=(load_before, os.getloadavg()[0]),
        cores=cores,
        machine=torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
    )


def heading(rows: Sequence[Row], options: argparse.Namespace, command: str) -> str:
    """What was run where, in Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "diffusers") if installed(name))
    precision = (
        "backline's network bfloat16, its codec float32, peers float16; memory: the GPU's" if options.device == "cuda" else "float32"
    )
    lines = [
        f"Machine: {rows[0].machine}, {os.cpu_count()} cores, threads: {options.threads}; {time.strftime('%Y-%m-%d')}; {precision}.",
        f"Python {platform.python_version()}, {versions}. Command: `{command}`. Weights random.",
    ]
    if options.quick:
        lines.append("**A rehearsal (`--quick`): a few tokens and steps, the rest extrapolated. Not figures to quote.**")
    return "\n".join([*lines, ""])


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS), help="which systems run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="peers on cuda run in float16, as users run them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=47.55, help="seconds of audio")
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--quick", action="store_true", help="a rehearsal: a few tokens and steps, the rest extrapolated")
    whole.add_argument("--full", action="store_true", help="all steps of Stable Audio (tens of minutes on two cores)")
    parser.add_argument("--one", choices=tuple(SYSTEMS), help="this system alone, in this process; its last line is JSON")
    options = parser.parse_args()
    wanted = [options.one] if options.one else options.peers
    if not installed("transformers") and any(not system.startswith("backline") for system in wanted):
        sys.exit('peers: MusicGen and Stable Audio need transformers, which backline does not install: run `make peers ARGS="..."`')
    if "stable-audio" in wanted and options.duration > STABLE_AUDIO_MOST_S:
        most = f"Stable Audio makes at most {STABLE_AUDIO_MOST_S:.2f} s"
        sys.exit(f"peers: --duration {options.duration:g}: {most}; ask for less, or leave it out with --peers")
    if options.one:
        # For NumPy's and SciPy's own threads; read when they load, which is later.
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads)))
        print(measure(options.one, options).to_json())
        return
    passed = ["--device", options.device, "--threads", str(options.threads), "--duration", str(options.duration)]
    passed += [f"--{name}" for name in ("quick", "full") if getattr(options, name)]
    rows = []
    for index, system in enumerate(wanted):
        print(f"peers: {system} ({index + 1} of {len(wanted)})", file=sys.stderr, flush=True)
        child = subprocess.run([sys.executable, __file__, "--one", system, *passed], stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode:
            print(f"peers: {system} ended with {child.returncode}; its row is left out", file=sys.stderr)
            continue
        rows.append(Row.from_json(child.stdout.strip().splitlines()[-1]))
    if rows:
        command = f'make peers ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "make peers"
        print(f"{heading(rows, options, command)}\n{table(rows, options.duration)}")
    sys.exit(len(rows) < len(wanted))


if __name__ == "__main__":
    main()
