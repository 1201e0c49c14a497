"""Places: a local path or s3://bucket/prefix behind one set of verbs. The only import of boto3.

Every write is atomic: a reader sees the whole object or none. Locally that is a temporary file, fsync and a rename; on S3 one put.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from infra.settings import S3_ENVIRONMENT, S3Access, Settings, export
from infra.storage.atomic import PARTIAL_SUFFIX, sync_folder, write_partial
from infra.storage.cache import in_use, prune

if TYPE_CHECKING:
    import pyarrow.fs

# An endpoint that is not there is known in about ten seconds: 2 attempts of 4 s and a pause.
CONNECT_TIMEOUT_S = 4
READ_TIMEOUT_S = 60
ATTEMPTS = 3
CONFLICTS, CONFLICT_PAUSE_S = 6, 0.1
BUSY = (
    "ConditionalRequestConflict",
    "OperationAborted",
    "409",
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "500",
    "502",
    "503",
    "504",
)
WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken", "403", "Forbidden")


class StorageError(UserError):
    """A place that cannot be reached, read or written; the message says what to set."""


class MissingObjectError(StorageError):
    """Nothing is stored under this name."""


class UnreachableStorageError(StorageError):
    """A server that does not answer, or is too busy to: the same may work later."""


@dataclass(frozen=True)
class Place:
    """A local path or an S3 address; `place / "name"` goes deeper. Pickles with the access it was made with, for use in Ray's workers."""

    uri: str
    access: S3Access | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        uri = self.uri
        if uri.startswith("s3://"):
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            if not bucket:
                raise UserError(f"{uri!r} names no bucket: write s3://bucket/prefix")
            object.__setattr__(self, "uri", f"s3://{bucket}/{key.strip('/')}".rstrip("/"))
            if self.access is None:
                object.__setattr__(self, "access", Settings.from_environment().s3)
        elif "://" in uri and not uri.startswith("file://"):
            raise UserError(f"{uri!r} is neither a local path nor s3://bucket/prefix: use one of these")
        elif not uri:
            raise UserError("the place is empty: give a local path or s3://bucket/prefix")
        else:
            object.__setattr__(self, "uri", str(Path(uri.removeprefix("file://")).expanduser().absolute()))

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "Place":
        return replace(self, uri=f"{self.uri}/{name.strip('/')}")

    @property
    def is_s3(self) -> bool:
        return self.uri.startswith("s3://")

    @property
    def name(self) -> str:
        """The last part, as a file name."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        """The local path; only for a local place."""
        if self.is_s3:
            raise UserError(f"{self.uri} is not a local path here: give a local folder")
        return Path(self.uri)

    @property
    def bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def key(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[2]

    def read_bytes(self) -> bytes:
        """The whole object; MissingObjectError when there is none."""
        with _explained(self):
            if self.is_s3:
                return bytes(_client(self.access).get_object(Bucket=self.bucket, Key=self.key)["Body"].read())
            return self.path.read_bytes()

    def write_bytes(self, data: bytes) -> None:
        """Write or replace the object, atomically."""
        with _explained(self):
            if self.is_s3:
                _client(self.access).put_object(Bucket=self.bucket, Key=self.key, Body=data)
            else:
                partial = write_partial(self.path, data)
                partial.replace(self.path)
                sync_folder(self.path.parent)

    def put_if_absent(self, data: bytes) -> bool:
        """Write the object unless one is there already; whether this call wrote it. Of many at once exactly one writes."""
        with _explained(self):
            if self.is_s3:
                return self._put_if_absent_on_s3(data)
            partial = write_partial(self.path, data)
            try:
                os.link(partial, self.path)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
            sync_folder(self.path.parent)
            return True

    def _put_if_absent_on_s3(self, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(CONFLICTS):
            try:
                _client(self.access).put_object(Bucket=self.bucket, Key=self.key, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                code = error.response["Error"]["Code"]
                # A conflict says that another is at work on this name, which may come to nothing: S3 wants the put repeated.
                conflict = code in ("ConditionalRequestConflict", "OperationAborted", "409")
                if code in ("PreconditionFailed", "412") or (conflict and self.exists()):
                    return False
                if not conflict or attempt == CONFLICTS - 1:
                    raise
                time.sleep(CONFLICT_PAUSE_S * 2**attempt)
        raise AssertionError("CONFLICTS is at least 1")

    def sha256(self) -> bytes:
        """Of the object, without holding a local file in memory; MissingObjectError when there is none."""
        if self.is_s3:
            return hashlib.sha256(self.read_bytes()).digest()
        with _explained(self), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def exists(self) -> bool:
        """Whether an object of exactly this name is there (a folder is not an object)."""
        try:
            self.size()
        except MissingObjectError:
            return False
        return True

    def size(self) -> int:
        """Bytes stored; MissingObjectError when there is none."""
        return self._status()[0]

    def version(self) -> str:
        """Changes with the content (S3: the ETag; locally: size and time); MissingObjectError when there is no such object."""
        return self._status()[1]

    def _status(self) -> tuple[int, str]:
        with _explained(self):
            if self.is_s3:
                head = _client(self.access).head_object(Bucket=self.bucket, Key=self.key)
                return int(head["ContentLength"]), str(head["ETag"]).strip('"')
            status = self.path.stat()
            if not self.path.is_file():
                raise FileNotFoundError(self.uri)
            return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"

    def list(self, prefix: str = "", suffix: str = "") -> "list[Place]":
        """Every object below, at any depth, whose relative name begins and ends so; sorted; empty when nothing is there."""
        names = [name for name, _ in self.entries() if name.startswith(prefix) and name.endswith(suffix)]
        return [self / name for name in sorted(names)]

    def entries(self) -> Iterator[tuple[str, str]]:
        """(name relative to this place, version) of every object below; the version changes with the content."""
        with _explained(self):
            if self.is_s3:
                prefix = f"{self.key}/" if self.key else ""
                for page in _client(self.access).get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                    for found in page.get("Contents", []):
                        if not found["Key"].endswith("/"):
                            yield found["Key"].removeprefix(prefix), found["ETag"].strip('"')
            else:
                for path in self.path.rglob("*"):
                    if path.is_file() and not path.name.endswith(PARTIAL_SUFFIX):
                        yield path.relative_to(self.path).as_posix(), Place(str(path)).version()

    def delete(self) -> None:
        """Remove the object; nothing happens when there is none."""
        with _explained(self):
            if self.is_s3:
                _client(self.access).delete_object(Bucket=self.bucket, Key=self.key)
            else:
                self.path.unlink(missing_ok=True)

    def delete_tree(self) -> None:
        """Remove every object below; locally the folder itself, with what killed writes left in it, which no listing shows."""
        with _explained(self):
            if self.is_s3:
                for name, _ in list(self.entries()):
                    (self / name).delete()
            elif self.path.exists():
                shutil.rmtree(self.path)

    def check(self) -> None:
        """StorageError with its remedy unless this place can be listed; for S3 one request, so that work does not start in vain."""
        with _explained(self):
            if self.is_s3:
                _client(self.access).list_objects_v2(Bucket=self.bucket, Prefix=self.key, MaxKeys=1)

    def filesystem(self) -> "tuple[pyarrow.fs.FileSystem, str]":
        """(pyarrow filesystem, path in it), for Ray Data and Ray Train."""
        import pyarrow.fs

        if not self.is_s3 or self.access is None:
            return pyarrow.fs.LocalFileSystem(), self.uri
        export(S3_ENVIRONMENT)
        scheme, _, server = (self.access.endpoint_url or "").partition("://")
        options = {
            "region": self.access.region,
            "access_key": self.access.access_key_id,
            "secret_key": self.access.secret_access_key,
            "session_token": self.access.session_token,
            "endpoint_override": server.rstrip("/") or None,
            "scheme": scheme or None,
            "tls_ca_file_path": self.access.ca_bundle,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "request_timeout": READ_TIMEOUT_S,
        }
        return pyarrow.fs.S3FileSystem(
            **{name: value for name, value in options.items() if value is not None}
        ), f"{self.bucket}/{self.key}".rstrip("/")

    def download(self, folder: Path) -> Sequence[Path]:
        """Copy every object below this place into a local folder; the files written.

        StorageError for a name that leads out of the folder: whoever may write to a bucket chooses the names in it.
        """
        written = []
        for name, _ in sorted(self.entries()):
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise StorageError(f"{self} holds an object {name!r}, a name that leads out of {folder}: rename or remove it")
            target.parent.mkdir(parents=True, exist_ok=True)
            with _explained(self / name):
                if self.is_s3:
                    _client(self.access).download_file(self.bucket, (self / name).key, str(target))
                else:
                    shutil.copyfile(self.path / name, target)
            written.append(target)
        return written

    def upload(self, folder: Path) -> "Sequence[Place]":
        """Copy every file of a local folder below this place; the objects written, each atomically, in the order of their names."""
        written = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = self / path.relative_to(folder).as_posix()
            with _explained(target):
                if self.is_s3:
                    _client(self.access).upload_file(str(path), self.bucket, target.key)
                else:
                    target.write_bytes(path.read_bytes())
            written.append(target)
        return written


def localise(uri: str | Place, cache: Path | None = None) -> Path:
    """A local file or folder with what `uri` holds: the path itself, or a copy in the cache, made once for each version of the content."""
    place = uri if isinstance(uri, Place) else Place(uri)
    if not place.is_s3:
        if not place.path.exists():
            raise MissingObjectError(f"{place} does not exist: check the path")
        return place.path
    single = place.key != "" and place.exists()
    root = (cache or Settings.from_environment().cache) / "objects"
    for _ in range(ATTEMPTS):
        versions = [(place.name, place.version())] if single else sorted(place.entries())
        if not versions:
            raise MissingObjectError(f"{place} holds nothing: check the bucket and the prefix")
        try:
            copy = _cached(place, single, versions, root)
        except MissingObjectError:
            continue  # what was listed is replaced: look again
        if copy is not None:
            return copy
    raise StorageError(f"{place} changed each of {ATTEMPTS} times while it was copied: try again when nobody writes there")


def _cached(place: Place, single: bool, versions: Sequence[tuple[str, str]], root: Path) -> Path | None:
    """The cache's copy of these versions; None when something else was there by the time that it was made."""
    kept = root / _digest((place.access and place.access.endpoint_url, place.uri)) / _digest(versions)
    if not in_use(kept):
        root.mkdir(parents=True, exist_ok=True)
        prune(root)
        arriving = Path(tempfile.mkdtemp(dir=root, suffix=PARTIAL_SUFFIX))
        try:
            if single:
                (arriving / place.name).write_bytes(place.read_bytes())
            else:
                place.download(arriving / place.name)
            if ([(place.name, place.version())] if single else sorted(place.entries())) != versions:
                return None
            kept.parent.mkdir(exist_ok=True)
            arriving.rename(kept)
        except OSError:
            if not kept.exists():  # otherwise another process was first, with the same content
                raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
    return kept / place.name


def _digest(of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()[:24]


@lru_cache(maxsize=16)
def _client(access: S3Access) -> Any:
    import boto3
    from botocore.config import Config

    # A session of its own: the default one keeps the keys of whoever in this process asked first.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=access.endpoint_url,
        region_name=access.region,
        aws_access_key_id=access.access_key_id,
        aws_secret_access_key=access.secret_access_key,
        aws_session_token=access.session_token,
        verify=access.ca_bundle,  # None: boto's own bundle
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if access.endpoint_url else "auto"},
            max_pool_connections=32,
        ),
    )


@contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Turn what boto and the operating system raise into StorageError with a remedy."""
    if not place.is_s3:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(f"{place} does not exist: check the path") from error
        except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise StorageError(f"{place} cannot be used ({error.strerror}): check the path and its permissions") from error
        except OSError as error:
            remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
            raise StorageError(f"{place}: {error.strerror or error}: {remedy}, then run the command again") from error
        return
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as boto

    access = place.access or S3Access()
    server = access.endpoint_url or f"Amazon S3 in {access.region}"
    try:
        yield
    except (boto.ClientError, S3UploadFailedError) as error:
        # An upload's own error hides the server's answer behind it.
        answer = (getattr(error, "response", None) or getattr(error.__context__, "response", {})).get("Error", {})
        code = str(answer.get("Code", "unknown"))
        if code in ("NoSuchKey", "404", "NotFound"):
            raise MissingObjectError(f"{place} does not exist at {server}: check the bucket and the name") from error
        if code == "NoSuchBucket":
            raise StorageError(f"{place}: {server} has no bucket {place.bucket!r}: create it, or name another") from error
        if code in WRONG_KEYS:
            raise StorageError(
                f"{place}: {server} refused the keys ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights"
            ) from error
        kind = UnreachableStorageError if code in BUSY else StorageError
        raise kind(f"{place}: {server} answered {code}: {answer.get('Message') or 'no message'}") from error
    except boto.ParamValidationError as error:
        raise StorageError(f"{place} is not a valid bucket or name: use letters, digits, dots and hyphens in the bucket") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError(f"{place}: no keys for {server}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (boto.ConnectionError, boto.HTTPClientError, boto.ConnectTimeoutError, boto.EndpointConnectionError) as error:
        raise UnreachableStorageError(f"{place}: {server} cannot be reached: start it, or set AWS_ENDPOINT_URL to its address") from error
