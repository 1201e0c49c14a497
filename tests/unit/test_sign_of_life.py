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


def test_time_runs_from_a_requests_coming_and_from_each_piece_of_its_work() -> None:
    clock = Clock()
    life = SignOfLife(clock)
    clock.now_s += 1_000
    with life.inside() as went_on:
        clock.now_s += 3
        assert life.stalled_s() == 3
        went_on()
        clock.now_s += 2
        assert life.stalled_s() == 2
    assert life.stalled_s() == 0


def test_neither_who_comes_later_nor_who_goes_on_hides_one_that_stands_still() -> None:
    clock = Clock()
    life = SignOfLife(clock)
    with life.inside():
        clock.now_s += 5
        with life.inside() as went_on:
            clock.now_s += 1
            went_on()
            assert life.stalled_s() == 6
        assert life.stalled_s() == 6


def test_what_is_said_of_a_request_that_has_left_is_not_heard() -> None:
    life = SignOfLife(clock := Clock())
    with life.inside() as went_on:
        pass
    went_on()
    clock.now_s += 5
    assert life.stalled_s() == 0
