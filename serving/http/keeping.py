"""Requests kept for debugging, where an operator has asked for it: the vocal, the fields and the answer, each under its id and a mark.

Callers choose ids, and two may choose the same: the mark keeps their files apart. `request.json` says whose it is.

Nothing else in the service stores or logs any of them. On its way a vocal beyond 1 MiB passes through a temporary file without a name, and
through Ray's object store, which a node short of memory writes to its own disk.
"""

import json
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import Any

from infra import logs
from infra.storage.place import Place

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
        """Files `vocal`, `request.json` and the answer, which may be cut short, in DAY/ID-MARK."""
        if not self._room.acquire(blocking=False):
            log.warning("not kept: %d requests wait to be written to %s", MOST_WAITING, self._place)
            return
        day = datetime.now(UTC)
        files = {"vocal": vocal, **({answer_name: answer} if answer else {})}
        told = {"time": day.isoformat(), **facts}
        self._thread.submit(
            copy_context().run, self._write, self._place / f"{day:%Y-%m-%d}" / f"{request_id}-{secrets.token_hex(4)}", files, told
        )

    def _write(self, folder: Place, files: dict[str, bytes], facts: dict[str, Any]) -> None:
        try:
            (folder / "request.json").write_bytes(json.dumps(logs.plain(facts), indent=2).encode())
            for name, data in files.items():
                (folder / name).write_bytes(data)
        except Exception:  # debugging must not end what it looks at
            log.exception("not kept at %s", folder)
        finally:
            self._room.release()
