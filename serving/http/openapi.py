"""What the OpenAPI document says beyond what FastAPI finds out by itself: the form, headers, answers and problems."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path
from fastapi.security import APIKeyHeader, HTTPBearer

from serving.http.progress import WANTED_ID
from serving.schema import AccompanimentRequest, FieldsProblem, ProblemDetails

PROBLEM_MEDIA_TYPE = "application/problem+json"
TIMEOUT_HEADER = "X-Backline-Timeout-Seconds"
ANSWER_TYPES = ("audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "application/zip")
BINARY = {"type": "string", "format": "binary"}
RESULT_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Backline-Model": (
        "The model that played; characters of its name beyond printable ASCII, and %, are percent-encoded as UTF-8",
        {"type": "string"},
    ),
    "X-Backline-Seed": ("The seed that was used", {"type": "integer", "minimum": 0}),
    "X-Backline-Fit": (
        "JSON: harmony, rhythm, overall, leakage, each 0 to 1 or null",
        {"type": "string", "contentMediaType": "application/json"},
    ),
    "X-Backline-Candidate-Fits": ("JSON list: the same of every candidate", {"type": "string", "contentMediaType": "application/json"}),
    "X-Request-Id": ("The request's id: the one that was sent, or a new one", {"type": "string", "pattern": f"^{WANTED_ID.pattern}$"}),
    "Server-Timing": ("Milliseconds of queue, decode, encode, diffuse, fit, render, total", {"type": "string"}),
    "Content-Disposition": ("A name for the file", {"type": "string"}),
}
RequestId = Annotated[str, Path(description="The X-Request-Id of a request", json_schema_extra={"pattern": f"^{WANTED_ID.pattern}$"})]
"""The parameter of `GET /v1/progress/{id}`. The pattern is only said: any other id is simply not known."""


def security(*, keyed: bool) -> list[Any]:
    """Dependencies that only say in the document which keys are wanted; `Keys` checks them, before the body is read."""
    if not keyed:
        return []
    return [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]


def accompaniment() -> dict[str, Any]:
    """`openapi_extra` of `POST /v1/accompaniments`."""
    headers = [
        _header(
            TIMEOUT_HEADER,
            "Seconds after which the request ends with 504, if the service's own limit is not less",
            {"type": "number", "exclusiveMinimum": 0, "examples": [60]},
        ),
        _header(
            "X-Request-Id",
            "An id to follow the request by at `GET /v1/progress/{id}`: 1 to 64 letters, digits and `. _ -`, the first "
            "a letter or digit; any other is not known there. It is the caller's own: another key's request with it is another one",
            {"type": "string"},
        ),
    ]
    return {"parameters": headers, "requestBody": _form()}


def accompaniment_answers() -> dict[int | str, dict[str, Any]]:
    """`responses` of `POST /v1/accompaniments`."""
    audio = {
        "description": "The audio, or a ZIP of stems",
        "content": {kind: {"schema": BINARY} for kind in ANSWER_TYPES},
        "headers": {name: {"description": text, "required": True, "schema": schema} for name, (text, schema) in RESULT_HEADERS.items()},
        "links": {
            "progress": {
                "operationId": "progress",
                "description": "How far this request is",
                "parameters": {"id": "$response.header.X-Request-Id"},
            }
        },
    }
    return {200: audio, **problem_answers(400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses`: these statuses as problems, with the headers that go with them."""
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        model = FieldsProblem if status == 422 else ProblemDetails
        schema = {
            "allOf": [{"$ref": f"#/components/schemas/{model.__name__}"}, {"type": "object", "properties": {"status": {"const": status}}}]
        }
        # `model` puts the schema into the components; it is answered as a problem, not as plain JSON.
        answers[status] = {"model": model, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
        if status in (429, 503):
            answers[status]["headers"] = {
                "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}
            }
        if status == 401:
            answers[status]["headers"] = {
                "WWW-Authenticate": {"description": "Which key is wanted", "required": True, "schema": {"type": "string"}}
            }
    return answers


def describe(app: FastAPI) -> None:
    """Makes the document say what is really answered: problems as problems, not also as plain JSON, and no fault that nobody has."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in list(operation["responses"].items()):
                content = answer.get("content", {})
                if PROBLEM_MEDIA_TYPE in content:
                    content.pop("application/json", None)
                elif status == "422":
                    del operation["responses"][status]  # FastAPI's own for a parameter; ours are strings
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _form() -> dict[str, Any]:
    fields = AccompanimentRequest.model_json_schema()
    vocal = {**BINARY, "description": "The vocal: WAV, FLAC, MP3, OGG, M4A or WebM"}
    # A form has no null: a field that is not wanted is left out.
    properties = {name: _without_null(field) for name, field in fields["properties"].items()}
    schema = {"type": "object", "required": ["vocal"], "additionalProperties": False, "properties": {"vocal": vocal, **properties}}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in field.get("anyOf", []) if option.get("type") != "null"]
    kept = {name: value for name, value in field.items() if name not in ("anyOf", "default") or (name == "default" and value is not None)}
    return {**kept, **(options[0] if options else {})}
