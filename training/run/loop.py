"""The training loop, top to bottom: load, step, log, validate, save. It runs with and without Ray."""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from infra.errors import UserError
from infra.storage.place import Place, localise
from infra.tracking.tracking import Tracker
from model.checkpoint import Checkpoint, LatentStatistics, load_checkpoint
from model.codec.base import CodecIdentity, tensors_sha256
from model.diffusion.objective import DiffusionLoss, Schedule, velocity_loss
from model.network.unet import AccompanimentUNet, without_controls
from training.config import TrainConfig
from training.data.batches import Batch, Batches, validation_batches
from training.data.datasets import Datasets, open_datasets
from training.data.open import open_segments
from training.data.teacher import Teacher
from training.ranks import Workers
from training.run.stop import Notices
from training.run.throughput import Meter
from training.state import (
    Average,
    Progress,
    check_resumable,
    read_metrics,
    read_saved,
    restore,
    save,
    write_metrics,
)

log = logging.getLogger(__name__)

STOPPED = "asked to stop, and saved: --resume goes on from here"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the loop stopped. `metrics`: the last of each metric."""

    step: int
    ended: str
    stopped: bool = False
    """Whether it was asked to stop before its end; it goes on from there when resumed."""
    metrics: dict[str, float]


def run(
    config: TrainConfig,
    *,
    data: Sequence[Place] | None = None,
    out: Place | None = None,
    init: Place | None = None,
    workers: Workers | None = None,
    tracker: Tracker | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
    heard: Callable[[Checkpoint, int], None] | None = None,
    notices: Notices | None = None,
) -> Outcome:
    """Trains until the config says that it is over, or `notices` that it must stop, going on from what RUN/last holds.

    data, out, init: the config's places with their access, in a process that may not have it. report: called at each validation, by
    every worker. heard: given the averaged network at each validation, once it is saved, in the leading worker.
    """
    workers, place = workers or Workers(), out or Place(config.out)
    notices = notices or Notices()

    # Load
    datasets = open_datasets(config, data)
    codec, dataset = datasets.codec, datasets.identity
    schedule = Schedule(steps=config.network.diffusion_steps).to(workers.device)
    initial = None if config.init is None else initial_checkpoint(config, init or Place(config.init), codec)
    statistics = datasets.statistics if initial is None else initial.statistics
    began_from = None if initial is None else tensors_sha256(initial.state)
    network, average, optimizer = build(config, workers.device, initial)
    saved, progress, history = read_saved(place), Progress(), list[dict[str, float]]()
    if saved is not None:
        check_resumable(saved, config, codec, dataset)
        if saved.initial != began_from:
            raise UserError(
                f"the run at {place} began from other weights than {config.init} holds now: give those, or choose another --out"
            )
        progress = restore(saved, network, average, optimizer)
        history = read_metrics(place, up_to=progress.step)
        log.info("going on from step %d of %s", progress.step, place)
    teacher = None if initial is None or config.distillation is None else Teacher(initial, config.distillation, schedule)
    # A student's t are places in its own few timesteps, until its teacher has seen them.
    timesteps = schedule.steps if teacher is None else teacher.config.steps
    shared = {"crop_frames": config.crop_frames, "timesteps": timesteps, "micro_batch": config.micro_batch}
    ranks = {"rank": workers.rank, "world_size": workers.size}
    held_out = validation_batches(
        datasets.held_out(config.validation_segments), statistics, segments=config.validation_segments,
        per_segment=config.validation_timesteps, **shared, **ranks,
    )  # fmt: skip
    held_out = [[at_work(config, batch, teacher, workers.device) for batch in group] for group in held_out]
    batches = Batches(
        open_segments(config, datasets, workers, begin=progress.step), statistics, seed=config.seed, batch_size=config.batch_size,
        condition_dropout=config.condition_dropout, controls=config.controls, styles=config.styles,
        control_dropout=config.control_dropout, pin=workers.device.type == "cuda", **shared, **ranks,
    )  # fmt: skip
    stream = batches.ahead(progress.step, config.steps)

    # Step, log, validate, save
    meter = Meter(workers, network.config, batches.crop_frames, precision(config, workers.device))
    loss_of = torch.compile(batch_loss, dynamic=False) if compiles(config, workers.device) else batch_loss
    stops = saved_for_leaving = False
    bar = tqdm(total=config.steps, initial=progress.step, unit="step", disable=not (workers.leads and sys.stderr.isatty()))
    with closing(stream), bar:
        while not (stops or progress.ended(config)):
            meter.start()
            micro_batches = next(stream)
            meter.data_ready()
            rate = learning_rate(config, progress)
            loss = torch.zeros((), device=workers.device)
            for batch in micro_batches:
                batch = at_work(config, batch, teacher, workers.device)
                # A worker's part of the whole batch's mean: shares may differ, and sums over workers are the whole.
                part = loss_of(config, network, schedule, batch).loss * (len(batch.t_B) / config.batch_size)
                part.backward()
                loss += part.detach()
            workers.sum_gradients(network.parameters())
            norm = nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(network, progress.step)
            progress.step += 1
            meter.stepped(loss, config.batch_size)
            bar.update()

            logs = progress.step % config.log_every == 0
            leaving = False
            # All must decide alike, and to agree is to wait for the device: on a GPU only when the loss is read anyway.
            if logs or workers.device.type == "cpu":
                minutes, stopping, looks = workers.from_leader(progress.minutes + meter.lap_s() / 60, notices.stopping, notices.due)
                progress.minutes, stops = minutes, bool(stopping)
                leaving = bool(looks) and notices.leaving()
            over = bool(progress.ended(config))
            validates = over or progress.step % config.validate_every == 0
            saves = validates or stops or (leaving and not saved_for_leaving) or saves_at(config, progress.step)
            saved_for_leaving = saved_for_leaving or leaving
            if saves or logs:
                row = meter.read(rate, norm)
                if not math.isfinite(row["train/loss"]):
                    raise UserError(
                        f"the loss is {row['train/loss']} at step {progress.step}: resume with a lower learning_rate in a new --out"
                    )
                history.append(record(tracker, workers, progress.step, row))
                bar.set_postfix(loss=f"{row['train/loss']:.4f}")
            best = False
            if validates:
                row = validate(config, average.network, schedule, held_out, workers)
                measure = row.get("validation/loss")
                best = measure is None or progress.best is None or measure < progress.best
                progress.best, progress.stale = (measure, 0) if best else (progress.best, progress.stale + 1)
                history.append(record(tracker, workers, progress.step, row))
            if saves and workers.leads:
                checkpoint = checkpoint_of(config, average.network, datasets, progress.step, latest(history), statistics, began_from)
                if teacher is not None:
                    checkpoint = replace(checkpoint, sampling=teacher.sampling, name=f"{checkpoint.name}-in-{teacher.config.steps}")
                save(
                    place, config=config, network=network, average=average, optimizer=optimizer, progress=progress,
                    checkpoint=checkpoint, best=best, initial=began_from,
                )  # fmt: skip
                write_metrics(place, history)
                if validates and heard is not None:
                    heard(checkpoint, progress.step)
            if validates and report is not None:
                report({"step": progress.step, "minutes": progress.minutes, **latest(history)})
    ended = progress.ended(config)
    stopped = stops and not ended
    ended = ended or STOPPED
    log.info("step %d: %s", progress.step, ended)
    return Outcome(step=progress.step, ended=ended, stopped=stopped, metrics=latest(history))


def initial_checkpoint(config: TrainConfig, place: Place, codec: CodecIdentity) -> Checkpoint:
    """The checkpoint to begin from; UserError when its network is of another size or its latents are another codec's."""
    checkpoint = load_checkpoint(localise(place))
    if without_controls(checkpoint.network) != without_controls(config.network):
        raise UserError(
            f"--init {place} is not a checkpoint of preset {config.preset}, depth {config.depth}, width {config.width:g}: give the "
            f"--preset, --depth and --width that it was trained with"
        )
    if checkpoint.network.controls and checkpoint.network != config.network:
        follows, styles = (", ".join(names) or "none" for names in (checkpoint.network.controls, checkpoint.network.styles))
        raise UserError(f"--init {place} follows {follows} in the styles {styles}: give the same --controls, and its --styles or none")
    if checkpoint.codec != codec:
        raise UserError(
            f"--init {place} belongs to codec {checkpoint.codec.id} ({checkpoint.codec.weights_sha256[:8]}), {config.data_names} holds "
            f"latents of {codec.id} ({codec.weights_sha256[:8]}): prepare the songs with the checkpoint's codec"
        )
    return checkpoint


def build(
    config: TrainConfig, device: torch.device, initial: Checkpoint | None = None
) -> tuple[AccompanimentUNet, Average, torch.optim.AdamW]:
    """A network that begins from `initial` or from the seed alone, its average, and AdamW without decay of gains and biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = AccompanimentUNet(config.network)
    if initial is not None:
        # What is new in this network, its controls, begins at nothing.
        network.load_state_dict({**network.state_dict(), **initial.state})
    network.to(device).train()
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return network, Average(network, config.ema_decay), optimizer


def at_work(config: TrainConfig, batch: Batch, teacher: Teacher | None, device: torch.device) -> Batch:
    """A batch where it is needed, and what the teacher makes of it where there is one."""
    batch = batch.to(device)
    if teacher is None:
        return batch
    with autocast(config, device):
        return teacher.lesson(batch)


def precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What matrix products are computed in."""
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.bfloat16 if half else torch.float32


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The config's precision for what is computed inside."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision(config, device) == torch.bfloat16)


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Whether steps are compiled: by default on a GPU, where launching a small network's kernels one by one costs more than they do."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def saves_at(config: TrainConfig, step: int) -> bool:
    return bool(config.save_every and step % config.save_every == 0)


def batch_loss(config: TrainConfig, network: AccompanimentUNet, schedule: Schedule, batch: Batch) -> DiffusionLoss:
    """The velocity loss of one batch, in the config's precision."""
    with autocast(config, batch.t_B.device):
        told = batch.conditions if network.config.controls else None
        vocal = network.encode_vocal(batch.vocal_BCT, batch.valid_BT, batch.drop_B, told)

        def denoise(x_BCT: Tensor, t_B: Tensor) -> Tensor:
            return network(x_BCT, t_B, vocal)

        return velocity_loss(denoise, schedule, batch.accompaniment_BCT, batch.noise_BCT, batch.t_B, batch.valid_BT, config.loss)


@torch.no_grad()
def validate(
    config: TrainConfig, network: AccompanimentUNet, schedule: Schedule, held_out: list[list[Batch]], workers: Workers
) -> dict[str, float]:
    """The averaged network's loss on held-out crops: the mean, and the unweighted error at each fixed timestep. Empty without any."""
    rows: dict[str, float] = {}
    sums = torch.zeros(len(held_out), 3, dtype=torch.float64, device=workers.device)  # loss, squared error, samples
    for index, group in enumerate(held_out):
        for batch in group:
            loss = batch_loss(config, network, schedule, batch)
            sums[index] += torch.stack([loss.per_sample_B.sum(), loss.mse_B.sum(), torch.ones_like(loss.mse_B).sum()]).to(sums)
    sums = workers.total(sums)
    if sums[:, 2].sum() == 0:
        return rows
    rows["validation/loss"] = float(sums[:, 0].sum() / sums[:, 2].sum())
    for index, group in enumerate(held_out):
        if group:  # a worker may have no segments
            rows[f"validation/error_t{int(group[0].t_B[0]):03d}"] = float(sums[index, 1] / sums[index, 2])
    return rows


def learning_rate(config: TrainConfig, progress: Progress) -> float:
    """Linear warm-up, then a cosine down to `final_rate` (Loshchilov & Hutter 2017), over the steps or the minutes, whichever end first."""
    warm = min(1.0, (progress.step + 1) / max(config.warmup_steps, 1))
    done = min(1.0, max(0, progress.step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1))
    if config.anneal_by_time:
        done = max(done, min(1.0, progress.minutes / config.max_minutes))
    return config.learning_rate * warm * (config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * done)) / 2)


def checkpoint_of(
    config: TrainConfig, network: AccompanimentUNet, datasets: Datasets, step: int, metrics: dict[str, float],
    statistics: LatentStatistics, began_from: str | None = None,
) -> Checkpoint:  # fmt: skip
    """Its name tells apart any two models: config, dataset, what it began from, and step."""
    dataset = datasets.identity
    return Checkpoint(
        name="-".join((config.preset, config.hash(), dataset.digest[:8], *([began_from[:8]] if began_from else []), str(step))),
        network=network.config,
        state=network.state_dict(),
        statistics=statistics,
        codec=datasets.codec,
        dataset=dataset,
        step=step,
        metrics=metrics,
    )


def record(tracker: Tracker | None, workers: Workers, step: int, row: dict[str, float]) -> dict[str, float]:
    """One row of metrics to the log and to the tracker."""
    if workers.leads:
        if "train/loss" in row:
            log.info(
                "step %d  loss %.4f  lr %.2e  %.1f samples/s  data wait %.1f%%  FLOP utilisation %.0f%%", step, row["train/loss"],
                row["train/learning_rate"], row["train/samples_per_s"], 100 * row["train/data_wait"], 100 * row["train/flop_utilisation"],
            )  # fmt: skip
        elif row:
            log.info("step %d  validation loss %.4f", step, row["validation/loss"])
        if tracker is not None:
            tracker.metrics(row, step)
    return {"step": step, **row}


def latest(history: list[dict[str, float]]) -> dict[str, float]:
    """The last value of each metric."""
    return {name: value for row in history for name, value in row.items() if name != "step"}
