"""One request at the ingress, as its log lines, its metrics, its trace and, where asked for, its kept files tell of it.

Of the vocal only length and size are told, of the caller eight digits of the key's digest.
"""

import asyncio
import dataclasses
import logging
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect

from infra import logs
from serving.http.keeping import Keeper
from serving.http.uploads import Upload
from serving.observe import tracing
from serving.observe.metrics import Observer
from serving.observe.tracing import Tracer
from serving.problems import ProblemError
from serving.schema import AccompanimentResult

log = logging.getLogger(__name__)

GONE = 499
"""A status for the log alone: the caller went away before the answer, or before its end."""


class Account(AbstractContextManager["Account"]):
    """Lasts as long as the request; at its end it says, once, how that went."""

    def __init__(
        self,
        request_id: str,
        observer: Observer,
        *,
        tracer: Tracer | None = None,
        traceparent: str | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        """traceparent: the caller's own span, as its header says."""
        logs.about(request_id)
        self.request_id = request_id
        self.start_s = time.monotonic()
        self._observer, self._keeper = observer, keeper
        self._span = tracing.begin(tracer, "request", request_id=request_id, traceparent=traceparent)
        self._facts: dict[str, Any] = {}
        self._upload: Upload | None = None
        self._result: AccompanimentResult | None = None
        self._sent_bytes, self._complete = 0, False
        self._kept: list[bytes] = []

    def caller(self, digest: str | None) -> None:
        """Who asks, by the digest of the key."""
        if digest is not None:
            self._facts["caller"] = digest[:8]

    def accepted(self, upload: Upload) -> None:
        """The form has arrived; `upload` has the seed that will be used."""
        asked = upload.request
        self._upload = upload
        self._facts |= {"bytes_in": len(upload.vocal)} | asked.model_dump(exclude_none=True)
        log.info("accepted", extra={"seconds": self._seconds, **self._facts})

    def answered(self, result: AccompanimentResult, total_s: float) -> None:
        """The answer, or its beginning, is there; what follows of it is told by `sent`."""
        self._result = result
        self._observer.answered(200, total_s, result)
        self._facts |= {
            "model": result.model, "seed": result.seed, "vocal_s": result.duration_s, "first_s": total_s,
            "stages": dataclasses.asdict(result.stages), "fit": result.fit.model_dump(),
        }  # fmt: skip
        self.sent(result.audio)

    def sent(self, data: bytes) -> None:
        """So much of the file was given to the connection."""
        self._sent_bytes += len(data)
        if self._keeper is not None:
            self._kept.append(data)

    def complete(self) -> None:
        """All of the file was."""
        self._complete = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Whatever `error` is goes on to who answers it."""
        status, said, reason = self._end(error)
        if self._result is None:
            self._observer.answered(status, self._seconds, None)
        why = {} if reason is None else {"reason": reason}
        self._facts = {"status": status, **why, "seconds": self._seconds, **self._facts, "bytes_out": self._sent_bytes}
        log.info(said, extra=self._facts)
        self._span.note(status=status, model=self._facts.get("model"), vocal_s=self._facts.get("vocal_s"))
        if status >= 500:
            self._span.fail(reason or said)
        self._span.end()
        if self._keeper is not None and self._upload is not None:
            name = self._result.file_name if self._result else "answer"
            self._keeper.keep(self.request_id, self._facts, self._upload.vocal, b"".join(self._kept), name)

    def _end(self, error: BaseException | None) -> tuple[int, str, str | None]:
        """(status, what is said, why). A problem's detail may quote the caller, so its title has to do."""
        match error:
            case ProblemError():
                return error.problem.status, "broken off" if self._result else "refused", error.problem.title
            case asyncio.CancelledError() | ClientDisconnect():
                return GONE, "left", None
            case Exception():
                return 500, "failed", type(error).__name__
        return (200, "answered", None) if self._complete else (GONE, "left", None)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.start_s
