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
        attempts: int = 5,
        http: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """attempts: how often a request is sent before its refusal is raised, waiting as long as Retry-After says."""
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
        """The band for a vocal (an audio file); fields: seed, steps, guidance, candidates, output, format.

        A connection that breaks is tried again: with a seed, which is drawn here where none is given, the answer is the same.
        Raises RefusedError; httpx.TransportError when the service cannot be reached.
        """
        with self._asked(vocal, fields) as response:
            return _answer(response, response.read())

    @contextlib.contextmanager
    def stream(self, vocal: Path | bytes, **fields: Any) -> Iterator[tuple[Answer, Iterator[bytes]]]:
        """The same as it is made: an answer without audio, whose fit is that of the beginning, and the file's bytes. Leaving the context
        early ends the work."""
        with self._asked(vocal, {**fields, "stream": True}) as response:
            yield _answer(response, b""), response.iter_bytes()

    def models(self) -> list[dict[str, Any]]:
        """What the service answers with."""
        response = self._http.get("/v1/models", headers=self._headers)
        _raise_refusal(response)
        models: list[dict[str, Any]] = response.json()["models"]
        return models

    @contextlib.contextmanager
    def _asked(self, vocal: Path | bytes, fields: dict[str, Any]) -> Iterator[httpx.Response]:
        data = vocal.read_bytes() if isinstance(vocal, Path) else vocal
        name = vocal.name if isinstance(vocal, Path) else "vocal"
        form = {"seed": secrets.randbelow(2**32), **{key: value for key, value in fields.items() if value is not None}}
        with contextlib.ExitStack() as stack:
            for attempt in range(1, self._attempts + 1):
                try:
                    response = stack.enter_context(
                        self._http.stream(
                            "POST",
                            "/v1/accompaniments",
                            files={"vocal": (name, data)},
                            data={key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in form.items()},
                            headers=self._headers,
                        )
                    )
                except httpx.TransportError:
                    if attempt == self._attempts:
                        raise
                    self._sleep(1.0)
                    continue
                if response.status_code in PASSING and attempt < self._attempts:
                    self._sleep(float(response.headers.get("Retry-After", 1)))
                    response.close()
                    continue
                _raise_refusal(response)
                yield response
                return


def _raise_refusal(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    response.read()
    retry_after = response.headers.get("Retry-After")
    detail = response.text
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a proxy's own page is no problem document, and told as it is
        detail = response.json()["detail"]
    raise RefusedError(response.status_code, detail, float(retry_after) if retry_after else None)


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
