"""What MLflow has yet to be told: an ordered queue on disk, which one thread empties. It knows nothing of MLflow.

A queue is a folder: handle.json says whose entries they are, entries.jsonl holds one a line, files/ what artifacts hold. A local run has
it in RUN/untracked/ from the first entry on, so that a process that is killed loses nothing; a run on S3 has it in a temporary folder,
which is moved to RUN/untracked/ when it is closed with something in it. A living writer holds a lock on entries.jsonl.
"""

import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from infra.errors import UserError
from infra.storage.place import Place

log = logging.getLogger(__name__)

UNTRACKED, HANDLE, ENTRIES, FILES = "untracked", "handle.json", "entries.jsonl", "files"
FLUSH_EVERY_S = 2.0
LONGEST_PAUSE_S = 60.0
POINTS_AT_ONCE = 1_000
TRIES = 3
"""Of an entry that fails although the server answers; then it is set aside, so that it holds up no other."""
CLOSE_WITHIN_S = 20.0
SLOWEST_UPLOAD_BYTES_S = 1e6

Verb = Literal["create", "leftovers", "metrics", "params", "tags", "dataset", "artifact", "register", "end"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to do, as JSON. `metrics`: values["points"] are [name, value, time in ms, step]."""

    do: Verb
    values: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    """Below files/, with the artifact's own name as its last part."""
    at_ms: int = 0

    @property
    def points(self) -> int:
        return len(self.values["points"]) if self.do == "metrics" else 0


Deliver = Callable[[list[Entry], Path], None]
"""Does what a batch (see `batches`) says; the path is that of files/. Raises whatever went wrong."""


class Spool:
    """The folder of one writer. Entries are read in order; what is done is forgotten."""

    def __init__(self, run: Place, handle: dict[str, Any]) -> None:
        self.place = run / UNTRACKED / f"{int(time.time() * 1000):013d}-{uuid4().hex[:8]}"
        self.folder = Path(tempfile.mkdtemp(prefix="backline-untracked-")) if run.is_s3 else self.place.path
        (self.folder / FILES).mkdir(parents=True, exist_ok=True)
        (self.folder / HANDLE).write_text(json.dumps(handle))
        self._stream = (self.folder / ENTRIES).open("ab")
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        self._read = self._files = 0
        self.waiting = 0
        self._aside: list[Entry] = []
        self._closed = False

    def add(self, do: Verb, values: dict[str, Any], content: Path | bytes | None = None, name: str = "") -> None:
        """Adds an entry, and a copy of the artifact that belongs to it."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the tracker is closed already: open the run again")
            file = None
            if content is not None:
                self._files += 1
                file = f"{self._files:06d}/{name}"
                _keep(content, self.folder / FILES / file)
            self._stream.write(_line(Entry(do=do, values=values, file=file, at_ms=int(time.time() * 1000))))
            self._stream.flush()
            self.waiting += 1

    def next(self) -> tuple[list[Entry], int]:
        """The first batch that waits, and where the next one begins; empty when nothing waits."""
        with self._lock, (self.folder / ENTRIES).open("rb") as stream:
            stream.seek(self._read)
            taken = next(batches(map(_entry, stream)), [])
            # Lines are written as they are read back, so that their length is known.
            return taken, self._read + sum(len(_line(entry)) for entry in taken)

    def done(self, batch: list[Entry], following: int, *, aside: bool = False) -> None:
        """Forgets a batch; or sets it aside, for whoever opens the run next."""
        with self._lock:
            if self._closed:  # too late: it was left for the next
                return
            self._read = following
            if aside:
                self._aside += batch
                return
            self.waiting -= len(batch)
            for entry in batch:
                if entry.file:
                    shutil.rmtree((self.folder / FILES / entry.file).parent, ignore_errors=True)
            if self._read == os.fstat(self._stream.fileno()).st_size:
                self._stream.truncate(0)
                self._read = 0

    def waiting_bytes(self) -> int:
        """Of artifacts."""
        return sum(path.stat().st_size for path in (self.folder / FILES).rglob("*") if path.is_file())

    def close(self) -> int:
        """Leaves what waits in RUN/untracked/ and removes the rest; how many entries wait."""
        with self._lock:
            if self._closed:
                return self.waiting
            self._closed = True
            kept = self._aside + list(_entries(self.folder / ENTRIES, self._read))
            if not kept:
                shutil.rmtree(self.folder, ignore_errors=True)
                if not self.place.is_s3:
                    _remove_if_empty(self.place.path.parent)
            else:
                Place(str(self.folder / ENTRIES)).write_bytes(b"".join(map(_line, kept)))
                if self.place.is_s3:
                    self._move()
            self._stream.close()
            return self.waiting

    def _move(self) -> None:
        try:
            self.place.upload(self.folder)
        except UserError as error:
            log.warning("what MLflow has not been told could not be put into %s either and stays in %s: %s", self.place, self.folder, error)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


class Sender:
    """The thread that empties a spool. A server that is away costs waiting, with longer and longer pauses; nobody waits with it."""

    def __init__(self, spool: Spool, deliver: Deliver, answers: Callable[[], bool], *, server: str) -> None:
        """answers: whether the server does, so that what it refuses can be told from what did not reach it."""
        self.spool = spool
        self._deliver, self._answers, self._server = deliver, answers, server
        self._failed = 0  # times in a row
        self._away = self._closing = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
            self._thread.start()

    def wait_until_sent(self, timeout_s: float) -> bool:
        """Whether everything that waits now was sent within the time; not waited for where the server is away."""
        deadline_s = time.monotonic() + timeout_s
        self._wake.set()
        while self.spool.waiting and not self._away and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return not self.spool.waiting

    def close(self) -> int:
        """Waits a bounded time for the rest to be sent, hardly at all for a server that is known to be away; how many entries are left.

        The bound: 20 s, and a second more for each megabyte of artifacts.
        """
        if self._thread is not None:
            self._closing = True
            self._wake.set()
            self._thread.join(CLOSE_WITHIN_S + self.spool.waiting_bytes() / SLOWEST_UPLOAD_BYTES_S)
            self._thread = None
        left = self.spool.close()
        if left:
            log.warning(
                "MLflow has not taken %d entries; they wait in %s: `backline track RUN` sends them",
                left,
                self.spool.place.uri.rsplit("/", 1)[0],
            )
        return left

    def _run(self) -> None:
        closing_failures = 0
        while True:
            closing = self._closing
            batch, following = self.spool.next()
            if not batch:
                if closing:
                    return
                self._pause(FLUSH_EVERY_S)
                continue
            try:
                self._deliver(batch, self.spool.folder / FILES)
            except Exception as error:  # whatever a server, a database, a network or a disk raises: training goes on
                known = self._away
                refused = self._failure(batch, following, error)
                closing_failures += closing and not refused
                if closing_failures > 1 or (closing_failures and known):
                    return
                self._pause(min(2.0**self._failed, LONGEST_PAUSE_S))
            else:
                if self._away:
                    log.info("MLflow at %s answers again", self._server)
                self._failed, self._away = 0, False
                self.spool.done(batch, following)

    def _failure(self, batch: list[Entry], following: int, error: Exception) -> bool:
        """Counts and says it; whether the server answers, and so refuses this batch."""
        self._failed += 1
        refused = self._answers()
        if refused and self._failed >= TRIES:
            log.warning("MLflow at %s refuses %s, which is set aside: %s", self._server, batch[0].do, one_line(error))
            self.spool.done(batch, following, aside=True)
            self._failed = 0
        elif not self._away and not refused:
            self._away = True
            log.warning("MLflow at %s cannot be used now; what is to be tracked waits: %s", self._server, one_line(error))
        return refused

    def _pause(self, seconds: float) -> None:
        self._wake.wait(min(seconds, 0.5) if self._closing else seconds)
        if not self._closing:
            self._wake.clear()
        elif seconds:
            time.sleep(0.05)


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A closed writer's folder, and where it lies on this machine."""

    place: Place
    folder: Path
    handle: dict[str, Any]

    def entries(self) -> Iterator[Entry]:
        return _entries(self.folder / ENTRIES, 0)

    def keep_only(self, refused: list[Entry]) -> None:
        """Forgets the rest, and itself when nothing is left."""
        if refused:
            (self.place / ENTRIES).write_bytes(b"".join(map(_line, refused)))
            return
        if self.place.is_s3:
            # The entries go first: what is left of a removal that was cut short is not sent again.
            for place in [self.place / ENTRIES, *self.place.list()]:
                place.delete()
            return
        shutil.rmtree(self.place.path, ignore_errors=True)
        _remove_if_empty(self.place.path.parent)


def leftovers(run: Place, temporary: Path) -> list[Leftover]:
    """What earlier writers of this run could not send, oldest first; brought to `temporary` from S3. Living writers keep theirs."""
    found = []
    for entries in (run / UNTRACKED).list(suffix=f"/{ENTRIES}"):
        place = Place(entries.uri.removesuffix(f"/{ENTRIES}"), entries.access)
        if not place.is_s3 and _locked(entries.path):
            continue
        folder = temporary / place.name if place.is_s3 else place.path
        if place.is_s3:
            place.download(folder)
        found.append(Leftover(place=place, folder=folder, handle=json.loads((folder / HANDLE).read_text())))
    return found


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries that go out together: metrics that follow each other, up to a thousand points; everything else alone."""
    batch: list[Entry] = []
    points = 0
    for entry in entries:
        if batch and (entry.do != "metrics" or points + entry.points > POINTS_AT_ONCE):
            yield batch
            batch, points = [], 0
        if entry.do != "metrics":
            yield [entry]
            continue
        batch.append(entry)
        points += entry.points
    if batch:
        yield batch


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _line(entry: Entry) -> bytes:
    return (json.dumps(asdict(entry)) + "\n").encode()


def _entry(line: bytes) -> Entry:
    return Entry(**json.loads(line))


def _entries(path: Path, offset: int) -> Iterator[Entry]:
    with path.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if line.endswith(b"\n"):  # a kill may have cut the last one
                yield _entry(line)


def _keep(content: Path | bytes, path: Path) -> None:
    """A copy; of a file on the same disk a link, since checkpoints are replaced, never rewritten."""
    path.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    try:
        os.link(content.resolve(), path)
    except OSError:
        shutil.copyfile(content, path)


def _locked(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        log.debug("%s is kept: others use it", folder)
