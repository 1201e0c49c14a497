"""What every embedding promises.

Shapes: C channels, N samples, R windows, D dimensions.
"""

from typing import Protocol

import numpy as np

from model.errors import ModelError


class EmbeddingUnavailable(ModelError):
    """An embedding's package or weights cannot be had; the message says what to install or name."""


class Embedding(Protocol):
    """Audio in, one vector a window out. `name` and `note` stand beside every figure made with it."""

    name: str
    note: str
    dimension: int
    window_s: float

    def embed(self, audio_CN: np.ndarray) -> np.ndarray:
        """44.1 kHz, (C, N), at least one window → (R, D) float."""
        ...
