"""How the service holds up: `python infra/benchmarks/service/endurance.py overload` and `… kills --what replica`.

Each starts the service on this machine's Ray, and prints Markdown.
overload: what it answers a second at its best, then requests at three times that rate, whether answered or not. Goodput is what is answered
within a window that begins when the service first refuses, its queue being full, and ends while requests still come: what was accepted
before the window and answered in it makes up for what was accepted in it and is answered later.
kills: a thousand requests while a part of the service is killed (SIGKILL) every 20 s: a model replica, an ingress, Serve's proxy, or a
worker node with all that runs on it. With --state a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import httpx
import psutil

from infra.audio.files import encode
from infra.benchmarks.model.subject import machine
from infra.benchmarks.service.engine import vocal
from serving.client import Client, RefusedError
from serving.deployments import RunningService, ServeConfig, start

COMMANDS = {"replica": "ServeReplica:backline:Model", "ingress": "ServeReplica:backline:Ingress", "proxy": "ProxyActor"}
NODE_CPUS = 3
CLIENT_THREADS = 256
SAVE_EVERY_S = 5.0


@dataclass(kw_only=True)
class Figures:
    """What became of the requests of a run, also of one in several goes."""

    statuses: dict[str, int] = field(default_factory=dict)
    """By the last answer; 0 where there was none at all."""
    latencies_s: list[float] = field(default_factory=list)
    kills: int = 0
    sent_again: int = 0
    took_s: float = 0.0
    longest_gap_s: float = 0.0
    """Between two answers with audio."""

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    def __str__(self) -> str:
        told = ", ".join(f"{count} × {'no answer' if status == '0' else status}" for status, count in sorted(self.statuses.items()))
        late = sorted(self.latencies_s)
        return f"{told}; {latency(late)}" if late else told


def latency(seconds: list[float]) -> str:
    late = sorted(seconds)
    return f"median {statistics.median(late):.2f} s, 95% within {late[int(0.95 * (len(late) - 1))]:.2f} s, longest {late[-1]:.2f} s"


class Asking:
    """Requests of one kind, and what became of them; for any thread."""

    def __init__(self, url: str, given: argparse.Namespace, *, patient: bool, figures: Figures | None = None) -> None:
        """patient: with the project's client, which asks again where that may help."""
        self.data, self.steps = encode(vocal(given.seconds), "flac"), given.steps
        self.figures = figures or Figures()
        self.answered_s: list[float] = []
        self.first_refusal = threading.Event()
        self._lock = threading.Lock()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.Client(base_url=url, timeout=300, limits=limits)
        self._client = Client(http=self._http, sleep=self._sleep, attempts=6 if patient else 1)

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self.figures.sent_again += 1
        time.sleep(seconds)

    def ask(self, seed: int) -> None:
        began_s, status = time.monotonic(), 200
        try:
            self._client.accompany(self.data, seed=seed, steps=self.steps)
        except RefusedError as refused:
            status = refused.status
            self.first_refusal.set()
        except httpx.TransportError:
            status = 0
        now_s = time.monotonic()
        with self._lock:
            self.figures.statuses[str(status)] = self.figures.statuses.get(str(status), 0) + 1
            if status == 200:
                self.figures.latencies_s.append(now_s - began_s)
                if self.answered_s:
                    self.figures.longest_gap_s = max(self.figures.longest_gap_s, now_s - self.answered_s[-1])
                self.answered_s.append(now_s)

    def rate(self, window_s: tuple[float, float]) -> float:
        """Answers a second within the window."""
        began_s, ended_s = window_s
        return sum(began_s <= at_s <= ended_s for at_s in self.answered_s) / (ended_s - began_s)


def capacity(service: RunningService, given: argparse.Namespace) -> float:
    """Answers a second to clients that each ask again as soon as they are answered, once all of them are at it."""
    best, over = Asking(service.url, given, patient=False), threading.Event()

    def keep_asking(client: int) -> None:
        for seed in range(client, 10**9, given.clients):
            if over.is_set():
                return
            best.ask(seed)

    with ThreadPoolExecutor(given.clients) as threads:
        asking = [threads.submit(keep_asking, client) for client in range(given.clients)]
        until_s = time.monotonic() + 300
        while len(best.answered_s) < given.clients and time.monotonic() < until_s:
            time.sleep(0.05)
        began_s = time.monotonic()
        time.sleep(given.measure_s)
        ended_s = time.monotonic()
        over.set()
    for one in asking:
        one.result()
    found = best.rate((began_s, ended_s))
    print(f"| capacity, {given.clients} clients in turn, {given.measure_s:g} s | {found:.2f} a second | {best.figures} |", flush=True)
    return found


def overload(service: RunningService, given: argparse.Namespace) -> None:
    most = capacity(service, given)
    asked, rate, full_s = Asking(service.url, given, patient=False), 3 * most, 0.0
    asking, outstanding = list[Future[None]](), 0
    with ThreadPoolExecutor(CLIENT_THREADS) as threads:
        began_s, number = time.monotonic(), 0
        while not full_s or time.monotonic() < full_s + given.overload_s:
            time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
            asking.append(threads.submit(asked.ask, number))
            number += 1
            outstanding = max(outstanding, sum(not one.done() for one in asking))
            if not full_s and asked.first_refusal.is_set():
                full_s = time.monotonic()
            if not full_s and number > 60 * rate:
                raise SystemExit("nothing was refused within a minute: this is no overload; give fewer --max-pending")
        ended_s = time.monotonic()
        offered = number / (ended_s - began_s)
    for one in asking:
        one.result()
    if outstanding > CLIENT_THREADS:
        raise SystemExit(f"{outstanding} requests were under way at a time, and this client has {CLIENT_THREADS} threads: offer fewer")
    goodput = asked.rate((full_s, ended_s))
    what = f"{offered:.1f} a second offered, full after {full_s - began_s:.1f} s, then {ended_s - full_s:.0f} s"
    print(f"| {what} | {goodput:.2f} a second answered, {100 * goodput / most:.0f}% of capacity | {asked.figures} |")


def kills(service: RunningService, given: argparse.Namespace, node: "Node | None") -> None:
    figures = Figures(**json.loads(given.state.read_text())) if given.state and given.state.exists() else Figures()
    asked, over, before_s = Asking(service.url, given, patient=not given.plain, figures=figures), threading.Event(), figures.took_s
    began_s = time.monotonic()

    def save() -> None:
        figures.took_s = before_s + time.monotonic() - began_s
        if given.state:
            given.state.write_text(json.dumps(asdict(figures)))

    def kill_now_and_then() -> None:
        killed_s = 0.0
        while not over.wait(given.every_s):
            if asked.answered_s and asked.answered_s[-1] > killed_s:  # where nothing is answered yet, nothing is killed again
                killed_s = time.monotonic()
                figures.kills += node.kill() if node else kill_one(COMMANDS[given.what])

    def save_now_and_then() -> None:
        while not over.wait(SAVE_EVERY_S):
            save()

    beside = [threading.Thread(target=work) for work in (kill_now_and_then, save_now_and_then)]
    for thread in beside:
        thread.start()
    try:
        with ThreadPoolExecutor(given.clients) as threads:
            list(threads.map(asked.ask, range(figures.requests, given.requests)))
    finally:
        over.set()
        for thread in beside:
            thread.join()
        save()
    share = 100 * figures.statuses.get("200", 0) / max(1, figures.requests)
    what = f"{figures.requests} requests, {given.clients} clients, {figures.kills} × {given.what} killed in {figures.took_s:.0f} s"
    again = "" if given.plain else f"; {figures.sent_again} sent again by the client"
    print(f"| {what} | {share:.1f}% with audio, longest time without an answer {figures.longest_gap_s:.1f} s | {figures}{again} |")


def kill_one(command: str) -> int:
    """How many were killed: 0 where none is there just now."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if command in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                os.kill(process.pid, signal.SIGKILL)
                return 1
    return 0


class Node:
    """A worker node on this machine: a raylet of its own, which joins again each time it has been killed."""

    def __init__(self, address: str) -> None:
        self._command = [
            sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--address", address, "--block",
            "--num-cpus", str(NODE_CPUS), "--object-store-memory", str(2**28),
        ]  # fmt: skip
        self._process = self._join()

    def _join(self) -> psutil.Popen:
        return psutil.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> int:
        self.end()
        self._process = self._join()
        return 1

    def end(self) -> None:
        """SIGKILL to the raylet and to all that it runs."""
        processes = [self._process]
        with suppress(psutil.NoSuchProcess):
            processes += self._process.children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


@contextmanager
def worker_node() -> Iterator[Node]:
    """Joins this process's cluster with room for one replica, which is running there when this yields."""
    import ray
    from ray import serve
    from ray.serve.schema import ReplicaState

    node = Node(ray.get_runtime_context().gcs_address)
    try:
        until_s = time.monotonic() + 180
        while time.monotonic() < until_s:
            model = serve.status().applications["backline"].deployments["Model"]
            if model.replica_states.get(ReplicaState.RUNNING, 0) == 2:
                break
            time.sleep(0.5)
        else:
            raise SystemExit("no replica started on the worker node within three minutes")
        yield node
    finally:
        node.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["overload", "kills"])
    parser.add_argument("--what", choices=[*COMMANDS, "node"], default="replica", help="is killed")
    parser.add_argument("--checkpoint", help="by default the one that ships")
    parser.add_argument("--seconds", type=float, default=3.0, help="of vocal in each request")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1, help="with --what node: one here, one there")
    parser.add_argument("--ingress-replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch in a replica")
    parser.add_argument("--max-pending", type=int, default=ServeConfig.max_pending)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--every-s", type=float, default=20.0)
    parser.add_argument("--plain", action="store_true", help="clients that send nothing again")
    parser.add_argument("--state", type=Path, help="file in which a run of kills is kept, to go on with it")
    parser.add_argument("--measure-s", type=float, default=30.0)
    parser.add_argument("--overload-s", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=8123)
    given = parser.parse_args()
    far = given.mode == "kills" and given.what == "node"
    config = ServeConfig(
        checkpoint=given.checkpoint, port=given.port, replicas=2 if far else given.replicas, ingress_replicas=given.ingress_replicas,
        replica_threads=given.threads, replica_cpus=NODE_CPUS if far else 1.0, num_cpus=NODE_CPUS + 1 if far else None,
        max_pending=given.max_pending,
    )  # fmt: skip
    print(f"{machine('cpu')}; vocals of {given.seconds:g} s, {given.steps} steps, {config.replicas} replica(s)\n")
    print("| what | figure | answers |\n|---|---|---|", flush=True)
    with start(config, wait_until_ready=not far) as service:
        if far:
            with worker_node() as node:
                kills(service, given, node)
            return
        Asking(service.url, given, patient=True).ask(0)
        if given.mode == "overload":
            overload(service, given)
        else:
            kills(service, given, None)


if __name__ == "__main__":
    main()
