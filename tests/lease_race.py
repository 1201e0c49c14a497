"""Eight threads that want one dataset at the same moment: the same race on a folder and on S3."""

import threading
from concurrent.futures import ThreadPoolExecutor

from infra.errors import UserError
from infra.storage.lease import held
from infra.storage.place import Place


def eight_at_once(out: Place) -> tuple[int, int]:
    """(the most that held the lease at a time, how many were refused)."""
    inside, most, refused = [0], [0], [0]
    start = threading.Barrier(8)

    def work(_: int) -> None:
        start.wait()
        try:
            with held(out, "prepare"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                start.wait()  # until all others were refused
                inside[0] -= 1
        except UserError:
            refused[0] += 1
            start.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    return most[0], refused[0]
