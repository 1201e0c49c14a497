"""How the service holds up: `python infra/benchmarks/endurance.py overload` and `… kills`; each starts the service on this machine's Ray.

overload: what it answers a second at its best, then requests at three times that rate, whether answered or not, for a minute.
kills: a thousand requests while the model replica is killed (SIGKILL) every 20 s. Prints Markdown.
"""

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx
import psutil

from infra.audio_files import encode
from infra.benchmarks.engine import vocal
from infra.benchmarks.subject import machine
from serving.deployments import RunningService, ServeConfig, start

REPLICA = "ServeReplica:backline:Model"


class Asking:
    """Requests of one kind, and what became of them."""

    def __init__(self, url: str, seconds: float, steps: int, timeout_s: float) -> None:
        self.url, self.data, self.steps = url, encode(vocal(seconds), "flac"), steps
        self.statuses: Counter[int] = Counter()
        self.latencies_s: list[float] = []
        self._http = httpx.Client(timeout=timeout_s, limits=httpx.Limits(max_connections=None))

    def ask(self, seed: int) -> int:
        began_s = time.perf_counter()
        try:
            answer = self._http.post(
                f"{self.url}/v1/accompaniments", files={"vocal": ("v.flac", self.data)}, data={"seed": str(seed), "steps": str(self.steps)}
            )
            status = answer.status_code
        except httpx.TransportError:
            status = 0  # no answer at all
        self.statuses[status] += 1
        if status == 200:
            self.latencies_s.append(time.perf_counter() - began_s)
        return status

    def __str__(self) -> str:
        told = ", ".join(f"{count} × {status or 'no answer'}" for status, count in sorted(self.statuses.items()))
        late = sorted(self.latencies_s)
        return f"{told}; median {statistics.median(late):.2f} s, 95% within {late[int(0.95 * (len(late) - 1))]:.2f} s" if late else told


def overload(service: RunningService, given: argparse.Namespace) -> None:
    best = Asking(service.url, given.seconds, given.steps, 120)
    until_s = time.monotonic() + given.measure_s
    with ThreadPoolExecutor(8) as threads:

        def keep_asking(client: int) -> None:
            seed = client
            while time.monotonic() < until_s:
                best.ask(seed)
                seed += 8

        list(threads.map(keep_asking, range(8)))
    capacity = best.statuses[200] / given.measure_s
    print(f"| capacity, eight clients in turn, {given.measure_s:g} s | {capacity:.2f} a second | {best} |")

    asked = Asking(service.url, given.seconds, given.steps, 120)
    rate, answered_in_time = 3 * capacity, []
    began_s = time.monotonic()

    def one(seed: int) -> None:
        if asked.ask(seed) == 200:
            answered_in_time.append(time.monotonic() - began_s)

    with ThreadPoolExecutor(256) as threads:
        for number in range(int(rate * given.overload_s)):
            time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
            threads.submit(one, number)
    goodput = sum(at_s <= given.overload_s for at_s in answered_in_time) / given.overload_s
    share = 100 * goodput / capacity
    print(f"| three times that, {given.overload_s:g} s | {goodput:.2f} a second answered, {share:.0f}% of capacity | {asked} |")


def kills(service: RunningService, given: argparse.Namespace) -> None:
    asked, over, killed = Asking(service.url, given.seconds, given.steps, 300), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        while not over.wait(given.every_s):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if REPLICA in " ".join(process.cmdline()):
                        os.kill(process.pid, signal.SIGKILL)
                        killed += 1
                        break

    killer = threading.Thread(target=kill)
    killer.start()
    began_s = time.monotonic()
    with ThreadPoolExecutor(given.clients) as threads:
        list(threads.map(asked.ask, range(given.requests)))
    over.set()
    killer.join()
    share, took_s = 100 * asked.statuses[200] / given.requests, time.monotonic() - began_s
    what = f"{given.requests} requests, {given.clients} clients, {killed} kills in {took_s:.0f} s"
    print(f"| {what} | {share:.1f}% with audio | {asked} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overload", "kills"])
    parser.add_argument("--checkpoint", help="by default the one that ships")
    parser.add_argument("--seconds", type=float, default=3.0, help="of vocal in each request")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--every-s", type=float, default=20.0)
    parser.add_argument("--measure-s", type=float, default=30.0)
    parser.add_argument("--overload-s", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=8123)
    given = parser.parse_args()
    config = ServeConfig(checkpoint=given.checkpoint, port=given.port, replicas=given.replicas)
    print(f"{machine('cpu')}; vocals of {given.seconds:g} s, {given.steps} steps, {given.replicas} replica(s)\n")
    print("| what | figure | answers |\n|---|---|---|")
    with start(config) as service:
        Asking(service.url, given.seconds, given.steps, 120).ask(0)
        (overload if given.what == "overload" else kills)(service, given)


if __name__ == "__main__":
    main()
