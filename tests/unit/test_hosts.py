"""The schedule of a host, on a clock that the test moves."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.errors import UserError
from pipelines.acquire.host_limits import MAX_HOLD_S, ROBOTS_CLAIM_S, ROBOTS_FAULT_KEPT_S, ROBOTS_KEPT_S, HostLimits, Robots


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> Callable[..., HostLimits]:
    return lambda **options: HostLimits(clock=clock, **options)


def test_each_reservation_is_the_next_slot_of_its_own_host(limits: Callable[..., HostLimits], clock: Clock) -> None:
    hosts = limits(requests_per_s=2)
    assert [hosts.reserve("a") for _ in range(4)] == [0, 0.5, 1.0, 1.5]
    assert hosts.reserve("b") == 0
    clock.now += 1.75  # all but a quarter second of the queue has passed
    assert hosts.reserve("a") == pytest.approx(0.25)
    clock.now += 100
    assert [hosts.reserve("a"), hosts.reserve("a")] == [0, 0.5], "time that nobody used is not saved up for a burst"


def test_many_threads_never_share_a_slot(limits: Callable[..., HostLimits]) -> None:
    hosts = limits(requests_per_s=10)
    with ThreadPoolExecutor(8) as pool:
        waits = sorted(pool.map(lambda _: hosts.reserve("a"), range(200)))
    assert waits == pytest.approx([number / 10 for number in range(200)])


def test_a_pause_holds_everybody_and_the_rest_follows_in_order(limits: Callable[..., HostLimits], clock: Clock) -> None:
    hosts = limits(requests_per_s=1)
    assert hosts.reserve("a") == 0
    hosts.hold_off("a", 30)
    hosts.hold_off("a", 5)
    assert hosts.held("a") == 30, "a shorter pause does not end a longer one"
    assert hosts.held("b") == 0
    assert [hosts.reserve("a"), hosts.reserve("a")] == [30, 31]
    clock.now += 31
    assert hosts.held("a") == 0
    hosts.hold_off("a", 1e12)
    assert hosts.held("a") == MAX_HOLD_S


def test_a_crawl_delay_only_slows(limits: Callable[..., HostLimits]) -> None:
    hosts = limits(requests_per_s=1)
    hosts.reserve("a")
    hosts.set_crawl_delay("a", 5)
    assert hosts.reserve("a") == 5, "it counts from the request before it was known"
    hosts.set_crawl_delay("a", 0.1)
    assert hosts.reserve("a") == 10
    assert [hosts.reserve("b"), hosts.reserve("b")] == [0, 1]


def test_connections_are_leased_and_come_back_from_the_dead(limits: Callable[..., HostLimits], clock: Clock) -> None:
    hosts = limits(connections=2)
    first, second = hosts.acquire("a", 60), hosts.acquire("a", 60)
    assert first
    assert second
    assert first != second
    assert hosts.acquire("a", 60) == ""
    assert hosts.acquire("b", 60)
    hosts.release("a", first)
    third = hosts.acquire("a", 60)
    assert third
    clock.now += 50
    hosts.renew("a", third, 60)
    clock.now += 20  # the second's worker is dead, the third's is alive
    assert hosts.acquire("a", 60)
    assert hosts.acquire("a", 60) == ""
    hosts.release("a", "never leased")


def test_one_caller_fetches_robots_while_the_others_wait(limits: Callable[..., HostLimits], clock: Clock) -> None:
    hosts = limits()
    assert hosts.robots("http://a").state == "fetch"
    assert hosts.robots("http://a").state == "wait"
    assert hosts.robots("https://a").state == "fetch", "another scheme is another file"
    clock.now += ROBOTS_CLAIM_S + 1
    assert hosts.robots("http://a").state == "fetch", "whoever set out was killed"
    hosts.keep_robots("http://a", "User-agent: *", "", False)
    known = hosts.robots("http://a")
    assert known == Robots(state="known", rules="User-agent: *")
    assert pickle.loads(pickle.dumps(known)) == known
    clock.now += ROBOTS_KEPT_S - 1
    assert hosts.robots("http://a").state == "known"
    clock.now += 2
    assert hosts.robots("http://a").state == "fetch"


def test_a_robots_fault_is_forgotten_sooner(limits: Callable[..., HostLimits], clock: Clock) -> None:
    hosts = limits()
    hosts.robots("http://a")
    hosts.keep_robots("http://a", "", "answered 500", True)
    assert hosts.robots("http://a") == Robots(state="known", fault="answered 500", passing=True)
    clock.now += ROBOTS_FAULT_KEPT_S + 1
    assert hosts.robots("http://a").state == "fetch"


@pytest.mark.parametrize("options", [{"requests_per_s": 0}, {"requests_per_s": float("nan")}, {"connections": 0}])
def test_limits_that_limit_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="choose"):
        HostLimits(**options)
