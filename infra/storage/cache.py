"""Copies of stored objects on this machine: OBJECTS/PLACE/VERSION, in use for as long as somebody asks for them.

A copy is dated by its last use. One that another version has followed goes after a day, in which whoever was given its path may still open
it; the last one of a place goes after a month.
"""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from infra.storage.atomic import PARTIAL_SUFFIX

FOLLOWED_DAYS, UNUSED_DAYS = 1.0, 30.0
DAY_S = 86_400.0


def in_use(copy: Path) -> bool:
    """Dates the copy; False where there is none."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def prune(objects: Path) -> None:
    """Removes what nobody has used for long, and what killed processes left. Several may do so at a time; what cannot be removed stays."""
    for place in list(objects.iterdir()):
        with suppress(OSError):  # another process was first, or it is not ours to remove
            if place.name.endswith(PARTIAL_SUFFIX):
                if _unused_days(place) > FOLLOWED_DAYS:
                    shutil.rmtree(place)
                continue
            for number, copy in enumerate(sorted(place.iterdir(), key=_unused_days)):
                if _unused_days(copy) > (FOLLOWED_DAYS if number else UNUSED_DAYS):
                    _remove(copy, objects)
            if _unused_days(place) > FOLLOWED_DAYS:
                place.rmdir()  # where it holds no copy


def _unused_days(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / DAY_S


def _remove(copy: Path, objects: Path) -> None:
    """As a whole: nobody finds half of it under its name."""
    going = Path(tempfile.mkdtemp(dir=objects, suffix=PARTIAL_SUFFIX))
    try:
        copy.rename(going / copy.name)
    finally:
        shutil.rmtree(going, ignore_errors=True)
