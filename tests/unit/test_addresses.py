"""Songs' addresses lead to public hosts, unless those who run this name others: whatever a name means, and wherever a redirect leads."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.acquire.addresses import is_public
from pipelines.acquire.http_faults import Unavailable
from pipelines.song import SongError
from tests.acquire_parts import SONG, Run, self_signed, song_server
from tests.http_server import WebServer, serve

PUBLIC = "192.88.99.1"
"""Nobody has it any more (RFC 7526)."""
HERE = ("127.0.0.1",)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with song_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """A name service: of a name, the addresses that each lookup gives; the last stays."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def lookup(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        answers = known.get(host)
        if answers is None:
            return real(host, port, *args, **options)
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("224.0.1.1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%2", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        *("fec0::1", "64:ff9b:1::7f00:1", "::7f00:1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "127.0.0.1."])
def test_an_address_that_leads_inside_is_not_asked(run: Run, web: WebServer, host: str) -> None:
    with pytest.raises(SongError, match=r"is not a public address|cannot be looked up|no connection"):
        run(web.url("file/song.wav", host=host), private_hosts=())
    assert (web.seen, run.stored) == ([], [])


def test_the_remedy_names_the_host_and_works(run: Run, web: WebServer) -> None:
    with pytest.raises(SongError, match=r"localhost:\d+/robots.txt leads to \S+, which .*--acquire.private-hosts localhost\)") as caught:
        run(web.url("file/song.wav", host="localhost"), private_hosts=HERE)
    assert not isinstance(caught.value, Unavailable)
    run.hosts = type(run.hosts)(requests_per_s=1_000)
    assert run.bytes_of(run(web.url("file/song.wav", host="localhost"), private_hosts=("LocalHost",))) == SONG


@pytest.mark.parametrize("path", ["file/song.wav", "robots.txt", "admin?all=1"])
def test_a_redirect_does_not_lead_inside(run: Run, web: WebServer, path: str) -> None:
    with song_server() as inside:
        target = inside.url(path, host="localhost")
        with pytest.raises(SongError, match=r"localhost:\d+/\S+ leads to \S+, which is not a public address"):
            run(web.url(f"redirect/?to={target}"), private_hosts=HERE)
        assert (len(web.asked("redirect")), inside.seen, run.stored) == (1, [], [])


def test_robots_and_pages_do_not_lead_inside(run: Run, web: WebServer) -> None:
    with song_server() as inside:
        sound = inside.url("file/song.wav", host="localhost")
        web.pages["song"] = f'<html><head><title>A song</title></head><body><audio src="{sound}"></audio></body></html>'
        with pytest.raises(SongError, match="is not a public address"):
            run(web.url("page/song"), private_hosts=HERE)
        web.robots["127.0.0.1"] = (301, inside.url("robots.txt", host="localhost"))
        with pytest.raises(SongError, match="is not a public address"):
            run(web.url("file/song.wav?2"), private_hosts=HERE, hosts=type(run.hosts)(requests_per_s=1_000))
        assert (inside.seen, run.stored) == ([], [])


def test_a_name_is_connected_to_as_it_was_checked(run: Run, web: WebServer, names: dict[str, list[list[str]]]) -> None:
    """A name server that answers a public address first and loopback then (DNS rebinding): nothing inside is ever asked."""
    names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    with pytest.raises(Unavailable, match=r"robots.txt cannot be"):
        run(web.url("file/song.wav", host="rebinding.example"), attempts=1, connect_timeout_s=0.2)
    with pytest.raises(SongError, match=r"leads to 127.0.0.1"):
        run(web.url("file/song.wav", host="rebinding.example"), hosts=type(run.hosts)(requests_per_s=1_000))
    assert (web.seen, run.stored) == ([], [])


def test_one_private_address_among_public_ones_is_enough(run: Run, web: WebServer, names: dict[str, list[list[str]]]) -> None:
    names["mixed.example"] = [[PUBLIC, "127.0.0.1"]]
    with pytest.raises(SongError, match=r"mixed.example.* leads to 127.0.0.1"):
        run(web.url("file/song.wav", host="mixed.example"))
    assert web.seen == []


def test_a_host_is_reached_by_its_second_address_and_under_its_name(run: Run, web: WebServer, names: dict[str, list[list[str]]]) -> None:
    names["media.example"] = [["127.0.0.9", "127.0.0.1"]]
    media = run(web.url("file/song.wav", host="media.example"), private_hosts=("media.example",))
    assert (run.bytes_of(media), media.final_url) == (SONG, web.url("file/song.wav", host="media.example"))
    assert {seen.headers["host"] for seen in web.seen} == {f"media.example:{web.port}"}


def test_a_certificate_is_checked_against_the_name_not_the_address(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[list[str]]]
) -> None:
    names["media.example"] = names["other.example"] = [["127.0.0.1"]]
    with serve(self_signed(tmp_path, "media.example")) as web:
        web.files["song.wav"] = SONG
        trust = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
        monkeypatch.setattr("pipelines.acquire.http_client._trust", lambda: trust)
        hosts = ("media.example", "other.example")
        assert run.bytes_of(run(web.url("file/song.wav", host="media.example"), private_hosts=hosts)) == SONG
        with pytest.raises(SongError, match=r"no trusted TLS connection"):
            run(web.url("file/song.wav", host="other.example"), private_hosts=hosts)


def test_a_proxy_of_the_environment_looks_names_up_itself(run: Run, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{web.port}")
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(SongError, match=r"404|wants|nothing|sound"):
        run("http://known-to-the-proxy.example/missing/song.wav", private_hosts=())
    assert {seen.host for seen in web.seen} == {"known-to-the-proxy.example"}
    with pytest.raises(SongError, match=r"leads to 127.0.0.1"):
        run(web.url("file/song.wav"), private_hosts=())
    assert run.bytes_of(run(web.url("file/song.wav", host="localhost"), private_hosts=("localhost",))) == SONG, "past the proxy"
