"""One request and many: rate, connections, robots.txt, redirects, pauses and refusals, by what a real server saw."""

import gzip
import ssl
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from pipelines.acquire.acquire import AcquireConfig, acquire_media
from pipelines.acquire.host_limits import HostLimits
from pipelines.acquire.http_client import HttpClient
from pipelines.acquire.http_faults import Unavailable
from pipelines.song import FoundSong, SongError
from tests.acquire_parts import BAD_DATE, QUICK, SONG, Run, Waiting, assert_rate, self_signed, song_server
from tests.http_server import WebServer, serve


@pytest.fixture
def web() -> Iterator[WebServer]:
    with song_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_workers_together_keep_a_hosts_rate(run: Run, web: WebServer) -> None:
    hosts = HostLimits(requests_per_s=10, connections=4)
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: run(web.url(f"file/song.wav?{number}"), hosts=hosts), range(6)))
    assert len(web.seen) == 7, "robots.txt is fetched once"
    assert_rate(web, begun, 0.1)


def test_workers_together_keep_a_hosts_connections(run: Run, web: WebServer) -> None:
    hosts = HostLimits(requests_per_s=1_000, connections=2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: run(web.url(f"slow/song.wav?s=5&open=2&n={number}"), hosts=hosts), range(4)))
    assert web.most_open == 2


def test_the_host_is_free_again_whatever_happened(run: Run, web: WebServer) -> None:
    hosts = HostLimits(requests_per_s=1_000, connections=1)
    for path in ("status/404", "cut/song.wav?times=9", "loop/", "file/song.wav"):
        try:
            run(web.url(path), hosts=hosts)
        except SongError:
            assert hosts.acquire("127.0.0.1", 0.0)
    assert run.stored


def test_a_crawl_delay_is_kept(run: Run, web: WebServer) -> None:
    web.robots["127.0.0.1"] = (200, "User-agent: *\nCrawl-delay: 0.2\nAllow: /\n")
    begun = time.monotonic()
    run(web.url("file/song.wav?1"))
    run(web.url("file/song.wav?2"))
    assert_rate(web, begun, 0.2)
    with pytest.raises(SongError, match=r"robots.txt wants 0.2 s between requests, more than max_crawl_delay_s = 0.1: raise that"):
        run(web.url("file/song.wav?3"), max_crawl_delay_s=0.1)
    assert len(web.seen) == 3


def test_a_pause_that_is_asked_for_meanwhile_voids_a_slot(web: WebServer) -> None:
    class Interrupted(Waiting):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if seconds == 9:
                hosts.hold_off("127.0.0.1", 20)
                hosts.reserve("127.0.0.1")  # somebody else is first then

    waiting = Interrupted()
    hosts = HostLimits(requests_per_s=1 / 9, clock=waiting.clock)
    hosts.keep_robots(web.url("")[:-1], "", "", False)
    hosts.reserve("127.0.0.1")
    with (
        HttpClient(AcquireConfig(**QUICK), hosts, clock=waiting.clock, sleep=waiting.sleep) as client,
        client.open(web.url("file/song.wav")),
    ):
        assert waiting.now == 9 + 20 + 9


def test_a_long_transfer_keeps_its_lease(run: Run, web: WebServer) -> None:
    waiting = Waiting(tick_s=5)

    class Watched(HostLimits):
        renewed = 0

        def renew(self, host: str, lease: str, lease_s: float) -> None:
            assert lease_s < 60
            self.renewed += 1
            super().renew(host, lease, lease_s)

    hosts = Watched(requests_per_s=1_000, connections=1)
    song = FoundSong(url="u", source="urls", version="1", fetch=web.url("chunked/song.wav"))
    acquire_media(song, run.store, AcquireConfig(**QUICK), hosts, run.cache, clock=waiting.clock, sleep=waiting.sleep)
    assert hosts.renewed >= 5


def test_robots_rules_are_ours_by_name_and_asked_once(run: Run, web: WebServer) -> None:
    web.robots["127.0.0.1"] = (200, "User-agent: *\nDisallow: /\n\nUser-agent: backline\nDisallow: /file/private*.wav$\n")
    web.files["private1.wav"] = web.files["song.wav"]
    with pytest.raises(SongError, match=r"/robots.txt forbids /file/private1.wav to backline: ask its owner") as caught:
        run(web.url("file/private1.wav"))
    assert not isinstance(caught.value, Unavailable)
    run(web.url("file/song.wav"))
    assert [seen.path for seen in web.seen] == ["/robots.txt", "/file/song.wav"]


@pytest.mark.parametrize("status", [403, 404])
def test_a_host_without_robots_allows_everything(run: Run, web: WebServer, status: int) -> None:
    web.robots["127.0.0.1"] = (status, "User-agent: *\nDisallow: /")
    assert run(web.url("file/song.wav")).bytes


def test_robots_may_lie_elsewhere_but_not_nowhere(run: Run, web: WebServer) -> None:
    web.robots["localhost"] = (200, "User-agent: *\nDisallow: /file/\n")
    web.robots["127.0.0.1"] = (301, web.url("robots.txt", host="localhost"))
    with pytest.raises(SongError, match=r"127.0.0.1:\d+/robots.txt forbids /file/song.wav"):
        run(web.url("file/song.wav"))
    web.robots["127.0.0.1"] = (302, "/robots.txt")  # RFC 9309, section 2.3.1.2: after five of these there is none
    assert run(web.url("file/song.wav"), hosts=HostLimits(requests_per_s=1_000)).bytes


@pytest.mark.parametrize("coding", ["gzip, gzip", "deflate", "x-unknown"])
def test_robots_and_pages_that_come_compressed_are_not_unpacked(run: Run, web: WebServer, coding: str) -> None:
    web.files["bomb"] = gzip.compress(gzip.compress(bytes(2**26)))
    bomb = f"/typed/bomb?type=text/html&coded={quote(coding)}"
    with pytest.raises(SongError, match=rf"comes as {coding}, though asked not to") as page:
        run(web.url(bomb[1:]), pages="always", read_timeout_s=30)
    web.robots["localhost"] = (302, bomb)
    tracemalloc.start()
    try:
        with pytest.raises(SongError, match=rf"localhost:\d+/typed/bomb\S* comes as {coding}, though asked not to") as robots:
            run(web.url("file/song.wav", host="localhost"), read_timeout_s=30)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert not isinstance(page.value, Unavailable)
    assert not isinstance(robots.value, Unavailable)
    assert len(web.files["bomb"]) < 1_000, "of 64 MiB"
    assert web.asked("file") == []


def test_an_error_page_that_comes_compressed_is_still_the_error(run: Run, web: WebServer) -> None:
    with pytest.raises(SongError, match="404 Not Found: check the address"):
        run(web.url("status/404?coded=gzip"))


def test_a_host_whose_robots_fail_is_left_alone_for_now(run: Run, web: WebServer) -> None:
    web.robots["127.0.0.1"] = (500, "oops")
    for number in range(2):
        with pytest.raises(
            Unavailable, match=r"nothing may be fetched while \S+/robots.txt cannot be \(RFC 9309\): .*500.*3 attempts.*later"
        ):
            run(web.url(f"file/song.wav?{number}"))
    assert [seen.path for seen in web.seen] == ["/robots.txt"] * 3


def test_a_robots_that_drips_is_given_up(run: Run, web: WebServer) -> None:
    web.robots["127.0.0.1"] = (302, "/drip/song.wav")
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"robots.txt cannot be .*: not whole within max_answer_s = 0.2; given up after 2 attempts"):
        run(web.url("file/song.wav"), max_answer_s=0.2, attempts=2)
    assert time.monotonic() - begun < 3, "the whole would take five hours"
    assert web.asked("file") == []


@pytest.mark.parametrize("tls", [False, True])
def test_headers_that_drip_are_given_up(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    with serve(self_signed(tmp_path) if tls else None) as web:
        if tls:
            trust = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
            trust.check_hostname = False
            monkeypatch.setattr("pipelines.acquire.http_client._trust", lambda: trust)
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer within max_answer_s = 0.3; given up after 2 attempts"):
            run(web.url("dribble/song.wav", host="localhost"), max_answer_s=0.3, attempts=2)
        assert time.monotonic() - begun < 3
        assert len(web.asked("dribble")) == 2


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", ["after=1", "date=2"])
def test_a_host_that_asks_for_a_pause_gets_it(run: Run, web: WebServer, status: int, kind: str) -> None:
    song = FoundSong(url="u", source="urls", version="1", fetch=web.url(f"busy/song.wav?status={status}&{kind}&times=1"))
    waiting = Waiting()
    hosts = HostLimits(requests_per_s=1_000, connections=1, clock=waiting.clock)
    media = acquire_media(song, run.store, AcquireConfig(**QUICK), hosts, run.cache, clock=waiting.clock, sleep=waiting.sleep)
    assert run.bytes_of(media) == SONG
    assert len(web.asked("busy")) == 2
    wanted = float(kind[-1])
    least = wanted - 1 if "date" in kind else wanted  # a date has whole seconds
    assert least <= sum(waiting.slept) <= wanted + 0.1


def test_a_pause_until_a_day_that_never_comes_is_none(run: Run, web: WebServer) -> None:
    assert run.bytes_of(run(web.url(f"busy/song.wav?status=503&after={BAD_DATE}&times=1"))) == SONG
    assert len(web.asked("busy")) == 2


def test_too_many_requests_are_everybodys(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match="429 Too Many Requests; given up after 1 attempt:"):
        run(web.url("status/429"), attempts=1, backoff_s=60)
    assert 50 < run.hosts.held("127.0.0.1") <= 60
    with pytest.raises(Unavailable, match="503 Service Unavailable; given up after 1 attempt:"):
        run(web.url("status/503", host="localhost"), attempts=1, backoff_s=60)
    assert run.hosts.held("localhost") == 0


def test_too_long_a_pause_is_not_waited_for_by_anybody(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match=r"answered 429 Too Many Requests, and asks to wait 3600 s, more than max_retry_after_s = 120"):
        run(web.url("busy/song.wav?after=3600"))
    with pytest.raises(Unavailable, match=r"127.0.0.1 wants no request for 3\d\d\d s more.*run again later with --retry acquire"):
        run(web.url("file/song.wav"))
    assert [seen.path.partition("?")[0] for seen in web.seen] == ["/robots.txt", "/busy/song.wav"]


def test_pauses_between_attempts_grow_at_random_up_to_a_cap(run: Run, web: WebServer) -> None:
    slept: list[float] = []
    config = AcquireConfig(**{**QUICK, "attempts": 9, "backoff_s": 1, "max_backoff_s": 8})
    with HttpClient(config, run.hosts, sleep=slept.append) as client:

        def attempt() -> None:
            with client.open(web.url("status/502")):
                raise AssertionError("unreachable")

        with pytest.raises(Unavailable, match="502 Bad Gateway; given up after 9 attempts"):
            client.persist("a", attempt)
        pauses = [pause for pause in slept if pause > 0.01]  # the rest are turns
        assert len(web.asked("status")) == 9
        ceilings = [1, 2, 4, 8, 8, 8, 8, 8]
        assert all(pause <= ceiling for pause, ceiling in zip(pauses, ceilings, strict=True))
        assert max(pauses) > 2
        assert len({round(pause / ceiling, 6) for pause, ceiling in zip(pauses, ceilings, strict=True)}) == 8, "jitter"


def test_a_host_that_is_not_there_is_said_so(run: Run) -> None:
    with serve() as gone:
        url = gone.url("file/song.wav")
    with pytest.raises(Unavailable, match=r"robots.txt cannot be .*no connection \(.*refused\); given up after 3 attempts"):
        run(url)


@pytest.mark.parametrize(
    ("status", "said"), [(404, "404 Not Found: check the address"), (410, "410 Gone"), (403, "403 Forbidden"), (401, "a login")]
)
def test_a_refusal_is_final(run: Run, web: WebServer, status: int, said: str) -> None:
    with pytest.raises(SongError, match=said) as caught:
        run(web.url(f"status/{status}"))
    assert not isinstance(caught.value, Unavailable)
    assert len(web.asked("status")) == 1
    assert run.partials == []


def test_a_broken_host_is_asked_as_often_as_configured(run: Run, web: WebServer) -> None:
    with pytest.raises(
        Unavailable,
        match=r"/status/500 answered 500 Internal Server Error; given up after 3 attempts: run again later with --retry acquire",
    ):
        run(web.url("status/500"))
    assert len(web.asked("status")) == 3


def test_a_redirect_is_followed_under_the_other_hosts_rules(run: Run, web: WebServer) -> None:
    target = web.url("file/song.wav", host="localhost")
    media = run(web.url(f"redirect/?to={target}"))
    assert (media.final_url, run.bytes_of(media)) == (target, SONG)
    assert [(seen.host, seen.path.partition("?")[0]) for seen in web.seen] == [
        ("127.0.0.1", "/robots.txt"),
        ("127.0.0.1", "/redirect/"),
        ("localhost", "/robots.txt"),
        ("localhost", "/file/song.wav"),
    ]
    assert not any("cookie" in seen.headers for seen in web.seen), "the redirect set one"


def test_a_redirect_does_not_lead_around_robots(run: Run, web: WebServer) -> None:
    web.robots["localhost"] = (200, "User-agent: *\nDisallow: /file/\n")
    with pytest.raises(SongError, match=r"http://localhost:\d+/robots.txt forbids /file/song.wav"):
        run(web.url(f"redirect/?to={web.url('file/song.wav', host='localhost')}"))
    assert web.asked("file") == []


def test_a_redirects_host_keeps_its_own_rate(run: Run, web: WebServer) -> None:
    hosts = HostLimits(requests_per_s=1_000, connections=1)
    hosts.hold_off("localhost", 3_600)
    with pytest.raises(Unavailable, match="localhost wants no request"):
        run(web.url(f"redirect/?to={web.url('file/song.wav', host='localhost')}"), hosts=hosts)
    assert run(web.url("file/song.wav"), hosts=hosts).bytes, "and the first host's only connection is free again"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.wav", "http://user:secret@127.0.0.1/"])
def test_redirects_to_anything_but_the_web_are_refused(run: Run, web: WebServer, target: str) -> None:
    with pytest.raises(SongError, match=r"http or https|user name or password"):
        run(web.url(f"redirect/?to={target}"))
    assert len(web.asked("redirect")) == 1
    assert run.stored == []


def test_a_redirect_without_an_end_is_left(run: Run, web: WebServer) -> None:
    with pytest.raises(SongError, match="more than 4 redirects"):
        run(web.url("loop/"), max_redirects=4)
    assert len(web.asked("loop")) == 5


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/a.wav", "song.wav", "http://", "https://u:p@example.org/a"])
def test_only_web_addresses_are_fetched(run: Run, url: str) -> None:
    with pytest.raises(SongError, match=r"http or https|user name or password"):
        run(url)


def test_an_untrusted_certificate_is_final(run: Run, web: WebServer, tmp_path: Path) -> None:
    with serve(self_signed(tmp_path)) as secure:
        secure.files["song.wav"] = b""
        with pytest.raises(SongError, match=r"no trusted TLS connection \(.*self.signed.*SSL_CERT_FILE") as caught:
            run(secure.url("file/song.wav"))
        assert not isinstance(caught.value, Unavailable)
        assert secure.seen == []
    with pytest.raises(SongError, match="no trusted TLS connection"):
        run(web.url("file/song.wav").replace("http:", "https:"))
