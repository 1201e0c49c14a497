"""`backline distil` with its own eyes: phases in their places, the last student in best/, gone on with and refused."""

from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from model.checkpoint import load_checkpoint
from model.diffusion.sampling import Sampling
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.run.distil import DistilConfig, distil
from training.run.loop import run


def test_two_phases_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = write_latents(tmp_path / "latents")
    run(TrainConfig(data=data, out=str(tmp_path / "teacher"), preset="small", workers=0, steps=2, batch_size=4, crop_frames=16))
    settings = {"teacher": str(tmp_path / "teacher"), "data": data, "out": str(tmp_path / "students"), "first_steps": 2, "samples": 0}
    config = DistilConfig(**settings, student_steps=1, steps=2, batch_size=4, crop_frames=16)
    results = distil(config)
    assert [result.step for result in results] == [2, 2]
    for place, steps in (("steps-2", 2), ("steps-1", 1), ("", 1)):
        assert load_checkpoint(tmp_path / "students" / place).sampling == Sampling(solver="ddim", steps=steps, guidance=1.0)
    last = load_checkpoint(tmp_path / "students")
    # The second student began as the first, which began as the teacher.
    assert not torch.equal(last.state["stem.weight"], load_checkpoint(tmp_path / "students/steps-2").state["stem.weight"])
    with pytest.raises(UserError, match="--resume"):
        distil(config)
    again = distil(DistilConfig(**settings, student_steps=1, steps=2, batch_size=4, crop_frames=16, resume=True))
    assert [result.step for result in again] == [2, 2]
    assert load_checkpoint(tmp_path / "students").name == last.name
