"""Work for processes of this machine, without Ray: results as they come."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    *,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """`work(item)` of every item, in at most `workers` processes, each begun with `initializer`; an error of one ends the rest."""
    if not items:
        return
    # spawn: a forked child would inherit locks of the threads that numpy, torch and a caller's Ray hold.
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn"), initializer=initializer, initargs=initargs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
