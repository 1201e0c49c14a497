"""`sweep`: its trials on Ray Tune, nested in one MLflow run, and the report of them all.

The truth about a trial is in its folder: Tune's own records are thrown away, and a sweep that was killed goes on when it is run again.
"""

import dataclasses
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from infra.cluster import Cluster, connect
from infra.dataset.format import Manifest, read_manifest
from infra.errors import UserError
from infra.logs import configure
from infra.resolve import codec_spec
from infra.settings import Settings, access_environment, export, ray_environment
from infra.storage.place import MissingObjectError, Place
from infra.tracking.tracking import NOTE_TAG, Store, Tracker, open_run, read_handle, store_of
from model.codec.load import load_codec
from model.errors import ModelError
from training.publish.mlflow_run import dataset_name, log_dataset
from training.run.launch import WORKER_ENVIRONMENT, ending
from training.run.ray_stop import DeskNotices, carry_stop
from training.run.stop import Notices, stopped_by_signals
from training.sweep.config import SweepConfig, Trial, changed
from training.sweep.report import SweepReport, TrialResult, findings, markdown, picture, rank_correlation
from training.sweep.trial import is_over, read_result, result_of, run_trial

log = logging.getLogger(__name__)

REPORT = "sweep.json"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files and TensorBoard, which nobody reads beside MLflow
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets the trials save
    "RAY_AIR_NEW_OUTPUT": "0",  # of the two outputs, the one that can be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def sweep(config: SweepConfig) -> SweepReport:
    """Runs what is left of a sweep, on the cluster that this process is on, or one of its own.

    Raises: UserError when the dataset cannot be swept over, or `out` holds another sweep.
    """
    settings, data, out = Settings.from_environment(), Place(config.data), Place(config.out)
    config = replace(config, data=data.uri, out=out.uri)
    manifest = read_manifest(data)
    check(config, manifest, settings)
    store = store_of(out, settings.mlflow_tracking_uri)
    tracker = open_run(
        store, experiment=config.experiment, name=f"sweep of {config.preset} on {dataset_name(data)}: {len(config.trials)} trials", run=out,
        before=read_handle(out), about={"name": out.name, "config": dataclasses.asdict(config)}, source="backline sweep",
        tags={"backline.preset": config.preset} | ({"mlflow.source.type": "JOB"} if settings.in_ray_job else {}),
    )  # fmt: skip
    tracker.params({name: value for name, value in dataclasses.asdict(config).items() if name not in ("concurrent", "prune")})
    log_dataset(tracker, data, manifest)
    write(report_of(config, manifest), out)
    notices = Notices()
    with ending(tracker, store, notices):
        left = [trial for trial in config.trials if not over(config, trial)]
        log.info("%d of %d trials are to be run", len(left), len(config.trials))
        failures = run_on_tune(config, manifest, settings, store, tracker, notices) if left else {}
        report = report_of(config, manifest, failures)
        track(report, tracker, write(report, out))
    return report


def check(config: SweepConfig, manifest: Manifest, settings: Settings) -> None:
    """Raises UserError, before anything is trained, for what would fail at the end."""
    if not manifest.counts.validation_segments:
        raise UserError(f"{config.data} has no held-out songs, on which trials are compared: prepare more songs, one in ten is held out")
    out = Place(config.out)
    try:
        before = json.loads((out / REPORT).read_bytes())
    except MissingObjectError:
        if (out / "last").list():
            raise UserError(f"{out} holds a training: choose another --out") from None
    else:
        now = json.loads(json.dumps(dataclasses.asdict(config)))
        if before["dataset_digest"] != manifest.digest:
            raise UserError(f"{out} holds a sweep over another dataset ({before['dataset']}): choose another --out, or give that one")
        if other := changed(before["config"], now):
            was = ", ".join(f"{name} {before['config'].get(name)!r} → {now[name]!r}" for name in other)
            raise UserError(f"{out} holds another sweep ({was}): choose another --out, or give the old values")
    identity = load_codec(codec_spec(config.codec, settings) or manifest.codec_id).identity
    if (identity.id, identity.weights_sha256) != (manifest.codec_id, manifest.codec_weights_sha256):
        raise UserError(f"{config.data} holds latents of codec {manifest.codec_id}, and --codec names {identity.id}: give the dataset's")


def run_on_tune(
    config: SweepConfig, manifest: Manifest, settings: Settings, store: Store, tracker: Tracker, notices: Notices
) -> dict[str, str]:
    """All trials, also those that are done: they say again what they reached, which is what the others are compared with.

    Returns: by a trial's name, why its process came to no end.
    """
    export(TUNE_ENVIRONMENT | WORKER_ENVIRONMENT)
    with connect(include_dashboard=True) as cluster, TemporaryDirectory(prefix="backline-sweep-") as scratch:
        import ray
        from ray import tune

        from training.sweep.pruning import Rungs, TrialDesk

        desk: Any = ray.remote(num_cpus=0)(TrialDesk).remote()
        concurrent, resources = shares(config, cluster)
        log.info("%d at a time, each with %s", concurrent, resources)

        class Progress(tune.Callback):
            """A line at each validation, and the report rewritten when a trial ends."""

            def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002
                if "share" in result:
                    log.info("%s  step %d, %.0f%%  loss %.4f", trial, result["step"], 100 * result["share"], result["loss"])

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
                tell_so_far(config, manifest, trial.config["trial"])

        tuner = tune.Tuner(
            tune.with_resources(work_of(config, settings, store, tracker.handle.run_id, desk), resources),
            param_space={"trial": tune.grid_search([trial.name for trial in config.trials])},
            tune_config=tune.TuneConfig(
                scheduler=Rungs(config.grace, lambda name: ray.get(desk.prune.remote(name))) if config.prune else None,
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # a process takes seconds to import what it needs
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=scratch, verbose=0, callbacks=[Progress()],
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
            ),
        )  # fmt: skip
        ended = threading.Event()
        carrier = threading.Thread(target=carry_stop, args=(notices, desk, ended), name="stop", daemon=True)
        carrier.start()
        try:
            with stopped_by_signals(notices):  # after Ray's start, which sets a handler of its own
                results = tuner.fit()
        finally:
            ended.set()
            carrier.join()
    return {
        found.config["trial"]: f"{type(found.error).__name__}: {' '.join(str(found.error).split())[-300:]}"
        for found in (results[index] for index in range(len(results)))
        if found.error is not None and found.config is not None
    }


def tell_so_far(config: SweepConfig, manifest: Manifest, ended: str) -> None:
    """The report as it is when a trial has ended. Others are running, and what they are writing may not be readable: the report at the
    end tells all, so that the sweep goes on without this one."""
    try:
        report = report_of(config, manifest)
        write(report, Place(config.out))
    except (UserError, ModelError, OSError, ValueError) as error:
        log.warning("the report is not rewritten now that %s has ended (%s: %s); it will be", ended, type(error).__name__, error)
        return
    result = next(result for result in report.trials if result.trial.name == ended)
    log.info("%s %s at step %d", result.trial.name, result.status, result.step)


def work_of(config: SweepConfig, settings: Settings, store: Store, parent: str | None, desk: Any) -> Callable[[dict[str, Any]], None]:
    """What each trial's process runs. How to reach storage and tracking travels in the closure."""
    environment = access_environment(settings) | ray_environment()

    def work(given: dict[str, Any]) -> None:
        import ray
        from ray import tune

        export(environment)
        # Which of several trials says what is told by the driver's lines alone.
        configure("DEBUG" if settings.log_level == "DEBUG" else "WARNING", settings.log_format)
        trial = next(trial for trial in config.trials if trial.name == given["trial"])

        def tell(row: dict[str, float]) -> bool:
            tune.report(row)  # returns when the driver has decided
            return bool(ray.get(desk.goes_on.remote(trial.name)))

        notices = DeskNotices(desk)
        if ray.get(desk.is_asked.remote()):
            notices.stop()
        run_trial(config, trial, notices=notices, tell=tell, store=store, parent_run_id=parent)
        notices.stop()  # its watch ends, for the process goes on with another trial

    return work


def shares(config: SweepConfig, cluster: Cluster) -> tuple[int, dict[str, float]]:
    """How many trials at a time, and the CPUs and GPUs of each. Tickets of a cluster of our own exceed this machine's cores."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return divided(nodes, config.concurrent, len(config.trials), (os.cpu_count() or 1) if cluster.started_here else None)


def divided(nodes: Sequence[Mapping[str, float]], asked: int, trials: int, cores: int | None = None) -> tuple[int, dict[str, float]]:
    """How many trials at a time, and each one's share, which one node can give: Ray places a trial on one.

    nodes: CPUs and GPUs of each. asked: trials at a time, 0 = by what there is. cores: the most CPUs that may be shared out.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    able = [int(node.get("CPU", 0)) for node in nodes if node.get("GPU", 0) or not gpus]
    cpus = min(sum(able), cores or sum(able))
    concurrent = min(asked or gpus or max(1, cpus // 2), trials)
    share: dict[str, float] = {"CPU": max(1, min(cpus // concurrent, max(able, default=1)))}
    if gpus:
        share["GPU"] = 1 / math.ceil(concurrent / gpus)
    return concurrent, share


def over(config: SweepConfig, trial: Trial) -> bool:
    result = read_result(Place(config.training(trial).out))
    return result is not None and is_over(result, config)


def report_of(config: SweepConfig, manifest: Manifest, failures: dict[str, str] | None = None) -> SweepReport:
    """What is known of every trial now; failures: why trials came to no end."""
    return SweepReport(
        config=dataclasses.asdict(config),
        dataset=config.data,
        dataset_digest=manifest.digest,
        weighted=config.compares_losses,
        trials=tuple(known(config, trial, (failures or {}).get(trial.name)) for trial in config.trials),
    )


def known(config: SweepConfig, trial: Trial, failure: str | None) -> TrialResult:
    place = Place(config.training(trial).out)
    found = read_result(place)
    if failure is not None:
        return result_of(trial, place, config, status="failed", reason=failure)
    return found or result_of(trial, place, config, status="waiting", reason="")


def write(report: SweepReport, out: Place) -> dict[str, bytes]:
    """Writes sweep.json, sweep.md and the picture; returns them by name."""
    files = {REPORT: report.to_json().encode(), "sweep.md": markdown(report).encode(), "loss-against-fit.png": picture(report)}
    for name, content in files.items():
        (out / name).write_bytes(content)
    return files


def track(report: SweepReport, tracker: Tracker, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        tracker.content(content, name)
    tracker.tags({NOTE_TAG: "\n\n".join(findings(report))})
    values = {
        f"trials/{status}": float(sum(result.status == status for result in report.trials)) for status in ("finished", "pruned", "failed")
    }
    for guidance in report.guidances:
        points = report.points(guidance)
        found = rank_correlation([loss for _, loss, _ in points], [score.fit.value for _, _, score in points])
        if found is not None:
            values[f"rank_correlation/guidance_{guidance:g}"] = found.rho
    tracker.metrics(values, len(report.trials))
