"""moisesdb:URI: MoisesDB (Pereira et al., 2023, arXiv 2307.15913).

moisesdb_v0.1/UUID/data.json            song, artist, genre, stems: [{stemName, tracks: [{id, extension, trackType, has_bleed}]}]
moisesdb_v0.1/UUID/STEMNAME/TRACKID.wav

Vocals are all tracks of the stem `vocals`, lead and background; the accompaniment is all tracks of all others.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong, MediaFile, SongError
from pipelines.sources.listing import NOT_UTF8, digest, is_shown_as_is, shown, visible_files

log = logging.getLogger(__name__)

RECORD = "data.json"
VOCALS_STEM = "vocals"
LICENSE = "MoisesDB: CC BY-NC-SA 4.0, not for commercial use"
LAYOUT = f"a folder for each song with {RECORD} and STEM/TRACK.wav, as moisesdb_v0.1 has them"
SHOWN_MISSING = 3
READERS = 16


@dataclass(frozen=True, kw_only=True)
class Track:
    """One file of a song, as data.json names it."""

    stem: str
    name: str
    """Relative to the song's folder."""
    has_bleed: bool
    """Other instruments can be heard in it."""


def list_moisesdb(kind: str, place: Place) -> list[FoundSong]:
    """Every song, sorted by address; UserError when there is none."""
    files = visible_files(place, f"MoisesDB's folder, which holds {LAYOUT}")
    records = sorted(name for name in files if name.rsplit("/", 1)[-1] == RECORD)
    if not records:
        raise UserError(f"{kind}:{place} holds no songs of MoisesDB: expected {LAYOUT}")
    # A request a song: from S3 it would take a minute one after the other.
    with ThreadPoolExecutor(READERS) as readers:
        texts = list(readers.map(lambda name: (place / name).read_bytes(), records))
    songs, bleeding = [], 0
    for name, text in zip(records, texts, strict=True):
        song, bleeds = _song(kind, place, files, name.removesuffix(RECORD).rstrip("/"), text)
        songs.append(song)
        bleeding += bleeds
    if bleeding:
        log.info("%s:%s: in %d of %d songs other instruments can be heard in a vocal track (has_bleed)", kind, place, bleeding, len(songs))
    return songs


def _song(kind: str, place: Place, files: Mapping[str, str], folder: str, text: bytes) -> tuple[FoundSong, bool]:
    """(the song, whether other instruments bleed into its vocals)."""
    home = place / folder if folder else place
    prefix = f"{folder}/" if folder else ""
    url = shown(str(home))
    version = files[prefix + RECORD]
    try:
        if not is_shown_as_is(str(home)):
            raise SongError(NOT_UTF8)
        given = _record(text)
        tracks = list(dict.fromkeys(_tracks(given)))
        version = digest([version, *((track.name, files.get(prefix + track.name)) for track in tracks)])
        missing = [track.name for track in tracks if prefix + track.name not in files]
        if missing:
            more = ", …" if len(missing) > SHOWN_MISSING else ""
            raise SongError(
                f"{len(missing)} of its {len(tracks)} tracks are missing: {', '.join(missing[:SHOWN_MISSING])}{more}; unpack MoisesDB again"
            )
        if not any(track.stem == VOCALS_STEM for track in tracks):
            raise SongError("nobody sings in it: it has no stem vocals")
        if all(track.stem == VOCALS_STEM for track in tracks):
            raise SongError("it has no accompaniment: vocals is its only stem")
    except SongError as error:
        return FoundSong(url=url, source=kind, version=version, fault=str(error)), False
    song = FoundSong(
        url=url,
        source=kind,
        version=version,
        media=tuple(
            MediaFile(address=str(home / track.name), role="vocals" if track.stem == VOCALS_STEM else "accompaniment") for track in tracks
        ),
        title=str(given.get("song") or ""),
        artist=str(given.get("artist") or ""),
        license=LICENSE,
    )
    return song, any(track.has_bleed for track in tracks if track.stem == VOCALS_STEM)


def _record(text: bytes) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SongError(f"{RECORD} is not JSON ({error}): unpack MoisesDB again") from error
    if not isinstance(given, dict):
        raise SongError(f"{RECORD} is not a JSON object: unpack MoisesDB again")
    return given


def _tracks(given: dict[str, Any]) -> Iterator[Track]:
    try:
        for stem in given["stems"]:
            for track in stem["tracks"]:
                name = f"{stem['stemName']}/{track['id']}.{track.get('extension') or 'wav'}"
                yield Track(stem=str(stem["stemName"]), name=name, has_bleed=bool(track.get("has_bleed")))
    except (KeyError, TypeError, AttributeError) as error:
        raise SongError(f"{RECORD} is not as MoisesDB's ({type(error).__name__}: {error}): unpack it again") from error
