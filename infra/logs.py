"""Log handlers: the only place that sets them. Text for people, or JSON, one object a line, for what collects logs.

Facts go into `extra`, and into the line of either form. The id of the request that a line belongs to is in it without being handed to
every function: whoever begins with a request says so (`about`).
"""

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# Chatty at INFO, and about nothing that a user of backline can act on.
QUIET = ("botocore", "boto3", "s3transfer", "urllib3", "matplotlib", "numba", "fsspec", "asyncio", "httpx", "alembic", "python_multipart")
# Ray's loggers have handlers of their own, and pass nothing on.
RAYS = ("ray", "ray.serve")
GIVEN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "request_id"}

_request: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure(level: str = "INFO", format: str = "text") -> None:
    """Log to standard error (standard output belongs to results), as text or as json. Called by each entry point and by each replica of
    the service; calling again changes level and format."""
    root = logging.getLogger()
    handler = next((handler for handler in root.handlers if handler.name == "backline"), None)
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.name = "backline"
        root.addHandler(handler)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    if format == "json":
        for beside in (beside for name in RAYS for beside in logging.getLogger(name).handlers):
            if type(beside) is logging.StreamHandler:
                beside.setFormatter(handler.formatter)


def about(request_id: str | None) -> None:
    """What this task or thread logs from now on belongs to this request, also in threads that run in a copy of its context."""
    _request.set(request_id)


def request_id() -> str | None:
    """The request that `about` named."""
    return _request.get()


class TextLines(logging.Formatter):
    """`19:03:11 I serving.http.request_log: answered [request id] status=200 seconds=1.23`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        id = _id_of(record)
        facts = [f"{name}={_short(value)}" for name, value in _flat(_facts(record)) if value is not None]
        return " ".join([super().formatMessage(record), *([f"[{id}]"] if id else []), *facts])


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, request_id where there is one, error with its traceback, and
    the facts. A number that JSON has not (NaN) is null."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if id := _id_of(record):
            line["request_id"] = id
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({**line, **{name: plain(value) for name, value in _facts(record).items() if name not in line}}, default=str)


def _id_of(record: logging.LogRecord) -> str | None:
    return getattr(record, "request_id", None) or _request.get()


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`; names with an underscore in front are other libraries' marks."""
    return {name: value for name, value in vars(record).items() if name not in GIVEN and not name.startswith("_")}


def plain(value: Any) -> Any:
    """The same as JSON has it: a number that it has not is None."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _short(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    plain_text = text.isprintable() and not any(character.isspace() or character in '"=' for character in text)
    return text if text and plain_text else json.dumps(text)
