"""One file over HTTP into the cache: in pieces, resumed where it broke off, in this run or a later one, and never a wrong file.

`partial/<sha256 of the URL>` holds the bytes, `.json` beside it what they are of. Only what is on the disk for certain is counted there, so
neither a kill nor a loss of power leaves bytes that were not received. They are continued only with a validator (RFC 9110, section 13.1.5).
"""

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import httpx

from infra.errors import UserError
from infra.storage.atomic import sync_folder, write_partial
from pipelines.acquire.http_client import Answer, HttpClient, PassingFault, Unavailable
from pipelines.acquire.http_faults import http_date_s
from pipelines.song import SongError

logger = logging.getLogger(__name__)

CHECKPOINT_BYTES = 2**21
"""So often the bytes are brought to the disk and counted."""
LOCK_POLL_S = 0.25
START_BYTES = 512
"""Enough to tell what kind of file it is."""
COUNT = "[0-9]{1,18}"
"""Bytes in a header. Python refuses to read a number of thousands of digits."""
PAGE_TYPES = ("text/html", "application/xhtml+xml")

Check = Callable[[str, bytes], None]
"""(content type, first bytes): SongError when the file is not wanted, before the rest is fetched."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The address shows a web page."""

    url: str


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file that is there, whole or in part."""

    url: str
    final_url: str = ""
    content_type: str = ""
    etag: str = ""
    last_modified: str = ""
    """Empty unless it may serve as a validator."""
    bytes: int = 0
    """On the disk for certain."""
    total: int | None = None
    """What the host says the whole has; None when it does not say."""
    complete: bool = False

    @property
    def validator(self) -> str:
        """For If-Range; empty when the host gave none that is strong."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class Partial:
    """A file on its way, held by one process at a time: `with Partial(...) as partial`."""

    def __init__(self, folder: Path, url: str, sleep: Callable[[float], None]) -> None:
        self.path = folder / "partial" / hashlib.sha256(url.encode()).hexdigest()
        self.download = Download(url=url)
        self._record = self.path.with_suffix(".json")
        self._sleep = sleep
        self.waited = False
        """Whether another process had it, and may have brought it to its end."""

    def __enter__(self) -> "Partial":
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._lock()
            try:
                known = Download(**json.loads(self._record.read_text()))
            except (FileNotFoundError, ValueError, TypeError):
                known = self.download
            held = os.fstat(self.file.fileno()).st_size
            # What was written after the last count is not known to have reached the disk.
            fits = known.url == self.download.url and known.bytes <= held and (known.validator or known.complete)
            self.begin(known if fits else self.download)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # and the lock with it

    def begin(self, download: Download) -> None:
        """Continue, or start, the file of which so much is there; later bytes are cut off."""
        with _explained(self.path):
            if not download.bytes and self._record.exists():
                # Before another file's bytes take the place of those that it counts.
                self._record.unlink()
                sync_folder(self._record.parent)
            self.file.truncate(download.bytes)
            self.file.seek(download.bytes)
            self.download = download

    def write(self, piece: bytes) -> None:
        with _explained(self.path):
            rest = memoryview(piece)
            while rest:  # unbuffered: a nearly full disk takes a part
                rest = rest[self.file.write(rest) :]
            if self.file.tell() - self.download.bytes >= CHECKPOINT_BYTES:
                self.count()

    def count(self, *, complete: bool = False) -> None:
        """Bring the bytes to the disk, then say how many there are."""
        with _explained(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.download = replace(self.download, bytes=self.file.tell(), complete=complete)
            write_partial(self._record, json.dumps(asdict(self.download)).encode()).replace(self._record)

    def remove(self) -> None:
        """Take it away; who waits for the lock sees that the file is another."""
        with _explained(self.path):
            self._record.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def _lock(self) -> BinaryIO:
        while True:
            file = open(self.path, "a+b", buffering=0)  # noqa: PTH123, SIM115 (unbuffered; closed by __exit__)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
                self.waited = True  # for the one who has taken it away since we opened it
            except FileNotFoundError:
                self.waited = True
            except BlockingIOError:
                self.waited = True
                self._sleep(LOCK_POLL_S)
            except BaseException:
                file.close()
                raise
            file.close()


def fetch_file(partial: Partial, client: HttpClient, check: Check, headers: Mapping[str, str] | None = None) -> Page | None:
    """Bring `partial` to its end; a Page (and nothing written) when the address shows one.

    Raises SongError for what will not pass, Unavailable for what may: then what has come stays for the next run.
    """
    clock = _Transfer(client, partial.download.url)
    try:
        if partial.download.complete:
            return None
        return client.persist(partial.download.url, lambda: _attempt(partial, client, clock, check, headers or {}))
    except SongError as error:
        if not isinstance(error, Unavailable) or not partial.download.bytes:
            partial.remove()
        raise


class _Transfer:
    """Time spent in transfer over all attempts."""

    def __init__(self, client: HttpClient, url: str) -> None:
        self._client, self._url, self._spent_s = client, url, 0.0

    @contextmanager
    def running(self) -> Iterator[Callable[[], None]]:
        started = self._client.clock()
        limit_s = self._client.config.max_download_s

        def check() -> None:
            if self._spent_s + self._client.clock() - started > limit_s:
                raise Unavailable(
                    f"{self._url}: not whole after max_download_s = {limit_s:g} of transfer: raise it, and run again with --retry acquire, "
                    "which goes on where it was"
                )

        try:
            yield check
        finally:
            self._spent_s += self._client.clock() - started


def _attempt(partial: Partial, client: HttpClient, transfer: _Transfer, check: Check, headers: Mapping[str, str]) -> Page | None:
    known = partial.download
    ranged = {"Range": f"bytes={known.bytes}-", "If-Range": known.validator} if known.bytes and known.validator else {}
    with client.open(known.url, {**headers, **ranged}) as answer:
        if answer.status == 416 and ranged:
            partial.begin(Download(url=known.url))
            raise PassingFault(f"{known.url} has no bytes after {known.bytes}, so it has changed")
        answer.require(200, *([206] if ranged else []))
        if answer.content_type in PAGE_TYPES:
            partial.remove()
            return Page(url=answer.url)
        expected = _begin(partial, answer)
        limit = client.config.max_bytes
        if expected is not None and expected > limit:
            raise SongError(f"{answer.url} has {expected} bytes, more than max_bytes = {limit}: raise that, or leave the song out")
        try:
            with transfer.running() as check_time:
                _receive(partial, answer, check, check_time, limit)
        finally:
            if partial.path.exists():
                partial.count()
        if expected is not None and partial.download.bytes != expected:
            raise PassingFault(f"{answer.url}: {partial.download.bytes} of {expected} bytes came")
        if not partial.download.bytes:
            raise SongError(f"{answer.url} is empty: check the address")
        if expected is None and "chunked" not in answer.headers.get("transfer-encoding", ""):
            logger.warning("%s: its host gives no length, so whether all %d bytes came cannot be told", answer.url, partial.download.bytes)
        partial.count(complete=True)
    return None


def _begin(partial: Partial, answer: Answer) -> int | None:
    """Set `partial` to where the answer's body begins; how many bytes the whole has, if the host says so."""
    known = partial.download
    if answer.status == 206:
        span = re.fullmatch(rf"bytes ({COUNT})-({COUNT})/({COUNT}|\*)", answer.headers.get("content-range", "").strip())
        total = int(span[3]) if span and span[3] != "*" else known.total
        etag = answer.headers.get("etag", known.etag)
        if not span or int(span[1]) != known.bytes or total is None or total != (known.total or total) or etag != known.etag:
            partial.begin(Download(url=known.url))
            raise PassingFault(f"{answer.url} continued another file than it had begun ({answer.headers.get('content-range', 'no range')})")
        partial.begin(replace(known, total=total, final_url=answer.url))
        return total
    length = answer.headers.get("content-length", "")
    # A chunked body ends by itself, and makes a length that comes with it void (RFC 9112, section 6.3).
    total = int(length) if re.fullmatch(COUNT, length) and "transfer-encoding" not in answer.headers else None
    partial.begin(
        Download(
            url=known.url,
            final_url=answer.url,
            content_type=answer.content_type,
            etag=answer.headers.get("etag", ""),
            last_modified=_strong_date(answer.headers),
            total=total,
        )
    )
    return total


def _receive(partial: Partial, answer: Answer, check: Check, check_time: Callable[[], None], limit: int) -> None:
    start: bytes | None = b"" if partial.download.bytes < START_BYTES else None
    if start is not None:
        partial.file.seek(0)
        start = partial.file.read(START_BYTES)
        partial.file.seek(partial.download.bytes)
    for piece in answer.body():
        check_time()
        partial.write(piece)
        if partial.file.tell() > limit:
            raise SongError(f"{answer.url} has more than max_bytes = {limit} bytes: raise that, or leave the song out")
        if start is not None:
            start += piece
            if len(start) >= START_BYTES:
                check(partial.download.content_type, start[:START_BYTES])
                start = None
    if start:
        check(partial.download.content_type, start)


def _strong_date(headers: httpx.Headers) -> str:
    """Last-Modified where it is a strong validator: older than the answer by a second or more (RFC 9110, section 8.8.2.2)."""
    modified = headers.get("last-modified", "")
    sent_s, modified_s = http_date_s(headers.get("date", "")), http_date_s(modified)
    return modified if sent_s is not None and modified_s is not None and sent_s - modified_s >= 1 else ""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """A cache that fails says nothing about the song."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free the disk, or set BACKLINE_CACHE to another folder") from error
