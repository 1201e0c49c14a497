"""The codec's recipe: a resumed run equals an uninterrupted one, its output loads, its figures can fail."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import training.codec.train
from infra.errors import UserError
from model.codec.load import load_codec
from model.codec.magnitude_vae import MAGNITUDE_BANDS, MagnitudeVAEConfig
from training.codec.data import audio_features, crop, find_songs
from training.codec.report import CodecReportConfig, f_measure, mel_griffin_lim, report, survival
from training.codec.train import CodecTrainConfig, learning_rate_at, train_codec


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs of four seconds: a tone that steps, and clicks every half second."""
    folder = tmp_path_factory.mktemp("corpus")
    time_s = np.arange(4 * 44_100) / 44_100
    for index in range(2):
        song = folder / f"song-{index:06d}"
        song.mkdir()
        hz = 220 * 2 ** (np.floor(time_s) * (2 + index) / 12)
        phase = 2 * np.pi * np.cumsum(hz) / 44_100
        vocal = 0.1 * sum(np.sin(phase * harmonic) / harmonic for harmonic in range(1, 6))
        clicks = np.random.default_rng(index).standard_normal(len(time_s)) * 0.2 * np.exp(-((time_s % 0.5) * 40))
        for stem, mono in (("vocals", vocal), ("accompaniment", clicks), ("mixture", vocal + clicks)):
            soundfile.write(song / f"{stem}.wav", np.stack([mono, 0.8 * mono], axis=1), 44_100)
        chords = [{"start_s": 0.0, "end_s": 4.0, "root": 9, "pitch_classes": [9, 1, 4]}]
        (song / "song.json").write_text(json.dumps({"beats_s": [0.5 * beat for beat in range(1, 8)], "chords": chords}))
    return folder


def config(corpus: Path, out: Path, **changes: Any) -> CodecTrainConfig:
    network = MagnitudeVAEConfig(width=16, encoder_blocks=1, decoder_blocks=1)
    values = {"steps": 4, "save_every": 2, "batch_size": 2, "crop_frames": 16, "held_out": 1, "precision": "float32", "network": network}
    return CodecTrainConfig(corpus=corpus, out=out, **(values | changes))


def test_a_resumed_run_equals_an_uninterrupted_one(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = train_codec(config(corpus, tmp_path / "whole"))
    assert all(math.isfinite(value) or name == "note_error_cents" for name, value in figures.items())
    calls = []

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return crop(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training.codec.train, "crop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_codec(config(corpus, tmp_path / "parts"))
    assert json.loads((tmp_path / "parts" / "last" / "training.json").read_text())["step"] == 2
    with pytest.raises(UserError, match="add --resume"):
        train_codec(config(corpus, tmp_path / "parts"))
    # A kill between the two files leaves an old config beside new weights: what counts is in the weights' file.
    (tmp_path / "parts" / "last" / "training.json").unlink()
    train_codec(config(corpus, tmp_path / "parts", resume=True))
    whole, parts = (load_file(tmp_path / name / "last" / "training.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    codec = load_codec(str(tmp_path / "parts" / "codec"))
    assert codec.identity == load_codec(str(tmp_path / "parts" / "codec")).identity
    latent_BCT = codec.encode(torch.zeros(1, 2, 5_000))
    assert latent_BCT.shape == (1, 64, 3)
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"magnitude", "stereo", "kl"} <= logged[0].keys()
    assert {"chords", "beats", "dead_channels", "latent_std_min"} <= logged[-1].keys()


def test_the_original_survives_better_than_the_mel_baseline(corpus: Path) -> None:
    folder = find_songs(corpus, 1).held_out[0]
    assert folder.name == "song-000000"  # the lowest seeds are held out
    original, mel = survival(lambda audio_CN: audio_CN, folder), survival(mel_griffin_lim, folder)
    assert original.note_error_cents == 0
    assert original.notes_kept == 1
    assert original.onsets == 1
    assert original.mel_distance_db == 0
    assert mel.mel_distance_db > 1
    assert mel.notes_kept < 1


def test_a_report_measures_all_the_songs_there_are(corpus: Path, tmp_path: Path) -> None:
    """None is kept back for training."""
    with pytest.raises(UserError, match="2 song folders"):
        report(CodecReportConfig(corpus=corpus, out=tmp_path / "report.md", songs=3))
    means = report(CodecReportConfig(corpus=corpus, out=tmp_path / "report.md", songs=2, threads=torch.get_num_threads()))
    assert means["original"]["onsets"] == 1
    assert (tmp_path / "report.md").read_text().count("| song-000001 |") == len(means) == 3


def test_gain_and_swap_act_on_features_as_on_audio() -> None:
    audio_CN = 0.1 * torch.randn(2, 2048 * 20, generator=torch.Generator().manual_seed(0))
    features = [audio_features(audio_CN)]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cropped = crop(features, 1, 19, rng, torch.device("cpu"))
        rng = np.random.default_rng(seed)
        rng.choice(1, size=1, p=[1.0])
        start = int(rng.integers(0, 2))
        gain = 10 ** (rng.uniform(-18, 6, 1)[0] / 20)
        louder = audio_features(audio_CN * gain)[start : start + 19].float()
        assert (cropped[0, :, : 2 * MAGNITUDE_BANDS] - louder[:, : 2 * MAGNITUDE_BANDS]).abs().max() < 0.05


def test_f_measure_counts_each_time_once() -> None:
    truth = np.array([1.0, 2.0, 3.0])
    assert f_measure(truth, truth + 0.05, 0.07) == 1
    assert f_measure(truth, np.array([1.0, 1.01, 1.02]), 0.07) == pytest.approx(2 / 6)
    assert f_measure(truth, truth + 0.1, 0.07) == 0
    assert f_measure(np.array([]), np.array([]), 0.07) == 1


def test_the_rate_warms_up_and_anneals(tmp_path: Path) -> None:
    run = CodecTrainConfig(corpus=tmp_path, out=tmp_path, steps=1_000, warmup_steps=100)
    assert learning_rate_at(0, run) == pytest.approx(run.learning_rate / 100)
    assert learning_rate_at(100, run) > 0.95 * run.learning_rate
    assert learning_rate_at(1_000, run) == pytest.approx(run.learning_rate / 100)


def test_a_corpus_too_small_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="backline corpus"):
        train_codec(config(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("learning_rate", 2.0), ("ema_decay", 1.0), ("kl_weight", -1.0), ("speeds", ())]
)
def test_a_wrong_config_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        CodecTrainConfig(corpus=tmp_path, out=tmp_path, **{field: value})


def test_a_song_without_written_truth_is_scored_by_what_is_heard(corpus: Path, tmp_path: Path) -> None:
    """Recordings have no song.json."""
    shutil.copytree(corpus / "song-000000", tmp_path / "recording", ignore=shutil.ignore_patterns("song.json"))
    original = survival(lambda audio_CN: audio_CN, tmp_path / "recording")
    assert original.chords == original.beats == original.onsets == 1
    assert survival(mel_griffin_lim, tmp_path / "recording").chords < 1
