"""A release: small files that answer as the run's best does, and a card that says what made them."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from model.checkpoint import load_checkpoint
from model.weight_files import weight_files
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.loop import run
from training.release import SHARD_BYTES, ReleaseConfig, release
from training.scores import GENERATED, OTHER, REAL, EvaluationReport, EvaluationRow, Measures, summarise


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("release")
    config = TrainConfig(
        data=write_latents(folder / "latents"), out=str(folder / "run"), preset="small", workers=0, steps=2, batch_size=4, crop_frames=16,
        warmup_steps=1, validate_every=2,
    )  # fmt: skip
    run(config)
    return config


def config_of(trained: TrainConfig, out: Path, **changes: str) -> ReleaseConfig:
    given = {
        "run": trained.out, "out": str(out), "name": "demo-1", "licence": "Apache-2.0", "data": "demo songs", "limits": "4/4 only",
        "machine": "two CPU cores", **changes,
    }  # fmt: skip
    return ReleaseConfig(**given)  # type: ignore[arg-type]


def evaluation(step: int) -> EvaluationReport:
    def row(name: str, value: float) -> EvaluationRow:
        return summarise(name, [Measures(**{field.name: value for field in fields(Measures)})], ["a"])

    rows = (row(GENERATED, 0.9), row(REAL, 1.0), row(OTHER, 0.0))
    return EvaluationReport(rows=rows, songs=1, seconds=6.0, checkpoint="run", step=step, dataset="d", out="o", wins=1.0)


def test_the_release_is_the_best_in_halves_with_a_card(trained: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "evaluation.json").write_text(evaluation(step=2).to_json())
    folder = release(config_of(trained, tmp_path / "demo", evaluation=str(tmp_path / "report")))
    best, released = load_checkpoint(Path(trained.out)), load_checkpoint(folder)
    assert released.name == "demo-1"
    assert replace(released, name="", state={}) == replace(best, name="", state={})
    assert all(torch.equal(released.state[name], tensor.half().float()) for name, tensor in best.state.items())
    assert all(path.stat().st_size <= SHARD_BYTES + 100_000 for path in weight_files(folder))
    text = (folder / "README.md").read_text()
    for words in ("2.2 M parameters", "demo songs", "4/4 only", "two CPU cores", "2 steps of 4 × 16 frames (8 samples)", "harmony 90%"):
        assert words in text, words
    assert "--data latents --out run --preset small --workers 0 --steps 2 --batch-size 4 --crop-frames 16" in text
    assert str(Path(trained.out).parent) not in text, "places are named by their last part"


def test_a_run_that_is_none_or_scored_at_another_step_is_refused(trained: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training run"):
        release(config_of(trained, tmp_path / "demo", run=str(tmp_path)))
    (tmp_path / "evaluation.json").write_text(evaluation(step=1).to_json())
    with pytest.raises(UserError, match="evaluate the run again"):
        release(config_of(trained, tmp_path / "demo", evaluation=str(tmp_path)))
    assert not (tmp_path / "demo").exists()
    with pytest.raises(UserError, match="--limits is empty"):
        config_of(trained, tmp_path / "demo", limits=" ")
