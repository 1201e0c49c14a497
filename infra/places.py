"""From what a user named to what can be opened: checkpoints and codecs kept in a bucket are brought here first."""

from pathlib import Path

from infra.settings import Settings
from infra.storage import Place, localise


def checkpoint_folder(named: str | None, settings: Settings, shipped: Path) -> Path:
    """The local folder of the checkpoint that was named, else of BACKLINE_CHECKPOINT, else of the one that ships."""
    place = named or settings.checkpoint
    return localise(place, settings.cache) if place else shipped


def codec_spec(spec: str | None, settings: Settings) -> str | None:
    """The spec with an S3 address in it (alone, or behind `stable-audio-open:`) replaced by a local folder."""
    if spec is None:
        return None
    scheme, found, address = spec.partition("s3://")
    return f"{scheme}{localise(Place(f's3://{address}', settings.s3), settings.cache)}" if found else spec
