"""Random draws that stay the same across processes, platforms and numpy versions.

Only two primitives are promised stable by their libraries: `random.Random` seeded with a string, asked for `.random()`, and the raw
words of PCG64 (O'Neill 2014). Distribution methods of either library may change, so they are not used.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Array = NDArray[np.float64]


class Chance:
    """A named stream of draws: two streams of different names never influence each other."""

    def __init__(self, *names: object) -> None:
        self._random = random.Random("/".join(str(name) for name in names))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self._random.random()

    def happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + min(int(self._random.random() * (high - low + 1)), high - low)

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def spread(self, width: float) -> float:
        """A draw around zero, bell-shaped (sum of three uniforms), within ±width."""
        return width * (self._random.random() + self._random.random() + self._random.random() - 1.5) / 1.5


def noise(n: int, *names: object) -> Array:
    """White noise, shape (n,), uniform in [-1, 1), from the raw words of PCG64."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    words = np.random.PCG64(int.from_bytes(digest[:16], "big")).random_raw(n)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
