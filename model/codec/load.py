"""Codecs by name: the embedded ones, and any stable-audio-tools autoencoder. The only import of stable_audio_tools, when one is loaded.

Shapes: B batch, C channels, N samples, T latent frames of 2,048 samples.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.codec.base import Codec, CodecIdentity, Halo, tensors_sha256
from model.codec.embedded import MODEL_TYPE as EMBEDDED_MODEL_TYPE
from model.codec.embedded import load_embedded
from model.codec.embedded_2 import EMBEDDED_2, load_embedded_2
from model.codec.embedded_2 import MODEL_TYPE as EMBEDDED_2_MODEL_TYPE
from model.codec.receptive_field import UnknownFieldError, decoder_halo, encoder_halo
from model.codec.stable_audio_layers import quicken, round_fine_blocks
from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ
from model.errors import CodecUnavailable, ModelError

__all__ = ["Codec", "CodecIdentity", "Precision", "StableAudioCodec", "load_codec"]

log = logging.getLogger(__name__)

STABLE_AUDIO_OPEN = "stable-audio-open"
HUB_REPOSITORY = "stabilityai/stable-audio-open-1.0"
CHECKPOINT_PREFIX = "pretransform.model."
Precision = Literal["auto", "float32", "bfloat16"]
# A chunk of the Stable Audio Open VAE reads 10 frames on either side: 31% more work at 64 frames, 16% at 128, whose tensors at the
# full rate take 155 MB each and whose decode 0.6 GB above the weights (infra/benchmarks/model/full_codec.md).
CHUNK_FRAMES = 128


class StableAudioCodec(Codec):
    """A stable-audio-tools autoencoder with a continuous bottleneck, used as `encode` = posterior mean (Evans et al. 2024)."""

    def __init__(
        self, autoencoder: Any, identity: CodecIdentity, *, scale: float = 1.0, device: str = "cpu", precision: Precision = "auto"
    ) -> None:
        """`autoencoder` is stable-audio-tools' AudioAutoencoder with its weights, whose layers are replaced; `scale` divides its latents.

        Precision bfloat16 rounds in the decoder's finest blocks alone (`model.codec.stable_audio_layers`; 42 dB under the audio with
        random weights), and encodes in float32; auto is bfloat16 on CUDA, float32 on a CPU. Identity stays that of the weights as stored.
        Raises ModelError on another precision.
        """
        if precision not in get_args(Precision):
            raise ModelError(f"codec {identity.id}: precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
        self.identity = identity
        self.device = torch.device(device)
        self.chunk_frames = CHUNK_FRAMES
        self.scale = scale
        self.autoencoder = autoencoder.to(self.device).eval().requires_grad_(False)
        self._is_vae = type(autoencoder.bottleneck).__name__ == "VAEBottleneck"
        self.encode_halo, self.decode_halo = _halos(autoencoder)
        self.precision: Precision = _resolved(precision, self.device)
        quicken(self.autoencoder)
        if self.precision == "bfloat16" and not round_fine_blocks(self.autoencoder.decoder):
            log.warning("codec %s: its decoder has no residual units to compute in bfloat16; all of it stays float32", identity.id)

    def _encode_span(self, audio_BCN: Tensor) -> Tensor:
        if self._is_vae:
            mean_and_scale = self.autoencoder.encode(audio_BCN, skip_bottleneck=True)
            return mean_and_scale.chunk(2, dim=1)[0] / self.scale
        return self.autoencoder.encode(audio_BCN) / self.scale

    def _decode_span(self, latent_BCT: Tensor) -> Tensor:
        return self.autoencoder.decode(latent_BCT * self.scale)


def _resolved(precision: Precision, device: torch.device) -> Precision:
    """What "auto" means on a device: a fixed rule, so that a machine gives the same audio every time."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" else "float32"


def load_codec(spec: str = "embedded", *, device: str = "cpu", precision: Precision = "auto") -> Codec:
    """A codec by name: "embedded", "embedded-2", "stable-audio-open", "stable-audio-open:FOLDER" or FOLDER.

    A folder holds model_config.json and safetensors.

    `precision` is that of a stable-audio-tools autoencoder (StableAudioCodec); the embedded codecs always compute in float32.
    Raises CodecUnavailable, whose message says what to accept, set or convert.
    """
    if spec == "embedded":
        return load_embedded(device=device)
    if spec == EMBEDDED_2:
        return load_embedded_2(device=device)
    if spec == STABLE_AUDIO_OPEN:
        return _load_folder(_download_stable_audio_open(), STABLE_AUDIO_OPEN, device, precision)
    if spec.startswith(f"{STABLE_AUDIO_OPEN}:"):
        return _load_folder(Path(spec.removeprefix(f"{STABLE_AUDIO_OPEN}:")), STABLE_AUDIO_OPEN, device, precision)
    folder = Path(spec)
    if not folder.is_dir():
        raise CodecUnavailable(
            f"codec {spec!r}: neither a codec's name nor a folder; use embedded, {EMBEDDED_2}, {STABLE_AUDIO_OPEN}, "
            f"{STABLE_AUDIO_OPEN}:FOLDER, or a folder with model_config.json and model.safetensors"
        )
    return _load_folder(folder, folder.resolve().name, device, precision)


def _download_stable_audio_open() -> Path:
    """The hub's configuration and weights in its local cache. The licence has to be accepted by the account behind HF_TOKEN."""
    from huggingface_hub import hf_hub_download  # network code: only when asked for

    remedy = (
        f"accept the licence on https://huggingface.co/{HUB_REPOSITORY}, set HF_TOKEN to a token of that account (or run `hf auth login`), "
        f"or give a downloaded copy as {STABLE_AUDIO_OPEN}:FOLDER; the codec `embedded` needs no download"
    )
    try:
        config = hf_hub_download(HUB_REPOSITORY, "model_config.json")
        hf_hub_download(HUB_REPOSITORY, "model.safetensors")
    except Exception as error:  # the hub raises its own, the HTTP client's and the system's kinds; all have this remedy
        raise CodecUnavailable(f"codec {STABLE_AUDIO_OPEN}: its weights cannot be fetched ({_first_line(error)}); {remedy}") from error
    return Path(config).parent


def _load_folder(folder: Path, codec_id: str, device: str, precision: Precision) -> Codec:
    config_path = folder / "model_config.json"
    if not config_path.is_file():
        raise CodecUnavailable(f"codec {codec_id}: no {config_path}; give a folder that holds model_config.json and model.safetensors")
    try:
        config = json.loads(config_path.read_text())
    except ValueError as error:
        raise CodecUnavailable(f"codec {codec_id}: {config_path} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise CodecUnavailable(f"codec {codec_id}: {config_path} holds no JSON object; fetch it again")
    if config.get("model_type") == EMBEDDED_MODEL_TYPE:
        return load_embedded(folder, codec_id=codec_id, device=device)
    if config.get("model_type") == EMBEDDED_2_MODEL_TYPE:
        return load_embedded_2(folder, codec_id=codec_id, device=device)
    autoencoder_config, prefixes, scale = _autoencoder_config(config, codec_id)
    _check_contract(autoencoder_config, codec_id)
    tensors = _read_autoencoder(_weights_file(folder, codec_id), prefixes, codec_id)
    identity = CodecIdentity(id=codec_id, weights_sha256=tensors_sha256(tensors))
    autoencoder = build_autoencoder(autoencoder_config, codec_id)
    _fill(autoencoder, tensors, codec_id)
    return StableAudioCodec(autoencoder, identity, scale=scale, device=device, precision=precision)


def _autoencoder_config(config: dict[str, Any], codec_id: str) -> tuple[dict[str, Any], tuple[str, ...], float]:
    """(autoencoder's own configuration, prefixes that its weights may have, scale) from an autoencoder's or a diffusion checkpoint's."""
    if config.get("model_type") == "autoencoder" and isinstance(config.get("model"), dict):
        return config, ("", "autoencoder.", CHECKPOINT_PREFIX), 1.0
    pretransform = config.get("model", {}).get("pretransform") if isinstance(config.get("model"), dict) else None
    if isinstance(pretransform, dict) and pretransform.get("type") == "autoencoder" and isinstance(pretransform.get("config"), dict):
        own = {"model_type": "autoencoder", "sample_rate": config.get("sample_rate"), "model": pretransform["config"]}
        return own, (CHECKPOINT_PREFIX,), float(pretransform.get("scale", 1.0))
    raise CodecUnavailable(
        f"codec {codec_id}: model_type {config.get('model_type')!r} holds no autoencoder; use the configuration of an autoencoder, "
        "or of a diffusion model with an autoencoder as its pretransform"
    )


def _check_contract(config: dict[str, Any], codec_id: str) -> None:
    """44.1 kHz stereo, 2048:1, 64 channels: everything downstream has this shape."""
    model = config["model"]
    wanted = {
        "sample_rate": (config.get("sample_rate"), SAMPLE_RATE_HZ),
        "io_channels": (model.get("io_channels"), AUDIO_CHANNELS),
        "in_channels": (model.get("in_channels", model.get("io_channels")), AUDIO_CHANNELS),
        "out_channels": (model.get("out_channels", model.get("io_channels")), AUDIO_CHANNELS),
        "downsampling_ratio": (model.get("downsampling_ratio"), HOP_SAMPLES),
        "latent_dim": (model.get("latent_dim"), LATENT_CHANNELS),
    }
    wrong = [f"{name} {value} (need {need})" for name, (value, need) in wanted.items() if value != need]
    if wrong:
        raise CodecUnavailable(f"codec {codec_id}: {', '.join(wrong)}; choose an autoencoder of that shape")


def _weights_file(folder: Path, codec_id: str) -> Path:
    named = folder / "model.safetensors"
    if named.is_file():
        return named
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise CodecUnavailable(
            f"codec {codec_id}: {len(found)} safetensors files in {folder} and none named model.safetensors; "
            "put the weights there under that name (a .ckpt must be converted: it can run code when read)"
        )
    return found[0]


def _read_autoencoder(path: Path, prefixes: tuple[str, ...], codec_id: str) -> dict[str, Tensor]:
    """The autoencoder's tensors alone, without their prefix; whatever else the file holds is not read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as weights:
            names = list(weights.keys())
            for prefix in prefixes:
                own = [name for name in names if name.startswith((f"{prefix}encoder.", f"{prefix}decoder.", f"{prefix}bottleneck."))]
                if own:
                    return {name.removeprefix(prefix): weights.get_tensor(name) for name in own}
    except (SafetensorError, OSError) as error:
        raise CodecUnavailable(f"codec {codec_id}: {path} is not a readable safetensors file ({error}); fetch it again") from error
    raise CodecUnavailable(
        f"codec {codec_id}: {path} holds no tensor named {' or '.join(f'{p}encoder.*' for p in prefixes)}; is it another model's?"
    )


def build_autoencoder(config: dict[str, Any], codec_id: str) -> Any:
    """stable-audio-tools' autoencoder of a configuration (model_type autoencoder), without weights; its import takes 12 s.

    Raises CodecUnavailable where that library cannot build it, or a decode could not be repeated.
    """
    try:
        from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

        autoencoder = create_autoencoder_from_config(config)
    except (ImportError, KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
        raise CodecUnavailable(
            f"codec {codec_id}: stable-audio-tools cannot build it ({type(error).__name__}: {_first_line(error)}); check model_config.json"
        ) from error
    if autoencoder.is_discrete or not hasattr(autoencoder, "encoder"):
        raise CodecUnavailable(
            f"codec {codec_id}: its bottleneck is discrete; choose a continuous one (vae, softnorm, wasserstein, tanh, l2)"
        )
    if getattr(autoencoder.bottleneck, "noise_augment_dim", 0):
        raise CodecUnavailable(f"codec {codec_id}: its decoder reads fresh noise (noise_augment_dim), so a decode could not be repeated")
    return autoencoder


def _fill(autoencoder: nn.Module, tensors: dict[str, Tensor], codec_id: str) -> None:
    """Loads the weights and folds weight norm (Salimans & Kingma 2016) into them: the same function, without its cost at every call."""
    expected = autoencoder.state_dict()
    missing = sorted(set(expected) - set(tensors))
    strangers = sorted(set(tensors) - set(expected))
    misshapen = sorted(name for name in set(expected) & set(tensors) if expected[name].shape != tensors[name].shape)
    if missing or strangers or misshapen:
        raise CodecUnavailable(
            f"codec {codec_id}: weights do not fit model_config.json: {_some('missing', missing)}{_some('unknown', strangers)}"
            f"{_some('of another shape', misshapen)}take both files from the same model"
        )
    autoencoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    for module in autoencoder.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)


def _halos(autoencoder: Any) -> tuple[Halo | None, Halo | None]:
    """The exact halos in latent frames, or None, None where a layer's receptive field is unknown: then one pass over everything."""
    patch = 1
    if autoencoder.pretransform is not None:
        if type(autoencoder.pretransform).__name__ != "PatchedPretransform" or autoencoder.pretransform.oversampling != 1:
            log.warning("codec: the field of %s is unknown: no chunks, memory grows with length", type(autoencoder.pretransform).__name__)
            return None, None
        patch = autoencoder.pretransform.patch_size
    hop = HOP_SAMPLES // patch
    strides = [layer.stride[0] for layer in autoencoder.modules() if isinstance(layer, nn.Conv1d)]
    if math.prod(strides) != hop:
        log.warning("codec: strides %s do not multiply to %d: no chunks, memory grows with length", strides, hop)
        return None, None
    try:
        return encoder_halo(autoencoder.encoder, hop), decoder_halo(autoencoder.decoder, hop)
    except UnknownFieldError as error:
        log.warning("codec: unknown receptive field (%s): no chunks, memory grows with length", error)
        return None, None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _some(what: str, names: list[str]) -> str:
    return f"{len(names)} {what} ({', '.join(names[:3])}); " if names else ""
