"""A service that sleeps, wakes for a request, and grows under load: real Ray Serve."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import serving_parts as parts
from ray import serve as ray_serve
from ray.serve.schema import ReplicaState
from test_serving_http import TIMEOUT_S, free_port

from infra.cluster import Cluster
from serving.deployments import APPLICATION, MODEL_DEPLOYMENT, ServeConfig, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def running() -> int:
    states = ray_serve.status().applications[APPLICATION].deployments[MODEL_DEPLOYMENT].replica_states
    return states.get(ReplicaState.RUNNING, 0)


def test_a_sleeping_service_wakes_and_grows(ray_cluster: Cluster, tmp_path: Path) -> None:
    assert ray_cluster.address
    config = ServeConfig(
        checkpoint=str(parts.tiny_checkpoint(tmp_path / "tiny")), port=free_port(), replicas=0, max_replicas=2, target_ongoing=1,
        replica_threads=1,
    )  # fmt: skip
    with start(config) as service, httpx.Client(base_url=service.url, timeout=TIMEOUT_S) as client, ThreadPoolExecutor(6) as threads:

        def ask() -> int:
            form = {"steps": "100", "seed": "7"}
            return client.post("/v1/accompaniments", files={"vocal": ("v.wav", parts.vocal())}, data=form).status_code

        assert running() == 0
        assert client.get("/readyz").status_code == 200
        assert ask() == 200
        assert running() == 1
        over, statuses = threading.Event(), list[int]()

        def keep_asking() -> None:
            while not over.is_set():
                statuses.append(ask())

        asking = [threads.submit(keep_asking) for _ in range(6)]
        until_s = time.monotonic() + 90
        while running() < 2 and time.monotonic() < until_s:
            time.sleep(0.2)
        grown = running()
        over.set()
        for one in asking:
            one.result()
        assert grown == 2
        assert set(statuses) == {200}
