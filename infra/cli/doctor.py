"""`backline doctor`: what works on this machine, one line each, with the remedy for what does not."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import Place, StorageError


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report: `run` says what works, or raises with what does not."""

    name: str
    run: Callable[[], str]
    remedy: str
    required: bool = True


def doctor(*, data: str | None = None, checkpoint: str | None = None) -> int:
    """Say what works here: one line each; exit 1 if something needed or asked for is broken.

    Parameters
    ----------
    data: A latent dataset's place, to be read as training would.
    checkpoint: A checkpoint's place, or models:/NAME@ALIAS, to be loaded as serving would.
    """
    settings = Settings.from_environment()
    checks = [
        Check(name="python", run=python, remedy="use Python 3.11 to 3.13"),
        Check(name="torch", run=torch_and_accelerator, remedy="run `make test` once: it installs the locked packages"),
        Check(name="ray", run=ray_cluster, remedy="look for a full /dev/shm or a firewall on loopback; `ray stop` ends stale clusters"),
        Check(name="codec embedded", run=embedded_codec, remedy="git checkout model/weights"),
        Check(
            name="codec stable-audio-open",
            run=lambda: cached("stabilityai/stable-audio-open-1.0", "model.safetensors"),
            remedy="accept the licence on the model's page and set HF_TOKEN, or use stable-audio-open:FOLDER",
            required=False,
        ),
        Check(
            name="separator htdemucs",
            run=lambda: cached("adefossez/HTDemucs", "955717e8.safetensors"),
            remedy="fetched on first use; without a network give --separator FOLDER, a local demucs repository",
            required=False,
        ),
        Check(
            name="mlflow",
            run=lambda: tracking(settings),
            remedy="set MLFLOW_TRACKING_URI to a server that answers, or unset it",
            required=True,
        ),
    ]
    checks.append(
        Check(
            name="object storage",
            run=lambda: object_storage(settings),
            remedy="set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or unset them: only s3:// places need it",
            required=settings.s3.endpoint_url is not None or settings.s3.access_key_id is not None,
        )
    )
    checks.append(
        Check(
            name="instrument banks",
            run=lambda: instrument_banks(settings),
            remedy="apt-get install fluid-soundfont-gm and pip install --no-deps tinysoundfont, or set BACKLINE_BANKS, or leave it unset",
            required=bool(settings.banks),
        )
    )
    if data:
        checks.append(Check(name=f"data {data}", run=lambda: dataset(data), remedy="write it with `backline prepare --out URI`"))
    if checkpoint:
        checks.append(
            Check(
                name=f"checkpoint {checkpoint}",
                run=lambda: network(checkpoint),
                remedy="write it with `backline train --out URI`",
            )
        )
    return 1 if sum([report(check) for check in checks]) else 0


def report(check: Check) -> bool:
    """Prints the check's line; true if it is broken and required."""
    try:
        line, broken = f"ok       {check.name}: {check.run()}", False
    except Exception as error:  # whatever is wrong with this machine is what the command is asked to say
        broken = check.required
        why = " ".join(str(error).split()) or type(error).__name__
        line = f"{'broken  ' if broken else 'missing '} {check.name}: {why}; remedy: {check.remedy}"
    print(line, flush=True)
    return broken


def python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise UserError(f"this is {sys.version.split()[0]}")
    return sys.version.split()[0]


def torch_and_accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.__version__}, {torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return f"{torch.__version__}, no accelerator: runs on {torch.get_num_threads()} CPU threads"


def ray_cluster() -> str:
    import ray

    from infra.cluster import connect

    with connect() as cluster:
        answered = ray.get(ray.remote(lambda: "answers").options(num_cpus=1).remote(), timeout=120)
        return f"{version('ray')}, {ray.cluster_resources().get('CPU', 0):.0f} CPUs, {cluster.address or 'local'} {answered}"


def embedded_codec() -> str:
    import torch

    from model.codec.load import load_codec
    from model.dimensions import HOP_SAMPLES, LATENT_CHANNELS

    codec = load_codec("embedded")
    tone_BCN = 0.1 * torch.sin(2 * torch.pi * 440 / 44_100 * torch.arange(16 * HOP_SAMPLES)).expand(1, 2, -1)
    latent_BCT = codec.encode(tone_BCN)
    if latent_BCT.shape != (1, LATENT_CHANNELS, 16) or not torch.isfinite(codec.decode(latent_BCT)).all():
        raise UserError(f"a tone came back as {tuple(latent_BCT.shape)}")
    return f"weights {codec.identity.weights_sha256[:12]}, a tone goes through it"


def cached(repository: str, file: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    if not isinstance(found, str):
        raise UserError("weights not on this machine")
    return found


def tracking(settings: Settings) -> str:
    from infra.tracking.tracking import check_store

    return check_store(settings.mlflow_tracking_uri)


def instrument_banks(settings: Settings) -> str:
    from pipelines.corpus.sound.banks.open import describe_banks

    return describe_banks(settings)


def object_storage(settings: Settings) -> str:
    """A list that the server answers: that it has no such bucket, or does not let us see it, is an answer to valid keys too."""
    server = settings.s3.endpoint_url or f"Amazon S3 in {settings.s3.region}"
    if settings.s3.endpoint_url is None and settings.s3.access_key_id is None:
        raise UserError("no AWS_ENDPOINT_URL and no AWS_ACCESS_KEY_ID are set")
    try:
        Place("s3://backline-doctor", settings.s3).check()
    except StorageError as error:
        answer = getattr(error.__cause__, "response", {}).get("Error", {})
        if answer.get("Code") not in ("NoSuchBucket", "AccessDenied"):
            raise
    return f"{server} answers"


def dataset(uri: str) -> str:
    from infra.dataset.format import SPLITS, read_latents, read_manifest

    manifest = read_manifest(Place(uri))
    read = {split: len(read_latents(Place(uri), split)) for split in SPLITS}
    return f"{manifest.counts}, codec {manifest.codec_id}; read {' and '.join(f'{rows} {split}' for split, rows in read.items())} segments"


def network(uri: str) -> str:
    from infra.cli.generate import open_accompanist

    loaded = open_accompanist(uri, None).checkpoint
    return f"{loaded.name}, step {loaded.step}, codec {loaded.codec.id}"
