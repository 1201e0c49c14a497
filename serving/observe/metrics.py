"""What the service counts for Prometheus, through Ray's exporter: requests at the ingress, stages and batches at the replicas.

Nothing of a vocal is in it but its length.
"""

import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from infra.logs import configure
from infra.settings import Settings
from serving.observe.tracing import Tracer
from serving.schema import AccompanimentResult, StageSeconds

REQUEST_BOUNDS_S = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500]
FIT_BOUNDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
WATCH_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """How a replica tells of its work: as the process was set up that deployed it, whatever a node of the cluster has in its environment.

    Ray keeps what a replica prints in its log folder, and prints it where the driver runs.
    """

    log_level: str = "INFO"
    log_format: str = "text"
    otlp_endpoint: str | None = None

    @staticmethod
    def of(settings: Settings) -> "Reporting":
        return Reporting(log_level=settings.log_level, log_format=settings.log_format, otlp_endpoint=settings.otlp_endpoint)

    def begin(self, component: str) -> Tracer | None:
        """Sets this process's log, and gives the tracer where traces are wanted. component: ingress or model."""
        configure(self.log_level, self.log_format)
        return Tracer(self.otlp_endpoint, component=component) if self.otlp_endpoint else None


class Observer(Protocol):
    """Who is told of each request at the ingress."""

    def answered(self, status: int, total_s: float, result: AccompanimentResult | None) -> None:
        """A request was answered, or its stream began, so many seconds after it came."""

    def pending(self, requests: int) -> None:
        """So many requests are uploading, waiting or in work."""


class Unobserved:
    """For an application that nobody scrapes."""

    def answered(self, status: int, total_s: float, result: AccompanimentResult | None) -> None: ...

    def pending(self, requests: int) -> None: ...


class IngressMetrics:
    """An ingress replica's metrics; Ray adds deployment and replica to their labels."""

    def __init__(self) -> None:
        from ray.util import metrics

        self.requests = metrics.Counter("backline_requests", "Answers of POST /v1/accompaniments.", tag_keys=("status",))
        self.seconds = metrics.Histogram(
            "backline_request_seconds", "From a request's first byte to its answer, or a stream's beginning.", boundaries=REQUEST_BOUNDS_S
        )
        self.stages = metrics.Histogram(
            "backline_stage_seconds", "A request's time by stage, as in Server-Timing.", boundaries=REQUEST_BOUNDS_S, tag_keys=("stage",)
        )
        self.fit = metrics.Histogram(
            "backline_fit", "Fit of what was played, 0 to 1.", boundaries=FIT_BOUNDS, tag_keys=("measure", "model")
        )
        self.audio_s = metrics.Counter("backline_audio_seconds", "Seconds of vocal that were accompanied.", tag_keys=("model",))
        self.waiting = metrics.Gauge("backline_pending_requests", "Requests that are uploading, waiting or in work.")

    def answered(self, status: int, total_s: float, result: AccompanimentResult | None) -> None:
        self.requests.inc(1, {"status": str(status)})
        if result is None:
            return
        self.seconds.observe(total_s)
        for field in dataclasses.fields(StageSeconds):
            self.stages.observe(getattr(result.stages, field.name), {"stage": field.name})
        for measure, value in result.fit:
            if value == value:  # a score that could not be had is NaN
                self.fit.observe(value, {"measure": measure, "model": result.model})
        if result.duration_s > 0:
            self.audio_s.inc(result.duration_s, {"model": result.model})

    def pending(self, requests: int) -> None:
        self.waiting.set(requests)


class Counted(Protocol):
    """What is counted of an engine: `serving.engine.scheduler.Denoiser`."""

    evaluations: int
    steps: int
    busy_s: float

    @property
    def waiting(self) -> int: ...

    @property
    def closed(self) -> bool: ...


class ReplicaMetrics:
    """A model replica's metrics: what its denoisers do, one for each model that it holds."""

    def __init__(self) -> None:
        from ray.util import metrics

        keys = ("model",)
        self.denoising = metrics.Gauge("backline_denoising_requests", "Requests whose lanes the denoiser holds.", tag_keys=keys)
        self.batch = metrics.Gauge(
            "backline_batch_evaluations", "Evaluations of the network in one step, mean since the last reading.", tag_keys=keys
        )
        self.busy = metrics.Gauge(
            "backline_denoiser_busy", "Share of the time in which the network was asked, since the last reading.", tag_keys=keys
        )
        self.evaluations = metrics.Counter("backline_evaluations", "Evaluations of the network.", tag_keys=keys)

    def watch(self, denoiser: Counted, model: str) -> None:
        """Reads the denoiser's counts every two seconds from now on, in a thread that ends with it or the process."""
        threading.Thread(target=self._watch, args=(denoiser, {"model": model}), name="metrics", daemon=True).start()

    def _watch(self, denoiser: Counted, tags: dict[str, str]) -> None:
        evaluations, steps, busy_s = 0, 0, 0.0
        while not denoiser.closed:
            time.sleep(WATCH_EVERY_S)
            now = denoiser.evaluations, denoiser.steps, denoiser.busy_s
            self.denoising.set(denoiser.waiting, tags)
            self.busy.set(min(1.0, (now[2] - busy_s) / WATCH_EVERY_S), tags)
            if now[1] > steps:
                self.batch.set((now[0] - evaluations) / (now[1] - steps), tags)
                self.evaluations.inc(now[0] - evaluations, tags)
            evaluations, steps, busy_s = now
        self.denoising.set(0, tags)
        self.busy.set(0, tags)
