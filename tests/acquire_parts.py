"""What the tests of acquisition share: a server with one song, a run with its limits, cache and store, and a clock that waits at once."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from infra.audio.files import encode
from infra.storage.place import Place
from pipelines.acquire.acquire import AcquireConfig, acquire_media
from pipelines.acquire.host_limits import HostLimits
from pipelines.acquire.provenance import AcquiredMedia
from pipelines.song import FoundSong
from tests.http_server import WebServer, serve

OPERATOR = "tests@example.org"
QUICK: dict[str, Any] = {
    "operator": OPERATOR,
    "requests_per_s": 1_000,
    "attempts": 3,
    "backoff_s": 0.01,
    "read_timeout_s": 0.3,
    "connect_timeout_s": 2,
    "connections_per_host": 4,
    "private_hosts": ("127.0.0.1", "localhost"),
}
SONG = encode(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 88_200)).astype(np.float32))
"""Two seconds of noise as WAV, 353 kB."""


BAD_DATE = "Mon,%2001%20Jan%2099999999999999999999%2000:00:00%20GMT"
"""As some broken host might say, in an address."""


@contextmanager
def song_server() -> Iterator[WebServer]:
    """A server that has song.wav."""
    with serve() as server:
        server.files["song.wav"] = SONG
        yield server


class Run:
    """One run of acquisition: its limits, its cache, its store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.cache = Place(str(folder / "store")), folder / "cache"
        self.hosts = HostLimits(requests_per_s=1_000, connections=4)

    def __call__(self, url: str, *, row: dict[str, str] | None = None, hosts: Any = None, **options: Any) -> AcquiredMedia:
        song = FoundSong(url=url, source="urls", version="1", fetch=url, **(row or {}))
        return acquire_media(song, self.store, AcquireConfig(**{**QUICK, **options}), hosts or self.hosts, self.cache)

    def bytes_of(self, media: AcquiredMedia) -> bytes:
        return (self.store / media.file).read_bytes()

    @property
    def stored(self) -> list[str]:
        return sorted(name for name, _ in self.store.entries())

    @property
    def partials(self) -> list[Path]:
        return sorted((self.cache / "partial").glob("*"))


class Waiting:
    """A clock that only sleeping moves, unless `tick_s` passes at each look."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.now, self.tick_s, self.slept = 0.0, tick_s, [0.0]

    def clock(self) -> float:
        self.now += self.tick_s
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def assert_rate(web: WebServer, begun: float, interval_s: float) -> None:
    """A request may come late, on a busy machine; before its slot it never does."""
    for number, seen in enumerate(web.seen):
        assert seen.at >= begun + number * interval_s


def self_signed(folder: Path, host: str = "localhost") -> ssl.SSLContext:
    """For a server of this name; `server.pem` in the folder is its certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
