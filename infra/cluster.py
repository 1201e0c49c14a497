"""Ray from the driver's side: join the cluster that is named, or run one on this machine for as long as the work lasts."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.errors import UserError
from infra.settings import Settings, export, ray_environment

log = logging.getLogger(__name__)

# Reading and writing take a CPU each beside the actors; with fewer, a pipeline waits for itself forever (ray#44687). CPUs are only tickets
# here, so a small machine hands out more of them than it has. (Eight on two cores took a minute to start.)
LEAST_ADVERTISED_CPUS = 4
PROBE_TIMEOUT_S = 5.0
START_ATTEMPTS = 4
START_PAUSE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that this process is connected to."""

    address: str
    """host:port, for RAY_ADDRESS of another driver."""
    dashboard_url: str | None
    started_here: bool


@contextmanager
def connect(address: str | None = None, num_cpus: int | None = None, *, include_dashboard: bool = False) -> Iterator[Cluster]:
    """Connect to Ray and leave again.

    `address`, or RAY_ADDRESS (which Ray sets inside a submitted job), is joined; without either a cluster starts on this machine and ends
    with the block. A process that is connected already stays as it is. Nothing that was not started here is ended.

    Raises: UserError when the named cluster does not answer.
    """
    export(ray_environment())
    import ray

    if ray.is_initialized():
        yield _describe(started_here=False)
        return
    settings = Settings.from_environment()
    wanted = address or settings.ray_address
    if wanted is None or wanted == "local":
        cpus = num_cpus or max(LEAST_ADVERTISED_CPUS, os.cpu_count() or 1)
        log.info("starting Ray on this machine with %d CPU tickets", cpus)
        with _sigterm_handler_kept():
            _start(cpus, include_dashboard)
    else:
        # Inside a submitted job its own runtime environment is in force, and Ray refuses a second one.
        runtime_env = None if settings.in_ray_job else {"env_vars": ray_environment()}
        _require_answer(wanted)
        try:
            with _sigterm_handler_kept():
                ray.init(address=wanted, runtime_env=runtime_env, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise UserError(
                f"no Ray cluster at {wanted}: start one with `ray start --head`, or unset RAY_ADDRESS ({first_line})"
            ) from error
    try:
        cluster = _describe(started_here=wanted is None or wanted == "local")
        if cluster.dashboard_url:
            log.info("Ray dashboard: %s", cluster.dashboard_url)
        yield cluster
    finally:
        # For a joined cluster this only disconnects.
        ray.shutdown()


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and aborts on it: a process with a handler of its own, to end in order, has it again after the block.
    In the main thread: others may set none."""
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(former) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, former)


def _start(cpus: int, include_dashboard: bool) -> None:
    """A cluster on this machine. Ray gives its agent 15 s to come up and then ends, which happens on a busy machine: then again.

    Token authentication is Ray's default for a cluster that a driver starts (the token lies in ~/.ray/auth_token). Its mode is cached when
    ray is imported, so RAY_AUTH_MODE is left to Ray; at ERROR it does not announce it each time.
    """
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=include_dashboard, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            if "timed out" not in str(error).lower():
                raise
            if attempt == START_ATTEMPTS:
                raise UserError(f"Ray did not start on this machine in {attempt} attempts: wait until it is less busy ({error})") from error
            log.warning("Ray did not start in time, attempt %d of %d: %s", attempt, START_ATTEMPTS, error)
            time.sleep(START_PAUSE_S * attempt)


def _require_answer(address: str) -> None:
    """Ray itself tries an address where nobody listens for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto", "local": Ray looks them up on this machine
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at {address}: start one with `ray start --head`, or unset RAY_ADDRESS ({error})") from error


def _describe(*, started_here: bool) -> Cluster:
    import ray

    url = ray._private.worker.get_dashboard_url()
    if url and "://" not in url:
        url = f"http://{url}"
    return Cluster(address=ray.get_runtime_context().gcs_address, dashboard_url=url or None, started_here=started_here)
