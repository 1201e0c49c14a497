"""A release: small files that answer as the run's best does, and a card that says what made them."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from model.checkpoint import load_checkpoint
from model.diffusion.objective import DiffusionLossConfig
from model.weight_files import weight_files
from tests.tiny_latents import write_latents
from training.config import Distillation, TrainConfig
from training.evaluation.measures import GENERATED, OTHER, REAL, EvaluationRow, Measures, summarise
from training.evaluation.report import EvaluationReport
from training.publish.model_card import command
from training.publish.release import SHARD_BYTES, ReleaseConfig, release
from training.run.loop import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("release")
    config = TrainConfig(
        data=write_latents(folder / "latents"), out=str(folder / "run"), preset="small", workers=0, steps=2, batch_size=4, crop_frames=16,
        warmup_steps=1, validate_every=2,
    )  # fmt: skip
    run(config)
    return config


def config_of(trained: TrainConfig, out: Path | str, **changes: str) -> ReleaseConfig:
    given = {
        "run": trained.out, "out": str(out), "name": "demo-1", "licence": "Apache-2.0", "data": "demo songs", "limits": "4/4 only",
        "machine": "two CPU cores", **changes,
    }  # fmt: skip
    return ReleaseConfig(**given)  # type: ignore[arg-type]


def evaluation(model: str) -> EvaluationReport:
    def row(name: str, value: float) -> EvaluationRow:
        return summarise(name, [Measures(**{field.name: value for field in fields(Measures)})], ["a"])

    rows = (row(GENERATED, 0.9), row(REAL, 1.0), row(OTHER, 0.0))
    return EvaluationReport(rows=rows, songs=1, seconds=6.0, checkpoint="run", model=model, step=2, dataset="d", out="o", wins=1.0)


def test_the_release_is_the_best_in_halves_with_a_card(trained: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "evaluation.json").write_text(evaluation(load_checkpoint(Path(trained.out)).name).to_json())
    folder = release(config_of(trained, tmp_path / "demo", evaluation=str(tmp_path / "report")))
    best, released = load_checkpoint(Path(trained.out)), load_checkpoint(folder)
    assert released.name == "demo-1"
    assert released.dataset == replace(best.dataset, uri="latents")
    assert replace(released, name="", state={}, dataset=best.dataset) == replace(best, name="", state={})
    assert all(torch.equal(released.state[name], tensor.half().float()) for name, tensor in best.state.items())
    assert all(path.stat().st_size <= SHARD_BYTES + 100_000 for path in weight_files(folder))
    text = (folder / "README.md").read_text()
    for words in (
        "2.2 M parameters",
        "demo songs",
        "4/4 only",
        "two CPU cores",
        "2 steps of 4 × 16 frames (8 samples), the best of 2",
        "harmony 90%",
    ):
        assert words in text, words
    made = "python -m training train --data latents --out run --preset small --workers 0 --steps 2 --batch-size 4 --crop-frames 16"
    assert f"\n{made} --warmup-steps 1 --validate-every 2\n" in text
    assert str(Path(trained.out).parent) not in text, "places are named by their last part"


def test_a_run_that_is_none_or_scored_at_another_step_is_refused(trained: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training run"):
        release(config_of(trained, tmp_path / "demo", run=str(tmp_path)))
    (tmp_path / "evaluation.json").write_text(evaluation("another").to_json())
    with pytest.raises(UserError, match="evaluate the run again"):
        release(config_of(trained, tmp_path / "demo", evaluation=str(tmp_path)))
    assert not (tmp_path / "demo").exists()
    with pytest.raises(UserError, match="--limits is empty"):
        config_of(trained, tmp_path / "demo", limits=" ")


@pytest.mark.parametrize("name", ["модель-1", "a\nb", "a\tb", "naïve", "x" * 101])
def test_a_name_that_no_header_can_carry_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="printable ASCII, for it travels in HTTP headers"):
        ReleaseConfig(run="r", out="o", name=name, licence="CC0-1.0", data="songs", limits="none", machine="this")


def test_what_is_there_is_not_replaced_unless_it_is_a_release(trained: TrainConfig, tmp_path: Path) -> None:
    precious = tmp_path / "models" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    for out in (precious.parent, Path(trained.out)):
        with pytest.raises(UserError, match="give a new folder"):
            release(config_of(trained, out))
    with pytest.raises(UserError, match="of this machine"):
        release(config_of(trained, "s3://bucket/model"))
    assert precious.read_text() == "mine"
    assert load_checkpoint(Path(trained.out)).step == 2
    first = release(config_of(trained, tmp_path / "demo"))
    assert load_checkpoint(release(config_of(trained, first, name="demo-2"))).name == "demo-2"


def test_a_command_names_teacher_and_loss() -> None:
    student = TrainConfig(
        data="x/latents", out="y/steps-4", preset="small", workers=0, init="z/run", distillation=Distillation(steps=4, guidance=2.0)
    )
    made = "python -m training distil --teacher run --data latents --out students --first-steps 4 --student-steps 4 --guidance 2"
    assert command(json.loads(json.dumps(student.to_dict()))) == made
    weighted = TrainConfig(data="d", out="o", preset="small", loss=DiffusionLossConfig(weighting="uniform"))
    made = "python -m training train --data d --out o --preset small --loss.weighting uniform"
    assert command(json.loads(json.dumps(weighted.to_dict()))) == made
