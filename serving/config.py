"""One service's configuration: the command line's options, and the arguments of `serve deploy`."""

import re
from dataclasses import dataclass

from pydantic import ConfigDict

from infra.errors import UserError
from infra.storage.place import Place

DEFAULT_MODEL = "default"
MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One service: which model, where it listens, how it scales and what it refuses."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    """Place of a checkpoint or of a training run, or models:/NAME@ALIAS; BACKLINE_CHECKPOINT where the service is started or deployed, else
    the one that ships with backline."""
    models: tuple[str, ...] = ()
    """More models, each NAME=PLACE, which the form's field `model` chooses; each has replicas of its own, as many as `replicas` says."""
    models_per_replica: int = 0
    """Models share replicas where this is 1 or more: a replica holds so many, and loads another in place of the one that was asked for
    least recently. 0: each model has replicas of its own."""
    codec: str | None = None
    """Codec spec, where the checkpoint's own codec is kept elsewhere than when it was trained; by default the checkpoint's."""
    host: str = "127.0.0.1"
    """Loopback; 0.0.0.0 listens everywhere: set BACKLINE_API_KEYS then."""
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    """Where no keys are set, so that no page of the web can use a service of this machine: the service's names in public DNS, and the hosts
    of other pages that may ask it; "*" is any. Addresses, names of one word and those below .local, .localhost, .internal need none."""
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
    replica_memory_gb: float | None = None
    """Memory (10^9 bytes) that a node must have free for a model replica; by default it is not asked for."""
    replica_threads: int | None = None
    """Threads that torch uses in a replica; by default the machine's CPUs, at most 8. Give fewer where replicas share a machine."""
    ingress_replicas: int = 1
    concurrent: int = 16
    """Requests inside one model replica at a time; those of one model share the network's evaluations."""
    target_ongoing: float = 4.0
    """Requests inside a replica beyond which another one is started, up to max_replicas. On a GPU 8 and more."""
    downscale_delay_s: float = 120.0
    """Seconds of less load after which a replica too many ends, the last one too where `replicas` is 0; it finishes its requests first."""
    max_audio_s: float = 1800.0
    """Seconds of vocals that one model of a replica has in work, about 1.5 MB each; requests beyond them wait."""
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
    """A replica that has requests and does no work for so long is replaced."""
    drain_s: float = 60.0
    """A replica that is to go finishes its requests within this time."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else a cluster on this machine for as long as the service runs."""
    reload_every_s: float = 60.0
    """How often `backline serve` looks whether an alias of the registry means another version, and rolls it out; 0 = never."""
    keep_requests: str | None = None
    """Where every request's vocal, fields and answer are kept for debugging, a path or an S3 URI; nowhere by default."""
    num_cpus: int | None = None
    """CPU tickets of a cluster that is started here; by default the machine's CPUs, at least 4."""

    def __post_init__(self) -> None:
        positive = (
            "replica_cpus", "ingress_replicas", "concurrent", "max_pending", "target_ongoing", "downscale_delay_s",
            "max_audio_s", "max_upload_mb", "upload_timeout_s", "request_timeout_s", "drain_s",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, which is not positive: give a number above 0")
        if wrong := [host for host in self.allowed_hosts if host != "*" and (set("/:@ *") & set(host) or not host.strip("."))]:
            raise UserError(f"allowed_hosts holds {wrong[0]!r}: give a host alone, for example band.example, or * for any")
        if not 1 <= self.port <= 65_535:
            raise UserError(f"port is {self.port}, which is not within 1 to 65535: choose a free port, for example 8000")
        if self.replicas < 0 or self.most_replicas < max(1, self.replicas):
            raise UserError(
                f"replicas {self.replicas} and max_replicas {self.max_replicas} do not fit: give 0 or more, and 1 or more and not less"
            )
        if self.replica_gpus < 0 or (self.replica_gpus > 1 and self.replica_gpus % 1):
            raise UserError(f"replica_gpus is {self.replica_gpus}: give 0, a fraction up to 1, or a whole number")
        if self.replica_memory_gb is not None and self.replica_memory_gb <= 0:
            raise UserError(f"replica_memory_gb is {self.replica_memory_gb}, which is not positive: give a number above 0, or leave it out")
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise UserError(f"device is {self.device!r}, which is none of auto, cpu, cuda: choose one of them")
        if self.keep_requests is not None:
            Place(self.keep_requests)
        for entry in self.models:
            name, _, place = entry.partition("=")
            if not MODEL_NAME.fullmatch(name) or not place:
                raise UserError(f"models has {entry!r}, which is not NAME=PLACE, NAME of letters, digits and . _ -: give tuned=runs/tuned")
        names = [entry.partition("=")[0] for entry in self.models]
        if len({*names, DEFAULT_MODEL}) <= len(names):
            raise UserError(f"models names one twice ({DEFAULT_MODEL}, {', '.join(names)}): give each a name of its own")
        if self.models_per_replica < 0:
            raise UserError(f"models_per_replica is {self.models_per_replica}: give 0, or how many models a replica may hold")

    @property
    def places(self) -> dict[str, str | None]:
        """Each model's place by its name, the default first."""
        return {DEFAULT_MODEL: self.checkpoint, **dict(entry.split("=", 1) for entry in self.models)}

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.max_replicas is None else self.max_replicas
