"""Several models behind one service, and a new champion rolled out under load: real Ray Serve, real registry."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import serving_parts as parts
from test_serving_faults import wait_for
from test_serving_http import TIMEOUT_S
from test_submit import REPOSITORY

from infra.cluster import Cluster
from infra.settings import Settings
from infra.storage.place import Place
from infra.tracking.registry import Candidate, promote
from infra.tracking.tracking import open_run, store_of
from model.checkpoint import load_checkpoint, save_checkpoint
from serving.deployments import ServeConfig, reload, start, versions_of

pytestmark = pytest.mark.ray
BROKEN = "broken"
STARTS_WITHIN_S = 300.0
ALIKE = {
    "model": "backline", "folder": "checkpoint", "validation_loss": 1.0, "dataset_digest": "d", "codec": "c", "measure": "m",
    "description": "a card",
}  # fmt: skip


def register(folder: Path, tracking_uri: str, names: list[str]) -> None:
    """Versions 1, 2, … of the model `backline`: the same tiny network under these names."""
    checkpoint = load_checkpoint(parts.tiny_checkpoint(folder / "tiny"))
    for number, name in enumerate(names, start=1):
        place = Place(str(folder / f"run-{number}"))
        tracker = open_run(store_of(place, tracking_uri), experiment="e", name=name, run=place)
        save_checkpoint(folder / name, dataclasses.replace(checkpoint, name=name))
        if name == BROKEN:
            (weights,) = (folder / name).glob("*.safetensors")
            weights.write_bytes(weights.read_bytes()[:1_000])
        tracker.folder(folder / name, "checkpoint")
        tracker.register(Candidate(name=name, step=number, **ALIKE))
        tracker.end("FINISHED")


def test_a_champion_is_rolled_out_without_a_lost_request(ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_cluster.address
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    register(tmp_path, uri, ["first", "second", BROKEN])
    config = ServeConfig(
        checkpoint="models:/backline@champion", models=(f"other={tmp_path / 'second'}",), port=parts.free_port(), replica_threads=1,
        max_pending=8, drain_s=30,
    )  # fmt: skip
    with start(config) as service, httpx.Client(base_url=service.url, timeout=TIMEOUT_S) as client, ThreadPoolExecutor(1) as threads:

        def ask(**fields: str) -> httpx.Response:
            return client.post("/v1/accompaniments", files={"vocal": ("v.wav", parts.vocal())}, data={**parts.QUICK, **fields})

        assert [model["id"] for model in client.get("/v1/models").json()["models"]] == ["first", "second"]
        chosen = {name: ask(model=name) for name in ("other", "second", "first")}
        assert [answer.headers["x-backline-model"] for answer in chosen.values()] == ["second", "second", "first"]
        unknown = ask(model="third")
        assert unknown.status_code == 422
        assert "other, first, second" in unknown.json()["detail"]

        served = service.places
        assert reload(config, served) == served == versions_of(config)
        promote("backline", "2", "champion", Settings.from_environment())
        over, answers = threading.Event(), []

        def keep_asking() -> None:
            while not over.is_set():
                answers.append(ask())

        asking = threads.submit(keep_asking)
        try:
            assert reload(config, served) == {"default": "models:/backline/2", "other": served["other"]}
            until_s = time.monotonic() + 60
            while time.monotonic() < until_s and not (answers and answers[-1].headers.get("x-backline-model") == "second"):
                time.sleep(0.2)
        finally:
            over.set()
        asking.result()
        assert {answer.status_code for answer in answers} == {200}
        named = [answer.headers["x-backline-model"] for answer in answers]
        assert named[-1] == "second"
        assert named == sorted(named)

        served = versions_of(config)
        promote("backline", "3", "champion", Settings.from_environment())
        assert reload(config, served) == served
        assert ask().headers["x-backline-model"] == "second"


AT_THE_LAST_MOMENT = """
import sys
from pathlib import Path

import serving.deployments as deployments
from infra.settings import Settings
from infra.tracking.registry import promote

database, address, checkpoint, port = sys.argv[1:]
start = deployments.start


def started(config):
    service = start(config)
    promote("backline", "2", "champion", Settings.from_environment())
    Path(database).rename(f"{database}-away")
    return service


deployments.start = started
config = deployments.ServeConfig(checkpoint=checkpoint, address=address, port=int(port), replica_threads=1, reload_every_s=0.5)
deployments.serve(config)
"""
"""A service whose champion changes, and whose registry is away, before it looks for the first time."""


def test_what_is_promoted_while_a_service_starts_is_rolled_out_once_the_registry_answers(ray_cluster: Cluster, tmp_path: Path) -> None:
    database, port, log = tmp_path / "mlflow.db", parts.free_port(), tmp_path / "log"
    register(tmp_path, f"sqlite:///{database}", ["first", "second"])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{database}", "BACKLINE_CACHE": str(tmp_path / "cache")}
    arguments = [str(database), ray_cluster.address, "models:/backline@champion", str(port)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", AT_THE_LAST_MOMENT, *arguments], env=environment, cwd=REPOSITORY, stdout=sink, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"

    def model() -> str:
        files = {"vocal": ("v.wav", parts.vocal())}
        return httpx.post(f"{url}/v1/accompaniments", files=files, data=parts.QUICK, timeout=TIMEOUT_S).headers["x-backline-model"]

    try:
        wait_for(lambda: process.poll() is not None or log.read_text().count("the models stay as they are") >= 2, STARTS_WITHIN_S)
        assert process.poll() is None, log.read_text()
        assert model() == "first"
        Path(f"{database}-away").rename(database)
        wait_for(lambda: process.poll() is not None or model() == "second", STARTS_WITHIN_S)
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)  # not killed: it takes its service down
        assert process.wait(timeout=STARTS_WITHIN_S) == 0, log.read_text()


def test_the_checkpoint_of_the_environment_is_served_on_a_cluster_that_was_started_elsewhere(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers have the variables of whoever started it."""
    assert ray_cluster.address
    monkeypatch.setenv("BACKLINE_CHECKPOINT", str(parts.tiny_checkpoint(tmp_path / "mine")))
    with start(ServeConfig(port=parts.free_port(), replica_threads=1)) as service, httpx.Client(base_url=service.url) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["models"]] == [parts.MODEL_NAME]
        answer = client.post("/v1/accompaniments", files={"vocal": ("v.wav", parts.vocal())}, data=parts.QUICK, timeout=TIMEOUT_S)
        assert answer.headers["x-backline-model"] == parts.MODEL_NAME


def test_models_share_a_replica_that_holds_one_at_a_time(ray_cluster: Cluster, tmp_path: Path) -> None:
    """A model that makes room for another still ends what it has begun, and comes back when it is asked for again."""
    assert ray_cluster.address
    checkpoint = load_checkpoint(parts.tiny_checkpoint(tmp_path / "tiny"))
    names = ["low", "middle", "high"]
    for number, name in enumerate(names):
        state = {key: value + 0.01 * number for key, value in checkpoint.state.items()}
        save_checkpoint(tmp_path / name, dataclasses.replace(checkpoint, name=name, state=state))
    config = ServeConfig(
        checkpoint=str(tmp_path / "low"), models=tuple(f"{name}={tmp_path / name}" for name in names[1:]), models_per_replica=1,
        port=parts.free_port(), replica_threads=1,
    )  # fmt: skip
    with start(config) as service, httpx.Client(base_url=service.url, timeout=TIMEOUT_S) as client, ThreadPoolExecutor(8) as threads:

        def ask(model: str, **fields: str) -> httpx.Response:
            answer = client.post(
                "/v1/accompaniments", files={"vocal": ("v.wav", parts.vocal())}, data={**parts.QUICK, "model": model, **fields}
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-backline-model"] == model
            return answer

        assert [model["id"] for model in client.get("/v1/models").json()["models"]] == names
        first = {name: ask(name).content for name in names}
        assert len(set(first.values())) == len(names)
        long = threads.submit(ask, "low", steps="200", candidates="4")
        time.sleep(0.5)
        assert ask("high").content == first["high"]
        assert not long.done(), long.exception()
        crowd = {name: [threads.submit(ask, name) for _ in range(3)] for name in names}
        assert all(asked.result().content == first[name] for name in names for asked in crowd[name])
        for name in (*names, *names):  # thrown out and taken back again and again
            assert ask(name).content == first[name]
        long.result()
        assert client.get("/readyz").status_code == 200
