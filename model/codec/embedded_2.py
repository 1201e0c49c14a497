"""Codec 2, `embedded-2`: an autoencoder of views, and sound made from them in one pass.

Shapes: B batch, C channels, N samples, T latent frames.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.codec.base import Codec, CodecIdentity, Halo
from model.codec.embedded import latent_sha256
from model.codec.view_vae import ViewVAE, ViewVAEConfig
from model.codec.views import FINE_FRAMES, sound_of, views_in, views_of
from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ
from model.errors import CodecUnavailable
from model.threads import one_thread_workers

MODEL_TYPE = "backline_view_vae"
EMBEDDED_2 = "embedded-2"
EMBEDDED_2_FOLDER = Path(__file__).parents[1] / "weights" / EMBEDDED_2
# 47.55 s take two, one a core: a quarter longer chunks would save a twentieth of the work, and shorter ones cost a tenth.
CHUNK_FRAMES = 512


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """How the decoder makes sound from views (`model.codec.views.sound_of`)."""

    rounds: int = 2
    """How often gains are found and applied, on the mel view and then on the attack view: each changes what the next one finds."""
    grid_frames: int = 32
    """Frames of the fine view after which the first guess of phase starts anew, so that it depends on a bounded past."""

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: must be 0 or more")
        if self.grid_frames < FINE_FRAMES or self.grid_frames % FINE_FRAMES:
            raise ValueError(f"grid_frames={self.grid_frames}: must be a positive multiple of {FINE_FRAMES}, whole latent frames")


@dataclass(frozen=True, kw_only=True)
class Embedded2Config:
    """What model_config.json of such a codec says."""

    network: ViewVAEConfig = field(default_factory=ViewVAEConfig)
    sound: SoundConfig = field(default_factory=SoundConfig)


class Embedded2Codec(Codec):
    """Encode = views → posterior mean. Decode = views → mid, attack and side."""

    def __init__(self, network: ViewVAE, sound: SoundConfig, identity: CodecIdentity, *, device: str = "cpu") -> None:
        self.identity = identity
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.sound = sound
        self.chunk_frames = CHUNK_FRAMES
        self.grid_frames = sound.grid_frames // FINE_FRAMES
        self.encode_halo, self.decode_halo = _halos(network.config, sound)
        if self.device.type == "cpu":
            self.most_at_a_time = torch.get_num_threads()
            self.workers = one_thread_workers(self.most_at_a_time, "codec")

    def _encode_span(self, audio_BCN: Tensor) -> Tensor:
        return self.network.encode(views_of(audio_BCN).features())

    def _decode_span(self, latent_BCT: Tensor) -> Tensor:
        return sound_of(views_in(self.network.decode(latent_BCT)), **asdict(self.sound))


def _halos(network: ViewVAEConfig, sound: SoundConfig) -> tuple[Halo, Halo]:
    """What one latent frame's encoding and decoding read on either side, in latent frames.

    The longest window reaches 1,536 samples beyond a latent frame; a convolution half its kernel. Making sound: five fine frames for the
    slopes of phase and the first inverse transform, and its block; a latent frame for each pass on the mel window (the side's is one), a
    quarter for each on the attack window.
    """
    reach = network.kernel // 2
    encode = network.encoder_blocks * reach + 1
    decode = network.decoder_blocks * reach + 3 + sound.rounds + math.ceil(sound.rounds / 4) + 1
    return Halo(left=encode, right=encode), Halo(left=decode + sound.grid_frames // FINE_FRAMES, right=decode)


def load_embedded_2(folder: Path = EMBEDDED_2_FOLDER, *, codec_id: str = EMBEDDED_2, device: str = "cpu") -> Embedded2Codec:
    """Reads model_config.json and model.safetensors of a folder that `save_embedded_2` wrote."""
    try:
        document = json.loads((folder / "model_config.json").read_text())
        config = Embedded2Config(network=ViewVAEConfig(**document["network"]), sound=SoundConfig(**document["sound"]))
        tensors = load_file(folder / "model.safetensors")
        network = ViewVAE(config.network)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CodecUnavailable(
            f"codec {codec_id}: {folder} cannot be read ({reason}); give the folder of one that was trained: python -m training codec-2"
        ) from error
    return Embedded2Codec(network, config.sound, CodecIdentity(id=codec_id, weights_sha256=latent_sha256(tensors)), device=device)


def save_embedded_2(folder: Path, network: ViewVAE, sound: SoundConfig) -> None:
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
        "sound": asdict(sound),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "model_config.json").write_text(json.dumps(document, indent=2) + "\n")
