"""From the threads of an engine to coroutines: one request as a stream of messages, for a model replica or an engine in this process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from infra.audio_files import AudioError
from model.workers import one_thread_workers
from serving.app import Message
from serving.engine import Call, CancelledRequestError, DeadlineError, Engine
from serving.problems import audio_problem, deadline_problem, unknown_model
from serving.schema import AccompanimentRequest, ModelInfo, RequestProgress

PROGRESS_EVERY_S = 0.25


class Replies:
    """An engine's answers, with a thread for each request that is in work."""

    def __init__(self, engine: Engine, *, concurrent: int) -> None:
        self.engine = engine
        self._threads = one_thread_workers(concurrent, "request")

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        """One request. A fault of the user's is a problem; ours is raised. Closed or cancelled, it ends within a step of denoising."""
        call = Call(timeout_s)
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[Message | Exception | None] = asyncio.Queue()

        def say(message: Message | Exception | None) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, message)

        def work() -> None:
            try:
                call.look()
                for message in self.engine.play(vocal, request, call):
                    say(message)
            except AudioError as error:
                say(audio_problem(error))
            except DeadlineError:
                say(deadline_problem())
            except CancelledRequestError:
                pass  # nobody listens any more
            except Exception as error:  # ours: raised where the request is awaited
                say(error)
            finally:
                say(None)

        future = self._threads.submit(work)
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


class LocalBackend:
    """An engine in this process behind the HTTP application: for one machine without Ray, and for tests."""

    def __init__(self, engine: Engine, *, concurrent: int = 16) -> None:
        self._replies = Replies(engine, concurrent=concurrent)

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
