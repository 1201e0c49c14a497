"""Honest requests beside hostile ones: `python infra/benchmarks/service/hostile.py --minutes 60 --checkpoint FOLDER --promoted FOLDER`.

A cluster of its own on this machine, `serve deploy` of infra/serve.yaml, and for as long as is asked:

- honest clients, one after another: vocals of 3 to 20 s through `serving/client.py` with its retries;
- hostile clients: every kind of broken upload, bodies that come slowly or are cut, clients that vanish while they are worked for;
- the operator: a model replica killed every two minutes, two promotions, and once a serve.yaml with a typo.

Printed as Markdown: the share of honest requests that got audio, the slowest, what hostile ones were answered, replicas that ended without
having been killed, and memory of the service every minute.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))

import httpx
import psutil
import serving_parts  # type: ignore[import-not-found]  # of tests/: the bad uploads of the interface
import yaml  # type: ignore[import-untyped]

from infra.audio.files import encode
from infra.benchmarks.model.subject import machine
from infra.benchmarks.service.engine import vocal
from serving.client import Client, RefusedError

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
LENGTHS_S = (3.0, 5.0, 8.0, 12.0, 20.0)
KILL_EVERY_S = 120.0
SETTLED_S = 600.0
LONGEST_S = 600.0
REPLICA = "ServeReplica:backline:Model"


class Figures:
    """What became of everybody; for any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.honest: Counter[str] = Counter()
        self.late_s: list[float] = []
        self.hostile: Counter[str] = Counter()
        self.events: list[str] = []
        self.memory_mb: list[tuple[float, float]] = []
        self.seen: set[int] = set()
        self.killed: set[int] = set()

    def count(self, counter: Counter[str], name: str) -> None:
        with self.lock:
            counter[name] += 1


@contextmanager
def head(folder: Path) -> Iterator[tuple[str, int]]:
    """A head node; the dashboard's address, and a free port for the service."""
    ports = [free_port() for _ in range(5)]
    port, dashboard, client, agent, http = ports
    own = tempfile.mkdtemp(prefix="ray-")
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--num-cpus=4",
         f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
         f"--dashboard-agent-listen-port={agent}", f"--temp-dir={own}"],
        env=ENVIRONMENT, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: httpx.get(f"http://127.0.0.1:{dashboard}/api/version", timeout=5).status_code in (200, 401, 403), 180)
        yield f"http://127.0.0.1:{dashboard}", http
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(own, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(is_so: Callable[[], bool], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):
            if is_so():
                return
        if time.monotonic() > end_s:
            raise SystemExit(f"not within {seconds:g} s: the machine is too busy, or the service does not start")
        time.sleep(0.5)


def deploy(folder: Path, dashboard: str, config: dict[str, object], changes: dict[str, object]) -> None:
    applications = [{**application, "args": {**application["args"], **changes}} for application in config["applications"]]  # type: ignore[attr-defined]
    (folder / "serve.yaml").write_text(yaml.safe_dump({**config, "applications": applications}))
    done = subprocess.run(
        [BIN / "serve", "deploy", "serve.yaml", "--address", dashboard], env=ENVIRONMENT, cwd=folder, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"serve deploy failed: {done.stderr[-500:]}")


def ask_honestly(url: str, files: dict[float, bytes], figures: Figures, over: threading.Event, draw: random.Random) -> None:
    with Client(url, timeout_s=LONGEST_S) as client:
        while not over.is_set():
            began_s, seconds = time.monotonic(), draw.choice(LENGTHS_S)
            try:
                answer = client.accompany(files[seconds], seed=draw.randrange(2**31), steps=4)
                said = "audio" if answer.audio else "no audio"
            except RefusedError as error:
                said = str(error.status)
            except httpx.TransportError as error:
                said = type(error).__name__
            figures.count(figures.honest, said)
            with figures.lock:
                figures.late_s.append(time.monotonic() - began_s)
            over.wait(draw.uniform(0, 2))


def ask_hostilely(url: str, files: dict[float, bytes], figures: Figures, over: threading.Event, draw: random.Random) -> None:
    kinds = [*serving_parts.BAD_VOCALS, "slow body", "cut body", "vanishes"]
    while not over.wait(draw.uniform(0.2, 1.5)):
        kind = draw.choice(kinds)
        try:
            said = hostile(url, kind, files[3.0], draw)
        except (httpx.TransportError, OSError) as error:
            said = type(error).__name__
        figures.count(figures.hostile, f"{kind}: {said}")


def hostile(url: str, kind: str, good: bytes, draw: random.Random) -> str:
    """One hostile request, and what it was answered."""
    path = f"{url}/v1/accompaniments"
    if kind in serving_parts.BAD_VOCALS:
        make, _ = serving_parts.BAD_VOCALS[kind]
        return str(httpx.post(path, files={"vocal": ("vocal.wav", make())}, timeout=60).status_code)
    request = httpx.Request("POST", path, files={"vocal": ("vocal.flac", good)}, data={"steps": "200"})
    body = request.read()
    host, port = url.removeprefix("http://").split(":")
    head_bytes = (
        f"POST /v1/accompaniments HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {request.headers['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head_bytes)
        if kind == "vanishes":
            connection.sendall(body)
            time.sleep(draw.uniform(0, 2))
            return "gone"
        if kind == "cut body":
            connection.sendall(body[: len(body) // 2])
            return "gone"
        for start in range(0, min(len(body), 20_000), 2_000):
            connection.sendall(body[start : start + 2_000])
            time.sleep(0.5)
        return "gone"


def replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if REPLICA in " ".join(process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def watch(figures: Figures, began_s: float, over: threading.Event) -> None:
    """Memory of the replicas and ingresses, and which replicas there have been."""
    while not over.wait(10):
        used = 0
        for process in psutil.process_iter(["cmdline", "memory_info"]):
            if "ServeReplica:backline" in " ".join(process.info["cmdline"] or ()) and process.info["memory_info"]:
                used += process.info["memory_info"].rss
        with figures.lock:
            figures.memory_mb.append((time.monotonic() - began_s, used / 2**20))
            figures.seen |= {process.pid for process in replicas()}


def kill_now_and_then(figures: Figures, over: threading.Event, draw: random.Random) -> None:
    while not over.wait(KILL_EVERY_S):
        if there := replicas():
            chosen = draw.choice(there)
            figures.killed.add(chosen.pid)
            with suppress(psutil.NoSuchProcess):
                chosen.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--checkpoint", required=True, help="folder that is served first")
    parser.add_argument("--promoted", required=True, help="folder that is served after a third of the time, until the second third is over")
    parser.add_argument("--honest", type=int, default=2)
    parser.add_argument("--hostile", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=2)
    given = parser.parse_args()
    figures, over = Figures(), threading.Event()
    files = {seconds: encode(vocal(seconds), "flac") for seconds in LENGTHS_S}
    with tempfile.TemporaryDirectory() as name, head(folder := Path(name)) as (dashboard, port):
        config = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text())
        config["http_options"]["port"] = port
        first = {
            "checkpoint": str(Path(given.checkpoint).resolve()), "replicas": given.replicas, "max_replicas": given.replicas,
            "replica_threads": 1, "replica_memory_gb": 1.0, "max_duration_s": 60.0,
        }  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        deploy(folder, dashboard, config, first)
        until(lambda: httpx.get(f"{url}/readyz", timeout=10).status_code == 200, 300)
        began_s, total_s = time.monotonic(), 60 * given.minutes
        threads = [
            threading.Thread(target=work, args=(url, files, figures, over, random.Random(f"{work.__name__} {number}")))
            for work, count in ((ask_honestly, given.honest), (ask_hostilely, given.hostile))
            for number in range(count)
        ]
        threads += [
            threading.Thread(target=watch, args=(figures, began_s, over)),
            threading.Thread(target=kill_now_and_then, args=(figures, over, random.Random("kills"))),
        ]
        for thread in threads:
            thread.start()
        try:
            promoted = {**first, "checkpoint": str(Path(given.promoted).resolve())}
            for share, what, changes in (
                (1 / 3, "promoted", promoted),
                (1 / 2, "broken serve.yaml", {**promoted, "chekpoint": "a typo"}),
                (2 / 3, "promoted back", first),
            ):
                time.sleep(max(0.0, began_s + share * total_s - time.monotonic()))
                deploy(folder, dashboard, config, changes)
                figures.events.append(f"{what} at {time.monotonic() - began_s:.0f} s")
            time.sleep(max(0.0, began_s + total_s - time.monotonic()))
        finally:
            over.set()
            for thread in threads:
                thread.join(LONGEST_S)
            hanging = [thread for thread in threads if thread.is_alive()]
    report(figures, given, len(hanging))


def report(figures: Figures, given: argparse.Namespace, hanging: int) -> None:
    asked = sum(figures.honest.values())
    late = sorted(figures.late_s)
    settled = [used for at_s, used in figures.memory_mb if at_s > min(SETTLED_S, 20 * given.minutes)]
    print(
        f"{machine('cpu')}; {given.minutes:g} minutes, {given.honest} honest and {given.hostile} hostile clients, {given.replicas} replicas"
    )
    print(f"\n{'; '.join(figures.events)}; {len(figures.killed)} replicas killed, {len(figures.seen)} seen, {hanging} clients hang\n")
    print("| what | figure |\n|---|---|")
    if asked:
        share, slow_s = 100 * figures.honest["audio"] / asked, late[int(0.95 * (asked - 1))]
        print(f"| honest requests with audio | {share:.2f}% of {asked}: {dict(figures.honest)} |")
        times = f"median {statistics.median(late):.1f}, 95% {slow_s:.1f}, longest {late[-1]:.1f}"
        print(f"| seconds, retries included | {times} |")
    if settled:
        held = f"{settled[0]:.0f} to {settled[-1]:.0f}, most {max(settled):.0f}"
        print(f"| memory of all replicas, MB, settled | {held} |")
    for kind, count in sorted(figures.hostile.items()):
        print(f"| {kind} | {count} |")


if __name__ == "__main__":
    main()
