"""Acquisition as a whole, against a real server on loopback: what is stored, what is refused, and whose fault it is."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.audio.files import encode
from infra.errors import UserError
from infra.storage.place import StorageError
from pipelines.acquire.acquire import AcquireConfig, acquire_song, remove_media, with_media
from pipelines.acquire.http_faults import Unavailable
from pipelines.acquire.provenance import read_record
from pipelines.song import FoundSong, MediaFile, SongError
from tests.acquire_parts import OPERATOR, QUICK, SONG, Run, song_server
from tests.http_server import WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    with song_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_song_is_stored_with_its_provenance_and_never_asked_for_again(run: Run, web: WebServer) -> None:
    url = web.url("file/song.wav")
    begun = datetime.now(UTC) - timedelta(seconds=1)
    media = run(url, row={"title": "Tür", "artist": "A", "license": "CC-BY-4.0"})
    digest = sha256(SONG).hexdigest()
    assert run.bytes_of(media) == SONG
    assert media.file == f"files/{digest}.wav"
    assert (media.url, media.final_url, media.sha256, media.bytes, media.content_type) == (url, url, digest, len(SONG), "audio/wav")
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
    assert run.bytes_of(run(url)) == SONG, "a record without its file does not count"
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
    with pytest.raises(UserError, match=r"operator is empty.*by mail or URL \(--acquire.operator\)") as caught:
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
        run(web.url("typed/mp3.bin?type=audio/mpeg&coded=gzip"))
    with pytest.raises(SongError, match=r"1 s are more than max_duration_s = 0.5"):
        run(web.url("typed/flac.bin?type=audio/flac"), max_duration_s=0.5)


def test_a_store_that_fails_says_nothing_about_the_song(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder belongs")
    with pytest.raises(StorageError, match="cannot be used"):
        Run(tmp_path)(web.url("file/song.wav"))


def test_a_cache_that_fails_says_nothing_about_the_song(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder belongs")
    with pytest.raises(UserError, match=r"cannot be written.*BACKLINE_CACHE") as caught:
        Run(tmp_path)(web.url("file/song.wav"))
    assert not isinstance(caught.value, SongError)


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
