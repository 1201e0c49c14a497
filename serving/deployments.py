"""The service on Ray Serve: a thin HTTP ingress, which imports no torch, and model replicas that each hold an engine."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from fastapi import FastAPI
from pydantic import ConfigDict, TypeAdapter, ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from infra.cluster import connect
from infra.errors import UserError
from infra.places import checkpoint_folder, is_registered, pinned
from infra.settings import Settings, registry_environment
from model.errors import ModelError
from serving.admission import digest
from serving.app import AppConfig, Message, create_app
from serving.backends import DEFAULT_MODEL, ModelsBackend, ReplicaBackend
from serving.schema import AccompanimentRequest, ModelInfo
from serving.telemetry import IngressMetrics, ReplicaMetrics

log = logging.getLogger(__name__)

APPLICATION = "backline"
MODEL_DEPLOYMENT = "Model"
MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
READY_CACHE_S = 1.0
CONTROLLER_TIMEOUT_S = 5.0
INFO_TIMEOUT_S = 5.0
HUNG_EXIT = 70
MOST_FAILURES = 3
"""Failed steps in succession after which a replica's device is given up."""
LIGHT_CPUS = 0.01
"""CPU tickets of an ingress replica: it carries bytes, and must fit beside the model on the smallest machine."""
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
# An upload is held by the ingress until its answer goes out; this is only the ceiling for everything else (health, page, refusals).
INGRESS_ONGOING = 1_000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One service: which model, where it listens, how it scales and what it refuses."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    """Place of a checkpoint or of a training run, or models:/NAME@ALIAS; BACKLINE_CHECKPOINT, else the one that ships with backline."""
    models: tuple[str, ...] = ()
    """More models, each NAME=PLACE, which the form's field `model` chooses; each has replicas of its own, as many as `replicas` says."""
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
    reload_every_s: float = 60.0
    """How often `backline serve` looks whether an alias of the registry means another version, and rolls it out; 0 = never."""
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

        for entry in self.models:
            name, _, place = entry.partition("=")
            if not MODEL_NAME.fullmatch(name) or not place:
                raise UserError(f"models has {entry!r}, which is not NAME=PLACE, NAME of letters, digits and . _ -: give tuned=runs/tuned")
        names = [entry.partition("=")[0] for entry in self.models]
        if len(set(names)) < len(names):
            raise UserError(f"models names one twice ({', '.join(names)}): give each a name of its own")

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
            # Serve would let this replica finish what it has, for drain_s; but a device that hangs finishes nothing, and whoever waits for
            # it can be answered elsewhere. So it ends as a killed one does.
            log.critical("no denoising step for %.0f s: this replica ends, and its requests are asked again elsewhere", stalled_s)
            os._exit(HUNG_EXIT)
        if self._engine.denoiser.failures >= MOST_FAILURES:
            raise RuntimeError(f"the network failed {self._engine.denoiser.failures} times in succession")


class Ingress:
    """HTTP in front of the model replicas."""

    def __init__(self, models: dict[str, DeploymentHandle], config: AppConfig, may_sleep: bool) -> None:
        """models: the first is the default; its deployment is MODEL_DEPLOYMENT."""
        name = ray_serve.get_replica_context().app_name
        backends = {model: ReplicaBackend(handle, name, deployment_of(model), may_sleep=may_sleep) for model, handle in models.items()}
        self._backend = ModelsBackend(backends)
        self._config = config

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._backend, self._config, IngressMetrics())


# Bound below the classes, not by decorators: a class stays a class, for readers and type checkers alike.
MODEL: Deployment = ray_serve.deployment(name=MODEL_DEPLOYMENT)(ModelServer)
INGRESS: Deployment = ray_serve.deployment(name="Ingress")(ray_serve.ingress()(Ingress))


def application(config: ServeConfig) -> Application:
    """The ingress and the models, bound. API keys are those of BACKLINE_API_KEYS here; only their digests are deployed."""
    settings = Settings.from_environment()
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
    places = {DEFAULT_MODEL: config.checkpoint, **dict(entry.split("=", 1) for entry in config.models)}
    models = {}
    for name, place in places.items():
        # Replicas start at different times, and must all load the version that the alias means now.
        one = replace(config, checkpoint=pinned(place, settings), models=())
        models[name] = MODEL.options(
            name=deployment_of(name),
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
            ray_actor_options={"num_cpus": config.replica_cpus, "num_gpus": config.replica_gpus, **where_models_are(one, settings)},
        ).bind(one)
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
    ).bind(models, limits, config.replicas == 0)


def deployment_of(model: str) -> str:
    """The name of a model's deployment."""
    return f"{MODEL_DEPLOYMENT}-{model}" if model else MODEL_DEPLOYMENT


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
        # On a cluster that serves something already, only what is ours is taken down again.
        shared = bool(ray_serve.status().proxies)
        if not shared and (config.address or Settings.from_environment().ray_address) in (None, "local"):
            require_free(config.host, config.port)
        target = _target(config)
        if shared:
            stack.callback(ray_serve.delete, APPLICATION)
        else:
            stack.callback(ray_serve.shutdown)
        try:
            ray_serve.start(
                proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=config.host, port=config.port), logging_config=QUIET
            )
            ray_serve.run_many([target], wait_for_applications_running=wait_until_ready)
        except (RuntimeError, TimeoutError, RayError) as error:
            raise UserError(f"the service did not start: {_reason(str(error))}") from error
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        return RunningService(url=f"http://{host}:{config.port}", dashboard_url=cluster.dashboard_url, _stack=stack.pop_all())


def versions_of(config: ServeConfig) -> list[str | None]:
    """What the places of the service's models mean now."""
    settings = Settings.from_environment()
    return [pinned(place, settings) for place in (config.checkpoint, *(entry.partition("=")[2] for entry in config.models))]


def reload(config: ServeConfig, served: list[str | None]) -> list[str | None]:
    """Rolls out what aliases mean now, where it is no longer what is served: new replicas load it, and old ones finish what they have.
    Returns what is served then. A registry that does not answer, or a version that cannot be loaded, leaves what there is."""
    from model.checkpoint import SHIPPED_CHECKPOINT, load_checkpoint  # torch, which an ingress does without

    try:
        found = versions_of(config)
        if found != served:
            fresh = [place for place in found if place not in served]
            for place in fresh:
                # A version that cannot be loaded must not cost the replicas that serve.
                load_checkpoint(checkpoint_folder(place, Settings.from_environment(), SHIPPED_CHECKPOINT))
            log.info("rolling out %s", ", ".join(map(str, fresh)))
            ray_serve.run_many([_target(config)], wait_for_applications_running=True)
        return found
    except (UserError, ModelError, RuntimeError, TimeoutError, RayError) as error:
        log.warning("the models stay as they are: %s", _reason(str(error)))
        return served


def _target(config: ServeConfig) -> ray_serve.RunTarget:
    return ray_serve.RunTarget(target=application(config), name=APPLICATION, route_prefix="/", logging_config=QUIET)


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
            versions = versions_of(config)
            while not stopping.wait(config.reload_every_s or None):
                versions = reload(config, versions)
            log.info("stopping")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(message: str) -> str:
    """The last line of a replica's traceback says most."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
