"""Each capability once, on real parts: songs prepared on Ray, two steps trained and tracked, a vocal answered by Serve, S3.

What can go wrong with each of them is tested in tests/integration; this is what `make test` has of Ray, MLflow, HTTP and S3.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import serving_parts as parts
import soundfile

from infra.cluster import Cluster
from infra.dataset.format import read_manifest
from infra.storage.place import MissingObjectError, Place
from pipelines.run.prepare import PrepareConfig, prepare
from tests.song_parts import rows_of, write_song
from training.config import TrainConfig
from training.run.launch import TrainResult, train

SONGS = 3


@pytest.fixture(scope="module")
def latents(ray_cluster: Cluster, tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three songs, and a folder that is no song beside them."""
    assert ray_cluster.address
    folder = tmp_path_factory.mktemp("prepared")
    for seed in range(SONGS):
        write_song(folder / "songs" / f"song{seed}", seed)
    write_song(folder / "songs" / "short", 9, duration_s=1.0)
    summary = prepare(PrepareConfig(source=f"pairs:{folder / 'songs'}", out=str(folder / "latents"), codec=str(tiny_codec), encoders=1))
    assert (summary.prepared, summary.exit_code) == (SONGS, 1)
    return folder / "latents"


@pytest.fixture(scope="module")
def trained(latents: Path, tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Two steps on Ray Train."""
    config = TrainConfig(
        data=str(latents), out=str(tmp_path_factory.mktemp("trained") / "run"), codec=str(tiny_codec), preset="small", steps=2, workers=1,
        batch_size=2, crop_frames=16, warmup_steps=1, validate_every=2, validation_timesteps=2, log_every=1, samples=0,
    )  # fmt: skip
    return train(config)


def test_songs_are_prepared(latents: Path) -> None:
    manifest = read_manifest(Place(str(latents)))
    assert (manifest.counts.songs, manifest.counts.segments, manifest.counts.rejected_songs) == (SONGS, SONGS, 1)
    assert rows_of(latents).total() == SONGS


def test_steps_are_trained_and_tracked_in_mlflow(trained: TrainResult) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(trained.tracking_uri)
    assert client.get_run(trained.mlflow_run_id).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(trained.mlflow_run_id, "train/loss")] == [1, 2]
    assert {entry.path for entry in client.list_artifacts(trained.mlflow_run_id, "checkpoint")} >= {"checkpoint/checkpoint.json"}


@pytest.fixture(scope="module")
def service(trained: TrainResult, tiny_codec: Path) -> Iterator[str]:
    from serving.deployments import ServeConfig, start

    with start(ServeConfig(checkpoint=trained.checkpoint, codec=str(tiny_codec), port=parts.free_port(), replica_threads=1)) as running:
        yield running.url


def test_a_vocal_is_answered(service: str) -> None:
    answer = httpx.post(
        f"{service}/v1/accompaniments", files={"vocal": ("v.wav", parts.vocal(4.5))}, data={**parts.QUICK, "format": "flac"}, timeout=120
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-backline-seed"] == "7"
    band_NC, rate_hz = soundfile.read(BytesIO(answer.content))
    assert (band_NC.shape, rate_hz) == ((round(4.5 * rate_hz), 2), 44_100)
    assert abs(band_NC).max() > 0


def test_an_object_goes_to_s3_and_back(bucket: str) -> None:
    place = Place(bucket) / "folder/one"
    place.write_bytes(b"1")
    assert place.read_bytes() == b"1"
    assert [found.uri for found in Place(bucket).list()] == [place.uri]
    place.delete()
    with pytest.raises(MissingObjectError, match="folder/one"):
        place.read_bytes()
