"""The codec's second stage: the encoder stays as it is, discriminators learn, a resumed run equals an uninterrupted one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import training.codec.adversarial
from infra.errors import UserError
from model.codec.embedded import save_embedded
from model.codec.load import load_codec
from model.codec.magnitude_vae import FEATURES
from model.dimensions import HOP_SAMPLES
from tests.codec_parts import tiny_embedded
from training.codec.adversarial import AdversarialConfig, train_adversarially, truth_of, under_true_phase
from training.codec.data import audio_crops, audio_features, find_songs
from training.codec.losses import PatchDiscriminator, discriminator_loss, generator_loss, loudest, picture
from training.codec.stft import WINDOWS, stft_distance_db, stft_loss


def noise(samples: int, seed: int, *, batch: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def write_songs(folder: Path, first_seed: int) -> Path:
    """Two songs of a second and a half: noise that swells, and its like."""
    for seed in (first_seed, first_seed + 1):
        song = folder / f"song-{seed:06d}"
        song.mkdir(parents=True)
        audio_NC = noise(66_150, seed).T.numpy() * np.linspace(0.1, 1, 66_150)[:, None]
        for stem in ("vocals", "accompaniment", "mixture"):
            soundfile.write(song / f"{stem}.wav", audio_NC, 44_100)
        chords = [{"start_s": 0.0, "end_s": 1.5, "root": 9, "pitch_classes": [9, 1, 4]}]
        (song / "song.json").write_text(json.dumps({"seed": seed, "beats_s": [0.5, 1.0], "chords": chords}))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("corpus"), 1000)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "tiny"
    codec = tiny_embedded()
    codec.network.encoder_in.bias[0] = -0.0  # arithmetic on an encoder that stays as it is would lose the sign
    save_embedded(folder, codec.network, codec.phase)
    return folder


def config(corpus: Path, out: Path, init: Path, **changes: Any) -> AdversarialConfig:
    values = {
        "steps": 4,
        "save_every": 2,
        "batch_size": 2,
        "crop_frames": 12,
        "blend": 0.4,
        "held_out": 1,
        "adversarial_after": 1,
        "discriminator_width": 2,
    }
    return AdversarialConfig(corpus=corpus, out=out, init=init, **({"precision": "float32", "warmup_steps": 1} | values | changes))


def test_only_the_decoder_learns_and_a_resumed_run_equals_an_uninterrupted_one(
    corpus: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_adversarially(config(corpus, tmp_path / "whole", init))
    calls = []

    def interrupted(crops_BCN: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return truth_of(crops_BCN)

    with monkeypatch.context() as patched:
        patched.setattr(training.codec.adversarial, "truth_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_adversarially(config(corpus, tmp_path / "parts", init))
    with pytest.raises(UserError, match="add --resume"):
        train_adversarially(config(corpus, tmp_path / "parts", init))
    train_adversarially(config(corpus, tmp_path / "parts", init, resume=True))
    whole, parts = (load_file(tmp_path / name / "last" / "adversarial.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole if name != "minutes")

    before, after = (load_file(folder / "model.safetensors") for folder in (init, tmp_path / "whole" / "codec"))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) != name.startswith("decoder"), name
    assert load_codec(str(tmp_path / "whole" / "codec")).identity.weights_sha256 == load_codec(str(init)).identity.weights_sha256
    name = "decoder_out.weight"
    blended = torch.lerp(before[name].float(), whole[f"average.{name}"], 0.4)
    assert torch.equal(after[name], blended.half())
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"stft", "fooled", "matched", "judged"} <= logged[0].keys()
    assert {"chords", "stft_distance_db", "si_sdr_db"} <= logged[-1].keys()


def test_a_time_limit_ends_the_run_annealed(corpus: Path, init: Path, tmp_path: Path) -> None:
    train_adversarially(config(corpus, tmp_path / "short", init, steps=1_000, max_minutes=1e-6))
    logged = [json.loads(line) for line in (tmp_path / "short" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 1]
    # Time spent counts: a run that is over stays as it is, and another decoder cannot go on with it.
    state = (tmp_path / "short" / "last" / "adversarial.safetensors").read_bytes()
    again = config(corpus, tmp_path / "short", init, steps=1_000, max_minutes=1e-6, resume=True)
    train_adversarially(again)
    assert (tmp_path / "short" / "last" / "adversarial.safetensors").read_bytes() == state
    with pytest.raises(UserError, match="another decoder"):
        train_adversarially(dataclasses.replace(again, init=tmp_path / "short" / "codec"))
    assert logged[0]["rate"] == pytest.approx(0.01)
    assert load_codec(str(tmp_path / "short" / "codec")).identity.id == "codec"


def test_reserved_songs_are_refused_for_training_and_held_out_at_will(tmp_path: Path) -> None:
    folder = write_songs(tmp_path, 998)
    with pytest.raises(UserError, match=r"song-000999 .* never trained on"):
        find_songs(folder, 1)
    write_songs(tmp_path, 1000)
    assert [song.name for song in find_songs(folder, 2).training] == ["song-001000", "song-001001"]


def test_a_discriminator_learns_what_differs_and_a_decoder_learns_to_hide_it() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(4)
    true_BJK = torch.randn(4, 32, 96).mul(0.5).clamp(-1, 1)
    decoded_BJK = torch.zeros(4, 32, 96, requires_grad=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    first = discriminator_loss(network, true_BJK, decoded_BJK)
    for _ in range(60):
        loss = discriminator_loss(network, true_BJK, decoded_BJK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * first
    flat, same = generator_loss(network, true_BJK, decoded_BJK), generator_loss(network, true_BJK, true_BJK)
    assert same.matched == 0
    assert flat.matched > 0.05
    assert same.fooled < flat.fooled
    (gradient,) = torch.autograd.grad(flat.fooled, decoded_BJK)
    assert gradient.abs().sum() > 0


def test_a_picture_is_the_same_at_any_loudness() -> None:
    log_magnitude_BJK = torch.rand(2, 8, 16) * -4
    softer = log_magnitude_BJK - 2
    assert picture(log_magnitude_BJK, loudest(log_magnitude_BJK)).amax() == 1
    assert torch.allclose(picture(softer, loudest(softer)), picture(log_magnitude_BJK, loudest(log_magnitude_BJK)), atol=1e-5)
    silence = torch.full((1, 8, 16), -17.0)
    assert picture(silence, loudest(silence)).amax() == -1


def test_spectra_of_the_same_audio_do_not_differ_and_of_other_audio_do() -> None:
    audio = noise(20_000, 0)
    for window in WINDOWS:
        assert stft_distance_db(audio, audio, window) == 0
        assert stft_distance_db(audio, audio * 10 ** (-3 / 20), window) == pytest.approx(3, abs=0.05)
        assert stft_distance_db(audio, noise(20_000, 1), window) > 3
    assert stft_distance_db(torch.zeros(2, 9_000), audio[:, :9_000], 512) == 0
    assert stft_loss(audio, audio, WINDOWS) < 1e-3
    assert stft_loss(noise(20_000, 1), audio, WINDOWS) > 0.5
    predicted = torch.zeros(2, 9_000, requires_grad=True)
    stft_loss(predicted, torch.zeros(2, 9_000), WINDOWS).backward()
    assert bool(torch.isfinite(predicted.grad).all())


def test_true_features_under_true_phase_are_nearly_the_audio_and_have_a_gradient() -> None:
    time_s = torch.arange(14 * HOP_SAMPLES) / 44_100
    mono = 0.3 * torch.sin(2 * torch.pi * 440 * time_s)
    truth = truth_of(torch.stack([mono, 0.6 * mono]).unsqueeze(0))
    assert truth.features_BTF.shape == (1, 12, FEATURES)
    features_BTF = truth.features_BTF.clone().requires_grad_()
    audio_BN = under_true_phase(features_BTF, truth.mid_BJK)
    assert audio_BN.shape == truth.audio_BN.shape
    error = (audio_BN - truth.audio_BN).square().sum(1) / truth.audio_BN.square().sum(1)
    assert error[0] < 1e-4
    assert error[1] < 0.05
    audio_BN.square().sum().backward()
    assert bool(torch.isfinite(features_BTF.grad).all())
    assert features_BTF.grad.abs().sum() > 0
    silent = torch.full_like(features_BTF, -14.0).requires_grad_()
    under_true_phase(silent, truth.mid_BJK).sum().backward()
    assert bool(torch.isfinite(silent.grad).all())


def test_crops_are_a_function_of_seed_and_step(corpus: Path) -> None:
    folders = find_songs(corpus, 1).training
    make = {"samples": 8 * HOP_SAMPLES, "batch_size": 3, "speeds": (1.0, 1.03), "readers": 1}
    ahead, anew = (audio_crops(folders, seed=0, **make) for _ in range(2))
    assert ahead.at(0).shape == (3, 2, 8 * HOP_SAMPLES)
    assert torch.equal(ahead.at(1), anew.at(1))
    assert not torch.equal(ahead.at(2), anew.at(1))
    assert not torch.equal(audio_crops(folders, seed=1, **make).at(1), anew.at(1))
    # What comes out of a truth's features is what the first stage reads from the same audio.
    crop_CN = anew.at(3)[0]
    inner = audio_features(crop_CN).float()[1:-1]
    assert (truth_of(crop_CN.unsqueeze(0)).features_BTF[0] - inner).abs().max() < 0.02
    with pytest.raises(UserError, match="longer than"):
        audio_crops(folders, seed=0, **(make | {"samples": 200 * HOP_SAMPLES}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("crop_frames", 4),
        ("stft_windows", 6),
        ("learning_rate", 2.0),
        ("ema_decay", 1.0),
        ("latent_noise", -1.0),
        ("speeds", ()),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        AdversarialConfig(corpus=tmp_path, out=tmp_path, **{field: value})
