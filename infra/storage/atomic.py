"""Local writes of which a reader sees all or nothing."""

import os
import tempfile
from pathlib import Path

PARTIAL_SUFFIX = ".part"


def write_partial(path: Path, data: bytes) -> Path:
    """A file beside `path` with all of `data` on the disk, to be renamed or linked to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600, which hides a dataset from other accounts
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def sync_folder(folder: Path) -> None:
    """A rename survives a loss of power once its folder is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
