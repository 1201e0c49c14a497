"""What HTTP costs beside the engine: `python infra/benchmarks/service/service.py`.

Starts the service on this machine's Ray, and an engine alone in a process of its own, with the same checkpoint and the same threads; then
one client asks both for the same vocal with the same seed, in turn, and the medians are set against each other. Where the difference lies
is told from Server-Timing. Prints Markdown. The bar: 15 ms and 3% of the engine's own time. With RAY_SERVE_ENABLE_HA_PROXY=1 in the
environment, HAProxy stands where Serve's own proxy does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import httpx

from infra.audio.files import encode
from infra.benchmarks.model.subject import machine
from infra.benchmarks.service.engine import vocal
from model.checkpoint import SHIPPED_CHECKPOINT
from serving.deployments import ServeConfig, start
from serving.schema import AccompanimentRequest

WORK = ("decode", "encode", "diffuse", "fit", "render")
MOST_MS, MOST_SHARE = 15.0, 0.03
ALONE = "--alone"


@dataclass(frozen=True, kw_only=True)
class Round:
    """The same request to both, in milliseconds."""

    engine: float
    """From the vocal's bytes to the answer's, alone."""
    engine_work: float
    """Of these, what its stages count."""
    wall: float
    """Over HTTP, as the client sees it."""
    total: float
    """From its first byte at the ingress to the answer's."""
    queue: float
    """Between the ingress and the replica, there and back, and waiting for a first step."""
    work: float
    engine_stages: dict[str, float]
    stages: dict[str, float]
    """Those of `WORK`."""

    @property
    def added(self) -> float:
        return self.wall - self.engine

    @property
    def own(self) -> float:
        """What was added by carrying, without how much faster or slower the model happened to be this time."""
        return self.added - (self.work - self.engine_work)


# name → what a round says of it, ms; their sum is what was added. An engine counts the time to its first step's end as waiting, also when
# nobody else is there; the queue of an answer over HTTP has that too, and so it is taken off.
PARTS = {
    "client, proxy, and the answer's way back": lambda one: one.wall - one.total,
    "upload read, form parsed, answer made": lambda one: one.total - one.queue - one.work,
    "ingress to replica and back": lambda one: one.queue - (one.engine - one.engine_work),
    "the model's stages, against those alone": lambda one: one.work - one.engine_work,
}


def alone(given: argparse.Namespace) -> None:
    """An engine, asked by a line on standard input; a line of JSON for each."""
    from infra.audio.decoders import Decoders
    from serving.engine.door import DECODED_AT_A_TIME, Door
    from serving.engine.load import load_engine

    engine = load_engine(
        checkpoint=given.checkpoint, codec=None, device=given.device, threads=given.threads, max_duration_s=600.0, hang_after_s=300.0
    )
    data, request = asked(given)
    door = Door(engine, Decoders(DECODED_AT_A_TIME))
    for _ in sys.stdin:
        began_s = time.perf_counter()
        result = door.generate(data, request)
        took_s = time.perf_counter() - began_s
        stages = {name: 1000 * getattr(result.stages, name) for name in WORK}
        print(json.dumps({"engine": 1000 * took_s, "engine_work": 1000 * result.stages.work_s, "engine_stages": stages}), flush=True)
    engine.close()


def asked(given: argparse.Namespace) -> tuple[bytes, AccompanimentRequest]:
    return encode(vocal(given.seconds), "flac"), AccompanimentRequest(seed=7, steps=given.steps)


def over_http(client: httpx.Client, data: bytes, request: AccompanimentRequest) -> dict[str, Any]:
    began_s = time.perf_counter()
    fields = {"seed": str(request.seed), **({"steps": str(request.steps)} if request.steps else {})}
    answer = client.post("/v1/accompaniments", files={"vocal": ("vocal.flac", data)}, data=fields)
    wall_ms = 1000 * (time.perf_counter() - began_s)
    if answer.status_code != 200:
        raise SystemExit(f"the service answered {answer.status_code}: {answer.text}")
    stages = {name: float(ms) for name, ms in (part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))}
    work = {name: stages[name] for name in WORK}
    return {"wall": wall_ms, "total": stages["total"], "queue": stages["queue"], "work": sum(work.values()), "stages": work}


def measure(given: argparse.Namespace, url: str, engine: "subprocess.Popen[str]") -> list[Round]:
    data, request = asked(given)
    rounds = []

    def ask_engine() -> dict[str, Any]:
        assert engine.stdin
        assert engine.stdout
        engine.stdin.write("\n")
        engine.stdin.flush()
        said: dict[str, Any] = json.loads(engine.stdout.readline())
        return said

    with httpx.Client(base_url=url, timeout=600) as client:
        for number in range(-given.warm_up, given.rounds):
            # Each goes first in every other round, so that neither has the machine's better moments.
            if number % 2:
                found = ask_engine()
                found |= over_http(client, data, request)
            else:
                found = over_http(client, data, request)
                found |= ask_engine()
            if number >= 0:
                rounds.append(Round(**found))
    return rounds


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


def table(rounds: list[Round]) -> str:
    """Markdown: medians, and in brackets the middle half of the rounds."""
    engine_ms, added_ms = statistics.median(one.engine for one in rounds), statistics.median(one.added for one in rounds)
    share = added_ms / engine_ms
    met = "met" if added_ms <= MOST_MS and share <= MOST_SHARE else "missed"
    bar = f"{100 * share:.1f}%**; bar {MOST_MS:g} ms and {100 * MOST_SHARE:g}%: {met}"
    lines = [
        "| what | median (middle half) |\n|---|---|",
        f"| engine alone | {spread([one.engine for one in rounds])} |",
        f"| over HTTP | {spread([one.wall for one in rounds])} |",
        f"| **added, round by round** | **{spread([one.added for one in rounds])}, {bar} |",
        f"| of it: all but the model's stages | {spread([one.own for one in rounds])} |",
        *(f"| of it: {name} | {spread([part(one) for one in rounds])} |" for name, part in PARTS.items()),
        *(f"| of that: {name} | {spread([one.stages[name] - one.engine_stages[name] for one in rounds])} |" for name in WORK),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(SHIPPED_CHECKPOINT))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch, in both; by default the machine's CPUs")
    parser.add_argument("--seconds", type=float, default=47.5, help="of vocal")
    parser.add_argument("--steps", type=int, help="by default the checkpoint's")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument(ALONE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        alone(given)
        return
    config = ServeConfig(checkpoint=given.checkpoint, device=given.device, port=given.port, replica_threads=given.threads)
    with start(config) as service:
        engine = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], ALONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            rounds = measure(given, service.url, engine)
        finally:
            engine.communicate()  # no more lines: it ends
    proxy = "HAProxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "Serve's own proxy"
    steps = "the checkpoint's steps" if given.steps is None else f"{given.steps} steps"
    print(f"{machine(given.device)}; vocal of {given.seconds:g} s, {steps}, {len(rounds)} rounds, one client, {proxy}\n")
    print(table(rounds))


if __name__ == "__main__":
    main()
