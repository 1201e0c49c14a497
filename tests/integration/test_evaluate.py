"""Evaluation and sample audio through a real codec, network and store; the network is untrained, so only the mechanics can be judged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from infra.dataset.format import read_latents
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import Place
from model.accompany import GenerationConfig
from model.checkpoint import load_checkpoint, save_checkpoint
from model.codec.load import load_codec
from model.controls import Beat, read_chords
from model.diffusion.sampling import Sampling
from model.errors import ModelError
from model.metrics.set_distances import Interval
from model.network.unet import AccompanimentUNet, UNetConfig, with_controls
from tests.bands import band
from tests.musicnn_parts import random_weights
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.evaluation.evaluate import EvaluateConfig, evaluate
from training.evaluation.following import Expected
from training.evaluation.markdown import SEGMENT_S, markdown
from training.evaluation.material import load, retrieve
from training.evaluation.report import EvaluationReport
from training.evaluation.rows import decode_pair, decode_row
from training.evaluation.truth import NOTHING, Truth, a_fifth_away
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
    return write_latents(folder, songs=8, held_out=2, frames=FRAMES, codec_id=identity.id, codec_sha256=identity.weights_sha256)


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
            checkpoint=trained.run,
            data=data,
            out=str(tmp_path),
            samples=3,
            audio_files=1,
            generation=generation,
            codec=str(tiny_codec),
            rows=("controls",),
        )
    )
    names = [row.name for row in report.rows]
    assert names == [
        "generated", "real, through the codec", "another song's, through the codec", "retrieved by tempo and key, through the codec",
        "generated for another song", "codec round trip", "copy of the vocal", "silence", "noise",
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
    assert report.distances.embedding == "smoke"
    assert 3 <= report.distances.reference_songs <= 5, "songs that were retrieved stand in no reference"
    assert all(row.apa is not None and 0 <= row.apa.low <= row.apa.high <= 1 for row in report.distances.rows)
    assert [row.name for row in report.following] == names
    following = {row.name: row for row in report.following}
    assert following["real, through the codec"].shadowing_beyond == Interval(value=0.0, low=0.0, high=0.0)
    assert {row.chords for row in report.following} == {None}
    assert following["silence"].shadowing == Interval(value=0.0, low=0.0, high=0.0)
    assert following["silence"].drift_ms is None
    (cost,) = report.costs
    assert (cost.name, report.segment_s) == ("generated", pytest.approx(cost.real_time_factor * SEGMENT_S))
    assert cost.peak_bytes > 2**26
    reasons = {absent.what: absent.why for absent in report.absent}
    assert "knows no controls" in reasons["rows with style, chords or beats given"]
    assert "--student" in reasons["student"]
    assert "--rows ancestral" in reasons["800 ancestral steps"]
    assert "musicnn:FILE" in reasons["Fréchet distance, KAD and APA in musicnn"]
    assert "as composed" in reasons["agreement with chords"]
    distances = {row.name: row for row in report.distances.rows}
    assert distances["real, through the codec"].frechet.value < min(distances[name].frechet.value for name in ("silence", "noise"))
    assert report.advantage is not None
    assert report.advantage.value == pytest.approx(rows["generated"].overall - rows["another song's, through the codec"].overall)
    assert EvaluationReport.from_json((tmp_path / "evaluation.json").read_bytes()) == report
    page = (tmp_path / "evaluation.md").read_text()
    assert page.count("\n| noise |") == 4
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
    assert metrics["evaluation/noise/kad_smoke"] == pytest.approx(distances["noise"].kernel.value)
    assert metrics["evaluation/generated/real_time_factor"] == pytest.approx(cost.real_time_factor)
    assert metrics["evaluation/advantage_over_another_song"] == pytest.approx(report.advantage.value)
    assert {entry.path for entry in client.list_artifacts(trained.mlflow_run_id, "evaluation")} >= {"evaluation/evaluation.md"}


CHORDS = read_chords("0 2 C\n2 4 Am7/C\n4 7 F")


def told(song_id: str, segment: int) -> Truth:
    """Of one held-out song all is known, of the other nothing; of the training songs one matches."""
    if song_id == "song-000":
        beats = tuple(Beat(time_s=index / 2, position=index % 4 + 1) for index in range(14))
        return Truth(chords=CHORDS, beats=beats, key=0, tempo_bpm=120.0, style="waltz")
    return {"song-001": NOTHING, "song-005": Truth(key=0, tempo_bpm=120.0)}.get(song_id, Truth(key=12, tempo_bpm=101.0 + segment))


@pytest.fixture(scope="module")
def obeying(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher/ and student/: a tiny network that knows all controls and has 24 noise levels."""
    folder = tmp_path_factory.mktemp("obeying")
    tiny = UNetConfig(
        channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32, bottleneck_blocks=1, diffusion_steps=24
    )
    network = with_controls(tiny, styles=("rock", "waltz"))
    torch.manual_seed(0)
    unet = AccompanimentUNet(network)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    assert unet.condition_stream is not None
    for parameter in (*unet.condition_stream.starts.parameters(), *unet.condition_stream.ends.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    teacher = replace(load_checkpoint(Path(trained.checkpoint)), network=network, state=unet.state_dict(), sampling=Sampling(steps=3))
    save_checkpoint(folder / "teacher", teacher)
    save_checkpoint(folder / "student", replace(teacher, sampling=Sampling(solver="ddim", steps=2, guidance=1.0)))
    return folder


def test_every_row_and_embedding_that_can_be_asked_for(data: str, obeying: Path, tiny_codec: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "vgg.npz", **random_weights())
    config = EvaluateConfig(
        checkpoint=str(obeying / "teacher"), data=data, out=str(tmp_path / "out"), samples=2, audio_files=0, codec=str(tiny_codec),
        embedding=("codec", f"musicnn:{tmp_path / 'vgg.npz'}"), baselines=False, reference=6, student=str(obeying / "student"),
        rows=("ancestral", "20-steps", "best-of-4", "controls"),
    )  # fmt: skip
    report = evaluate(config, truths=told)
    segments = {row.name: row.segments for row in report.rows}
    asked = ["24 ancestral steps", "20 steps", "best of 4", "student"]
    given = [
        "style given", "chords given", "beats given", "chords a fifth away given", "relative chords given", "all controls given",
    ]  # fmt: skip
    retrieved = "retrieved by tempo and key, through the codec"
    assert list(segments) == ["generated", "real, through the codec", "another song's, through the codec", retrieved, *asked, *given]
    assert [segments[name] for name in asked] == [2] * 4
    assert [segments[name] for name in given] == [1] * 6
    assert [row.name for row in report.costs] == ["generated", *asked, *given]
    played = {row.name: row.mean for row in report.rows}
    assert len({played[name].spectrum_db for name in ["generated", *asked, *given]}) == len(asked) + len(given) + 1
    assert played["best of 4"].overall >= played["generated"].overall
    assert [table.embedding.split()[0] for table in report.all_distances] == ["codec", "musicnn"]
    assert all(row.apa is not None for table in report.all_distances for row in table.rows)
    chords = {row.name: row.chords for row in report.following}
    assert None not in chords.values()
    assert "chords in 1, beats in 1, key in 1 of 2 segments" in report.following_note
    assert {absent.what for absent in report.absent} == {"Fréchet distance, KAD and APA in clap"}
    assert EvaluationReport.from_json(report.to_json()) == report
    assert markdown(report).count("| chords a fifth away given |") == 6


def test_chords_given_are_what_agreement_is_measured_with() -> None:
    """A band that plays the chords a fifth away agrees with these, not with the song's own."""
    vocal_CN, song_CN, fifth_CN = band(8, root_hz=261.63), band(8, root_hz=261.63), band(8, root_hz=392.0)
    truth = Truth(chords=read_chords("0 8 C"))
    expected = Expected(vocal_CN, song_CN, truth)
    assert expected.of(song_CN).chords > 0.9
    assert expected.of(fifth_CN).chords < 0.1
    assert expected.of(fifth_CN, a_fifth_away(truth.chords or ())).chords > 0.9
    assert (expected.of(song_CN).key, expected.of(fifth_CN).key) == (1.0, 0.0)


def test_the_training_band_of_the_same_key_and_tempo_is_retrieved(data: str, obeying: Path, tiny_codec: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=str(obeying / "teacher"), data=data, out=str(tmp_path), samples=2, codec=str(tiny_codec), reference=0, aesthetics="off"
    )
    loaded = load(config, Place(config.checkpoint), Place(data), Settings.from_environment(), told)
    pairs = [decode_pair(loaded.store, row, loaded.codec, config.seconds) for row in loaded.chosen]
    found, _ = retrieve(config, loaded, Place(data), pairs, set())
    assert (pairs[0].song_id, found[0].song_id) == ("song-000", "song-005")
    training = read_latents(Place(data), "train")
    row = training.song_ids.index("song-005")
    assert np.array_equal(found[0].decode(), decode_row(training, row, loaded.codec, config.seconds, vocal=False)[0])
    none, why = retrieve(replace(config, retrieval=0), loaded, Place(data), pairs, set())
    assert none == []
    assert "--retrieval" in why[0].why


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
    assert report.distances is not None
    assert {row.apa for row in report.distances.rows} == {None}, "one song's vocals have no other's band"
    assert any(absent.what == "APA" and "single song" in absent.why for absent in report.absent)


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
