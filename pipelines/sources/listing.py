"""What lies below a place, as every source sees it: visible files, audio files, versions, and addresses that can be stored and shown."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from infra.errors import UserError
from infra.storage.place import Place

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".aac", ".aiff", ".aif", ".wv")
NOT_UTF8 = "its name is not UTF-8: rename it"


def visible_files(place: Place, layout: str) -> dict[str, str]:
    """{name relative to the place: version} of every file below that is not hidden; UserError when a local place is not a folder."""
    if not place.is_s3 and not place.path.is_dir():
        raise UserError(f"{place} is not a folder: give {layout}")
    return {name: version for name, version in place.entries() if not any(part.startswith(".") for part in name.split("/"))}


def is_audio(name: str) -> bool:
    """Whether a file's name says that it is audio which can be decoded."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


def version_of(files: Mapping[str, str], used: Iterable[str]) -> str:
    """Changes when one of the used files does."""
    return digest([(name, files[name]) for name in sorted(used)])


def digest(value: object) -> str:
    """32 hexadecimal digits that change with the value's representation."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def shown(text: str) -> str:
    """A name that is not UTF-8 can be neither stored nor shown as it is."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_shown_as_is(text: str) -> bool:
    return shown(text) == text
