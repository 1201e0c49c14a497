"""Segments streamed through Ray Data: each epoch is one execution of a global sort by the epoch's seeded order, a whole epoch ahead.

    read (a task a group of files) ─▶ key = (rank, place in the epoch) ─▶ sort by key ─▶ blocks, each of one rank, in order

One actor runs the executions for all ranks: the split is read and sorted once an epoch, not once a rank. Ranks take only their own blocks,
from Ray's object store, which spills to disk: memory is bounded by the store, the disk by two epochs. While an epoch is trained on,
the next is sorted.

Shapes: R segments of the split, N rows of a block, K blocks, C channels, T frames.
"""

import logging
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.cluster import connect
from infra.errors import UserError
from infra.splits import FilePart, SplitIndex
from infra.storage import MissingObjectError
from training.segments import Segment, refuse_empty
from training.streams import epoch_order, places_of_rank
from training.workers import Workers

if TYPE_CHECKING:
    import ray

log = logging.getLogger(__name__)

# A rank holds two blocks, one at work and one on its way; an execution makes (read tasks × blocks) objects.
BLOCK_BYTES = 64 * 2**20
READ_BYTES = 128 * 2**20
# A sort that stands still for so long is stuck. Ray's own limit is half an hour.
NO_PROGRESS_S = 600.0
POLL_S = 0.2
LATENTS = ("vocal", "accompaniment")

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Course:
    """Which samples of a run are streamed, and how ranks share them."""

    seed: int
    batch_size: int
    world_size: int
    begin: int
    """The first sample; those before it were trained on before a resume."""
    end: int

    def places(self, epoch: int, segments: int, rank: int) -> NDArray[np.int64]:
        """(N,): places of an epoch that are a rank's, in order."""
        return places_of_rank(
            epoch, segments, batch_size=self.batch_size, rank=rank, world_size=self.world_size, begin=self.begin, end=self.end
        )


class Shuffler:
    """Sorts epochs by Ray Data, each when it is first asked for or the one before it is done. Runs as an actor; one thread a rank."""

    def __init__(self, index: SplitIndex, course: Course, reserved: dict[str, float]) -> None:
        """reserved: what of the cluster is the training's own, not Ray Data's."""
        self.index, self.course, self.reserved, self.segments = index, course, reserved, len(index)
        self.versions = index.versions()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._lock = threading.Lock()
        self._epochs: dict[int, Future[list[list[ray.ObjectRef[pa.Table]]]]] = {}
        self._takers: dict[int, int] = {}

    def blocks(self, epoch: int, rank: int) -> "list[ray.ObjectRef[pa.Table]]":
        """A rank's blocks of an epoch, in order; each rank asks once, and holds them alone from then on."""
        mine = self._sorting(epoch).result()[rank]
        with self._lock:
            self._takers[epoch] = self._takers.get(epoch, 0) + 1
            if self._takers[epoch] == self.course.world_size:
                del self._epochs[epoch]
        if (epoch + 1) * self.segments < self.course.end:
            self._sorting(epoch + 1)
        return mine

    def _sorting(self, epoch: int) -> "Future[list[list[ray.ObjectRef[pa.Table]]]]":
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._pool.submit(self._sort, epoch)
            return self._epochs[epoch]

    def _sort(self, epoch: int) -> "list[list[ray.ObjectRef[pa.Table]]]":
        import ray

        started = time.monotonic()
        check_unchanged(self.index, self.versions)
        keys_R, firsts = keys_and_firsts(self.course, epoch, self.segments, max(1, BLOCK_BYTES // self.index.row_bytes))
        place = Placing(self.index, ray.put(keys_R))
        parts = list(self.index.parts)
        blocks = min(len(parts), max(-(-self.segments * self.index.row_bytes // READ_BYTES), int(ray.cluster_resources().get("CPU", 1))))
        with ray.data.DataContext.current(self._context()):
            # `read_parquet` lists the files anew in each execution: 22 s for 100 local files (decision 6), where these tasks need none.
            rows: ray.data.Dataset = ray.data.from_items([{"part": pickle.dumps(part)} for part in parts], override_num_blocks=blocks)
            rows = rows.map_batches(place, batch_size=None, batch_format="pyarrow")
            flat: list[int | float] = [first for of_rank in firsts for first in of_rank]
            refs = rows.sort("key", boundaries=flat[1:]).materialize().to_arrow_refs()
        if len(refs) != len(flat):
            raise RuntimeError(f"epoch {epoch} was sorted into {len(refs)} blocks, not {len(flat)}")
        log.debug("epoch %d sorted in %.1f s", epoch, time.monotonic() - started)
        ends = np.cumsum([len(of_rank) for of_rank in firsts])
        return [refs[end - len(of_rank) : end] for end, of_rank in zip(ends, firsts, strict=True)]

    def _context(self) -> "ray.data.DataContext":
        import ray

        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
        context.execution_options.preserve_order = True
        context.execution_options.exclude_resources = ray.data.ExecutionResources(
            cpu=self.reserved.get("CPU", 0.0), gpu=self.reserved.get("GPU", 0.0)
        )
        return context


class Placing:
    """What a read task does: files in, and out those rows that somebody wants, with their keys."""

    def __init__(self, index: SplitIndex, keys_R: "ray.ObjectRef[NDArray[np.int64]]") -> None:
        # Without its parts: they come as rows.
        self.index, self.keys_R = SplitIndex(place=index.place, parts=(), schema=index.schema), keys_R

    def __call__(self, files: pa.Table) -> pa.Table:
        import ray

        keys_R = ray.get(self.keys_R)
        return pa.concat_tables([self._placed(pickle.loads(part), keys_R) for part in files["part"].to_pylist()])

    def _placed(self, part: FilePart, keys_R: NDArray[np.int64]) -> pa.Table:
        rows_N = part.rows()
        wanted_N = np.flatnonzero(keys_R[rows_N] >= 0)
        columns: dict[str, Any] = {"key": keys_R[rows_N[wanted_N]], "row": rows_N[wanted_N]}
        if len(wanted_N):
            read = self.index.read(part)
            valid_N, latents = read.valid_frames_N[wanted_N], (read.vocal_NCT[wanted_N], read.accompaniment_NCT[wanted_N])
        else:
            valid_N, latents = wanted_N, (np.empty((0, *self.index.shape), np.float16),) * 2
        columns["valid_frames"] = valid_N
        # Bytes: a sort copies them fastest, and Ray Data has no tensor type of its own for them.
        for name, latents_NCT in zip(LATENTS, latents, strict=True):
            flat = pa.py_buffer(np.ascontiguousarray(latents_NCT))
            columns[name] = pa.Array.from_buffers(pa.binary(self.index.row_bytes // 2), len(wanted_N), [None, flat])
        return pa.table(columns)


class Streamed:
    """A rank's segments, fetched from what the shuffler sorted, each once and in order."""

    def __init__(self, shuffler: Any, index: SplitIndex, course: Course, rank: int, held: ExitStack | None = None) -> None:
        """shuffler: handle of the `Shuffler` actor. held: what ends when this is closed."""
        self.shuffler, self.course, self.rank, self.segments = shuffler, course, rank, len(index)
        self.shape, self.frames = index.shape, index.shape[1]
        self._held, self._closed = held or ExitStack(), threading.Event()
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

        for epoch in range(self.course.begin // self.segments, -(-self.course.end // self.segments)):
            order_R = epoch_order(self.course.seed, epoch, self.segments)
            places = iter(self.course.places(epoch, self.segments, self.rank).tolist())
            blocks: list[Any] = self._get(self.shuffler.blocks.remote(epoch, self.rank))[::-1]
            while blocks:
                block = self._get(blocks.pop())
                if blocks:  # begins to fetch the one after it
                    ray.wait(blocks[-1:], timeout=0, fetch_local=True)
                rows, valid = block["row"].to_pylist(), block["valid_frames"].to_pylist()
                vocals, accompaniments = (latents_of(block[name], self.shape) for name in LATENTS)
                for at, (row, place) in enumerate(zip(rows, places, strict=False)):
                    if row != order_R[place]:
                        raise RuntimeError(f"place {place} of epoch {epoch} holds row {row}, not {order_R[place]}")
                    yield epoch * self.segments + place, Segment(vocals[at], accompaniments[at], valid[at])

    def _get(self, reference: "ray.ObjectRef[Value]") -> Value:
        """What `ray.get` gives, unless this is closed meanwhile; a user's mistake in another process is one here."""
        import ray

        while not ray.wait([reference], timeout=POLL_S)[0]:
            if self._closed.is_set():
                raise RuntimeError("the stream was closed")
        try:
            value: Value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, UserError):
                    raise UserError(str(getattr(cause, "cause", None) or cause)) from error
                cause = getattr(cause, "cause", None) or cause.__cause__
            raise
        return value


def stream_segments(index: SplitIndex, workers: Workers, *, seed: int, batch_size: int, begin: int, end: int) -> Streamed:
    """The split's segments for this rank, samples `begin` to before `end`; all ranks call it at once, and the leader runs the shuffler.

    Joins or starts a cluster where this process is on none.

    Raises: UserError when the training leaves Ray Data no CPU to read with.
    """
    refuse_empty(len(index))
    held = ExitStack()
    held.enter_context(connect())
    import ray
    import ray.data

    try:
        mine = ray.get_runtime_context().get_assigned_resources()
        reserved = {name: workers.size * float(mine.get(name, 0.0)) for name in ("CPU", "GPU")}
        cpus = ray.cluster_resources().get("CPU", 0.0)
        if cpus - reserved["CPU"] < 1:
            raise UserError(
                f"training takes {reserved['CPU']:g} of the cluster's {cpus:g} CPUs and leaves none to stream with: start it with more "
                "(--num-cpus, they are tickets), or choose --data-mode memory"
            )
        course = Course(seed=seed, batch_size=batch_size, world_size=workers.size, begin=begin, end=end)
        name = f"shuffler-{uuid4().hex}"
        shuffler: Any
        if workers.leads:
            shuffler = ray.remote(Shuffler).options(name=name, num_cpus=0, max_concurrency=workers.size + 1).remote(index, course, reserved)
            held.callback(ray.kill, shuffler)
        name = workers.word_from_leader(name)
        if not workers.leads:
            shuffler = ray.get_actor(name)
    except BaseException:
        held.close()
        raise
    return Streamed(shuffler, index, course, workers.rank, held)


def keys_and_firsts(course: Course, epoch: int, segments: int, block_rows: int) -> tuple[NDArray[np.int64], list[list[int]]]:
    """(R,) key of each row, −1 for those that nobody wants; and the first key of each block of each rank.

    key = rank × R + place, so that sorted rows lie rank by rank, in order.
    """
    order_R = epoch_order(course.seed, epoch, segments)
    keys_R = np.full(segments, -1, np.int64)
    firsts = []
    for rank in range(course.world_size):
        places = course.places(epoch, segments, rank)
        keys = rank * segments + places
        keys_R[order_R[places]] = keys
        firsts.append(keys[::block_rows].tolist())
    return keys_R, firsts


def check_unchanged(index: SplitIndex, before: dict[str, str]) -> None:
    """UserError when a file of the split is gone or was written again."""
    try:
        now = index.versions()
    except MissingObjectError as error:
        raise UserError(f"the dataset changed under the training ({error}): run it again with --resume") from error
    changed = [file for file, version in before.items() if now[file] != version]
    if changed:
        raise UserError(
            f"the dataset changed under the training ({index.place / changed[0]} was written again): run it again with --resume"
        )


def latents_of(column: pa.ChunkedArray, shape: tuple[int, int]) -> NDArray[np.float16]:
    """(N, C, T) of a column of bytes, without a copy where it is in one piece."""
    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    values = np.frombuffer(column.buffers()[1], np.float16)
    size = shape[0] * shape[1]
    return values[column.offset * size : (column.offset + len(column)) * size].reshape(len(column), *shape)
