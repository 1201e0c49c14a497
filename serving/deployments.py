"""The service on Ray Serve: a thin HTTP ingress, which imports no torch, and model replicas that each hold an engine."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from fastapi import FastAPI
from pydantic import ConfigDict, TypeAdapter, ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus, LoggingConfig, ReplicaState

from infra.cluster import connect
from infra.errors import UserError
from infra.places import is_registered, pinned
from infra.settings import Settings, registry_environment
from serving.admission import digest
from serving.app import AppConfig, Message, create_app
from serving.problems import Problem, ProblemError
from serving.schema import AccompanimentRequest, AccompanimentResult, ModelInfo
from serving.telemetry import IngressMetrics, ReplicaMetrics

log = logging.getLogger(__name__)

APPLICATION = "backline"
MODEL_DEPLOYMENT = "Model"
READY_CACHE_S = 1.0
CONTROLLER_TIMEOUT_S = 5.0
INFO_TIMEOUT_S = 5.0
MOST_FAILURES = 3
"""Failed steps in succession after which a replica's device is given up."""
LIGHT_CPUS = 0.01
"""CPU tickets of an ingress replica: it carries bytes, and must fit beside the model on the smallest machine."""
# An upload is held by the ingress until its answer goes out; this is only the ceiling for everything else (health, page, refusals).
INGRESS_ONGOING = 1_000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One service: which model, where it listens, how it scales and what it refuses."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    """Place of a checkpoint or of a training run, or models:/NAME@ALIAS; BACKLINE_CHECKPOINT, else the one that ships with backline."""
    codec: str | None = None
    """Codec spec, where the checkpoint's own codec is kept elsewhere than when it was trained; by default the checkpoint's."""
    host: str = "127.0.0.1"
    """Loopback; 0.0.0.0 listens everywhere: set BACKLINE_API_KEYS then."""
    port: int = 8000
    device: str = "auto"
    """auto, cpu or cuda."""
    replicas: int = 1
    """Model replicas kept at least; 0 lets the service sleep (max_replicas must then be 1 or more)."""
    max_replicas: int | None = None
    """Model replicas under load; by default as many as `replicas`."""
    replica_cpus: float = 1.0
    """CPU tickets of a model replica."""
    replica_gpus: float = 0.0
    """GPUs of a model replica; a fraction lets replicas share one."""
    replica_threads: int | None = None
    """Threads that torch uses in a replica; by default the machine's CPUs, at most 8. Give fewer where replicas share a machine."""
    ingress_replicas: int = 1
    concurrent: int = 16
    """Requests inside one model replica at a time, which share the network's evaluations."""
    target_ongoing: float = 4.0
    """Requests inside a replica beyond which another one is started, up to max_replicas. On a GPU 8 and more."""
    max_audio_s: float = 1800.0
    """Seconds of vocals in work in one replica, about 1.5 MB each; requests beyond them wait."""
    max_pending: int = 32
    """Requests accepted at a time by each ingress; beyond it 503 with Retry-After."""
    max_pending_per_caller: int | None = None
    """Of these, from one API key; beyond it 429. By default half."""
    max_upload_mb: float = 100.0
    max_duration_s: float = 600.0
    upload_timeout_s: float = 120.0
    request_timeout_s: float = 600.0
    """A request that takes longer ends with 504; a caller may ask for less with X-Backline-Timeout-Seconds."""
    hang_after_s: float = 300.0
    """A replica whose model makes no step for so long is replaced."""
    drain_s: float = 60.0
    """A replica that is to go finishes its requests within this time."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else a cluster on this machine for as long as the service runs."""
    num_cpus: int | None = None
    """CPU tickets of a cluster that is started here; by default the machine's CPUs, at least 4."""

    def __post_init__(self) -> None:
        positive = (
            "replica_cpus", "ingress_replicas", "concurrent", "max_pending", "target_ongoing", "max_audio_s", "max_upload_mb",
            "upload_timeout_s", "request_timeout_s", "drain_s",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, which is not positive: give a number above 0")
        if not 1 <= self.port <= 65_535:
            raise UserError(f"port is {self.port}, which is not within 1 to 65535: choose a free port, for example 8000")
        if self.replicas < 0 or self.most_replicas < max(1, self.replicas):
            raise UserError(
                f"replicas {self.replicas} and max_replicas {self.max_replicas} do not fit: give 0 or more, and 1 or more and not less"
            )
        if self.replica_gpus < 0 or (self.replica_gpus > 1 and self.replica_gpus % 1):
            raise UserError(f"replica_gpus is {self.replica_gpus}: give 0, a fraction up to 1, or a whole number")
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise UserError(f"device is {self.device!r}, which is none of auto, cpu, cuda: choose one of them")

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.max_replicas is None else self.max_replicas


class ModelServer:
    """A model replica: loads checkpoint and codec once, and answers with its engine."""

    def __init__(self, config: ServeConfig) -> None:
        from serving.loading import load_engine
        from serving.replies import Replies

        self._config = config
        self._engine = load_engine(
            checkpoint=config.checkpoint,
            codec=config.codec,
            device=config.device,
            threads=config.replica_threads,
            max_duration_s=config.max_duration_s,
            max_audio_s=config.max_audio_s,
            hang_after_s=config.hang_after_s,
        )
        self._replies = Replies(self._engine, concurrent=config.concurrent)
        ReplicaMetrics().watch(self._engine.denoiser)

    async def play(self, vocal: bytes, request: AccompanimentRequest, timeout_s: float | None) -> AsyncIterator[Message]:
        """One request; a fault of the user's is told as a problem."""
        async with aclosing(self._replies.play(vocal, request, timeout_s=timeout_s)) as messages:
            async for message in messages:
                yield message

    async def info(self) -> ModelInfo:
        return self._engine.info()

    async def check_health(self) -> None:
        stalled_s = self._engine.stalled_s()
        if stalled_s > self._config.hang_after_s:
            raise RuntimeError(f"the model has made no denoising step for {stalled_s:.0f} s")
        if self._engine.denoiser.failures >= MOST_FAILURES:
            raise RuntimeError(f"the network failed {self._engine.denoiser.failures} times in succession")


class ReplicaBackend:
    """The backend of an ingress replica: model replicas behind a Serve handle."""

    def __init__(self, model: DeploymentHandle, application: str, *, may_sleep: bool, retry_after_s: float = 5.0) -> None:
        """may_sleep: no replica at all is a healthy state; a request wakes one."""
        self._model = model
        self._application = application
        self._may_sleep = may_sleep
        self._retry_after_s = retry_after_s
        self._info: ModelInfo | None = None
        self._ready: tuple[float, str | None] = (-READY_CACHE_S, None)

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        """A request is a function of its seed, so one that died with its replica is simply asked again, once; of a stream that had begun,
        the bytes that were sent are made again and skipped."""
        sent = 0
        began_s = time.monotonic()
        for last in (False, True):
            left_s = None if timeout_s is None else max(0.001, timeout_s - (time.monotonic() - began_s))
            answers: Any = self._model.options(stream=True).play.remote(vocal, request, left_s)
            skip = sent
            try:
                async for message in answers:
                    if isinstance(message, AccompanimentResult) and not sent:
                        sent = len(message.audio)
                        yield message
                    elif isinstance(message, AccompanimentResult | bytes):
                        data = message if isinstance(message, bytes) else message.audio
                        fresh, skip = data[skip:], max(0, skip - len(data))
                        sent += len(fresh)
                        if fresh:
                            yield fresh
                    else:
                        yield message
                return
            except BackPressureError:
                yield self._unavailable("Full", "all places in the queue are taken; try again after the time in Retry-After")
                return
            except DeploymentUnavailableError:
                yield self._unavailable("Not ready", "no model could be loaded; the service's log has the reason")
                return
            except (RayActorError, ReplicaUnavailableError) as error:
                log.warning("a model replica died with a request%s: %s", "" if last else ", asking another", error)
            finally:
                answers.cancel()
        yield self._unavailable("Replica lost", "the replicas working on this request died; try again after the time in Retry-After")

    async def models(self) -> list[ModelInfo]:
        """Asked once: it does not change for as long as a deployment lives."""
        if self._info is None:
            try:
                async with asyncio.timeout(INFO_TIMEOUT_S):
                    self._info = await self._model.info.remote()
            except (TimeoutError, RayActorError, BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
                problem = self._unavailable(
                    "Not ready", "the model is still being loaded, or busy; try again after the time in Retry-After"
                )
                raise ProblemError(problem) from error
        return [self._info]

    async def not_ready(self) -> str | None:
        """What Serve's controller knows, so that a busy model does not look like a missing one; asked at most once a second."""
        checked_s, reason = self._ready
        if time.monotonic() - checked_s >= READY_CACHE_S:
            try:
                async with asyncio.timeout(CONTROLLER_TIMEOUT_S):
                    status = await asyncio.to_thread(ray_serve.status)
            except TimeoutError:
                return "Ray Serve's controller does not answer"
            application = status.applications.get(self._application)
            model = application.deployments.get(MODEL_DEPLOYMENT) if application else None
            running = model.replica_states.get(ReplicaState.RUNNING, 0) if model else 0
            asleep = self._may_sleep and model is not None and model.status == DeploymentStatus.HEALTHY
            reason = (
                None
                if running or asleep
                else f"no model replica is running ({model.message or model.status.value if model else 'not deployed'})"
            )
            self._ready = (time.monotonic(), reason)
        return reason

    def _unavailable(self, title: str, detail: str) -> Problem:
        return Problem(status=503, title=title, detail=detail, retry_after_s=self._retry_after_s)


class Ingress:
    """HTTP in front of the model replicas."""

    def __init__(self, model: DeploymentHandle, config: AppConfig, may_sleep: bool) -> None:
        self._backend = ReplicaBackend(model, ray_serve.get_replica_context().app_name, may_sleep=may_sleep)
        self._config = config

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._backend, self._config, IngressMetrics())


# Bound below the classes, not by decorators: a class stays a class, for readers and type checkers alike.
MODEL: Deployment = ray_serve.deployment(name=MODEL_DEPLOYMENT)(ModelServer)
INGRESS: Deployment = ray_serve.deployment(name="Ingress")(ray_serve.ingress()(Ingress))


def application(config: ServeConfig) -> Application:
    """Both deployments, bound. API keys come from BACKLINE_API_KEYS of the process that builds; only their digests are deployed."""
    settings = Settings.from_environment()
    # Replicas start at different times, and must all load the version that the alias means now.
    config = replace(config, checkpoint=pinned(config.checkpoint, settings))
    full = BackpressureConfig(status_code=503, retry_after_s=5)
    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if config.most_replicas != config.replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=config.replicas,
                max_replicas=config.most_replicas,
                # What one replica's network evaluates together; more than that wants another replica.
                target_ongoing_requests=config.target_ongoing,
                upscale_delay_s=5,
                downscale_delay_s=120,
            )
        }
    model = MODEL.options(
        **scaling,
        max_ongoing_requests=config.concurrent,
        # The ingress counts exactly what it lets in; this holds should there be many ingresses.
        max_queued_requests=config.max_pending,
        backpressure_config=full,
        graceful_shutdown_timeout_s=config.drain_s,
        health_check_period_s=2,
        health_check_timeout_s=30,
        # A checkpoint that is not there will not be there at the twentieth attempt either.
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": config.replica_cpus, "num_gpus": config.replica_gpus, **where_models_are(config, settings)},
    ).bind(config)
    limits = AppConfig(
        max_upload_bytes=int(config.max_upload_mb * 2**20),
        upload_timeout_s=config.upload_timeout_s,
        max_pending=config.max_pending,
        max_pending_per_caller=config.max_pending_per_caller or max(1, config.max_pending // 2),
        request_timeout_s=config.request_timeout_s,
        echo_request_id=False,
        api_key_digests=tuple(digest(key) for key in settings.api_keys),
    )
    return INGRESS.options(
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=INGRESS_ONGOING,
        max_queued_requests=INGRESS_ONGOING,
        backpressure_config=full,
        graceful_shutdown_timeout_s=config.drain_s,
        ray_actor_options={"num_cpus": LIGHT_CPUS},
    ).bind(model, limits, config.replicas == 0)


def where_models_are(config: ServeConfig, settings: Settings) -> dict[str, Any]:
    """A replica's variables, on a cluster that was started elsewhere, for a checkpoint of a registry."""
    return {"runtime_env": {"env_vars": registry_environment(settings)}} if is_registered(config.checkpoint) else {}


def build(args: dict[str, Any]) -> Application:
    """The application for `serve build` and `serve deploy`: `import_path: serving.deployments:build`, `args:` the fields of ServeConfig."""
    try:
        config: ServeConfig = TypeAdapter(ServeConfig).validate_python(args)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}" for found in error.errors())
        raise UserError(f"args of serving.deployments:build: {faults}; see ServeConfig for what there is") from error
    return application(config)


@dataclass(kw_only=True)
class RunningService:
    """A service that answers at `url` until `stop()`."""

    url: str
    dashboard_url: str | None
    _stack: ExitStack = field(repr=False)

    def stop(self) -> None:
        """Ends the service and whatever `start` had started for it."""
        self._stack.close()

    def __enter__(self) -> "RunningService":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(config: ServeConfig, *, wait_until_ready: bool = True) -> RunningService:
    """Starts the service on Ray; returns when it is ready (or, without waiting, as soon as HTTP answers).

    Raises: UserError when the model cannot be loaded or the port is taken; nothing is left running then.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(config.address, config.num_cpus))
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        # On a cluster that serves something already, only what is ours is taken down again.
        shared = bool(ray_serve.status().proxies)
        if not shared and (config.address or Settings.from_environment().ray_address) in (None, "local"):
            require_free(config.host, config.port)
        target = ray_serve.RunTarget(target=application(config), name=APPLICATION, route_prefix="/", logging_config=quiet)
        if shared:
            stack.callback(ray_serve.delete, APPLICATION)
        else:
            stack.callback(ray_serve.shutdown)
        try:
            ray_serve.start(
                proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=config.host, port=config.port), logging_config=quiet
            )
            ray_serve.run_many([target], wait_for_applications_running=wait_until_ready)
        except (RuntimeError, TimeoutError, RayError) as error:
            raise UserError(f"the service did not start: {_reason(str(error))}") from error
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        return RunningService(url=f"http://{host}:{config.port}", dashboard_url=cluster.dashboard_url, _stack=stack.pop_all())


def require_free(host: str, port: int) -> None:
    """UserError unless this machine lets one listen there; Ray Serve itself tells it only after trying for long."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(f"nothing can listen at {host}, port {port} ({error.strerror}): give --port another one") from error


def serve(config: ServeConfig) -> None:
    """Runs the service until SIGINT or SIGTERM."""
    stopping = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with start(config) as service:
            log.info("backline answers at %s (the page), %s/docs (the interface); Ctrl-C ends it", service.url, service.url)
            stopping.wait()
            log.info("stopping")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(message: str) -> str:
    """The last line of a replica's traceback says most."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
