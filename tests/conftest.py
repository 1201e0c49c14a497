"""What tests of every kind share: one Ray cluster for the session, a real S3 server, and settings that no shell leaks into."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cluster import Cluster, connect

FOREIGN = (
    "RAY_ADDRESS",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "MLFLOW_TRACKING_URI",
    "BACKLINE_API_KEYS",
    "BACKLINE_CHECKPOINT",
    "BACKLINE_CODEC",
    "BACKLINE_LOG_LEVEL",
)


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reaches a cluster, bucket or tracking server of whoever runs the tests; the cache is a fresh folder, which is yielded."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        patch.setenv("BACKLINE_CACHE", str(cache))
        yield cache


@pytest.fixture(scope="session")
def ray_cluster(own_environment: Path) -> Iterator[Cluster]:
    """One cluster of four CPU tickets on this machine; whoever calls `infra.cluster.connect` in this process is on it already.

    A test leaves it as it found it: it ends its own Serve applications, trainers and placement groups.
    """
    assert own_environment.is_dir()
    with connect(num_cpus=4) as cluster:
        yield cluster
