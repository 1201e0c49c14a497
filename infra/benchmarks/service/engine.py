"""What continuous batching gains, and what a short request waits beside a long one: `python infra/benchmarks/service/engine.py`.

Without HTTP and Ray: threads ask one engine. Ratios are of one run: the same requests one at a time, then all clients at once, in turn.
Prints Markdown.
"""

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from infra.benchmarks.model.subject import machine
from model.checkpoint import SHIPPED_CHECKPOINT
from model.dimensions import SAMPLE_RATE_HZ
from model.threads import one_thread_workers
from serving.engine.engine import Call, CancelledRequestError, Engine
from serving.engine.load import load_engine
from serving.schema import AccompanimentRequest


def vocal(seconds: float) -> np.ndarray:
    """(2, N): harmonic tones at eighth notes."""
    time_N = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch_N = 220 * 2 ** (np.array([0, 4, 7, 4, 5, 9, 7, 2]) / 12)[(time_N * 4).astype(int) % 8]
    phase_N = 2 * np.pi * np.cumsum(pitch_N) / SAMPLE_RATE_HZ
    samples_N = 0.1 * np.clip(8 * (0.25 - time_N % 0.25), 0, 1) * sum(np.sin(k * phase_N) / k for k in range(1, 9))
    return np.repeat(samples_N[None], 2, axis=0).astype(np.float32)


def throughput(engine: Engine, requests: list[tuple[np.ndarray, AccompanimentRequest]], clients: int) -> tuple[float, float, float]:
    """(seconds for all, median latency, CPU seconds of the process)."""
    latencies_s = []

    def ask(asked: tuple[np.ndarray, AccompanimentRequest]) -> None:
        began_s = time.perf_counter()
        engine.generate(*asked)
        latencies_s.append(time.perf_counter() - began_s)

    began_s, cpu_s = time.perf_counter(), time.process_time()
    with one_thread_workers(clients, "request") as threads:
        list(threads.map(ask, requests))
    return time.perf_counter() - began_s, statistics.median(latencies_s), time.process_time() - cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(SHIPPED_CHECKPOINT))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 47.5])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-s", type=float, default=300.0, help="the long vocal beside which a short one is asked")
    given = parser.parse_args()

    engine = load_engine(
        checkpoint=given.checkpoint, codec=None, device=given.device, threads=None, max_duration_s=600.0, hang_after_s=300.0
    )
    print(f"{machine(engine.accompanist.device.type)}; {engine.accompanist.checkpoint.name}\n")
    print("| vocals | round | one at a time | cores busy | all at once | cores busy | gain | latency alone, median | in the crowd |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seconds in given.seconds:
        sung_CN, gains = vocal(seconds), []
        requests = [(sung_CN, AccompanimentRequest(seed=seed)) for seed in range(given.requests)]
        throughput(engine, requests[:2], 2)  # caches and threads
        for number in range(1, given.rounds + 1):
            alone_s, alone_latency_s, alone_cpu_s = throughput(engine, requests, 1)
            crowd_s, crowd_latency_s, crowd_cpu_s = throughput(engine, requests, given.clients)
            gains.append(alone_s / crowd_s)
            print(
                f"| {seconds:g} s | {number} | {given.requests / alone_s:.2f} a second | {alone_cpu_s / alone_s:.2f} "
                f"| {given.requests / crowd_s:.2f} a second | {crowd_cpu_s / crowd_s:.2f} | {gains[-1]:.2f} | {alone_latency_s:.2f} s "
                f"| {crowd_latency_s:.2f} s |",
                flush=True,
            )
        print(f"| {seconds:g} s | median | | | | | **{statistics.median(gains):.2f}** | | |", flush=True)

    short, long_CN, long_call = (vocal(10.0), AccompanimentRequest(seed=1)), vocal(given.long_s), Call()
    began_s = time.perf_counter()
    engine.generate(*short)
    alone_s = time.perf_counter() - began_s

    def play_long() -> None:
        try:
            engine.generate(long_CN, AccompanimentRequest(seed=2), long_call)
        except CancelledRequestError:
            return

    thread = threading.Thread(target=play_long)
    thread.start()
    while not long_call.progress.steps_done:
        time.sleep(0.01)
    began_s = time.perf_counter()
    engine.generate(*short)
    beside_s = time.perf_counter() - began_s
    print(f"\n10 s alone: {alone_s:.2f} s; beside {given.long_s:g} s in work ({long_call.progress}): {beside_s:.2f} s.")
    long_call.cancel()
    thread.join()
    for number in range(1, given.rounds + 1):
        began_s = time.perf_counter()
        pieces = engine.play(long_CN, AccompanimentRequest(seed=2, stream=True))
        next(pieces)
        first_s = time.perf_counter() - began_s
        for _ in pieces:
            pass
        whole_s = time.perf_counter() - began_s
        found = f"first sound after {first_s:.2f} s, all after {whole_s:.2f} s ({100 * first_s / whole_s:.1f}%)"
        print(f"{given.long_s:g} s as a stream, round {number}: {found}.", flush=True)
    engine.close()


if __name__ == "__main__":
    main()
