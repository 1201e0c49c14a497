"""Segments to latents, in an actor that keeps the codec's weights.

Reads: song (a `SegmentedSong`). Gives: song (an `EncodedSong`), without audio.

Shapes: B = 2 stems, C channels, N samples, T frames.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.places import codec_spec
from infra.settings import S3Access, Settings
from model.errors import ModelError
from model.geometry import LATENT_CHANNELS, SEGMENT_FRAMES
from pipelines.segment import Reject, Segment, SegmentedSong, SongIdentity

# torch costs each process 3 s and 300 MB: the tasks that read and write songs name these records and do without it.
if TYPE_CHECKING:
    from model.codec_base import Codec, CodecIdentity


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSegment:
    """One segment as stored: (64, 1024) float16 latents, zeros after `valid_frames`."""

    index: int
    start_s: float
    duration_s: float
    valid_frames: int
    vocal_CT: NDArray[np.float16]
    accompaniment_CT: NDArray[np.float16]
    vocal_active: float
    vocal_level_db: float
    gain_db: float


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSong:
    """A song ready to be stored; without segments it is rejected as a whole."""

    identity: SongIdentity
    duration_s: float
    segments: tuple[EncodedSegment, ...]
    rejects: tuple[Reject, ...]


def open_codec(spec: str, access: S3Access, device: str | None = None) -> "Codec":
    """The codec that `spec` names, from S3 with `access` through this machine's cache; on the accelerator when this process has one."""
    import torch

    from model.codec import load_codec

    local = codec_spec(spec, replace(Settings.from_environment(), s3=access)) or spec
    return load_codec(local, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))


class Encoder:
    """The stage's actor: loads the weights once, encodes song after song."""

    def __init__(self, codec: str, identity: "CodecIdentity", access: S3Access) -> None:
        self.codec = open_codec(codec, access)
        if self.codec.identity.weights_sha256 != identity.weights_sha256:
            here, there = self.codec.identity.weights_sha256[:12], identity.weights_sha256[:12]
            raise ModelError(
                f"codec {codec!r} has weights {here} on this machine, {there} at the driver: give every machine the same weights"
            )

    def encode(self, song: SegmentedSong) -> EncodedSong:
        """Latents of every segment; a segment whose latents do not fit into float16 is a reject."""
        encoded = [self._encode(segment) for segment in song.segments]
        kept = tuple(item for item in encoded if isinstance(item, EncodedSegment))
        rejects = (*song.rejects, *(item for item in encoded if isinstance(item, Reject)))
        if song.segments and not kept:
            rejects = (Reject(stage="encode", reason=f"none of its {len(encoded)} segments can be used: {rejects[-1].reason}"),)
        return EncodedSong(
            identity=song.identity,
            duration_s=song.duration_s,
            segments=kept,
            rejects=rejects,
        )

    def _encode(self, segment: Segment) -> EncodedSegment | Reject:
        import torch

        audio_BCN = torch.from_numpy(np.stack([segment.vocal_CN, segment.accompaniment_CN]))
        latent_BCT = self.codec.encode(audio_BCN).to(torch.float16)
        if not bool(torch.isfinite(latent_BCT).all()):
            return Reject(stage="encode", segment=segment.index, reason=f"segment {segment.index}: its latents exceed float16")
        valid_frames = latent_BCT.shape[2]
        # The silence after a short last segment is not encoded: zeros stand for it, and valid_frames masks them.
        padded_BCT = np.zeros((2, LATENT_CHANNELS, SEGMENT_FRAMES), np.float16)
        padded_BCT[:, :, :valid_frames] = latent_BCT.numpy()
        return EncodedSegment(
            index=segment.index,
            start_s=segment.start_s,
            duration_s=segment.duration_s,
            valid_frames=valid_frames,
            vocal_CT=padded_BCT[0],
            accompaniment_CT=padded_BCT[1],
            vocal_active=segment.vocal_active,
            vocal_level_db=segment.vocal_level_db,
            gain_db=segment.gain_db,
        )
