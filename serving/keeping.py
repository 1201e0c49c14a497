"""Requests kept for debugging, where an operator has asked for it: the vocal, the fields and the answer, under the request's id.

Nothing else in the service stores or logs any of them.
"""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import Any

from infra.storage import Place

log = logging.getLogger(__name__)

MOST_WAITING = 16
"""Requests that wait to be written; each holds its vocal and its answer in memory."""


class Keeper:
    """Writes requests below `place`, by day and id, in a thread of its own: no answer waits for it, and none fails with it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._room = BoundedSemaphore(MOST_WAITING)

    def keep(self, request_id: str, facts: dict[str, Any], vocal: bytes, answer: bytes, answer_name: str) -> None:
        """Files `vocal`, `request.json` and the answer, which may be cut short; a request with the same id on the same day replaces it."""
        if not self._room.acquire(blocking=False):
            log.warning("not kept: %d requests wait to be written to %s", MOST_WAITING, self._place)
            return
        day = datetime.now(UTC)
        files = {"vocal": vocal, "request.json": json.dumps({"time": day.isoformat(), **facts}, indent=2).encode()}
        if answer:
            files[answer_name] = answer
        self._thread.submit(copy_context().run, self._write, self._place / f"{day:%Y-%m-%d}" / request_id, files)

    def _write(self, folder: Place, files: dict[str, bytes]) -> None:
        try:
            for name, data in files.items():
                (folder / name).write_bytes(data)
        except Exception:  # debugging must not end what it looks at
            log.exception("not kept at %s", folder)
        finally:
            self._room.release()
