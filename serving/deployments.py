"""The service on Ray Serve: a thin HTTP ingress, which imports no torch, and model replicas that each hold an engine."""

import logging
import signal
import socket
import time
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig, ReplicaState

from infra.cluster import connect
from infra.errors import UserError
from infra.logs import configure
from infra.resolve import checkpoint_folder, is_registered, pinned
from infra.settings import Settings, registry_environment
from infra.storage.place import Place
from model.errors import ModelError
from serving.config import DEFAULT_MODEL, ServeConfig
from serving.http.admission import digest
from serving.http.app import AppConfig, create_app
from serving.observe.metrics import IngressMetrics, Reporting
from serving.replica.model_server import ModelServer
from serving.replica.replica_backend import ModelsBackend, ReplicaBackend

log = logging.getLogger(__name__)

APPLICATION = "backline"
MODEL_DEPLOYMENT, INGRESS_DEPLOYMENT = "Model", "Ingress"
LIGHT_CPUS = 0.01
"""CPU tickets of an ingress replica: it carries bytes, and must fit beside the model on the smallest machine."""
# An upload is held by the ingress until its answer goes out; this is only the ceiling for everything else (health, page, refusals).
INGRESS_ONGOING = 1_000
DRAIN_POLL_S = 0.2
WORKING = (ReplicaState.RUNNING, ReplicaState.UPDATING, ReplicaState.STOPPING)
"""States of a replica that may have requests in work; one that stops finishes them."""
REFUSED_WITHIN_S = 6.0
"""In which the ingress has refused those that wait for a replica (`serving.replica.replica_backend.WAITING_LOOK_S`)."""


class Ingress:
    """HTTP in front of the model replicas."""

    def __init__(self, models: dict[str, DeploymentHandle], config: AppConfig, may_sleep: bool, shared: bool, reporting: Reporting) -> None:
        """models: the first is the default. shared: they have one deployment."""
        self._tracer = reporting.begin("ingress")
        name = ray_serve.get_replica_context().app_name
        self._backend = ModelsBackend(
            {
                model: ReplicaBackend(
                    handle.options(multiplexed_model_id=model) if shared else handle,
                    name,
                    deployment_of(DEFAULT_MODEL if shared else model),
                    model,
                    may_sleep=may_sleep,
                )
                for model, handle in models.items()
            }
        )
        self._config = config

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._backend, self._config, IngressMetrics(), self._tracer)


# Bound below the classes, not by decorators: a class stays a class, for readers and type checkers alike.
MODEL: Deployment = ray_serve.deployment(name=MODEL_DEPLOYMENT)(ModelServer)
INGRESS: Deployment = ray_serve.deployment(name=INGRESS_DEPLOYMENT)(ray_serve.ingress()(Ingress))


def application(config: ServeConfig, places: dict[str, str | None] | None = None) -> Application:
    """The ingress and the models, bound. API keys are those of BACKLINE_API_KEYS here; only their digests are deployed.

    places: the models' places as `versions_of` gave them; by default what they mean now.
    """
    settings = Settings.from_environment()
    reporting = Reporting.of(settings)
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
                downscale_delay_s=config.downscale_delay_s,
            )
        }
    # Replicas start at different times, and must all load the same version.
    places = versions_of(config) if places is None else places
    groups = [places] if config.models_per_replica else [{name: place} for name, place in places.items()]
    models = dict[str, Application]()
    for group in groups:
        shared = MODEL.options(
            name=deployment_of(next(iter(group))),
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
            ray_actor_options={**replica_resources(config), **where_models_are(group, settings)},
        ).bind(config, group, config.models_per_replica or 1, reporting)
        models |= dict.fromkeys(group, shared)
    limits = AppConfig(
        max_upload_bytes=int(config.max_upload_mb * 2**20),
        upload_timeout_s=config.upload_timeout_s,
        max_pending=config.max_pending,
        max_pending_per_caller=config.max_pending_per_caller or max(1, config.max_pending // 2),
        request_timeout_s=config.request_timeout_s,
        keep_requests=Place(config.keep_requests) if config.keep_requests else None,
        echo_request_id=False,
        api_key_digests=tuple(digest(key) for key in settings.api_keys),
        allowed_hosts=config.allowed_hosts,
    )
    return INGRESS.options(
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=INGRESS_ONGOING,
        max_queued_requests=INGRESS_ONGOING,
        backpressure_config=full,
        # A request that loses its model replica is asked elsewhere, one that loses its ingress is lost: that one waits for the longest.
        graceful_shutdown_timeout_s=max(config.drain_s, config.request_timeout_s),
        ray_actor_options={"num_cpus": LIGHT_CPUS},
    ).bind(models, limits, config.replicas == 0, config.models_per_replica > 0, reporting)


def deployment_of(model: str) -> str:
    """The name of a model's deployment."""
    return MODEL_DEPLOYMENT if model == DEFAULT_MODEL else f"{MODEL_DEPLOYMENT}-{model}"


def replica_resources(config: ServeConfig) -> dict[str, Any]:
    """What a model replica takes of a node."""
    memory = {} if config.replica_memory_gb is None else {"memory": int(config.replica_memory_gb * 1e9)}
    return {"num_cpus": config.replica_cpus, "num_gpus": config.replica_gpus, **memory}


def where_models_are(places: dict[str, str | None], settings: Settings) -> dict[str, Any]:
    """A replica's variables, on a cluster that was started elsewhere, for checkpoints of a registry."""
    return {"runtime_env": {"env_vars": registry_environment(settings)}} if any(map(is_registered, places.values())) else {}


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
    places: dict[str, str | None]
    """What its models were loaded from when it started, by their names."""
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
        places = versions_of(config)
        target = _target(config, places)
        if not shared:
            stack.callback(ray_serve.shutdown)
        try:
            ray_serve.start(
                proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=config.host, port=config.port), logging_config=_quiet()
            )
            stack.callback(_drain, config.drain_s)
            ray_serve.run_many([target], wait_for_applications_running=wait_until_ready)
        except (RuntimeError, TimeoutError, RayError) as error:
            raise UserError(f"the service did not start: {_reason(str(error))}") from error
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        url = f"http://{host}:{config.port}"
        return RunningService(url=url, dashboard_url=cluster.dashboard_url, places=places, _stack=stack.pop_all())


def versions_of(config: ServeConfig) -> dict[str, str | None]:
    """What the places of the service's models mean now, by the models' names."""
    settings = Settings.from_environment()
    return {name: pinned(place, settings) for name, place in config.places.items()}


def reload(config: ServeConfig, served: dict[str, str | None]) -> dict[str, str | None]:
    """Rolls out what aliases mean now, where it is no longer what is served: new replicas load it, and old ones finish what they have.
    Returns what is served then. A registry that does not answer, or a version that cannot be loaded, leaves what there is; the next look
    tries again."""
    from model.checkpoint import SHIPPED_CHECKPOINT, load_checkpoint  # torch, which an ingress does without

    try:
        found = versions_of(config)
        if found != served:
            fresh = [place for name, place in found.items() if place != served[name]]
            for place in fresh:
                # A version that cannot be loaded must not cost the replicas that serve.
                load_checkpoint(checkpoint_folder(place, Settings.from_environment(), SHIPPED_CHECKPOINT))
            log.info("rolling out %s", ", ".join(map(str, fresh)))
            ray_serve.run_many([_target(config, found)], wait_for_applications_running=True)
        return found
    except (UserError, ModelError, RuntimeError, TimeoutError, RayError) as error:
        log.warning("the models stay as they are: %s", _reason(str(error)))
        return served
    except Exception:  # a full disk, a fault of ours: no reason to end a service that answers
        log.exception("the models stay as they are")
        return served


def _drain(within_s: float) -> None:
    """Takes the application down once its requests have their answers; new ones get Serve's own 404. Its `shutdown` closes connections at
    once, and its `delete` waits for a minute, however long requests may take."""
    try:
        found = ray_serve.status().applications.get(APPLICATION)
        models = [deployment for name, deployment in found.deployments.items() if name != INGRESS_DEPLOYMENT] if found else []
        works = any(model.replica_states.get(state) for model in models for state in WORKING)
        if works:
            log.info("requests in work are finished within %g s, no new ones are taken", within_s)
        else:
            within_s = min(within_s, REFUSED_WITHIN_S)  # a replica that is not there yet would be waited for in vain
        ray_serve.delete(APPLICATION, _blocking=False)
        ends_s = time.monotonic() + within_s
        while APPLICATION in ray_serve.status().applications:
            if time.monotonic() > ends_s:
                if works:
                    log.warning("%g s were not enough: what is still in work is lost (--drain-s)", within_s)
                return
            time.sleep(DRAIN_POLL_S)
    except (RayError, RayServeException) as error:  # somebody else has ended Serve
        log.warning("the service's requests cannot be waited for: %s", _reason(str(error)))


def _target(config: ServeConfig, places: dict[str, str | None]) -> ray_serve.RunTarget:
    return ray_serve.RunTarget(target=application(config, places), name=APPLICATION, route_prefix="/", logging_config=_quiet())


def _quiet() -> LoggingConfig:
    """Ray Serve's own lines, beside ours (`serving.observe.metrics.Reporting`)."""
    encoding = "JSON" if Settings.from_environment().log_format == "json" else "TEXT"
    return LoggingConfig(log_level="WARNING", enable_access_log=False, encoding=encoding)


def require_free(host: str, port: int) -> None:
    """UserError unless this machine lets one listen there; Ray Serve itself tells it only after trying for long."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(f"nothing can listen at {host}, port {port} ({error.strerror}): give --port another one") from error


def serve(config: ServeConfig, *, open_page: bool = False) -> None:
    """Runs the service until SIGINT or SIGTERM, which also end it while it starts or rolls a model out; a second one, while it drains.

    open_page: a browser of this machine, where it has one, opens the page.
    """
    settings = Settings.from_environment()
    configure(settings.log_level, settings.log_format)  # once more: Ray's handlers are there only now

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with start(config) as service:
            log.info("backline answers at %s (the page), %s/docs (the interface); Ctrl-C ends it", service.url, service.url)
            if open_page and not _opened(service.url):
                log.info("no browser with windows was found here: open %s yourself", service.url)
            # Not what aliases mean by now: they may have moved while the models were loaded.
            served = service.places
            while config.reload_every_s:
                time.sleep(config.reload_every_s)
                served = reload(config, served)
            signal.pause()
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _opened(url: str) -> bool:
    """Whether a browser of this machine shows it; one that runs in the terminal would take that and not come back."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return type(browser) is not webbrowser.GenericBrowser and browser.open(url)


def _reason(message: str) -> str:
    """The last line of a replica's traceback says most."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def __getattr__(name: str) -> Application:
    """`app`, which `serve build serving.deployments:app` wants: the application of an empty configuration, built only when asked for."""
    if name == "app":
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
