"""Whether a stage of the engine's work still goes on: how a hung device or codec is told from an idle one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SignOfLife:
    """Knows when each request inside a stage last went on; several threads may use it.

    Each has its own time, so that neither who comes later nor who goes on hides one that stands still.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._at_s = dict[object, float]()

    @contextmanager
    def inside(self) -> Iterator[Callable[[], None]]:
        """A request is in this stage for as long as the block lasts; what is given says that some work on it was done."""
        request = object()

        def went_on() -> None:
            with self._lock:
                if request in self._at_s:  # another thread may say so a moment too late
                    self._at_s[request] = self._clock()

        with self._lock:
            self._at_s[request] = self._clock()
        try:
            yield went_on
        finally:
            with self._lock:
                del self._at_s[request]

    def stalled_s(self) -> float:
        """Seconds since work was last done on the request that has waited longest for it; 0 when none is inside."""
        with self._lock:
            return self._clock() - min(self._at_s.values()) if self._at_s else 0.0
