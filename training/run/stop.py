"""What may interrupt a run between two steps: somebody asks it to stop, or the machine under a worker is about to be taken away."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LOOK_EVERY_S = 1.0


class Notices:
    """A request to stop, and nothing that knows of machines: a run without Ray. Ray Train's workers have `training.run.ray_stop`."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._looked = time.monotonic()

    def stop(self) -> None:
        """Ask the run to save and end after the step that it is in; may be called from a signal's handler or another thread."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def due(self) -> bool:
        """Whether the leader should have everybody look at their machines: once a second."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return False
        self._looked = now
        return True

    def leaving(self) -> bool:
        """Whether a worker's machine is about to go, so that the run should save now. Every worker calls it at the same step."""
        return False


@contextmanager
def stopped_by_signals(notices: Notices) -> Iterator[None]:
    """SIGTERM (a spot machine, a scheduler) and Ctrl-C let the run save and end; the second of them ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def received(number: int, _: FrameType | None) -> None:
        if notices.stopping:
            raise SystemExit(128 + number)
        notices.stop()

    former = {number: signal.signal(number, received) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
