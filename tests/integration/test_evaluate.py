"""Evaluation and sample audio through a real codec, network and store; the network is untrained, so only the mechanics can be judged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from infra.errors import UserError
from model.accompany import GenerationConfig
from model.codec.load import load_codec
from model.errors import ModelError
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.evaluation.evaluate import EvaluateConfig, evaluate
from training.evaluation.report import EvaluationReport
from training.run.launch import TrainResult, train

FRAMES = 128


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    identity = load_codec(str(tiny_codec)).identity
    folder = tmp_path_factory.mktemp("latents")
    return write_latents(folder, songs=4, held_out=2, frames=FRAMES, codec_id=identity.id, codec_sha256=identity.weights_sha256)


@pytest.fixture(scope="module")
def trained(data: str, tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("run")
    settings = {"preset": "small", "workers": 0, "steps": 2, "batch_size": 2, "crop_frames": 16, "samples": 1}
    return train(TrainConfig(data=data, out=str(out), codec=str(tiny_codec), **settings))


def test_training_ends_with_sample_audio_a_card_and_a_champion(trained: TrainResult) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(trained.tracking_uri)

    def names(folder: str) -> set[str]:
        return {Path(entry.path).name for entry in client.list_artifacts(trained.mlflow_run_id, folder)}

    assert names("samples") == {"held-out", "step-000002"}
    assert names("samples/held-out") == {"song-000-0-vocal.ogg", "song-000-0-real.ogg"}
    assert names("samples/step-000002") == {"song-000-0.png", "song-000-0-generated.ogg", "song-000-0-mix.ogg"}
    assert names("figures") == {"loss.png", "error_by_timestep.png"}
    assert names("checkpoint") >= {"README.md", "checkpoint.json"}
    sound = client.download_artifacts(trained.mlflow_run_id, "samples/step-000002/song-000-0-generated.ogg")
    assert soundfile.info(sound).duration == pytest.approx(FRAMES * 2_048 / 44_100, abs=0.01)
    version = client.get_model_version_by_alias("backline", "champion")
    assert version.run_id == trained.mlflow_run_id
    assert version.tags["backline.step"] == "2"
    assert float(version.tags["backline.validation_loss"]) == pytest.approx(trained.metrics["validation_loss"])
    assert "## How it was made" in version.description
    assert client.get_run(trained.mlflow_run_id).data.tags["mlflow.note.content"] == version.description


def test_the_table_has_every_baseline_and_reaches_mlflow(data: str, trained: TrainResult, tiny_codec: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    generation = GenerationConfig(steps=2)
    report = evaluate(
        EvaluateConfig(
            checkpoint=trained.run, data=data, out=str(tmp_path), samples=3, audio_files=1, generation=generation, codec=str(tiny_codec)
        )
    )
    names = [row.name for row in report.rows]
    assert names == [
        "generated", "real, through the codec", "another song's, through the codec", "generated for another song", "codec round trip",
        "copy of the vocal", "silence", "noise",
    ]  # fmt: skip
    assert all(row.segments == 3 for row in report.rows)
    assert report.songs == 2
    rows = {row.name: row.mean for row in report.rows}
    assert rows["silence"].overall == 0.0
    assert rows["real, through the codec"].spectrum_db == 0.0
    assert rows["copy of the vocal"].leakage > 0.5
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 2
    assert report.distances is not None
    assert [row.name for row in report.distances.rows] == names
    assert (report.distances.embedding, report.distances.reference_songs) == ("smoke", 2)
    distances = {row.name: row for row in report.distances.rows}
    assert distances["real, through the codec"].frechet.value < min(distances[name].frechet.value for name in ("silence", "noise"))
    assert report.advantage is not None
    assert report.advantage.value == pytest.approx(rows["generated"].overall - rows["another song's, through the codec"].overall)
    assert EvaluationReport.from_json((tmp_path / "evaluation.json").read_bytes()) == report
    page = (tmp_path / "evaluation.md").read_text()
    assert page.count("\n| noise |") == 3
    assert "weight-free" in page
    assert "--aesthetics-weights" in page  # the package is there, its weights are on a hub
    samples, rate_hz = soundfile.read(tmp_path / "audio" / "song-000-0-generated.wav")
    assert rate_hz == 44_100
    assert samples.shape == (FRAMES * 2_048, 2)

    client = MlflowClient(trained.tracking_uri)
    metrics = client.get_run(trained.mlflow_run_id).data.metrics
    assert metrics["evaluation/generated/overall"] == pytest.approx(report.rows[0].overall)
    assert metrics["evaluation/another_song_through_the_codec/harmony"] == pytest.approx(report.rows[2].mean.harmony)
    assert metrics["evaluation/noise/frechet_smoke"] == pytest.approx(distances["noise"].frechet.value)
    assert metrics["evaluation/advantage_over_another_song"] == pytest.approx(report.advantage.value)
    assert {entry.path for entry in client.list_artifacts(trained.mlflow_run_id, "evaluation")} >= {"evaluation/evaluation.md"}


def test_a_checkpoint_without_a_run_gets_one_that_holds_the_report_and_not_its_own_store(
    data: str, trained: TrainResult, tiny_codec: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    lone = shutil.copytree(trained.checkpoint, tmp_path / "lone")
    out = tmp_path / "out"
    config = EvaluateConfig(
        checkpoint=str(lone), data=data, out=str(out), samples=1, audio_files=0, generation=GenerationConfig(steps=1),
        codec=str(tiny_codec), reference=0, aesthetics="off",
    )  # fmt: skip
    for _ in range(2):
        report = evaluate(config)
    assert report.distances is None
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "backline")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert "evaluation/wins_over_another_song" in runs[0].data.metrics
    held = {entry.path for entry in client.list_artifacts(runs[0].info.run_id, "evaluation")}
    assert held == {"evaluation/evaluation.json", "evaluation/evaluation.md"}


def test_aesthetics_that_were_asked_for_and_cannot_be_had_end_it(data: str, trained: TrainResult, tiny_codec: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=trained.run, data=data, out=str(tmp_path / "out"), codec=str(tiny_codec), aesthetics="on",
        aesthetics_weights=str(tmp_path / "nowhere.pt"),
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"pip install|no weights at"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_one_held_out_song_borrows_a_stranger_from_training(trained: TrainResult, tiny_codec: Path, tmp_path: Path) -> None:
    identity = load_codec(str(tiny_codec)).identity
    data = write_latents(tmp_path / "data", songs=2, segments=1, frames=FRAMES, codec_id=identity.id, codec_sha256=identity.weights_sha256)
    report = evaluate(
        EvaluateConfig(
            checkpoint=trained.checkpoint,
            data=data,
            out=str(tmp_path / "out"),
            samples=2,
            audio_files=0,
            generation=GenerationConfig(steps=1),
            codec=str(tiny_codec),
        )
    )
    assert "another song's, through the codec" in [row.name for row in report.rows]
    assert "generated for another song" not in [row.name for row in report.rows]


def test_another_codecs_dataset_and_an_empty_split_are_refused(trained: TrainResult, tiny_codec: Path, tmp_path: Path) -> None:
    foreign = write_latents(tmp_path / "foreign")
    with pytest.raises(UserError, match="dataset of its own codec"):
        evaluate(EvaluateConfig(checkpoint=trained.run, data=foreign, out=str(tmp_path / "out"), codec=str(tiny_codec)))
    identity = load_codec(str(tiny_codec)).identity
    empty = write_latents(tmp_path / "empty", held_out=0, codec_id=identity.id, codec_sha256=identity.weights_sha256)
    with pytest.raises(UserError, match="one in ten"):
        evaluate(EvaluateConfig(checkpoint=trained.run, data=empty, out=str(tmp_path / "out"), codec=str(tiny_codec)))


def test_the_command_line_is_the_config(data: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "train", "--data", data, "--out", str(tmp_path / "run"), "--preset", "small"]
    short = ["--workers", "0", "--steps", "1", "--batch-size", "2", "--crop-frames", "16", "--samples", "0", "--loss.weighting", "uniform"]
    ended = subprocess.run([*command, *short], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "step 1 (all 1 steps done)" in ended.stdout
    wrong = subprocess.run([*command, "--batch-size", "3", "--workers", "2"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
