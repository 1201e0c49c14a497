"""A sweep's config, when a trial is pruned, and what the report says of loss and fit."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infra.cli import exit_codes as commands
from infra.dataset.format import read_manifest
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import Place
from infra.tracking.tracking import Store
from model.checkpoint import load_checkpoint
from model.errors import ModelError
from model.metrics.set_distances import Interval
from tests.tiny_latents import write_latents
from training.__main__ import app
from training.config import TrainConfig
from training.evaluation.evaluate import EvaluateConfig
from training.evaluation.measures import GENERATED, EvaluationRow, Measures
from training.evaluation.report import EvaluationReport, SegmentFit
from training.run.loop import Outcome, run
from training.run.stop import Notices
from training.sweep import trial as sweep_trial
from training.sweep.config import SweepConfig, Trial, changed, depth_sweep, guidance_sweep
from training.sweep.report import Score, SweepReport, TrialResult, findings, markdown, paired, picture, rank_correlation
from training.sweep.run import check, divided, tell_so_far, write
from training.sweep.trial import compared, is_over, read_reports, result_of, run_trial

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
        ({"width": (1.0, 1.01)}, r"1 and 1\.01, which make the same network.* further apart"),
        ({"width": (0.3333333, 0.33333331)}, r"0\.3333333 and 0\.33333331, which are both 0\.333333 .* first six digits"),
        ({"guidance": (2.0, 2.0000001)}, r"guidance is 2\.0 and 2\.0000001, .* first six digits"),
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
    from training.sweep.pruning import Rungs

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


def test_who_passed_a_rung_without_a_report_does_not_fill_it_with_a_later_loss() -> None:
    from training.sweep.pruning import Rungs

    pruned: list[str] = []
    rungs = Rungs(0.25, pruned.append)
    late, early, worse = (SimpleNamespace(trial_id=name, config={"trial": name}) for name in ("late", "early", "worse"))
    for trial in (late, early, worse):
        rungs.on_trial_add(None, trial)
    for share, loss in ((0.6, 0.5), (0.7, 0.4), (0.8, 0.3)):
        rungs.on_trial_result(None, late, {"share": share, "loss": loss})
    rungs.on_trial_result(None, early, {"share": 0.3, "loss": 1.0})
    assert pruned == []  # nobody's loss is as young
    rungs.on_trial_result(None, worse, {"share": 0.3, "loss": 1.1})
    rungs.on_trial_result(None, early, {"share": 0.6, "loss": 0.6})
    assert pruned == ["worse", "early"]


def test_losses_that_are_weighed_otherwise_are_compared_without_their_weights() -> None:
    row = {"step": 4, "share": 0.5, "loss": 0.2, "error": 2.0}
    assert compared(row, config()) == {"step": 4, "share": 0.5, "loss": 0.2}
    assert compared(row, config(loss_weighting=("min-snr", "uniform"))) == {"step": 4, "share": 0.5, "loss": 2.0}


def tiny(data: str, out: Path, **changes) -> SweepConfig:
    settings = {"steps": 2, "batch_size": 1, "crop_frames": 16, "validate_every": 1, "guidance": (2.0,), **changes}
    return config(data=data, out=str(out), **settings)


def heard(place: Place, guidance: float) -> None:
    """Writes what an evaluation of the trial's best checkpoint leaves."""
    even = Measures(**{field.name: 0.5 for field in dataclasses.fields(Measures)})
    report = EvaluationReport(
        rows=(EvaluationRow(name=GENERATED, segments=1, mean=even, low=even, high=even),), songs=1, seconds=4.0, checkpoint=place.uri,
        model=load_checkpoint(place.path / "best").name, step=2, dataset="d", out=place.uri, wins=1.0,
    )  # fmt: skip
    (place / f"guidance-{guidance:g}" / "evaluation.json").write_bytes(report.to_json().encode())


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> list[Store | None]:
    """Trials are trained by the loop alone, and each evaluation is written at once; the stores that trainings were given."""
    stores: list[Store | None] = []

    def train(config: TrainConfig, *, store: Store | None, notices: Notices, report, **_) -> Outcome:
        stores.append(store)
        return run(config, notices=notices, report=report)

    def evaluate(config: EvaluateConfig, *, called: str) -> None:
        heard(Place(config.checkpoint), float(called.removeprefix("guidance-")))

    monkeypatch.setattr(sweep_trial, "train", train)
    monkeypatch.setattr(sweep_trial, "evaluate", evaluate)
    return stores


def test_who_is_trained_to_the_end_is_scored_whatever_the_rule_says(without_mlflow: list, tmp_path: Path) -> None:
    data = write_latents(tmp_path / "data")
    swept = tiny(data, tmp_path / "out")
    trial = swept.trials[0]
    place = Place(swept.training(trial).out)
    told: list[dict] = []

    def prune(row: dict[str, float]) -> bool:
        told.append(row)
        return False

    kept = Place(str(tmp_path / "mlflow.db"))
    store = Store(tracking_uri=f"sqlite:///{tmp_path}/elsewhere.db", keep_at=kept)
    # The rule's word comes with one step left, in which the training ends.
    first = run_trial(swept, trial, notices=Notices(), tell=prune, store=store)
    assert (first.status, first.reason, first.trained) == ("finished", "all 2 steps done", True)
    assert [score.guidance for score in first.scores] == [2.0]
    assert without_mlflow == [dataclasses.replace(store, keep_at=None)]  # only the driver copies the database

    # Both losses of a report are kept: with another weighting beside it, the trial is compared otherwise.
    (row,) = read_reports(place)
    assert told == [{"step": 1, "share": 0.5, "loss": row["loss"]}]
    grown = dataclasses.replace(swept, loss_weighting=("min-snr", "uniform"))
    run_trial(grown, trial, notices=Notices(), tell=prune)
    assert told[1:] == [{"step": 1, "share": 0.5, "loss": row["error"]}]
    assert row["error"] != row["loss"]

    # Killed before it could say what became of it, and the rule prunes it now: it is neither trained again nor pruned.
    (place / "trial.json").delete()
    assert run_trial(swept, trial, notices=Notices(), tell=prune) == first
    assert len(without_mlflow) == 1

    # Another guidance, and Ctrl-C before it is heard: what was scored stays, and stays in the picture.
    more, stopping = dataclasses.replace(swept, guidance=(2.0, 3.0)), Notices()
    stopping.stop()
    stopped = run_trial(more, trial, notices=stopping, tell=lambda _: True)
    assert (stopped.status, stopped.scores) == ("stopped", first.scores)
    assert len(report_of(stopped).points(2.0)) == 1
    whole = run_trial(more, trial, notices=Notices(), tell=lambda _: True)
    assert (whole.status, [score.guidance for score in whole.scores]) == ("finished", [2.0, 3.0])

    # A finished training of other settings is not scored as this one.
    other = run_trial(dataclasses.replace(more, learning_rate=1e-5, guidance=(4.0,)), trial, notices=Notices(), tell=lambda _: True)
    assert other.status == "failed"
    assert "cannot go on with other settings" in other.reason


def test_a_trial_is_done_when_mlflow_knows(without_mlflow: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = tiny(write_latents(tmp_path / "data"), tmp_path / "out")
    written: list[bool] = []
    monkeypatch.setattr(sweep_trial, "tell_mlflow", lambda place, _: written.append((place / "trial.json").exists()))
    run_trial(swept, swept.trials[0], notices=Notices(), tell=lambda _: True)
    assert written == [False]
    assert len(without_mlflow) == 1


def test_a_report_needs_no_weights_of_running_trials(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_latents(tmp_path / "data")
    swept = tiny(data, tmp_path / "out")
    trial = swept.trials[0]
    place = Place(swept.training(trial).out)
    run(swept.training(trial))
    (place.path / "best").rename(place.path / ".best.former")  # as in the middle of a save
    (place.path / ".best.former" / "model.safetensors").unlink()
    found = result_of(trial, place, swept, status="waiting", reason="")
    assert found.validation_loss is not None
    assert (found.step, found.trained) == (2, True)
    (place / ".best.former" / "checkpoint.json").write_bytes(b"{")
    tell_so_far(swept, read_manifest(Place(data)), trial.name)
    assert "is not rewritten" in caplog.text


def test_a_trial_asks_for_no_more_than_a_node_has() -> None:
    assert divided([{"CPU": 4.0}] * 4, 2, 8) == (2, {"CPU": 4})
    assert divided([{"CPU": 16.0}], 0, 8, cores=6) == (3, {"CPU": 2})
    assert divided([{"CPU": 8.0, "GPU": 1.0}] * 2, 3, 8) == (3, {"CPU": 5, "GPU": 0.5})
    # A node without a GPU, however large, is no place for a trial that asks for one.
    assert divided([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}], 0, 8) == (1, {"CPU": 4, "GPU": 1.0})


def score(fit: float, *, guidance: float = 1.0, spread: float = 0.1) -> Score:
    values = fit + spread * np.array([-1, 1, -1, 1, -1, 1]) / 2
    segments = tuple(SegmentFit(song_id=song, overall=float(value), another_song=0.1) for song, value in zip(SONGS, values, strict=True))
    return Score(guidance=guidance, fit=Interval(value=fit, low=fit - spread / 2, high=fit + spread / 2), advantage=None, segments=segments)


def result(depth: int, loss: float, fit: float | None, status: str = "finished") -> TrialResult:
    return TrialResult(
        trial=Trial(depth=depth, width=1.0, loss_weighting="min-snr", seed=0), status=status, reason="why", parameters=2_000_000,
        flops=1_000_000_000, step=600, minutes=3.0, validation_loss=loss, validation_error=loss + 1, mlflow_run_id="run",
        scores=() if fit is None else (score(fit),), trained=status == "finished",
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


def test_depths_are_compared_by_what_both_have() -> None:
    def at(depth: int, loss: float, fit: float, **changes) -> TrialResult:
        found = result(depth, loss, fit)
        return dataclasses.replace(found, trial=dataclasses.replace(found.trial, **changes))

    # A wide network, of which only the shallow one is finished, has a loss and a fit that depth has nothing to do with.
    trials = (at(2, 0.4, 0.5), at(2, 0.1, 0.9, width=2.0), at(5, 0.3, 0.6), at(5, 9.0, 0.1, seed=1))
    assert "validation loss 0.3000 against 0.4000, fit +0.100" in " ".join(findings(report_of(*trials)))
    assert not [said for said in findings(report_of(*trials[1:])) if "against" in said]


def test_the_page_and_the_picture_hold_every_trial() -> None:
    from matplotlib.image import imread

    pruned = dataclasses.replace(result(4, 0.35, None), status="pruned")
    failed = dataclasses.replace(result(5, 0.9, None), status="failed", reason="the loss is nan")
    report = report_of(result(2, 0.3, 0.4), result(3, 0.2, 0.5), pruned, failed)
    page = markdown(report)
    assert page.startswith("# Sweep: 4 trials of preset small, 2 finished, 1 pruned, 1 failed\n")
    assert "| depth 3 | 2.00 M | 1.00 | 600 | 3.0 | 0.2000 | 0.50 (0.45 to 0.55) | finished |" in page
    assert "- depth 5: the loss is nan" in page
    assert "can be ranked from three on" in page
    assert "Waiting: not begun, or running" not in page
    assert "Waiting: not begun, or running" in markdown(report_of(dataclasses.replace(pruned, status="waiting")))
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
