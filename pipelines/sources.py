"""Where songs come from: a SPEC such as pairs:URI, and the songs found there.

Reads: a folder a song with vocals.* and accompaniment.* (WAV, FLAC, MP3, OGG), and song.json beside them where there is one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from infra.errors import UserError
from infra.storage import Place
from pipelines.songs import SONG_RECORD, FoundSong, MediaFile

SUPPORTED = ("demo", "pairs")
PLANNED = ("folder", "musdb18", "moisesdb", "urls", "catalogue")
STEMS = ("vocals", "accompaniment")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed SPEC."""

    kind: str
    place: Place

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


def parse_source(spec: str) -> Source:
    """`demo:URI` or `pairs:URI`; UserError names what is supported."""
    kind, colon, uri = spec.partition(":")
    if kind in PLANNED:
        raise UserError(
            f"source {kind!r} is not yet supported in this version: use one of {', '.join(f'{name}:URI' for name in SUPPORTED)}"
        )
    if not colon or kind not in SUPPORTED:
        raise UserError(f"source {spec!r} is not KIND:URI: use one of {', '.join(f'{name}:URI' for name in SUPPORTED)}")
    if not uri:
        raise UserError(f"source {spec!r} names no place: write {kind}:FOLDER or {kind}:s3://bucket/prefix")
    return Source(kind=kind, place=Place(uri))


def list_songs(source: Source) -> list[FoundSong]:
    """Every song folder of the source, sorted by address; UserError when there is none.

    A folder counts as a song when a file lies directly in it. The source's own folder counts only if it holds a stem.
    """
    if not source.place.is_s3 and not source.place.path.is_dir():
        raise UserError(f"{source.place} is not a folder: give the folder that holds a folder for each song")
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for name, version in source.place.entries():
        folder, _, file = name.rpartition("/")
        if not any(part.startswith(".") for part in name.split("/")):
            folders[folder][file] = version
    if not any(_stem_files(folders.get("", {}), stem) for stem in STEMS):
        folders.pop("", None)
    if not folders:
        raise UserError(
            f"{source} holds no songs: expected a folder for each song with vocals.wav and accompaniment.wav (or .flac, .mp3, .ogg)"
        )
    return [_song(source, folder, folders[folder]) for folder in sorted(folders)]


def _song(source: Source, folder: str, files: dict[str, str]) -> FoundSong:
    place = source.place / folder if folder else source.place
    # A name that is not UTF-8 can be neither stored nor shown as it is.
    url = str(place).encode("utf-8", "backslashreplace").decode()
    found = {stem: _stem_files(files, stem) for stem in STEMS}
    used = sorted({name for names in found.values() for name in names} | ({SONG_RECORD} & files.keys()))
    version = hashlib.sha256(repr([(name, files[name]) for name in used]).encode()).hexdigest()[:32]
    faults = [f"no {stem}.* ({', '.join(AUDIO_SUFFIXES)})" for stem, names in found.items() if not names]
    faults += [f"{len(names)} files for {stem}: {', '.join(names)}; keep one" for stem, names in found.items() if len(names) > 1]
    if url != str(place):
        faults = ["its folder's name is not UTF-8: rename it"]
    if faults:
        return FoundSong(url=url, source=source.kind, version=version, fault="; ".join(faults))
    return FoundSong(
        url=url,
        source=source.kind,
        version=version,
        media=(
            MediaFile(address=str(place / found["vocals"][0]), role="vocals"),
            MediaFile(address=str(place / found["accompaniment"][0]), role="accompaniment"),
        ),
        record=str(place / SONG_RECORD) if SONG_RECORD in files else "",
    )


def _stem_files(files: dict[str, str], stem: str) -> Sequence[str]:
    paths = [PurePosixPath(name) for name in sorted(files)]
    return [path.name for path in paths if path.stem.lower() == stem and path.suffix.lower() in AUDIO_SUFFIXES]
