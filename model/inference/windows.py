"""A song of any length, window by window: noise by place, windows that agree where they overlap, the first one finished before the last.

Shapes: B = 1, C channels, T latent frames.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.diffusion.objective import Schedule
from model.diffusion.sampling import SamplerConfig, Solving, guide, solve
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from model.inference.network_runner import Evaluation, Evaluator
from model.network.unet import VocalFeatures

NOISE_WINDOW_FRAMES = SEGMENT_FRAMES
# Beside each other, windows are cut to whole frames of the coarsest level.
WINDOW_MULTIPLE = 8
# A song of more than so many longest windows begins with one of half their length. The windows after it then take 6% more at most.
EARLY_START = 3


@dataclass(frozen=True, kw_only=True)
class Window:
    """Frames start … start + frames − 1 of a song."""

    start: int
    frames: int
    shared: int
    """Frames that it shares with the window before."""
    settled: int
    """Frames, from its start, that no later window touches."""


def windows(frames: int, longest: int, overlap: int) -> list[Window]:
    """As few equal windows as cover `frames`, none longer than `longest`, each sharing `overlap` frames or a few more with the former.

    In a song of more than three, the first one is half as long, if it can settle anything then: the band begins sooner.
    """
    if frames > EARLY_START * longest and longest // 2 > overlap:
        opening = Window(start=0, frames=longest // 2, shared=0, settled=longest // 2 - overlap)
        rest = _equal(frames - opening.settled, longest, overlap, before=overlap)
        return [opening] + [replace(window, start=window.start + opening.settled) for window in rest]
    return _equal(frames, longest, overlap, before=0)


def _equal(frames: int, longest: int, overlap: int, *, before: int) -> list[Window]:
    """before: frames that the first one shares with a window before it."""
    count = max(1, -(-(frames - overlap) // (longest - overlap)))
    length = -(-(frames + (count - 1) * overlap) // count)
    if count > 1:
        length = min(-(-length // WINDOW_MULTIPLE) * WINDOW_MULTIPLE, longest)
    starts = [index * (frames - length) // max(1, count - 1) for index in range(count)]
    ends = [start + length for start in starts]
    return [
        Window(
            start=start,
            frames=length,
            shared=ends[index - 1] - start if index else before,
            settled=(starts[index + 1] if index + 1 < count else frames) - start,
        )
        for index, start in enumerate(starts)
    ]


def handover(shared: int, slope: int) -> Tensor:
    """(T,) share of the former window in the frames that two windows share: 1, then sin² down to 0 over the last `slope` frames."""
    slope = min(slope, shared)
    fall = torch.cos((torch.arange(slope) + 0.5) / slope * (torch.pi / 2)) ** 2
    return torch.cat([torch.ones(shared - slope), fall])


def noise_stream(seed: int, candidate: int, window: int) -> torch.Generator:
    """The random stream of a request's candidate in a window of 1,024 frames: noise depends on neither batch, length nor device."""
    digest = hashlib.sha256(f"{seed}/{candidate}/{window}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise(seed: int, candidate: int, start: int, frames: int) -> Iterator[Tensor]:
    """(1, 64, frames) noise of a song's frames start …, draw after draw. Whole windows of the noise's own grid are drawn, so that frames
    that two windows share, or a longer vocal repeats, have the same noise in every draw."""
    first = start // NOISE_WINDOW_FRAMES
    last = (start + frames - 1) // NOISE_WINDOW_FRAMES
    streams = [noise_stream(seed, candidate, window) for window in range(first, last + 1)]
    begin = start - first * NOISE_WINDOW_FRAMES
    while True:
        drawn = [torch.randn(1, LATENT_CHANNELS, NOISE_WINDOW_FRAMES, generator=stream) for stream in streams]
        yield torch.cat(drawn, dim=2)[:, :, begin : begin + frames]


class Lane:
    """One candidate on its way through the windows of its song, first to last.

    Where a window shares frames with the one before, its velocity is joined at every step with the one that the former had there at the
    same step (MultiDiffusion, Bar-Tal et al. 2023, eq. 5, with the past fixed). Both begin with the same noise and solvers are linear
    in the velocity, so the shared frames follow the former window's path as far as `handover` says, and the network sees them while it
    denoises the rest. A window never waits for a later one: it is finished, heard and forgotten before that begins.
    """

    def __init__(
        self,
        *,
        windows: Sequence[Window],
        slope: int,
        condition: Callable[[Window], tuple[VocalFeatures, VocalFeatures | None]],
        draw: Callable[[Window], Iterator[Tensor]],
        schedule: Schedule,
        sampler: SamplerConfig,
        guidance: float,
        rescale: float,
    ) -> None:
        """condition: a window's features and, for guidance, the null ones. draw: a window's noise, draw after draw, on the device. slope:
        frames over which a window takes over from the former."""
        self.width = 1 if guidance == 1 else 2
        """Evaluations a step."""
        # Whoever prepares takes from one and adds to the other; whoever evaluates takes from the others. So these may be two threads.
        self._unprepared, self._prepared, self._waiting = deque(windows), deque[list[VocalFeatures]](), deque(windows)
        self._slope, self._condition, self._draw = slope, condition, draw
        self._schedule, self._sampler, self._guidance, self._rescale = schedule, sampler, guidance, rescale
        self._window: Window | None = None
        # Velocities at each step of the frames that two windows share: those of the former window that are still to be joined, and this
        # window's so far. Together they are never more than one window's.
        self._former, self._tail = deque[Tensor](), deque[Tensor]()

    @property
    def done(self) -> bool:
        return self._window is None and not self._waiting

    @property
    def windows_left(self) -> int:
        """Windows that have not been entered."""
        return len(self._waiting)

    @property
    def unprepared(self) -> int:
        """Windows whose conditions have not been worked out."""
        return len(self._unprepared)

    @property
    def frames(self) -> int:
        """Of the window that it is in, or enters next."""
        return (self._window or self._waiting[0]).frames

    @property
    def costs(self) -> list[int]:
        """Frames that the network is to evaluate in each window that has not been entered."""
        return [window.frames * self._sampler.steps * self.width for window in self._waiting]

    @property
    def ready(self) -> bool:
        """Whether `evaluations` has all that it needs, and only the network is left to ask."""
        return self._window is not None or bool(self._prepared)

    def prepare(self) -> None:
        """Finds what the next window that is not prepared is conditioned on, so that `evaluations` need not. Another thread may do it."""
        window = self._unprepared.popleft()
        self._prepared.append([features for features in self._condition(window) if features is not None])

    def _enter(self) -> None:
        if not self._prepared:
            self.prepare()
        self._conditions = self._prepared.popleft()
        window = self._window = self._waiting.popleft()
        draws = self._draw(window)
        self._solving: Solving = solve(next(draws), self._schedule, self._sampler, lambda: next(draws))
        self._x_BCT, self._t = next(self._solving)
        self._former, self._tail = self._tail, deque()
        self._share_T = handover(window.shared, self._slope).to(self._x_BCT.device)

    def evaluations(self) -> list[Evaluation]:
        """What the network is to be asked next, `width` of them."""
        if self._window is None:
            self._enter()
        return [Evaluation(x_CT=self._x_BCT[0], t=self._t, vocal=features) for features in self._conditions]

    def advance(self, velocities_CT: Sequence[Tensor]) -> Tensor | None:
        """The answers to `evaluations`, in their order; a window's settled frames (1, 64, T) when this was its last step."""
        assert self._window is not None  # `evaluations` came before
        conditional_BCT, *null_BCT = (v_CT[None] for v_CT in velocities_CT)
        v_BCT = guide(conditional_BCT, null_BCT[0], guidance=self._guidance, rescale=self._rescale) if null_BCT else conditional_BCT
        shared, settled = self._window.shared, self._window.settled
        if shared:
            joined_BCT = torch.lerp(v_BCT[:, :, :shared], self._former.popleft(), self._share_T)
            v_BCT = torch.cat([joined_BCT, v_BCT[:, :, shared:]], dim=2)
        self._tail.append(v_BCT[:, :, settled:].clone())
        try:
            self._x_BCT, self._t = self._solving.send(v_BCT)
        except StopIteration as end:
            self._window = None
            clean_BCT: Tensor = end.value
            return clean_BCT[:, :, :settled].clone()
        return None


def denoise(lanes: Sequence[Lane], evaluator: Evaluator, progress: Callable[[int], None] | None = None) -> Iterator[tuple[Lane, Tensor]]:
    """Moves lanes step by step, as many at a time as the evaluator has slots for, and yields each window's settled frames with its lane.
    A lane whose windows are done makes room for the next.

    Lanes may be at different steps and of different requests; what a lane yields does not depend on the others. progress: called after
    each step with how many lanes took it; what it raises ends the work.
    """
    waiting, active = deque(lanes), list[Lane]()
    while waiting or active:
        while waiting and (not active or sum(lane.width for lane in active) + waiting[0].width <= evaluator.slots):
            active.append(waiting.popleft())
        asked = [lane.evaluations() for lane in active]
        answers = iter(evaluator([evaluation for of_lane in asked for evaluation in of_lane]))
        settled = [(lane, lane.advance([next(answers) for _ in of_lane])) for lane, of_lane in zip(active, asked, strict=True)]
        active = [lane for lane in active if not lane.done]
        if progress is not None:
            progress(len(asked))
        yield from ((lane, settled_BCT) for lane, settled_BCT in settled if settled_BCT is not None)
