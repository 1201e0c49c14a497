"""Continuous batching: the lanes of all requests are moved together, at every step those that are due first.

Lanes join and leave between two steps, so nobody waits for another's end. What a lane yields does not depend on what is evaluated
beside it (model/inference/network_runner.py), so the order is free, and is chosen by due time alone (`PATIENCE`). On a CPU two threads do
so, each with lanes of its own: while one works out what a step has brought, or waits for its last evaluation, the other's evaluations fill
the cores.

Shapes: B = 1, C channels, T latent frames.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from torch import Tensor

from model.inference.network_runner import Evaluator
from model.inference.windows import Lane
from model.threads import one_thread_worker

log = logging.getLogger(__name__)

# A window is due when, since its request came, the device has done so many times the work that the request needs up to that window's end.
# Equal requests so go first come, first served; a short one passes a long one that came shortly before it; and a long one falls due too.
PATIENCE = 4.0
# Evaluations that fill the cores beside others are so much longer at most: what they hold up is a step of the others.
MOST_LONGER = 1.5


@dataclass(kw_only=True, eq=False)
class _Seat:
    """A lane, and when each of its windows is due: work of the device, counted in evaluated frames."""

    lane: Lane
    job: "_Job"
    number: int
    due: list[float]
    """Of the window that it is in, and of those to come."""
    taken: int = 0
    """Frames of its step that is under way; 0 between steps."""


@dataclass(kw_only=True, eq=False)
class _Job:
    """One request's lanes."""

    progress: Callable[[int], None]
    settled: SimpleQueue[tuple[Lane, Tensor] | BaseException] = field(default_factory=SimpleQueue)
    seats: list[_Seat] = field(default_factory=list)
    telling: threading.Lock = field(default_factory=threading.Lock)

    def asks_to_end(self, steps: int) -> BaseException | None:
        """Tells progress, and catches what it raises: this request's end, and nobody else's."""
        try:
            with self.telling:
                self.progress(steps)
        except BaseException as end:  # whatever it is, it belongs to the thread that waits for this job
            return end
        return None


class Denoiser:
    """The only one that asks `evaluator` for evaluations, in threads of its own until `close`."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._work_done = 0.0
        self._seats = 0
        self._began_s: dict[int, float] = {}  # of the steps under way, by thread
        self._busy_since_s = 0.0
        self.evaluations, self.steps, self.busy_s, self.failures = 0, 0, 0.0, 0
        """Counted since the start: evaluations, steps of them, seconds with a step under way; failures of the network in succession."""
        # Their own operations are small; split over threads, these would spin beside those that do the evaluations.
        self._threads = [one_thread_worker(self._run, f"denoiser-{number}") for number in range(evaluator.askers)]

    def denoise(
        self,
        lanes: Sequence[Lane],
        progress: Callable[[int], None],
        *,
        first_soon: bool = False,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[tuple[Lane, Tensor]]:
        """Moves a request's lanes to their ends: each window's settled frames (1, 64, T) with its lane, as soon as they are there.

        For any thread. What windows are conditioned on is worked out in the calling thread, a window ahead. progress: told after each
        step how many of these lanes took it, and 0 while none did, in a denoiser's thread; what it raises ends this request within
        a step, and is raised here. first_soon: nothing of the second window is done before the first one has been taken and made into
        sound, so that this has the cores for itself. waiting: around each wait of the calling
        thread for steps, where it does nothing else.
        """
        job = _Job(progress=progress)
        windows = sum(lane.windows_left for lane in lanes)  # before the denoiser enters any
        for lane in lanes:
            if lane.unprepared == lane.windows_left:
                lane.prepare()
        self._enter(job, lanes)
        try:
            for lane in lanes:
                if not first_soon:
                    self._prepare_next(lane)
            for number in range(windows):
                with waiting():
                    found = job.settled.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                # The window after this one is under way; the one after that is made ready meanwhile.
                self._prepare_next(found[0])
                if first_soon and not number:
                    self._prepare_next(found[0])
        finally:
            self._leave(job)

    @property
    def waiting(self) -> int:
        """Requests that are here."""
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        return self._closed

    def stalled_s(self) -> float:
        """Seconds since the oldest step under way began; 0 between steps."""
        began_s = list(self._began_s.values())
        return time.monotonic() - min(began_s) if began_s else 0.0

    def close(self) -> None:
        """Ends the threads after their steps; requests that are still here are told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enter(self, job: _Job, lanes: Sequence[Lane]) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError("the denoiser is closed")
            costs = [sum(window_costs) for window_costs in zip(*(lane.costs for lane in lanes), strict=True)]
            due, needed = [], 0.0
            for cost in costs:
                needed += cost
                due.append(self._work_done + PATIENCE * needed)
            for lane in lanes:
                job.seats.append(_Seat(lane=lane, job=job, number=self._seats, due=list(due)))
                self._seats += 1
            self._jobs.append(job)
            self._changed.notify_all()

    def _leave(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def _prepare_next(self, lane: Lane) -> None:
        if lane.unprepared:
            lane.prepare()
            with self._changed:
                self._changed.notify_all()

    def _end(self, job: _Job, end: BaseException) -> None:
        self._leave(job)
        job.settled.put(end)

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                chosen = self._choose()
                while not chosen and not self._closed:
                    self._changed.wait()
                    chosen = self._choose()
                if self._closed:
                    break
                self._begin(chosen)
            try:
                self._step(chosen)
            finally:
                with self._changed:
                    self._end_of_step(chosen)
            for job in [job for job in self._jobs if not any(seat.taken or seat in chosen for seat in job.seats)]:
                if (end := job.asks_to_end(0)) is not None:
                    self._end(job, end)
        for job in list(self._jobs):
            self._end(job, RuntimeError("the denoiser was closed"))

    def _choose(self) -> list[_Seat]:
        """The seats that are due first, as many as the evaluator has slots for, or one. Beside others' steps none that would hold these
        up, and none that is due later: it would do so for ever."""
        under_way = [seat.taken for job in self._jobs for seat in job.seats if seat.taken]
        longest = MOST_LONGER * min(under_way) if under_way else math.inf
        ready = [seat for job in self._jobs for seat in job.seats if not seat.taken and seat.lane.ready]
        chosen, width = list[_Seat](), 0
        for seat in sorted(ready, key=lambda seat: (seat.due[0], seat.number)):
            if seat.lane.frames > longest:
                break
            if not chosen or width + seat.lane.width <= self._evaluator.slots:
                chosen.append(seat)
                width += seat.lane.width
        # In the order of their coming: a lane that stays keeps its slot, whose features need not be copied again.
        return sorted(chosen, key=lambda seat: seat.number)

    def _begin(self, chosen: list[_Seat]) -> None:
        for seat in chosen:
            seat.taken = seat.lane.frames
        now_s = time.monotonic()
        if not self._began_s:
            self._busy_since_s = now_s
        self._began_s[threading.get_ident()] = now_s

    def _end_of_step(self, chosen: list[_Seat]) -> None:
        for seat in chosen:
            seat.taken = 0
        del self._began_s[threading.get_ident()]
        if not self._began_s:
            self.busy_s += time.monotonic() - self._busy_since_s
        self._changed.notify_all()

    def _step(self, chosen: list[_Seat]) -> None:
        try:
            asked = [seat.lane.evaluations() for seat in chosen]
            answers = iter(self._evaluator([evaluation for of_lane in asked for evaluation in of_lane]))
            settled = [seat.lane.advance([next(answers) for _ in of_lane]) for seat, of_lane in zip(chosen, asked, strict=True)]
        except Exception as fault:
            # Whose it was cannot be told from a failed batch. The device may have recovered for the next one; if not, `failures` shows.
            log.exception("a step of %d lanes failed", len(chosen))
            with self._changed:
                self.failures += 1
            for job in {seat.job for seat in chosen}:
                # One for each: an exception gathers the frames, and so the vocal, of every thread that raises it.
                failed = RuntimeError(f"a step of the network failed: {fault}")
                failed.__cause__ = fault.with_traceback(None)
                self._end(job, failed)
            return
        with self._changed:
            self.failures = 0
            self.steps += 1
            self.evaluations += sum(map(len, asked))
            self._work_done += sum(evaluation.x_CT.shape[1] for of_lane in asked for evaluation in of_lane)
        for seat, settled_BCT in zip(chosen, settled, strict=True):
            if settled_BCT is not None:
                seat.due.pop(0)
                seat.job.settled.put((seat.lane, settled_BCT))
        for job in dict.fromkeys(seat.job for seat in chosen):
            if (end := job.asks_to_end(sum(seat.job is job for seat in chosen))) is not None:
                self._end(job, end)
