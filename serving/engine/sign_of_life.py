"""Whether a stage of the engine's work still goes on: how a hung device or codec is told from an idle one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class SignOfLife:
    """Counts the requests inside one stage and knows when any of them last went on; several threads may use it.

    Each stage has its own: what goes on in one must not hide that another stands still.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._at_s = 0.0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A request is in this stage for as long as the block lasts."""
        with self._lock:
            if not self._inside:
                self.went_on()  # a stage that nothing was asked of has not stood still
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def went_on(self) -> None:
        """Some work was done, whatever came of it."""
        self._at_s = time.monotonic()

    def stalled_s(self) -> float:
        """Seconds since work was last done here; 0 when no request is inside."""
        return time.monotonic() - self._at_s if self._inside else 0.0
