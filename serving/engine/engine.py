"""One vocal to one band, without Ray, HTTP or files: samples in, samples out, for many requests at a time.

Each request has a thread of its caller's, which asks the codec; the network is asked by one thread for all of them
(`serving/engine/scheduler.py`). Files become samples, and samples files, at its door (`serving/engine/door.py`).

Shape legend: C channels (2), N samples at 44.1 kHz.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from infra.audio.limits import MAX_DURATION_S
from infra.errors import UserError
from model.accompany import Accompaniment, Accompanist, GenerationConfig, StageClock, check_known
from model.checkpoint import Checkpoint
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.errors import ControlError
from model.inference.windows import Lane
from model.metrics.fit import Fit as ModelFit
from model.metrics.fit import Listener
from serving.engine.audio_budget import Room
from serving.engine.scheduler import Denoiser
from serving.engine.sign_of_life import SignOfLife
from serving.observe import tracing
from serving.schema import AccompanimentRequest, Fit, ModelInfo, RequestProgress, StageSeconds

log = logging.getLogger(__name__)

# Measured, of a vocal in work: what EngineConfig.max_audio_s counts in.
BYTES_A_SECOND = 1.5e6
# A stream's headers tell the fit of what is heard so far, at least this much, if the first window has it.
STREAM_FIT_S = 8.0


class CancelledRequestError(Exception):
    """The caller went away before the end."""


class DeadlineError(Exception):
    """The time that the caller gave was over before the end."""


class FieldError(UserError):
    """A field asks for what this model does not do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


@contextmanager
def _naming_its_field() -> Iterator[None]:
    """A control that cannot be followed is a fault of the request's field."""
    try:
        yield
    except ControlError as error:
        raise FieldError(error.control, error.message) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """What an engine plays to a vocal: audio_CN (2, N) float32 at the vocal's level, and what is said of it."""

    audio_CN: np.ndarray
    more: bool = False
    """Whether `audio_CN` is only the beginning; fit and stages are those of it then."""
    seed: int
    fit: Fit
    candidate_fits: tuple[Fit, ...]
    stages: StageSeconds


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of one engine."""

    max_duration_s: float = 600.0
    max_audio_s: float = 1800.0
    """Seconds of vocals in work at a time, about 1.5 MB each, to which long vocals with many steps and candidates add; requests beyond
    them wait, decoded (0.35 MB a second)."""
    hang_after_s: float = 300.0
    """An engine that has a request and does no work on it for so long counts as hung (a device that does not answer)."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_duration_s <= MAX_DURATION_S:
            raise UserError(f"max_duration_s is {self.max_duration_s}, which is not within 1 to {MAX_DURATION_S:g}: give seconds")
        for name in ("max_audio_s", "hang_after_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, which is not positive: give seconds")


class Call:
    """A request that is under way, as its caller may follow and end it. For any thread."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """timeout_s: from now."""
        self._cancelled = threading.Event()
        self._ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._steps_done, self._steps, self._since_s, self._began_s = 0, 0, time.monotonic(), 0.0
        self._finished = False

    def cancel(self) -> None:
        """Ends the request within a step of denoising."""
        self._cancelled.set()

    def look(self) -> None:
        """Raises CancelledRequestError or DeadlineError where the request should end."""
        if self._cancelled.is_set():
            raise CancelledRequestError
        if self._ends_s is not None and time.monotonic() > self._ends_s:
            raise DeadlineError

    @property
    def progress(self) -> RequestProgress:
        """How far it is."""
        state: Literal["queued", "running", "done"] = "done" if self._finished else "running" if self._began_s else "queued"
        return RequestProgress(state=state, steps_done=self._steps_done, steps=self._steps)

    @property
    def waited_s(self) -> float:
        """Seconds between being ready for the first step and its end."""
        return max(0.0, self._began_s - self._since_s)

    def ready(self) -> None:
        """The vocal is encoded; what follows is waiting for the first step."""
        self._since_s = time.monotonic()

    def stepped(self, done: int, steps: int) -> None:
        """Called by the model after each step, and while others' steps are made; raises what `look` raises."""
        self._steps_done, self._steps = done, steps
        if done and not self._began_s:
            self._began_s = time.monotonic()
        self.look()

    def end(self) -> None:
        self._finished = True


class _TracedClock(StageClock):
    """The model's clock, with a span of each stage where the request is traced."""

    def __init__(self, engine: "Engine", call: Call) -> None:
        super().__init__(engine.accompanist.device)
        self._call, self._waited = call, False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        since_s = time.monotonic()
        try:
            with super().stage(name):
                yield
        finally:
            end_s = time.monotonic()
            if name == "diffuse" and self._call.waited_s and not self._waited:
                # It began with waiting for the first step.
                self._waited = True
                first_s = min(end_s, since_s + self._call.waited_s)
                tracing.passed("wait", since_s, first_s)
                since_s = first_s
            tracing.passed("denoise" if name == "diffuse" else name, since_s, end_s)


class Engine:
    """Answers requests from several threads, see above.

    A request's noise comes from its own seed, and what it is evaluated beside changes no bit: its audio depends on nobody else's.
    """

    def __init__(self, accompanist: Accompanist, config: EngineConfig | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, from which `stalled_s` is told."""
        self.accompanist = accompanist
        self.config = config or EngineConfig()
        self.denoiser = Denoiser(accompanist.evaluator)
        self._room = Room(self.config.max_audio_s)
        self._calls: set[Call] = set()
        self._life = SignOfLife(clock)

    def close(self) -> None:
        """Ends the engine's thread; requests in work end with an error."""
        self.denoiser.close()

    def generate(self, vocal_CN: np.ndarray, request: AccompanimentRequest, call: Call | None = None) -> Band:
        """The band for a vocal (2, N) float32 at 44.1 kHz. Whole, also where the request says `stream`.

        Raises FieldError (the request), ModelError (the model, say one that diverged), CancelledRequestError or DeadlineError (within a
        denoising step).
        """
        (band,) = self.play(vocal_CN, request.model_copy(update={"stream": False}), call)
        assert isinstance(band, Band)
        return band

    def play(
        self, vocal_CN: np.ndarray, request: AccompanimentRequest, call: Call | None = None
    ) -> Generator[Band | np.ndarray, None, None]:
        """What `generate` gives, and where a stream is wanted and the vocal is longer than a window, in pieces: the band's beginning with
        `more`, then samples (2, n). Its fit and times are those of what had been made by then. Errors as there, between pieces too. Until
        it is closed, the vocal counts as audio in work.
        """
        call = call or Call()
        self.check(request)
        with _naming_its_field():
            request.controls().within(vocal_CN.shape[1] / SAMPLE_RATE_HZ)
        start_s = time.monotonic()
        self._calls.add(call)
        try:
            with self._room.take(self._room_s(vocal_CN.shape[1], request), call.look):
                ready_s = time.monotonic()
                tracing.passed("wait", start_s, ready_s)
                stages = StageSeconds(queue=ready_s - start_s)
                if request.stream and self._streams(vocal_CN, request):
                    yield from self._stream(vocal_CN, request, call, stages)
                else:
                    yield self._whole(vocal_CN, request, call, stages)
        finally:
            call.end()
            self._calls.discard(call)

    def _room_s(self, samples: int, request: AccompanimentRequest) -> float:
        """Seconds of a vocal, and what its candidates keep from window to window, as the seconds that take as much."""
        config = GenerationConfig(candidates=request.candidates, steps=request.steps)
        return samples / SAMPLE_RATE_HZ + self.accompanist.kept_bytes(samples, config) / BYTES_A_SECOND

    def info(self) -> ModelInfo:
        """What `GET /v1/models` says of this model."""
        return describe(self.accompanist.checkpoint, self.config)

    @property
    def calls(self) -> int:
        """Requests that are in work or wait."""
        return len(self._calls)

    def stalled_s(self) -> float:
        """Seconds for which a request, or a step of the network, has stood still; 0 when nothing is asked."""
        return max(self.denoiser.stalled_s(), self._life.stalled_s())

    def check(self, request: AccompanimentRequest) -> None:
        """FieldError where this model does not do what is asked."""
        most = self.accompanist.checkpoint.network.diffusion_steps
        if request.steps is not None and request.steps > most:
            raise FieldError("steps", f"is {request.steps}, more than the {most} of this model's noise schedule; give {most} or fewer")
        with _naming_its_field():
            check_known(request.controls(), self.accompanist.checkpoint.network)

    def _streams(self, vocal_CN: np.ndarray, request: AccompanimentRequest) -> bool:
        """Whether sound can leave before the end: of one window, of the best of several, and of a ZIP it cannot."""
        longer = vocal_CN.shape[1] > self.accompanist.window_frames * HOP_SAMPLES
        return longer and request.candidates == 1 and request.output != "stems"

    def _pieces(
        self,
        vocal_CN: np.ndarray,
        request: AccompanimentRequest,
        call: Call,
        clock: StageClock,
        went_on: Callable[[], None],
        *,
        first_soon: bool,
    ) -> Generator[np.ndarray, None, Accompaniment]:
        """The accompaniment's pieces (2, n), then the whole; the one denoiser asks the network."""
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        config = GenerationConfig(
            seed=seed,
            candidates=request.candidates,
            steps=request.steps,
            guidance=request.guidance,
            controls=request.controls(),
        )

        own_thread, waits = threading.get_ident(), False

        @contextmanager
        def waiting() -> Iterator[None]:
            nonlocal waits
            waits = True
            try:
                yield
            finally:
                waits = False
                went_on()

        def stepped(done: int, steps: int) -> None:
            # The denoiser tells this after others' steps, too: a sign of life for who waits for its turn, not for who asks the codec.
            if waits or threading.get_ident() == own_thread:
                went_on()
            call.stepped(done, steps)

        def denoise(lanes: Sequence[Lane], progress: Callable[[int], None]) -> Iterator[tuple[Lane, Tensor]]:
            for lane in lanes:
                lane.prepare()
                went_on()
                call.look()
            call.ready()
            return self.denoiser.denoise(lanes, progress, first_soon=first_soon, waiting=waiting)

        pieces = self.accompanist.stream(vocal_CN, config, progress=stepped, denoise=denoise, clock=clock)
        while True:
            try:
                piece_CN = next(pieces)
            except StopIteration as end:
                made: Accompaniment = end.value
                return made
            went_on()
            call.look()
            yield piece_CN

    def _whole(self, vocal_CN: np.ndarray, request: AccompanimentRequest, call: Call, stages: StageSeconds) -> Band:
        clock = _TracedClock(self, call)
        with self._life.inside() as went_on:
            pieces = self._pieces(vocal_CN, request, call, clock, went_on, first_soon=False)
            while True:
                try:
                    next(pieces)
                except StopIteration as end:
                    made: Accompaniment = end.value
                    break
        return Band(
            audio_CN=made.audio_CN,
            seed=made.seed,
            fit=_fit(made.fit),
            candidate_fits=tuple(_fit(fit) for fit in made.candidate_fits),
            stages=_stages(stages, clock.stage_s, call.waited_s),
        )

    def _stream(self, vocal_CN: np.ndarray, request: AccompanimentRequest, call: Call, stages: StageSeconds) -> Iterator[Band | np.ndarray]:
        clock = _TracedClock(self, call)
        if request.seed is None:
            request = request.model_copy(update={"seed": secrets.randbelow(2**32)})
        with self._life.inside() as went_on:
            pieces = self._pieces(vocal_CN, request, call, clock, went_on, first_soon=True)
            heard = [next(pieces)]
            while sum(piece_CN.shape[1] for piece_CN in heard) < STREAM_FIT_S * SAMPLE_RATE_HZ:
                heard.append(next(pieces))
            heard_CN = np.concatenate(heard, axis=1)
            with clock.stage("fit"):
                fit = _fit(Listener(vocal_CN[:, : heard_CN.shape[1]]).fit(heard_CN))
            stages = _stages(stages, clock.stage_s, call.waited_s)
            yield Band(audio_CN=heard_CN, more=True, seed=request.seed or 0, fit=fit, candidate_fits=(fit,), stages=stages)
            left = vocal_CN.shape[1] - heard_CN.shape[1]
            while left > 0:
                piece_CN = next(pieces)
                left -= piece_CN.shape[1]
                yield piece_CN
            pieces.close()  # after the last piece it would listen to the whole, which nobody reads any more


def describe(checkpoint: Checkpoint, config: EngineConfig) -> ModelInfo:
    """What `GET /v1/models` says of a checkpoint that answers under these limits."""
    return ModelInfo(
        id=checkpoint.name,
        step=checkpoint.step,
        parameters=sum(tensor.numel() for tensor in checkpoint.state.values()),
        codec=checkpoint.codec.id,
        dataset=checkpoint.dataset.uri,
        dataset_digest=checkpoint.dataset.digest,
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_duration_s=config.max_duration_s,
        default_steps=checkpoint.sampling.steps,
        default_guidance=checkpoint.sampling.guidance,
        controls=list(checkpoint.network.controls),
        styles=list(checkpoint.network.styles),
        streams_windows=True,
    )


def _fit(fit: ModelFit) -> Fit:
    return Fit(harmony=fit.harmony, rhythm=fit.rhythm, overall=fit.overall, leakage=fit.leakage)


def _stages(before: StageSeconds, model_s: Mapping[str, float], waited_s: float) -> StageSeconds:
    """What the model's clock counted as denoising began with waiting for the first step."""
    waited_s = min(waited_s, model_s["diffuse"])
    return StageSeconds(
        queue=before.queue + waited_s,
        encode=model_s["encode"],
        diffuse=model_s["diffuse"] - waited_s,
        fit=model_s["fit"],
        render=model_s["render"],
    )
