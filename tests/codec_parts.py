"""What the tests of codecs share: small codecs with random weights, the hub's layout on disk, and the names of an Oobleck's weights."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.codec_base import CodecIdentity
from model.embedded_codec import EmbeddedCodec, PhaseConfig
from model.magnitude_vae import STEREO_BANDS, MagnitudeVAE, MagnitudeVAEConfig

OOBLECK = {"channels": 4, "c_mults": [1, 1, 2, 2, 2], "strides": [2, 4, 4, 8, 8], "use_snake": True}
AUTOENCODER: dict[str, Any] = {
    "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 128, **OOBLECK}},
    "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 64, "final_tanh": False, **OOBLECK}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 64,
    "downsampling_ratio": 2048,
    "io_channels": 2,
}


def autoencoder_document(**changes: Any) -> dict[str, Any]:
    return {"model_type": "autoencoder", "sample_rate": 44100, "model": {**deepcopy(AUTOENCODER), **changes}}


def checkpoint_document(**changes: Any) -> dict[str, Any]:
    """A diffusion checkpoint's configuration, as the hub holds it."""
    pretransform = {"type": "autoencoder", "iterate_batch": True, "config": deepcopy(AUTOENCODER), **changes}
    model = {"pretransform": pretransform, "conditioning": {"configs": []}, "diffusion": {"type": "dit", "config": {"depth": 24}}}
    return {"model_type": "diffusion_cond", "sample_size": 2097152, "sample_rate": 44100, "audio_channels": 2, "model": model}


def small_weights() -> dict[str, torch.Tensor]:
    """Random weights of the small autoencoder, as stable-audio-tools names them; its import takes 12 s, once."""
    from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

    torch.manual_seed(0)
    return {
        name: tensor + 0.02 * torch.randn_like(tensor)
        for name, tensor in create_autoencoder_from_config(autoencoder_document()).state_dict().items()
    }


def write_folder(folder: Path, document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps(document))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def full_checkpoint(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The autoencoder among another model's tensors."""
    others = {"model.model.transformer.layers.0.weight": torch.ones(8, 8), "conditioner.conditioners.prompt.proj.weight": torch.ones(4)}
    return others | {f"pretransform.model.{name}": tensor for name, tensor in weights.items()}


def tiny_embedded(*, rounds: int = 2, blocks: int = 1) -> EmbeddedCodec:
    torch.manual_seed(0)
    network = MagnitudeVAE(MagnitudeVAEConfig(width=16, encoder_blocks=blocks, decoder_blocks=blocks))
    network.feature_mean[: -2 * STEREO_BANDS] = -6
    network.feature_std[:] = 0.5
    return EmbeddedCodec(network, PhaseConfig(rounds=rounds, grid_frames=16), CodecIdentity(id="tiny", weights_sha256="0"))


def stable_audio_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names → stable-audio-tools': numbered layers, snake parameters as vectors."""
    depth = len({name.split(".")[2] for name in tensors if name.startswith("encoder.block.")})
    found = {}
    for name, tensor in tensors.items():
        side, rest = name.split(".", 1)
        parts = rest.split(".")
        if parts[0] == "block":
            block, inner = int(parts[1]), parts[2]
            prefix = f"{side}.layers.{block + 1}.layers"
            units = {"res_unit1": 0, "res_unit2": 1, "res_unit3": 2, "snake1": 3, "conv1": 4}
            if side == "decoder":
                units = {"snake1": 0, "conv_t1": 1, "res_unit1": 2, "res_unit2": 3, "res_unit3": 4}
            if inner.startswith("res_unit"):
                layer = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}[parts[3]]
                target = f"{prefix}.{units[inner]}.layers.{layer}.{'.'.join(parts[4:])}"
            else:
                target = f"{prefix}.{units[inner]}.{'.'.join(parts[3:])}"
        else:
            layer = {"conv1": 0, "snake1": depth + 1, "conv2": depth + 2}[parts[0]]
            target = f"{side}.layers.{layer}.{'.'.join(parts[1:])}"
        if target.endswith((".alpha", ".beta")):
            tensor = tensor.reshape(-1)
        target = target.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")
        found[target] = tensor.detach().clone().contiguous()
    return found
