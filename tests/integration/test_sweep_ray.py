"""A sweep on Ray Tune: two depths, one of them pruned, nested in one MLflow run; run again, it does only what is left."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.storage.place import Place
from model.codec.load import load_codec
from tests.tiny_latents import write_latents
from training.run.loop import run
from training.run.stop import Notices
from training.state import read_metrics, read_saved
from training.sweep.config import SweepConfig
from training.sweep.run import sweep
from training.sweep.trial import run_trial

if TYPE_CHECKING:
    from mlflow.entities import Run

FRAMES = 128


@pytest.fixture(scope="module")
def data(tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    identity = load_codec(str(tiny_codec)).identity
    folder = tmp_path_factory.mktemp("latents")
    return write_latents(folder, songs=4, held_out=2, frames=FRAMES, codec_id=identity.id, codec_sha256=identity.weights_sha256)


def config(data: str, out: Path, codec: Path, **changes) -> SweepConfig:
    settings = {
        "depth": (3, 2), "steps": 8, "batch_size": 2, "crop_frames": 16, "validate_every": 2, "guidance": (2.0,), "samples": 2,
        "seconds": 4.0, "sampling_steps": 1, "concurrent": 1, **changes,
    }  # fmt: skip
    return SweepConfig(data=data, out=str(out), codec=str(codec), **settings)


def runs_of(out: Path) -> dict[str, "Run"]:
    """The sweep's MLflow runs by their place's name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "backline")
    return {Path(run.data.tags["backline.run"]).name: run for run in client.search_runs([experiment.experiment_id])}


def steps_of(out: Path) -> list[float]:
    return [row["step"] for row in read_metrics(Place(str(out))) if "validation/loss" in row]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_prunes_nests_its_runs_and_does_what_is_left(data: str, tiny_codec: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "out"
    first = sweep(config(data, out, tiny_codec))
    deep, shallow = (out / "trials" / f"depth-{depth}-width-1-min-snr-seed-0" for depth in (3, 2))
    assert [result.status for result in first.trials] == ["finished", "pruned"]
    assert first.trials[0].validation_loss is not None
    assert steps_of(deep) == [2, 4, 6, 8]
    assert steps_of(shallow) == [2]
    assert first.trials[1].scores == ()
    runs = runs_of(out)
    assert set(runs) == {"out", deep.name, shallow.name}
    assert {name: run.info.status for name, run in runs.items()} == {"out": "FINISHED", deep.name: "FINISHED", shallow.name: "KILLED"}
    assert {runs[place.name].data.tags["mlflow.parentRunId"] for place in (deep, shallow)} == {runs["out"].info.run_id}
    assert runs[shallow.name].data.tags["backline.trial"] == "pruned"
    assert runs[deep.name].data.metrics["guidance-2/generated/overall"] == pytest.approx(first.trials[0].scores[0].fit.value)
    assert runs["out"].data.metrics["trials/pruned"] == 1
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    names = {entry.path for entry in client.list_artifacts(runs["out"].info.run_id)}
    assert names == {"sweep.json", "sweep.md", "loss-against-fit.png"}

    # The same place, another guidance and nobody pruned: one training goes on, the other is only heard.
    trained = (deep / "last" / "training_state.safetensors").stat().st_mtime_ns
    more = sweep(config(data, out, tiny_codec, guidance=(1.0, 2.0), prune=False))
    assert [result.status for result in more.trials] == ["finished", "finished"]
    assert (deep / "last" / "training_state.safetensors").stat().st_mtime_ns == trained
    assert more.trials[0].scores[1] == first.trials[0].scores[0]
    assert [[score.guidance for score in result.scores] for result in more.trials] == [[1.0, 2.0]] * 2
    assert steps_of(shallow) == [2, 4, 6, 8]
    assert {place: run.info.run_id for place, run in runs_of(out).items()} == {place: run.info.run_id for place, run in runs.items()}
    assert runs_of(out)[shallow.name].info.status == "FINISHED"
    assert "| depth 2 |" in (out / "sweep.md").read_text()

    # All is done: neither Ray nor a training is needed.
    assert sweep(config(data, out, tiny_codec, guidance=(1.0, 2.0), prune=False)) == more


def test_a_trial_says_again_what_it_said_and_a_mistake_fails_it_alone(data: str, tiny_codec: Path, tmp_path: Path) -> None:
    swept = config(data, tmp_path, tiny_codec, depth=(2, 3))
    trial = swept.trials[0]
    told: list[float] = []

    def tell(row: dict[str, float]) -> bool:
        told.append(row["step"])
        return row["step"] < 4

    first = run_trial(swept, trial, notices=Notices(), tell=tell)
    assert (first.status, first.step, told) == ("pruned", 5, [2, 4])
    told.clear()
    # Killed before it could write what became of it: the rule that pruned it is asked again.
    (tmp_path / "trials" / trial.name / "trial.json").unlink()
    again = run_trial(swept, trial, notices=Notices(), tell=tell)
    assert (again.status, again.step, told) == ("pruned", 5, [2, 4])
    stopping = Notices()
    stopping.stop()
    unpruned = dataclasses.replace(swept, prune=False)
    assert run_trial(unpruned, trial, notices=stopping, tell=lambda _: True).status == "stopped"
    other = run_trial(dataclasses.replace(unpruned, learning_rate=1e-5), trial, notices=Notices(), tell=lambda _: True)
    assert other.status == "failed"
    assert "cannot go on with other settings" in other.reason
    last = run_trial(unpruned, trial, notices=Notices(), tell=lambda _: True)
    assert (last.status, last.step, len(last.scores)) == ("finished", 8, 1)


@contextmanager
def begin(data: str, out: Path, codec: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "training", "sweep", "--data", data, "--out", str(out), "--codec", str(codec), "--depth", "3,2"]
    command += ["--steps", "60", "--batch-size", "2", "--crop-frames", "16", "--validate-every", "10", "--samples", "2", "--seconds", "4"]
    command += ["--sampling-steps", "1", "--concurrent", "1", "--no-prune"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen, what) -> None:
    until = time.monotonic() + 500
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_is_ended_goes_on(number: signal.Signals, data: str, tiny_codec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deep, shallow = (out / "trials" / f"depth-{depth}-width-1-min-snr-seed-0" for depth in (3, 2))
    with begin(data, out, tiny_codec) as driver:
        wait_for(driver, lambda: (deep / "trial.json").exists() and any(step >= 20 for step in steps_of(shallow)))
        driver.send_signal(number)
        said, _ = driver.communicate(timeout=120)
        assert driver.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    time.sleep(5 if number == signal.SIGKILL else 0)  # Ray ends the processes of a driver that is gone
    if number == signal.SIGTERM:
        assert "1 finished, 1 stopped" in said
    reached = read_saved(Place(str(shallow))).progress.step
    assert 20 <= reached < 60
    trained = (deep / "last" / "training_state.safetensors").stat().st_mtime_ns

    with begin(data, out, tiny_codec) as again:
        said, errors = again.communicate(timeout=500)
        assert again.returncode == 0, errors
    assert "2 finished" in said
    assert (deep / "last" / "training_state.safetensors").stat().st_mtime_ns == trained
    assert steps_of(shallow) == [10, 20, 30, 40, 50, 60]
    assert {run.info.status for run in runs_of(out).values()} == {"FINISHED"}
    assert len(runs_of(out)) == 3
    # As if nothing had happened.
    swept = SweepConfig(**json.loads((out / "sweep.json").read_text())["config"])
    whole = run(dataclasses.replace(swept.training(swept.trials[1]), out=str(tmp_path / "alone")))
    assert whole.metrics["validation/loss"] == pytest.approx(read_metrics(Place(str(shallow)))[-1]["validation/loss"], rel=1e-3)
