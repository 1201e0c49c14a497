"""A training that is told to go: it saves, ends, and the same command ends where an uninterrupted one does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from infra.storage.place import Place
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.run.loop import run
from training.state import read_metrics, read_saved

STEPS = 160
RECIPE = {
    "preset": "small", "steps": STEPS, "batch_size": 4, "crop_frames": 16, "warmup_steps": 2, "validate_every": 40,
    "validation_timesteps": 2, "log_every": 5, "samples": 0,
}  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(TrainConfig(data=data, out=str(out), workers=0, **RECIPE))
    torch.set_num_threads(threads)
    return out


def begin(data: str, out: Path, **changes: object) -> subprocess.Popen:
    options = {**RECIPE, "workers": 0, **changes}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "training", "train", "--data", data, "--out", str(out), "--resume", *words]
    return subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_metrics(out: Path, process: subprocess.Popen, beyond: int = 0) -> None:
    until = time.monotonic() + 120
    while not any(row["step"] > beyond for row in read_metrics(Place(str(out)))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def end(process: subprocess.Popen, code: int) -> str:
    words, _ = process.communicate(timeout=180)
    assert process.returncode == code, words
    return words


def assert_same_states(one: Path, other: Path) -> None:
    states = [safetensors.torch.load((out / "last" / "training_state.safetensors").read_bytes()) for out in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_sigterm_saves_first(data: str, whole: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "run"
    process = begin(data, out, save_every=7)
    wait_for_metrics(out, process)
    process.send_signal(signal.SIGTERM)
    words = end(process, 143)
    saved = read_saved(Place(str(out)))
    assert f"step {saved.progress.step} (asked to stop, and saved" in words
    assert 0 < saved.progress.step < STEPS
    tracked = re.search(r"MLflow run (\w+) in (\S+)", words)
    client = MlflowClient(tracked[2])
    assert client.get_run(tracked[1]).info.status == "KILLED"

    assert f"MLflow run {tracked[1]} in" in end(begin(data, out, save_every=7), 0)
    assert client.get_run(tracked[1]).info.status == "FINISHED"
    assert_same_states(whole, out)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sigterm_reaches_the_workers_of_ray_train(data: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    out = tmp_path / "run"
    process = begin(data, out, workers=1, save_every=7)
    wait_for_metrics(out, process)
    process.send_signal(signal.SIGTERM)
    assert "asked to stop, and saved" in end(process, 143)
    step = read_saved(Place(str(out))).progress.step
    assert 0 < step < STEPS
    # Going on without Ray, from what Ray's workers left.
    end(begin(data, out), 0)
    assert read_saved(Place(str(out))).progress.step == STEPS
    expected, resumed = (
        [value for row in read_metrics(Place(str(where))) for name, value in row.items() if name == "validation/loss"]
        for where in (whole, out)
    )
    assert resumed == pytest.approx(expected, rel=1e-3)


@pytest.mark.soak
def test_ten_kills_at_random_moments_change_nothing(data: str, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moments = torch.rand(10, generator=torch.Generator().manual_seed(7)).tolist()
    deaths = []
    for moment in moments:
        process = begin(data, out, save_every=7)
        saved = read_saved(Place(str(out)))
        wait_for_metrics(out, process, beyond=0 if saved is None else saved.progress.step)
        time.sleep(0.6 * moment)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        deaths.append(read_saved(Place(str(out))).progress.step)
    assert len(deaths) == 10, f"the run was over after {len(deaths)} kills: make it longer"
    end(begin(data, out, save_every=7), 0)
    assert_same_states(whole, out)
