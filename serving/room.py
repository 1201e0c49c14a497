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
        self._free_s, self._whole_s = seconds, seconds
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
                while self._line[0] is not place or self._free_s < seconds:
                    look()
                    self._changed.wait(LOOK_EVERY_S)
                self._free_s -= seconds
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free_s += seconds
                self._changed.notify_all()
