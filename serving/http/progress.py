"""Requests as their callers follow them: an id for each, and how far it is."""

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.schema import RequestProgress

# Nothing in it that a log, a header or a file's name could trip over. Where the service has no keys, all
# callers are one: whoever wants nobody to guess an id makes it long.
WANTED_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_KEPT = 1_000


def request_id(wanted: str | None) -> str:
    """The caller's own id, where it can serve as one, else a new one."""
    return wanted if wanted and WANTED_ID.fullmatch(wanted) else secrets.token_hex(16)


Caller = str | None
Tell = Callable[[RequestProgress], None]


@dataclass
class _Followed:
    progress: RequestProgress


class Following:
    """The latest of each request, by its caller and its id; finished ones are kept until newer ones need the place.

    An id is its caller's: another caller's request with the same one is another request, and nobody else learns of either. Where one
    caller uses an id again, the newer request is followed.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[tuple[Caller, str], _Followed] = OrderedDict()

    @contextmanager
    def request(self, caller: Caller, id: str) -> Iterator[Tell]:
        """While it lasts the request is known, and what is yielded tells how far it is; after it, it is done."""
        followed = self._latest[caller, id] = _Followed(RequestProgress(state="queued"))
        self._latest.move_to_end((caller, id))
        if len(self._latest) > MOST_KEPT:
            # Those under way stay; the gate bounds them.
            oldest = next((known for known, other in self._latest.items() if other.progress.state == "done"), None)
            if oldest is not None:
                del self._latest[oldest]

        def tell(progress: RequestProgress) -> None:
            followed.progress = progress

        try:
            yield tell
        finally:
            followed.progress = followed.progress.model_copy(update={"state": "done"})

    def of(self, caller: Caller, id: str) -> RequestProgress | None:
        """How far a request of this caller is, with how many of anybody's are queued before it; None where the caller has none such."""
        found = self._latest.get((caller, id))
        if found is None:
            return None
        if found.progress.state != "queued":
            return found.progress
        before = 0
        for other in self._latest.values():
            if other is found:
                break
            before += other.progress.state == "queued"
        return found.progress.model_copy(update={"queue_position": before})
