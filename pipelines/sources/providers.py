"""Where a catalogue's songs are: a title and an artist resolved to media.

library:URI                        an own folder of finished songs, matched by artist and title
https://host/{artist}/{title}.mp3  an address for each song; both are percent-encoded
yt-dlp:ytsearch1                   the first result of a search of yt-dlp
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, urlsplit

import pyarrow as pa

from infra.errors import UserError
from infra.settings import S3Access
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources.folder import list_folder
from pipelines.sources.listing import digest
from pipelines.sources.names import artist_keys, title_keys

FORMS = "library:URI (a folder of finished songs), https://host/{artist}/{title}.mp3, or yt-dlp:ytsearch1"
SOURCE = "catalogue"
SEARCH_KEY = r"[a-z]+search(?:date)?1?"
"""A search of yt-dlp that gives one result, such as ytsearch1, nicosearchdate1."""


@dataclass(frozen=True, slots=True)
class WantedSong:
    """A song of a catalogue; the keys are `pipelines.sources.names`'."""

    title: str
    artist: str
    """Empty where the catalogue does not say."""
    title_key: str
    artist_key: str
    address: str
    """Stands for the song where no media does: the catalogue's address and the song's name."""

    def fault(self, reason: str) -> FoundSong:
        """The song with why it cannot be had."""
        return FoundSong(url=self.address, source=SOURCE, version=digest(reason), title=self.title, artist=self.artist, fault=reason)


class Provider(Protocol):
    """Finds the media of one song after the other."""

    def find(self, wanted: WantedSong) -> FoundSong:
        """The song with media or an address to fetch, or with a fault."""
        ...


class Library:
    """An own folder of finished songs: Artist - Title.*, at any depth."""

    def __init__(self, place: Place) -> None:
        self.place = place
        songs = [song for song in list_folder("folder", place) if not song.fault]
        titles = title_keys(pa.array([song.title for song in songs], pa.large_string())).to_pylist()
        artists = artist_keys(pa.array([song.artist for song in songs], pa.large_string())).to_pylist()
        self.songs: dict[str, list[tuple[str, FoundSong]]] = defaultdict(list)
        for title, artist, song in zip(titles, artists, songs, strict=True):
            self.songs[title].append((artist, song))

    def find(self, wanted: WantedSong) -> FoundSong:
        """The one file of this title and artist; where either does not name its artist, the title alone decides."""
        titled = self.songs.get(wanted.title_key, [])
        found = [song for artist, song in titled if artist == wanted.artist_key]
        found = found or [song for artist, song in titled if not (artist and wanted.artist_key)]
        if not found:
            return wanted.fault(f"not in the library {self.place}: add it as 'Artist - Title', or take it off the catalogue")
        if len(found) > 1:
            names = ", ".join(song.url.rsplit("/", 1)[-1] for song in found[:3])
            return wanted.fault(f"{len(found)} files of the library match ({names}{', …' if len(found) > 3 else ''}): keep one")
        song = found[0]
        return FoundSong(
            url=song.url,
            source=SOURCE,
            version=song.version,
            media=song.media,
            record=song.record,
            title=wanted.title,
            artist=wanted.artist or song.artist,
        )


@dataclass(frozen=True)
class Template:
    """An address with {title} and {artist} in it."""

    text: str

    def find(self, wanted: WantedSong) -> FoundSong:
        if "{artist}" in self.text and not wanted.artist:
            return wanted.fault("the catalogue names no artist, and the provider's address needs one: put song_info.csv beside it")
        # In one pass, so that a title with {artist} in it stays itself.
        parts = {"{title}": wanted.title, "{artist}": wanted.artist}
        address = re.sub(r"\{(?:title|artist)\}", lambda mark: quote(parts[mark[0]], safe=""), self.text)
        return _fetched(address, wanted)


@dataclass(frozen=True)
class Search:
    """The first result of a search of yt-dlp, whose key is such as ytsearch1."""

    key: str

    def find(self, wanted: WantedSong) -> FoundSong:
        return _fetched(f"{self.key}:{' '.join(f'{wanted.artist} {wanted.title}'.split())}", wanted)


def parse_provider(spec: str | None, access: S3Access | None = None) -> Provider:
    """A provider from its SPEC, see above; UserError in one line."""
    if not spec:
        raise UserError(f"a catalogue names songs and holds none: say where they are with --provider, {FORMS}")
    kind, _, rest = spec.partition(":")
    if kind == "library":
        if not rest:
            raise UserError(f"provider {spec!r} names no place: write library:FOLDER or library:s3://bucket/prefix")
        return Library(Place(rest, access if rest.startswith("s3://") else None))
    if kind == "yt-dlp":
        if not re.fullmatch(SEARCH_KEY, rest):
            raise UserError(
                f"provider {spec!r}: a song needs one result of a search, write yt-dlp:ytsearch1 (or another of yt-dlp's search keys)"
            )
        return Search(rest)
    if kind in ("http", "https"):
        unknown = sorted(set(re.findall(r"\{[^{}]*\}", spec)) - {"{title}", "{artist}"})
        if unknown or "{title}" not in spec or not urlsplit(spec.split("{", 1)[0]).netloc:
            reason = f"{unknown[0]} is neither {{title}} nor {{artist}}" if unknown else "it needs a host and {title}"
            raise UserError(f"provider {spec!r}: {reason}; write an address such as https://host/{{artist}}/{{title}}.mp3")
        return Template(spec)
    raise UserError(f"provider {spec!r} is unknown: use {FORMS}")


def _fetched(address: str, wanted: WantedSong) -> FoundSong:
    return FoundSong(
        url=address,
        source=SOURCE,
        version=digest((address, wanted.title, wanted.artist)),
        fetch=address,
        title=wanted.title,
        artist=wanted.artist,
    )
