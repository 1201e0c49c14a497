"""Mixtures to stems, in an actor that keeps the separator's weights.

Reads: read (a `ReadSong` with a mixture). Gives: read, with vocal and accompaniment beside the mixture.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from infra.resolve import codec_spec
from infra.settings import S3Access, Settings
from model.errors import ModelError
from pipelines.song import ReadSong

# torch costs each process 3 s and 300 MB: the driver's other stages do without it.
if TYPE_CHECKING:
    from model.separation.load import Separator, SeparatorIdentity


def open_separator(spec: str, access: S3Access, device: str | None = None) -> "Separator":
    """The separator that `spec` names, from S3 with `access` through this machine's cache; half precision on an accelerator."""
    import torch

    from model.separation.load import load_separator

    local = codec_spec(spec, replace(Settings.from_environment(), s3=access)) or spec
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_separator(local, device=chosen, half=chosen == "cuda")


class SongSeparator:
    """The stage's actor: loads the weights once, separates batches of songs together."""

    def __init__(self, separator: str, identity: "SeparatorIdentity", access: S3Access) -> None:
        self.separator = open_separator(separator, access)
        if self.separator.identity.weights_sha256 != identity.weights_sha256:
            here, there = self.separator.identity.weights_sha256[:12], identity.weights_sha256[:12]
            raise ModelError(
                f"separator {separator!r} has weights {here} on this machine, {there} at the driver: give every machine the same weights"
            )

    def separate(self, songs: Sequence[ReadSong]) -> list[ReadSong]:
        """The songs in their order; those without a mixture pass as they are."""
        mixtures = [song.mixture_CN for song in songs if song.mixture_CN is not None]
        separated = iter(self.separator.separate(mixtures))
        result = []
        for song in songs:
            if song.mixture_CN is None:
                result.append(song)
                continue
            stems = next(separated)
            result.append(
                replace(
                    song,
                    vocal_CN=stems.vocal_CN,
                    accompaniment_CN=stems.accompaniment_CN,
                    separator_id=self.separator.identity.id,
                )
            )
        return result
