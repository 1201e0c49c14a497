"""The autoencoder of Stable Audio Open at its own size, from files in the hub's layout, against diffusers' AutoencoderOobleck."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.codec.base import tensors_sha256
from model.codec.load import StableAudioCodec, load_codec
from model.dimensions import HOP_SAMPLES
from tests.codec_parts import stable_audio_names, write_full_size

pytestmark = pytest.mark.soak

FRAMES = 44  # 2 s
STORED_PARAMETERS = 156_112_514
FOLDED_PARAMETERS = 156_077_696  # each convolution's norms multiplied into its directions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_size(tmp_path_factory.mktemp("hub") / "stable-audio-open-1.0")


@pytest.fixture(scope="module")
def codec(folder: Path) -> StableAudioCodec:
    codec = load_codec(f"stable-audio-open:{folder}", precision="float32")
    assert isinstance(codec, StableAudioCodec)
    return codec


def sound(seed: int = 1) -> torch.Tensor:
    """(1, 2, N): chords of decaying partials in noise, a sample short of whole frames."""
    generator = torch.Generator().manual_seed(seed)
    time_s = torch.arange(FRAMES * HOP_SAMPLES - 1) / 44_100
    tones = sum(torch.sin(2 * torch.pi * hz * time_s) for hz in (110.0, 277.2, 329.6, 1318.5)) * torch.exp(-3 * (time_s % 0.5))
    return 0.1 * tones + 0.05 * torch.randn(1, 2, len(time_s), generator=generator)


def test_its_size_and_identity(codec: StableAudioCodec, folder: Path) -> None:
    assert sum(tensor.numel() for tensor in codec.autoencoder.state_dict().values()) == FOLDED_PARAMETERS
    prefix = "pretransform.model."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in load_file(folder / "model.safetensors").items() if prefix in name}
    assert sum(tensor.numel() for tensor in tensors.values()) == STORED_PARAMETERS
    assert codec.identity.id == "stable-audio-open"
    assert codec.identity.weights_sha256 == tensors_sha256(tensors)


def test_encode_and_decode_equal_diffusers(codec: StableAudioCodec, folder: Path) -> None:
    import diffusers

    reference = diffusers.AutoencoderOobleck(
        encoder_hidden_size=128,
        downsampling_ratios=[2, 4, 4, 8, 8],
        channel_multiples=[1, 2, 4, 8, 16],
        decoder_channels=128,
        decoder_input_channels=64,
        audio_channels=2,
        sampling_rate=44100,
    ).eval()
    assert sum(parameter.numel() for parameter in reference.parameters()) == STORED_PARAMETERS
    own = load_file(folder / "model.safetensors")
    state = reference.state_dict()
    theirs = {
        name: own[f"pretransform.model.{ours}"].reshape(state[name].shape)
        for name, ours in zip(state, stable_audio_names(state), strict=True)
    }
    assert len(theirs) == sum(name.startswith("pretransform.model.") for name in own)
    reference.load_state_dict(theirs)
    audio_BCN = sound()
    with torch.inference_mode():
        wanted_latent = reference.encode(torch.nn.functional.pad(audio_BCN, (0, 1))).latent_dist.mode()
        wanted_audio = reference.decode(wanted_latent).sample
    assert 0.3 < wanted_latent.std() < 3
    assert 0.05 < wanted_audio.std() < 0.5
    assert wanted_audio.abs().max() < 2
    codec.chunk_frames = 17
    assert (codec.encode(audio_BCN) - wanted_latent).abs().max() < 1e-4
    assert (codec.decode(wanted_latent) - wanted_audio).abs().max() < 1e-4


def test_chunks_and_pieces_equal_the_whole(codec: StableAudioCodec) -> None:
    codec.chunk_frames = FRAMES
    latent_BCT = codec.encode(sound())
    whole_BCN = codec.decode(latent_BCT)
    codec.chunk_frames = 15
    assert (codec.encode(sound()) - latent_BCT).abs().max() < 1e-4
    chunked_BCN = codec.decode(latent_BCT)
    assert (chunked_BCN - whole_BCN).abs().max() < 1e-4
    assert torch.equal(torch.cat(list(codec.decode_pieces(latent_BCT.split(9, dim=2))), dim=2), chunked_BCN)


def test_rounding_to_bfloat16_is_not_heard(codec: StableAudioCodec, folder: Path) -> None:
    rounded = load_codec(f"stable-audio-open:{folder}", precision="bfloat16")
    assert rounded.identity == codec.identity
    codec.chunk_frames = rounded.chunk_frames
    latent_BCT = codec.encode(sound())
    exact_BCN = codec.decode(latent_BCT)
    noise_BCN = rounded.decode(latent_BCT) - exact_BCN
    assert 10 * torch.log10(exact_BCN.square().mean() / noise_BCN.square().mean()) > 40
    assert torch.equal(rounded.encode(sound()), latent_BCT)
