"""The service while its parts are killed under load: a worker node, the ingress, Serve's proxy and controller, a device that hangs.

One real cluster, a second raylet as the worker node, real SIGKILLs, real HTTP. What must hold each time: every request is answered, with
the bytes of an undisturbed one or with a refusal that says when to come back, within a bound, and later ones are served.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import serving_parts as parts

from infra.audio.files import encode
from infra.cluster import Cluster
from serving import deployments
from serving.client import Client
from serving.deployments import APPLICATION, MODEL_DEPLOYMENT, ModelServer, RunningService, ServeConfig, start

pytestmark = pytest.mark.ray
# Nothing may take longer than this, whatever dies; an undisturbed request takes a second or two on a busy machine of two cores.
BOUND_S = 60.0
SEEDS = range(6)
STEPS = 20
WORKER_CPUS = 2
DEADLY_STEPS = 13
# A request that stands still counts, and on a busy machine one may do so for seconds.
HANG_AFTER_S = 20.0


def hangable(flag: Path) -> type[ModelServer]:
    """A model replica whose device stops in the middle of a step, for ever, once `flag` is there; the first that sees it takes it. It dies
    of a request for DEADLY_STEPS, and notes it."""
    steps, deaths = DEADLY_STEPS, flag.with_name("deaths")

    class HangableServer(ModelServer):
        def _load(self, name: str) -> "Any":  # quoted: the class travels by value, without this module's names for types
            held = super()._load(name)
            denoiser = held.engine.denoiser
            evaluator = denoiser._evaluator

            class Device:
                slots = evaluator.slots

                def __call__(self, asked: "Any") -> "Any":
                    with suppress(FileNotFoundError):
                        flag.unlink()
                        threading.Event().wait()
                    return evaluator(asked)

            check = held.engine.check

            def deadly(request: "Any") -> None:
                if request.steps == steps:
                    with deaths.open("a") as file:
                        file.write("x")
                    os.kill(os.getpid(), signal.SIGKILL)
                check(request)

            denoiser._evaluator, held.engine.check = Device(), deadly
            return held

    return HangableServer


@dataclass(kw_only=True)
class Scene:
    """A running service of two replicas, with a third where there is a worker node; and what it answers undisturbed."""

    service: RunningService
    config: ServeConfig
    cluster: Cluster
    flag: Path
    expected: dict[int, bytes]

    def deploy(self, replicas: int) -> None:
        from ray import serve as ray_serve

        ray_serve.run_many([deployments._target(replace(self.config, replicas=replicas))], wait_for_applications_running=False)

    def running(self) -> int:
        from ray import serve as ray_serve
        from ray.serve.schema import ReplicaState

        application = ray_serve.status().applications[APPLICATION]
        return application.deployments[MODEL_DEPLOYMENT].replica_states.get(ReplicaState.RUNNING, 0)

    def processes(self, name: str) -> list[psutil.Process]:
        """Of this cluster, also of its worker node."""
        return parts.processes(psutil.Process(), name)

    def settle(self, replicas: int = 2) -> None:
        """Waits until so many replicas serve, and HTTP does."""
        wait_for(lambda: self.running() == replicas)
        wait_for(lambda: httpx.get(f"{self.service.url}/readyz", timeout=BOUND_S).status_code == 200)


def wait_for(said: Callable[[], Any], within_s: float = BOUND_S) -> float:
    """Seconds until `said` is true; a service that cannot be reached says nothing yet."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s:
        with suppress(httpx.TransportError, KeyError):
            if said():
                return time.monotonic() - began_s
        time.sleep(0.1)
    raise AssertionError(f"not so within {within_s:g} s")


@pytest.fixture(scope="module")
def scene(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    from ray import serve as ray_serve

    folder = tmp_path_factory.mktemp("faults")
    flag = folder / "hang"
    # Two replicas and two ingresses fill the head's four tickets; the third replica waits for the worker node.
    config = ServeConfig(
        checkpoint=str(parts.tiny_checkpoint(folder / "tiny")), port=parts.free_port(), replicas=3, replica_cpus=1.9, replica_threads=1,
        ingress_replicas=2, hang_after_s=HANG_AFTER_S, drain_s=60,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployments, "MODEL", ray_serve.deployment(name=MODEL_DEPLOYMENT)(hangable(flag)))
        with start(config, wait_until_ready=False) as service:
            scene = Scene(service=service, config=config, cluster=ray_cluster, flag=flag, expected={})
            scene.settle()
            for seed in SEEDS:
                answer = ask(service.url, seed)
                assert answer.status_code == 200
                scene.expected[seed] = answer.content
            yield scene


def ask(url: str, seed: int, steps: int = STEPS) -> httpx.Response:
    fields = {"seed": str(seed), "steps": str(steps)}
    return httpx.post(f"{url}/v1/accompaniments", files={"vocal": ("v.wav", VOCAL)}, data=fields, timeout=BOUND_S)


VOCAL = parts.vocal(2.0)


@dataclass(frozen=True, kw_only=True)
class Asked:
    seed: int
    began_s: float
    took_s: float
    status: int
    """0 where the connection broke."""
    headers: httpx.Headers
    content: bytes


class Crowd:
    """So many clients that ask again and again, without trying again, and so many that use the project's own client."""

    def __init__(self, scene: Scene, plain: int, patient: int) -> None:
        self.asked: list[Asked] = []
        self.patient: list[bool] = []
        self._scene, self._over = scene, threading.Event()
        self._threads = ThreadPoolExecutor(plain + patient)
        self._futures: list[Future[None]] = [self._threads.submit(self._ask, client) for client in range(plain)]
        self._futures += [self._threads.submit(self._ask_patiently, client) for client in range(patient)]

    def leave(self) -> None:
        """Waits for the last answers; raises what a client raised."""
        self._over.set()
        try:
            for future in self._futures:
                future.result(timeout=2 * BOUND_S)
        finally:
            self._threads.shutdown(wait=False)

    def _ask(self, client: int) -> None:
        for number in range(client, 10**6):
            if self._over.is_set():
                return
            seed, began_s = SEEDS[number % len(SEEDS)], time.monotonic()
            status, headers, content = 0, httpx.Headers(), b""
            try:
                answer = ask(self._scene.service.url, seed)
                status, headers, content = answer.status_code, answer.headers, answer.content
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                time.sleep(0.1)  # refused at once: ten times a second is enough
            took_s = time.monotonic() - began_s
            self.asked.append(Asked(seed=seed, began_s=began_s, took_s=took_s, status=status, headers=headers, content=content))

    def _ask_patiently(self, client: int) -> None:
        with Client(self._scene.service.url, timeout_s=BOUND_S) as patient:
            for number in range(client, 10**6):
                if self._over.is_set():
                    return
                seed = SEEDS[number % len(SEEDS)]
                self.patient.append(patient.accompany(VOCAL, seed=seed, steps=STEPS).audio == self._scene.expected[seed])


@contextmanager
def crowd(scene: Scene, plain: int, patient: int = 0) -> Iterator[Crowd]:
    """Under load from the first answers on; checked when it leaves: no wrong byte, no hang, and no client of ours that failed."""
    clients = Crowd(scene, plain, patient)
    try:
        wait_for(lambda: len(clients.asked) >= plain)
        yield clients
    finally:
        clients.leave()
    assert all(one.content == scene.expected[one.seed] for one in clients.asked if one.status == 200)
    assert max(one.took_s for one in clients.asked) < BOUND_S
    assert all(clients.patient)
    assert bool(clients.patient) == bool(patient)
    for one in clients.asked:
        assert one.status != 503 or int(one.headers["retry-after"]) >= 1


def kill(*processes: psutil.Process) -> float:
    """SIGKILL; when it was."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return time.monotonic()


def statuses(asked: Sequence[Asked]) -> set[int]:
    return {one.status for one in asked}


@contextmanager
def worker_node(cluster: Cluster, log: Path, *more: str) -> Iterator[psutil.Process]:
    """A second node on this machine: a raylet of its own, with its own object store and workers. `more` goes to `ray start`."""
    command = [
        sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--address", cluster.address, "--block",
        "--num-cpus", str(WORKER_CPUS), "--object-store-memory", str(2**27), *more,
    ]  # fmt: skip
    with log.open("wb") as output:
        node = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield node
    finally:
        if node.is_running():
            kill(*node.children(recursive=True), node)
        node.wait()


def test_a_worker_node_dies_under_load(scene: Scene, tmp_path: Path) -> None:
    """Its requests are asked again on the head within seconds, though the cluster calls the node dead much later."""
    with worker_node(scene.cluster, tmp_path / "node.log") as node:
        scene.settle(3)
        (far,) = [process for process in scene.processes("ServeReplica:backline:Model") if node in process.parents()]
        with crowd(scene, plain=8) as clients:
            wait_for(lambda: far.cpu_percent(0.2) > 20)  # it works on some of them
            killed_s = kill(*node.children(recursive=True), node)
            answered = len(clients.asked)
            wait_for(lambda: time.monotonic() - killed_s > 5 and len(clients.asked) > answered + 16)
        assert statuses(clients.asked) <= {200, 503}
        assert statuses([one for one in clients.asked if one.began_s > killed_s + 3]) == {200}


def test_the_ingresses_die_under_load(scene: Scene) -> None:
    """Serve's proxy says 500 in plain text to those whose ingress dies, at once; the project's client asks again, and is answered."""
    scene.settle()
    with crowd(scene, plain=4, patient=3) as clients:
        answered = len(clients.patient)
        killed_s = kill(*scene.processes("ServeReplica:backline:Ingress"))
        wait_for(lambda: len(clients.patient) > answered + 6 and time.monotonic() - killed_s > 5)
    lost = [one for one in clients.asked if one.status not in (200, 503)]
    assert lost
    for one in lost:
        assert (one.status, one.content) == (500, b"Internal Server Error")
        assert one.began_s < killed_s + 2
        assert one.began_s + one.took_s < killed_s + 5
    assert statuses([one for one in clients.asked if one.began_s > killed_s + 2]) == {200}


def test_a_request_that_replicas_die_of_costs_two_and_who_is_beside_it_nothing(scene: Scene) -> None:
    """Whichever ingress they came through; and asked again, with another seed, it costs no third. Each ingress learns for itself."""
    scene.settle()
    deaths = scene.flag.with_name("deaths")
    with crowd(scene, plain=6) as clients:
        answer = ask(scene.service.url, 0, DEADLY_STEPS)
        assert (answer.status_code, answer.json()["title"]) == (500, "Quarantined")
        assert deaths.read_text() == "xx"
        answered = len(clients.asked)
        wait_for(lambda: len(clients.asked) > answered + 12)
    assert statuses(clients.asked) == {200}
    scene.settle()
    for seed in range(6):
        answer = ask(scene.service.url, seed, DEADLY_STEPS)
        assert (answer.status_code, answer.json()["title"]) == (500, "Quarantined")
    assert len(deaths.read_text()) <= 2 * scene.config.ingress_replicas
    scene.settle()


@pytest.mark.soak
def test_the_proxy_and_the_controller_die_under_load(scene: Scene) -> None:
    """Without a proxy connections are refused until the controller starts another; without a controller nobody notices."""
    scene.settle()
    with crowd(scene, plain=2, patient=2) as clients:
        killed_s = kill(*scene.processes("ProxyActor"))
        wait_for(lambda: clients.asked[-1].status == 200 and clients.asked[-1].began_s > killed_s + 1)
    assert statuses(clients.asked) <= {0, 200, 404}  # 404: a proxy that knows no application yet
    assert all(one.took_s < 5 for one in clients.asked if one.status != 200)

    scene.settle()
    with crowd(scene, plain=4) as clients:
        killed_s = kill(*scene.processes("ServeController"))
        wait_for(lambda: time.monotonic() - killed_s > 10)
    assert statuses(clients.asked) == {200}
    scene.settle()


@pytest.mark.soak
def test_a_device_that_hangs_is_noticed(scene: Scene) -> None:
    """A step that never ends fails the health check; the replica ends, its requests are asked again, and another takes its place."""
    scene.settle()
    before = {process.pid for process in scene.processes("ServeReplica:backline:Model")}
    with crowd(scene, plain=6) as clients:
        scene.flag.touch()
        wait_for(lambda: not scene.flag.exists())
        hung_s = time.monotonic()
        wait_for(lambda: before - {process.pid for process in scene.processes("ServeReplica:backline:Model")})
        noticed_s = time.monotonic() - hung_s
        answered = len(clients.asked)
        wait_for(lambda: len(clients.asked) > answered + 12)
    assert statuses(clients.asked) <= {200, 503}
    assert HANG_AFTER_S < noticed_s < HANG_AFTER_S + 10  # the health check's period, not the time for draining
    scene.settle()
    assert len({process.pid for process in scene.processes("ServeReplica:backline:Model")} - before) == 1


@pytest.mark.soak
def test_scaling_down_and_rolling_over_lose_no_request(scene: Scene) -> None:
    """From two replicas to one, as an operator does it by deploying again: all replicas that were there finish what they have, also a
    stream that had long to go."""
    scene.settle()
    vocal = encode(parts.np.repeat(parts.sung(110.0)[None], 2, axis=0), "flac")
    with Client(scene.service.url, timeout_s=BOUND_S, attempts=1) as client, crowd(scene, plain=3) as clients:
        with client.stream(vocal, seed=1, steps=100) as (_, pieces):
            first = next(pieces)
            scene.deploy(1)
            streamed = first + b"".join(pieces)
        wait_for(lambda: len(scene.processes("ServeReplica:backline:Model")) == 1)
    assert statuses(clients.asked) == {200}
    with Client(scene.service.url, timeout_s=BOUND_S) as client, client.stream(vocal, seed=1, steps=100) as (_, pieces):
        assert b"".join(pieces) == streamed
    scene.deploy(3)
