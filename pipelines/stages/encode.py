"""Segments to latents, in an actor that keeps the codec's weights.

Reads: segmented (a `SegmentedSong`). Gives: encoded (an `EncodedSong`), without audio.

Shapes: B stems of a batch, C channels, N samples, T frames.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.resolve import codec_spec
from infra.settings import S3Access, Settings
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from model.errors import ModelError
from pipelines.song import EncodedSegment, EncodedSong, Reject, Segment, SegmentedSong

log = logging.getLogger(__name__)

# Stems that go through the codec at once. On a CPU more are no faster; on a GPU the number is halved when its memory is full.
CPU_BATCH, GPU_BATCH = 2, 32

# torch costs each process 3 s and 300 MB: the tasks that read and write songs name these records and do without it.
if TYPE_CHECKING:
    from model.codec.base import Codec, CodecIdentity


def open_codec(spec: str, access: S3Access, device: str | None = None) -> "Codec":
    """The codec that `spec` names, from S3 with `access` through this machine's cache; on the accelerator when this process has one."""
    import torch

    from model.codec.load import load_codec

    local = codec_spec(spec, replace(Settings.from_environment(), s3=access)) or spec
    return load_codec(local, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))


class Encoder:
    """The stage's actor: loads the weights once, encodes song after song."""

    def __init__(self, codec: str, identity: "CodecIdentity", access: S3Access) -> None:
        import torch

        self.codec = open_codec(codec, access)
        self.batch = GPU_BATCH if torch.cuda.is_available() else CPU_BATCH
        if self.codec.identity.weights_sha256 != identity.weights_sha256:
            here, there = self.codec.identity.weights_sha256[:12], identity.weights_sha256[:12]
            raise ModelError(
                f"codec {codec!r} has weights {here} on this machine, {there} at the driver: give every machine the same weights"
            )

    def encode(self, songs: Sequence[SegmentedSong]) -> list[EncodedSong]:
        """Latents of every segment of every song; a segment whose latents do not fit into float16 is a reject."""
        encoded: list[dict[int, EncodedSegment | Reject]] = [{} for _ in songs]
        for group in _by_length(songs):
            latents_BCT = self._encode([stem_CN for _, segment in group for stem_CN in (segment.vocal_CN, segment.accompaniment_CN)])
            for (song, segment), pair in zip(group, range(0, len(latents_BCT), 2), strict=True):
                encoded[song][segment.index] = _stored_segment(segment, latents_BCT[pair : pair + 2])
        return [self._song(song, [pieces[index] for index in sorted(pieces)]) for song, pieces in zip(songs, encoded, strict=True)]

    def _song(self, song: SegmentedSong, encoded: Sequence[EncodedSegment | Reject]) -> EncodedSong:
        kept = tuple(item for item in encoded if isinstance(item, EncodedSegment))
        rejects = (*song.rejects, *(item for item in encoded if isinstance(item, Reject)))
        if song.segments and not kept:
            rejects = (Reject(stage="encode", reason=f"none of its {len(encoded)} segments can be used: {rejects[-1].reason}"),)
        return EncodedSong(
            identity=song.identity,
            duration_s=song.duration_s,
            segments=kept,
            rejects=rejects,
            separator_id=song.separator_id,
            fingerprint=song.fingerprint,
            truth=song.truth,
            truth_fault=song.truth_fault,
        )

    def _encode(self, stems: Sequence[NDArray[np.float32]]) -> NDArray[np.float16]:
        """(B, C, T) latents of stems (C, N) of one length, as many at once as fit into the device's memory."""
        import torch

        latents: list[NDArray[np.float16]] = []
        done = 0
        while done < len(stems):
            try:
                latent_BCT = self.codec.encode(torch.from_numpy(np.stack(stems[done : done + self.batch])))
            except torch.cuda.OutOfMemoryError:
                if self.batch <= 1:
                    raise
                self.batch = max(1, self.batch // 2)
                torch.cuda.empty_cache()
                log.warning("the device's memory is full: %d stems at once from now on", self.batch)
                continue
            latents.append(latent_BCT.to(torch.float16).cpu().numpy())
            done += len(latent_BCT)
        return np.concatenate(latents)


def _by_length(songs: Sequence[SegmentedSong]) -> Iterator[list[tuple[int, Segment]]]:
    """(index of the song, segment) in groups of one length: padding a short one would change its latents."""
    groups: dict[int, list[tuple[int, Segment]]] = defaultdict(list)
    for index, song in enumerate(songs):
        for segment in song.segments:
            groups[segment.vocal_CN.shape[1]].append((index, segment))
    yield from groups.values()


def _stored_segment(segment: Segment, latent_BCT: NDArray[np.float16]) -> EncodedSegment | Reject:
    """One segment from the latents of its two stems."""
    if not np.isfinite(latent_BCT).all():
        return Reject(stage="encode", segment=segment.index, reason=f"segment {segment.index}: its latents exceed float16")
    valid_frames = latent_BCT.shape[2]
    # The silence after a short last segment is not encoded: zeros stand for it, and valid_frames masks them.
    padded_BCT = np.zeros((2, LATENT_CHANNELS, SEGMENT_FRAMES), np.float16)
    padded_BCT[:, :, :valid_frames] = latent_BCT
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
        separation_quality=segment.separation_quality,
    )
