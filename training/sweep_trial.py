"""One trial of a sweep: a training as any other, which says how far it is and may be told to end; then one evaluation a guidance.

What a trial left is in its folder, so a sweep that was killed goes on: a trial says first what it had said before.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from infra.errors import UserError
from infra.storage import MissingObjectError, Place, localise
from infra.tracking import Store, Tracker, read_handle
from model.checkpoint import Checkpoint, load_checkpoint
from model.compute import training_flops
from model.errors import ModelError
from model.unet import AccompanimentUNet, UNetConfig, count_parameters
from training.evaluation import EvaluateConfig, evaluate
from training.evaluation_report import EvaluationReport
from training.launch import train
from training.notices import Notices
from training.state import STATE_JSON
from training.sweep import SweepConfig, Trial
from training.sweep_report import Score, TrialResult

log = logging.getLogger(__name__)

RESULT, REPORTS = "trial.json", "reports.jsonl"
ERROR_AT = "validation/error_t"

Tell = Callable[[dict[str, float]], bool]
"""Takes {step, share (of the budget), loss} to whoever prunes; whether the trial may go on."""


def run_trial(
    sweep: SweepConfig, trial: Trial, *, notices: Notices, tell: Tell, store: Store | None = None, parent_run_id: str | None = None
) -> TrialResult:
    """Trains and scores one trial, or the rest of it. A mistake of the user's fails the trial, not the sweep."""
    config = sweep.training(trial)
    place = Place(config.out)
    goes_on = True
    for row in read_reports(place):
        goes_on = tell(row) and goes_on
    former = read_result(place)
    if former is not None and is_over(former, sweep):
        return former

    def report(metrics: dict[str, float]) -> None:
        nonlocal goes_on
        share = max(metrics["step"] / config.steps, metrics["minutes"] / config.max_minutes if config.max_minutes else 0.0)
        if share < 1:  # who is at the end is not pruned
            row = {"step": metrics["step"], "share": share, "loss": measure(metrics, sweep)}
            (place / REPORTS).write_bytes("".join(json.dumps(said) + "\n" for said in [*read_reports(place), row]).encode())
            goes_on = tell(row)
            if not goes_on:
                log.info("%s is pruned at step %d", trial.name, metrics["step"])
                notices.stop()

    status, reason, scores = "stopped", "asked to stop", tuple[Score, ...]()
    try:
        if goes_on and not notices.stopping:
            trained = train(config, parent_run_id=parent_run_id, store=store, notices=notices, report=report)
            if not trained.stopped:
                scores = score(sweep, place, notices)
                if len(scores) == len(sweep.guidance):
                    status, reason = "finished", trained.ended
        if not goes_on and status != "finished":
            status, reason = "pruned", "its loss was not among the better half"
    except (UserError, ModelError) as error:
        status, reason = "failed", " ".join(str(error).split())
        log.error("%s failed: %s", trial.name, reason)
    result = result_of(trial, place, sweep, status=status, reason=reason, scores=scores)
    (place / RESULT).write_bytes(json.dumps(dataclasses.asdict(result), indent=1).encode())
    tell_mlflow(place, status)
    return result


def score(sweep: SweepConfig, place: Place, notices: Notices) -> tuple[Score, ...]:
    """One evaluation of the best checkpoint for each guidance that it lacks; fewer than asked when it is to stop."""
    scores = []
    for guidance in sweep.guidance:
        if notices.stopping:
            break
        out = place / f"guidance-{guidance:g}"
        report = read_evaluation(out)
        if report is None or report.model != best_of(place).name:
            report = evaluate(
                EvaluateConfig(
                    checkpoint=place.uri, data=sweep.data, out=out.uri, samples=sweep.samples, seconds=sweep.seconds, audio_files=1,
                    generation=sweep.generation(guidance), codec=sweep.codec, reference=0, baselines=False, aesthetics="off",
                    experiment=sweep.experiment,
                ),
                called=out.name,
            )  # fmt: skip
        scores.append(Score.of(guidance, report))
    return tuple(scores)


def result_of(trial: Trial, place: Place, sweep: SweepConfig, *, status: str, reason: str, scores: tuple[Score, ...] = ()) -> TrialResult:
    """What is known of a trial from what it left behind."""
    config = sweep.training(trial)
    parameters, flops = sizes(config.network, config.crop_frames)
    handle = read_handle(place)
    try:
        progress = json.loads((place / "last" / STATE_JSON).read_bytes())["progress"]
        metrics = best_of(place).metrics
    except MissingObjectError:
        progress, metrics = {"step": 0, "minutes": 0.0}, {}
    return TrialResult(
        trial=trial,
        status=status,
        reason=reason,
        parameters=parameters,
        flops=flops,
        step=progress["step"],
        minutes=progress["minutes"],
        validation_loss=metrics.get("validation/loss"),
        validation_error=unweighted(metrics),
        mlflow_run_id=None if handle is None else handle.run_id,
        scores=scores,
    )


@cache
def sizes(network: UNetConfig, frames: int) -> tuple[int, int]:
    """Parameters, and FLOP of one training sample."""
    with torch.device("meta"):
        parameters = count_parameters(AccompanimentUNet(network))
    return parameters, training_flops(network, frames)


def is_over(result: TrialResult, sweep: SweepConfig) -> bool:
    """Whether nothing of a trial is left to do in this sweep."""
    if result.status == "pruned":
        return sweep.prune
    return result.status == "finished" and {score.guidance for score in result.scores} >= set(sweep.guidance)


def measure(metrics: dict[str, float], sweep: SweepConfig) -> float:
    """What trials are compared by: the validation loss, or where they weigh it otherwise, its unweighted error."""
    value = metrics["validation/loss"] if sweep.compares_losses else unweighted(metrics)
    assert value is not None  # a sweep has held-out songs
    return value


def unweighted(metrics: dict[str, float]) -> float | None:
    """The mean squared error over the fixed timesteps; it depends on no weighting."""
    errors = [value for name, value in metrics.items() if name.startswith(ERROR_AT)]
    return sum(errors) / len(errors) if errors else None


def tell_mlflow(place: Place, status: str) -> None:
    """The trial's status as a tag; and the end of a run that was killed between its training and this."""
    handle = read_handle(place)
    if handle is None:
        return
    tracker = Tracker(handle, place)
    tracker.tags({"backline.trial": status})
    if status in ("finished", "pruned"):
        tracker.end("FINISHED" if status == "finished" else "KILLED")
    else:
        tracker.close()


def best_of(place: Place) -> Checkpoint:
    return load_checkpoint(localise(place / "best"))


def read_result(place: Place) -> TrialResult | None:
    try:
        return TrialResult.of(json.loads((place / RESULT).read_bytes()))
    except MissingObjectError:
        return None


def read_reports(place: Place) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (place / REPORTS).read_bytes().splitlines()]
    except MissingObjectError:
        return []


def read_evaluation(out: Place) -> EvaluationReport | None:
    try:
        return EvaluationReport.from_json((out / "evaluation.json").read_bytes())
    except MissingObjectError:
        return None
