"""Places on a real S3 server: the same verbs, and what each misconfiguration says."""

import io
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from infra.storage.atomic import PARTIAL_SUFFIX
from infra.storage.cache import DAY_S
from infra.storage.place import MissingObjectError, Place, StorageError, UnreachableStorageError, localise


def test_read_write_list_delete(bucket: str) -> None:
    root = Place(bucket) / "data"
    assert root.list() == []
    for name in ("b.txt", "a/x.bin", "a/y.txt"):
        (root / name).write_bytes(name.encode())
    assert [place.uri.removeprefix(f"{root}/") for place in root.list()] == ["a/x.bin", "a/y.txt", "b.txt"]
    assert root.list(prefix="a/", suffix=".txt") == [root / "a/y.txt"]
    assert (root / "a/x.bin").read_bytes() == b"a/x.bin"
    assert (root / "a/x.bin").size() == 7
    assert not (root / "a").exists()
    version = (root / "b.txt").version()
    (root / "b.txt").write_bytes(b"other")
    assert (root / "b.txt").version() != version
    (root / "b.txt").delete()
    (root / "b.txt").delete()
    with pytest.raises(MissingObjectError, match=r"b\.txt"):
        (root / "b.txt").read_bytes()
    (root / "ab").write_bytes(b"another name")
    (root / "a").delete_tree()
    (root / "a").delete_tree()
    assert root.list() == [root / "ab"]


def test_of_many_writers_exactly_one_puts_if_absent(bucket: str) -> None:
    place = Place(bucket) / "once"
    wrote: list[int] = []
    threads = [threading.Thread(target=lambda n=n: wrote.append(n) if place.put_if_absent(str(n).encode()) else None) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrote) == 1
    assert place.read_bytes() == str(wrote[0]).encode()


CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>a conflicting operation</Message></Error>"


@contextmanager
def conflicts_first(endpoint_url: str, conflicts: int) -> Iterator[tuple[str, list[str]]]:
    """Before a server: its first puts meet a conflict, as S3 answers while another's put is under way. Gives its address, and what it was
    asked."""
    seen: list[str] = []

    class Before(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(self.command)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT" and seen.count("PUT") <= conflicts:
                status, headers, answer = 409, [("Content-Type", "application/xml")], CONFLICT
            else:
                server = HTTPConnection(urlsplit(endpoint_url).netloc, timeout=60)
                server.request(self.command, self.path, body, dict(self.headers.items()))
                response = server.getresponse()
                status, headers, answer = response.status, response.getheaders(), response.read()
                server.close()
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer if self.command != "HEAD" else b"")

        do_GET = do_PUT = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    before = ThreadingHTTPServer(("127.0.0.1", 0), Before)
    threading.Thread(target=before.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{before.server_port}", seen
    finally:
        before.shutdown()
        before.server_close()


def test_a_conflict_says_nothing_of_who_wrote(bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.storage.place.CONFLICT_PAUSE_S", 0.001)
    once, never, there = (Place(bucket) / name for name in ("once", "never", "there"))
    there.write_bytes(b"another's")

    def behind(place: Place, endpoint_url: str) -> Place:
        assert place.access is not None
        return replace(place, access=replace(place.access, endpoint_url=endpoint_url))

    with conflicts_first(s3_server.endpoint_url, 2) as (url, seen):
        assert behind(once, url).put_if_absent(b"mine")
        assert once.read_bytes() == b"mine"
        assert seen.count("PUT") == 3
        assert not behind(once, url).put_if_absent(b"again")
    with conflicts_first(s3_server.endpoint_url, 1) as (url, _):
        assert not behind(there, url).put_if_absent(b"mine")
        assert there.read_bytes() == b"another's"
    with (
        conflicts_first(s3_server.endpoint_url, 99) as (url, _),
        pytest.raises(UnreachableStorageError, match="answered ConditionalRequestConflict: a conflicting operation"),
    ):
        behind(never, url).put_if_absent(b"mine")
    assert not never.exists()


def test_folders_travel_and_are_localised_once_a_version(bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/one").write_bytes(b"1")
    (source / "two").write_bytes(b"2")
    place = Place(bucket) / "folder"
    assert place.upload(source) == [place / "deep/one", place / "two"]
    first = localise(place, tmp_path / "cache")
    assert first.name == "folder"
    assert (first / "deep/one").read_bytes() == b"1"
    assert localise(place, tmp_path / "cache") == first
    (place / "two").write_bytes(b"newer")
    second = localise(place, tmp_path / "cache")
    assert second != first
    assert (second / "two").read_bytes() == b"newer"
    assert localise(place / "two", tmp_path / "cache").read_bytes() == b"newer"
    with pytest.raises(MissingObjectError, match="holds nothing"):
        localise(place / "nowhere", tmp_path / "cache")


def test_copies_that_nobody_uses_are_removed(bucket: str, tmp_path: Path) -> None:
    """A place that changes leaves a copy of each version, the first in use, the second not; another place is not asked for any more."""
    place, other, new = (Place(bucket) / name for name in ("changing", "another", "new"))
    for stored in (other, new):
        stored.write_bytes(b"x")
    copies = []
    for content in (b"first", b"second", b"third"):
        place.write_bytes(content)
        copies.append(localise(place, tmp_path))
    first, second, third = copies
    forgotten = localise(other, tmp_path)
    killed = Path(tempfile.mkdtemp(dir=tmp_path / "objects", suffix=PARTIAL_SUFFIX))

    def aged(days: float, *copies: Path) -> None:
        for copy in copies:
            os.utime(copy, (time.time() - days * DAY_S,) * 2)

    aged(2, second.parent, third.parent, forgotten.parent, killed)
    assert localise(place, tmp_path) == third, "used today"
    localise(new, tmp_path)
    assert [copy.exists() for copy in (first, second, third, forgotten, killed)] == [True, False, True, True, False]
    assert first.read_bytes() == b"first"
    aged(31, third.parent, forgotten.parent)
    (new / "newer").write_bytes(b"x")
    localise(new / "newer", tmp_path)
    assert [copy.exists() for copy in (first, third, forgotten)] == [True, False, False]
    assert localise(other, tmp_path).read_bytes() == b"x", "brought again"


def test_pyarrow_writes_and_reads_through_the_filesystem_and_it_pickles(bucket: str) -> None:
    filesystem, path = pickle.loads(pickle.dumps((Place(bucket) / "table").filesystem()))
    table = pa.table({"number": list(range(2_000_000))})  # more than one part of a multipart upload
    pq.write_table(table, f"{path}/file.parquet", filesystem=filesystem, compression="none")
    assert pq.read_table(f"{path}/file.parquet", filesystem=filesystem).equals(table)
    stored = (Place(bucket) / "table/file.parquet").read_bytes()
    assert len(stored) > 10 * 2**20
    assert pq.read_table(io.BytesIO(stored)).equals(table)


def test_a_missing_bucket_is_named(bucket: str, tmp_path: Path) -> None:
    nowhere = Place(f"{bucket}-nowhere")
    (tmp_path / "file").write_bytes(b"x")
    for act in (nowhere.check, nowhere.list, lambda: (nowhere / "x").write_bytes(b""), lambda: nowhere.upload(tmp_path)):
        with pytest.raises(StorageError, match="has no bucket"):
            act()


def test_wrong_keys_are_named(bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if not s3_server.checks_keys:
        pytest.skip("moto serves here, and takes any keys; Ceph would need apt-get, dpkg and Python 3.11")
    for name, value in (("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")):
        monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=r"refused the keys .*AWS_SECRET_ACCESS_KEY"):
            Place(bucket).check()


def test_no_keys_and_no_server_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        Place(bucket).check()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no keys"):
        Place(bucket).check()
