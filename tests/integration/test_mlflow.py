"""Tracking against a real store and against a server that is not there."""

import logging
import time

import pytest
from mlflow import MlflowClient

from infra.storage import Place
from infra.tracking import RunHandle, Store, Tracker, open_run, store_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def store(run: Place) -> Store:
    return store_of(run, None)


def test_a_run_keeps_its_id_and_repeats_no_step(run: Place, store: Store) -> None:
    first = open_run(store, experiment="e", name="n", run=run, tags={"colour": "blue"})
    first.params({"rate": 0.1, "loss": {"cap": 5}})
    first.dataset(name="songs", digest="d" * 64, uri="s3://bucket/songs")
    first.content(b"RIFF", "samples/one.wav")
    first.tags({"shape": "round"})
    for step in range(5):
        first.metrics({"loss": 1 / (step + 1)}, step)
    assert first.close() == 0
    second = open_run(store, experiment="e", name="n", run=run, run_id=first.handle.run_id)
    for step in range(3, 8):
        second.metrics({"loss": 1 / (step + 1)}, step)
    second.end("FINISHED")
    assert second.handle == first.handle

    client = MlflowClient(store.tracking_uri)
    tracked = client.get_run(first.handle.run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params == {"rate": "0.1", "loss.cap": "5"}
    assert {"colour": "blue", "shape": "round"}.items() <= tracked.data.tags.items()
    assert len(tracked.data.tags["mlflow.source.git.commit"]) >= 7
    assert tracked.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert [point.step for point in client.get_metric_history(first.handle.run_id, "loss")] == list(range(8))
    assert (run.path / "mlartifacts" / first.handle.run_id / "artifacts" / "samples" / "one.wav").read_bytes() == b"RIFF"


def test_a_resumed_run_keeps_its_parameters_and_loses_no_metric(run: Place, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    place = run / "it's"
    first = open_run(store, experiment="e", name="n", run=place)
    first.params({"rate": 0.1})
    second = open_run(store, experiment="e", name="n", run=place, run_id=first.handle.run_id)
    second.params({"rate": 0.2, "steps": 5})
    for step in range(3):
        second.metrics({"loss": 1.0}, step)
        assert second.close() == 0
    data = MlflowClient(store.tracking_uri).get_run(first.handle.run_id).data
    assert data.params == {"rate": "0.1", "steps": "5"}
    assert data.metrics == {"loss": 1.0}
    assert not caplog.records
    third = open_run(store, experiment="e", name="n", run=place)
    assert MlflowClient(store.tracking_uri).get_run(first.handle.run_id).info.status == "KILLED"
    third.end("FINISHED")


def test_a_run_that_was_killed_is_ended_by_the_next(run: Place, store: Store) -> None:
    killed = open_run(store, experiment="e", name="n", run=run)
    elsewhere = open_run(store, experiment="e", name="n", run=run / "another")
    following = open_run(store, experiment="e", name="n", run=run)
    client = MlflowClient(store.tracking_uri)
    assert client.get_run(killed.handle.run_id).info.status == "KILLED"
    assert client.get_run(elsewhere.handle.run_id).info.status == "RUNNING"
    assert following.handle.run_id not in (killed.handle.run_id, elsewhere.handle.run_id)
    for tracker in (elsewhere, following):
        tracker.end("FINISHED")


def test_a_run_that_the_store_does_not_know_is_begun_anew(run: Place, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_run(store, experiment="e", name="n", run=run, run_id="0" * 32)
    assert tracker.handle.run_id != "0" * 32
    assert "does not know the run" in caplog.text
    tracker.end("FINISHED")


def test_the_system_is_watched_until_the_run_is_closed(run: Place, store: Store) -> None:
    tracker = open_run(store, experiment="e", name="n", run=run)
    tracker.watch_system(every_s=0.2)
    client = MlflowClient(store.tracking_uri)

    def seen() -> set[str]:
        return {name for name in client.get_run(tracker.handle.run_id).data.metrics if name.startswith("system/")}

    waited_until = time.monotonic() + 60
    while not seen() and time.monotonic() < waited_until:
        time.sleep(0.1)
    tracker.end("FINISHED")
    assert "system/cpu_utilization_percentage" in seen()


def test_a_server_that_is_gone_costs_warnings_only(run: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "infra.tracking")
    absent = open_run(Store(tracking_uri="http://127.0.0.1:9"), experiment="e", name="n", run=run)
    assert absent.handle.run_id is None
    absent.params({"a": 1})
    absent.metrics({"a": 1.0}, 1)
    assert absent.close() == 1  # nothing else was tried
    lost = Tracker(RunHandle(tracking_uri="http://127.0.0.1:9", run_id="0" * 32))
    began = time.monotonic()
    for step in range(1_000):
        lost.metrics({"a": 1.0}, step)
    logged_s = time.monotonic() - began
    assert lost.close() >= 1
    # Logging must not wait for the network: closing does.
    assert logged_s < time.monotonic() - began
    assert "metric points could not be sent" in caplog.text


def test_without_a_server_the_store_lies_in_the_run(run: Place) -> None:
    assert store_of(run, None).tracking_uri == f"sqlite:///{run.path}/mlflow.db"
    assert store_of(run, "http://tracking:5000") == Store(tracking_uri="http://tracking:5000")
