"""The seeded global shuffle of a streamed split, by Ray Data, ahead of the training.

    read (a task a group of files) ─▶ key = (rank, sample) ─▶ sort by key ─▶ blocks, each of one rank, in order

A span of the run is sorted at once: an epoch, or as many as make SPAN_BYTES, for an execution costs seconds whatever it sorts. One actor
runs the executions for all ranks: the split is read and sorted once, not once a rank. While one span is trained on, the next is sorted;
what is sorted waits in Ray's object store, which spills to disk: two spans at most.

Nothing here imports torch: each of Ray's processes would, for seconds.

Shapes: R segments of the split, E epochs of a span, N rows of a file or block, C channels, T frames.
"""

import logging
import pickle
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.dataset.splits import FilePart, SplitIndex
from infra.errors import UserError
from infra.storage.place import MissingObjectError
from training.data.mixture import Part
from training.data.random_streams import epoch_order, slots_of_rank

if TYPE_CHECKING:
    import ray
    import ray.data

log = logging.getLogger(__name__)

# A rank holds two blocks, one at work and one on its way; an execution makes (read tasks × blocks) objects.
BLOCK_BYTES = 64 * 2**20
READ_BYTES = 128 * 2**20
SPAN_BYTES = 2**30
# A sort that stands still for so long is stuck. Ray's own limit is half an hour.
NO_PROGRESS_S = 600.0
LATENTS = ("vocal", "accompaniment")


@dataclass(frozen=True, kw_only=True)
class Course:
    """Which samples of a run are streamed, how ranks share them, and how they are cut into spans."""

    seed: int
    segments: int
    """R."""
    batch_size: int
    world_size: int
    begin: int
    """The first sample; those before it were trained on before a resume."""
    end: int
    epochs: int = 1
    """E."""
    part: Part | None = None
    """Which of several datasets this is; the samples are its own then, and this says which of the run's they are."""

    @property
    def span(self) -> int:
        """Samples of a span."""
        return self.epochs * self.segments

    @property
    def spans(self) -> range:
        return range(self.begin // self.span, -(-self.end // self.span))

    def samples(self, span: int, rank: int) -> NDArray[np.int64]:
        """The samples of a span that are a rank's, in order."""
        first = span * self.span
        samples = np.arange(max(first, self.begin), max(first, self.begin, min(first + self.span, self.end)))
        slots = slots_of_rank(self.batch_size, rank, self.world_size)
        slots_N = (samples if self.part is None else self.part.run_samples(samples)) % self.batch_size
        return samples[(slots_N >= slots.start) & (slots_N < slots.stop)]

    def rows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each of a span's samples."""
        rows = np.empty_like(samples)
        for epoch in np.unique(samples // self.segments).tolist():
            here = samples // self.segments == epoch
            rows[here] = epoch_order(self.seed, epoch, self.segments)[samples[here] - epoch * self.segments]
        return rows


class Shuffler:
    """Sorts spans by Ray Data, each when it is first asked for or the one before it is done. Runs as an actor; with a thread for each rank
    and one more."""

    def __init__(self, index: SplitIndex, course: Course) -> None:
        # Its lines on each execution would stand between those of the training.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self.index, self.course = index, course
        self.versions = index.versions()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._lock = threading.Lock()
        self._mistake: str | None = None
        self._spans: dict[int, Future[list[list[ray.ObjectRef[pa.Table]]]]] = {}
        self._takers: dict[int, int] = {}

    def blocks(self, span: int, rank: int) -> "list[ray.ObjectRef[pa.Table]]":
        """A rank's blocks of a span, in order; each rank asks once, and holds them alone from then on."""
        mine = self._sorting(span).result()[rank]
        with self._lock:
            self._takers[span] = self._takers.get(span, 0) + 1
            if self._takers[span] == self.course.world_size:
                del self._spans[span]
        if span + 1 in self.course.spans:
            self._sorting(span + 1)
        return mine

    def note(self, mistake: str) -> None:
        """Told by a read task before it fails: Ray Data keeps of its error no more than a text among others."""
        self._mistake = mistake

    def _sorting(self, span: int) -> "Future[list[list[ray.ObjectRef[pa.Table]]]]":
        with self._lock:
            if span not in self._spans:
                self._spans[span] = self._pool.submit(self._sort, span)
            return self._spans[span]

    def _sort(self, span: int) -> "list[list[ray.ObjectRef[pa.Table]]]":
        import ray

        started = time.monotonic()
        check_unchanged(self.index, self.versions)
        keys_ER, firsts = keys_and_firsts(self.course, span, max(1, BLOCK_BYTES // self.index.row_bytes))
        place = Placing(self.index, ray.put(keys_ER), ray.get_runtime_context().current_actor)
        parts = list(self.index.parts)
        split_bytes = self.course.segments * self.index.row_bytes
        tasks = min(len(parts), max(-(-split_bytes // READ_BYTES), int(ray.cluster_resources().get("CPU", 1))))
        with ray.data.DataContext.current(self._context()):
            # `read_parquet` lists the files anew in each execution: 22 s for 100 local files (decision 6), where these tasks need none.
            rows: ray.data.Dataset = ray.data.from_items([{"part": pickle.dumps(part)} for part in parts], override_num_blocks=tasks)
            rows = rows.map_batches(place, batch_size=None, batch_format="pyarrow")
            flat: list[int | float] = [first for of_rank in firsts for first in of_rank]
            # Without a boundary Ray would draw its own; one behind all keys cuts off an empty block.
            boundaries: list[int | float] = [*flat[1:], self.course.world_size * self.course.span]
            try:
                refs = rows.sort("key", boundaries=boundaries).materialize().to_arrow_refs()
            except ray.exceptions.RayError as error:
                raise (UserError(self._mistake) if self._mistake else error) from error
        if len(refs) not in (len(flat), len(flat) + 1):
            raise RuntimeError(f"span {span} was sorted into {len(refs)} blocks, not {len(flat)}")
        log.debug("span %d sorted in %.1f s", span, time.monotonic() - started)
        ends = np.cumsum([len(of_rank) for of_rank in firsts])
        return [refs[end - len(of_rank) : end] for end, of_rank in zip(ends, firsts, strict=True)]

    def _context(self) -> "ray.data.DataContext":
        import ray

        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
        return context


class Placing:
    """What a read task does: files in, and out each row as often as somebody wants it, with its keys."""

    def __init__(self, index: SplitIndex, keys_ER: "ray.ObjectRef[NDArray[np.int64]]", shuffler: Any) -> None:
        # Without its parts: they come as rows.
        self.index, self.keys_ER, self.shuffler = SplitIndex(place=index.place, parts=(), schema=index.schema), keys_ER, shuffler

    def __call__(self, files: pa.Table) -> pa.Table:
        import ray

        keys_ER = ray.get(self.keys_ER)
        try:
            return pa.concat_tables([self._placed(pickle.loads(part), keys_ER) for part in files["part"].to_pylist()])
        except UserError as error:
            ray.get(self.shuffler.note.remote(str(error)))
            raise

    def _placed(self, part: FilePart, keys_ER: NDArray[np.int64]) -> pa.Table:
        rows_N = part.rows()
        keys_EN = keys_ER[:, rows_N]
        epochs, at = np.nonzero(keys_EN >= 0)
        columns: dict[str, Any] = {"key": keys_EN[epochs, at], "row": rows_N[at]}
        if len(at):
            read = self.index.read(part)
            valid, latents = read.valid_frames_N[at], (read.vocal_NCT[at], read.accompaniment_NCT[at])
        else:
            valid, latents = at, (np.empty((0, *self.index.shape), np.float16),) * 2
        columns["valid_frames"] = valid
        # Bytes: a sort copies them fastest, and Ray Data has no tensor type of its own for them.
        for name, latents_NCT in zip(LATENTS, latents, strict=True):
            flat = pa.py_buffer(np.ascontiguousarray(latents_NCT))
            columns[name] = pa.Array.from_buffers(pa.binary(self.index.row_bytes // 2), len(at), [None, flat])
        return pa.table(columns)


def epochs_of_span(segments: int, row_bytes: int) -> int:
    """Epochs that are sorted at once."""
    return max(1, SPAN_BYTES // (segments * row_bytes))


def keys_and_firsts(course: Course, span: int, block_rows: int) -> tuple[NDArray[np.int64], list[list[int]]]:
    """(E, R) key of each row in each epoch of a span, −1 where nobody wants it; and the first key of each block of each rank.

    key = rank × (samples of a span) + (sample within the span), so that sorted rows lie rank by rank, in order.
    """
    keys_ER = np.full((course.epochs, course.segments), -1, np.int64)
    firsts = []
    for rank in range(course.world_size):
        samples = course.samples(span, rank)
        within = samples - span * course.span
        keys = rank * course.span + within
        keys_ER[within // course.segments, course.rows(samples)] = keys
        firsts.append(keys[::block_rows].tolist())
    return keys_ER, firsts


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
