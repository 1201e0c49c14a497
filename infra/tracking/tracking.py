"""Runs in MLflow, as the rooms see them.

Tracking watches, it never decides: whatever is to be tracked goes into a queue on disk (`infra.tracking.queue`), and a thread sends it.
A server that is away, at the start or later, slows nothing; what it has not taken by the end lies in RUN/untracked/ and is sent by
whoever opens the run next, or by `backline track RUN`. RUN/metrics.jsonl stays the truth about metrics.
"""

import hashlib
import heapq
import json
import logging
import os
import pwd
import re
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from infra.dataset.format import code_version
from infra.storage.place import MissingObjectError, Place, StorageError
from infra.tracking.client import client_of, prepare
from infra.tracking.deliver import NOTE_TAG, PARENT_TAG, RUN_TAG, Delivery, RunHandle
from infra.tracking.queue import Entry, Leftover, Sender, Spool, Verb, batches, leftovers, one_line
from infra.tracking.registry import Candidate
from infra.tracking.system_metrics import SystemWatch

__all__ = ["NOTE_TAG", "RUN_FILE", "RUN_TAG", "RunHandle", "Store", "Tracker", "open_run", "send_untracked", "store_of"]

log = logging.getLogger(__name__)

RUN_FILE = "run.json"  # in a training run's place: its config, and the handle
LOCAL_STORE_WITHIN_S = 60.0
Ending = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where runs are kept."""

    tracking_uri: str
    artifacts: str | None = None
    """Place of artifacts, for a store that we create; a server chooses its own."""
    keep_at: Place | None = None
    """Where the database is copied at the end, when the run's own place cannot hold a live one."""


def store_of(run: Place, tracking_uri: str | None) -> Store:
    """The tracking server, or a SQLite store in the run's folder; for a run on S3 one in runs/, copied to the run at the end."""
    if tracking_uri:
        return Store(tracking_uri=tracking_uri)
    # Two buckets may hold runs of one name.
    local = f"{run.name}-{hashlib.sha256(run.uri.encode()).hexdigest()[:8]}"
    folder = Path("runs").absolute() / local if run.is_s3 else run.path
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    kept = run / "mlflow.db"
    if run.is_s3 and not database.exists() and kept.exists():
        database.write_bytes(kept.read_bytes())
    artifacts = (run / "mlartifacts").uri
    return Store(
        tracking_uri=f"sqlite:///{database}",
        artifacts=artifacts if run.is_s3 else f"file://{artifacts}",
        keep_at=kept if run.is_s3 else None,
    )


class Tracker:
    """One run's way to MLflow from one process. Nothing here waits for a server but `close` and `end`, and these for a bounded time."""

    def __init__(self, handle: RunHandle, run: Place, *, repeats: bool = False, about: Mapping[str, Any] | None = None) -> None:
        """run: where entries wait that cannot be sent. repeats: send points of steps that the run has already.

        about: what RUN/run.json says beside the handle; it is written once the run has an id. None: it is not written.
        """
        prepare()
        self._run, self._repeats, self._about = run, repeats, about
        self._spool = Spool(run, asdict(handle))
        self._delivery = Delivery(handle, created=self._created)
        self._sender = Sender(self._spool, self._deliver, self._delivery.answers, server=handle.tracking_uri)
        self._system: SystemWatch | None = None
        self.left = 0
        """Entries that were not sent, once it is closed."""

    @property
    def handle(self) -> RunHandle:
        """With the run's id, as soon as there is one."""
        return self._delivery.handle

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds points to the metrics' histories. A step that the run has already is not repeated: a resumed run replays silently."""
        now_ms = int(time.time() * 1000)
        points = [[name, float(value), now_ms, step] for name, value in values.items()]
        if points:
            self._add("metrics", {"points": points, "again": self._repeats})

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat parameters; nested ones come as `loss.gamma`. MLflow refuses to change one: those that the run has stay."""
        self._add("params", {name: str(value) for name, value in flat(values).items()})

    def tags(self, values: Mapping[str, str]) -> None:
        self._add("tags", dict(values))

    def dataset(
        self, *, name: str, digest: str, uri: str, context: str = "training", columns: Mapping[str, str] | None = None,
        profile: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """The dataset as a run input: its identity, the types of its columns, its counts."""
        values = {"name": name, "digest": digest, "uri": uri, "context": context, "columns": dict(columns or {})}
        self._add("dataset", values | {"profile": dict(profile or {})})

    def file(self, path: Path, folder: str = "") -> None:
        self._add("artifact", {"folder": folder}, path, path.name)

    def folder(self, path: Path, name: str) -> None:
        """Every file below a folder, as artifacts below `name`."""
        for file in sorted(found for found in path.rglob("*") if found.is_file()):
            self.file(file, (Path(name) / file.relative_to(path).parent).as_posix())

    def content(self, data: bytes, name: str) -> None:
        """An artifact from memory; `name` may hold folders."""
        folder = Path(name).parent.as_posix().removeprefix(".")
        self._add("artifact", {"folder": folder}, data, Path(name).name)

    def register(self, candidate: Candidate) -> None:
        """Makes a version of a model in the registry, after the artifacts that were logged before."""
        self._add("register", asdict(candidate))

    def watch_system(self, *, every_s: float = 10.0) -> None:
        """System metrics (CPU, memory, disk, network, GPU) until `close`."""
        if self._system is None:
            self._system = SystemWatch(self.metrics, every_s=every_s, began_ms=self.handle.began_ms)

    def wait_until_sent(self, timeout_s: float) -> bool:
        """Whether all that was logged so far is sent within the time."""
        return self._sender.wait_until_sent(timeout_s)

    def close(self) -> int:
        """Sends what waits, or leaves it in RUN/untracked/; how many entries that were. The run itself stays open: `end` ends it."""
        if self._system is not None:
            self._system.stop()
            self._system = None
        self.left = self._sender.close()
        return self.left

    def end(self, status: Ending) -> None:
        """Closes the tracker and gives the run its last status, after what workers that died could not send."""
        if self._system is not None:
            self._system.stop()
            self._system = None
        self._add("leftovers", {})
        self._add("end", {"status": status})
        self.close()

    def _add(self, do: Verb, values: dict[str, Any], content: Path | bytes | None = None, name: str = "") -> None:
        try:
            self._spool.add(do, values, content, name)
        except OSError as error:  # a full disk of ours must not end training here: its own save says it better
            log.warning("%s cannot be tracked: %s", name or do, one_line(error))
            return
        self._sender.start()

    def _deliver(self, batch: list[Entry], files: Path) -> None:
        if batch[0].do == "leftovers":
            _send_leftovers(self._run, self._delivery)
        else:
            self._delivery(batch, files)

    def _created(self, handle: RunHandle) -> None:
        """In the sending thread."""
        log.info("MLflow run %s at %s", handle.run_id, handle.tracking_uri)
        if self._about is not None:
            write_handle(self._run, handle, self._about)


def open_run(
    store: Store, *, experiment: str, name: str, run: Place, before: RunHandle | None = None, about: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None, source: str = "backline", parent_run_id: str | None = None,
) -> Tracker:  # fmt: skip
    """The run of the handle `before` again, or a new one. Other runs of the same place that were killed before they could say so are ended.

    What earlier processes could not send goes first. A server is not waited for; a local store is, since workers are about to share it.
    source: what started it. parent_run_id: of the run that this one is a part of.
    """
    began_ms = int(time.time() * 1000)
    if before is None or before.tracking_uri != store.tracking_uri:
        before = RunHandle(tracking_uri=store.tracking_uri, key=uuid4().hex, experiment=experiment, began_ms=began_ms)
    elif not before.key:  # it was written before runs had keys
        before = RunHandle(**{**vars(before), "key": uuid4().hex, "experiment": experiment, "began_ms": began_ms})
    if about is not None:
        write_handle(run, before, about)
    given = {RUN_TAG: run.uri, "mlflow.user": _user(), "mlflow.source.name": source, "mlflow.source.type": "LOCAL", **(tags or {})}
    version = code_version()
    given["mlflow.source.git.commit" if re.fullmatch(r"[0-9a-f]{40}", version) else "backline.version"] = version
    if parent_run_id is not None:
        given[PARENT_TAG] = parent_run_id
    tracker = Tracker(before, run, about=about)
    tracker._add("leftovers", {})
    tracker._add("create", {"name": name, "tags": given, "artifacts": store.artifacts})
    if store.tracking_uri.startswith("sqlite:"):
        tracker.wait_until_sent(LOCAL_STORE_WITHIN_S)
    return tracker


def send_untracked(run: Place) -> int:
    """Sends what waits in RUN/untracked/, to whichever runs and servers it is for; how many entries are left, with a warning each kind.

    Raises: whatever MLflow does where a server does not answer; nothing is lost then.
    """
    return _send_leftovers(run, None)


def _send_leftovers(run: Place, mine: Delivery | None) -> int:
    """With a delivery, only what is for its server; what is for its run goes through it, since it knows the run's id."""
    left = 0
    with tempfile.TemporaryDirectory() as temporary:
        groups: dict[str, list[Leftover]] = {}
        for found in leftovers(run, Path(temporary)):
            groups.setdefault(found.handle["key"], []).append(found)
        for key, group in groups.items():
            handle = RunHandle(**group[0].handle)
            if mine is None or mine.handle.key == key:
                delivery = mine or Delivery(handle)
            elif handle.tracking_uri == mine.handle.tracking_uri:
                delivery = Delivery(handle)
            else:
                continue
            left += _send_group(group, delivery)
            written = read_handle(run)
            if mine is None and written is not None and written.key == key and written.run_id != delivery.handle.run_id:
                write_handle(run, delivery.handle, None)
    return left


def _send_group(group: list[Leftover], delivery: Delivery) -> int:
    """All entries of one run, in the order in which they came up in whichever process; how many the server refuses."""
    owners: deque[int] = deque()
    refused: dict[int, list[Entry]] = {}
    total = 0

    def entries() -> Iterator[Entry]:
        def owned(index: int) -> Iterator[tuple[int, Entry]]:
            return ((index, entry) for entry in group[index].entries())

        for index, entry in heapq.merge(*map(owned, range(len(group))), key=lambda row: row[1].at_ms):
            owners.append(index)
            yield entry

    for batch in batches(entries()):
        writers = [owners.popleft() for _ in batch]
        total += len(batch)
        if batch[0].do == "leftovers":
            continue
        try:
            delivery(batch, group[writers[0]].folder / "files", late=True)
        except Exception as error:
            if not delivery.answers():
                raise
            log.warning("MLflow at %s refuses %s: %s", delivery.handle.tracking_uri, batch[0].do, one_line(error))
            for index, entry in zip(writers, batch, strict=True):
                refused.setdefault(index, []).append(entry)
    for index, writer in enumerate(group):
        writer.keep_only(refused.get(index, []))
    left = sum(map(len, refused.values()))
    log.info("%d entries that had waited are in MLflow at %s", total - left, delivery.handle.tracking_uri)
    return left


def write_handle(run: Place, handle: RunHandle, about: Mapping[str, Any] | None) -> None:
    """RUN/run.json; about: what else it says, None = what it said before. A place that cannot be written costs a warning."""
    try:
        said = json.loads((run / RUN_FILE).read_bytes()) if about is None else dict(about)
        (run / RUN_FILE).write_bytes(json.dumps({**said, "mlflow": vars(handle)}, indent=2).encode())
    except StorageError as error:
        log.warning("the run's MLflow id could not be noted: %s", error)


def read_handle(run: Place) -> RunHandle | None:
    """The handle in RUN/run.json; None where there is none."""
    try:
        return RunHandle(**json.loads((run / RUN_FILE).read_bytes())["mlflow"])
    except MissingObjectError:
        return None


def check_store(tracking_uri: str | None) -> str:
    """Opens the tracking server, or a SQLite store made for it, and says what answered. Raises whatever MLflow does."""
    with tempfile.TemporaryDirectory() as folder:
        experiments = client_of(tracking_uri or f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=10)
    if tracking_uri:
        return f"{tracking_uri} answers, with {len(experiments)} experiments or more"
    return "a SQLite store opens; each run keeps its own, mlflow.db in its folder"


def keep(store: Store) -> None:
    """Copies a local database to the run's place, where that is elsewhere."""
    database = Path(store.tracking_uri.removeprefix("sqlite:///"))
    if store.keep_at is not None and database.exists():  # a store that never opened has none
        store.keep_at.write_bytes(database.read_bytes())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots."""
    rows: dict[str, Any] = {}
    for name, value in values.items():
        rows.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return rows


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return str(os.getuid())
