"""`backline serve` is told to end: while it answers, and while it has not yet begun to."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import serving_parts as parts
from test_serving_faults import BOUND_S, wait_for

from infra.cluster import Cluster

pytestmark = pytest.mark.ray


@contextmanager
def serving(cluster: Cluster, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command on the tests' cluster."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "--address", cluster.address, "--replica-threads", "1", *options],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_whoever_waits_is_answered_before_it_ends(ray_cluster: Cluster, tmp_path: Path) -> None:
    """Two requests inside the replica get their audio; who waits for a place there is told to come back."""
    port, vocal = parts.free_port(), parts.vocal(12.0)
    url = f"http://127.0.0.1:{port}"
    checkpoint = parts.tiny_checkpoint(tmp_path / "tiny")
    log = tmp_path / "log"
    options = ("--checkpoint", str(checkpoint), "--port", str(port), "--concurrent", "2", "--drain-s", str(2 * BOUND_S))

    def ask(number: int) -> httpx.Response:
        fields, headers = {"steps": "100", "candidates": "6", "seed": "7"}, {"X-Request-Id": f"take-{number}"}
        return httpx.post(f"{url}/v1/accompaniments", files={"vocal": ("v.wav", vocal)}, data=fields, headers=headers, timeout=2 * BOUND_S)

    def state(number: int) -> str | None:
        return httpx.get(f"{url}/v1/progress/take-{number}").json().get("state")

    with serving(ray_cluster, log, *options) as process, ThreadPoolExecutor(3) as threads:
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        asked = [threads.submit(ask, number) for number in range(2)]
        wait_for(lambda: state(0) == state(1) == "running")
        asked.append(threads.submit(ask, 2))
        wait_for(lambda: "accepted [take-2]" in log.read_text())  # the ingress has it and waits for the replica
        assert not any(one.done() for one in asked)
        process.send_signal(signal.SIGTERM)
        answers = [one.result(timeout=2 * BOUND_S) for one in asked]
        assert process.wait(timeout=BOUND_S) == 0, log.read_text()
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert answers[0].content == answers[1].content
    assert int(answers[2].headers["retry-after"]) >= 1
    assert "never retrieved" not in log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


@pytest.mark.soak
def test_a_service_that_cannot_start_ends_too(ray_cluster: Cluster, tmp_path: Path) -> None:
    """No node has a GPU: it waits for one until it is told to end."""
    import ray

    log, checkpoint = tmp_path / "log", parts.tiny_checkpoint(tmp_path / "tiny")
    options = ("--checkpoint", str(checkpoint), "--port", str(parts.free_port()), "--replica-gpus", "1", "--drain-s", "15")
    with serving(ray_cluster, log, *options) as process:
        wait_for(lambda: any("backline#Model#" in actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=BOUND_S) == 0, log.read_text()
    assert re.search(r"stopped$", log.read_text(), re.MULTILINE)
    assert "requests in work" not in log.read_text()
