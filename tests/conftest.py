"""What tests of every kind share: one Ray cluster for the session, a real S3 server, and settings that no shell leaks into."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

import pytest
from hypothesis import settings

from tests.examples import examples

if TYPE_CHECKING:
    from s3_server import S3Server

    from infra.cluster import Cluster

sys.path.insert(0, str(Path(__file__).parent / "integration"))

# How long an example takes says how busy the machine is.
settings.register_profile("backline", deadline=None, max_examples=examples(100))
settings.load_profile("backline")

FOREIGN = (
    "RAY_ADDRESS",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "BACKLINE_API_KEYS",
    "BACKLINE_CHECKPOINT",
    "BACKLINE_LOG_LEVEL",
    "BACKLINE_LOG_FORMAT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Files that a test makes differ from process to process, and two workers must know a test by the same name."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For two workers (`-n 2 --dist loadgroup`): a file stays in one, and the files that need Ray share one cluster and come first."""
    need_ray = {item.path for item in items if item.get_closest_marker("ray") or "ray_cluster" in getattr(item, "fixturenames", ())}
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker("integration")
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in need_ray else item.path.stem))
    items.sort(key=lambda item: item.path not in need_ray)


def needs(program: str | tuple[str, ...], remedy: str) -> str:
    """The path of an installed program, the first of several names that is found; see `lacks` for where it is missing."""
    names = (program,) if isinstance(program, str) else program
    found = next((path for name in names if (path := shutil.which(name))), None)
    return found or lacks(f"there is no {names[0]} on this machine: {remedy}")


def lacks(what: str) -> NoReturn:
    """A user's machine may go without and skips the test; continuous integration (it sets CI) tests everything, and fails."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reaches a cluster, bucket or tracking server of whoever runs the tests; the cache is a fresh folder, which is yielded."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        patch.setenv("BACKLINE_CACHE", str(cache))
        patch.setenv("BACKLINE_BANKS", "numpy")  # whatever soundfonts this machine has
        patch.setenv("BACKLINE_VOICES", "numpy")  # and whatever voices
        # Ray starts its workers at niceness 15: beside anything else that is busy they would get next to nothing.
        patch.setenv("RAY_worker_niceness", "0")
        yield cache


@pytest.fixture(scope="session")
def ray_cluster(own_environment: Path) -> Iterator["Cluster"]:
    """One cluster of four CPU tickets on this machine; whoever calls `infra.cluster.connect` in this process is on it already.

    A test leaves it as it found it: it ends its own Serve applications, trainers and placement groups.
    """
    from infra.cluster import connect

    assert own_environment.is_dir()
    with connect(num_cpus=4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3Server"]:
    """A real S3 server, one for the session; see `integration/s3_server.py`."""
    from s3_server import serve

    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket's URI; this process's AWS variables point at its server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"tests-{uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained codec of the embedded kind, small enough to encode at once."""
    import torch

    from model.codec.embedded import PhaseConfig, save_embedded
    from model.codec.magnitude_vae import MagnitudeVAE, MagnitudeVAEConfig

    folder = tmp_path_factory.mktemp("codecs") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MagnitudeVAE(MagnitudeVAEConfig(width=8, expansion=1, encoder_blocks=1, decoder_blocks=1))
    save_embedded(folder, network, PhaseConfig(rounds=0))
    return folder
