"""Training under Ray Train, tracked in MLflow: two workers are one, a lost worker costs nothing, a run keeps its id."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.errors import UserError
from infra.storage.place import Place
from model.checkpoint import load_checkpoint
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.run.launch import train
from training.run.loop import run
from training.state import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("latents"))


def config(data: str, out: Path, **changes) -> TrainConfig:
    settings = {
        "preset": "small", "steps": 6, "batch_size": 4, "crop_frames": 16, "warmup_steps": 2, "validate_every": 3,
        "validation_timesteps": 2, "log_every": 1, "samples": 0, **changes,
    }  # fmt: skip
    return TrainConfig(data=data, out=str(out), **settings)


def losses_of(out: Path) -> list[float]:
    return [value for row in read_metrics(Place(str(out))) for name, value in row.items() if name.endswith("/loss")]


def test_two_workers_are_one_and_all_is_tracked(data: str, tmp_path: Path) -> None:
    # Five segments: shares of two and three.
    from mlflow import MlflowClient

    alone = run(config(data, tmp_path / "alone", workers=0, batch_size=5))
    result = train(config(data, tmp_path / "pair", workers=2, min_workers=1, batch_size=5))
    assert result.step == alone.step == 6
    assert losses_of(tmp_path / "pair") == pytest.approx(losses_of(tmp_path / "alone"), rel=1e-3)
    assert load_checkpoint(Path(result.checkpoint)).metrics["validation/loss"] == pytest.approx(result.metrics["validation_loss"], rel=1e-6)

    client = MlflowClient(result.tracking_uri)
    tracked = client.get_run(result.mlflow_run_id)
    assert result.tracking_failures == 0
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["preset"] == "small"
    assert tracked.data.params["loss.weighting"] == "min-snr"
    assert [point.step for point in client.get_metric_history(result.mlflow_run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert tracked.inputs.dataset_inputs[0].dataset.digest == load_checkpoint(tmp_path / "pair").dataset.digest[:36]
    artifacts = {entry.path for folder in ("figures", "checkpoint") for entry in client.list_artifacts(result.mlflow_run_id, folder)}
    assert artifacts >= {"figures/loss.png", "checkpoint/model.safetensors", "checkpoint/checkpoint.json"}

    # Going on: the same MLflow run, no step twice. Finished: nothing to do.
    with pytest.raises(UserError, match="add --resume"):
        train(config(data, tmp_path / "pair", workers=0, batch_size=5))
    more = train(config(data, tmp_path / "pair", workers=0, steps=8, resume=True, batch_size=5))
    assert more.mlflow_run_id == result.mlflow_run_id
    steps = [point.step for point in client.get_metric_history(result.mlflow_run_id, "train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    again = train(config(data, tmp_path / "pair", workers=0, steps=8, resume=True, batch_size=5))
    assert again.step == 8
    assert again.training_loss == more.training_loss


@pytest.mark.soak
def test_a_killed_worker_is_replaced_and_goes_on(data: str, tmp_path: Path) -> None:
    whole = run(config(data, tmp_path / "whole", workers=0, steps=24, validate_every=2, log_every=2))
    out = tmp_path / "killed"
    killed: list[int] = []
    done = threading.Event()

    def kill_one() -> None:
        while not killed and not done.is_set():
            if read_metrics(Place(str(out))):
                for process in psutil.process_iter(["cmdline"]):
                    if "RayTrainWorker" in " ".join(process.info["cmdline"] or []) and is_ours(process):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        break
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        result = train(config(data, out, workers=1, steps=24, validate_every=2, log_every=2))
    finally:
        done.set()
        killer.join()
    assert killed
    assert result.step == whole.step
    assert losses_of(out) == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-3)


def is_ours(process: psutil.Process) -> bool:
    """Whether this process's cluster started it: the machine may run others."""
    me = psutil.Process()
    return any(parent.pid == me.pid for parent in process.parents())


def test_a_users_mistake_comes_back_as_one_sentence(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower learning_rate") as refusal:
        train(config(data, tmp_path, workers=1, learning_rate=1e12, gradient_clip=1e12, warmup_steps=0, steps=30, max_failures=0))
    assert "\n" not in str(refusal.value)
