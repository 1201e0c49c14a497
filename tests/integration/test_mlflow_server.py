"""A tracking server that comes late, is killed and comes back: nothing waits, nothing is lost. Artifacts lie on a real S3 server."""

import json
import time
from pathlib import Path

import pytest
from mlflow_server import MlflowServer, mlflow_server

from infra.settings import Settings
from infra.storage.place import Place
from infra.tracking.registry import Candidate, fetch
from infra.tracking.tracking import Store, open_run, read_handle
from training.publish.mlflow_run import track_again


def log_some(tracker, steps: range, name: str) -> None:
    for step in steps:
        tracker.metrics({"train/loss": 1 / (step + 1), "train/rate": 0.1}, step)
    tracker.content(name.encode(), f"samples/{name}.txt")


@pytest.mark.parametrize(("proxied", "on_s3"), [(True, False), (False, True)], ids=["proxied", "direct"])
def test_a_server_may_come_late_and_die(bucket: str, tmp_path: Path, proxied: bool, on_s3: bool) -> None:
    run = Place(f"{bucket}/run" if on_s3 else str(tmp_path / "run"))
    with mlflow_server(tmp_path, f"{bucket}/artifacts", proxied=proxied) as server:
        began = time.monotonic()
        tracker = open_run(Store(tracking_uri=server.uri), experiment="backline", name="small on songs", run=run, about={"config": {}})
        tracker.params({"rate": 0.1})
        log_some(tracker, range(5), "early")
        assert time.monotonic() - began < 5.0
        assert read_handle(run).run_id is None
        server.start()
        wait_until_sent(tracker)
        assert read_handle(run).run_id == tracker.handle.run_id is not None
        log_some(tracker, range(5, 8), "online")
        wait_until_sent(tracker)

        server.kill()
        logged = time.monotonic()
        log_some(tracker, range(8, 12), "offline")
        tracker.params({"late": "yes"})
        (tmp_path / "checkpoint.json").write_text("{}")
        tracker.file(tmp_path / "checkpoint.json", "checkpoint")
        tracker.register(candidate(0.5))
        assert time.monotonic() - logged < 2.0
        tracker.end("FINISHED")
        assert tracker.left >= 9
        assert [place.name for place in (run / "untracked").list(suffix="offline.txt")] == ["offline.txt"]

        server.start()
        assert track_again(run.uri) == 0
        assert (run / "untracked").list() == []
        check_whole(server, tracker.handle.run_id)
        assert track_again(run.uri) == 0
        check_whole(server, tracker.handle.run_id)

        settings = Settings(s3=Settings.from_environment().s3, mlflow_tracking_uri=server.uri, cache=tmp_path / "cache")
        folder = fetch("models:/backline@champion", settings)
        assert (folder / "checkpoint.json").read_text() == "{}"
        assert json.loads((folder.parent / "run.json").read_text())["mlflow"]["run_id"] == tracker.handle.run_id
        server.kill()
        assert fetch("models:/backline/1", settings) == folder


def wait_until_sent(tracker) -> None:
    deadline = time.monotonic() + 60
    while not tracker.wait_until_sent(1) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tracker.wait_until_sent(0)


def check_whole(server: MlflowServer, run_id: str | None) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    assert run_id is not None
    tracked = client.get_run(run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params == {"rate": "0.1", "late": "yes"}
    for name in ("train/loss", "train/rate"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == list(range(12))
    for name in ("early", "online", "offline"):
        assert Path(client.download_artifacts(run_id, f"samples/{name}.txt")).read_text() == name
    assert [int(version.version) for version in client.search_model_versions("name='backline'")] == [1]
    assert len(client.search_runs([tracked.info.experiment_id])) == 1


def candidate(loss: float) -> Candidate:
    return Candidate(
        model="backline", folder="checkpoint", name="small-1", step=12, validation_loss=loss, dataset_digest="d", codec="c", measure="m",
        description="a card",
    )  # fmt: skip
