"""The HTTP interface, version 1: routes, headers and limits, over any backend that makes accompaniments.

Imports no torch: behind Ray Serve this runs in the ingress replicas, which only carry bytes.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

import model
from infra.errors import UserError
from infra.storage.place import Place
from serving import problems
from serving.http import openapi
from serving.http.admission import Gate, Keys
from serving.http.keeping import Keeper
from serving.http.openapi import RequestId
from serving.http.progress import Following, Tell, request_id
from serving.http.request_log import Account
from serving.http.sites import Sites
from serving.http.uploads import drop_upload, read_upload
from serving.messages import Backend, Message
from serving.observe import tracing
from serving.observe.metrics import Observer, Unobserved
from serving.observe.tracing import Tracer
from serving.problems import Problem, ProblemError
from serving.schema import (
    AccompanimentResult,
    FieldFault,
    Health,
    ModelList,
    RequestProgress,
)

PAGE = Path(__file__).parents[1] / "page"
# A demo vocal that ships with the weights, for whoever has none at hand.
EXAMPLE_VOCAL = Path(model.__file__).with_name("weights") / "samples" / "song-000102-vocal.ogg"
STREAM_CHUNK_BYTES = 64 * 1024
DEADLINE_SLACK_S = 1.0
# Refused uploads that are read to their end at a time: nobody fills the ingress by sending slowly what is refused anyway.
DROPPED_AT_A_TIME = 100
# A header holds ASCII on one line; of a model's name the rest, and "%", is percent-encoded UTF-8.
UNENCODED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".ogg": "audio/ogg",
}
# Scripts and styles are files of this service, never inline, and nothing is loaded from anywhere else.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Limits and keys of one HTTP ingress."""

    max_upload_bytes: int = 100 * 2**20
    upload_timeout_s: float = 120.0
    max_pending: int = 16
    """Requests that may be uploading, waiting or in work; beyond it 503."""
    max_pending_per_caller: int = 8
    """Of these, from one API key; beyond it 429. Without keys callers are not told apart."""
    request_timeout_s: float = 600.0
    """From the first byte; a caller may ask for less with X-Backline-Timeout-Seconds. Beyond it 504."""
    api_key_digests: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    """Without keys: names of this service in public DNS, and hosts of other pages that may ask it; "*" is any."""
    keep_requests: Place | None = None
    """Where every request's vocal, fields and answer are kept for debugging; nowhere by default."""
    echo_request_id: bool = True
    """Whether answers carry X-Request-Id; not where a proxy before this adds it, as Ray Serve's does."""

    def __post_init__(self) -> None:
        for name in ("max_upload_bytes", "upload_timeout_s", "max_pending", "max_pending_per_caller", "request_timeout_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, which is not positive: give a number above 0")


def create_app(backend: Backend, config: AppConfig, observer: Observer | None = None, tracer: Tracer | None = None) -> FastAPI:
    """The application; `backend` does the work, and `observer` and `tracer` are told of it."""
    keeper = Keeper(config.keep_requests) if config.keep_requests else None
    seen = observer or Unobserved()
    keys = Keys(config.api_key_digests, Sites(config.allowed_hosts))
    gate = Gate(max_pending=config.max_pending, max_per_caller=config.max_pending_per_caller)
    dropped = asyncio.Semaphore(DROPPED_AT_A_TIME)
    following = Following()
    keyed = openapi.security(keyed=bool(config.api_key_digests))
    app = FastAPI(
        title="backline",
        version=version("backline"),
        description="Takes a sung vocal and plays the band behind it.",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)

    @app.post(
        "/v1/accompaniments",
        tags=["version 1"],
        response_class=Response,
        operation_id="accompaniments",
        responses=openapi.accompaniment_answers(),
        openapi_extra=openapi.accompaniment(),
        dependencies=keyed,
    )
    async def accompaniments(request: Request) -> Response:
        """Play the band behind a vocal.

        With `stream`, audio of vocals longer than a window leaves window by window, as it is made; X-Backline-Fit and Server-Timing are
        those of its beginning then. X-Request-Id, where it is sent, is the id under which `GET /v1/progress/{id}` tells how far it is.
        """
        id = request_id(request.headers.get("x-request-id"))
        with ExitStack() as stack:
            account = Account(id, seen, tracer=tracer, traceparent=request.headers.get("traceparent"), keeper=keeper)
            start_s = stack.enter_context(account).start_s
            stack.callback(lambda: seen.pending(gate.pending))  # after the gate has let go
            place = stack.enter_context(ExitStack())
            try:
                with tracing.span("admission"):
                    caller = keys.caller(request.headers)
                    account.caller(caller)
                    place.enter_context(gate.admit(caller))
                    timeout_s = _timeout_s(request, config.request_timeout_s)
                seen.pending(gate.pending)
                tell = stack.enter_context(following.request(caller, id))
                with tracing.span("upload"):
                    try:
                        async with asyncio.timeout(timeout_s):
                            upload = await read_upload(request, max_bytes=config.max_upload_bytes, timeout_s=config.upload_timeout_s)
                    except TimeoutError as error:
                        raise ProblemError(problems.deadline_problem()) from error
            except ProblemError as refusal:
                place.close()
                if refusal.problem.status not in (408, 504) and not dropped.locked():
                    async with dropped:
                        await drop_upload(request, max_bytes=config.max_upload_bytes, timeout_s=config.upload_timeout_s)
                raise
            sent_s = time.monotonic()
            asked = upload.request
            if asked.seed is None:
                # Drawn here, so that another replica can make the same audio should the first one die.
                asked = asked.model_copy(update={"seed": secrets.randbelow(2**32)})
            account.accepted(replace(upload, request=asked))
            left_s = max(0.001, timeout_s - (sent_s - start_s))
            messages = backend.play(upload.vocal, asked, timeout_s=left_s)
            try:
                # The replica counts from when it gets the request; who waits on the way there is counted here.
                async with asyncio.timeout(left_s + DEADLINE_SLACK_S):
                    result = await _result(messages, tell)
            except TimeoutError:
                result = problems.deadline_problem()
            if isinstance(result, Problem):
                await messages.aclose()
                if result.status == 504:  # refusals at once say nothing of how fast places become free
                    gate.served()
                raise ProblemError(result)
            # Whatever the replica does not account for was waiting: for a free replica, or on the way there and back.
            queue_s = max(0.0, time.monotonic() - sent_s - result.stages.work_s)
            result = replace(result, stages=replace(result.stages, queue=queue_s))
            total_s = time.monotonic() - start_s
            headers = _headers(result, total_s) | ({"X-Request-Id": id} if config.echo_request_id else {})
            account.answered(result, total_s)
            if result.more:
                # The place at the gate is held until the last byte.
                return _Held(result, messages, headers=headers, held=stack.pop_all(), tell=tell, account=account, sent=gate.served)
            await messages.aclose()
            gate.served()
            account.complete()
            if asked.stream:
                return StreamingResponse(_chunks(result.audio), media_type=result.media_type, headers=headers)
            return Response(result.audio, media_type=result.media_type, headers=headers)

    @app.get(
        "/v1/progress/{id}",
        tags=["version 1"],
        response_model=RequestProgress,
        operation_id="progress",
        responses=openapi.problem_answers(401, 403, 404, 500),
        dependencies=keyed,
    )
    async def progress(request: Request, id: RequestId) -> RequestProgress:
        """How far a request is, by the X-Request-Id that it was sent with, and by the same key."""
        found = following.of(keys.caller(request.headers), id)
        if found is None:
            raise ProblemError(Problem(status=404, detail="no request with this id is known here; it was never sent, or is long done"))
        return found

    @app.get(
        "/v1/models",
        tags=["version 1"],
        response_model=ModelList,
        operation_id="models",
        responses=openapi.problem_answers(401, 403, 500, 503),
        dependencies=keyed,
    )
    async def models(request: Request) -> ModelList:
        """The models that this service answers with."""
        keys.caller(request.headers)
        return ModelList(models=await backend.models())

    @app.get("/healthz", tags=["operation"], response_model=Health, operation_id="healthz")
    async def healthz() -> Health:
        """This process is alive."""
        return Health(status="alive")

    @app.get("/readyz", tags=["operation"], response_model=Health, operation_id="readyz", responses=openapi.problem_answers(503))
    async def readyz() -> Health:
        """A vocal sent now would be answered."""
        reason = await backend.not_ready()
        if reason is not None:
            raise ProblemError(Problem(status=503, title="Not ready", detail=reason, retry_after_s=2))
        return Health(status="ready")

    parts = ((f"/page/{file.relative_to(PAGE).as_posix()}", file) for file in PAGE.rglob("*") if file.suffix in (".css", ".js"))
    pages = (("/", PAGE / "index.html"), ("/docs", PAGE / "docs.html"), ("/page/example.ogg", EXAMPLE_VOCAL))
    for path, file in (*pages, *parts):
        app.add_api_route(path, _page(file), methods=["GET", "HEAD"], include_in_schema=False)
    openapi.describe(app)
    return app


def _page(file: Path) -> Any:
    async def page() -> FileResponse:
        return FileResponse(file, media_type=PAGE_TYPES[file.suffix], headers=PAGE_HEADERS)

    return page


def _timeout_s(request: Request, most_s: float) -> float:
    """Seconds that the request may take in all. Raises ProblemError 422."""
    wanted = request.headers.get(openapi.TIMEOUT_HEADER)
    if wanted is None:
        return most_s
    try:
        seconds = math.nan if "_" in wanted else float(wanted)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        fault = FieldFault(field=openapi.TIMEOUT_HEADER, message=f"is {wanted[:20]!r}; give a number of seconds above 0")
        raise ProblemError(problems.fields_problem([fault]))
    return min(seconds, most_s)


async def _result(messages: AsyncIterator[Message], tell: Tell) -> AccompanimentResult | Problem:
    """The first message that is no progress; that is told."""
    async for message in messages:
        if isinstance(message, RequestProgress):
            tell(message)
        elif not isinstance(message, bytes):
            return message
    raise RuntimeError("the backend ended a request without a result")


class _Held(StreamingResponse):
    """A file that is sent as it is made; it lets go of what it holds when it ends, also when it never began."""

    def __init__(
        self,
        result: AccompanimentResult,
        messages: AsyncGenerator[Message, None],
        *,
        headers: dict[str, str],
        held: ExitStack,
        tell: Tell,
        account: Account,
        sent: Callable[[], None],
    ) -> None:
        """tell: of progress. account: one of those that are held. sent: called when all of it was."""
        super().__init__(self._bytes(result, messages), media_type=result.media_type, headers=headers)
        self._messages, self._held, self._tell, self._account, self._sent = messages, held, tell, account, sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._messages.aclose()

    async def _bytes(self, result: AccompanimentResult, messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
        yield result.audio
        async for message in messages:
            if isinstance(message, bytes):
                self._account.sent(message)
                yield message
            elif isinstance(message, RequestProgress):
                self._tell(message)
            elif isinstance(message, Problem):
                # It can only end the connection, so that no client takes the part for the whole.
                raise ProblemError(message)
        self._account.complete()
        self._sent()


def _headers(result: AccompanimentResult, total_s: float) -> dict[str, str]:
    return {
        "X-Backline-Model": quote(result.model, safe=UNENCODED),
        "X-Backline-Seed": str(result.seed),
        "X-Backline-Fit": result.fit_header(),
        "X-Backline-Candidate-Fits": result.candidate_fits_header(),
        "Server-Timing": f"{result.stages.server_timing()}, total;dur={1000 * total_s:.1f}",
        "Content-Disposition": f'inline; filename="{result.file_name}"',
        "X-Content-Type-Options": "nosniff",
    }


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), STREAM_CHUNK_BYTES):
        yield data[start : start + STREAM_CHUNK_BYTES]
