"""Web pages: yt-dlp finds the sound, and every request on the way keeps the manners of the rest."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage.place import StorageError
from pipelines.acquire.host_limits import HostLimits, Robots
from pipelines.acquire.http_faults import Unavailable
from pipelines.song import SongError
from pipelines.sources.providers import WantedSong, parse_provider
from tests.acquire_parts import OPERATOR, SONG, Run, assert_rate, song_server
from tests.http_server import WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    with song_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def page(web: WebServer) -> str:
    audio = web.url("file/song.wav", host="localhost")
    web.pages["song"] = f'<html><head><title>A song</title></head><body><audio src="{audio}"></audio></body></html>'
    return web.url("page/song")


def test_a_pages_sound_is_found_and_downloaded_politely(run: Run, web: WebServer, page: str) -> None:
    media = run(page, row={"license": "CC0"})
    assert run.bytes_of(media) == SONG
    assert (media.url, media.final_url, media.how) == (page, web.url("file/song.wav", host="localhost"), "yt-dlp")
    assert media.tool.startswith("yt-dlp 20")
    assert media.page is not None
    assert (media.page.extractor, media.page.url, media.title, media.license) == ("HTML5MediaEmbed", page, "A song", "CC0")
    assert {seen.host for seen in web.seen if seen.path == "/robots.txt"} == {"127.0.0.1", "localhost"}
    for seen in web.seen:
        assert re.fullmatch(rf"backline/\S+ \(\+{re.escape(OPERATOR)}\)", seen.headers["user-agent"])
        assert "cookie" not in seen.headers
    asked = len(web.seen)
    assert run(page, row={"license": "CC0"}) == media
    assert len(web.seen) == asked


def test_a_pages_requests_keep_the_rate(run: Run, web: WebServer, page: str) -> None:
    web.pages["song"] = web.pages["song"].replace("localhost", "127.0.0.1")
    begun = time.monotonic()
    run(page, hosts=HostLimits(requests_per_s=10, connections=1))
    assert len(web.seen) == 4, "robots.txt, the page for us, the page for yt-dlp, the sound"
    assert_rate(web, begun, 0.1)


def test_a_page_is_under_robots_and_so_is_its_sound(run: Run, web: WebServer, page: str) -> None:
    web.robots["localhost"] = (200, "User-agent: *\nDisallow: /file/\n")
    with pytest.raises(SongError, match=r"localhost:\d+/robots.txt forbids /file/song.wav"):
        run(page)
    assert web.asked("file") == []
    hidden = page + "?hidden"
    web.robots["127.0.0.1"] = (200, "User-agent: *\nDisallow: /page/\n")
    with pytest.raises(SongError, match="forbids /page/song"):
        run(hidden, pages="always", hosts=HostLimits(requests_per_s=1_000))
    assert not [seen for seen in web.seen if "hidden" in seen.path]


def test_a_page_that_is_busy_is_asked_again(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match="503 Service Unavailable; given up after 3 attempts"):
        run(web.url("status/503"), pages="always")
    assert len(web.asked("status")) == 3


def test_a_page_without_one_sound_is_rejected(run: Run, web: WebServer, page: str) -> None:
    web.pages["none"] = "<html><body>nothing here</body></html>"
    with pytest.raises(SongError, match=r"yt-dlp finds no sound on the page \(.*\): give the file's address"):
        run(web.url("page/none"))
    with pytest.raises(SongError, match="is a web page, not a file: give the file's address, or set pages to auto"):
        run(page, pages="never")
    with pytest.raises(SongError, match="more than max_bytes = 1000"):
        run(page, max_bytes=1_000)
    assert run.stored == []


def test_a_page_with_nothing_but_fragments_is_rejected(run: Run, web: WebServer) -> None:
    web.files["list.m3u8"] = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\npart1.ts\n#EXT-X-ENDLIST\n"
    web.pages["hls"] = f'<html><body><audio src="{web.url("file/list.m3u8")}"></audio></body></html>'
    with pytest.raises(SongError, match=r"yt-dlp finds no sound on the page \(.*format is not available"):
        run(web.url("page/hls"))
    assert not [seen for seen in web.seen if "part1" in seen.path]


@pytest.mark.parametrize("fault", [TypeError("'NoneType' object is not iterable"), ValueError(), ZeroDivisionError("a\nb")])
def test_a_fault_of_yt_dlp_rejects_one_song(run: Run, page: str, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("yt_dlp.extractor.generic.GenericIE._real_extract", fail)
    with pytest.raises(SongError, match=rf"no sound on the page \(it failed with {type(fault).__name__}: .*\): give") as caught:
        run(page)
    assert "\n" not in str(caught.value)


def test_what_a_page_says_of_itself_may_be_nonsense(run: Run, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yt_dlp.YoutubeDL.extract_info", lambda *_, **__: {"url": page, "duration": "long"})
    with pytest.raises(SongError, match="it failed with TypeError"):
        run(page)


def test_what_fails_here_is_no_fault_of_the_page(run: Run, page: str) -> None:
    class Broken(HostLimits):
        def robots(self, origin: str) -> Robots:
            raise StorageError(f"{origin}: the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        run(page, pages="always", hosts=Broken())


def test_without_yt_dlp_a_page_names_the_extra(run: Run, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipelines.acquire.web_pages", raising=False)
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(SongError, match=r"pip install 'backline\[pages\]'"):
        run(page)


@pytest.mark.parametrize("key", ["ytsearch1", "ytsearch", "scsearch1"])
def test_a_search_goes_through_the_same_client(run: Run, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """What the search's site answers cannot be seen here: that its robots.txt is asked for first can."""
    asked = []
    monkeypatch.setattr(HostLimits, "robots", lambda _, origin: asked.append(origin) or Robots(state="known", fault="tests forbid"))
    provider = parse_provider(f"yt-dlp:{key}")
    found = provider.find(WantedSong(title="One", artist="The Example", title_key="one", artist_key="example", address="a"))
    with pytest.raises(SongError, match="tests forbid"):
        run(found.fetch, attempts=1)
    assert asked
    assert all(origin.startswith("https://") and ("youtube" if key.startswith("yt") else "soundcloud") in origin for origin in asked)


@pytest.mark.parametrize("key", ["a:b.search1", "mp3search1", "search", "ytsearch5"])
def test_a_search_that_acquisition_would_not_know_again_is_refused_at_once(key: str) -> None:
    with pytest.raises(UserError, match="a song needs one result of a search"):
        parse_provider(f"yt-dlp:{key}")
