"""One trial of a sweep: a training as any other, which says how far it is and may be told to end; then one evaluation a guidance.

What a trial left is in its folder, so a sweep that was killed goes on: a trial says first what it had said before.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place
from infra.tracking.tracking import Store, Tracker, read_handle
from model.checkpoint import CONFIG_FILE
from model.errors import ModelError
from model.network.flops import training_flops
from model.network.unet import AccompanimentUNet, UNetConfig, count_parameters
from training.config import TrainConfig
from training.data.datasets import open_datasets
from training.evaluation.evaluate import EvaluateConfig, evaluate
from training.evaluation.report import EvaluationReport
from training.run.launch import train
from training.run.stop import Notices
from training.state import STATE_JSON, Progress, check_resumable, read_saved
from training.sweep.config import SweepConfig, Trial
from training.sweep.report import Score, TrialResult

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
    goes_on, stopped_by_rule = True, False
    for row in read_reports(place):
        goes_on = tell(compared(row, sweep)) and goes_on
    former = read_result(place)
    if former is not None and is_over(former, sweep):
        return former

    def report(metrics: dict[str, float]) -> None:
        nonlocal goes_on, stopped_by_rule
        share = max(metrics["step"] / config.steps, metrics["minutes"] / config.max_minutes if config.max_minutes else 0.0)
        if share < 1:  # who is at the end is not pruned
            error = unweighted(metrics)
            assert error is not None  # a sweep has held-out songs
            row = {"step": metrics["step"], "share": share, "loss": metrics["validation/loss"], "error": error}
            (place / REPORTS).write_bytes("".join(json.dumps(said) + "\n" for said in [*read_reports(place), row]).encode())
            goes_on = tell(compared(row, sweep))
            if not goes_on:
                log.info("%s is pruned at step %d", trial.name, metrics["step"])
                stopped_by_rule = not notices.stopping
                notices.stop()

    status, reason = "stopped", "asked to stop"
    try:
        ended = training_end(config)  # then `train` has nothing to do but to wait for MLflow
        if goes_on and not ended and not notices.stopping:
            # The driver copies the sweep's store to its place, once.
            shared = store and replace(store, keep_at=None)
            trained = train(config, parent_run_id=parent_run_id, store=shared, notices=notices, report=report)
            ended = "" if trained.stopped else trained.ended
        if ended:
            # Who is at the end is not pruned, whatever was said of it on the way.
            score(sweep, place, lambda: notices.stopping and not stopped_by_rule)
            if len(scores_of(sweep, place)) == len(sweep.guidance):
                status, reason = "finished", ended
        elif not goes_on:
            status, reason = "pruned", "its loss was not among the better half"
    except (UserError, ModelError) as error:
        status, reason = "failed", " ".join(str(error).split())
        log.error("%s failed: %s", trial.name, reason)
    tell_mlflow(place, status)
    result = result_of(trial, place, sweep, status=status, reason=reason)
    (place / RESULT).write_bytes(json.dumps(dataclasses.asdict(result), indent=1).encode())  # last: then nothing is left to do
    return result


def training_end(config: TrainConfig) -> str:
    """Why this training is over, or nothing. Raises: UserError when what is saved there is another training."""
    saved = read_saved(Place(config.out))
    if saved is None:
        return ""
    datasets = open_datasets(config)
    check_resumable(saved, config, datasets.codec, datasets.identity)
    return saved.progress.ended(config)


def score(sweep: SweepConfig, place: Place, stopping: Callable[[], bool]) -> None:
    """One evaluation of the best checkpoint for each guidance that it lacks, until it is to stop."""
    done = {score.guidance for score in scores_of(sweep, place)}
    for guidance in sweep.guidance:
        if guidance in done:
            continue
        if stopping():
            return
        out = heard_at(place, guidance)
        evaluate(
            EvaluateConfig(
                checkpoint=place.uri, data=sweep.data, out=out.uri, samples=sweep.samples, seconds=sweep.seconds, audio_files=1,
                generation=sweep.generation(guidance), codec=sweep.codec, reference=0, baselines=False, retrieval=0, aesthetics="off",
                experiment=sweep.experiment,
            ),
            called=out.name,
        )  # fmt: skip


def scores_of(sweep: SweepConfig, place: Place) -> tuple[Score, ...]:
    """What is there already, of the best checkpoint, for the sweep's guidances."""
    best, scores = best_of(place), []
    for guidance in sweep.guidance if best else ():
        report = read_evaluation(heard_at(place, guidance))
        if report is not None and report.model == best["name"]:
            scores.append(Score.of(guidance, report))
    return tuple(scores)


def heard_at(place: Place, guidance: float) -> Place:
    return place / f"guidance-{guidance:g}"


def result_of(trial: Trial, place: Place, sweep: SweepConfig, *, status: str, reason: str) -> TrialResult:
    """What is known of a trial from what it left behind. It may be running: no weights are read."""
    config = sweep.training(trial)
    parameters, flops = sizes(config.network, config.crop_frames)
    handle = read_handle(place)
    progress = Progress(**read_json(place, "last", STATE_JSON).get("progress", {}))
    metrics = best_of(place).get("metrics", {})
    return TrialResult(
        trial=trial,
        status=status,
        reason=reason,
        parameters=parameters,
        flops=flops,
        step=progress.step,
        minutes=progress.minutes,
        trained=bool(progress.ended(config)),
        validation_loss=metrics.get("validation/loss"),
        validation_error=unweighted(metrics),
        mlflow_run_id=None if handle is None else handle.run_id,
        scores=scores_of(sweep, place),
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


def compared(row: dict[str, float], sweep: SweepConfig) -> dict[str, float]:
    """A report as the pruning rule takes it. Its loss is what trials are compared by now: the validation loss, or where they weigh it
    otherwise, its unweighted error."""
    return {"step": row["step"], "share": row["share"], "loss": row["loss" if sweep.compares_losses else "error"]}


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


def best_of(place: Place) -> dict[str, Any]:
    """What checkpoint.json says of the best so far; empty before the first."""
    return read_json(place, "best", CONFIG_FILE)


def read_json(place: Place, folder: str, name: str) -> dict[str, Any]:
    """A file of a folder that a save may be putting in place right now; empty when there is none."""
    for where in (folder, f".{folder}.former", folder):
        try:
            found: dict[str, Any] = json.loads((place / where / name).read_bytes())
        except MissingObjectError:
            continue
        return found
    return {}


def read_result(place: Place) -> TrialResult | None:
    try:
        return TrialResult.of(json.loads((place / RESULT).read_bytes()))
    except MissingObjectError:
        return None


def read_reports(place: Place) -> list[dict[str, Any]]:
    """Rows of {step, share, loss, error}. The first sweeps kept but one of the two; such rows are of no known kind and left out."""
    try:
        rows = [json.loads(line) for line in (place / REPORTS).read_bytes().splitlines()]
    except MissingObjectError:
        return []
    return [row for row in rows if "error" in row]


def read_evaluation(out: Place) -> EvaluationReport | None:
    try:
        return EvaluationReport.from_json((out / "evaluation.json").read_bytes())
    except MissingObjectError:
        return None
