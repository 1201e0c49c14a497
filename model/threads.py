"""Threads that each run whole pieces of work, instead of all sharing every operation of one piece.

What comes out has the same bits on any number of threads, and on a busy machine nothing waits at the barriers inside operations.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def one_thread_workers(count: int, name: str) -> ThreadPoolExecutor:
    """Threads whose torch operations do not split their work. For other threads torch's number stays; none may start while this runs."""

    outside = torch.get_num_threads()
    all_there = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_begin)
    list(pool.map(lambda _: all_there.wait(), range(count)))  # each begins now, not at its first piece of work
    # OpenMP's number is a thread's own; the process's, for threads to come and for MKL, was set too and is put back.
    torch.set_num_threads(outside)
    return pool


def one_thread_worker(work: Callable[[], None], name: str) -> threading.Thread:
    """The same as a daemon: one thread that does `work`, and keeps no process from ending."""
    outside = torch.get_num_threads()
    there = threading.Event()

    def run() -> None:
        _begin()
        there.set()
        work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    there.wait()
    torch.set_num_threads(outside)
    return thread


def _begin() -> None:
    # torch gives a thread the process's number at its first look, and would overwrite what is set before that
    torch.get_num_threads()
    torch.set_num_threads(1)
