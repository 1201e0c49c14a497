"""The codec that ships with the project: a magnitude VAE, and phase found by fast Griffin-Lim.

Shapes: B batch, C channels, N samples, T latent frames, J spectral frames (two a latent frame), K frequency bins.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.codec.base import Codec, CodecIdentity, Halo, tensors_sha256
from model.codec.magnitude_vae import FRAMES_PER_LATENT, MagnitudeVAE, MagnitudeVAEConfig, features_of, magnitudes_of
from model.codec.phase import OVERLAP, decorrelate, find_phase, spectrum, waveform
from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ
from model.errors import CodecUnavailable
from model.threads import one_thread_workers

MODEL_TYPE = "backline_magnitude_vae"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "weights" / "embedded"
# 47.55 s take four chunks. Of two, the second waits for the latent's end, and one thread decodes after the other (1.47 s against 1.02, two
# threads); smaller ones read more of their neighbours than they save.
CHUNK_FRAMES = 256
# Spectra whose phases do not agree between frames lose energy when they are overlapped. Measured on seven songs of the demo corpus,
# to 0.05 dB: the mid, the side's share of it, and the side's decorrelated rest.
MAKEUP_MID, MAKEUP_PAN, MAKEUP_WIDTH = (10 ** (lost_db / 20) for lost_db in (0.12, 0.26, 0.47))


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """How the decoder finds phase."""

    rounds: int = 8
    momentum: float = 0.99
    grid_frames: int = 64
    """Spectral frames after which the first guess starts anew, so that it depends on a bounded past."""

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: must be 0 or more")
        if not 0 <= self.momentum < 1.5:
            raise ValueError(f"momentum={self.momentum}: must be in [0, 1.5); 0.99 is the published choice")
        if self.grid_frames < FRAMES_PER_LATENT or self.grid_frames % FRAMES_PER_LATENT:
            raise ValueError(f"grid_frames={self.grid_frames}: must be a positive multiple of {FRAMES_PER_LATENT}, whole latent frames")


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig:
    """What model_config.json of an embedded codec says."""

    network: MagnitudeVAEConfig = field(default_factory=MagnitudeVAEConfig)
    phase: PhaseConfig = field(default_factory=PhaseConfig)


class EmbeddedCodec(Codec):
    """Encode = spectra → features → posterior mean. Decode = features → magnitudes → phase → mid and side → left and right."""

    def __init__(self, network: MagnitudeVAE, phase: PhaseConfig, identity: CodecIdentity, *, device: str = "cpu") -> None:
        self.identity = identity
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.phase = phase
        self.chunk_frames = CHUNK_FRAMES
        self.grid_frames = phase.grid_frames // FRAMES_PER_LATENT
        self.encode_halo, self.decode_halo = _halos(network.config, phase)
        if self.device.type == "cpu":
            self.most_at_a_time = torch.get_num_threads()
            self.workers = one_thread_workers(self.most_at_a_time, "codec")

    def _encode_span(self, audio_BCN: Tensor) -> Tensor:
        left_BN, right_BN = audio_BCN[:, 0], audio_BCN[:, 1]
        return self.network.encode(features_of(spectrum((left_BN + right_BN) / 2), spectrum((left_BN - right_BN) / 2)))

    def _decode_span(self, latent_BCT: Tensor) -> Tensor:
        magnitude_BJK, pan_BJK, width_BJK = magnitudes_of(self.network.decode(latent_BCT))
        mid_BJK = find_phase(magnitude_BJK, rounds=self.phase.rounds, momentum=self.phase.momentum, grid_frames=self.phase.grid_frames)
        side_BJK = MAKEUP_PAN * pan_BJK * mid_BJK + MAKEUP_WIDTH * width_BJK * decorrelate(mid_BJK)
        mid_BN, side_BN = MAKEUP_MID * waveform(mid_BJK), waveform(side_BJK)
        return torch.stack([mid_BN + side_BN, mid_BN - side_BN], dim=1)


def _halos(network: MagnitudeVAEConfig, phase: PhaseConfig) -> tuple[Halo, Halo]:
    """What one latent frame's encoding and decoding read on either side, in latent frames.

    A transform reaches 1,536 samples beyond a latent frame, a depthwise convolution half its kernel; a Griffin-Lim round reads
    three spectral frames on either side, the last inverse three, the phase's slopes two, and its first guess its whole block.
    """
    reach = network.kernel // 2
    encode = network.encoder_blocks * reach + 1
    spectral = (OVERLAP - 1) * (phase.rounds + 1) + 2
    decode = network.decoder_blocks * reach + -(-spectral // FRAMES_PER_LATENT)
    past = phase.grid_frames // FRAMES_PER_LATENT
    return Halo(left=encode, right=encode), Halo(left=decode + past, right=decode)


def load_embedded(folder: Path = EMBEDDED_FOLDER, *, codec_id: str = "embedded", device: str = "cpu") -> EmbeddedCodec:
    """Reads model_config.json and model.safetensors of a folder that `save_embedded` wrote."""
    try:
        document = json.loads((folder / "model_config.json").read_text())
        config = EmbeddedConfig(network=MagnitudeVAEConfig(**document["network"]), phase=PhaseConfig(**document["phase"]))
        tensors = load_file(folder / "model.safetensors")
        network = MagnitudeVAE(config.network)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CodecUnavailable(
            f"codec {codec_id}: {folder} cannot be read ({reason}); install the package again or train one: python -m training codec"
        ) from error
    return EmbeddedCodec(network, config.phase, CodecIdentity(id=codec_id, weights_sha256=latent_sha256(tensors)), device=device)


def latent_sha256(tensors: Mapping[str, Tensor]) -> str:
    """What a latent of these weights means: the encoder and the statistics. A better decoder reads the latents that are there already."""
    return tensors_sha256({name: tensor for name, tensor in tensors.items() if not name.startswith("decoder")})


def save_embedded(folder: Path, network: MagnitudeVAE, phase: PhaseConfig) -> None:
    """Writes the two files of a codec folder; weights as float16, statistics as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    statistics = {name for name, _ in network.named_buffers()}
    tensors = {
        name: tensor.detach().cpu().to(torch.float32 if name in statistics else torch.float16).contiguous()
        for name, tensor in network.state_dict().items()
    }
    document = {
        "model_type": MODEL_TYPE,
        "sample_rate": SAMPLE_RATE_HZ,
        "audio_channels": AUDIO_CHANNELS,
        "latent_channels": LATENT_CHANNELS,
        "hop_samples": HOP_SAMPLES,
        "network": asdict(network.config),
        "phase": asdict(phase),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "model_config.json").write_text(json.dumps(document, indent=2) + "\n")
