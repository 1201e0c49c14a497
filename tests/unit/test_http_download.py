"""One file: what is continued, what is begun anew, and what is never stored."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from infra.audio.files import encode
from infra.storage.place import Place
from pipelines.acquire import download as http_download
from pipelines.acquire.http_faults import Unavailable
from pipelines.song import SongError
from tests.acquire_parts import BAD_DATE, OPERATOR, SONG, Run, song_server
from tests.http_server import LAST_MODIFIED, WebServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def web() -> Iterator[WebServer]:
    with song_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(autouse=True)
def small_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_download, "CHECKPOINT_BYTES", 2**15)


@pytest.mark.parametrize("option", ["", "&becomes=other.wav", "&plain=1", "&bare=1"])
def test_a_cut_connection_is_continued_or_begun_anew(run: Run, web: WebServer, option: str) -> None:
    web.files["other.wav"] = other = encode(np.full((1, 80_000), 0.25, np.float32))
    media = run(web.url(f"cut/song.wav?times=1{option}"))
    assert run.bytes_of(media) == (other if "becomes" in option else SONG)
    first, second = web.asked("cut")
    assert "range" not in first.headers
    if option == "&bare=1":
        assert "range" not in second.headers, "without a validator nothing can be continued"
    else:
        assert second.headers["range"] == f"bytes={len(SONG) // 4}-"
        assert second.headers["if-range"] == f'"{sha256(SONG).hexdigest()[:16]}"'
    assert run.partials == []


@pytest.mark.parametrize(
    "option",
    ["shift=1", "blind=1&becomes=short.wav", "blind=1&becomes=long.wav", "blind=1&becomes=same.wav", "blind=1&dated=1&becomes=long.wav"],
)
def test_what_does_not_continue_the_same_file_is_begun_anew(run: Run, web: WebServer, option: str) -> None:
    web.files["short.wav"] = encode(np.full((1, 30_000), 0.25, np.float32))
    web.files["long.wav"] = encode(np.full((2, 90_000), 0.25, np.float32))
    web.files["same.wav"] = encode(np.full((2, 88_200), 0.25, np.float32))
    media = run(web.url(f"cut/song.wav?times=1&{option}"))
    assert run.bytes_of(media) == (web.files[option.rpartition("=")[2]] if "becomes" in option else SONG)
    assert [seen.headers.get("range") for seen in web.asked("cut")] == [None, f"bytes={len(SONG) // 4}-", None]


def test_a_date_is_the_validator_where_the_etag_is_weak(run: Run, web: WebServer) -> None:
    assert run.bytes_of(run(web.url("cut/song.wav?weak=1"))) == SONG
    assert web.asked("cut")[1].headers["if-range"] == LAST_MODIFIED
    assert web.sent["/cut/song.wav"] == len(SONG), "nothing was sent twice"


@pytest.mark.parametrize("name", ["modified", "date"])
def test_a_date_that_is_none_is_no_validator(run: Run, web: WebServer, name: str) -> None:
    assert run.bytes_of(run(web.url(f"cut/song.wav?weak=1&{name}={BAD_DATE}"))) == SONG
    assert [seen.headers.get("range") for seen in web.asked("cut")] == [None, None], "it is begun anew"


def test_a_range_of_thousands_of_digits_is_another_files(run: Run, web: WebServer) -> None:
    assert run.bytes_of(run(web.url(f"cut/song.wav?times=1&span=bytes%20{'1' * 5_000}-2/3"))) == SONG
    assert [seen.headers.get("range") for seen in web.asked("cut")] == [None, f"bytes={len(SONG) // 4}-", None]


def test_another_files_bytes_never_pass_for_those_that_were_counted(tmp_path: Path) -> None:
    def partial() -> http_download.Partial:
        return http_download.Partial(tmp_path, "http://a/b", time.sleep)

    with partial() as first:
        first.begin(http_download.Download(url="http://a/b", etag='"old"', total=100))
        first.write(b"old" * 20)
        first.count()
    with partial() as second:
        assert (second.download.bytes, second.download.etag) == (60, '"old"')
        second.begin(http_download.Download(url="http://a/b", etag='"new"', total=100))
        second.write(b"new" * 30)  # and then it is killed
    with partial() as third:
        assert third.download == http_download.Download(url="http://a/b")
        assert third.path.stat().st_size == 0


def test_a_transfer_that_is_cut_again_and_again_goes_on_from_each_cut(run: Run, web: WebServer) -> None:
    assert run.bytes_of(run(web.url("cut/song.wav?times=2"))) == SONG
    starts = [int(seen.headers.get("range", "bytes=0-")[6:-1]) for seen in web.asked("cut")]
    assert starts == [0, len(SONG) // 4, len(SONG) * 3 // 4]


def test_a_host_that_gives_portions_is_asked_for_the_next(run: Run, web: WebServer) -> None:
    assert run.bytes_of(run(web.url("cut/song.wav?times=1&portion=200000"))) == SONG
    first = len(SONG) // 4
    assert [seen.headers.get("range") for seen in web.asked("cut")] == [None, f"bytes={first}-", f"bytes={first + 200_000}-"]


def test_a_stalled_host_is_given_up_and_the_next_run_asks_for_the_rest(run: Run, web: WebServer) -> None:
    url = web.url("stall/song.wav?at=100000&times=2")
    with pytest.raises(Unavailable, match=r"not a byte within 0.3 s; given up after 2 attempts: run again later with --retry acquire"):
        run(url, attempts=2)
    assert run.stored == []
    record = json.loads(next(path for path in run.partials if path.suffix == ".json").read_text())
    assert (record["url"], record["bytes"], record["total"]) == (url, 200_000, len(SONG))
    assert run.bytes_of(run(url)) == SONG
    assert [seen.headers.get("range") for seen in web.asked("stall")] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_killed_download_goes_on_where_it_was(run: Run, web: WebServer, tmp_path: Path) -> None:
    web.files["long.wav"] = long = encode(np.random.default_rng(1).uniform(-0.5, 0.5, (2, 1_500_000)).astype(np.float32))  # 6 MB
    url = web.url("stall/long.wav?at=3000000&times=1")
    script = (
        "import sys; from pathlib import Path; from infra.storage.place import Place; from pipelines.song import FoundSong\n"
        "from pipelines.acquire.acquire import AcquireConfig, acquire_media; from pipelines.acquire.host_limits import HostLimits\n"
        "acquire_media(FoundSong(url=sys.argv[1], source='urls', version='1', fetch=sys.argv[1]), Place(sys.argv[2] + '/store'),\n"
        f"    AcquireConfig(operator={OPERATOR!r}, private_hosts=('127.0.0.1',)), HostLimits(requests_per_s=1000),\n"
        "    Path(sys.argv[2] + '/cache'))"
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


def test_what_came_whole_before_a_kill_is_not_asked_for_again(run: Run, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            run(web.url("file/song.wav"))
    assert run.bytes_of(run(web.url("file/song.wav"))) == SONG
    assert len(web.asked("file")) == 1


def test_bytes_that_were_not_counted_are_not_trusted(run: Run, web: WebServer) -> None:
    url = web.url("stall/song.wav?at=100000&times=1")
    with pytest.raises(Unavailable):
        run(url, attempts=1)
    body = next(path for path in run.partials if not path.suffix)
    body.write_bytes(body.read_bytes() + b"garbage that a loss of power left")
    assert run.bytes_of(run(url)) == SONG


def test_a_slow_transfer_ends_at_its_limit_and_keeps_what_came(run: Run, web: WebServer) -> None:
    with pytest.raises(
        Unavailable, match=r"not whole after max_download_s = 0.4 of transfer: raise it, and run again with --retry acquire"
    ):
        run(web.url("drip/song.wav"), max_download_s=0.4)
    assert len(web.asked("drip")) == 1
    assert run.stored == []


def test_a_length_that_is_not_reached_is_never_stored(run: Run, web: WebServer) -> None:
    with pytest.raises(Unavailable, match=r"overstated/song.wav.*given up after 3 attempts"):
        run(web.url("overstated/song.wav"))
    assert run.stored == []


def test_no_more_is_taken_than_was_promised(run: Run, web: WebServer) -> None:
    assert run.bytes_of(run(web.url("understated/song.wav"))) == SONG[:-1_000]


def test_a_host_need_not_give_a_length(run: Run, web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    assert run.bytes_of(run(web.url("chunked/song.wav"))) == SONG
    assert "gives no length" not in caplog.text
    assert run.bytes_of(run(web.url("endless/song.wav"))) == SONG
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


def test_two_workers_with_one_address_do_not_mix_their_bytes(run: Run, web: WebServer) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: run(web.url("slow/song.wav?s=0.1")), range(3)))
    assert [run.bytes_of(media) for media in found] == [SONG] * 3
    assert len(web.asked("slow")) == 1, "who waited finds what the other stored"
    assert run.partials == []
