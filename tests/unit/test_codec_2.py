"""Codec 2: its contract, sounds from views, an identity that belongs to the encoder, and a training that goes on where it stopped."""

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

import training.codec.view_training
from infra.errors import UserError
from model.codec.embedded_2 import SoundConfig, load_embedded_2, save_embedded_2
from model.codec.load import load_codec
from model.codec.view_vae import ViewVAE, ViewVAEConfig
from model.codec.views import FEATURES, SIDE_RANGE, sound_of, views_in, views_of
from model.dimensions import HOP_SAMPLES
from model.errors import CodecUnavailable
from tests.codec_parts import tiny_embedded_2
from training.codec.fidelity import added_rises_ms, fidelity, log_mel_db, side_to_mid_db
from training.codec.material import open_material, varied
from training.codec.view_training import ViewTrainConfig, rate_at, train_views, view_loss


def noise(samples: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 2, samples, generator=torch.Generator().manual_seed(seed))


def band(seconds: float) -> torch.Tensor:
    """(2, N): a chord on the left and in the middle, and a stroke of noise every half second."""
    time_s = torch.arange(round(seconds * 44_100)) / 44_100
    chord = sum(torch.sin(2 * torch.pi * hz * time_s) for hz in (220, 277.2, 329.6, 440, 554.4)) / 25
    strokes = torch.randn(len(time_s), generator=torch.Generator().manual_seed(0)) * 0.3 * torch.exp(-((time_s % 0.5) * 60))
    return torch.stack([chord + strokes, 0.6 * chord + strokes])


@pytest.mark.parametrize("samples", [1, HOP_SAMPLES, 5 * HOP_SAMPLES - 7])
def test_lengths_follow_the_contract(samples: int) -> None:
    codec = tiny_embedded_2()
    latent_BCT = codec.encode(noise(samples, batch=2))
    frames = -(-samples // HOP_SAMPLES)
    assert latent_BCT.shape == (2, 64, frames)
    audio_BCN = codec.decode(latent_BCT)
    assert audio_BCN.shape == (2, 2, frames * HOP_SAMPLES)
    assert bool(torch.isfinite(audio_BCN).all())


@pytest.mark.parametrize("chunk_frames", [24, 33, 64])
def test_chunks_equal_the_whole(chunk_frames: int) -> None:
    codec = tiny_embedded_2()
    audio_BCN = noise(120 * HOP_SAMPLES - 100)
    codec.chunk_frames = 1_000
    latent_BCT = codec.encode(audio_BCN)
    whole_BCN = codec.decode(latent_BCT)
    assert whole_BCN.std() > 1e-3
    codec.chunk_frames = chunk_frames
    assert (codec.encode(audio_BCN) - latent_BCT).abs().max() < 1e-4
    assert (codec.decode(latent_BCT) - whole_BCN).abs().max() < 1e-4


def test_what_lies_beyond_the_halo_is_not_read() -> None:
    codec = tiny_embedded_2()
    audio_BCN, frame = noise(60 * HOP_SAMPLES), 30
    latent_BCT = codec.encode(audio_BCN)
    changed = audio_BCN.clone()
    changed[..., (frame + codec.encode_halo.right + 1) * HOP_SAMPLES :] = 0
    changed[..., : (frame - codec.encode_halo.left) * HOP_SAMPLES] = 0
    assert torch.equal(codec.encode(changed)[..., frame], latent_BCT[..., frame])
    changed[..., (frame + codec.encode_halo.right) * HOP_SAMPLES :] = 0
    assert not torch.equal(codec.encode(changed)[..., frame], latent_BCT[..., frame])


def test_a_sound_made_from_its_own_views_sounds_like_itself() -> None:
    """Mel and width come back, and attacks are as steep as they were; the views of silence are silent."""
    original_CN = band(60 * HOP_SAMPLES / 44_100)
    views = views_of(original_CN.unsqueeze(0))
    features_BTF = views.features()
    assert features_BTF.shape == (1, 60, FEATURES)
    assert torch.equal(views_in(features_BTF).features(), features_BTF)
    made_CN = sound_of(views, rounds=2, grid_frames=32)[0]
    assert (log_mel_db(made_CN) - log_mel_db(original_CN)).abs().mean() < 4
    assert abs(side_to_mid_db(made_CN) - side_to_mid_db(original_CN)) < 2
    assert np.median(added_rises_ms(original_CN, made_CN)) < 6
    silent = sound_of(views_of(torch.zeros(1, 2, 8 * HOP_SAMPLES)), rounds=2, grid_frames=32)
    assert torch.equal(silent, torch.zeros_like(silent))


def test_a_record_in_opposite_phase_keeps_its_sound() -> None:
    """Its mid is silent, so there is nothing to make it from, were a little of the side not counted as mid."""
    one_N = band(30 * HOP_SAMPLES / 44_100).mean(0)
    record_CN = torch.stack([one_N, -one_N])
    made_CN = sound_of(views_of(record_CN.unsqueeze(0)), rounds=2, grid_frames=32)[0]
    assert made_CN[0].square().mean().log10() == pytest.approx(one_N.square().mean().log10(), abs=0.1)
    assert (made_CN[0] + made_CN[1]).square().mean() < 1e-3 * made_CN[0].square().mean()
    # A quiet mid: what lies 57 dB under it is lost.
    assert (log_mel_db(made_CN[:1]) - log_mel_db(record_CN[:1])).abs().mean() < 6


def test_silence_and_mono_have_no_width() -> None:
    for audio_BCN in (torch.zeros(1, 2, 8 * HOP_SAMPLES), noise(8 * HOP_SAMPLES)[:, :1].repeat(1, 2, 1)):
        assert views_of(audio_BCN).side_BTM.max() < -5.5


def test_the_identity_is_the_encoders_alone(tmp_path: Path) -> None:
    network = tiny_embedded_2().network
    save_embedded_2(tmp_path / "one", network, SoundConfig())
    first = load_codec(str(tmp_path / "one"))
    for parameter in [*network.decoder.parameters(), network.decoder_line.weight]:
        parameter.data.add_(0.1)
    save_embedded_2(tmp_path / "two", network, SoundConfig(rounds=1))
    second = load_codec(str(tmp_path / "two"))
    assert (first.identity.id, second.identity.id) == ("one", "two")
    assert first.identity.weights_sha256 == second.identity.weights_sha256
    audio_BCN = noise(9 * HOP_SAMPLES)
    latent_BCT = first.encode(audio_BCN)
    assert torch.equal(second.encode(audio_BCN), latent_BCT)
    assert not torch.equal(second.decode(latent_BCT), first.decode(latent_BCT))
    network.latent_std[0] = 2.0
    save_embedded_2(tmp_path / "three", network, SoundConfig())
    assert load_codec(str(tmp_path / "three")).identity.weights_sha256 != first.identity.weights_sha256


def test_a_folder_that_cannot_be_read_gives_one_clear_error(tmp_path: Path) -> None:
    save_embedded_2(tmp_path / "codec", tiny_embedded_2().network, SoundConfig())
    config = tmp_path / "codec" / "model_config.json"
    document = json.loads(config.read_text())
    for part, name, value in (("sound", "grid_frames", 3), ("network", "kernel", 4), ("network", "decoder_width", 99), ("sound", "odd", 1)):
        config.write_text(json.dumps({**document, part: {**document[part], name: value}}))
        with pytest.raises(CodecUnavailable, match="training codec-2"):
            load_codec(str(tmp_path / "codec"))
    with pytest.raises(CodecUnavailable, match="training codec-2"):
        load_embedded_2(tmp_path / "nothing")


@pytest.mark.parametrize("changes", [{"encoder_width": 0}, {"decoder_blocks": 0}, {"kernel": 2}])
def test_a_wrong_network_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ViewVAEConfig(**changes)


def test_the_linear_path_begins_as_principal_components() -> None:
    """Features of 64 hidden causes come back whole, and latents are white."""
    torch.manual_seed(0)
    network = ViewVAE(ViewVAEConfig(encoder_width=16, encoder_blocks=1, decoder_width=16, decoder_blocks=1))
    features_NF = torch.randn(3_000, 64) @ torch.randn(64, FEATURES) / 8 - 3
    network.begin_linear(features_NF, torch.ones(FEATURES))
    mean_BTC, _ = network.posterior(features_NF.unsqueeze(0))
    assert torch.allclose(torch.cov(mean_BTC[0].T), torch.eye(64), atol=0.05)
    assert (network.reconstruct(mean_BTC)[0] - features_NF).abs().max() < 0.05


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for index, audio_CN in enumerate((band(4.0), noise(3 * 44_100)[0], band(3.0).flip(0))):
        (folder / str(index)).mkdir()
        soundfile.write(folder / str(index) / "mix.wav", audio_CN.T.numpy(), 44_100)
    return folder


@pytest.fixture(scope="module")
def judge(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(corpus, tmp_path_factory.mktemp("judge") / "recordings"))


def test_a_recording_that_judges_is_not_trained_on(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must not be trained on"):
        train_views(config(corpus, tmp_path / "out", judge=corpus / "0"))


def test_a_recording_with_samples_that_are_no_numbers_is_named(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    soundfile.write(tmp_path / "songs" / "nan.wav", np.full((44_100, 2), np.nan, np.float32), 44_100, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan\.wav"):
        train_views(config(tmp_path / "songs", tmp_path / "out"))


def config(corpus: Path, out: Path, **changes: Any) -> ViewTrainConfig:
    network = ViewVAEConfig(encoder_width=16, encoder_blocks=1, decoder_width=16, decoder_blocks=1)
    values = {"steps": 4, "evaluate_every": 2, "save_minutes": 0.0, "batch_size": 2, "crop_frames": 16, "precision": "float32"}
    return ViewTrainConfig(corpus=corpus, out=out, **(values | {"network": network} | changes))


def test_a_resumed_run_equals_an_uninterrupted_one(corpus: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = train_views(config(corpus, tmp_path / "whole", judge=judge))
    assert figures.keys() == {"mel_db", "rise_ms", "rise_quartile_ms", "side_db"}
    assert all(math.isfinite(value) for value in figures.values())
    calls: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return view_loss(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training.codec.view_training, "view_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_views(config(corpus, tmp_path / "parts"))
    with pytest.raises(UserError, match="add --resume"):
        train_views(config(corpus, tmp_path / "parts"))
    train_views(config(corpus, tmp_path / "parts", resume=True))
    whole, parts = (load_file(tmp_path / name / "last" / "views.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if name != "minutes" and not torch.equal(whole[name], parts[name])] == []
    codec = load_codec(str(tmp_path / "parts" / "codec"))
    assert codec.identity.weights_sha256 == load_codec(str(tmp_path / "whole" / "codec")).identity.weights_sha256


def test_a_frozen_encoder_keeps_its_identity_while_the_decoder_learns(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="freeze-encoder"):
        train_views(config(corpus, tmp_path / "none", freeze_encoder=True))
    train_views(config(corpus, tmp_path / "run"))
    before = load_file(tmp_path / "run" / "codec" / "model.safetensors")
    for steps in (6, 8):
        train_views(config(corpus, tmp_path / "run", steps=steps, resume=True, freeze_encoder=True))
        after = load_file(tmp_path / "run" / "codec" / "model.safetensors")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all(name.startswith("decoder") for name in changed), changed


def test_material_of_other_files_is_refused(corpus: Path, tmp_path: Path) -> None:
    material = open_material(corpus, tmp_path / "material", 16, (1.0, 1.1), 0)
    assert len(material.starts) == 6
    assert material.crops(3, 16, np.random.default_rng(0)).shape == (3, 16, FEATURES)
    with pytest.raises(UserError, match="made of other files"):
        open_material(corpus, tmp_path / "material", 16, (1.0,), 0)
    with pytest.raises(UserError, match="no \\.wav"):
        open_material(tmp_path / "material", tmp_path / "other", 16, (1.0,), 0)
    with pytest.raises(UserError, match="crop_frames"):
        open_material(corpus, tmp_path / "material", 1_000, (1.0, 1.1), 0)


def test_a_gain_acts_on_features_as_on_audio() -> None:
    audio_BCN = band(40 * HOP_SAMPLES / 44_100).unsqueeze(0)
    seed = next(seed for seed in range(20) if _tilts(seed) == 0)
    rng = np.random.default_rng(seed)
    found = views_in(varied(views_of(audio_BCN).features(), rng))
    gain = 10 ** (np.random.default_rng(seed).uniform(-18, 6) / 20)
    wanted = views_of(audio_BCN * gain)
    for name in ("mel_BJM", "fine_BJM", "attack_BJM"):
        assert (getattr(found, name) - getattr(wanted, name)).abs().max() < 0.02, name
    assert found.side_BTM.min() >= SIDE_RANGE[0]


def _tilts(seed: int) -> bool:
    rng = np.random.default_rng(seed)
    rng.uniform(size=2)
    return bool(rng.random() < 0.5)


def test_fidelity_of_the_same_sound_is_whole() -> None:
    audio_CN = band(3.0)
    assert (log_mel_db(audio_CN) - log_mel_db(audio_CN)).abs().max() == 0
    assert set(added_rises_ms(audio_CN, audio_CN)) == {0.0}
    louder_left = torch.stack([2 * audio_CN[0], audio_CN[1]])
    assert side_to_mid_db(louder_left) > side_to_mid_db(audio_CN)


def test_the_rate_warms_up_falls_and_cools_down(tmp_path: Path) -> None:
    run = ViewTrainConfig(corpus=tmp_path, out=tmp_path, steps=20_000, cool_down_steps=2_000, warmup_steps=100, decay_after=4_000)
    assert rate_at(0, run) == pytest.approx(run.learning_rate / 100)
    assert rate_at(2_000, run) == run.learning_rate
    assert rate_at(15_999, run) == pytest.approx(run.learning_rate / 2)
    assert rate_at(19_999, run) == pytest.approx(run.learning_rate * (0.2**0.5) / 100, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("learning_rate", 2.0), ("ema_decay", 1.0), ("kl_weight", -1.0), ("speeds", ()), ("threads", 0)]
)
def test_a_wrong_config_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        ViewTrainConfig(corpus=tmp_path, out=tmp_path, **{field: value})


def test_figures_on_recordings(corpus: Path) -> None:
    figures = fidelity(tiny_embedded_2(), [corpus / "0" / "mix.wav"])
    assert figures["mel_db"] > 1
