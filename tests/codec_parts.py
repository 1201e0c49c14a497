"""What the tests of codecs share: small codecs with random weights, the hub's layout on disk, and the names of an Oobleck's weights."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.codec.base import CodecIdentity
from model.codec.embedded import EmbeddedCodec, PhaseConfig
from model.codec.embedded_2 import Embedded2Codec, SoundConfig
from model.codec.load import build_autoencoder
from model.codec.magnitude_vae import STEREO_BANDS, MagnitudeVAE, MagnitudeVAEConfig
from model.codec.view_vae import ViewVAE, ViewVAEConfig
from model.codec.views import STEREO_BANDS as VIEW_STEREO_BANDS

OOBLECK = {"channels": 4, "c_mults": [1, 1, 2, 2, 2], "strides": [2, 4, 4, 8, 8], "use_snake": True}
AUTOENCODER: dict[str, Any] = {
    "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 128, **OOBLECK}},
    "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 64, "final_tanh": False, **OOBLECK}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 64,
    "downsampling_ratio": 2048,
    "io_channels": 2,
}


# Stable Audio Open 1.0's autoencoder: 156.1 M parameters.
FULL_OOBLECK = {"channels": 128, "c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8], "use_snake": True}


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


def tiny_embedded_2() -> Embedded2Codec:
    """Small layers with random weights, a linear path that keeps something of the sound, and a level at which noise is heard."""
    torch.manual_seed(0)
    network = ViewVAE(ViewVAEConfig(encoder_width=16, encoder_blocks=1, decoder_width=16, decoder_blocks=1))
    for leave in (network.encoder.leave, network.decoder.leave):
        torch.nn.init.normal_(leave.weight, std=0.02)
    network.feature_mean[:] = -6
    network.feature_mean[-2 * VIEW_STEREO_BANDS :] = 0
    network.feature_std[:] = 0.5
    return Embedded2Codec(network, SoundConfig(grid_frames=16), CodecIdentity(id="tiny-2", weights_sha256="0"))


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


def write_full_size(folder: Path, *, seed: int = 0, branch: float = 0.5) -> Path:
    """A folder as the hub holds Stable Audio Open 1.0: its configuration, its autoencoder at full size with random weights, and stand-ins
    for the tensors of the transformer and the conditioners, which are NaN: whoever reads them notices.

    Weights are conditioned layer by layer (Mishkin & Matas 2016): each convolution's norms are scaled until, for noise, its output deviates
    by 1; by `branch` where it ends a residual branch, and by 0.15 where it makes the audio. So a latent is of order 1 and audio stays
    within full scale. Snakes have log α and log β of deviation 0.3.
    """
    model = deepcopy(AUTOENCODER)
    for side in ("encoder", "decoder"):
        model[side]["config"] |= FULL_OOBLECK
    autoencoder = build_autoencoder({"model_type": "autoencoder", "sample_rate": 44100, "model": model}, "full").eval()
    _condition(autoencoder, torch.Generator().manual_seed(seed), branch)
    others = {
        "model.model.transformer.layers.0.self_attn.to_qkv.weight": torch.full((64, 64), float("nan")),
        "model.model.postprocess_conv.weight": torch.full((64, 64, 1), float("nan")),
        "conditioner.conditioners.seconds_total.embedder.embedding.1.bias": torch.full((64,), float("nan")),
    }
    tensors = others | {f"pretransform.model.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
    document = checkpoint_document(config=model)
    document["model"] |= {
        "io_channels": 64,
        "conditioning": {
            "configs": [
                {"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": 128}},
                {"id": "seconds_start", "type": "number", "config": {"min_val": 0, "max_val": 512}},
                {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 512}},
            ],
            "cond_dim": 768,
        },
        "diffusion": {"type": "dit", "config": {"io_channels": 64, "embed_dim": 1536, "depth": 24, "num_heads": 24}},
    }
    return write_folder(folder, document, tensors)


@torch.no_grad()
def _condition(autoencoder: Any, draws: torch.Generator, branch: float) -> None:
    """Random weights whose activations stay of order 1 through all layers."""
    last = [module for module in autoencoder.decoder.modules() if hasattr(module, "weight_g")][-1]
    hooks = []
    for module in autoencoder.modules():
        if type(module).__name__ == "SnakeBeta":
            module.alpha.normal_(std=0.3, generator=draws)
            module.beta.normal_(std=0.3, generator=draws)
        if not hasattr(module, "weight_g"):
            continue
        module.weight_v.normal_(generator=draws)
        module.weight_g.copy_(torch.empty_like(module.weight_g).normal_(std=0.2, generator=draws).exp())
        if module.bias is not None:
            module.bias.normal_(std=0.1, generator=draws)
        wanted = 0.15 if module is last else branch if module.kernel_size == (1,) else 1.0

        def rescale(layer: Any, _: Any, made: torch.Tensor, wanted: float = wanted) -> torch.Tensor:
            factor = wanted / made.std()
            layer.weight_g.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)
            return made * factor

        hooks.append(module.register_forward_hook(rescale))
    latent_BCT = autoencoder.encoder(0.2 * torch.randn(1, 2, 8 * 2048, generator=draws))[:, :64]
    autoencoder.decoder(latent_BCT)
    for hook in hooks:
        hook.remove()
