"""A service that sleeps, wakes for a request, grows under load and falls asleep again; replicas that share a GPU: real Ray Serve."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import serving_parts as parts
from test_serving_faults import wait_for, worker_node
from test_serving_http import TIMEOUT_S

from infra.cluster import Cluster
from serving.deployments import APPLICATION, MODEL_DEPLOYMENT, ServeConfig, start

pytestmark = [pytest.mark.ray, pytest.mark.soak]


def running() -> int:
    from ray import serve as ray_serve
    from ray.serve.schema import ReplicaState

    states = ray_serve.status().applications[APPLICATION].deployments[MODEL_DEPLOYMENT].replica_states
    return states.get(ReplicaState.RUNNING, 0)


def test_a_service_wakes_grows_and_falls_asleep(ray_cluster: Cluster, tmp_path: Path) -> None:
    assert ray_cluster.address
    config = ServeConfig(
        checkpoint=str(parts.tiny_checkpoint(tmp_path / "tiny")), port=parts.free_port(), replicas=0, max_replicas=2, target_ongoing=1,
        downscale_delay_s=3, replica_threads=1,
    )  # fmt: skip
    statuses = list[int]()
    with start(config) as service, httpx.Client(base_url=service.url, timeout=TIMEOUT_S) as client:

        def ask(steps: int = 100) -> None:
            form = {"steps": str(steps), "seed": "7"}
            statuses.append(client.post("/v1/accompaniments", files={"vocal": ("v.wav", parts.vocal())}, data=form).status_code)

        @contextmanager
        def asking(clients: int, steps: int) -> Iterator[None]:
            over = threading.Event()

            def keep_asking() -> None:
                while not over.is_set():
                    ask(steps)

            with ThreadPoolExecutor(clients) as threads:
                asked = [threads.submit(keep_asking) for _ in range(clients)]
                try:
                    yield
                finally:
                    over.set()
            for one in asked:
                one.result()

        assert running() == 0
        assert client.get("/readyz").status_code == 200
        ask()
        assert running() == 1
        with asking(6, steps=100):
            wait_for(lambda: running() == 2, TIMEOUT_S)
        # One client is left, whose long requests are now at the replica that stays, now at the one that goes.
        with asking(1, steps=200):
            wait_for(lambda: running() == 1, TIMEOUT_S)
        wait_for(lambda: running() == 0, TIMEOUT_S)
        ask()
        assert set(statuses) == {200}


def test_two_replicas_share_a_gpu(ray_cluster: Cluster, tmp_path: Path) -> None:
    """Ray's own ticket of a GPU: no device is used, it is the placement that counts. A third replica finds no room."""
    import ray

    config = ServeConfig(
        checkpoint=str(parts.tiny_checkpoint(tmp_path / "tiny")), port=parts.free_port(), replicas=3, replica_gpus=0.5, replica_cpus=0.2,
        replica_threads=1, device="cpu",
    )  # fmt: skip
    with worker_node(ray_cluster, tmp_path / "node.log", "--num-gpus", "1") as node:
        wait_for(lambda: ray.cluster_resources().get("GPU") == 1)
        with start(config, wait_until_ready=False) as service:
            wait_for(lambda: running() == 2)
            wait_for(lambda: ray.available_resources().get("GPU", 0) == 0)
            assert len(parts.processes(node, "ServeReplica:backline:Model")) == 2
            form = {"seed": "7", "steps": "4"}
            files = {"vocal": ("v.wav", parts.vocal())}
            assert httpx.post(f"{service.url}/v1/accompaniments", files=files, data=form, timeout=TIMEOUT_S).status_code == 200
            assert running() == 2
