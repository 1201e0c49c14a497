"""Songs over which processes die: each is counted when it is begun, tried alone once one died over it, and given up after three."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipelines.song import Reject

Result = TypeVar("Result")

# A song over which so many processes died is rejected: the first may have been unlucky, the second too.
MAX_ATTEMPTS = 3


def attempts(ledger: Any, stage: str, songs: dict[int, str], fatal: Callable[[int], None]) -> Iterator[list[int]]:
    """The songs (index → address) in the groups in which to work on them, counted by the run's ledger, an actor: see `take_turns`."""
    import ray

    def ask(method: str, *given: Any) -> Any:
        return ray.get(getattr(ledger, method).remote(stage, *given))

    yield from take_turns(ask, songs, fatal)


def counted(ledger: Any, stage: str, url: str, work: Callable[[], Result], given_up: Callable[[Reject], Result]) -> Result:
    """`work()` on a single song, counted; once too many processes died over it, what `given_up` makes of the reject."""
    results: list[Result] = []
    for _ in attempts(ledger, stage, {0: url}, lambda _: results.append(given_up(Reject(stage="crash", reason=died(stage))))):
        results.append(work())
    return results[0]


def take_turns(ask: Callable[..., Any], songs: dict[int, str], fatal: Callable[[int], None]) -> Iterator[list[int]]:
    """All songs together, but each by itself once a process died over it; `fatal` is called for each over which too many died.

    `ask(method, addresses)` asks the ledger. A group is counted when it is begun and not before: a song behind the one that ends the
    process must not be counted with it.
    """
    counts: dict[int, int] = dict(zip(songs, ask("begun", list(songs.values())), strict=True))
    groups = [[index for index, count in counts.items() if not count], *([index] for index, count in counts.items() if count)]
    for group in filter(None, groups):
        if counts[group[0]] >= MAX_ATTEMPTS:
            fatal(group[0])  # its count stays: should another one end the task, it is not tried anew
            continue
        addresses = [songs[index] for index in group]
        ask("attempt", addresses)
        yield group
        # Ray runs a task again as a whole: songs that were through before another one ended it must not be counted with that one.
        ask("survived", addresses)


def died(stage: str) -> str:
    return f"{MAX_ATTEMPTS} processes died while they tried to {stage} it (out of memory?): give the workers more, or leave it out"
