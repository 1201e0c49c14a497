"""Acquisition: a song with a web address becomes a song with a stored media file ("web scraping", section 3.1 of the paper).

Reads: fetch, title, artist, license (a `FoundSong`).
Gives: the song with its `media`, stored as files/<sha256>.<suffix>, and its provenance, written last, as records/<sha256 of the URL>.json.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx

from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place
from pipelines.acquire.download import Page, Partial, fetch_file
from pipelines.acquire.file_kinds import check_start, probe
from pipelines.acquire.host_limits import HostGate
from pipelines.acquire.http_client import HttpClient, HttpConfig, checked_url
from pipelines.acquire.provenance import AcquiredMedia, PageMetadata, read_record, record_place
from pipelines.song import FoundSong, MediaFile, SongError
from pipelines.sources.providers import SEARCH_KEY

LICENSE = "license"  # the stage of a reject whose licence the config forbids
SEARCH = re.compile(f"{SEARCH_KEY}:")
"""A search of yt-dlp, as a catalogue's provider asks for (ytsearch1:Artist Title): its one result is a page."""


class ForbiddenLicenseError(SongError):
    """The source names a licence that the config does not permit."""


@dataclass(frozen=True, kw_only=True)
class AcquireConfig(HttpConfig):
    """Which songs are downloaded, and how."""

    licenses: tuple[str, ...] = ()
    """Only songs whose list row names one of these licences, whatever its capitals; empty: any, or none. A stored song whose row is
    corrected to another one leaves the dataset."""
    pages: Literal["auto", "always", "never"] = "auto"
    """Whether web pages are searched for their sound, which takes yt-dlp: where an address shows a page, everywhere, or nowhere."""
    max_duration_s: float = 1_200.0
    """A recording whose own header, or whose page, says that it is longer is rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pages not in ("auto", "always", "never"):
            raise UserError(f"pages is {self.pages!r}: choose auto, always or never")
        if not self.max_duration_s > 0:
            raise UserError(f"max_duration_s is {self.max_duration_s}: choose above 0")

    def permits(self, license: str) -> bool:
        return not self.licenses or license.strip().casefold() in {name.strip().casefold() for name in self.licenses}


def acquire_song(song: FoundSong, store: Place, config: AcquireConfig, hosts: HostGate, cache: Path) -> FoundSong:
    """The song as the graph goes on with it: downloaded, one mixture, its version its content. See `acquire_media`."""
    return with_media(song, acquire_media(song, store, config, hosts, cache), store)


def acquire_media(
    song: FoundSong,
    store: Place,
    config: AcquireConfig,
    hosts: HostGate,
    cache: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> AcquiredMedia:
    """Download `song.fetch` into `store`, unless it is there: then the network is not asked. `cache` holds what is on its way.

    Raises SongError for what is wrong with this song, of them Unavailable for what may be right on another day, and ForbiddenLicenseError;
    UserError when the operator is not named or the cache cannot be written, and StorageError when the store fails, which say nothing about
    the song.
    """
    if not config.permits(song.license):
        given = f"licence {song.license!r} is" if song.license else "it names no licence, and so is"
        raise ForbiddenLicenseError(f"{given} not one of {', '.join(config.licenses)}: add it to licenses, or leave the song out")
    known = _known(song, store)
    if known is not None:
        return known
    searched = SEARCH.match(song.fetch) is not None
    if not searched:
        checked_url(song.fetch)
    with HttpClient(config, hosts, clock=clock, sleep=sleep) as client:
        if searched or config.pages == "always":
            return _from_page(song, store, config, client, cache)
        return _from_file(song, store, config, client, cache)


def with_media(song: FoundSong, media: AcquiredMedia, store: Place) -> FoundSong:
    """The song with its stored file in place of its web address."""
    return replace(
        song,
        version=media.sha256[:32],
        media=(MediaFile(address=str(store / media.file), role="mixture"),),
        fetch="",
        title=media.title,
        artist=media.artist,
        license=media.license,
    )


def remove_media(store: Place, url: str) -> None:
    """Take away what was downloaded from this address, the file first, so that a killed removal can be ended.

    Another address that gave the same file loses it too, for it is the same recording; it would have to be acquired again.
    """
    known = read_record(store, url)
    if known is not None:
        (store / known.file).delete()
    record_place(store, url).delete()


def _known(song: FoundSong, store: Place) -> AcquiredMedia | None:
    known = read_record(store, song.fetch)
    return _with_row(known, song) if known is not None and _holds(store / known.file, known.bytes) else None


def _holds(place: Place, size: int) -> bool:
    try:
        return place.size() == size
    except MissingObjectError:
        return False


def _with_row(media: AcquiredMedia, song: FoundSong) -> AcquiredMedia:
    """What the list says now comes before what it said then, and before what a page says."""
    return replace(media, title=song.title or media.title, artist=song.artist or media.artist, license=song.license or media.license)


def _from_file(song: FoundSong, store: Place, config: AcquireConfig, client: HttpClient, cache: Path) -> AcquiredMedia:
    with Partial(cache, song.fetch, client.sleep) as partial:
        if partial.waited and (known := _known(song, store)) is not None:
            partial.remove()
            return known
        page = fetch_file(partial, client, check_start)
        if page is None:
            return _stored(song, store, config, partial)
    return _from_page(song, store, config, client, cache, page)


def _from_page(
    song: FoundSong, store: Place, config: AcquireConfig, client: HttpClient, cache: Path, page: Page | None = None
) -> AcquiredMedia:
    if config.pages == "never":
        raise SongError(f"{page.url if page else song.fetch} is a web page, not a file: give the file's address, or set pages to auto")
    try:
        from pipelines.acquire.web_pages import find_sound
    except ModuleNotFoundError as error:
        if error.name != "yt_dlp":
            raise
        raise SongError(f"{song.fetch} is a web page, which takes yt-dlp: pip install 'backline[pages]'") from error
    sound = find_sound(song.fetch, client, max_duration_s=config.max_duration_s)
    with Partial(cache, sound.url, client.sleep) as partial:
        if fetch_file(partial, client, check_start, sound.headers) is not None:
            raise SongError(f"{song.fetch}: what its page names as its sound, {sound.url}, is a page again: give the file's address")
        return _stored(song, store, config, partial, sound.metadata, sound.tool)


def _stored(
    song: FoundSong, store: Place, config: AcquireConfig, partial: Partial, page: PageMetadata | None = None, tool: str = ""
) -> AcquiredMedia:
    download = partial.download
    try:
        suffix = probe(partial.path, max_duration_s=config.max_duration_s)
    except SongError:
        partial.remove()
        raise
    data = partial.path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    place = store / f"files/{sha256}.{suffix}"
    if not _holds(place, len(data)):
        place.write_bytes(data)
    media = AcquiredMedia(
        url=song.fetch,
        final_url=download.final_url,
        file=f"files/{place.name}",
        sha256=sha256,
        bytes=len(data),
        content_type=download.content_type,
        etag=download.etag,
        title=page.title if page else "",
        artist=page.artist if page else "",
        license=page.license if page else "",
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        operator=config.operator,
        how="yt-dlp" if page else "http",
        tool=tool or f"httpx {httpx.__version__}",
        page=page,
    )
    media = _with_row(media, song)
    record_place(store, song.fetch).write_bytes(media.to_json().encode())
    partial.remove()
    return media
