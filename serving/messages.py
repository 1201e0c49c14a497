"""What engine, replicas and HTTP say to each other of a request."""

from collections.abc import AsyncGenerator
from typing import Protocol

from serving.problems import Problem
from serving.schema import AccompanimentRequest, AccompanimentResult, ModelInfo, RequestProgress

Message = RequestProgress | AccompanimentResult | bytes | Problem
"""What is said of a request: how far it is, any number of times; then one problem, or one result and, where it says `more`, bytes."""


class Backend(Protocol):
    """Whatever makes accompaniments: an engine in this process, or model replicas behind Ray Serve."""

    def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        """One request, whose seed is given; see `Message`."""

    async def models(self) -> list[ModelInfo]:
        """Raises ProblemError 503 while there is none."""

    async def not_ready(self) -> str | None:
        """Why nothing can be answered now; None when it can."""
