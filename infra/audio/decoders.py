"""A few decoders for many threads: files wait for one of them, and one that died has another in its place before the next file comes."""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from infra.audio.decoder import LOOK_EVERY_S, Decoder


class Decoders:
    """At most `count` files are decoded at a time, each in a process. For any threads; `close` ends the processes."""

    def __init__(self, count: int) -> None:
        self._all = [Decoder() for _ in range(count)]
        self._closed = False
        # The one that was used last is taken first: where one is enough, the others never start.
        self._free = queue.LifoQueue[Decoder]()
        for decoder in self._all:
            self._free.put(decoder)

    def start(self) -> None:
        """Start them all now, so that no file waits for that. Raises RuntimeError."""
        for decoder in self._all:
            decoder.start()

    @property
    def free(self) -> int:
        """How many have nothing to do."""
        return self._free.qsize()

    @contextmanager
    def one(self, look: Callable[[], None]) -> Iterator[Decoder]:
        """A decoder of one's own for as long as the block lasts. look: called while waiting for it; what it raises ends the wait.

        Raises RuntimeError once these are closed.
        """
        while True:
            look()
            if self._closed:
                raise RuntimeError("the decoders were closed")
            try:
                decoder = self._free.get(timeout=LOOK_EVERY_S)
                break
            except queue.Empty:
                continue
        had = decoder.pid
        try:
            yield decoder
        finally:
            if had and not decoder.pid and not self._closed:
                # It died of this file, or with its request: the next file shall not wait for another's start. One that fails is told then.
                with suppress(RuntimeError):
                    decoder.start()
            if self._closed:
                decoder.close()
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes that do nothing now, the others after their files."""
        self._closed = True
        while True:
            try:
                self._free.get_nowait().close()
            except queue.Empty:
                return
