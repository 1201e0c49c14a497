"""folder:URI: every audio file below, at any depth, is one finished song, which has to be separated.

Title and artist come from the file's name, and from NAME.json beside it (title, artist, license) where there is one.
"""

import re
from collections import defaultdict
from pathlib import PurePosixPath

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong, MediaFile
from pipelines.sources.listing import AUDIO_SUFFIXES, NOT_UTF8, is_audio, is_shown_as_is, shown, version_of, visible_files

# 01 Title, 01. Title, 7. Title, 12 - Title; but 99 Problems, 50 Cent - In da Club and 1-800-273-8255 begin with no track's number.
_SURE_NUMBER = re.compile(r"^(?:0\d{1,2}[\s._)-]+|\d{1,3}(?:[.)]\s+|_+|\s+[-–]\s+))(?=\S)")
_PADDED_NUMBER = re.compile(r"^0\d[\s._)-]")
_ANY_NUMBER = re.compile(r"^\d{2}\s+(?=\S)")


def list_folder(kind: str, place: Place) -> list[FoundSong]:
    """Every audio file as a song, sorted by address; UserError when there is none."""
    files = visible_files(place, "a folder of finished songs")
    names = sorted(filter(is_audio, files))
    if not names:
        raise UserError(f"{kind}:{place} holds no songs: expected audio files ({', '.join(AUDIO_SUFFIXES)}) at any depth")
    numbered = _numbered_folders(names)
    return [_song(kind, place, files, name, str(PurePosixPath(name).parent) in numbered) for name in names]


def title_of(name: str, numbered: bool = False) -> tuple[str, str]:
    """(title, artist) that a file's name without its ending says; artist is empty where it says none.

    `numbered`: its neighbours begin with a track's number, so that a bare number before its name is one too.
    """
    if " " not in name:
        name = name.replace("_", " ")
    name = _SURE_NUMBER.sub("", name, count=1)
    if numbered:
        name = _ANY_NUMBER.sub("", name, count=1)
    artist, dash, title = (part.strip() for part in re.sub(r"\s+[-–—]\s+", "\0", name, count=1).partition("\0"))
    return (title, artist) if dash and artist and title else (name.strip(), "")


def _numbered_folders(names: list[str]) -> set[str]:
    """Folders with several files of which one begins like 01: there 12 is a track's number too."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        folders[str(path.parent)].append(path.name)
    return {folder for folder, held in folders.items() if len(held) > 1 and any(map(_PADDED_NUMBER.match, held))}


def _song(kind: str, place: Place, files: dict[str, str], name: str, numbered: bool) -> FoundSong:
    address = str(place / name)
    record = str(PurePosixPath(name).with_suffix(".json"))
    version = version_of(files, {name} | ({record} & files.keys()))
    if not is_shown_as_is(address):
        return FoundSong(url=shown(address), source=kind, version=version, fault=NOT_UTF8)
    title, artist = title_of(PurePosixPath(name).stem, numbered)
    return FoundSong(
        url=address,
        source=kind,
        version=version,
        media=(MediaFile(address=address, role="mixture"),),
        record=str(place / record) if record in files else "",
        title=title,
        artist=artist,
    )
