"""stable-audio-tools autoencoders: the loading code on small weights in the hub's layout, exact receptive fields, and every refusal."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from model.codec.base import Halo
from model.codec.load import StableAudioCodec, _read_autoencoder, load_codec
from model.codec.receptive_field import UnknownFieldError, decoder_halo, encoder_halo, walk_back
from model.dimensions import HOP_SAMPLES
from model.errors import CodecUnavailable
from tests.codec_parts import autoencoder_document, checkpoint_document, full_checkpoint, small_weights, write_folder


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return small_weights()


@pytest.fixture(scope="module")
def codec(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> StableAudioCodec:
    folder = write_folder(tmp_path_factory.mktemp("hub") / "sao", checkpoint_document(), full_checkpoint(weights))
    loaded = load_codec(f"stable-audio-open:{folder}")
    assert isinstance(loaded, StableAudioCodec)
    return loaded


def noise(frames: int, *, batch: int = 1) -> torch.Tensor:
    return 0.3 * torch.randn(batch, 2, frames * HOP_SAMPLES, generator=torch.Generator().manual_seed(1))


def test_a_full_checkpoint_and_the_bare_autoencoder_are_one_codec(
    codec: StableAudioCodec, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    bare = load_codec(str(write_folder(tmp_path / "bare", autoencoder_document(), weights)))
    assert codec.identity.id == "stable-audio-open"
    assert bare.identity.id == "bare"
    assert bare.identity.weights_sha256 == codec.identity.weights_sha256
    assert torch.equal(bare.encode(noise(3)), codec.encode(noise(3)))


def test_other_weights_are_another_identity(codec: StableAudioCodec, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = next(iter(weights))
    changed = {**weights, name: weights[name] + 1e-3}
    other = load_codec(str(write_folder(tmp_path / "other", autoencoder_document(), changed)))
    assert other.identity.weights_sha256 != codec.identity.weights_sha256


def test_the_posterior_mean_is_repeatable_and_has_the_contracts_shape(codec: StableAudioCodec) -> None:
    audio_BCN = noise(3, batch=2)[..., :-100]
    latent_BCT = codec.encode(audio_BCN)
    assert latent_BCT.shape == (2, 64, 3)
    assert torch.equal(latent_BCT, codec.encode(audio_BCN))
    with torch.no_grad():
        mean = codec.autoencoder.encoder(torch.nn.functional.pad(audio_BCN, (0, 100)))[:, :64]
    assert torch.equal(latent_BCT, mean)
    assert codec.decode(latent_BCT).shape == (2, 2, 3 * HOP_SAMPLES)


def test_folded_weight_norm_is_the_same_function(codec: StableAudioCodec, weights: dict[str, torch.Tensor]) -> None:
    from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

    normed = create_autoencoder_from_config(autoencoder_document()).eval()
    normed.load_state_dict(weights)
    assert not any("weight_g" in name for name in codec.autoencoder.state_dict())
    with torch.no_grad():
        assert (normed.encode(noise(2), skip_bottleneck=True)[:, :64] - codec.encode(noise(2))).abs().max() < 1e-5


@pytest.mark.parametrize("chunk_frames", [1, 7, 16])
def test_chunks_equal_the_whole(codec: StableAudioCodec, chunk_frames: int) -> None:
    audio_BCN = noise(40)[..., :-777]
    codec.chunk_frames = 1_000
    latent_BCT = codec.encode(audio_BCN)
    whole_BCN = codec.decode(latent_BCT)
    codec.chunk_frames = chunk_frames
    assert (codec.encode(audio_BCN) - latent_BCT).abs().max() < 1e-5
    assert (codec.decode(latent_BCT) - whole_BCN).abs().max() < 1e-5


def test_the_receptive_field_is_exact(codec: StableAudioCodec) -> None:
    """NaN at one sample reaches just the latents that read it, as computed from the layers."""
    encoder, decoder = codec.autoencoder.encoder, codec.autoencoder.decoder
    first, last = walk_back(encoder, (0, 0))
    at = 20
    with torch.no_grad():
        for offset, reads in ((first, True), (last, True), (first - 1, False), (last + 1, False)):
            audio_BCN = noise(40)
            audio_BCN[..., at * HOP_SAMPLES + offset] = float("nan")
            assert bool(encoder(audio_BCN)[..., at].isnan().any()) is reads
        first, last = walk_back(decoder, (0, HOP_SAMPLES - 1))
        for offset, reads in ((first, True), (last, True), (first - 1, False), (last + 1, False)):
            latent_BCT = torch.randn(1, 64, 40)
            latent_BCT[..., at + offset] = float("nan")
            assert bool(decoder(latent_BCT)[..., at * HOP_SAMPLES : (at + 1) * HOP_SAMPLES].isnan().any()) is reads
    assert codec.encode_halo == encoder_halo(encoder, HOP_SAMPLES)
    assert codec.decode_halo == decoder_halo(decoder, HOP_SAMPLES)
    assert isinstance(codec.encode_halo, Halo)


def test_an_unknown_layer_has_no_field() -> None:
    with pytest.raises(UnknownFieldError, match="LSTM"):
        walk_back(torch.nn.Sequential(torch.nn.LSTM(2, 2)), (0, 0))


def test_a_patched_autoencoder_is_chunked_too(tmp_path: Path) -> None:
    from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

    document = autoencoder_document(pretransform={"type": "patched", "config": {"channels": 2, "patch_size": 32}})
    for side in ("encoder", "decoder"):
        document["model"][side]["config"] |= {"c_mults": [1, 1, 2], "strides": [4, 4, 4]}
    document["model"]["encoder"]["config"]["in_channels"] = document["model"]["decoder"]["config"]["out_channels"] = 64
    tensors = create_autoencoder_from_config(deepcopy(document)).state_dict()
    codec = load_codec(str(write_folder(tmp_path / "patched", document, tensors)))
    whole = codec.encode(noise(30))
    codec.chunk_frames = 5
    assert codec.encode_halo is not None
    assert (codec.encode(noise(30)) - whole).abs().max() < 1e-5


def test_a_pretransforms_scale_divides_latents(codec: StableAudioCodec, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    scaled = load_codec(str(write_folder(tmp_path / "scaled", checkpoint_document(scale=2.0), full_checkpoint(weights))))
    assert (scaled.encode(noise(2)) * 2 - codec.encode(noise(2))).abs().max() < 1e-6
    assert (scaled.decode(scaled.encode(noise(2))) - codec.decode(codec.encode(noise(2)))).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (autoencoder_document(latent_dim=32), "latent_dim 32"),
        (autoencoder_document(downsampling_ratio=1024), "downsampling_ratio 1024"),
        (autoencoder_document(io_channels=1), "io_channels 1"),
        ({**autoencoder_document(), "sample_rate": 48000}, "sample_rate 48000"),
        ({"model_type": "lm", "model": {}}, "lm"),
        ([], "JSON object"),
    ],
)
def test_another_shape_of_codec_is_refused_before_its_weights_are_read(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "model_config.json").write_text(json.dumps(document))
    with pytest.raises(CodecUnavailable, match=message):
        load_codec(str(tmp_path))


def test_missing_and_broken_files_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CodecUnavailable, match="neither a codec's name nor a folder"):
        load_codec("no-such-codec")
    with pytest.raises(CodecUnavailable, match=r"model_config\.json"):
        load_codec(f"stable-audio-open:{tmp_path}")
    (tmp_path / "model_config.json").write_text(json.dumps(autoencoder_document()))
    with pytest.raises(CodecUnavailable, match="safetensors"):
        load_codec(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CodecUnavailable, match="not a readable"):
        load_codec(str(tmp_path))
    save_file({"another.model": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CodecUnavailable, match="no tensor named"):
        load_codec(str(tmp_path))
    few = dict(list(weights.items())[5:])
    save_file(few, tmp_path / "model.safetensors")
    with pytest.raises(CodecUnavailable, match="5 missing"):
        load_codec(str(tmp_path))


def test_only_the_autoencoders_tensors_are_read(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    folder = write_folder(tmp_path / "whole", checkpoint_document(), full_checkpoint(weights))
    read = _read_autoencoder(folder / "model.safetensors", ("pretransform.model.",), "whole")
    assert set(read) == set(weights)
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CodecUnavailable) as caught:
        load_codec("stable-audio-open")
    for word in ("licence", "HF_TOKEN", "stable-audio-open:FOLDER", "embedded"):
        assert word in str(caught.value)
