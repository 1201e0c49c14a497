"""A client of the service, for Python programs: `Client("http://127.0.0.1:8000").accompany(Path("vocal.wav"))`.

It imports nothing that makes music: a program with httpx can use it without the rest.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

# Refusals that pass: over one's share, and full or restarting.
PASSING = (429, 503)
# What stands before the service (Ray Serve's proxy, a load balancer) says in its own words, not as a problem, when the process that worked
# on a request has died (500, 502) or when it has only just come up itself (404). The service's own 500 would be 500 again.
BEFORE_THE_SERVICE = (404, 500, 502)
PROBLEM_MEDIA_TYPE = "application/problem+json"
# A connection that could not be made, or broke. No answer in time is none of these: who has waited so long is told, and waits no more.
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
LONGEST_PAUSE_S = 16.0


class RefusedError(Exception):
    """The service's problem (RFC 9457): its status, its detail, and after how many seconds another try is worth it, if ever."""

    def __init__(self, status: int, detail: str, retry_after_s: float | None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An accompaniment, and what the service says of it."""

    audio: bytes
    """The file, or a ZIP of stems."""
    media_type: str
    model: str
    seed: int
    fit: dict[str, float | None]
    """harmony, rhythm, overall and leakage, each 0 to 1; None where a score could not be had."""
    candidate_fits: list[dict[str, float | None]]
    timing_ms: dict[str, float]
    """Of Server-Timing."""


class Client:
    """Asks one service. Not for several threads at a time unless its httpx.Client is."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 600.0,
        attempts: int = 6,
        http: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """attempts: how often a request is sent before its refusal is raised; between them it waits as long as Retry-After says, else
        1, 2, 4, … s, so that six outlast a proxy that starts anew."""
        if attempts < 1:
            raise ValueError(f"attempts is {attempts}, below 1: give how often a request may be sent")
        self._http = http or httpx.Client(base_url=url, timeout=timeout_s)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts, self._sleep = attempts, sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def accompany(self, vocal: Path | bytes, **fields: Any) -> Answer:
        """The band for a vocal (an audio file); fields: seed, style, chords, beats, output, format and all others of the interface.

        A connection that breaks, and a process that dies with the request, are tried again: with a seed, which is drawn here where none
        is given, the answer is the same. What the service refuses for good, or fails on itself, is not.
        Raises RefusedError; httpx.TransportError when the service cannot be reached or does not answer within timeout_s.
        """
        asking = self._asking(vocal, fields)
        while True:
            try:
                with self._open(asking) as response:
                    return _answer(response, response.read())
            except BROKEN:
                if not asking.may_again:
                    raise
                asking.pause()

    @contextlib.contextmanager
    def stream(self, vocal: Path | bytes, **fields: Any) -> Iterator[tuple[Answer, Iterator[bytes]]]:
        """The same as it is made: an answer without audio, whose fit is that of the beginning, and the file's bytes. Where the connection
        breaks, the same is asked for again, and goes on where it broke. Leaving the context early ends the work."""
        asking = self._asking(vocal, {**fields, "stream": True})
        with contextlib.ExitStack() as stack:
            response = self._reach(asking, stack)
            answer = _answer(response, b"")
            yield answer, self._bytes(asking, answer.model, response, stack)

    def models(self) -> list[dict[str, Any]]:
        """What the service answers with."""
        response = self._http.get("/v1/models", headers=self._headers)
        _raise_refusal(response)
        models: list[dict[str, Any]] = response.json()["models"]
        return models

    def _asking(self, vocal: Path | bytes, fields: dict[str, Any]) -> "_Asking":
        data = vocal.read_bytes() if isinstance(vocal, Path) else vocal
        name = vocal.name if isinstance(vocal, Path) else "vocal"
        form = {"seed": secrets.randbelow(2**32), **{key: value for key, value in fields.items() if value is not None}}
        texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in form.items()}
        return _Asking(file=(name, data), form=texts, attempts=self._attempts, sleep=self._sleep)

    @contextlib.contextmanager
    def _open(self, asking: "_Asking") -> Iterator[httpx.Response]:
        """The answer 200, its body still to be read; refusals that pass are waited for. Raises RefusedError, httpx.TransportError."""
        while True:
            asking.sent += 1
            files = {"vocal": asking.file}
            with self._http.stream("POST", "/v1/accompaniments", files=files, data=asking.form, headers=self._headers) as response:
                if response.status_code == 200:
                    yield response
                    return
                if not (asking.may_again and _passes(response)):
                    _raise_refusal(response)
            asking.pause(_retry_after_s(response))

    def _reach(self, asking: "_Asking", stack: contextlib.ExitStack) -> httpx.Response:
        """The same, until `stack` closes it; connections that break are made again."""
        while True:
            try:
                return stack.enter_context(self._open(asking))
            except BROKEN:
                if not asking.may_again:
                    raise
                asking.pause()

    def _bytes(self, asking: "_Asking", model: str, response: httpx.Response, stack: contextlib.ExitStack) -> Iterator[bytes]:
        """What a stream brings; a second one's bytes are those of the first, and what had come is left out."""
        given = 0
        while True:
            skip = given
            try:
                for data in response.iter_bytes():
                    fresh, skip = data[skip:], max(0, skip - len(data))
                    given += len(fresh)
                    if fresh:
                        yield fresh
                return
            except BROKEN:
                if not asking.may_again:
                    raise
                asking.pause()
                response = self._reach(asking, stack)
                if response.headers["X-Backline-Model"] != model:
                    raise  # another model was rolled out meanwhile, and its bytes are others


@dataclass(kw_only=True)
class _Asking:
    """A request, and how often it has been sent."""

    file: tuple[str, bytes]
    form: dict[str, str]
    attempts: int
    sleep: Callable[[float], None]
    sent: int = 0

    @property
    def may_again(self) -> bool:
        return self.sent < self.attempts

    def pause(self, retry_after_s: float | None = None) -> None:
        self.sleep(min(LONGEST_PAUSE_S, 2.0 ** (self.sent - 1)) if retry_after_s is None else retry_after_s)


def _passes(response: httpx.Response) -> bool:
    """Whether the same request may be answered later."""
    is_problem = response.headers.get("Content-Type", "").startswith(PROBLEM_MEDIA_TYPE)
    return response.status_code in PASSING or (response.status_code in BEFORE_THE_SERVICE and not is_problem)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After in seconds; a date, which this service never gives, counts as none."""
    stated = response.headers.get("Retry-After", "")
    return float(stated) if stated.isdecimal() else None


def _raise_refusal(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    response.read()
    detail = response.text
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a proxy's own page is no problem document, and told as it is
        detail = response.json()["detail"]
    raise RefusedError(response.status_code, detail, _retry_after_s(response))


def _answer(response: httpx.Response, audio: bytes) -> Answer:
    headers = response.headers
    timing = (part.strip().split(";dur=") for part in headers["Server-Timing"].split(","))
    return Answer(
        audio=audio,
        media_type=headers["Content-Type"],
        model=headers["X-Backline-Model"],
        seed=int(headers["X-Backline-Seed"]),
        fit=json.loads(headers["X-Backline-Fit"]),
        candidate_fits=json.loads(headers["X-Backline-Candidate-Fits"]),
        timing_ms={name: float(milliseconds) for name, milliseconds in timing},
    )
