"""Requests that replicas die of: they are kept from further ones."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from serving.schema import AccompanimentRequest

QUARANTINE_S = 600.0
MOST_KEPT = 1_000


class Quarantine:
    """Of one ingress and model. A request is the same when its vocal and fields are; its seed, which may be drawn here, says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until_s = OrderedDict[bytes, float]()

    async def holds(self, vocal: bytes, request: AccompanimentRequest) -> bool:
        """Whether this request is not to be sent now."""
        while self._until_s and next(iter(self._until_s.values())) <= self._clock():
            self._until_s.popitem(last=False)
        # Nearly always there is nothing to be compared with.
        return bool(self._until_s) and await _digest(vocal, request) in self._until_s

    async def add(self, vocal: bytes, request: AccompanimentRequest) -> None:
        """Two replicas died of this one."""
        self._until_s[await _digest(vocal, request)] = self._clock() + QUARANTINE_S
        if len(self._until_s) > MOST_KEPT:
            self._until_s.popitem(last=False)


async def _digest(vocal: bytes, request: AccompanimentRequest) -> bytes:
    fields = request.model_copy(update={"seed": None}).model_dump_json().encode()
    return await asyncio.to_thread(lambda: hashlib.sha256(hashlib.sha256(vocal).digest() + fields).digest())
