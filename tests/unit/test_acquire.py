"""Acquisition against a real server on loopback; what it was asked is asserted, not only what came."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.audio_files import encode
from infra.errors import UserError
from infra.storage import Place, StorageError
from pipelines import http_download
from pipelines.acquire import AcquireConfig, acquire_media, acquire_song, remove_media, with_media
from pipelines.hosts import HostLimits
from pipelines.http_client import HttpClient
from pipelines.http_faults import Unavailable
from pipelines.media_records import AcquiredMedia, read_record
from pipelines.songs import FoundSong, MediaFile, SongError
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
}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wav() -> bytes:
    """Two seconds of noise, 353 kB."""
    return encode(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 88_200)).astype(np.float32))


@pytest.fixture
def web(wav: bytes) -> Iterator[WebServer]:
    with serve() as server:
        server.files["song.wav"] = wav
        yield server


@pytest.fixture(autouse=True)
def small_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_download, "CHECKPOINT_BYTES", 2**15)


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


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_song_is_stored_with_its_provenance_and_never_asked_for_again(run: Run, web: WebServer, wav: bytes) -> None:
    url = web.url("file/song.wav")
    begun = datetime.now(UTC) - timedelta(seconds=1)
    media = run(url, row={"title": "Tür", "artist": "A", "license": "CC-BY-4.0"})
    digest = sha256(wav).hexdigest()
    assert run.bytes_of(media) == wav
    assert media.file == f"files/{digest}.wav"
    assert (media.url, media.final_url, media.sha256, media.bytes, media.content_type) == (url, url, digest, len(wav), "audio/wav")
    assert (media.title, media.artist, media.license, media.operator, media.how) == ("Tür", "A", "CC-BY-4.0", OPERATOR, "http")
    assert media.etag == f'"{digest[:16]}"'
    assert re.fullmatch(r"httpx \d+\.\d+.*", media.tool)
    assert begun <= datetime.fromisoformat(media.fetched_at) <= datetime.now(UTC)
    assert run.stored == [f"files/{digest}.wav", f"records/{sha256(url.encode()).hexdigest()[:32]}.json"]
    assert run.partials == []
    assert [seen.path for seen in web.seen] == ["/robots.txt", "/file/song.wav"]
    for seen in web.seen:
        assert re.fullmatch(rf"backline/\S+ \(\+{re.escape(OPERATOR)}\)", seen.headers["user-agent"])
        assert seen.headers["accept-encoding"] == "identity"
        assert "cookie" not in seen.headers

    again = run(url, row={"title": "Door", "artist": "A", "license": "CC-BY-4.0"}, operator="")
    assert again == replace(media, title="Door"), "the list may have been corrected since"
    assert len(web.seen) == 2

    (run.store / media.file).delete()
    assert run.bytes_of(run(url)) == wav, "a record without its file does not count"
    assert len(web.asked("file")) == 2


def test_the_song_goes_on_with_a_mixture_in_place_of_its_address(run: Run, web: WebServer) -> None:
    song = FoundSong(url="row 7", source="urls", version="1", fetch=web.url("file/song.wav"), title="T", license="CC0")
    found = acquire_song(song, run.store, AcquireConfig(**QUICK), run.hosts, run.cache)
    media = read_record(run.store, song.fetch)
    assert media is not None
    assert found.media == (MediaFile(address=str(run.store / media.file), role="mixture"),)
    assert (found.url, found.fetch, found.version, found.title, found.license) == ("row 7", "", media.sha256[:32], "T", "CC0")
    assert found.is_mixture
    assert with_media(song, media, run.store) == found


def test_nothing_is_downloaded_in_nobodys_name(run: Run, web: WebServer) -> None:
    with pytest.raises(UserError, match=r"operator is empty.*mail address or a URL") as caught:
        run(web.url("file/song.wav"), operator="")
    assert not isinstance(caught.value, SongError), "it is not this song's fault"
    assert web.seen == []


@pytest.mark.parametrize(
    "options",
    [
        {"operator": "somebody"},
        {"operator": "a@b.c\r\nX: 1"},
        {"operator": "ü@example.org"},
        {"requests_per_s": 0},
        {"attempts": 0},
        {"backoff_s": -1},
        {"read_timeout_s": float("inf")},
        {"max_bytes": 0},
        {"max_redirects": -1},
        {"pages": "perhaps"},
        {"max_duration_s": 0},
    ],
)
def test_a_config_says_what_to_choose(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(options))} is .*(choose|give)"):
        AcquireConfig(**options)


def test_licences_are_checked_before_any_request(run: Run, web: WebServer) -> None:
    for license, said in (("CC-BY-NC-4.0", "'CC-BY-NC-4.0' is not one of CC0, CC-BY-4.0"), ("", "names no licence")):
        with pytest.raises(SongError, match=said):
            run(web.url("file/song.wav"), row={"license": license}, licenses=("CC0", "CC-BY-4.0"))
    assert web.seen == []
    assert run(web.url("file/song.wav"), row={"license": " cc-by-4.0"}, licenses=("CC0", "CC-BY-4.0")).bytes


# Rate and connections.


def test_workers_together_keep_a_hosts_rate(run: Run, web: WebServer) -> None:
    hosts = HostLimits(requests_per_s=10, connections=4)
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: run(web.url(f"file/song.wav?{number}"), hosts=hosts), range(6)))
    assert len(web.seen) == 7, "robots.txt is fetched once"
    _assert_rate(web, begun, 0.1)


def _assert_rate(web: WebServer, begun: float, interval_s: float) -> None:
    """A request may come late, on a busy machine; before its slot it never does."""
    for number, seen in enumerate(web.seen):
        assert seen.at >= begun + number * interval_s


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
    _assert_rate(web, begun, 0.2)
    with pytest.raises(SongError, match=r"robots.txt wants 0.2 s between requests, more than max_crawl_delay_s = 0.1: raise that"):
        run(web.url("file/song.wav?3"), max_crawl_delay_s=0.1)
    assert len(web.seen) == 3


# robots.txt.


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


def test_a_host_whose_robots_fail_is_left_alone_for_now(run: Run, web: WebServer) -> None:
    web.robots["127.0.0.1"] = (500, "oops")
    for number in range(2):
        with pytest.raises(
            Unavailable, match=r"nothing may be fetched while \S+/robots.txt cannot be \(RFC 9309\): .*500.*3 attempts.*later"
        ):
            run(web.url(f"file/song.wav?{number}"))
    assert [seen.path for seen in web.seen] == ["/robots.txt"] * 3


# What may pass.


@pytest.mark.parametrize("option", ["", "&becomes=other.wav", "&plain=1", "&bare=1"])
def test_a_cut_connection_is_continued_or_begun_anew(run: Run, web: WebServer, wav: bytes, option: str) -> None:
    web.files["other.wav"] = other = encode(np.full((1, 80_000), 0.25, np.float32))
    media = run(web.url(f"cut/song.wav?times=1{option}"))
    assert run.bytes_of(media) == (other if "becomes" in option else wav)
    first, second = web.asked("cut")
    assert "range" not in first.headers
    if option == "&bare=1":
        assert "range" not in second.headers, "without a validator nothing can be continued"
    else:
        assert second.headers["range"] == f"bytes={len(wav) // 4}-"
        assert second.headers["if-range"] == f'"{sha256(wav).hexdigest()[:16]}"'
    assert run.partials == []


def test_a_transfer_that_is_cut_again_and_again_goes_on_from_each_cut(run: Run, web: WebServer, wav: bytes) -> None:
    assert run.bytes_of(run(web.url("cut/song.wav?times=2"))) == wav
    starts = [int(seen.headers.get("range", "bytes=0-")[6:-1]) for seen in web.asked("cut")]
    assert starts == [0, len(wav) // 4, len(wav) * 3 // 4]


def test_a_stalled_host_is_given_up_and_the_next_run_asks_for_the_rest(run: Run, web: WebServer, wav: bytes) -> None:
    url = web.url("stall/song.wav?at=100000&times=2")
    with pytest.raises(Unavailable, match=r"not a byte within 0.3 s; given up after 2 attempts: run again later"):
        run(url, attempts=2)
    assert run.stored == []
    record = json.loads(next(path for path in run.partials if path.suffix == ".json").read_text())
    assert (record["url"], record["bytes"], record["total"]) == (url, 200_000, len(wav))
    assert run.bytes_of(run(url)) == wav
    assert [seen.headers.get("range") for seen in web.asked("stall")] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_killed_download_goes_on_where_it_was(run: Run, web: WebServer, tmp_path: Path) -> None:
    web.files["long.wav"] = long = encode(np.random.default_rng(1).uniform(-0.5, 0.5, (2, 1_500_000)).astype(np.float32))  # 6 MB
    url = web.url("stall/long.wav?at=3000000&times=1")
    script = (
        "import sys; from pathlib import Path; from infra.storage import Place; from pipelines.songs import FoundSong\n"
        "from pipelines.acquire import AcquireConfig, acquire_media; from pipelines.hosts import HostLimits\n"
        "acquire_media(FoundSong(url=sys.argv[1], source='urls', version='1', fetch=sys.argv[1]), Place(sys.argv[2] + '/store'),\n"
        f"    AcquireConfig(operator={OPERATOR!r}), HostLimits(requests_per_s=1000), Path(sys.argv[2] + '/cache'))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, url, str(tmp_path)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 30
        while web.sent["/stall/long.wav"] < 3_000_000 or not [path for path in run.partials if path.suffix == ".json"]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert run.bytes_of(run(url)) == long
    second = web.asked("stall")[1]
    begin = int(second.headers["range"][len("bytes=") : -1])
    assert 2_000_000 < begin <= 3_000_000
    assert web.sent["/stall/long.wav"] == 3_000_000 + len(long) - begin


def test_what_came_whole_before_a_kill_is_not_asked_for_again(
    run: Run, web: WebServer, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            run(web.url("file/song.wav"))
    assert run.bytes_of(run(web.url("file/song.wav"))) == wav
    assert len(web.asked("file")) == 1


def test_bytes_that_were_not_counted_are_not_trusted(run: Run, web: WebServer, wav: bytes) -> None:
    url = web.url("stall/song.wav?at=100000&times=1")
    with pytest.raises(Unavailable):
        run(url, attempts=1)
    body = next(path for path in run.partials if not path.suffix)
    body.write_bytes(body.read_bytes() + b"garbage that a loss of power left")
    assert run.bytes_of(run(url)) == wav


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", ["after=1", "date=2"])
def test_a_host_that_asks_for_a_pause_gets_it(run: Run, web: WebServer, wav: bytes, status: int, kind: str) -> None:
    slept: list[float] = []
    song = FoundSong(url="u", source="urls", version="1", fetch=web.url(f"busy/song.wav?status={status}&{kind}&times=1"))

    class Waiting:
        now = 0.0

        def clock(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            self.now += seconds

    waiting = Waiting()
    hosts = HostLimits(requests_per_s=1_000, connections=1, clock=waiting.clock)
    media = acquire_media(song, run.store, AcquireConfig(**QUICK), hosts, run.cache, clock=waiting.clock, sleep=waiting.sleep)
    assert run.bytes_of(media) == wav
    assert len(web.asked("busy")) == 2
    wanted = float(kind[-1])
    assert wanted - 1 <= sum(slept) <= wanted + 0.1 if "date" in kind else wanted <= sum(slept) <= wanted + 0.1


def test_too_long_a_pause_is_not_waited_for_by_anybody(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match=r"answered 429 Too Many Requests, and asks to wait 3600 s, more than max_retry_after_s = 120"):
        run(web.url("busy/song.wav?after=3600"))
    with pytest.raises(Unavailable, match=r"127.0.0.1 wants no request for 3\d\d\d s more.*run again later"):
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


def test_a_slow_transfer_ends_at_its_limit_and_keeps_what_came(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match=r"not whole after max_download_s = 0.4 of transfer: raise it, or run again to go on"):
        run(web.url("drip/song.wav"), max_download_s=0.4)
    assert len(web.asked("drip")) == 1
    assert run.stored == []


def test_a_host_that_is_not_there_is_said_so(run: Run) -> None:
    with serve() as gone:
        url = gone.url("file/song.wav")
    with pytest.raises(Unavailable, match=r"robots.txt cannot be .*no connection \(.*refused\); given up after 3 attempts"):
        run(url)


# What will not pass.


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
    with pytest.raises(Unavailable, match=r"/status/500 answered 500 Internal Server Error; given up after 3 attempts: run again later"):
        run(web.url("status/500"))
    assert len(web.asked("status")) == 3


def test_a_length_that_is_not_reached_is_never_stored(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match=r"overstated/song.wav.*given up after 3 attempts"):
        run(web.url("overstated/song.wav"))
    assert run.stored == []


def test_no_more_is_taken_than_was_promised(run: Run, web: WebServer, wav: bytes) -> None:
    assert run.bytes_of(run(web.url("understated/song.wav"))) == wav[:-1_000]


def test_a_host_need_not_give_a_length(run: Run, web: WebServer, wav: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert run.bytes_of(run(web.url("chunked/song.wav"))) == wav
    assert "gives no length" not in caplog.text
    assert run.bytes_of(run(web.url("endless/song.wav"))) == wav
    assert "endless/song.wav: its host gives no length" in caplog.text
    with pytest.raises(Unavailable, match=r"the connection broke.*chunked"):
        run(web.url("chunked/song.wav?cut=1"))


def test_a_file_beyond_the_limit_is_refused_at_once(run: Run, web: WebServer) -> None:
    with pytest.raises(SongError, match=r"has 9000000000 bytes, more than max_bytes = 268435456: raise that"):
        run(web.url("huge/song.wav?bytes=9000000000"))
    with pytest.raises(SongError, match=r"has more than max_bytes = 1000000 bytes"):
        run(web.url("endless/song.wav?bytes=50000000"), max_bytes=1_000_000)
    assert web.sent["/endless/song.wav"] < 20_000_000
    assert run.stored == []
    assert run.partials == []


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", b'{"error": "quota"}', "a file of type application/json"),
        ("a.zip", b"PK\x03\x04" + bytes(2_000), "a file of type application/zip"),
        ("a.bin", b"PK\x03\x04" + bytes(2_000), "a ZIP archive"),
        ("a.mp3", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n" * 50, "a playlist"),
        ("b.mp3", b"Please log in to download. " * 50, "a text"),
        ("c.mp3", bytes(range(1, 256)) * 20, "of an unknown kind"),
        ("d.wav", b"RIFF\x24\x00\x00\x00WAVEjunk", "the wav file is damaged"),
        ("e.mp3", b"", "is empty"),
    ],
)
def test_what_is_no_recording_is_refused_by_what_it_is(run: Run, web: WebServer, name: str, data: bytes, said: str) -> None:
    web.files[name] = data
    with pytest.raises(SongError, match=said) as caught:
        run(web.url(f"file/{name}"))
    assert not isinstance(caught.value, Unavailable)
    assert len(web.asked("file")) == 1
    assert run.stored == []
    assert run.partials == []


def test_the_bytes_say_what_kind_of_file_it_is(run: Run, web: WebServer) -> None:
    tone_CN = np.sin(np.arange(44_100) / 20)[None].astype(np.float32) / 2
    for format in ("flac", "mp3", "ogg"):
        web.files[f"{format}.bin"] = encode(tone_CN, format)  # type: ignore[arg-type]
        assert run(web.url(f"typed/{format}.bin?type=text/plain")).file.endswith(f".{format}")
    web.files["tagged"] = b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(2_048) + encode(tone_CN, "mp3")
    assert run(web.url("typed/tagged?type=audio/mpeg")).file.endswith(".mp3")
    with pytest.raises(SongError, match="comes as gzip, though asked not to"):
        run(web.url("typed/mp3.bin?type=audio/mpeg&gzip=1"))
    with pytest.raises(SongError, match=r"1 s are more than max_duration_s = 0.5"):
        run(web.url("typed/flac.bin?type=audio/flac"), max_duration_s=0.5)


def test_a_redirect_is_followed_under_the_other_hosts_rules(run: Run, web: WebServer, wav: bytes) -> None:
    target = web.url("file/song.wav", host="localhost")
    media = run(web.url(f"redirect/?to={target}"))
    assert (media.final_url, run.bytes_of(media)) == (target, wav)
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
    with serve(_self_signed(tmp_path)) as secure:
        secure.files["song.wav"] = b""
        with pytest.raises(SongError, match=r"no trusted TLS connection \(.*self.signed.*SSL_CERT_FILE") as caught:
            run(secure.url("file/song.wav"))
        assert not isinstance(caught.value, Unavailable)
        assert secure.seen == []
    with pytest.raises(SongError, match="no trusted TLS connection"):
        run(web.url("file/song.wav").replace("http:", "https:"))


def test_a_store_that_fails_says_nothing_about_the_song(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder belongs")
    with pytest.raises(StorageError, match="cannot be used"):
        Run(tmp_path)(web.url("file/song.wav"))


def test_a_cache_that_fails_says_nothing_about_the_song(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder belongs")
    with pytest.raises(UserError, match=r"cannot be written.*BACKLINE_CACHE") as caught:
        Run(tmp_path)(web.url("file/song.wav"))
    assert not isinstance(caught.value, SongError)


def test_two_workers_with_one_address_do_not_mix_their_bytes(run: Run, web: WebServer, wav: bytes) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: run(web.url("slow/song.wav?s=0.1")), range(3)))
    assert [run.bytes_of(media) for media in found] == [wav] * 3
    assert len(web.asked("slow")) == 1, "who waited finds what the other stored"
    assert run.partials == []


def test_a_removed_song_leaves_neither_file_nor_record(run: Run, web: WebServer) -> None:
    url = web.url("file/song.wav")
    run(url)
    remove_media(run.store, url)
    assert run.stored == []
    remove_media(run.store, url)


def test_a_record_of_another_version_is_made_again(run: Run, web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    url = web.url("file/song.wav")
    media = run(url)
    (run.store / f"records/{sha256(url.encode()).hexdigest()[:32]}.json").write_bytes(b'{"page": null, "colour": "red"}')
    assert replace(run(url), fetched_at=media.fetched_at) == media
    assert "is not a record of this version" in caplog.text


# Pages.


@pytest.fixture
def page(web: WebServer) -> str:
    audio = web.url("file/song.wav", host="localhost")
    web.pages["song"] = f'<html><head><title>A song</title></head><body><audio src="{audio}"></audio></body></html>'
    return web.url("page/song")


def test_a_pages_sound_is_found_and_downloaded_politely(run: Run, web: WebServer, page: str, wav: bytes) -> None:
    media = run(page, row={"license": "CC0"})
    assert run.bytes_of(media) == wav
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
    _assert_rate(web, begun, 0.1)


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


def test_without_yt_dlp_a_page_names_the_extra(run: Run, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipelines.pages", raising=False)
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(SongError, match=r"pip install 'backline\[pages\]'"):
        run(page)


def _self_signed(folder: Path) -> ssl.SSLContext:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
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
