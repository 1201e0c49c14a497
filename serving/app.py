"""The HTTP interface, version 1: routes, headers and limits, over any backend that makes accompaniments.

Imports no torch: behind Ray Serve this runs in the ingress replicas, which only carry bytes.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.security import APIKeyHeader, HTTPBearer

from infra.errors import UserError
from serving import problems
from serving.admission import Gate, Keys
from serving.problems import Problem, ProblemError
from serving.schema import AccompanimentRequest, AccompanimentResult, Health, ModelInfo, ModelList, ProblemDetails
from serving.uploads import drop_upload, read_upload

PAGE = Path(__file__).parent / "page"
STREAM_CHUNK_BYTES = 64 * 1024
# Only said in the OpenAPI document; `Keys` does the checking, before the body is read.
KEYED = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
PROBLEM_MEDIA_TYPE = "application/problem+json"
PAGE_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
# Scripts and styles are files of this service, never inline, and nothing is loaded from anywhere else.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Backend(Protocol):
    """Whatever makes accompaniments: an engine in this process, or model replicas behind Ray Serve."""

    async def generate(self, vocal: bytes, request: AccompanimentRequest) -> AccompanimentResult | Problem: ...

    async def models(self) -> list[ModelInfo]:
        """Raises ProblemError 503 while there is none."""

    async def not_ready(self) -> str | None:
        """Why nothing can be answered now; None when it can."""


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Limits and keys of one HTTP ingress."""

    max_upload_bytes: int = 100 * 2**20
    upload_timeout_s: float = 120.0
    max_pending: int = 16
    """Requests that may be uploading, waiting or in work; beyond it 503."""
    max_pending_per_caller: int = 8
    """Of these, from one API key; beyond it 429. Without keys callers are not told apart."""
    slots: int = 1
    """Requests that the model replicas work on at a time, to tell Retry-After."""
    api_key_digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_upload_bytes", "upload_timeout_s", "max_pending", "max_pending_per_caller", "slots"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, which is not positive: give a number above 0")


def create_app(backend: Backend, config: AppConfig) -> FastAPI:
    """The application; `backend` does the work."""
    keys = Keys(config.api_key_digests)
    gate = Gate(max_pending=config.max_pending, max_per_caller=config.max_pending_per_caller, slots=config.slots)
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
        responses=_answers(),
        openapi_extra=_form(),
        dependencies=KEYED,
    )
    async def accompaniments(request: Request) -> Response:
        """Play the band behind a vocal.

        With `stream` the finished file is sent in chunks; today's models make the whole accompaniment before its first sound
        (`streams_windows` in `GET /v1/models`).
        """
        start_s = time.monotonic()
        try:
            with gate.admit(keys.caller(request.headers)):
                upload = await read_upload(request, max_bytes=config.max_upload_bytes, timeout_s=config.upload_timeout_s)
                sent_s = time.monotonic()
                result = await backend.generate(upload.vocal, upload.request)
        except ProblemError as refusal:
            if refusal.problem.status != 408:
                await drop_upload(request, max_bytes=config.max_upload_bytes, timeout_s=config.upload_timeout_s)
            raise
        if isinstance(result, Problem):
            raise ProblemError(result)
        # Whatever the replica does not account for was waiting: for a free replica, or on the way there and back.
        queue_s = max(0.0, time.monotonic() - sent_s - result.stages.work_s)
        result = replace(result, stages=replace(result.stages, queue=queue_s))
        gate.served(result.stages.work_s)
        return _answer(result, stream=upload.request.stream, total_s=time.monotonic() - start_s)

    @app.get("/v1/models", tags=["version 1"], response_model=ModelList, responses=_problems(401, 503), dependencies=KEYED)
    async def models(request: Request) -> ModelList:
        """The models that this service answers with."""
        keys.caller(request.headers)
        return ModelList(models=await backend.models())

    @app.get("/healthz", tags=["operation"], response_model=Health)
    async def healthz() -> Health:
        """This process is alive."""
        return Health(status="alive")

    @app.get("/readyz", tags=["operation"], response_model=Health, responses=_problems(503))
    async def readyz() -> Health:
        """A vocal sent now would be answered."""
        reason = await backend.not_ready()
        if reason is not None:
            raise ProblemError(Problem(status=503, title="Not ready", detail=reason, retry_after_s=2))
        return Health(status="ready")

    parts = ((f"/page/{file.name}", file.name) for file in PAGE.iterdir() if file.suffix in (".css", ".js"))
    for path, name in (("/", "index.html"), ("/docs", "docs.html"), *parts):
        app.add_api_route(path, _page(name), methods=["GET", "HEAD"], include_in_schema=False)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """The OpenAPI document says what is really answered: problems as problems, not also as plain JSON."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                if PROBLEM_MEDIA_TYPE in answer.get("content", {}):
                    answer["content"].pop("application/json", None)


def _page(name: str) -> Any:
    async def page() -> FileResponse:
        return FileResponse(PAGE / name, media_type=PAGE_TYPES[Path(name).suffix], headers=PAGE_HEADERS)

    return page


def _answer(result: AccompanimentResult, *, stream: bool, total_s: float) -> Response:
    headers = {
        "X-Backline-Model": result.model,
        "X-Backline-Seed": str(result.seed),
        "X-Backline-Fit": result.fit_header(),
        "X-Backline-Candidate-Fits": result.candidate_fits_header(),
        "Server-Timing": f"{result.stages.server_timing()}, total;dur={1000 * total_s:.1f}",
        "Content-Disposition": f'inline; filename="{result.file_name}"',
        "X-Content-Type-Options": "nosniff",
    }
    if stream:
        return StreamingResponse(_chunks(result.audio), media_type=result.media_type, headers=headers)
    return Response(result.audio, media_type=result.media_type, headers=headers)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), STREAM_CHUNK_BYTES):
        yield data[start : start + STREAM_CHUNK_BYTES]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        # `model` puts the schema into the components; it is answered as a problem, not as plain JSON.
        answers[status] = {"model": ProblemDetails, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
        if status in (429, 503):
            answers[status]["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return answers


def _answers() -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds = ("audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "application/zip")
    headers = {
        "X-Backline-Model": "The model that played",
        "X-Backline-Seed": "The seed that was used",
        "X-Backline-Fit": "JSON: harmony, rhythm, overall, leakage, each 0 to 1",
        "X-Backline-Candidate-Fits": "JSON list: the same of every candidate",
        "Server-Timing": "Milliseconds of queue, decode, encode, diffuse, fit, render, total",
    }
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    audio = {"description": "The audio, or a ZIP of stems", "content": dict.fromkeys(kinds, binary), "headers": described}
    return {200: audio, **_problems(400, 401, 408, 413, 415, 422, 429, 500, 503)}


def _form() -> dict[str, Any]:
    fields = AccompanimentRequest.model_json_schema()
    vocal = {"type": "string", "format": "binary", "description": "The vocal: WAV, FLAC, MP3, OGG, M4A or WebM"}
    # A form has no null: a field that is not wanted is left out.
    properties = {name: _without_null(field) for name, field in fields["properties"].items()}
    schema = {"type": "object", "required": ["vocal"], "additionalProperties": False, "properties": {"vocal": vocal, **properties}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in field.get("anyOf", []) if option.get("type") != "null"]
    kept = {name: value for name, value in field.items() if name not in ("anyOf", "default") or (name == "default" and value is not None)}
    return {**kept, **(options[0] if options else {})}
