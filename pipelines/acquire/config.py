"""How acquisition asks the web: who asks, how often, and for how long."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from infra.errors import UserError

PRODUCT = "backline"
"""The name that robots.txt files know us by."""


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """Who asks, how often, and for how long. Sizes are bytes, times seconds."""

    operator: str = ""
    """A mail address or URL of whoever runs this: hosts are told whom to write to. Needed as soon as anything is downloaded."""
    requests_per_s: float = 1.0
    """To one host, from all workers together; a longer Crawl-delay of its robots.txt wins."""
    connections_per_host: int = 2
    """Open at once, from all workers together."""
    attempts: int = 5
    """Of one file, for what may pass: cut connections, timeouts, 408, 425, 429 and 5xx."""
    backoff_s: float = 1.0
    """Before the second attempt at most so long, doubled each time: drawn evenly from 0 to it (full jitter)."""
    max_backoff_s: float = 60.0
    max_retry_after_s: float = 120.0
    """A host that asks for a longer pause (Retry-After) is not waited for."""
    max_crawl_delay_s: float = 30.0
    """Songs of a host that wants a longer time between requests are rejected."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """Without a single byte."""
    max_answer_s: float = 60.0
    """From sending a request to the end of a page or a robots.txt; of a file, to the end of its headers."""
    max_download_s: float = 1_800.0
    """One file's transfer, over all attempts, waiting for a turn apart."""
    max_bytes: int = 2**28
    """One file: 25 minutes of WAV from a CD. It is held in memory once, when it is stored."""
    max_redirects: int = 5
    private_hosts: tuple[str, ...] = ()
    """Names or addresses that may lead to loopback, private and other addresses which are not public; no other host may, after a redirect
    neither. Through a proxy (HTTPS_PROXY) names are looked up by the proxy, whose rules hold instead."""

    def __post_init__(self) -> None:
        if (
            self.operator and not re.fullmatch(r"[^@\s()]+@[^@\s()]+|https?://[^\s()]+", self.operator, re.ASCII)
        ) or not self.operator.isascii():
            raise UserError(
                f"operator is {self.operator!r}, which is neither a mail address nor a URL: give one in ASCII, such as you@example.org"
            )
        for name in ("requests_per_s", "connect_timeout_s", "read_timeout_s", "max_answer_s", "max_download_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}: choose above 0")
        for name in ("backoff_s", "max_backoff_s", "max_retry_after_s", "max_crawl_delay_s", "max_redirects"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}: choose 0 or more")
        for name in ("connections_per_host", "attempts", "max_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: choose at least 1")

    def check_identity(self) -> None:
        """UserError when nobody is named whom a host may write to."""
        if not self.operator:
            raise UserError(
                "operator is empty, and songs are to be downloaded: name whom hosts may write to, by mail or URL (--acquire.operator)"
            )

    @property
    def user_agent(self) -> str:
        """backline/VERSION (+OPERATOR); UserError without an operator."""
        self.check_identity()
        return f"{PRODUCT}/{_version()} (+{self.operator})"


def _version() -> str:
    try:
        return version(PRODUCT)
    except PackageNotFoundError:  # a Ray job's folder
        return "unreleased"
