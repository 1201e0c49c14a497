"""The lease on a real S3 server: what holds on a disk holds where only conditional puts order who comes first."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage.lease import FOLDER, Lease, held
from infra.storage.place import Place
from tests.lease_race import eight_at_once

ROOT = Path(__file__).parents[2]
OTHER = Lease(id="a", work="prepare", machine="another", host="node-7", pid=11, started="1", since="2026-01-01T00:00:00+00:00")
HOLDER = """
import sys, time
from infra.errors import UserError
from infra.storage.lease import held
from infra.storage.place import Place

out = Place(sys.argv[1])
out.check()
print("ready", flush=True)
sys.stdin.readline()
try:
    with held(out, "compact"):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture
def out(bucket: str) -> Place:
    return Place(f"{bucket}/latents")


def leases(out: Place) -> list[Lease]:
    return [Lease(**json.loads(place.read_bytes())) for place in (out / FOLDER).list()]


@contextmanager
def processes(out: Place, count: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that take the lease when they are given a line, say how it went, and give it back at the next line."""
    command = [sys.executable, "-c", HOLDER, out.uri]
    started = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        assert [said(process) for process in started] == ["ready"] * count
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_processes_at_once_one_gets_it_and_the_other_is_told_who(out: Place) -> None:
    with processes(out, 2) as both:
        for process in both:
            tell(process)
        answers = {process: said(process) for process in both}
        (holder,) = (process for process, answer in answers.items() if answer == "held")
        (refusal,) = (answer for answer in answers.values() if answer != "held")
        assert f"{out} is being changed by compact on" in refusal
        assert f"(process {holder.pid}, since" in refusal
        tell(holder)
        assert holder.wait(60) == 0
    with held(out, "prepare"):
        assert [lease.work for lease in leases(out)] == ["prepare"]
    assert list(out.entries()) == []


def test_of_many_threads_that_take_the_next_number_one_gets_it(out: Place) -> None:
    """Eight at one barrier: each writes where there is nothing, so the server must refuse seven."""
    assert eight_at_once(out) == (1, 7)
    assert list(out.entries()) == []


def test_after_a_kill_the_next_takes_over_at_once_and_gives_it_back(out: Place) -> None:
    def never(_: float) -> None:
        raise AssertionError("nothing is waited for")

    with processes(out, 1) as (process,):
        tell(process)
        assert said(process) == "held"
        with pytest.raises(UserError, match=rf"compact on .* \(process {process.pid}, since .*or stop it"), held(out, "prepare"):
            pass
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with held(out, "prepare", sleep=never) as lease:
            assert [found.work for found in leases(out)] == ["prepare"]
            lease.check()
    assert list(out.entries()) == []


def test_a_lease_of_another_machine_is_watched_taken_over_and_the_one_that_slept_notices(out: Place) -> None:
    place = out / FOLDER / "00000003.json"
    place.write_bytes(json.dumps(vars(OTHER)).encode())

    def renewed(_: float) -> None:
        place.write_bytes(json.dumps(vars(replace(OTHER, renewals=1))).encode())

    with pytest.raises(UserError, match=r"prepare on node-7 \(process 11"), held(out, "compact", sleep=renewed):
        pass
    waited: list[float] = []
    with held(out, "compact", renew_s=0.05, stale_s=1.0, sleep=waited.append) as lease:
        assert sum(waited) == pytest.approx(1.0)
        assert [found.work for found in leases(out)] == ["compact"]
        pause = threading.Event()
        while leases(out)[0].renewals < 2:
            pause.wait(0.05)
        # Another machine took this one for dead.
        (out / FOLDER / "00000009.json").write_bytes(json.dumps(vars(OTHER)).encode())
        with pytest.raises(UserError, match="run it again"):
            lease.check()
    assert leases(out) == [OTHER]
