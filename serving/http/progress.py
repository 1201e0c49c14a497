"""Requests as their callers follow them: an id for each, and how far it is."""

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from serving.schema import RequestProgress

# Nothing in it that a log, a header or a file's name could trip over. Whoever wants nobody to guess it makes it long.
WANTED_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_KEPT = 1_000


def request_id(wanted: str | None) -> str:
    """The caller's own id, where it can serve as one, else a new one."""
    return wanted if wanted and WANTED_ID.fullmatch(wanted) else secrets.token_hex(16)


class Following:
    """The latest of each request, by its id; finished ones are kept until newer ones need the place."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, RequestProgress] = OrderedDict()

    @contextmanager
    def request(self, id: str) -> Iterator[None]:
        """While it lasts the request is known; after it, it is done."""
        self._latest[id] = RequestProgress(state="queued")
        self._latest.move_to_end(id)
        if len(self._latest) > MOST_KEPT:
            # Those under way stay; the gate bounds them.
            oldest = next((known for known, progress in self._latest.items() if progress.state == "done"), None)
            if oldest is not None:
                del self._latest[oldest]
        try:
            yield
        finally:
            if id in self._latest:
                self._latest[id] = self._latest[id].model_copy(update={"state": "done"})

    def tell(self, id: str, progress: RequestProgress) -> None:
        if id in self._latest:
            self._latest[id] = progress

    def of(self, id: str) -> RequestProgress | None:
        """How far a request is, with how many are queued before it; None where the id is not known."""
        found = self._latest.get(id)
        if found is None or found.state != "queued":
            return found
        before = 0
        for other, progress in self._latest.items():
            if other == id:
                break
            before += progress.state == "queued"
        return found.model_copy(update={"queue_position": before})
