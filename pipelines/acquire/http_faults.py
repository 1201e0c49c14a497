"""What goes wrong with a request, sorted: what may pass is tried again, the rest says what is wrong with the song."""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar

import httpx

from pipelines.acquire.config import HttpConfig
from pipelines.song import SongError

T = TypeVar("T")


class Unavailable(SongError):
    """The song cannot be had now, and may be on another day: the host is down, busy or slow."""


class TooManyRedirects(SongError):
    """The address leads on and on."""


class PassingFault(Exception):
    """One attempt failed in a way that the next may not."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@contextmanager
def sorted_faults(url: str, config: HttpConfig) -> Iterator[None]:
    """Turn what httpx raises into PassingFault or SongError."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise SongError(f"{url} leads to what is not a web address ({error}): correct it") from error
    except httpx.ConnectTimeout as error:
        raise PassingFault(f"{url}: no connection within {config.connect_timeout_s:g} s") from error
    except httpx.TimeoutException as error:
        raise PassingFault(f"{url}: not a byte within {config.read_timeout_s:g} s") from error
    except httpx.ConnectError as error:
        if tls := _cause(error, ssl.SSLError):
            raise SongError(
                f"{url}: no trusted TLS connection ({getattr(tls, 'verify_message', '') or tls.args[-1]}): use an address whose "
                "certificate is valid, or name your own authority's file in SSL_CERT_FILE"
            ) from error
        raise PassingFault(f"{url}: no connection ({error})") from error
    except httpx.TransportError as error:
        raise PassingFault(f"{url}: the connection broke ({error or type(error).__name__})") from error


def _cause(error: BaseException, kind: type[T]) -> T | None:
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kind):
        seen = seen.__cause__ or seen.__context__
    return seen


def asked_pause_s(headers: httpx.Headers) -> float:
    """Retry-After in seconds, 0 without one; a date counts from the host's own Date, whose clock it was set by."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    until, now = http_date_s(value), http_date_s(headers.get("date", ""))
    return 0.0 if until is None else max(0.0, until - (time.time() if now is None else now))


def http_date_s(value: str) -> float | None:
    """A header's date in seconds since 1970; None for what is none: hosts send anything, and any year."""
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def status_text(status: int) -> str:
    with suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)
