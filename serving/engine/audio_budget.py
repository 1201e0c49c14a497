"""How much audio an engine holds at a time: requests wait, in the order of their coming, until there is room for theirs."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# How often who waits looks whether it should go on waiting.
LOOK_EVERY_S = 0.05


class Room:
    """At most `seconds` of audio, or one request that is longer."""

    def __init__(self, seconds: float) -> None:
        self._free_s, self._whole_s, self._held = seconds, seconds, 0
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    @contextmanager
    def take(self, seconds: float, look: Callable[[], None]) -> Iterator[None]:
        """Room for so much audio. look: called while waiting; what it raises ends the wait."""
        seconds = min(seconds, self._whole_s)
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                look()
                while self._line[0] is not place or (self._held and self._free_s < seconds):
                    self._changed.wait(LOOK_EVERY_S)
                    look()
                self._free_s -= seconds
                self._held += 1
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= 1
                # Empty again, it is as large as ever: sums of fractions drift.
                self._free_s = self._free_s + seconds if self._held else self._whole_s
                self._changed.notify_all()
