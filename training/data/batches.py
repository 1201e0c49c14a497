"""Batches of a run: normalised crops of segments, every random draw from a named stream (`training.data.random_streams`).

Shapes: B samples of a micro-batch, C channels, T frames.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.dataset.format import Manifest
from infra.dataset.splits import LatentTable, evenly_spread
from model.checkpoint import LatentStatistics
from model.network.conditions import CONTROLS, Conditions, beat_frames, chord_frames
from training.data.random_streams import slots_of_rank, stream
from training.data.segments import Segment, Segments, Told, segment_of

# Steps that are drawn before the loop asks for them, and the threads that draw: numpy and torch let go of the interpreter while they work.
DEPTH = 3
# Of the samples whose chords are told, in how many only a stretch of them is.
STRETCH_SHARE = 0.2
THREADS = 2
# How often a thread that waits looks whether it is still wanted.
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, normalised; everything random about it is already drawn."""

    vocal_BCT: Tensor
    accompaniment_BCT: Tensor
    valid_BT: Tensor
    """True where the segment has audio."""
    t_B: Tensor
    noise_BCT: Tensor
    drop_B: Tensor
    """True where the vocal is hidden from the network."""
    style_B: Tensor
    chords_BCT: Tensor
    beats_BCT: Tensor
    """What is told beside the vocal, as in `model.network.conditions.Conditions`; zeros where nothing is."""

    @property
    def conditions(self) -> Conditions:
        return Conditions(style_B=self.style_B, chords_BCT=self.chords_BCT, beats_BCT=self.beats_BCT)

    def pinned(self) -> "Batch":
        return Batch(**{name: value.pin_memory() for name, value in vars(self).items()})

    def to(self, device: torch.device) -> "Batch":
        if device.type == self.t_B.device.type:
            return self
        return Batch(**{name: value.pin_memory().to(device, non_blocking=True) for name, value in vars(self).items()})


class Batches:
    """What one rank sees: its slots of every global batch."""

    def __init__(
        self,
        segments: Segments,
        statistics: LatentStatistics,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        crop_frames: int,
        timesteps: int,
        condition_dropout: float,
        controls: tuple[str, ...] = (),
        styles: tuple[str, ...] = (),
        control_dropout: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ) -> None:
        """controls, styles: of the network. control_dropout: how often each is hidden. pin: whether `ahead` puts batches where a GPU can
        fetch them by itself."""
        self.segments, self.statistics, self.seed, self.timesteps = segments, statistics, seed, timesteps
        self.crop_frames = min(crop_frames, segments.frames)
        self.batch_size, self.micro_batch, self.condition_dropout, self.pin = batch_size, micro_batch, condition_dropout, pin
        self.controls, self.styles, self.control_dropout = controls, styles, control_dropout
        self.slots = slots_of_rank(batch_size, rank, world_size)

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one step: a function of (seed, step) alone."""
        return self.drawn(step, self.rows(step))

    def ahead(self, step: int, until: int) -> "Ahead":
        """Steps from `step` to before `until`, drawn while the network works on those before. Close it, and the segments are closed."""
        return Ahead(self, step, until)

    def rows(self, step: int) -> list[Segment]:
        """This rank's segments of one step."""
        return [self.segments.row(step * self.batch_size + slot) for slot in self.slots]

    def drawn(self, step: int, rows: Sequence[Segment]) -> list[Batch]:
        """The micro-batches of one step's segments."""
        samples = [self._sample(step * self.batch_size + slot, row) for slot, row in zip(self.slots, rows, strict=True)]
        return [collate(samples[start : start + self.micro_batch]) for start in range(0, len(samples), self.micro_batch)]

    def _sample(self, sample: int, segment: Segment) -> Batch:
        # Crops start where there is audio to fill them; a short segment keeps its padding, masked.
        latest = max(0, segment.valid_frames - self.crop_frames)
        start = int(stream(self.seed, "crop", sample).integers(latest + 1))
        drop = bool(stream(self.seed, "dropout", sample).random() < self.condition_dropout)
        conditions = None
        if self.controls and segment.told is not None and not drop:
            told = told_in(segment.told, start, self.crop_frames, self.styles)
            conditions = hidden(told, self.controls, self.control_dropout, stream(self.seed, "controls", sample))
        return crop(
            segment,
            start,
            self.crop_frames,
            self.statistics,
            t=int(stream(self.seed, "timestep", sample).integers(self.timesteps)),
            noise=stream(self.seed, "noise", sample),
            drop=drop,
            conditions=conditions,
        )


class Ahead(Iterator[list[Batch]]):
    """The steps of a run in order, at most DEPTH of them drawn and not yet asked for.

    One thread asks for segments, which may have to wait for a storage; a few draw batches of them. An error of any is raised by `next`.
    Returns when the first step is ready.
    """

    def __init__(self, batches: Batches, step: int, until: int) -> None:
        self._batches = batches
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="batches")
        self._steps: queue.Queue[Future[list[Batch]] | None] = queue.Queue(maxsize=DEPTH)
        self._thread = threading.Thread(target=self._work, args=(range(step, until),), name="segments", daemon=True)
        self._thread.start()
        try:
            self._first: list[Future[list[Batch]] | None] = [self._steps.get()]
            if self._first[0] is not None:
                self._first[0].result()
        except BaseException:
            self.close()
            raise

    def __next__(self) -> list[Batch]:
        following = self._first.pop() if self._first else self._steps.get()
        if following is None:
            self._first = [None]
            raise StopIteration
        try:
            return following.result()
        except BaseException:
            self._first = [following]  # whoever asks again is told again
            raise

    def close(self) -> None:
        """Ends the threads and closes the segments; what they hold on other machines too."""
        self._closed.set()
        self._batches.segments.close()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _work(self, steps: range) -> None:
        try:
            for step in steps:
                rows = self._batches.rows(step)
                if not self._put(self._pool.submit(self._draw, step, rows)):
                    return
            self._put(None)
        except BaseException as error:  # raised where the loop is
            failed: Future[list[Batch]] = Future()
            failed.set_exception(error)
            self._put(failed)

    def _draw(self, step: int, rows: Sequence[Segment]) -> list[Batch]:
        batches = self._batches.drawn(step, rows)
        return [batch.pinned() for batch in batches] if self._batches.pin else batches

    def _put(self, item: "Future[list[Batch]] | None") -> bool:
        """Whether it is still wanted."""
        while not self._closed.is_set():
            try:
                self._steps.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


def validation_batches(
    store: LatentTable,
    statistics: LatentStatistics,
    *,
    segments: int,
    crop_frames: int,
    timesteps: int,
    per_segment: int,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[Batch]]:
    """Held-out crops with fixed windows, timesteps and noise, so that any two validations of any two runs compare.

    One list for each timestep: quantile middles of 0..T-1. A rank gets every world_size-th segment.
    """
    chosen = evenly_spread(len(store), segments)
    crop_frames = min(crop_frames, store.vocal_RCT.shape[2])
    groups = []
    for quantile in range(per_segment):
        samples = []
        for index, row in enumerate(chosen):
            if index % world_size != rank:
                continue
            draw = stream(0, "validation", index * per_segment + quantile)
            start = max(0, int(store.valid_frames_R[row]) - crop_frames) // 2
            t = int((quantile + 0.5) / per_segment * timesteps)
            samples.append(crop(segment_of(store, int(row)), start, crop_frames, statistics, t=t, noise=draw, drop=False))
        groups.append([collate(samples[first : first + micro_batch]) for first in range(0, len(samples), micro_batch)])
    return groups


def told_in(told: Told, start: int, frames: int, styles: tuple[str, ...]) -> Conditions:
    """All that is known of a window of a segment, as a batch of one. A style that the network does not know is none."""
    window = slice(start, start + frames)
    chords_3T = torch.from_numpy(told.chords_3T[:, window])
    phases_2T = torch.from_numpy(told.phases_2T[:, window].astype(np.float32))
    return Conditions(
        style_B=torch.tensor([1 + styles.index(told.style) if told.style in styles else 0]),
        chords_BCT=chord_frames(*chords_3T)[None],
        beats_BCT=beat_frames(*phases_2T)[None],
    )


def hidden(told: Conditions, controls: tuple[str, ...], dropout: float, draw: np.random.Generator) -> Conditions:
    """Each control is hidden by itself, so that any subset may be given; of some, chords are told in one stretch only, so that the network
    learns to choose before and after it."""
    kept = dict(zip(CONTROLS, draw.random(len(CONTROLS)) >= dropout, strict=True))
    in_part, first, last = draw.random() < STRETCH_SHARE, *sorted(draw.random(2))
    given = told.kept(**{f"{name}_B": torch.tensor([bool(kept[name] and name in controls)]) for name in CONTROLS})
    if in_part:
        frames = given.chords_BCT.shape[2]
        given.chords_BCT[:, :, : int(first * frames)] = 0
        given.chords_BCT[:, :, int(last * frames) :] = 0
    return given


def crop(
    segment: Segment,
    start: int,
    frames: int,
    statistics: LatentStatistics,
    *,
    t: int,
    noise: np.random.Generator,
    drop: bool,
    conditions: Conditions | None = None,
) -> Batch:
    """One sample as a batch of one: a normalised window of a segment, zero where the segment has no audio."""

    def window(latent_CT: NDArray[np.float16]) -> Tensor:
        return torch.from_numpy(latent_CT[None, :, start : start + frames].astype(np.float32))

    valid_1T = torch.arange(start, start + frames)[None] < segment.valid_frames
    told = conditions or Conditions.none(1, valid_1T.shape[1])
    vocal_1CT = statistics.normalise_vocal(window(segment.vocal_CT))
    accompaniment_1CT = statistics.normalise_accompaniment(window(segment.accompaniment_CT))
    return Batch(
        vocal_BCT=torch.where(valid_1T, vocal_1CT, 0.0),
        accompaniment_BCT=torch.where(valid_1T, accompaniment_1CT, 0.0),
        valid_BT=valid_1T,
        t_B=torch.tensor([t]),
        noise_BCT=torch.from_numpy(noise.standard_normal(accompaniment_1CT.shape, dtype=np.float32)),
        drop_B=torch.tensor([drop]),
        **vars(told),
    )


def collate(samples: list[Batch]) -> Batch:
    return Batch(**{name: torch.cat([getattr(sample, name) for sample in samples]) for name in Batch.__dataclass_fields__})


def statistics_of(manifest: Manifest) -> LatentStatistics:
    """The manifest's channel statistics as a checkpoint carries them."""
    return LatentStatistics(
        vocal_mean=manifest.vocal_mean,
        vocal_std=manifest.vocal_std,
        accompaniment_mean=manifest.accompaniment_mean,
        accompaniment_std=manifest.accompaniment_std,
        vocal_level_db=manifest.vocal_level_db,
    )
