"""Named random streams: every draw of a run is a function of its seed, the stream's name and the number of the sample.

A stream is counter-based: sample n of a run (n = step × batch_size + slot) draws its crop, timestep, noise and dropout from
Philox(key = (seed, stream), counter = n). So draws differ between samples, ranks and streams; they do not depend on how many workers
share the batch; and the state of every stream is the number of samples drawn, which a checkpoint saves.

Shapes: R segments of a split.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

STREAMS = ("order", "crop", "timestep", "noise", "dropout", "validation", "mixture", "controls")


def stream(seed: int, name: str, sample: int) -> np.random.Generator:
    """The generator of one named stream at one sample. Raises ValueError for a name that is not in STREAMS."""
    if name not in STREAMS:
        raise ValueError(f"stream {name!r} is not one of {', '.join(STREAMS)}: add it there")
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    # The sample is the counter's high half: no two samples can ever overlap.
    return np.random.Generator(np.random.Philox(key=key, counter=sample << 128))


@lru_cache(maxsize=16)  # each dataset of a run is in an epoch of its own
def epoch_order(seed: int, epoch: int, segments: int) -> NDArray[np.int64]:
    """The order of an epoch's segments: each exactly once."""
    return stream(seed, "order", epoch).permutation(segments)


def slots_of_rank(batch_size: int, rank: int, world_size: int) -> range:
    """A rank's slots of every batch: shares differ by one at most."""
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
