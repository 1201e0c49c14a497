"""Training on a CUDA device: a step, a validation and a save."""

import math
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.ranks import Workers
from training.run.loop import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_step_and_its_validation(tmp_path: Path) -> None:
    settings = {"preset": "small", "workers": 0, "steps": 1, "batch_size": 2, "crop_frames": 16, "validate_every": 1, "log_every": 1}
    config = TrainConfig(data=write_latents(tmp_path / "data"), out=str(tmp_path / "run"), validation_timesteps=2, **settings)
    outcome = run(config, workers=Workers(device=torch.device("cuda")))
    assert outcome.step == 1
    assert math.isfinite(outcome.metrics["train/loss"])
    assert math.isfinite(outcome.metrics["validation/loss"])
    assert load_checkpoint(tmp_path / "run").step == 1
