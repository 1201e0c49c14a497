"""Whether a stage of the engine's work still goes on: how a hung device or codec is told from an idle one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SignOfLife:
    """Counts the requests inside one stage and knows when any of them last went on; several threads may use it.

    A stage has its own, so that files which are decoded do not hide a device that stands still.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
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
        self._at_s = self._clock()

    def stalled_s(self) -> float:
        """Seconds since work was last done here; 0 when no request is inside."""
        return self._clock() - self._at_s if self._inside else 0.0
