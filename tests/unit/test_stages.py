"""Who is counted when a process dies over a song: the one that it died over, and nobody else for long."""

from typing import Any

import pytest

from pipelines.ledger import Ledger
from pipelines.stages import MAX_ATTEMPTS, take_turns


class DiedError(Exception):
    """Stands for a process that ends in the middle of its work; only what the ledger knows is left."""


def work_through(songs: list[str], killers: set[str], *, most_deaths: int) -> tuple[list[str], list[str], int]:
    """(done, given up, deaths) of a batch that is begun anew after every death, as Ray does."""
    ledger = Ledger({"source": "pairs:/x", "dataset": "/y"})

    def ask(method: str, *given: Any) -> Any:
        return getattr(ledger, method)("encode", *given)

    for deaths in range(most_deaths + 1):
        done: list[str] = []
        unfit: list[int] = []
        try:
            for group in take_turns(ask, dict(enumerate(songs)), unfit.append):
                if killers & {songs[index] for index in group}:
                    raise DiedError
                done += [songs[index] for index in group]
        except DiedError:
            continue
        return sorted(done), sorted(songs[index] for index in unfit), deaths
    raise AssertionError("the batch never ends")


@pytest.mark.parametrize("songs", [["a", "KILLER", "c", "d"], ["KILLER", "c"], ["c", "KILLER"], ["KILLER"]])
def test_only_the_song_that_kills_is_given_up_wherever_it_stands(songs: list[str]) -> None:
    innocent = [song for song in songs if song != "KILLER"]
    assert work_through(songs, {"KILLER"}, most_deaths=9) == (sorted(innocent), ["KILLER"], MAX_ATTEMPTS)


def test_two_that_kill_are_both_given_up_and_not_tried_anew_after_each_other() -> None:
    done, given_up, deaths = work_through(["a", "K1", "c", "K2", "d"], {"K1", "K2"}, most_deaths=9)
    assert (done, given_up) == (["a", "c", "d"], ["K1", "K2"])
    assert deaths <= 2 * MAX_ATTEMPTS - 1
