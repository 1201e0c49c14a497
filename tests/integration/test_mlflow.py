"""Tracking in a real SQLite store: one run across restarts, nothing twice, nothing lost that a killed process had logged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.storage.place import Place
from infra.tracking.tracking import RunHandle, Store, Tracker, open_run, read_handle, send_untracked, store_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def store(run: Place) -> Store:
    return store_of(run, None)


def test_a_run_keeps_its_id_and_repeats_no_step(run: Place, store: Store) -> None:
    from mlflow import MlflowClient

    first = open_run(
        store, experiment="e", name="small on songs", run=run, about={"config": 1}, tags={"colour": "blue"}, parent_run_id="a" * 32
    )
    first.params({"rate": 0.1, "loss": {"cap": 5}})
    first.dataset(
        name="songs", digest="d" * 64, uri="s3://bucket/songs", columns={"song_id": "string", "vocal_latent": "halffloat [64 × 1024]"},
        profile={"songs": 7, "hours": 0.5},
    )  # fmt: skip
    first.content(b"RIFF", "samples/one.wav")
    first.tags({"shape": "round"})
    for step in range(5):
        first.metrics({"loss": 1 / (step + 1)}, step)
    assert first.close() == 0
    before = read_handle(run)
    assert before == first.handle
    second = open_run(store, experiment="e", name="n", run=run, before=before, about={"config": 2})
    for step in range(3, 8):
        second.metrics({"loss": 1 / (step + 1)}, step)
    second.end("FINISHED")
    assert second.handle == first.handle
    assert json.loads((run / "run.json").read_bytes())["config"] == 2

    client = MlflowClient(store.tracking_uri)
    tracked = client.get_run(first.handle.run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == "small on songs"
    assert tracked.data.params == {"rate": "0.1", "loss.cap": "5"}
    expected = {
        "colour": "blue",
        "shape": "round",
        "backline.run": run.uri,
        "mlflow.parentRunId": "a" * 32,
        "mlflow.source.name": "backline",
    }
    assert expected.items() <= tracked.data.tags.items()
    assert len(tracked.data.tags["mlflow.source.git.commit"]) == 40
    dataset = tracked.inputs.dataset_inputs[0].dataset
    assert (dataset.digest, dataset.source_type) == ("d" * 36, "s3")
    assert {column["name"] for column in json.loads(dataset.schema)["mlflow_colspec"]} == {"song_id", "vocal_latent"}
    assert json.loads(dataset.profile) == {"songs": 7, "hours": 0.5}
    assert [point.step for point in client.get_metric_history(first.handle.run_id, "loss")] == list(range(8))
    assert (run.path / "mlartifacts" / first.handle.run_id / "artifacts" / "samples" / "one.wav").read_bytes() == b"RIFF"
    assert not (run.path / "untracked").exists()


def test_a_resumed_run_keeps_its_parameters_and_loses_no_metric(run: Place, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    place = run / "it's"
    first = open_run(store, experiment="e", name="n", run=place)
    first.params({"rate": 0.1})
    first.close()
    second = open_run(store, experiment="e", name="n", run=place, before=first.handle)
    second.params({"rate": 0.2, "steps": 5})
    for step in (0, 2, 1, 2):
        second.metrics({"loss": 1.0}, step)
        assert second.wait_until_sent(20)
    second.metrics({"loss": 1.0}, 3)
    second.metrics({"loss": 1.0}, 3)
    second.close()
    client = MlflowClient(store.tracking_uri)
    assert client.get_run(first.handle.run_id).data.params == {"rate": "0.1", "steps": "5"}
    assert sorted(point.step for point in client.get_metric_history(first.handle.run_id, "loss")) == [0, 1, 2, 3]
    again = Tracker(first.handle, place, repeats=True)
    again.metrics({"loss": 2.0}, 3)
    again.close()
    assert len(client.get_metric_history(first.handle.run_id, "loss")) == 5
    assert not caplog.records
    third = open_run(store, experiment="e", name="n", run=place)
    assert client.get_run(first.handle.run_id).info.status == "KILLED"
    third.end("FINISHED")


def test_a_run_that_was_killed_is_ended_by_the_next(run: Place, store: Store) -> None:
    from mlflow import MlflowClient

    killed = open_run(store, experiment="e", name="n", run=run)
    elsewhere = open_run(store, experiment="e", name="n", run=run / "another")
    following = open_run(store, experiment="e", name="n", run=run)
    client = MlflowClient(store.tracking_uri)
    assert client.get_run(killed.handle.run_id).info.status == "KILLED"
    assert client.get_run(elsewhere.handle.run_id).info.status == "RUNNING"
    assert following.handle.run_id not in (killed.handle.run_id, elsewhere.handle.run_id)
    for tracker in (killed, elsewhere, following):
        tracker.end("FINISHED")


def test_a_run_that_the_store_does_not_know_is_begun_anew(run: Place, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    before = RunHandle(tracking_uri=store.tracking_uri, run_id="0" * 32)
    tracker = open_run(store, experiment="e", name="n", run=run, before=before)
    assert tracker.handle.run_id not in (None, "0" * 32)
    assert "does not know the run" in caplog.text
    tracker.end("FINISHED")


def test_the_system_is_watched_until_the_run_is_closed(run: Place, store: Store) -> None:
    from mlflow import MlflowClient

    tracker = open_run(store, experiment="e", name="n", run=run)
    tracker.watch_system(every_s=0.2)
    client = MlflowClient(store.tracking_uri)

    def seen() -> set[str]:
        return {name for name in client.get_run(tracker.handle.run_id).data.metrics if name.startswith("system/")}

    waited_until = time.monotonic() + 60
    while not seen() and time.monotonic() < waited_until:
        time.sleep(0.1)
    tracker.end("FINISHED")
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage", "system/network_receive_megabytes"} <= seen()


def test_what_a_killed_process_had_logged_is_sent_by_the_next(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    place = Place(str(tmp_path / "run"))
    code = f"""
import time
from infra.storage.place import Place
from infra.tracking.tracking import Store, open_run
tracker = open_run(Store(tracking_uri="http://127.0.0.1:9"), experiment="e", name="n", run=Place({place.uri!r}), about={{}})
tracker.params({{"rate": 1}})
tracker.content(b"abc", "notes/a.txt")
for step in range(3):
    tracker.metrics({{"loss": 1.0}}, step)
print("logged", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The server that it named is up at last; here a store takes its place.
    moved = f"sqlite:///{tmp_path}/late.db"
    for path in [*(place.path / "untracked").glob("*/handle.json"), place.path / "run.json"]:
        path.write_text(path.read_text().replace("http://127.0.0.1:9", moved))
    assert send_untracked(place) == 0
    client = MlflowClient(moved)
    handle = read_handle(place)
    assert handle is not None
    tracked = client.get_run(handle.run_id)
    assert tracked.data.params == {"rate": "1"}
    assert [point.step for point in client.get_metric_history(handle.run_id, "loss")] == [0, 1, 2]
    assert Path(tracked.info.artifact_uri.removeprefix("file://"), "notes/a.txt").read_bytes() == b"abc"
    assert not (place.path / "untracked").exists()


def test_what_a_store_refuses_holds_up_nothing_and_stays(run: Place, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    place = run / "refused"
    tracker = open_run(store, experiment="e", name="n", run=place)
    tracker.metrics({"a metric? no": 1.0}, 0)
    tracker.tags({"after": "it"})
    tracker.close()
    assert tracker.left == 1
    assert "refuses metrics" in caplog.text
    assert MlflowClient(store.tracking_uri).get_run(tracker.handle.run_id).data.tags["after"] == "it"
    assert send_untracked(place) == 1
    assert len(list((place.path / "untracked").glob("*/entries.jsonl"))) == 1


def test_a_server_that_is_gone_costs_no_time_and_no_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Place(str(tmp_path))
    began = time.monotonic()
    absent = open_run(Store(tracking_uri="http://127.0.0.1:9"), experiment="e", name="n", run=place, about={})
    absent.params({"a": 1})
    for step in range(1_000):
        absent.metrics({"a": 1.0}, step)
    assert time.monotonic() - began < 2.0
    assert absent.handle.run_id is None
    absent.end("FINISHED")
    assert time.monotonic() - began < 25.0
    assert absent.left == 1_004  # create, params, the end; there were no leftovers
    assert "backline track" in caplog.text
    handle = read_handle(place)
    assert handle is not None
    assert handle.key == absent.handle.key


def test_without_a_server_the_store_lies_in_the_run(run: Place) -> None:
    assert store_of(run, None).tracking_uri == f"sqlite:///{run.path}/mlflow.db"
    assert store_of(run, "http://tracking:5000") == Store(tracking_uri="http://tracking:5000")
