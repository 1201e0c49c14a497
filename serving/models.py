"""A model replica: it holds engines, and answers with the one that is asked for.

Replicas of one model hold one. Where models share replicas, each holds a few (Ray Serve's multiplexing): Serve sends a request to a replica
that holds its model, and the one that was asked for least recently makes room for another.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from ray import serve as ray_serve

from serving.app import Message
from serving.config import ServeConfig
from serving.schema import AccompanimentRequest, ModelInfo
from serving.telemetry import ReplicaMetrics, Reporting
from serving.tracing import Origin, Tracer

if TYPE_CHECKING:
    from serving.engine import Engine

log = logging.getLogger(__name__)

HUNG_EXIT = 70
MOST_FAILURES = 3
"""Failed steps in succession after which a replica's device is given up."""


class ModelServer:
    """Checks all its models' checkpoints first, and loads as many as it holds; the others when they are asked for."""

    def __init__(self, config: ServeConfig, places: dict[str, str | None], most: int, reporting: Reporting) -> None:
        """places: of the models by their names. most: how many it holds."""
        from serving.loading import EngineLoader

        self._tracer = reporting.begin("model")
        self._config, self._places = config, places
        self._loader = EngineLoader(
            codec=config.codec,
            device=config.device,
            threads=config.replica_threads,
            max_duration_s=config.max_duration_s,
            max_audio_s=config.max_audio_s,
            hang_after_s=config.hang_after_s,
        )
        self._metrics = ReplicaMetrics()
        self._infos = {name: self._loader.info(place) for name, place in places.items()}
        self._held = set[_Held]()
        loaded = {name: self._load(name) for name in list(places)[:most]}

        async def load(name: str) -> _Held:
            return loaded.pop(name) if name in loaded else await asyncio.to_thread(self._load, name)

        self._of = ray_serve.multiplexed(max_num_models_per_replica=most)(load)

    async def play(
        self, model: str, vocal: bytes, request: AccompanimentRequest, timeout_s: float | None, origin: Origin
    ) -> AsyncGenerator[Message, None]:
        """One request to the model of this name; a fault of the user's is told as a problem."""
        held: _Held = await self._of(model)
        async with aclosing(held.play(vocal, request, timeout_s, origin)) as messages:
            async for message in messages:
                yield message

    async def info(self, model: str) -> ModelInfo:
        return self._infos[model]

    async def check_health(self) -> None:
        for held in list(self._held):
            stalled_s = held.engine.stalled_s()
            if stalled_s > self._config.hang_after_s:
                # Serve would let this replica finish what it has, for drain_s; but a device that hangs finishes nothing, and whoever waits
                # for it can be answered elsewhere. So it ends as a killed one does.
                log.critical("no denoising step for %.0f s: this replica ends, and its requests are asked again elsewhere", stalled_s)
                os._exit(HUNG_EXIT)
            if held.engine.denoiser.failures >= MOST_FAILURES:
                raise RuntimeError(f"the network failed {held.engine.denoiser.failures} times in succession")

    def _load(self, name: str) -> "_Held":
        engine = self._loader.engine(self._places[name])
        held = _Held(engine, self._config.concurrent, self._held, self._tracer)
        self._metrics.watch(engine.denoiser, engine.accompanist.checkpoint.name)
        return held


class _Held:
    """An engine that stays until it has been thrown out and its last request has ended."""

    def __init__(self, engine: "Engine", concurrent: int, among: "set[_Held]", tracer: Tracer | None) -> None:
        from serving.replies import Replies

        self.engine = engine
        self._replies = Replies(engine, concurrent=concurrent, tracer=tracer)
        self._among, self._asked, self._out, self._lock = among, 0, False, threading.Lock()
        among.add(self)

    async def play(
        self, vocal: bytes, request: AccompanimentRequest, timeout_s: float | None, origin: Origin
    ) -> AsyncGenerator[Message, None]:
        self._count(1)
        try:
            async with aclosing(self._replies.play(vocal, request, timeout_s=timeout_s, origin=origin)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._count(-1)

    def __del__(self) -> None:
        """Serve calls this, in another thread, when it throws a model out."""
        with self._lock:
            self._out = True
        self._count(0)

    def _count(self, change: int) -> None:
        with self._lock:
            self._asked += change
            over = self._out and not self._asked and self in self._among
            if over:
                self._among.discard(self)
        if over:
            log.info("%s makes room for another model", self.engine.accompanist.checkpoint.name)
            self._replies.close()
