"""The real application with a real tiny engine behind real HTTP in this process, which a test can hold up and make busy."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.engine.async_engine import LocalBackend
from serving.engine.engine import Engine
from serving.http.app import AppConfig, create_app
from serving.messages import Message
from serving.problems import Problem, ProblemError
from serving.schema import AccompanimentRequest, ModelInfo


class Backend(LocalBackend):
    """The engine in this process. `refusals` are answered first; while `hold` is clear, requests wait; `others` are models, too."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.hold = threading.Event()
        self.rest()

    def rest(self) -> None:
        """As it is at first."""
        self.refusals: list[Problem] = []
        self.asked: list[AccompanimentRequest] = []
        self.others: list[str] = []
        self.asleep = 0
        """How often it is asked for its models in vain first."""
        self.hold.set()

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        self.asked.append(request)
        if self.refusals:
            yield self.refusals.pop(0)
            return
        while not self.hold.is_set():
            await asyncio.sleep(0.02)
        async for message in super().play(vocal, request, timeout_s=timeout_s):
            yield message

    async def models(self) -> list[ModelInfo]:
        if self.asleep:
            self.asleep -= 1
            raise ProblemError(Problem(status=503, title="Not ready", detail="it wakes", retry_after_s=1))
        (info,) = await super().models()
        return [info, *(info.model_copy(update={"id": name}) for name in self.others)]


class Service:
    """`progress` is what `/v1/progress` answers, whatever the application has there: the page is tested here, not the count of steps."""

    def __init__(self, backend: Backend, config: AppConfig) -> None:
        self.backend = backend
        self._app: ASGIApp = create_app(backend, config)
        self.url = ""
        self.rest()

    def rest(self) -> None:
        """As it is at first, with its backend."""
        self.backend.rest()
        self.progress: dict[str, object] | None = {"state": "running", "steps_done": 5, "steps": 20, "queue_position": None}
        self.asked_progress: list[str] = []
        self.odd_only = False
        """Every other question for progress is answered as by an ingress that does not know the request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope.get("path", "").startswith("/v1/progress/"):
            await self._app(scope, receive, send)
            return
        self.asked_progress.append(scope["path"].rpartition("/")[2])
        progress = None if self.odd_only and len(self.asked_progress) % 2 == 0 else self.progress
        status = 404 if progress is None else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(progress or {}).encode()})


@contextmanager
def serve(service: Service) -> Iterator[Service]:
    server = uvicorn.Server(uvicorn.Config(service, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    service.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        service.backend.hold.set()
        server.should_exit = server.force_exit = True
        thread.join(10)
