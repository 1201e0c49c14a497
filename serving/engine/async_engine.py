"""From the threads of an engine to coroutines: one request as a stream of messages, for a model replica or an engine in this process."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import copy_context
from typing import Any

from infra.audio.decoders import Decoders
from infra.audio.files import AudioError
from model.threads import one_thread_workers
from serving.engine.door import DECODED_AT_A_TIME, Door
from serving.engine.engine import Call, CancelledRequestError, DeadlineError, Engine, FieldError
from serving.messages import Message
from serving.observe import tracing
from serving.observe.tracing import Origin, Tracer
from serving.problems import audio_problem, deadline_problem, fields_problem, unknown_model
from serving.schema import AccompanimentRequest, AccompanimentResult, FieldFault, ModelInfo, RequestProgress

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.25


class Replies:
    """An engine's answers, with a thread for each request that is in work."""

    def __init__(self, engine: Engine, decoders: Decoders, *, concurrent: int, tracer: Tracer | None = None) -> None:
        """decoders: of this process, whatever engines it has. tracer: of a process that requests come to with an `Origin`."""
        self.engine, self._door = engine, Door(engine, decoders)
        self._tracer = tracer
        self._threads = one_thread_workers(concurrent, "request")

    async def play(
        self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None, origin: Origin | None = None
    ) -> AsyncGenerator[Message, None]:
        """One request. A fault of the user's is a problem; ours is raised. Closed or cancelled, it ends within a step of denoising.
        origin: of a request from another process; one of this process has its id and its span in the context."""
        call = Call(timeout_s)
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[Message | Exception | None] = asyncio.Queue()

        def say(message: Message | Exception | None) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, message)

        def work() -> None:
            span = tracing.continued(self._tracer, "replica", origin)
            log.info("began", extra={"bytes_in": len(vocal)})
            facts, streams = dict[str, Any](), False
            try:
                call.look()
                for message in self._door.play(vocal, request, call):
                    if isinstance(message, AccompanimentResult):
                        facts, streams = _facts(message), message.more
                        if not streams:
                            log.info("answered", extra=facts)
                    say(message)
                if streams:
                    log.info("answered", extra=facts)
            except AudioError as error:
                log.info("refused", extra={"reason": type(error).__name__})
                say(audio_problem(error))
            except FieldError as error:
                log.info("refused", extra={"reason": type(error).__name__})
                say(fields_problem([FieldFault(field=error.field, message=error.message)]))
            except DeadlineError:
                log.info("late")
                span.fail("late")
                say(deadline_problem())
            except CancelledRequestError:
                log.info("cancelled")  # nobody listens any more
                span.note(cancelled=True)
            except Exception as error:  # ours: raised where the request is awaited, which logs its traceback
                log.warning("failed", extra={"reason": type(error).__name__})
                span.fail(type(error).__name__)
                say(error)
            finally:
                span.end()
                say(None)

        future = self._threads.submit(copy_context().run, work)
        told: RequestProgress | None = None
        try:
            while True:
                message: Message | Exception | None
                try:
                    async with asyncio.timeout(PROGRESS_EVERY_S):
                        message = await messages.get()
                except TimeoutError:
                    if future.cancelled():
                        raise RuntimeError("the engine was closed") from None
                    message = call.progress
                if message is None:
                    return
                if isinstance(message, Exception):
                    raise message
                if message != told:
                    yield message
                if not isinstance(message, RequestProgress) and call.progress != told:
                    message = call.progress
                    yield message
                if isinstance(message, RequestProgress):
                    told = message
        finally:
            call.cancel()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.engine.close()


def _facts(result: AccompanimentResult) -> dict[str, Any]:
    return {"model": result.model, "seed": result.seed, "vocal_s": result.duration_s, "stages": dataclasses.asdict(result.stages)}


class LocalBackend:
    """An engine in this process behind the HTTP application: for one machine without Ray, and for tests."""

    def __init__(self, engine: Engine, *, concurrent: int = 16) -> None:
        self._decoders = Decoders(DECODED_AT_A_TIME)
        self._replies = Replies(engine, self._decoders, concurrent=concurrent)

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        id = self._replies.engine.accompanist.checkpoint.name
        if request.model not in (None, id):
            yield unknown_model(request.model or "", [id])
            return
        async with aclosing(self._replies.play(vocal, request, timeout_s=timeout_s)) as messages:
            async for message in messages:
                yield message

    async def models(self) -> list[ModelInfo]:
        return [self._replies.engine.info()]

    async def not_ready(self) -> str | None:
        return None

    def close(self) -> None:
        """Ends the engine's threads and the decoders' processes."""
        self._replies.close()
        self._decoders.close()
