"""A sweep's config, when a trial is pruned, and what the report says of loss and fit."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from infra import commands
from infra.errors import UserError
from infra.records import read_manifest
from infra.settings import Settings
from infra.storage import Place
from model.distances import Interval
from model.errors import ModelError
from tests.tiny_latents import write_latents
from training.__main__ import app
from training.evaluation_report import SegmentFit
from training.sweep import SweepConfig, Trial, changed, depth_sweep, guidance_sweep
from training.sweep_report import Score, SweepReport, TrialResult, findings, markdown, paired, picture, rank_correlation
from training.sweep_run import check, write
from training.sweep_trial import is_over, measure

SONGS = ("a", "a", "b", "c", "d", "e")


def config(**changes) -> SweepConfig:
    return SweepConfig(**{"data": "d", "out": "o", "depth": (2, 3), **changes})


def test_every_combination_is_a_trial_and_guidance_is_none() -> None:
    swept = config(depth=(2, 0), width=(0.5, 1.0), loss_weighting=("min-snr", "uniform"), guidance=(1.0, 3.0), seed=(0, 1))
    assert len(swept.trials) == 16
    assert swept.trials[0] == Trial(depth=2, width=0.5, loss_weighting="min-snr", seed=0)
    assert len({trial.name for trial in swept.trials}) == 16
    trained = swept.training(swept.trials[-1])
    assert (trained.depth, trained.width, trained.loss.weighting, trained.seed) == (4, 1.0, "uniform", 1)
    assert (trained.workers, trained.resume, trained.register) == (0, True, None)
    assert trained.out == "o/trials/depth-4-width-1-uniform-seed-1"
    # 0 is the preset's own depth, once.
    assert [trial.depth for trial in config(depth=(0, 4, 5)).trials] == [4, 5]
    assert config(max_minutes=2.0).training(config().trials[0]).anneal_by_time


def test_experiments_are_whole_sweeps() -> None:
    paper = depth_sweep(data="d", out="o", seed=(0, 1))
    assert sorted({trial.depth for trial in paper.trials}) == [2, 3, 4, 5]
    assert (len(paper.trials), paper.prune) == (8, False)
    heard = guidance_sweep(data="d", out="o")
    assert len(heard.trials) == 1
    assert len(heard.guidance) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": (2,)}, "nothing varies"),
        ({"depth": ()}, "at least one"),
        ({"depth": (2, 2)}, "twice"),
        ({"depth": (1, 2)}, "2 to 7"),
        ({"width": (0.0, 1.0)}, "factor"),
        ({"loss_weighting": ("sharp", "uniform")}, "min-snr"),
        ({"guidance": (-1.0, 2.0)}, "guidance"),
        ({"grace": 1.0}, "share"),
        ({"samples": 0}, "samples"),
        ({"seconds": 2.0}, "4 or more"),
        ({"steps": -1}, "positive"),
        ({"concurrent": -1}, "0 or more"),
    ],
)
def test_a_wrong_value_names_its_remedy(changes: dict, said: str) -> None:
    with pytest.raises((ValueError, ModelError), match=said):
        config(**changes)


@pytest.mark.parametrize("depths", [["2,3,5"], ["2", "3", "5"]])
def test_lists_are_given_with_commas_or_without(depths: list[str]) -> None:
    tokens = ["sweep", "--data", "d", "--out", "o", "--depth", *depths, "--loss-weighting", "min-snr, uniform", "--no-prune"]
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    given = bound.arguments["config"]
    assert (given.depth, given.loss_weighting, given.prune) == ((2, 3, 5), ("min-snr", "uniform"), False)


def test_a_wrong_member_of_a_list_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(app, ["sweep", "--data", "d", "--out", "o", "--depth", "2,deep"]) == 2
    assert "deep" in capsys.readouterr().err


def test_a_sweep_may_grow_but_not_become_another() -> None:
    before = dataclasses.asdict(config())
    assert changed(before, dataclasses.asdict(config(depth=(2, 3, 5), guidance=(1.0, 2.0), prune=False, concurrent=2))) == []
    assert changed(before, dataclasses.asdict(config(steps=7, preset="paper"))) == ["preset", "steps"]


def test_what_would_fail_at_the_end_is_refused_at_the_beginning(tiny_codec: Path, tmp_path: Path) -> None:
    data = write_latents(tmp_path / "data", held_out=0)
    with pytest.raises(UserError, match="one in ten"):
        check(config(data=data, out=str(tmp_path / "out")), read_manifest(Place(data)), Settings())
    data = write_latents(tmp_path / "data")
    manifest = read_manifest(Place(data))
    asked = config(data=data, out=str(tmp_path / "out"), codec=str(tiny_codec))
    with pytest.raises(UserError, match="latents of codec tiny"):
        check(asked, manifest, Settings())
    write(dataclasses.replace(report_of(), config=dataclasses.asdict(asked), dataset_digest=manifest.digest), Place(asked.out))
    with pytest.raises(UserError, match=r"another sweep \(steps 0 → 9\)"):
        check(dataclasses.replace(asked, steps=9), manifest, Settings())
    other = write_latents(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another dataset"):
        check(dataclasses.replace(asked, data=other), read_manifest(Place(other)), Settings())


def test_who_comes_to_a_rung_above_the_median_is_pruned() -> None:
    from training.sweep_pruning import Rungs

    pruned: list[str] = []
    rungs = Rungs(0.25, pruned.append)

    def tell(name: str, done: float, loss: float) -> None:
        trial = SimpleNamespace(trial_id=name, config={"trial": name})
        if name not in rungs._trial_info:
            rungs.on_trial_add(None, trial)
        assert rungs.on_trial_result(None, trial, {"share": done, "loss": loss}) == "CONTINUE"  # Tune itself stops nobody

    tell("first", 0.1, 9.0)
    tell("first", 0.3, 1.0)
    tell("worse", 0.2, 3.0)
    assert pruned == []  # before the first rung nobody is
    tell("worse", 0.3, 2.0)
    assert pruned == ["worse"]
    tell("better", 0.3, 0.5)
    tell("first", 0.6, 0.9)
    tell("better", 0.6, 0.95)
    assert pruned == ["worse", "better"]
    # A process that died says again what it had said.
    tell("first", 0.3, 1.0)
    assert pruned == ["worse", "better"]


def test_losses_that_are_weighed_otherwise_are_compared_without_their_weights() -> None:
    metrics = {"validation/loss": 0.2, "validation/error_t100": 1.0, "validation/error_t700": 3.0}
    assert measure(metrics, config()) == 0.2
    assert measure(metrics, config(loss_weighting=("min-snr", "uniform"))) == 2.0


def score(fit: float, *, guidance: float = 1.0, spread: float = 0.1) -> Score:
    values = fit + spread * np.array([-1, 1, -1, 1, -1, 1]) / 2
    segments = tuple(SegmentFit(song_id=song, overall=float(value), another_song=0.1) for song, value in zip(SONGS, values, strict=True))
    return Score(guidance=guidance, fit=Interval(value=fit, low=fit - spread / 2, high=fit + spread / 2), advantage=None, segments=segments)


def result(depth: int, loss: float, fit: float | None, status: str = "finished") -> TrialResult:
    return TrialResult(
        trial=Trial(depth=depth, width=1.0, loss_weighting="min-snr", seed=0), status=status, reason="why", parameters=2_000_000,
        flops=1_000_000_000, step=600, minutes=3.0, validation_loss=loss, validation_error=loss + 1, mlflow_run_id="run",
        scores=() if fit is None else (score(fit),),
    )  # fmt: skip


def report_of(*results: TrialResult) -> SweepReport:
    swept = dataclasses.asdict(config(depth=(2, 3, 4, 5), guidance=(1.0,)))
    return SweepReport(config=swept, dataset="d", dataset_digest="f" * 64, weighted=True, trials=results or (result(2, 0.3, 0.4),))


def test_rank_correlation_counts_orders() -> None:
    found = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40])
    assert found is not None
    assert (found.rho, found.n) == (pytest.approx(1.0), 4)
    assert found.p == pytest.approx(2 / 24)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    many = rank_correlation(list(range(12)), [3, 1, 2, 0, 4, 5, 7, 6, 8, 9, 11, 10])
    assert many is not None
    assert many.p < 0.01


def test_fits_are_compared_vocal_by_vocal() -> None:
    gain = paired([score(0.5), score(0.7)], [score(0.4)])
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.2, 0.2, 0.2))  # the vocals' own differences are gone
    shorter = dataclasses.replace(score(0.4), segments=score(0.4).segments[:3])
    assert paired([score(0.5)], [shorter]) is None


@pytest.mark.parametrize(
    ("losses", "fits", "said"),
    [
        ((0.4, 0.3, 0.2, 0.1), (0.5, 0.52, 0.48, 0.5), "is not shown to fit better or worse, as the paper observed"),
        ((0.4, 0.3, 0.2, 0.1), (0.5, 0.51, 0.52, 0.60), "deeper lowered the loss and fits better, which is not the paper's"),
        ((0.4, 0.3, 0.2, 0.1), (0.5, 0.51, 0.52, 0.40), "fits worse, as the paper observed"),
        ((0.1, 0.2, 0.3, 0.4), (0.5, 0.51, 0.52, 0.60), "cannot show"),
    ],
)
def test_the_papers_observation_is_said_as_it_is_found(losses: tuple, fits: tuple, said: str) -> None:
    trials = [result(depth, loss, fit) for depth, loss, fit in zip((2, 3, 4, 5), losses, fits, strict=True)]
    told = " ".join(findings(report_of(*trials)))
    assert said in told
    assert "n = 4" in told


def test_the_page_and_the_picture_hold_every_trial() -> None:
    pruned = dataclasses.replace(result(4, 0.35, None), status="pruned")
    failed = dataclasses.replace(result(5, 0.9, None), status="failed", reason="the loss is nan")
    report = report_of(result(2, 0.3, 0.4), result(3, 0.2, 0.5), pruned, failed)
    page = markdown(report)
    assert page.startswith("# Sweep: 4 trials of preset small, 2 finished, 1 pruned, 1 failed\n")
    assert "| depth 3 | 2.00 M | 1.00 | 600 | 3.0 | 0.2000 | 0.50 (0.45 to 0.55) | finished |" in page
    assert "- depth 5: the loss is nan" in page
    assert "can be ranked from three on" in page
    image = imread(io.BytesIO(picture(report)))
    assert image.shape[0] > 200
    assert image[..., :3].std() > 0.02
    empty = imread(io.BytesIO(picture(report_of(pruned))))
    assert not np.array_equal(image, empty)
    document = json.loads(report.to_json())
    assert [row["status"] for row in document["trials"]] == ["finished", "finished", "pruned", "failed"]
    assert TrialResult.of(json.loads(json.dumps(document["trials"][0]))) == report.trials[0]


def test_a_trial_is_over_when_nothing_is_left_to_do() -> None:
    assert is_over(result(2, 0.3, 0.4), config(guidance=(1.0,)))
    assert not is_over(result(2, 0.3, 0.4), config(guidance=(1.0, 2.0)))
    pruned = result(2, 0.3, None, "pruned")
    assert is_over(pruned, config())
    assert not is_over(pruned, config(prune=False))
    assert not is_over(result(2, 0.3, None, "failed"), config())
