"""Faults as `application/problem+json` (RFC 9457): which fault has which status, and what the client reads."""

import http
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from infra.audio.files import AudioError, AudioTooLong, NotAudio
from serving.schema import FieldFault, ProblemDetails

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What went wrong, for a client. It is returned, not raised, by a model replica: a user's fault is no fault of the replica's."""

    status: int
    detail: str
    title: str = ""
    retry_after_s: float | None = None
    errors: tuple[FieldFault, ...] = ()

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", http.HTTPStatus(self.status).phrase)

    def response(self) -> JSONResponse:
        details = ProblemDetails(title=self.title, status=self.status, detail=self.detail, errors=list(self.errors) or None)
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="backline"'
        return JSONResponse(
            details.model_dump(exclude_none=True), status_code=self.status, headers=headers, media_type="application/problem+json"
        )


class ProblemError(Exception):
    """Carries a problem to the handler that answers it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def audio_problem(error: AudioError) -> Problem:
    """415 not audio, 413 too long, 400 damaged or meaningless."""
    if isinstance(error, NotAudio):
        return Problem(status=415, title="Not audio", detail=str(error))
    if isinstance(error, AudioTooLong):
        return Problem(status=413, title="Audio too long", detail=str(error))
    return Problem(status=400, title="Unreadable audio", detail=str(error))


def deadline_problem() -> Problem:
    """504."""
    detail = "not done in the time that it was given (X-Backline-Timeout-Seconds, or the service's limit); ask again, or for less"
    return Problem(status=504, title="Deadline passed", detail=detail)


def fields_problem(faults: list[FieldFault]) -> Problem:
    """422 with every field that is wrong."""
    detail = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
    return Problem(status=422, title="Field missing, unknown or out of range", detail=detail, errors=tuple(faults))


def unknown_model(name: str, known: Sequence[str]) -> Problem:
    """422 with the models that there are."""
    return fields_problem(
        [FieldFault(field="model", message=f"{name[:64]!r} is none of {', '.join(dict.fromkeys(known))}; leave it out or choose one")]
    )


def validation_problem(error: ValidationError | RequestValidationError) -> Problem:
    """422 from pydantic's findings; what was sent is echoed only in short."""
    faults = []
    for found in error.errors():
        field = ".".join(str(part) for part in found["loc"]) or "body"
        message = "unknown field" if found["type"] == "extra_forbidden" else found["msg"]
        given = repr(found.get("input"))
        faults.append(FieldFault(field=field, message=f"{message} (given: {given if len(given) <= 60 else given[:57] + '...'})"))
    return fields_problem(faults)


def install(app: FastAPI) -> None:
    """Every error of `app`, also those of the framework, becomes a problem."""

    def answer(_: Request, error: Exception) -> JSONResponse:
        match error:
            case ProblemError():
                return error.problem.response()
            case RequestValidationError() | ValidationError():
                return validation_problem(error).response()
            case AudioError():
                return audio_problem(error).response()
            case HTTPException():
                return framework_problem(error)
        log.error("unexpected fault", exc_info=error)
        return Problem(status=500, detail="The service failed on this request; its log has the reason").response()

    for kind in (ProblemError, RequestValidationError, ValidationError, AudioError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def framework_problem(error: HTTPException) -> JSONResponse:
    """404, 405 and whatever else the framework raises, with its headers (405 names what is allowed)."""
    phrase = http.HTTPStatus(error.status_code).phrase
    details = {
        404: "There is nothing at this path; GET /docs lists what there is",
        405: "This path does not answer this method; GET /docs lists what it answers",
    }
    given = str(error.detail)
    response = Problem(status=error.status_code, detail=details.get(error.status_code, given) if given == phrase else given).response()
    response.headers.update(error.headers or {})
    return response
