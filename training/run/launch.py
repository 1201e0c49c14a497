"""`train`: the loop under Ray Train, the run in MLflow, sample audio at the end."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from infra.cluster import connect
from infra.dataset.credits import Credit, joined, read_credits, stored_credits, write_credits
from infra.dataset.format import MANIFEST
from infra.dataset.trained_on import LearntFrom, note_training, read_learnt_from, write_learnt_from
from infra.errors import UserError
from infra.resolve import checkpoint_place
from infra.settings import Settings
from infra.storage.place import Place, localise
from infra.tracking.tracking import RunHandle, Store, Tracker, keep, open_run, send_untracked, store_of
from model.checkpoint import load_checkpoint
from model.errors import ModelError
from training.config import TrainConfig
from training.data.datasets import Datasets, open_datasets, with_styles, with_uris
from training.evaluation.evaluate import run_handle
from training.evaluation.material import device
from training.publish.mlflow_run import log_dataset, log_result, loss_of, replay, run_name
from training.publish.sample_audio import Listener
from training.ranks import Workers
from training.run.loop import Outcome, latest, run
from training.run.ray_stop import StopDesk, TrainNotices, carry_stop
from training.run.stop import Notices, stopped_by_signals
from training.state import check_resumable, read_metrics, read_saved

log = logging.getLogger(__name__)

# OpenMP's threads spin while they wait, which other processes pay for; asleep at once, a small network's step takes half as long again.
# A short spin is neither (infra/benchmarks/data/ray_train.md).
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training left behind."""

    run: str
    """Place of the run."""
    checkpoint: str
    """Place of the best checkpoint."""
    tracking_uri: str
    mlflow_run_id: str | None
    step: int
    ended: str
    stopped: bool
    """Whether it was asked to stop (SIGTERM, Ctrl-C) and saved before its end."""
    metrics: dict[str, float]
    """Last values: train_loss, validation_loss and others."""
    training_loss: list[tuple[int, float]]
    validation_loss: list[tuple[int, float]]
    tracking_failures: int
    """Entries that MLflow has not taken, which wait in RUN/untracked/."""


def train(
    config: TrainConfig, *, parent_run_id: str | None = None, store: Store | None = None, notices: Notices | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> TrainResult:  # fmt: skip
    """Trains as the config says, on the cluster that this process is on, or one of its own, and tracks it.

    parent_run_id: the MLflow run that this one is a part of. store: where that one is kept, by default what the settings say. notices:
    what may ask it to stop. report: as of `training.run.loop.run`; only without workers.

    Raises: UserError when the run cannot be begun or resumed as asked; the error of a worker that failed more often than `max_failures`.
    """
    settings = Settings.from_environment()
    out = Place(config.out)
    init = None if config.init is None else checkpoint_place(config.init, settings)
    config = replace(with_uris(config), out=out.uri, init=None if init is None else init.uri)
    datasets = open_datasets(config)
    if config.controls:
        before = () if init is None else load_checkpoint(localise(init, settings.cache)).network.styles
        config = with_styles(config, datasets, before)
    data = [member.place for member in datasets.members]
    saved = read_saved(out)
    if saved is not None:
        if not config.resume:
            raise UserError(
                f"{out} holds a run that is at step {saved.progress.step}: add --resume to go on with it, or choose another --out"
            )
        check_resumable(saved, config, datasets.codec, datasets.identity)
    if saved is not None and saved.progress.ended(config):
        log.info("%s is done already: %s", out, saved.progress.ended(config))
        outcome = Outcome(step=saved.progress.step, ended=saved.progress.ended(config), metrics=latest(read_metrics(out)))
        send_untracked(out)
        return result_of(out, outcome, run_handle(out) or RunHandle(tracking_uri=""), 0)

    store = store or store_of(out, settings.mlflow_tracking_uri)
    name = f"{out.name}-{config.hash()}"
    tags = {"backline.preset": config.preset, "backline.config": config.hash()}
    tracker = open_run(
        store, experiment=config.experiment, name=run_name(config, data), run=out, before=run_handle(out), parent_run_id=parent_run_id,
        about={"name": name, "config": config.to_dict()}, source="backline train" if config.distillation is None else "backline distil",
        tags=tags | ({"mlflow.source.type": "JOB"} if settings.in_ray_job else {}),
    )  # fmt: skip
    tracker.params(config.to_dict())
    for member in datasets.members:
        log_dataset(tracker, member.place, member.manifest)
    note_datasets(out, datasets, init)
    note_credits(out, datasets, init)
    if len(data) > 1:
        tracker.tags({"backline.datasets": datasets.identity.uri})
    replay(tracker, out)
    notices = notices or Notices()
    with ending(tracker, store, notices):
        if config.workers == 0:
            tracker.watch_system()
            with stopped_by_signals(notices):
                outcome = run(
                    config, data=data, out=out, init=init, workers=Workers(device=torch.device(device())), tracker=tracker,
                    heard=Listener(config, tracker, data[0], out), notices=notices, report=report,
                )  # fmt: skip
        else:
            outcome = run_on_ray(config, data, out, init, name, tracker.handle, settings.log_level, notices)
        if not outcome.stopped:  # whoever asked will not wait for pictures
            log_result(config, tracker, data[0], out, settings)
    return result_of(out, outcome, tracker.handle, tracker.left)


def note_datasets(out: Place, datasets: Datasets, init: Place | None) -> None:
    """Tells every dataset that this run learns from, and each that the checkpoint it begins with learnt from: a takedown names them all."""
    own = [LearntFrom(uri=member.place.uri, digest=member.manifest.digest) for member in datasets.members]
    access = {member.place.uri: member.place for member in datasets.members}
    earlier = [] if init is None else read_learnt_from(init) or read_learnt_from(above(init))
    heard = list(dict.fromkeys((*own, *earlier)))
    write_learnt_from(out, heard)
    for dataset in heard:
        place = access.get(dataset.uri) or Place(dataset.uri)
        if dataset in own or (place / MANIFEST).exists():
            note_training(place, out.uri, dataset.digest)
        else:
            log.warning("%s is not there any more: a takedown there will not name %s", place, out)


def above(place: Place) -> Place:
    """The run of its best/."""
    return Place(place.uri.rstrip("/").rpartition("/")[0], place.access)


def note_credits(out: Place, datasets: Datasets, init: Place | None) -> None:
    """What the run learns from is to be named, and what the checkpoint that it begins with learnt from too."""
    earlier: tuple[Credit, ...] = ()
    if init is not None:
        earlier = stored_credits(init) or stored_credits(above(init))  # a run's best/ has the run's credits
    write_credits(out, joined(*(read_credits(member.place, member.manifest) for member in datasets.members), earlier))


def run_on_ray(
    config: TrainConfig,
    data: Sequence[Place],
    out: Place,
    init: Place | None,
    name: str,
    handle: RunHandle,
    log_level: str,
    notices: Notices,
) -> Outcome:  # fmt: skip
    """The loop in `config.workers` Ray Train workers. A lost worker restarts all of them from RUN/last; so does a cluster that has fewer
    or more places for them, when `min_workers` allows it. A stop that `notices` is asked for here reaches them all."""
    with connect(include_dashboard=True):
        import ray
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources = ray.cluster_resources()
        fewest = config.min_workers or config.workers
        use_gpu = resources.get("GPU", 0) >= fewest
        # Ray gives a worker as many threads as it has CPUs, and the tickets of a small machine exceed its cores.
        tickets = max(1, int(resources.get("CPU", 1) - 1) // config.workers)
        cpus = min(tickets, max(1, (os.cpu_count() or 1) // config.workers))
        filesystem, path = (out / "ray").filesystem()
        settings: dict[str, Any] = {
            "name": name,
            "storage_path": path,
            "storage_filesystem": filesystem,
            # A machine that is announced to be taken away is nobody's failure: Ray does not count those losses.
            "failure_config": FailureConfig(max_failures=config.max_failures),
            "worker_runtime_env": {"env_vars": WORKER_ENVIRONMENT},
            # At INFO every report is printed whole by every worker, beside our own line.
            "logging_config": LoggingConfig(log_level="WARNING"),
        }
        size: Any = (fewest, config.workers) if fewest < config.workers else config.workers
        desk = ray.remote(num_cpus=0)(StopDesk).remote()
        trainer = TorchTrainer(
            worker_of(config, data, out, init, handle, log_level, desk),
            train_loop_config=config.to_dict(),
            scaling_config=ScalingConfig(num_workers=size, use_gpu=use_gpu, resources_per_worker=per_worker(cpus, use_gpu)),
            run_config=RunConfig(**settings),
        )
        over = threading.Event()
        carrier = threading.Thread(target=carry_stop, args=(notices, desk, over), name="stop", daemon=True)
        carrier.start()
        try:
            with stopped_by_signals(notices):  # after Ray's start, which sets a handler of its own
                result: Any = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise cause_of(error) from error
        finally:
            over.set()
            carrier.join()
    outcome: Outcome = result.return_value
    return outcome


def worker_of(
    config: TrainConfig, data: Sequence[Place], out: Place, init: Place | None, handle: RunHandle, log_level: str, desk: Any
) -> Callable[[dict[Any, Any]], Any]:
    """What each Ray Train worker runs. Places travel in the closure, with their access; the config is also shown on the dashboard."""

    def work(_: dict[str, Any]) -> Outcome:
        import ray.train
        from ray.train.torch import get_device

        # Ray has its handlers on the root already; only the level of our own lines is missing.
        for room in ("training", "infra", "model"):
            logging.getLogger(room).setLevel(log_level)
        context = ray.train.get_context()
        workers = Workers(
            rank=context.get_world_rank(), size=context.get_world_size(), on_node=context.get_local_world_size(), device=get_device()
        )
        tracker = Tracker(handle, out) if workers.leads else None
        heard = None if tracker is None else Listener(config, tracker, data[0], out)
        if tracker is not None:
            replay(tracker, out)
            tracker.watch_system()
        try:
            # The loop saves to RUN/last itself, before it reports: nothing is uploaded twice, and a run resumes without Ray as well.
            return run(
                config, data=data, out=out, init=init, workers=workers, tracker=tracker, report=lambda metrics: ray.train.report(metrics),
                heard=heard, notices=TrainNotices(desk, workers.leads),
            )  # fmt: skip
        finally:
            if tracker is not None:
                tracker.close()

    return work


def per_worker(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def cause_of(error: Exception) -> Exception:
    """The user's mistake behind a failed training, where it is one; otherwise the failure itself."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError | ModelError):
                return type(cause)(str(cause).strip().splitlines()[-1])
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return error


@contextmanager
def ending(tracker: Tracker, store: Store, notices: Notices) -> Iterator[None]:
    """Ends the MLflow run with the status that it deserves."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    else:
        tracker.end("KILLED" if notices.stopping else "FINISHED")
    finally:
        keep(store)


def result_of(out: Place, outcome: Outcome, handle: RunHandle, failures: int) -> TrainResult:
    history = read_metrics(out)
    return TrainResult(
        run=out.uri,
        checkpoint=(out / "best").uri,
        tracking_uri=handle.tracking_uri,
        mlflow_run_id=handle.run_id,
        step=outcome.step,
        ended=outcome.ended,
        stopped=outcome.stopped,
        metrics={name.replace("/", "_"): value for name, value in outcome.metrics.items()},
        training_loss=loss_of(history, "train/loss"),
        validation_loss=loss_of(history, "validation/loss"),
        tracking_failures=failures,
    )
