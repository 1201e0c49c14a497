"""Web pages: where a page's sound is, found by yt-dlp (the only import of it; `pip install 'backline[pages]'`).

yt-dlp only reads pages here. Each of its requests goes through our own `HttpClient`, and the sound is downloaded like any other file, so
that robots.txt, each host's limits, our name, no cookies, the size limit and resuming hold for pages too, on every hop. What this costs:
sites that want a login, cookies between requests, another browser's name or a JavaScript engine are not readable, and sound that is offered
only in fragments (HLS, DASH) is not taken, for it would have to be joined by an FFmpeg program.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yt_dlp
from yt_dlp.networking.common import Request, RequestHandler, Response
from yt_dlp.networking.exceptions import HTTPError, RequestError
from yt_dlp.utils import DownloadError, YoutubeDLError
from yt_dlp.version import __version__ as YT_DLP_VERSION

from infra.errors import UserError
from pipelines.acquire.http_client import HttpClient
from pipelines.acquire.provenance import PageMetadata
from pipelines.song import SongError

logger = logging.getLogger(__name__)

PAGE_BYTES = 2**24
MEDIA_START_BYTES = 2**16
"""yt-dlp looks at the beginning of a sound to tell that it is one."""
BEST_SOUND = "bestaudio[protocol~='^https?$']/best[acodec!=none][protocol~='^https?$']"
PASSED_HEADERS = ("referer", "origin")
DROPPED_HEADERS = ("cookie", "user-agent", "accept-encoding", "range", "authorization", "sec-fetch-mode")
"""Secrets, another name than ours, and what only a browser may say."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A file that a page names."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: PageMetadata
    tool: str = f"yt-dlp {YT_DLP_VERSION}"


def find_sound(url: str, client: HttpClient, *, max_duration_s: float) -> Sound:
    """The best sound of the page at `url`. Nothing but pages is fetched.

    SongError when there is none, when it is a list of several, a broadcast, longer than allowed, or larger than the client's `max_bytes`,
    and when yt-dlp fails, however it does: it has over a thousand extractors, and pages change. What the client raises (robots.txt, limits,
    a host that is down) is passed on.
    """
    faults: list[UserError] = []
    options = {
        "quiet": True,
        "noprogress": True,
        "logger": _Log(),
        "format": BEST_SOUND,
        "noplaylist": True,
        "playlist_items": "1:2",
        "cachedir": False,
        "cookiefile": None,
        "usenetrc": False,
        "extractor_retries": 0,  # the client retries
        "js_runtimes": {},
        "skip_download": True,
        "socket_timeout": client.config.read_timeout_s,
        "http_headers": {"User-Agent": client.config.user_agent},
        "color": "never",
    }
    try:
        with _Reader(options, client, faults) as reader:
            info = reader.extract_info(url, download=False)
        return _sound(url, info or {}, client.config.max_bytes, max_duration_s)
    except UserError:
        raise
    except Exception as error:
        if faults:
            raise faults[-1] from error
        raise SongError(f"{url}: yt-dlp finds no sound on the page ({_reason(error)}): give the file's address") from error


def _reason(error: Exception) -> str:
    """One line; a fault of yt-dlp itself is said as such."""
    text = " ".join(str(error).removeprefix("ERROR: ").partition("; please report")[0].splitlines()[:1]).strip()
    return text if isinstance(error, DownloadError | YoutubeDLError) else f"it failed with {type(error).__name__}: {text}"


def _sound(url: str, info: Mapping[str, Any], max_bytes: int, max_duration_s: float) -> Sound:
    if info.get("_type") == "playlist":
        entries = [entry for entry in info.get("entries") or () if entry]
        if len(entries) != 1:
            raise SongError(f"{url} shows {'several recordings' if entries else 'no recording'}: give the address of one")
        info = entries[0]
    if info.get("is_live"):
        raise SongError(f"{url} is a broadcast without an end: leave it out")
    duration_s = info.get("duration")
    if duration_s and duration_s > max_duration_s:
        raise SongError(
            f"{url} is {duration_s:.0f} s long, more than max_duration_s = {max_duration_s:g}: raise that, or leave the song out"
        )
    size = info.get("filesize")
    if size and size > max_bytes:
        raise SongError(f"{url} has {size} bytes of sound, more than max_bytes = {max_bytes}: raise that, or leave the song out")
    if not info.get("url"):
        raise SongError(f"{url}: yt-dlp finds no sound on the page: give the file's address")
    headers = {name: value for name, value in (info.get("http_headers") or {}).items() if name.lower() in PASSED_HEADERS}

    def said(*names: str) -> str:
        return next((str(info[name]) for name in names if info.get(name)), "")

    return Sound(
        url=info["url"],
        headers=headers,
        metadata=PageMetadata(
            extractor=said("extractor_key", "extractor"),
            id=said("id"),
            url=said("webpage_url") or url,
            # On a page of no known kind the sounds are counted.
            title=said("track", "title").removesuffix(" (1)" if info.get("extractor_key") == "HTML5MediaEmbed" else ""),
            artist=said("artist", "creator", "uploader", "channel"),
            license=said("license"),
            upload_date=said("upload_date"),
            duration_s=float(duration_s) if duration_s else None,
        ),
    )


class _Reader(yt_dlp.YoutubeDL):
    """A YoutubeDL whose only way to the network is our client."""

    def __init__(self, options: dict[str, Any], client: HttpClient, faults: list[UserError]) -> None:
        self._handler = partial(_PoliteRH, client=client, faults=faults)
        super().__init__(options)

    def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
        """In place of every handler that yt-dlp has."""
        del handlers, preferences
        return super().build_request_director([self._handler])


class _PoliteRH(RequestHandler):
    """yt-dlp's requests, sent by `HttpClient`. Faults of ours are noted in `faults`, for yt-dlp only keeps their text."""

    _SUPPORTED_URL_SCHEMES = ("http", "https")
    _SUPPORTED_PROXY_SCHEMES = None  # httpx reads the proxies of the environment itself

    def __init__(self, *, client: HttpClient, faults: list[UserError], **options: Any) -> None:
        super().__init__(**options)
        self._client, self._faults = client, faults

    def _check_extensions(self, extensions: dict[str, Any]) -> None:
        super()._check_extensions(extensions)
        for name in ("cookiejar", "timeout", "legacy_ssl", "keep_header_casing"):
            extensions.pop(name, None)

    def _send(self, request: Request) -> Response:
        headers = {name: value for name, value in self._get_headers(request).items() if name.lower() not in DROPPED_HEADERS}
        body = request.data if isinstance(request.data, bytes) or request.data is None else b"".join(request.data)
        try:
            response = self._client.persist(request.url, lambda: self._answer(request, headers, body))
        except UserError as error:
            self._faults.append(error)
            raise RequestError(msg=str(error), cause=error) from error
        if response.status >= 400:
            raise HTTPError(response)
        return response

    def _answer(self, request: Request, headers: Mapping[str, str], body: bytes | None) -> Response:
        with self._client.open(request.url, headers, method=request.method, body=body) as answer:
            is_media = answer.content_type.startswith(("audio/", "video/", "application/octet-stream"))
            data = answer.read(MEDIA_START_BYTES if is_media else PAGE_BYTES)
            kept = {name: value for name, value in answer.headers.items() if name != "set-cookie"}
            return Response(io.BytesIO(data), url=answer.url, headers=kept, status=answer.status)


class _Log:
    """yt-dlp's messages; its errors are raised as well, so they are not logged as errors."""

    def debug(self, message: str) -> None:
        logger.debug("%s", message)

    def info(self, message: str) -> None:
        logger.debug("%s", message)

    def warning(self, message: str) -> None:
        logger.info("%s", message)

    def error(self, message: str) -> None:
        logger.info("%s", message)
