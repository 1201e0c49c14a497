"""Runs in MLflow: the only import of mlflow.

Tracking watches, it never decides: a server that fails costs a warning and a count, and metrics wait in memory until it answers again.
The run is created where the command starts and handed on as a `RunHandle`, so that a restarted worker goes on with the same run.
"""

import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from infra.records import code_version
from infra.settings import export
from infra.storage import Place

log = logging.getLogger(__name__)

# MLflow's defaults keep trying for minutes, and report usage to a host outside.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
FLUSH_EVERY_S = 5.0
# A metric point is about 100 bytes: an hour of a dead server at ten metrics a second.
WAITING_LIMIT = 36_000
BATCH_LIMIT = 1_000
RUN_TAG = "backline.run"
RUN_FILE = "run.json"  # in a training run's place: its config, and the handle below
Ending = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class RunHandle:
    """What a worker needs to log into a run; pickles. Without a run id nothing is logged."""

    tracking_uri: str
    run_id: str | None


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
    """One run. Metrics leave in a thread of their own; everything else is tried once, and counted in `failures` if it cannot be done."""

    def __init__(self, handle: RunHandle, *, repeats: bool = False) -> None:
        """repeats: send points of steps that the run has already."""
        self.handle = handle
        self._repeats = repeats
        self.failures = 0
        self._waiting: list[Any] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._system: Any = None
        self._seen: dict[str, int] | None = None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds points to the metrics' histories. A step that the run has already is not repeated: a resumed run replays silently."""
        if self.handle.run_id is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        with self._lock:
            self._waiting += [Metric(name, float(value), now_ms, step) for name, value in values.items()]
            if len(self._waiting) > WAITING_LIMIT:
                self.failures += 1
                log.warning(
                    "MLflow has not answered for long: the %d oldest metric points are given up", len(self._waiting) - WAITING_LIMIT
                )
                del self._waiting[:-WAITING_LIMIT]
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush_often, name="tracking", daemon=True)
            self._thread.start()

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat parameters; nested ones come as `loss.gamma`. MLflow refuses to change one: those that the run has stay."""
        from mlflow.entities import Param

        def send(client: Any, run: str) -> None:
            known = client.get_run(run).data.params
            rows = [Param(name, str(value)[:6000]) for name, value in flat(values).items() if name not in known]
            for start in range(0, len(rows), 100):
                client.log_batch(run, params=rows[start : start + 100])

        self._try("parameters", send)

    def tags(self, values: Mapping[str, str]) -> None:
        self._try("tags", lambda client, run: [client.set_tag(run, name, value) for name, value in values.items()])

    def dataset(self, *, name: str, digest: str, uri: str, context: str = "training") -> None:
        """The dataset's identity as a run input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow keeps 36 characters of a digest.
        dataset = Dataset(name=name, digest=digest[:36], source_type="backline", source=f'{{"uri": "{uri}", "digest": "{digest}"}}')
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        self._try("the dataset's identity", lambda client, run: client.log_inputs(run, inputs))

    def file(self, path: Path, folder: str = "") -> None:
        self._try(path.name, lambda client, run: client.log_artifact(run, str(path), folder or None))

    def folder(self, path: Path, name: str) -> None:
        self._try(name, lambda client, run: client.log_artifacts(run, str(path), name))

    def content(self, data: bytes, name: str) -> None:
        """An artifact from memory; `name` may hold folders."""
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / Path(name).name
            path.write_bytes(data)
            self.file(path, Path(name).parent.as_posix().removeprefix("."))

    def watch_system(self, *, every_s: float = 10.0) -> None:
        """System metrics (CPU, memory, disk, network, GPU) until `close`."""

        def start(_: Any, run: str) -> None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
            self._system = SystemMetricsMonitor(run, sampling_interval=every_s, resume_logging=True, tracking_uri=self.handle.tracking_uri)
            self._system.start()

        self._try("system metrics", start)

    def close(self) -> int:
        """Sends what waits; the number of failures so far. The run itself stays open: `end` ends it."""
        if self._system is not None:
            self._system.finish()
            self._system = None
        if self._thread is not None:
            self._closing = True
            self._wake.set()
            self._thread.join()
            self._wake.clear()
            self._thread, self._closing = None, False
        if self._waiting:
            log.warning("MLflow: %d metric points could not be sent", len(self._waiting))
        return self.failures

    def end(self, status: Ending) -> None:
        """Closes the tracker and gives the run its last status."""
        self.close()
        self._try("the end of the run", lambda client, run: client.set_terminated(run, status))

    def _try(self, what: str, act: Callable[[Any, str], object]) -> None:
        if self.handle.run_id is None:
            return
        try:
            act(client_of(self.handle.tracking_uri), self.handle.run_id)
        except Exception as error:  # whatever a server, a database or a network raises: training goes on
            self.failures += 1
            log.warning("MLflow could not take %s (failure %d of this run): %s", what, self.failures, one_line(error))

    def _flush_often(self) -> None:
        while not self._closing:
            self._wake.wait(FLUSH_EVERY_S)
            self._flush()
        self._flush()  # what came after the loop's last look

    def _flush(self) -> None:
        with self._lock:
            batch = self._waiting[:BATCH_LIMIT]
        if not batch:
            return
        sent = False

        def send(client: Any, run: str) -> None:
            nonlocal sent
            if self._seen is None:
                self._seen = {metric.key: metric.step for metric in client.get_run(run).data._metric_objs}
            client.log_batch(run, metrics=[point for point in batch if self._repeats or point.step > self._seen.get(point.key, -1)])
            sent = True

        self._try("metrics", send)
        if sent:
            with self._lock:
                del self._waiting[: len(batch)]
                more = bool(self._waiting)
            if more and self._closing:
                self._flush()


def open_run(
    store: Store, *, experiment: str, name: str, run: Place, run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> Tracker:
    """The run `run_id` again, or a new one. Other runs of the same place that were killed before they could say so are ended.

    A server that does not answer gives a tracker that logs nothing and has counted one failure.
    """
    try:
        client = client_of(store.tracking_uri)
        experiment_id = experiment_of(client, experiment, store.artifacts)
        quote = '"' if "'" in run.uri else "'"
        found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = {quote}{run.uri}{quote} and attributes.status = 'RUNNING'")
        for orphan in found:
            if orphan.info.run_id != run_id:
                client.set_terminated(orphan.info.run_id, "KILLED")
        if run_id is not None and not exists(client, run_id):
            log.warning("MLflow at %s does not know the run %s: a new one is begun", store.tracking_uri, run_id)
            run_id = None
        if run_id is None:
            given = {RUN_TAG: run.uri, "mlflow.source.git.commit": code_version(), **(tags or {})}
            run_id = str(client.create_run(experiment_id, run_name=name, tags=given).info.run_id)
        else:
            client.update_run(run_id, status="RUNNING")
    except Exception as error:  # a server that is down must not keep anybody from training
        log.warning("MLflow at %s cannot be used, this run is not tracked there: %s", store.tracking_uri, one_line(error))
        tracker = Tracker(RunHandle(tracking_uri=store.tracking_uri, run_id=None))
        tracker.failures = 1
        return tracker
    return Tracker(RunHandle(tracking_uri=store.tracking_uri, run_id=run_id))


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


def client_of(tracking_uri: str) -> Any:
    export(MLFLOW_ENVIRONMENT)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def experiment_of(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name, artifact_location=artifacts))


def exists(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots."""
    rows: dict[str, Any] = {}
    for name, value in values.items():
        rows.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return rows


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
