"""A lease on a dataset: one at a time, over as soon as its holder is."""

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


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "out"))


def leases(out: Place) -> list[Lease]:
    return [Lease(**json.loads(place.read_bytes())) for place in (out / FOLDER).list()]


def write(out: Place, lease: Lease) -> None:
    (out / FOLDER / "00000003.json").write_bytes(json.dumps(vars(lease)).encode())


@contextmanager
def another_process(out: Place) -> Iterator["subprocess.Popen[bytes]"]:
    code = (
        "import sys, time\nfrom infra.storage.lease import held\nfrom infra.storage.place import Place\n"
        "with held(Place(sys.argv[1]), 'compact'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, out.uri], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_it_is_there_while_the_work_is_and_gone_after_it(out: Place) -> None:
    with held(out, "prepare") as lease:
        (found,) = leases(out)
        assert (found.work, found.pid) == ("prepare", os.getpid())
        lease.check()
    assert list(out.entries()) == []
    with pytest.raises(ZeroDivisionError), held(out, "prepare"):
        raise ZeroDivisionError
    assert list(out.entries()) == []


def test_another_thread_and_another_process_are_refused_in_one_sentence(out: Place) -> None:
    with (
        held(out, "prepare"),
        pytest.raises(UserError, match=rf"prepare on .* \(process {os.getpid()}, since 2.*or stop it, and run"),
        held(out, "x"),
    ):
        pass
    with (
        another_process(out) as process,
        pytest.raises(UserError, match=rf"compact on .* \(process {process.pid}, since"),
        held(out, "prepare"),
    ):
        pass


def test_after_a_kill_the_next_goes_on_at_once(out: Place) -> None:
    def never(_: float) -> None:
        raise AssertionError("nothing is waited for")

    with another_process(out) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie, for nobody has waited for it
        with held(out, "prepare", sleep=never):
            assert [lease.work for lease in leases(out)] == ["prepare"]
    assert list(out.entries()) == []


def test_of_many_at_once_one_gets_it(out: Place) -> None:
    assert eight_at_once(out) == (1, 7)


def test_a_lease_of_another_machine_counts_as_long_as_it_is_renewed(out: Place) -> None:
    write(out, OTHER)
    waited: list[float] = []

    def renewed(seconds: float) -> None:
        waited.append(seconds)
        write(out, replace(OTHER, renewals=1))

    with (
        pytest.raises(UserError, match=r"prepare on node-7 \(process 11, since 2026-01-01T00:00:00\+00:00\)"),
        held(out, "x", sleep=renewed),
    ):
        pass
    assert waited == [10.0]
    waited.clear()
    with held(out, "x", sleep=waited.append):
        assert [lease.work for lease in leases(out)] == ["x"]
    assert sum(waited) == 120


def test_it_is_renewed_and_a_loss_of_it_is_noticed(out: Place) -> None:
    with held(out, "prepare", renew_s=0.01) as lease:
        deadline = threading.Event()
        while leases(out)[0].renewals < 2:
            assert not deadline.wait(0.01)
        (place,) = (out / FOLDER).list()
        place.delete()
        write(out, OTHER)
        with pytest.raises(UserError, match="run it again"):
            lease.check()
    assert leases(out) == [OTHER], "the other's is left alone"
