"""Who may ask, and how much may wait: API keys, a bounded number of requests, each caller's share of it."""

import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from starlette.datastructures import Headers

from serving.http.sites import Sites
from serving.problems import Problem, ProblemError

# Weight of the newest in the running mean of the time between two answers, that Retry-After is told from.
NEWEST_WEIGHT = 0.2
FIRST_GUESS_S = 5.0


def digest(key: str) -> str:
    """What is kept and compared instead of a key, so that keys travel in no deployment's configuration."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The API keys that are accepted; none means that everybody may ask, but for web pages of other sites."""

    def __init__(self, digests: Sequence[str], sites: Sites) -> None:
        self._digests, self._sites = tuple(digests), sites

    def caller(self, headers: Headers) -> str | None:
        """Who asks: the digest of the key, or None where no keys are set. Raises ProblemError 401, and 403 where there are no keys."""
        if not self._digests:
            self._sites.check(headers)
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = digest(given)
        # All are compared, each in constant time: the time taken tells nothing about which key was nearly right.
        matches = [hmac.compare_digest(found, accepted) for accepted in self._digests]
        if not given:
            raise ProblemError(Problem(status=401, detail="no API key; send Authorization: Bearer KEY, or X-API-Key: KEY"))
        if not any(matches):
            raise ProblemError(Problem(status=401, detail="this API key is not accepted; ask the operator of the service for one"))
        return found


class Gate:
    """At most `max_pending` requests at a time, and of these at most `max_per_caller` from one caller.

    A request holds memory from the first byte of its upload, so the gate stands before the upload is read.
    """

    def __init__(self, *, max_pending: int, max_per_caller: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_pending = max_pending
        self._max_per_caller = max_per_caller
        self._clock = clock
        self._pending: Counter[str | None] = Counter()
        self._between_s, self._since_s = FIRST_GUESS_S, clock()

    @property
    def pending(self) -> int:
        return self._pending.total()

    @contextmanager
    def admit(self, caller: str | None) -> Iterator[None]:
        """A place for one request; raises ProblemError 503 when full and 429 when `caller` is over its share."""
        if self.pending >= self._max_pending:
            raise ProblemError(self.full())
        if caller is not None and self._pending[caller] >= self._max_per_caller:
            detail = f"this key has {self._pending[caller]} requests waiting, its share is {self._max_per_caller}; wait for one to end"
            raise ProblemError(Problem(status=429, detail=detail, retry_after_s=self._between_s))
        if not self._pending:
            self._since_s = self._clock()  # idle time says nothing of how fast answers come
        self._pending[caller] += 1
        try:
            yield
        finally:
            self._pending[caller] -= 1
            if not self._pending[caller]:
                del self._pending[caller]

    def served(self) -> None:
        """Notes an answer: how fast they come is what the service can do, however many it works on at a time."""
        now_s = self._clock()
        self._between_s += NEWEST_WEIGHT * (now_s - self._since_s - self._between_s)
        self._since_s = now_s

    def full(self) -> Problem:
        """503 with the time after which half of what waits now should be answered."""
        retry_after_s = self._between_s * max(1, self.pending / 2)
        detail = f"{self.pending} requests are waiting, which is all that this service accepts; try again after the time in Retry-After"
        return Problem(status=503, title="Full", detail=detail, retry_after_s=retry_after_s)
