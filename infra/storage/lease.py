"""One command at a time on a dataset: who changes it holds a lease there, renews it, and gives it back.

A lease is an object lease/NUMBER.json, written only where there is none of that number (`Place.put_if_absent`): of many who take the next
one gets it. It ends when it is given back, when its process is gone (known at once on the same machine), or when it is not renewed.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place, StorageError

log = logging.getLogger(__name__)

FOLDER = "lease"
RENEW_S = 20.0
STALE_S = 120.0
"""Not renewed for so long: its holder is taken for dead. Storage that does not answer for a minute must not look like that."""
THREAD = "lease-"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who is at work."""

    id: str
    work: str
    """The command."""
    machine: str
    """Machine, boot and space of process numbers: within it a process number says who it is."""
    host: str
    pid: int
    started: str
    """When the process began, by the kernel's count; empty where it cannot be known."""
    since: str
    """ISO 8601, UTC."""
    renewals: int = 0


class Held:
    """A lease that this process has; a thread renews it."""

    def __init__(self, place: Place, lease: Lease, renew_s: float) -> None:
        self._place, self._lease, self._renew_s = place, lease, renew_s
        self._begun, self._over = threading.Event(), threading.Event()
        # Its name is the sign, within this process, that the lease is in use; so it lives before the lease is written.
        self._thread = threading.Thread(target=self._renew, name=f"{THREAD}{lease.id}", daemon=True)
        self._thread.start()

    def begin(self) -> bool:
        """Whether nobody had this number: then the lease is written, and renewed from now on."""
        try:
            written = self._place.put_if_absent(_text(self._lease))
        except BaseException:
            self._over.set()
            raise
        finally:
            self._begun.set()
        return written

    def check(self) -> None:
        """UserError when another has taken it over, as while this machine slept: what is done is kept, and no more may be written."""
        out = Place(self._place.uri.rpartition(f"/{FOLDER}/")[0], self._place.access)
        if not self._is_ours() or any(place.name > self._place.name for place in _places(out)):
            raise UserError(f"{out} is held by this {self._lease.work} no longer, which did not renew its lease in time: run it again")

    def end(self) -> None:
        """Stop renewing, and give it back. Where that fails it ends by itself."""
        self._over.set()
        self._begun.set()
        self._thread.join()
        try:
            if self._is_ours():
                self._place.delete()
        except UserError as error:
            log.warning("the lease is not given back: %s", error)

    def _is_ours(self) -> bool:
        found = _read(self._place)
        return found is not None and found.id == self._lease.id

    def _renew(self) -> None:
        lease = self._lease
        self._begun.wait()
        while not self._over.wait(self._renew_s):
            try:
                self.check()
                lease = replace(lease, renewals=lease.renewals + 1)
                self._place.write_bytes(_text(lease))
            except StorageError as error:
                log.warning("the lease is not renewed: %s", error)  # the next time may succeed
            except UserError as error:
                log.error("%s", error)
                return


@contextmanager
def held(
    out: Place, work: str, *, renew_s: float = RENEW_S, stale_s: float = STALE_S, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Held]:
    """Hold `out` for `work` while the block runs. UserError that names the other when somebody else does.

    A lease of another machine is watched for up to `stale_s` before it is taken over: their clocks need not agree.
    """
    lease = _take(out, work, renew_s, stale_s, sleep)
    try:
        yield lease
    finally:
        lease.end()


def check_held(out: Place) -> None:
    """UserError unless a lease of this process is the newest on `out`. Whatever changes what is stored asks, so that no command can forget
    its lease, or go on after another took it over.
    """
    newest = max(_leases(out).items(), key=lambda item: item[0].name, default=None)
    if newest is None or newest[1].machine != _machine() or newest[1].pid != os.getpid() or not _is_renewed_here(newest[1]):
        raise UserError(f"{out} is not, or no longer, held by this command, so another may change it: nothing is written; run it again")


def _is_renewed_here(lease: Lease) -> bool:
    return any(thread.name == f"{THREAD}{lease.id}" for thread in threading.enumerate())


def _take(out: Place, work: str, renew_s: float, stale_s: float, sleep: Callable[[float], None]) -> Held:
    while True:
        dead = _none_alive(out, renew_s, stale_s, sleep)
        number = 1 + max((int(place.name.removesuffix(".json")) for place in dead), default=0)
        lease = Lease(
            id=uuid4().hex,
            work=work,
            machine=_machine(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        place = out / FOLDER / f"{number:08}.json"
        taken = Held(place, lease, renew_s)
        # Who comes between reading and writing does the same, so at least one of the two sees the other.
        if taken.begin() and not _leases(out).items() - {place: lease, **dead}.items():
            for left in dead:
                left.delete()
            return taken
        taken.end()


def _none_alive(out: Place, renew_s: float, stale_s: float, sleep: Callable[[float], None]) -> dict[Place, Lease]:
    """The leases that lie there, all of them dead; UserError when one is alive."""
    found = _leases(out)
    for place, lease in found.items():
        if _is_alive(lease, place, renew_s, stale_s, sleep):
            raise UserError(
                f"{out} is being changed by {lease.work} on {lease.host} (process {lease.pid}, since {lease.since}): wait until that ends, "
                "or stop it, and run this again"
            )
        log.info("%s on %s (process %d) ended without giving %s back", lease.work, lease.host, lease.pid, out)
    return found


def _is_alive(lease: Lease, place: Place, renew_s: float, stale_s: float, sleep: Callable[[float], None]) -> bool:
    if lease.machine == _machine():
        if lease.pid == os.getpid():
            return _is_renewed_here(lease)
        return _runs(lease.pid, lease.started)
    log.warning("%s is held by %s on %s: looking for up to %g s whether it is alive", place, lease.work, lease.host, stale_s)
    waited_s = 0.0
    while waited_s < stale_s:
        sleep(min(renew_s / 2, stale_s - waited_s))
        waited_s += renew_s / 2
        now = _read(place)
        if now is None:
            return False  # given back
        if now != lease:
            return True
    return False


def _runs(pid: int, started: str) -> bool:
    """Whether the process that began then is there; one that has ended and is not waited for yet is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    now = _started(pid)
    return not started or not now or now == started


def _started(pid: int) -> str:
    """When the process began, in the kernel's ticks since boot; "ended" for a zombie, empty where it cannot be known."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "ended" if state in "ZX" else rest[18]


def _machine() -> str:
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:  # another system than Linux
        log.debug("a machine is known by its name alone here")
    return " ".join(parts)


def _places(out: Place) -> list[Place]:
    return (out / FOLDER).list(suffix=".json")


def _leases(out: Place) -> dict[Place, Lease]:
    read = {place: _read(place) for place in _places(out)}
    return {place: lease for place, lease in read.items() if lease is not None}


def _read(place: Place) -> Lease | None:
    """None when there is none any more."""
    try:
        return Lease(**json.loads(place.read_bytes()))
    except MissingObjectError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} is no lease: remove it when nothing is at work there") from error


def _text(lease: Lease) -> bytes:
    return (json.dumps(asdict(lease), indent=1) + "\n").encode()
