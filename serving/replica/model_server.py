"""A model replica: it holds engines, and answers with the one that is asked for.

Replicas of one model hold one. Where models share replicas, each holds a few (Ray Serve's multiplexing): Serve sends a request to a replica
that holds its model, and the one that was asked for least recently makes room for another, once it has ended what it has begun.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING

from ray import serve as ray_serve

from infra.audio.decoders import Decoders
from infra.errors import UserError
from model.errors import ModelError
from serving.config import ServeConfig
from serving.messages import Message
from serving.observe.metrics import ReplicaMetrics, Reporting
from serving.observe.tracing import Origin, Tracer
from serving.problems import Problem, deadline_problem
from serving.schema import AccompanimentRequest, ModelInfo, RequestProgress

if TYPE_CHECKING:
    from serving.engine.engine import Engine

log = logging.getLogger(__name__)

HUNG_EXIT = 70
LOOK_EVERY_S = 0.05
RETRY_AFTER_S = 5.0
SUSPECT_HEARD_S = 1.0
"""In which the ingress has heard, on a busy machine too, that the suspect before has ended and this one begins."""
MOST_FAILURES = 3
"""Failed steps in succession after which a replica's device is given up."""


class ModelServer:
    """Reads all its models' checkpoints first, and holds the first model; the others when they are asked for."""

    def __init__(self, config: ServeConfig, places: dict[str, str | None], most: int, reporting: Reporting) -> None:
        """places: of the models by their names; None is what ships, whatever this machine's BACKLINE_CHECKPOINT says. most: how many it
        holds, and one more while that makes room."""
        from model.checkpoint import SHIPPED_CHECKPOINT
        from serving.engine.door import DECODED_AT_A_TIME
        from serving.engine.load import EngineLoader

        self._tracer = reporting.begin("model")
        self._config, self._most = config, most
        self._places = {name: place or str(SHIPPED_CHECKPOINT) for name, place in places.items()}
        self._loader = EngineLoader(
            codec=config.codec,
            device=config.device,
            threads=config.replica_threads,
            max_duration_s=config.max_duration_s,
            max_audio_s=config.max_audio_s,
            hang_after_s=config.hang_after_s,
        )
        self._metrics = ReplicaMetrics()
        self._decoders = Decoders(DECODED_AT_A_TIME)
        self._decoders.start()
        self._first, *others = places
        self._held = {self._first: self._load(self._first)}
        self._infos = {self._first: self._held[self._first].engine.info()} | {
            name: self._loader.info(self._places[name]) for name in others
        }
        self._loads, self._suspects = asyncio.Lock(), asyncio.Lock()

        async def load(name: str) -> Claim:
            return Claim(await self._claimed(name))

        # Keeps the models that were asked for last, and tells Serve's routers which these are.
        self._of = ray_serve.multiplexed(max_num_models_per_replica=most)(load)

    async def play(
        self, model: str, vocal: bytes, request: AccompanimentRequest, timeout_s: float | None, origin: Origin
    ) -> AsyncGenerator[Message, None]:
        """One request to the model of this name; a fault of the user's is told as a problem."""
        began_s = time.monotonic()
        async with self._suspects if origin.suspect else nullcontext():
            if origin.suspect:
                yield RequestProgress(state="queued")  # should this replica die, it is known with which of them
                await asyncio.sleep(SUSPECT_HEARD_S)
            try:
                claim: Claim = await self._of(model)
            except (UserError, ModelError, OSError, RuntimeError):
                log.exception("%s could not be loaded", model, extra={"request_id": origin.request_id})
                yield Problem(status=503, title="Not ready", detail="the model could not be loaded", retry_after_s=RETRY_AFTER_S)
                return
            left_s = None if timeout_s is None else timeout_s - (time.monotonic() - began_s)
            if left_s is not None and left_s <= 0:
                yield deadline_problem()
                return
            async with aclosing(claim.held.play(vocal, request, left_s, origin)) as messages:
                async for message in messages:
                    yield message

    async def info(self, model: str) -> ModelInfo:
        return self._infos[model]

    async def check_health(self) -> None:
        for held in list(self._held.values()):
            stalled_s = held.engine.stalled_s()
            if stalled_s > self._config.hang_after_s:
                # Serve would let this replica finish what it has, for drain_s; but a device that hangs finishes nothing, and whoever waits
                # for it can be answered elsewhere. So it ends as a killed one does.
                log.critical("no work was done for %.0f s: this replica ends, and its requests are asked again elsewhere", stalled_s)
                os._exit(HUNG_EXIT)
            if held.engine.denoiser.failures >= MOST_FAILURES:
                raise RuntimeError(f"the network failed {held.engine.denoiser.failures} times in succession")

    async def _claimed(self, name: str) -> "Held":
        while True:
            loading = asyncio.ensure_future(self._there(name))
            try:
                held = await asyncio.shield(loading)
            except asyncio.CancelledError:
                # Whoever asked is gone, and the load goes on: it is for the next who asks, or makes room again.
                loading.add_done_callback(_make_room)
                raise
            if held.claim():
                return held

    async def _there(self, name: str) -> "Held":
        async with self._loads:
            held = self._held.get(name)
            if held is None or held.ended:
                if len(self._held) >= self._most:
                    for other in list(self._held.values()):
                        other.close_if_idle()  # what Serve does not keep: nobody has asked for it yet, or any longer
                # The one that was asked for least recently makes room; it may have requests to end.
                while len(self._held) > self._most or name in self._held:
                    await asyncio.sleep(LOOK_EVERY_S)
                held = self._held[name] = await asyncio.to_thread(self._load, name)
            return held

    def _load(self, name: str) -> "Held":
        engine = self._loader.engine(self._places[name])
        self._metrics.watch(engine.denoiser, engine.accompanist.checkpoint.name)
        return Held(engine, self._decoders, self._config.concurrent, self._tracer, closed=lambda: self._held.pop(name))


def _make_room(loading: "asyncio.Future[Held]") -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close_if_idle()


class Claim:
    """What Serve keeps of a model, once each time that it was asked for anew: the engine may be kept again while it ends its requests."""

    def __init__(self, held: "Held") -> None:
        self.held = held
        self._let_go = False

    def __del__(self) -> None:
        """Serve calls this, in another thread, when it makes room for another model; Python may do so again."""
        if not self._let_go:
            self._let_go = True
            self.held.release()


class Held:
    """An engine that stays as long as Serve keeps its model, and then until its last request has ended. For any threads."""

    def __init__(self, engine: "Engine", decoders: Decoders, concurrent: int, tracer: Tracer | None, closed: Callable[[], object]) -> None:
        """closed: told when the engine is closed, in a thread of its own."""
        from serving.engine.async_engine import Replies

        self._lock, self._closed = threading.Lock(), closed
        self._claims, self._asked, self.ended = 0, 0, False
        self.engine = engine
        self._replies = Replies(engine, decoders, concurrent=concurrent, tracer=tracer)

    def claim(self) -> bool:
        """Serve keeps the model from now on; not where the engine is being closed already."""
        with self._lock:
            self._claims += not self.ended
            return not self.ended

    def release(self) -> None:
        """Serve keeps it no longer: the other side of `claim`."""
        with self._lock:
            self._claims -= 1
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Closes the engine if Serve does not keep its model and nobody asks it."""
        with self._lock:
            if self.ended or self._claims > 0 or self._asked:
                return
            self.ended = True
        # In a thread of its own: a step may be under way, and nobody else shall wait for it.
        threading.Thread(target=self._close, name="close", daemon=True).start()

    async def play(
        self, vocal: bytes, request: AccompanimentRequest, timeout_s: float | None, origin: Origin
    ) -> AsyncGenerator[Message, None]:
        with self._lock:
            self._asked += 1
        try:
            async with aclosing(self._replies.play(vocal, request, timeout_s=timeout_s, origin=origin)) as messages:
                async for message in messages:
                    yield message
        finally:
            with self._lock:
                self._asked -= 1
            self.close_if_idle()

    def _close(self) -> None:
        self._replies.close()
        self.engine.accompanist.evaluator.close()
        self._closed()
        log.info("%s has made room for another model", self.engine.accompanist.checkpoint.name)
