"""The contract of every codec: stereo audio at 44.1 kHz to 64 channels at 21.5 Hz and back, in bounded memory.

Shapes: B batch, C channels, N samples, T latent frames of 2,048 samples.
"""

import contextlib
import hashlib
import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS
from model.errors import ModelError

Item = TypeVar("Item")
CUDNN_SWITCH = threading.Lock()
# Samples that are looked at together for NaN: the answer about ten minutes of audio needs no array of that length.
CHECKED_SAMPLES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CodecIdentity:
    """Which codec made a latent: its id, and the SHA-256 of the weights that give latents their meaning."""

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


def span_at(start: int, frames: int, chunk_frames: int, halo: Halo, grid: int = 1) -> Span:
    """The chunk that begins at frame `start` of `frames`; reading starts on a multiple of `grid`."""
    stop = min(start + chunk_frames, frames)
    read_start = max(0, start - halo.left) // grid * grid
    return Span(start=start, stop=stop, read_start=read_start, read_stop=min(frames, stop + halo.right))


def spans(frames: int, chunk_frames: int, halo: Halo | None, grid: int = 1) -> Iterator[Span]:
    """Cuts `frames` into chunks that each read their halo. halo None means that the computation reads everything: one span."""
    if halo is None:
        yield Span(start=0, stop=frames, read_start=0, read_stop=frames)
        return
    for start in range(0, frames, chunk_frames):
        yield span_at(start, frames, chunk_frames, halo, grid)


class LatentStream:
    """The frames of a latent that arrives piece by piece, as far as a span that is still to come reads them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.frames = 0
        """How many frames have arrived."""
        self._first = 0  # the frame that the kept ones begin with
        self._kept_BCT: Tensor | None = None

    def append(self, piece_BCT: Tensor) -> None:
        """Adds the next frames (B, 64, t). Raises ModelError where they are no latent, or another batch size than before."""
        if piece_BCT.ndim != 3 or piece_BCT.shape[1] != LATENT_CHANNELS:
            raise ModelError(f"decode: latent of shape {tuple(piece_BCT.shape)}, want (batch, {LATENT_CHANNELS}, frames)")
        if not bool(torch.isfinite(piece_BCT).all()):
            raise ModelError("decode: the latent holds NaN or infinite values; the model that made it has diverged")
        if self._kept_BCT is not None and len(self._kept_BCT) != len(piece_BCT):
            raise ModelError(
                f"decode: a piece holds {len(piece_BCT)} latents after pieces of {len(self._kept_BCT)}; cut every piece from one batch"
            )
        piece_BCT = piece_BCT.detach().to(self.device, torch.float32, copy=True)  # whoever made it may write the next one into it
        self.frames += piece_BCT.shape[2]
        self._kept_BCT = piece_BCT if self._kept_BCT is None else torch.cat([self._kept_BCT, piece_BCT], dim=2)

    def read(self, span: Span) -> Tensor:
        """(B, 64, read_stop − read_start) in memory of its own: a result depends on the values alone, not on how they arrived."""
        assert self._kept_BCT is not None, "nothing has arrived"
        return self._kept_BCT[..., span.read_start - self._first : span.read_stop - self._first].contiguous()

    def forget(self, frame: int) -> None:
        """Lets go of the frames before `frame`, and of the memory that they share with others."""
        if self._kept_BCT is not None and frame > self._first:
            self._kept_BCT = self._kept_BCT[..., frame - self._first :].clone()
            self._first = frame


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted tensors' names, types, shapes and bytes: the same weights hash the same in any file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Convolutions of float32 tensors in float32: cuDNN would round their inputs to 10 bits (TF32). Nothing to do on a CPU.

    One thread at a time: the switch is the process's.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with CUDNN_SWITCH, cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        yield


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
    workers: ThreadPoolExecutor | None = None
    """Who computes chunks side by side; None: the caller, one by one, each operation on all of torch's threads."""
    most_at_a_time: int = 1
    """Chunks under way with workers: each holds its memory."""

    @abstractmethod
    def _encode_span(self, audio_BCN: Tensor) -> Tensor:
        """(B, 2, T * 2048) on the device → (B, 64, T)."""

    @abstractmethod
    def _decode_span(self, latent_BCT: Tensor) -> Tensor:
        """(B, 64, T) on the device → (B, 2, T * 2048)."""

    def encode(self, audio_BCN: Tensor, *, gain: float = 1.0) -> Tensor:
        """(B, 2, N) float32 in [-1, 1] → (B, 64, ceil(N / 2048)) on the CPU: the posterior's mean. The tail is padded with zeros.

        Each chunk is multiplied by `gain`: the same as audio * gain, without a copy of that length. Raises ModelError on audio of
        another shape, on NaN or infinite samples, and on such a gain.
        """
        return torch.cat(list(self.encode_pieces(audio_BCN, gain=gain)), dim=2)

    def encode_pieces(self, audio_BCN: Tensor, *, gain: float = 1.0) -> Iterator[Tensor]:
        """What `encode` gives, in pieces (B, 64, t) of at most `chunk_frames`, each encoded when it is asked for."""
        if audio_BCN.ndim != 3 or audio_BCN.shape[1] != AUDIO_CHANNELS or audio_BCN.shape[2] == 0:
            raise ModelError(
                f"encode: audio of shape {tuple(audio_BCN.shape)}, want (batch, {AUDIO_CHANNELS}, samples) with one sample or more"
            )
        if not all(bool(torch.isfinite(part).all()) for part in audio_BCN.split(CHECKED_SAMPLES, dim=2)):
            raise ModelError("encode: the audio holds NaN or infinite samples; replace or remove them")
        if not math.isfinite(gain):
            raise ModelError(f"encode: gain={gain}; it must be finite, 1.0 leaves the audio as it is")
        frames = -(-audio_BCN.shape[2] // HOP_SAMPLES)
        found = spans(frames, self.chunk_frames, self.encode_halo, self.grid_frames)
        return self._each(lambda span: self._encode_wanted(audio_BCN, gain, span), found)

    @torch.inference_mode()
    def _encode_wanted(self, audio_BCN: Tensor, gain: float, span: Span) -> Tensor:
        """The frames that a span wants."""
        chunk_BCN = audio_BCN[..., span.read_start * HOP_SAMPLES : span.read_stop * HOP_SAMPLES]
        chunk_BCN = (chunk_BCN if gain == 1.0 else chunk_BCN * gain).to(self.device, torch.float32)
        missing = (span.read_stop - span.read_start) * HOP_SAMPLES - chunk_BCN.shape[-1]
        with whole_float32(self.device):
            encoded_BCT = self._encode_span(torch.nn.functional.pad(chunk_BCN, (0, missing)))
        return encoded_BCT[..., span.start - span.read_start : span.stop - span.read_start].to("cpu", torch.float32)

    @torch.inference_mode()
    def decode(self, latent_BCT: Tensor) -> Tensor:
        """(B, 64, T) → (B, 2, T * 2048) float32 on the CPU. Raises ModelError on another shape, and on NaN or infinite values."""
        audio_BCN: Tensor | None = None
        at = 0
        for piece_BCN in self.decode_pieces([latent_BCT]):
            if audio_BCN is None:
                audio_BCN = torch.empty(latent_BCT.shape[0], AUDIO_CHANNELS, latent_BCT.shape[2] * HOP_SAMPLES)
            audio_BCN[..., at : at + piece_BCN.shape[2]] = piece_BCN
            at += piece_BCN.shape[2]
        assert audio_BCN is not None, "a stream of frames gives audio or raises"
        return audio_BCN

    def decode_pieces(self, latents: Iterable[Tensor], *, early: bool = False) -> Iterator[Tensor]:
        """Successive pieces (B, 64, t) of a latent, of any lengths → its audio in pieces (B, 2, n) float32 on the CPU.

        Without `early` the same samples, bit for bit, as `decode` gives for the whole. A chunk of `chunk_frames` comes as soon as the
        frames to its right that it reads have arrived; only what a later chunk reads is kept (all of it where the receptive field is
        unknown). early: the first chunk is as much of one as the first piece allows. Its cuts are then others than `decode`'s, and a
        convolution sums in an order that goes by its length: the same samples but for rounding, and bit for bit those of the same first
        piece.

        Raises ModelError, when it is iterated, where `decode` does: on a piece of another shape or with NaN or infinite values, where the
        pieces hold no frame, and on a piece of another batch size.
        """
        stream = LatentStream(self.device)
        chunk_frames, halo, grid = self.chunk_frames, self.decode_halo, self.grid_frames
        start = 0
        for piece_BCT in latents:
            stream.append(piece_BCT)
            del piece_BCT
            ready = []
            while halo is not None and (there := stream.frames - halo.right - start) >= (1 if early else chunk_frames):
                span = span_at(start, stream.frames, min(there, chunk_frames), halo, grid)
                ready.append((stream.read(span), span))
                start, early = span.stop, False
                stream.forget(span_at(start, stream.frames, chunk_frames, halo, grid).read_start)
            yield from self._each(self._decode_wanted, ready)
        if stream.frames == 0:
            raise ModelError(f"decode: a latent without a frame, want (batch, {LATENT_CHANNELS}, frames) with one frame or more")
        if halo is None:
            rest = [Span(start=0, stop=stream.frames, read_start=0, read_stop=stream.frames)]
        else:
            rest = [span_at(at, stream.frames, chunk_frames, halo, grid) for at in range(start, stream.frames, chunk_frames)]
        yield from self._each(self._decode_wanted, [(stream.read(span), span) for span in rest])

    def _each(self, work: Callable[[Item], Tensor], items: Iterable[Item]) -> Iterator[Tensor]:
        """`work` of each item, in their order: one by one, or as many at a time as there are `workers`."""
        if self.workers is None:
            yield from map(work, items)
            return
        pool, ahead = self.workers, deque[Future[Tensor]]()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) == self.most_at_a_time:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    @torch.inference_mode()
    def _decode_wanted(self, read: tuple[Tensor, Span]) -> Tensor:
        """The audio of the frames that a span wants, of those that it reads, in memory of its own: what else it read is freed."""
        latent_BCT, span = read
        with whole_float32(self.device):
            decoded_BCN = self._decode_span(latent_BCT)
        wanted = slice((span.start - span.read_start) * HOP_SAMPLES, (span.stop - span.read_start) * HOP_SAMPLES)
        return decoded_BCN[..., wanted].to("cpu", torch.float32, copy=True)
