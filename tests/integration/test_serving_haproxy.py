"""`backline serve` with Ray's HAProxy in the place of its Python proxy: the same answers, on loopback, and an ingress that dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil
import pytest
import serving_parts as parts
from test_serving_faults import wait_for

from serving.client import Client

pytestmark = [pytest.mark.ray, pytest.mark.soak]
START_S = 180.0
BOUND_S = 60.0
# Its own pages of figures, which tell of no request; Ray 2.60 has no setting for their address.
OPEN_PORTS = {8404, 9101}
INGRESS_PORTS = range(30_000, 31_000)


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service, its port and its process."""

    port: int
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, seed: int) -> httpx.Response:
        fields, headers = {"seed": str(seed), "steps": "20"}, {"X-Request-Id": f"take-{seed}"}
        form = {"vocal": ("v.wav", VOCAL)}
        return httpx.post(f"{self.url}/v1/accompaniments", files=form, data=fields, headers=headers, timeout=BOUND_S)

    def processes(self, name: str) -> list[psutil.Process]:
        return parts.processes(self.process, name)


VOCAL = parts.vocal(2.0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, port = tmp_path_factory.mktemp("haproxy"), parts.free_port()
    checkpoint = parts.tiny_checkpoint(folder / "tiny")
    command = [sys.executable, "-m", "serving", "--checkpoint", str(checkpoint), "--port", str(port), "--ingress-replicas", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    with (folder / "log").open("w") as output:
        process = psutil.Popen([*command, "--replica-threads", "1"], env=environment, stdout=output, stderr=subprocess.STDOUT)
    running = Service(port=port, process=process)
    try:
        wait_for(lambda: httpx.get(f"{running.url}/readyz", timeout=BOUND_S).status_code == 200, START_S)
        yield running
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=BOUND_S) == 0, (folder / "log").read_text()
    finally:
        if process.is_running():
            process.kill()


def test_the_same_answers_on_loopback(service: Service) -> None:
    first, again = service.ask(7), service.ask(7)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert first.headers["x-request-id"] == "take-7"
    assert httpx.get(f"{service.url}/v1/progress/nobody").json()["status"] == 404
    assert httpx.post(f"{service.url}/v1/accompaniments", data={"seed": "7"}).headers["content-type"] == "application/problem+json"
    (proxy,) = service.processes("haproxy -")
    ports = {
        connection.laddr.port: connection.laddr.ip for connection in proxy.net_connections() if connection.status == psutil.CONN_LISTEN
    }
    assert ports.pop(service.port) == "127.0.0.1"
    assert set(ports) == OPEN_PORTS
    ingresses = service.processes("ServeReplica:backline:Ingress")
    assert len(ingresses) == 2
    for ingress in ingresses:
        listening = [found.laddr for found in ingress.net_connections() if found.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening if address.port in INGRESS_PORTS} == {"127.0.0.1"}


def test_an_ingress_is_killed(service: Service) -> None:
    expected = {seed: service.ask(seed).content for seed in range(4)}
    ingress, other = service.processes("ServeReplica:backline:Ingress")

    def ask(seed: int) -> bytes:
        with Client(service.url, attempts=8) as client:
            return client.accompany(VOCAL, seed=seed, steps=20).audio

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, seed % 4) for seed in range(12)]
        time.sleep(0.5)
        ingress.kill()
        assert [one.result(timeout=2 * BOUND_S) for one in asked] == [expected[seed % 4] for seed in range(12)]
    assert other.is_running()
    wait_for(lambda: len(service.processes("ServeReplica:backline:Ingress")) == 2)
    assert service.ask(1).content == expected[1]
