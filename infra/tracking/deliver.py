"""What an entry of the queue means in MLflow. Each can be done twice without harm, since a server may have done what it never confirmed."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.tracking.client import client_of, exists, experiment_of
from infra.tracking.queue import Entry
from infra.tracking.registry import Candidate, register

log = logging.getLogger(__name__)

RUN_TAG, KEY_TAG, PARENT_TAG, NOTE_TAG = "backline.run", "backline.key", "mlflow.parentRunId", "mlflow.note.content"


@dataclass(frozen=True, kw_only=True)
class RunHandle:
    """What finds a run again, for workers, for a run that is resumed, and for entries that wait; pickles."""

    tracking_uri: str
    run_id: str | None = None
    """MLflow's; None as long as the server has not been there to give one."""
    key: str = ""
    """Ours, a tag of the run: it is known before the server answers."""
    experiment: str = "backline"
    began_ms: int = 0


class UnknownRunError(Exception):
    """The run has not been created yet, or is no longer there."""


class Delivery:
    """Entries into one run."""

    def __init__(self, handle: RunHandle, *, created: Callable[[RunHandle], None] | None = None) -> None:
        """created: called in the sending thread once the run has an id."""
        self.handle = handle
        self._created = created
        self._client: Any = None
        self._steps: Steps | None = None

    @property
    def client(self) -> Any:
        """Made at first use: for a local store that opens, or creates, its database."""
        if self._client is None:
            self._client = client_of(self.handle.tracking_uri)
        return self._client

    def answers(self) -> bool:
        """Whether the server does, and knows the run."""
        try:
            self.client.get_run(self._run_id())
        except Exception as error:  # the question is whether anything is wrong
            log.debug("MLflow does not answer: %s", error)
            return False
        return True

    def __call__(self, batch: list[Entry], files: Path, *, late: bool = False) -> None:
        """Does what a batch says. late: an earlier process wanted it; what is true of the run only now stays as it is."""
        entry = batch[0]
        if entry.do == "create":
            self._create(entry, late)
            return
        run = self._run_id()
        values = entry.values
        match entry.do:
            case "metrics":
                self._metrics(run, batch)
            case "params":
                self._params(run, values)
            case "tags":
                for name, value in values.items():
                    self.client.set_tag(run, name, value)
            case "dataset":
                self._dataset(run, values)
            case "artifact":
                path = files / str(entry.file)
                if path.exists():  # otherwise an earlier process sent it, and was killed before it could say so
                    self.client.log_artifact(run, str(path), values["folder"] or None)
            case "register":
                register(self.handle.tracking_uri, run, Candidate(**values))
            case "end":
                self.client.set_terminated(run, values["status"], entry.at_ms)

    def _run_id(self) -> str:
        if self.handle.run_id is None:
            found = self._found()
            if found is None:
                raise UnknownRunError(f"the run {self.handle.key} is not created yet")
            self._take(found)
        return str(self.handle.run_id)

    def _found(self) -> str | None:
        experiment = self.client.get_experiment_by_name(self.handle.experiment)
        if experiment is None:
            return None
        runs = self.client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{self.handle.key}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _take(self, run_id: str) -> None:
        if run_id != self.handle.run_id:
            self.handle = RunHandle(**{**vars(self.handle), "run_id": run_id})
            if self._created is not None:
                self._created(self.handle)

    def _create(self, entry: Entry, late: bool) -> None:
        """The run with the handle's id or key again, else a new one; others of its place that were killed unawares are ended."""
        values, known = entry.values, self.handle.run_id
        experiment = experiment_of(self.client, self.handle.experiment, values["artifacts"])
        if known is not None and not exists(self.client, known):
            log.warning("MLflow at %s does not know the run %s: a new one is begun", self.handle.tracking_uri, known)
            known = None
        known = known or self._found()
        if known is None:
            tags = {KEY_TAG: self.handle.key, **values["tags"]}
            known = str(self.client.create_run(experiment, start_time=entry.at_ms, run_name=values["name"], tags=tags).info.run_id)
        elif not late:
            self.client.update_run(known, status="RUNNING")
        if not late:
            place = values["tags"][RUN_TAG]
            quote = '"' if "'" in place else "'"
            for other in self.client.search_runs(
                [experiment], f"tags.`{RUN_TAG}` = {quote}{place}{quote} and attributes.status = 'RUNNING'"
            ):
                if other.info.run_id != known:
                    self.client.set_terminated(other.info.run_id, "KILLED")
        self._take(known)

    def _metrics(self, run: str, batch: list[Entry]) -> None:
        from mlflow.entities import Metric

        self._steps = self._steps or Steps(self.client, run)
        points = []
        for entry in batch:
            rows = entry.values["points"]
            points += [Metric(*row) for row in rows if entry.values["again"] or self._steps.is_new(row[0], row[3])]
        try:
            if points:
                self.client.log_batch(run, metrics=points)
        except Exception:
            self._steps = None  # it may have taken them all the same
            raise
        self._steps.sent()

    def _params(self, run: str, values: dict[str, str]) -> None:
        """MLflow refuses to change one: those that the run has stay."""
        from mlflow.entities import Param

        known = self.client.get_run(run).data.params
        rows = [Param(name, value[:6000]) for name, value in values.items() if name not in known]
        for start in range(0, len(rows), 100):
            self.client.log_batch(run, params=rows[start : start + 100])

    def _dataset(self, run: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": name, "type": kind, "required": True} for name, kind in values["columns"].items()]
        dataset = Dataset(
            name=values["name"],
            digest=values["digest"][:36],  # MLflow keeps no more
            source_type="s3" if values["uri"].startswith("s3://") else "local",
            source=json.dumps({"uri": values["uri"], "digest": values["digest"]}),
            schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
            profile=json.dumps(values["profile"]) if values["profile"] else None,
        )
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", values["context"])])])


class Steps:
    """Which steps of which metric a run has, so that none is sent twice. Histories are read only where a step is not beyond the last."""

    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run
        self._last = {metric.key: metric.step for metric in client.get_run(run).data._metric_objs}
        self._known: dict[str, set[int]] = {}
        self._going: set[tuple[str, int]] = set()

    def is_new(self, name: str, step: int) -> bool:
        """Whether the run lacks this point, which is then on its way."""
        if (name, step) in self._going:
            return False
        if step <= self._last.get(name, -1):
            if name not in self._known:
                self._known[name] = {metric.step for metric in self._client.get_metric_history(self._run, name)}
            if step in self._known[name]:
                return False
        self._going.add((name, step))
        return True

    def sent(self) -> None:
        """The points that were new are there."""
        for name, step in self._going:
            self._last[name] = max(step, self._last.get(name, -1))
            if name in self._known:
                self._known[name].add(step)
        self._going.clear()
