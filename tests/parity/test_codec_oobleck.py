"""The Oobleck autoencoder loaded here against diffusers' AutoencoderOobleck holding the same weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.codec.load import load_codec
from tests.codec_parts import stable_audio_names

CHANNELS, STRIDES = 16, [2, 4, 4, 8, 8]


def test_encode_and_decode_equal_diffusers(tmp_path: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    reference = diffusers.AutoencoderOobleck(
        encoder_hidden_size=128,  # diffusers ties the latent's size to it
        downsampling_ratios=STRIDES,
        channel_multiples=[1, 1, 1, 1, 1],
        decoder_channels=CHANNELS,
        decoder_input_channels=64,
        audio_channels=2,
        sampling_rate=44100,
    ).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith(("alpha", "beta")):
            parameter.data.normal_(std=0.3)
    encoder = {"in_channels": 2, "channels": 128, "c_mults": [1, 1, 1, 1, 1], "strides": STRIDES, "latent_dim": 128, "use_snake": True}
    decoder = {"out_channels": 2, "channels": CHANNELS, "c_mults": [1, 1, 1, 1, 1], "strides": STRIDES, "latent_dim": 64, "use_snake": True}
    model = {
        "encoder": {"type": "oobleck", "config": encoder},
        "decoder": {"type": "oobleck", "config": {**decoder, "final_tanh": False}},
        "bottleneck": {"type": "vae"},
        "latent_dim": 64,
        "downsampling_ratio": 2048,
        "io_channels": 2,
    }
    (tmp_path / "model_config.json").write_text(json.dumps({"model_type": "autoencoder", "sample_rate": 44100, "model": model}))
    save_file(stable_audio_names(dict(reference.state_dict())), tmp_path / "model.safetensors")
    codec = load_codec(str(tmp_path))
    audio_BCN = 0.3 * torch.randn(1, 2, 12 * 2048)
    with torch.no_grad():
        wanted_latent = reference.encode(audio_BCN).latent_dist.mode()
        wanted_audio = reference.decode(wanted_latent).sample
    codec.chunk_frames = 5
    latent_BCT = codec.encode(audio_BCN)
    assert wanted_latent.abs().max() > 1e-2
    assert (latent_BCT - wanted_latent).abs().max() < 1e-4
    assert (codec.decode(wanted_latent) - wanted_audio).abs().max() < 1e-4
