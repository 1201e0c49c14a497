"""Places on a local disk: names, atomicity, faults."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.settings import S3Access
from infra.storage.atomic import write_partial
from infra.storage.place import MissingObjectError, Place, StorageError, localise


def test_joining_and_names(tmp_path: Path) -> None:
    place = Place("s3://bucket/a/") / "b" / "/c.bin"
    assert (place.uri, place.bucket, place.key, place.name) == ("s3://bucket/a/b/c.bin", "bucket", "a/b/c.bin", "c.bin")
    assert Place(f"file://{tmp_path}") == Place(str(tmp_path))
    assert Place("relative").path.is_absolute()


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///key", "ftp://host/x", "gs://bucket"])
def test_what_is_no_place_is_refused(uri: str) -> None:
    with pytest.raises(UserError):
        Place(uri)


def test_read_write_list_delete(tmp_path: Path) -> None:
    root = Place(str(tmp_path / "data"))
    assert root.list() == []
    for name in ("b.txt", "a/x.bin", "a/y.txt"):
        (root / name).write_bytes(name.encode())
    assert [place.uri.removeprefix(f"{root}/") for place in root.list()] == ["a/x.bin", "a/y.txt", "b.txt"]
    assert root.list(prefix="a/", suffix=".txt") == [root / "a/y.txt"]
    assert (root / "a/x.bin").read_bytes() == b"a/x.bin"
    assert (root / "a/x.bin").size() == 7
    assert not (root / "a").exists()
    (root / "b.txt").delete()
    (root / "b.txt").delete()
    with pytest.raises(MissingObjectError, match=r"b\.txt"):
        (root / "b.txt").read_bytes()
    write_partial((root / "a/z.txt").path, b"never renamed")
    (root / "a").delete_tree()
    (root / "a").delete_tree()
    assert list(root.path.iterdir()) == []


def test_of_many_writers_exactly_one_puts_if_absent(tmp_path: Path) -> None:
    place = Place(str(tmp_path)) / "once"
    wrote: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: wrote.append(n) if place.put_if_absent(str(n).encode() * 9) else None) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrote) == 1
    assert place.read_bytes() == str(wrote[0]).encode() * 9
    assert [file.name for file in tmp_path.iterdir()] == ["once"]


def test_a_killed_writer_leaves_the_old_content_and_no_visible_rest(tmp_path: Path) -> None:
    place = Place(str(tmp_path)) / "object"
    place.write_bytes(b"old")
    code = (
        "import os, signal, infra.storage.place as storage\n"
        "storage.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"storage.Place({place.uri!r}).write_bytes(b'new' * 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert place.read_bytes() == b"old"
    assert Place(str(tmp_path)).list() == [place]


def test_a_file_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="check the path"):
        (Place(str(tmp_path / "file")) / "below").write_bytes(b"x")


def test_folders_travel_both_ways(tmp_path: Path) -> None:
    source, place = tmp_path / "source", Place(str(tmp_path / "place"))
    (source / "deep").mkdir(parents=True)
    (source / "deep/one").write_bytes(b"1")
    (source / "two").write_bytes(b"2")
    assert place.upload(source) == [place / "deep/one", place / "two"]
    place.download(tmp_path / "back")
    assert (tmp_path / "back/deep/one").read_bytes() == b"1"
    assert localise(place) == place.path
    with pytest.raises(MissingObjectError):
        localise(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["../../evil.txt", "deep/../../../evil.txt", "/{folder}/evil.txt"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On a disk there is no such name; in a bucket any may be."""
    place, folder = Place(str(tmp_path / "bucket/prefix")), tmp_path / "cache/a"
    name = name.format(folder=str(tmp_path).strip("/"))
    (place / "a-good.txt").write_bytes(b"good")
    (tmp_path / "evil.txt").write_bytes(b"as it was")
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(Place, "entries", lambda _: iter([("a-good.txt", "1"), (name, "2")]))
    with pytest.raises(StorageError, match="leads out of"):
        place.download(folder)
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()) in ([], ["a-good.txt"])


def test_keys_travel_in_a_pickle_and_never_in_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-key")
    place = Place("s3://bucket/x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    again = pickle.loads(pickle.dumps(place / "y"))
    assert again.access.secret_access_key == "hidden-key"
    assert "hidden" not in f"{again!r} {again} {again.access!r}"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device: free some space"):
        (Place(str(tmp_path)) / "file").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_bucket_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "key")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StorageError, match="not a valid bucket or name"):
        Place("s3://my bucket/x").read_bytes()


def test_a_local_place_under_an_access_stays_local(tmp_path: Path) -> None:
    _, path = Place(str(tmp_path), S3Access()).filesystem()
    assert path == str(tmp_path)


def test_a_new_file_is_readable_by_others(tmp_path: Path) -> None:
    (Place(str(tmp_path)) / "file").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
