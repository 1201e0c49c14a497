"""Places on a real S3 server: the same verbs, and what each misconfiguration says."""

import io
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from infra.storage.place import MissingObjectError, Place, StorageError, localise


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
