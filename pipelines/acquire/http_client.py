"""One polite HTTP request: named, without cookies, under robots.txt and each host's limits, through redirects, with its errors sorted.

Every request of acquisition, those of yt-dlp included, goes through `HttpClient.open`.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx
from protego import Protego

from pipelines.acquire.addresses import checked_addresses, proxy_for
from pipelines.acquire.config import PRODUCT, HttpConfig
from pipelines.acquire.host_limits import HostGate, Robots
from pipelines.acquire.http_faults import PassingFault, TooManyRedirects, Unavailable, asked_pause_s, sorted_faults, status_text
from pipelines.chance import Chance
from pipelines.song import SongError

logger = logging.getLogger(__name__)

TRANSIENT = (408, 425, 429)
REDIRECTS = (301, 302, 303, 307, 308)
ROBOTS_BYTES = 500 * 1024
"""RFC 9309, section 2.5: at least so much of a robots.txt is read."""
POLL_S = 0.25
MAX_POLL_S = 2.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a host answered; its body is read once, while the connection is open."""

    url: str
    """After redirects."""
    status: int
    headers: httpx.Headers
    body: Callable[[], Iterator[bytes]]
    """In the pieces in which it arrives. SongError under a Content-Encoding: none was asked for, and few bytes may decode to gigabytes."""
    page: Callable[[], Iterator[bytes]]
    """The same, within `max_answer_s`."""

    @property
    def content_type(self) -> str:
        """Lower case, without parameters; empty when the host says none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def read(self, limit: int) -> bytes:
        """The body, at most its first `limit` bytes."""
        body = bytearray()
        for piece in self.page():
            body += piece
            if len(body) >= limit:
                break
        return bytes(body[:limit])

    def require(self, *statuses: int) -> None:
        """SongError unless the status is one of these."""
        if self.status not in statuses:
            remedies = {401: "it wants a login, which is not supported", 403: "it does not let us have it", 404: "check the address"}
            remedy = remedies.get(self.status, "check the address in a browser, or leave the song out")
            raise SongError(f"{self.url} answered {status_text(self.status)}: {remedy}")


class HttpClient:
    """Sends requests one at a time. `hosts` says when; `clock` counts seconds, `sleep` waits for so many."""

    def __init__(
        self,
        config: HttpConfig,
        hosts: HostGate,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.hosts, self.clock, self.sleep = config, hosts, clock, sleep
        # A lease outlives the longest silence that is borne; a living worker renews it in time.
        self._lease_s = 2 * (config.connect_timeout_s + config.read_timeout_s) + 30
        # Content as it is: a length and a range mean nothing under a Content-Encoding.
        self._headers = {"User-Agent": config.user_agent, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
        self._by_proxy: dict[str, httpx.Client] = {}

    def __enter__(self) -> "HttpClient":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._by_proxy.values():
            client.close()

    def _through(self, proxy: str) -> httpx.Client:
        """A client that connects to what it is told, or to this proxy of the environment."""
        if proxy not in self._by_proxy:
            self._by_proxy[proxy] = httpx.Client(
                headers=self._headers,
                verify=_trust(),
                proxy=proxy or None,
                trust_env=False,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                timeout=httpx.Timeout(self.config.read_timeout_s, connect=self.config.connect_timeout_s),
                limits=httpx.Limits(max_keepalive_connections=0),  # no connection outlives its lease
                follow_redirects=False,
            )
        return self._by_proxy[proxy]

    def persist(self, name: str, attempt: Callable[[], T]) -> T:
        """`attempt` until it succeeds, `attempts` times at most, pausing in between; Unavailable names the last cause.

        Exponential backoff with full jitter (Brooker 2015); the draws are a random stream of `name`'s own.
        """
        chance = Chance("backoff", name)
        for count in range(1, self.config.attempts + 1):
            try:
                return attempt()
            except PassingFault as fault:
                if fault.retry_after_s > self.config.max_retry_after_s:
                    raise Unavailable(
                        f"{fault}, and asks to wait {fault.retry_after_s:.0f} s, more than max_retry_after_s = "
                        f"{self.config.max_retry_after_s:g}: run again later with --retry acquire"
                    ) from fault
                if count == self.config.attempts:
                    raise Unavailable(
                        f"{fault}; given up after {count} attempt{'s' * (count > 1)}: run again later with --retry acquire"
                    ) from fault
                ceiling_s = min(self.config.max_backoff_s, self.config.backoff_s * 2 ** (count - 1))
                pause_s = max(chance.uniform(0, ceiling_s), fault.retry_after_s)
                logger.info("%s; attempt %d of %d in %.1f s", fault, count + 1, self.config.attempts, pause_s)
                self.sleep(pause_s)
        raise AssertionError("attempts is at least 1")

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes | None = None, robots: bool = True
    ) -> Iterator[Answer]:
        """Send one request and follow its redirects; every hop asks its own host's robots.txt (unless told not to) and waits its turn.

        Raises PassingFault for what may pass, SongError for what will not.
        """
        for _ in range(self.config.max_redirects + 1):
            parsed = checked_url(url)
            if robots:
                self._check_robots(parsed)
            with self._turn(parsed.host) as keep_turn, self._sent(parsed, headers, method, body) as response:
                target = response.headers.get("location", "") if response.status_code in REDIRECTS else ""
                if not target:
                    self._check_passing(parsed, response)
                    yield Answer(
                        url=url,
                        status=response.status_code,
                        headers=response.headers,
                        body=self._body(parsed, response, keep_turn),
                        page=self._body(parsed, response, keep_turn, self.clock() + self.config.max_answer_s),
                    )
                    return
                with sorted_faults(url, self.config):
                    url = str(parsed.join(target))
                if response.status_code == 303 or (response.status_code in (301, 302) and method == "POST"):
                    method, body = "GET", None
        raise TooManyRedirects(f"{url}: more than {self.config.max_redirects} redirects: give the address they lead to")

    @contextmanager
    def _sent(self, url: httpx.URL, headers: Mapping[str, str] | None, method: str, body: bytes | None) -> Iterator[httpx.Response]:
        with sorted_faults(str(url), self.config), _Cut(str(url), self.config.max_answer_s) as cut:
            response = self._connected(url, headers, method, body, cut)
        try:
            yield response
        finally:
            response.close()

    def _connected(self, url: httpx.URL, headers: Mapping[str, str] | None, method: str, body: bytes | None, cut: "_Cut") -> httpx.Response:
        """Sent to the first address of the host that takes it. A proxy is sent the name, which is its own to look up."""
        proxy = proxy_for(url)
        addresses = checked_addresses(url, self.config.private_hosts, names=not proxy)
        targets = [url.host] if proxy else addresses
        client = self._through(proxy)
        named = {**(headers or {}), "Host": url.netloc.decode("ascii")}
        extensions = {"trace": cut.trace, "sni_hostname": url.raw_host.decode("ascii")}
        for number, address in enumerate(targets, 1):
            request = client.build_request(method, url.copy_with(host=address), headers=named, content=body, extensions=extensions)
            try:
                return client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(targets):
                    raise
        raise AssertionError("a host that is found has an address")

    def _body(
        self, url: httpx.URL, response: httpx.Response, keep_turn: Callable[[], None], deadline: float | None = None
    ) -> Callable[[], Iterator[bytes]]:
        """The pieces of a body. The timeout of each is no limit for all: a host may send a byte at a time."""

        def pieces() -> Iterator[bytes]:
            coding = response.headers.get("content-encoding", "identity").strip()
            if coding.lower() not in ("", "identity"):
                raise SongError(f"{url} comes as {coding[:40]}, though asked not to: give another address")
            with sorted_faults(str(url), self.config):
                for piece in response.iter_raw():
                    keep_turn()
                    if deadline is not None and self.clock() > deadline:
                        raise PassingFault(f"{url}: not whole within max_answer_s = {self.config.max_answer_s:g}")
                    yield piece

        return pieces

    def _check_passing(self, url: httpx.URL, response: httpx.Response) -> None:
        status = response.status_code
        if status not in TRANSIENT and status < 500:
            return
        retry_after_s = asked_pause_s(response.headers) if status in (429, 503) else 0.0
        if status == 429:
            retry_after_s = retry_after_s or self.config.backoff_s  # all of us are too many, whoever asks next
        if retry_after_s:
            self.hosts.hold_off(url.host, retry_after_s)
        raise PassingFault(f"{url} answered {status_text(status)}", retry_after_s)

    @contextmanager
    def _turn(self, host: str) -> Iterator[Callable[[], None]]:
        """A connection's lease and a slot in the schedule; what is yielded keeps the lease alive."""
        self._check_pause(host)
        poll_s = POLL_S
        while not (lease := self.hosts.acquire(host, self._lease_s)):
            self.sleep(poll_s)
            poll_s = min(2 * poll_s, MAX_POLL_S)
        renewed = self.clock()

        def keep() -> None:
            nonlocal renewed
            if self.clock() - renewed > self._lease_s / 3:
                self.hosts.renew(host, lease, self._lease_s)
                renewed = self.clock()

        try:
            wait_s = self.hosts.reserve(host)
            while wait_s > 0:
                part_s = min(wait_s, self._lease_s / 2)
                self.sleep(part_s)
                keep()
                wait_s -= part_s
                # A pause that the host asked for meanwhile voids the slot; a new one keeps the others who waited apart.
                if wait_s <= 0 and self._check_pause(host) > 0:
                    wait_s = self.hosts.reserve(host)
            yield keep
        finally:
            self.hosts.release(host, lease)

    def _check_pause(self, host: str) -> float:
        """Seconds for which the host wants no request; Unavailable when that is too long."""
        held_s = self.hosts.held(host)
        if held_s > self.config.max_retry_after_s:
            raise Unavailable(
                f"{host} wants no request for {held_s:.0f} s more, above max_retry_after_s = {self.config.max_retry_after_s:g}: "
                "run again later with --retry acquire"
            )
        return held_s

    def _check_robots(self, url: httpx.URL) -> None:
        origin = f"{url.scheme}://{url.netloc.decode()}"
        while (known := self.hosts.robots(origin)).state == "wait":
            self.sleep(POLL_S)
        if known.state == "fetch":
            known = self._fetch_robots(origin)
            self.hosts.keep_robots(origin, known.rules, known.fault, known.passing)
        if known.fault:
            raise (Unavailable if known.passing else SongError)(known.fault)
        rules = _parsed_robots(known.rules)
        delay_s = rules.crawl_delay(PRODUCT) or 0.0
        if delay_s > self.config.max_crawl_delay_s:
            raise SongError(
                f"{origin}/robots.txt wants {delay_s:g} s between requests, more than max_crawl_delay_s = "
                f"{self.config.max_crawl_delay_s:g}: raise that, or leave the song out"
            )
        if delay_s:
            self.hosts.set_crawl_delay(url.host, delay_s)
        if not rules.can_fetch(str(url), PRODUCT):
            raise SongError(f"{origin}/robots.txt forbids {url.path} to {PRODUCT}: ask its owner, or leave the song out")

    def _fetch_robots(self, origin: str) -> Robots:
        """RFC 9309, section 2.3.1: no such file allows everything; a host in trouble must not be crawled."""

        def attempt() -> str:
            with self.open(f"{origin}/robots.txt", robots=False) as answer:
                return answer.read(ROBOTS_BYTES).decode("utf-8", "replace") if answer.status == 200 else ""

        try:
            return Robots(state="known", rules=self.persist(f"{origin}/robots.txt", attempt))
        except TooManyRedirects:
            return Robots(state="known")
        except Unavailable as error:
            reason = f"nothing may be fetched while {origin}/robots.txt cannot be (RFC 9309): {error}"
            return Robots(state="known", fault=reason, passing=True)
        except SongError as error:
            return Robots(state="known", fault=str(error))


class _Cut:
    """A request whose headers do not end in time is cut off; httpx only limits the silence between two bytes of them."""

    def __init__(self, url: str, limit_s: float) -> None:
        self._url, self._limit_s = url, limit_s
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True
        self._socket: socket.socket | None = None
        self._late = False

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Of httpcore: what each connection is made of. https wraps the socket in another, so the last one counts."""
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete", "http_proxy.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def __enter__(self) -> "_Cut":
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._timer.cancel()
        if self._late and isinstance(error, httpx.TransportError):
            raise PassingFault(f"{self._url}: no answer within max_answer_s = {self._limit_s:g}") from error

    def _cut(self) -> None:
        self._late = True
        if self._socket is not None:
            with suppress(OSError):  # it broke by itself
                # Not the TLS socket's own method, which would take the encryption from under whoever reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def checked_url(url: str) -> httpx.URL:
    """Parsed; SongError unless it is http or https, of a host, and without a password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SongError(f"{url!r} is not a web address ({error}): correct it") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SongError(f"{url!r} is not an http or https address: only these are fetched, also after a redirect")
    if parsed.userinfo:
        raise SongError(f"the address at {parsed.host} holds a user name or password, which would be stored with the dataset: remove it")
    return parsed


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """Reading the authorities' certificates takes longer than a small download."""
    return httpx.create_ssl_context()


@lru_cache(maxsize=64)
def _parsed_robots(rules: str) -> Protego:
    return Protego.parse(rules)
