"""When a stage of the engine counts as standing still."""

from serving.engine.sign_of_life import SignOfLife


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_stage_without_requests_never_stalls() -> None:
    clock = Clock()
    life = SignOfLife(clock)
    clock.now_s += 1_000
    assert life.stalled_s() == 0


def test_time_runs_from_the_first_request_and_from_each_piece_of_work() -> None:
    clock = Clock()
    life = SignOfLife(clock)
    clock.now_s += 1_000
    with life.inside():
        clock.now_s += 3
        assert life.stalled_s() == 3
        life.went_on()
        clock.now_s += 2
        assert life.stalled_s() == 2
    assert life.stalled_s() == 0


def test_who_comes_later_is_no_sign_of_life_and_who_leaves_is_none() -> None:
    clock = Clock()
    life = SignOfLife(clock)
    with life.inside():
        clock.now_s += 5
        with life.inside():
            clock.now_s += 1
        assert life.stalled_s() == 6


def test_a_stage_that_was_empty_begins_anew() -> None:
    clock = Clock()
    life = SignOfLife(clock)
    with life.inside():
        clock.now_s += 5
    clock.now_s += 50
    with life.inside():
        assert life.stalled_s() == 0
