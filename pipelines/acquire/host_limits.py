"""Politeness to the hosts that songs come from: when the next request may be sent, how many connections are open, what robots.txt says.

One `HostLimits` serves every worker of a run (as an actor, on a cluster), for a limit that each worker kept by itself would grow with the
workers. So its methods never wait: they say how long the caller has to, and whoever dies while waiting holds nobody up. Only durations
cross its boundary; machines' clocks need not agree.
"""

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import uuid4

from infra.errors import UserError

ROBOTS_KEPT_S = 86_400.0
"""RFC 9309, section 2.4: not longer than 24 hours."""
ROBOTS_FAULT_KEPT_S = 600.0
"""A robots.txt that could not be had is asked for again so soon."""
ROBOTS_CLAIM_S = 120.0
"""Whoever set out to fetch it and has not returned by then was killed; the next one goes."""
MAX_ROBOTS_KEPT = 10_000
"""Hosts; at most 500 KiB each, a few kB as a rule."""
MAX_HOLD_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Robots:
    """What is known of one host's robots.txt."""

    state: Literal["known", "fetch", "wait"]
    """fetch: nobody has asked, and the caller shall; wait: somebody is asking."""
    rules: str = ""
    """Its text; empty when the host has none."""
    fault: str = ""
    """Why the host must be left alone for now; then there are no rules."""
    passing: bool = False
    """Whether the fault may be over on another day."""


class HostGate(Protocol):
    """What a worker asks: a `HostLimits`, or something that passes the calls on to one elsewhere."""

    def reserve(self, host: str) -> float: ...
    def held(self, host: str) -> float: ...
    def hold_off(self, host: str, seconds: float) -> None: ...
    def set_crawl_delay(self, host: str, seconds: float) -> None: ...
    def acquire(self, host: str, lease_s: float) -> str: ...
    def renew(self, host: str, lease: str, lease_s: float) -> None: ...
    def release(self, host: str, lease: str) -> None: ...
    def robots(self, origin: str) -> Robots: ...
    def keep_robots(self, origin: str, rules: str, fault: str, passing: bool) -> None: ...


@dataclass(kw_only=True)
class _Host:
    interval_s: float
    last_slot: float = float("-inf")
    held_until: float = float("-inf")
    leases: dict[str, float] = field(default_factory=dict)


class HostLimits:
    """The schedule of every host; `clock` counts seconds from anywhere."""

    def __init__(self, *, requests_per_s: float = 1.0, connections: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        if not requests_per_s > 0:
            raise UserError(f"requests_per_s is {requests_per_s}: choose above 0")
        if connections < 1:
            raise UserError(f"connections is {connections}: choose at least 1")
        self._connections = connections
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: defaultdict[str, _Host] = defaultdict(lambda: _Host(interval_s=1 / requests_per_s))
        self._robots: OrderedDict[str, tuple[Robots, float]] = OrderedDict()

    def reserve(self, host: str) -> float:
        """Take the host's next free slot: seconds until it comes. A slot that is not used is lost, never two used at once."""
        with self._lock:
            state, now = self._hosts[host], self._clock()
            state.last_slot = max(now, state.last_slot + state.interval_s, state.held_until)
            return state.last_slot - now

    def held(self, host: str) -> float:
        """Seconds for which the host still wants no request at all; slots that were reserved before it said so are void until then."""
        with self._lock:
            return max(0.0, self._hosts[host].held_until - self._clock())

    def hold_off(self, host: str, seconds: float) -> None:
        """The host asked for a pause (Retry-After); a shorter one does not end a longer one."""
        with self._lock:
            state = self._hosts[host]
            state.held_until = max(state.held_until, self._clock() + min(seconds, MAX_HOLD_S))

    def set_crawl_delay(self, host: str, seconds: float) -> None:
        """The host wants at least so long between requests; a shorter time than ours changes nothing."""
        with self._lock:
            state = self._hosts[host]
            state.interval_s = max(state.interval_s, seconds)

    def acquire(self, host: str, lease_s: float) -> str:
        """A lease on one of the host's connections for `lease_s`; empty when all are taken: ask again in a moment."""
        with self._lock:
            leases, now = self._hosts[host].leases, self._clock()
            for lease in [lease for lease, end in leases.items() if end <= now]:
                del leases[lease]  # its worker was killed
            if len(leases) >= self._connections:
                return ""
            lease = uuid4().hex
            leases[lease] = now + lease_s
            return lease

    def renew(self, host: str, lease: str, lease_s: float) -> None:
        """Count the lease from now. One that had run out is back, even over the limit, for its connection is open."""
        with self._lock:
            self._hosts[host].leases[lease] = self._clock() + lease_s

    def release(self, host: str, lease: str) -> None:
        """The connection is closed."""
        with self._lock:
            self._hosts[host].leases.pop(lease, None)

    def robots(self, origin: str) -> Robots:
        """What is known of the robots.txt at `origin` (scheme://host:port). The one caller who is told to fetch it calls `keep_robots`."""
        with self._lock:
            known, end = self._robots.get(origin, (Robots(state="fetch"), float("-inf")))
            if end > self._clock():
                return known
            self._keep(origin, Robots(state="wait"), ROBOTS_CLAIM_S)
            return Robots(state="fetch")

    def keep_robots(self, origin: str, rules: str, fault: str, passing: bool) -> None:
        """What came of fetching it."""
        with self._lock:
            known = Robots(state="known", rules=rules, fault=fault, passing=passing)
            self._keep(origin, known, ROBOTS_FAULT_KEPT_S if fault else ROBOTS_KEPT_S)

    def _keep(self, origin: str, robots: Robots, seconds: float) -> None:
        self._robots[origin] = (robots, self._clock() + seconds)
        self._robots.move_to_end(origin)
        while len(self._robots) > MAX_ROBOTS_KEPT:
            self._robots.popitem(last=False)
