"""A rank's segments as they come from the shuffle (`training.data.ray_shuffle`).

They are fetched in order, one block on its way while one is at work.

Shapes: N rows of a block, C channels, T frames.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.cluster import connect
from infra.dataset.splits import SplitIndex
from infra.errors import UserError
from training.data.mixture import Part
from training.data.ray_shuffle import LATENTS, Course, Shuffler, epochs_of_span
from training.data.segments import Segment, Truths, refuse_empty
from training.ranks import Workers

if TYPE_CHECKING:
    import ray

POLL_S = 0.2

Value = TypeVar("Value")


class Streamed:
    """A rank's segments, fetched from what the shuffler sorted, each once and in order."""

    def __init__(
        self, shuffler: Any, index: SplitIndex, course: Course, rank: int, held: ExitStack | None = None, truths: Truths | None = None
    ) -> None:
        """shuffler: handle of the `Shuffler` actor. held: what ends when this is closed. truths: by row, 7 KB each:
        they are not streamed."""
        self.shuffler, self.course, self.rank = shuffler, course, rank
        self.shape, self.frames = index.shape, index.shape[1]
        self._held, self._closed, self._truths = held or ExitStack(), threading.Event(), truths
        self._rows = self._fetch()

    def row(self, sample: int) -> Segment:
        fetched, segment = next(self._rows)
        if fetched != sample:
            raise ValueError(f"sample {sample} was asked for, {fetched} is next: a stream is read in order, once")
        return segment

    def close(self) -> None:
        self._closed.set()
        self._held.close()

    def _fetch(self) -> Iterator[tuple[int, Segment]]:
        import ray

        for span in self.course.spans:
            samples = self.course.samples(span, self.rank)
            expected = iter(zip(samples.tolist(), self.course.rows(samples).tolist(), strict=True))
            blocks: list[Any] = self._get(self.shuffler.blocks.remote(span, self.rank))[::-1]
            while blocks:
                block = self._get(blocks.pop())
                if blocks:  # begins to fetch the one after it
                    ray.wait(blocks[-1:], timeout=0, fetch_local=True)
                rows, valid = block["row"].to_pylist(), block["valid_frames"].to_pylist()
                vocals, accompaniments = (latents_of(block[name], self.shape) for name in LATENTS)
                for at, row in enumerate(rows):
                    sample, wanted = next(expected)
                    if row != wanted:
                        raise RuntimeError(f"sample {sample} came as row {row}, not {wanted}")
                    told = None if self._truths is None else self._truths.of(row)
                    yield sample, Segment(vocals[at], accompaniments[at], valid[at], told)

    def _get(self, reference: "ray.ObjectRef[Value]") -> Value:
        """What `ray.get` gives, unless this is closed meanwhile; a user's mistake in another process is one here."""
        import ray

        while not ray.wait([reference], timeout=POLL_S)[0]:
            if self._closed.is_set():
                raise RuntimeError("the stream was closed")
        try:
            value: Value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        return value


def stream_segments(
    index: SplitIndex, workers: Workers, *, seed: int, batch_size: int, begin: int, end: int, part: Part | None = None,
    truths: Truths | None = None,
) -> Streamed:  # fmt: skip
    """The split's segments for this rank, samples `begin` to before `end`; all ranks call it at once, and the leader runs the shuffler.
    `part`: of several datasets, which this is; the samples are its own.

    Joins or starts a cluster where this process is on none.

    Raises: UserError when the training leaves Ray Data no CPU to read with.
    """
    refuse_empty(len(index))
    held = ExitStack()
    held.enter_context(connect())
    import ray
    import ray.data

    try:
        context = ray.get_runtime_context()
        mine = context.get_assigned_resources() if context.get_actor_id() else {}
        reserved = workers.size * float(mine.get("CPU", 0.0))
        cpus = ray.cluster_resources().get("CPU", 0.0)
        if cpus - reserved < 1:
            raise UserError(
                f"training takes {reserved:g} of the cluster's {cpus:g} CPUs and leaves none to stream with: start it with more "
                "(--num-cpus, they are tickets), or choose --data-mode memory"
            )
        course = Course(
            seed=seed, segments=len(index), batch_size=batch_size, world_size=workers.size, begin=begin, end=end,
            epochs=epochs_of_span(len(index), index.row_bytes), part=part,
        )  # fmt: skip
        name = f"shuffler-{uuid4().hex}"
        shuffler: Any
        if workers.leads:
            shuffler = ray.remote(Shuffler).options(name=name, num_cpus=0, max_concurrency=workers.size + 1).remote(index, course)
            held.callback(ray.kill, shuffler)
        name = workers.word_from_leader(name)
        if not workers.leads:
            shuffler = ray.get_actor(name)
    except BaseException:
        held.close()
        raise
    return Streamed(shuffler, index, course, workers.rank, held, truths)


def latents_of(column: pa.ChunkedArray, shape: tuple[int, int]) -> NDArray[np.float16]:
    """(N, C, T) of a column of bytes, without a copy where it is in one piece."""
    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    values = np.frombuffer(column.buffers()[1], np.float16)
    size = shape[0] * shape[1]
    return values[column.offset * size : (column.offset + len(column)) * size].reshape(len(column), *shape)
