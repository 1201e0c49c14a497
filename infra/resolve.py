"""From what a user named to what can be opened: checkpoints and codecs kept in a bucket or a registry are brought here first."""

from pathlib import Path

from infra.settings import Settings
from infra.storage.place import Place, localise
from infra.tracking import registry


def checkpoint_folder(named: str | None, settings: Settings, shipped: Path) -> Path:
    """The local folder of the checkpoint that was named, else of BACKLINE_CHECKPOINT, else of the one that ships."""
    place = named or settings.checkpoint
    return localise(checkpoint_place(place, settings), settings.cache) if place else shipped


def is_registered(named: str | None) -> bool:
    """Whether this is an address in MLflow's registry."""
    return named is not None and named.startswith(registry.SCHEME)


def checkpoint_place(named: str, settings: Settings) -> Place:
    """A checkpoint's place: a path, an S3 address, or models:/NAME@ALIAS of MLflow's registry, which is brought into the cache."""
    return Place(str(registry.fetch(named, settings))) if is_registered(named) else Place(named, settings.s3)


def pinned(named: str | None, settings: Settings) -> str | None:
    """What was named, or BACKLINE_CHECKPOINT, with an alias of the registry replaced by the version that it means now."""
    place = named or settings.checkpoint
    return registry.pinned(place, settings) if place and is_registered(place) else place


def codec_spec(spec: str | None, settings: Settings) -> str | None:
    """The spec with an S3 address in it (alone, or behind `stable-audio-open:`) replaced by a local folder."""
    if spec is None:
        return None
    scheme, found, address = spec.partition("s3://")
    return f"{scheme}{localise(Place(f's3://{address}', settings.s3), settings.cache)}" if found else spec
