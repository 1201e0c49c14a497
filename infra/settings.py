"""What the environment says: the only file that reads or writes environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import UserError

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LOG_FORMATS = ("text", "json")

# pyarrow's and boto's newer default checksums are refused by Ceph (411 on multipart uploads) and stored corrupt by one other
# server: ask for them only where the S3 protocol requires them.
S3_ENVIRONMENT = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """How to reach an S3 server. Without keys, the standard AWS chain of the process that connects (profile, instance role) is asked.

    It travels with a `Place` into Ray's workers, so that a cluster that was started before the variables were set reads the same
    server; keys are kept out of its printed form.
    """

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise UserError(
                f"AWS_ENDPOINT_URL is {self.endpoint_url!r}, which is not a URL: give scheme, host and port, for example http://127.0.0.1:9000"
            )
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise UserError("only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set: set both, or neither")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that backline takes from environment variables, read once where a command starts."""

    s3: S3Access = S3Access()
    mlflow_tracking_uri: str | None = None
    mlflow_registry_uri: str | None = None
    """MLFLOW_REGISTRY_URI: where registered models are, when not at the tracking server."""
    ray_address: str | None = None
    """RAY_ADDRESS: the cluster to join; set by Ray itself inside a submitted job."""
    in_ray_job: bool = False
    """Whether this process is the driver of a submitted Ray job."""
    api_keys: tuple[str, ...] = ()
    """BACKLINE_API_KEYS, comma-separated; empty means that the service asks for no key."""
    log_level: str = "INFO"
    log_format: str = "text"
    """BACKLINE_LOG_FORMAT: text for people, or json, one object a line."""
    otlp_endpoint: str | None = None
    """OTEL_EXPORTER_OTLP_ENDPOINT: the collector that the service's traces go to, over HTTP; without it there are none."""
    commit: str | None = None
    """BACKLINE_COMMIT: the git commit of this code, for a folder without its history; `backline submit` sets it in a job."""
    checkpoint: str | None = None
    """BACKLINE_CHECKPOINT: the place of the checkpoint that generate and serve load when none is named."""
    banks: tuple[str, ...] = ()
    """BACKLINE_BANKS, comma-separated: the instrument banks that the demo corpus plays when none is named, each URI[=WEIGHT] or a
    folder of them."""
    voices: tuple[str, ...] = ()
    """BACKLINE_VOICES, comma-separated: the singers of the demo corpus when none is named, each NAME[=WEIGHT]."""
    cache: Path = Path("~/.cache/backline")
    """BACKLINE_CACHE: where objects from S3 and downloaded weights are kept."""

    def __post_init__(self) -> None:
        if self.log_level not in LOG_LEVELS:
            raise UserError(f"BACKLINE_LOG_LEVEL is {self.log_level!r}, which is not one of {', '.join(LOG_LEVELS)}: set one of these")
        if self.log_format not in LOG_FORMATS:
            raise UserError(f"BACKLINE_LOG_FORMAT is {self.log_format!r}, which is not one of {', '.join(LOG_FORMATS)}: set one of these")
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise UserError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT is {self.otlp_endpoint!r}, which is not a URL: give scheme, host and port, "
                "for example http://127.0.0.1:4318"
            )

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> "Settings":
        """Settings from `environment`, or from the process's own variables. An empty variable counts as not set."""
        source = os.environ if environment is None else environment
        given = {name: value.strip() for name, value in source.items() if value.strip()}
        return Settings(
            s3=S3Access(
                endpoint_url=given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL"),
                region=given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or "us-east-1",
                access_key_id=given.get("AWS_ACCESS_KEY_ID"),
                secret_access_key=given.get("AWS_SECRET_ACCESS_KEY"),
                session_token=given.get("AWS_SESSION_TOKEN"),
                ca_bundle=given.get("AWS_CA_BUNDLE"),
            ),
            mlflow_tracking_uri=given.get("MLFLOW_TRACKING_URI"),
            mlflow_registry_uri=given.get("MLFLOW_REGISTRY_URI"),
            ray_address=given.get("RAY_ADDRESS"),
            in_ray_job="RAY_JOB_CONFIG_JSON_ENV_VAR" in given,
            api_keys=tuple(key.strip() for key in given.get("BACKLINE_API_KEYS", "").split(",") if key.strip()),
            log_level=given.get("BACKLINE_LOG_LEVEL", "INFO").upper(),
            log_format=given.get("BACKLINE_LOG_FORMAT", "text").lower(),
            otlp_endpoint=given.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
            commit=given.get("BACKLINE_COMMIT"),
            checkpoint=given.get("BACKLINE_CHECKPOINT"),
            banks=tuple(bank.strip() for bank in given.get("BACKLINE_BANKS", "").split(",") if bank.strip()),
            voices=tuple(voice.strip() for voice in given.get("BACKLINE_VOICES", "").split(",") if voice.strip()),
            cache=Path(given.get("BACKLINE_CACHE", "~/.cache/backline")).expanduser(),
        )


def ray_environment() -> dict[str, str]:
    """What Ray and pyarrow need in a driver and in its workers. (Threads: Ray itself gives each actor OMP_NUM_THREADS = num_cpus.)"""
    return {
        **S3_ENVIRONMENT,
        # Under `uv run` each worker would copy the folder and build an environment of its own.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A driver that hides the GPU from actors with num_gpus=0 is announced at each start; we want the coming default.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Serve's controller starts a dead proxy anew after three checks of it: with its own 10 s nothing is answered for half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # Behind HAProxy (RAY_SERVE_ENABLE_HA_PROXY) an ingress that ends would wait half a minute for it, which knows within a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    }


def log_environment(settings: Settings) -> dict[str, str]:
    """What Ray must find when it is imported, so that a driver prints each line of a replica's log once, and JSON without a prefix."""
    as_json = {"RAY_DISABLE_WORKER_LOG_PREFIX": "1", "RAY_COLOR_PREFIX": "0"} if settings.log_format == "json" else {}
    # Ray prints one of several workers' lines that differ only in words with digits: two replicas' requests do.
    return {"RAY_DEDUP_LOGS_ALLOW_REGEX": r"\bserving\.", **as_json}


def job_environment() -> dict[str, str]:
    """What a submitted job needs besides: where things are, as this process knows it. Keys stay: a job's variables can be read by all."""
    names = (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "BACKLINE_LOG_LEVEL",
        "BACKLINE_LOG_FORMAT",
    )
    return {**ray_environment(), **{name: os.environ[name] for name in names if os.environ.get(name)}}


def access_environment(settings: Settings) -> dict[str, str]:
    """What another process of ours needs to reach the same storage and the same tracking, keys included."""
    given = {
        "AWS_ENDPOINT_URL": settings.s3.endpoint_url, "AWS_DEFAULT_REGION": settings.s3.region,
        "AWS_ACCESS_KEY_ID": settings.s3.access_key_id, "AWS_SECRET_ACCESS_KEY": settings.s3.secret_access_key,
        "AWS_SESSION_TOKEN": settings.s3.session_token, "AWS_CA_BUNDLE": settings.s3.ca_bundle,
        "BACKLINE_LOG_LEVEL": settings.log_level, "BACKLINE_LOG_FORMAT": settings.log_format,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value} | registry_environment(settings)


def registry_environment(settings: Settings) -> dict[str, str]:
    """What another process needs to find a registered model."""
    given = {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri, "MLFLOW_REGISTRY_URI": settings.mlflow_registry_uri}
    return {name: value for name, value in given.items() if value}


def client_environment() -> dict[str, str]:
    """What a client of a cluster's dashboard needs before it imports Ray: the token of this machine, where there is one.

    A cluster that asks for no token does not mind one; without this a client sends none unless it is told to.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return {"RAY_AUTH_MODE": "token"} if os.environ.get("RAY_AUTH_TOKEN") or path.exists() else {}


def export(environment: Mapping[str, str]) -> None:
    """Set what is not set yet, for this process and those that it starts: the user's own choice stands."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
