"""The model registry in a real SQLite store: what becomes champion, and what an address brings."""

from dataclasses import replace
from pathlib import Path

import pytest

from infra.cli.generate import open_accompanist
from infra.errors import UserError
from infra.resolve import pinned
from infra.settings import Settings
from infra.storage.place import Place
from infra.tracking.registry import Candidate, look_up, promote, register
from infra.tracking.tracking import open_run, store_of
from model.codec.load import load_codec
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.run.launch import TrainResult, train

FIRST = Candidate(
    model="backline", folder="checkpoint", name="small-1", step=1, validation_loss=0.5, dataset_digest="d", codec="c", measure="m",
    description="a card",
)  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(mlflow_tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", cache=tmp_path / "cache")


def test_the_champion_changes_only_for_one_that_is_better(tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    caplog.set_level("INFO", "infra.tracking.registry")
    tracker = open_run(store_of(Place(str(tmp_path)), None), experiment="e", name="n", run=Place(str(tmp_path)))
    run, uri = str(tracker.handle.run_id), str(settings.mlflow_tracking_uri)

    def champion() -> str:
        return look_up("models:/backline@champion", settings).version

    assert register(uri, run, FIRST) == "1"
    assert register(uri, run, FIRST) == "1"
    assert champion() == "1"
    for changes, why in (
        ({"validation_loss": 0.6}, "0.5000 against 0.6000"),
        ({"validation_loss": 0.1, "dataset_digest": "another"}, "another dataset"),
        ({"validation_loss": 0.1, "measure": "another", "codec": "c2"}, "another codec and measure"),
        ({"validation_loss": None}, "no validation loss"),
    ):
        number = register(uri, run, replace(FIRST, step=int(look_up("models:/backline/latest", settings).version) + 1, **changes))
        assert champion() == "1"
        assert why in caplog.text
        assert f"backline promote backline {number}" in caplog.text
    assert register(uri, run, replace(FIRST, step=9, validation_loss=0.4)) == "6"
    assert champion() == "6"
    promote("backline", "2", "champion", settings)
    assert champion() == "2"
    assert look_up("models:/backline@latest", settings).version == look_up("models:/backline/latest", settings).version == "6"
    assert pinned("models:/backline@champion", settings) == "models:/backline/2"
    assert pinned(None, replace(settings, checkpoint="models:/backline@champion")) == "models:/backline/2"
    assert pinned("runs/x", settings) == "runs/x"
    assert pinned(None, replace(settings, checkpoint="runs/x")) == "runs/x"
    assert pinned(None, settings) is None
    tags = MlflowClient(uri).get_model_version("backline", "6").tags
    assert tags["backline.dataset"] == "d"
    assert float(tags["backline.validation_loss"]) == 0.4
    tracker.end("FINISHED")

    for address, said in (
        ("models:/backline@king", r"no alias 'king'.*champion \(version 2\)"),
        ("models:/frontline@champion", "no model 'frontline'.*backline"),
        ("models:/backline/77", "no version 77"),
        ("models:/backline", "write models:/NAME@ALIAS"),
    ):
        with pytest.raises(UserError, match=said):
            look_up(address, settings)
    with pytest.raises(UserError, match="--alias latest"):
        promote("backline", "2", "latest", settings)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is not set"):
        look_up("models:/backline@champion", replace(settings, mlflow_tracking_uri=None))
    with pytest.raises(UserError, match=r"there is no /nowhere/mlflow\.db"):
        look_up("models:/backline@champion", replace(settings, mlflow_tracking_uri="sqlite:////nowhere/mlflow.db"))
    with pytest.raises(UserError, match=r"registry at http://127.0.0.1:9 cannot be used .*start it"):
        look_up("models:/backline@champion", replace(settings, mlflow_tracking_uri="http://127.0.0.1:9"))


@pytest.fixture(scope="module")
def trained(tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    identity = load_codec(str(tiny_codec)).identity
    folder = tmp_path_factory.mktemp("registered")
    data = write_latents(folder / "latents", codec_id=identity.id, codec_sha256=identity.weights_sha256)
    config = TrainConfig(data=data, out=str(folder / "run"), preset="small", workers=0, steps=1, batch_size=2, crop_frames=16, samples=0)
    return train(config)


def test_an_address_is_a_checkpoint(trained: TrainResult, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
    accompanist = open_accompanist("models:/backline@champion", str(tiny_codec))
    assert accompanist.checkpoint.name == open_accompanist(trained.run, str(tiny_codec)).checkpoint.name
    assert accompanist.checkpoint.step == 1
    monkeypatch.setenv("BACKLINE_CHECKPOINT", "models:/backline/1")
    assert open_accompanist(None, str(tiny_codec)).checkpoint.name == accompanist.checkpoint.name
