"""The contract of every codec: stereo audio at 44.1 kHz to 64 channels at 21.5 Hz and back, in bounded memory.

Shapes: B batch, C channels, N samples, T latent frames of 2,048 samples.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError
from model.geometry import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS


@dataclass(frozen=True, kw_only=True)
class CodecIdentity:
    """Which codec made a latent: its id, and the SHA-256 of its autoencoder's weights."""

    id: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Halo:
    """How many latent frames on either side of a frame its computation reads."""

    left: int
    right: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """One chunk: frames start..stop are wanted, frames read_start..read_stop are read."""

    start: int
    stop: int
    read_start: int
    read_stop: int


def spans(frames: int, chunk_frames: int, halo: Halo | None, grid: int = 1) -> Iterator[Span]:
    """Cuts `frames` into chunks that each read their halo; reading starts on a multiple of `grid`.

    halo None means that the computation reads everything: one span.
    """
    if halo is None:
        yield Span(start=0, stop=frames, read_start=0, read_stop=frames)
        return
    for start in range(0, frames, chunk_frames):
        stop = min(start + chunk_frames, frames)
        read_start = max(0, start - halo.left) // grid * grid
        yield Span(start=start, stop=stop, read_start=read_start, read_stop=min(frames, stop + halo.right))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted tensors' names, types, shapes and bytes: the same weights hash the same in any file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Codec(ABC):
    """Encodes and decodes chunk by chunk; a subclass gives one chunk's computation and how far it reads.

    A result does not depend on `chunk_frames`: a chunk reads the whole receptive field of the frames it yields.
    """

    identity: CodecIdentity
    device: torch.device
    chunk_frames: int
    encode_halo: Halo | None
    decode_halo: Halo | None
    grid_frames: int = 1

    @abstractmethod
    def _encode_span(self, audio_BCN: Tensor) -> Tensor:
        """(B, 2, T * 2048) on the device → (B, 64, T)."""

    @abstractmethod
    def _decode_span(self, latent_BCT: Tensor) -> Tensor:
        """(B, 64, T) on the device → (B, 2, T * 2048)."""

    @torch.inference_mode()
    def encode(self, audio_BCN: Tensor) -> Tensor:
        """(B, 2, N) float32 in [-1, 1] → (B, 64, ceil(N / 2048)) on the CPU: the posterior's mean. The tail is padded with zeros."""
        if audio_BCN.ndim != 3 or audio_BCN.shape[1] != AUDIO_CHANNELS or audio_BCN.shape[2] == 0:
            raise ModelError(
                f"encode: audio of shape {tuple(audio_BCN.shape)}, want (batch, {AUDIO_CHANNELS}, samples) with one sample or more"
            )
        if not bool(torch.isfinite(audio_BCN).all()):
            raise ModelError("encode: the audio holds NaN or infinite samples; replace or remove them")
        samples = audio_BCN.shape[2]
        frames = -(-samples // HOP_SAMPLES)
        latent_BCT = torch.empty(audio_BCN.shape[0], LATENT_CHANNELS, frames)
        for span in spans(frames, self.chunk_frames, self.encode_halo, self.grid_frames):
            chunk = audio_BCN[..., span.read_start * HOP_SAMPLES : span.read_stop * HOP_SAMPLES].to(self.device, torch.float32)
            missing = (span.read_stop - span.read_start) * HOP_SAMPLES - chunk.shape[-1]
            encoded = self._encode_span(torch.nn.functional.pad(chunk, (0, missing)))
            wanted = slice(span.start - span.read_start, span.stop - span.read_start)
            latent_BCT[..., span.start : span.stop] = encoded[..., wanted].cpu()
        return latent_BCT

    @torch.inference_mode()
    def decode(self, latent_BCT: Tensor) -> Tensor:
        """(B, 64, T) → (B, 2, T * 2048) float32 on the CPU."""
        if latent_BCT.ndim != 3 or latent_BCT.shape[1] != LATENT_CHANNELS or latent_BCT.shape[2] == 0:
            raise ModelError(
                f"decode: latent of shape {tuple(latent_BCT.shape)}, want (batch, {LATENT_CHANNELS}, frames) with one frame or more"
            )
        if not bool(torch.isfinite(latent_BCT).all()):
            raise ModelError("decode: the latent holds NaN or infinite values; the model that made it has diverged")
        frames = latent_BCT.shape[2]
        audio_BCN = torch.empty(latent_BCT.shape[0], AUDIO_CHANNELS, frames * HOP_SAMPLES)
        for span in spans(frames, self.chunk_frames, self.decode_halo, self.grid_frames):
            decoded = self._decode_span(latent_BCT[..., span.read_start : span.read_stop].to(self.device, torch.float32))
            wanted = slice((span.start - span.read_start) * HOP_SAMPLES, (span.stop - span.read_start) * HOP_SAMPLES)
            audio_BCN[..., span.start * HOP_SAMPLES : span.stop * HOP_SAMPLES] = decoded[..., wanted].cpu()
        return audio_BCN
