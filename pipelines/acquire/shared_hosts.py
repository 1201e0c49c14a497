"""One `HostLimits` for all workers of a run, on whichever machine: an actor, and what passes a worker's calls on to it."""

from typing import Any

from pipelines.acquire.acquire import AcquireConfig
from pipelines.acquire.host_limits import HostLimits, Robots


class SharedHosts:
    """A `pipelines.acquire.host_limits.HostGate` whose answers come from the run's actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def reserve(self, host: str) -> float:
        return float(self._ask("reserve", host))

    def held(self, host: str) -> float:
        return float(self._ask("held", host))

    def hold_off(self, host: str, seconds: float) -> None:
        self._ask("hold_off", host, seconds)

    def set_crawl_delay(self, host: str, seconds: float) -> None:
        self._ask("set_crawl_delay", host, seconds)

    def acquire(self, host: str, lease_s: float) -> str:
        return str(self._ask("acquire", host, lease_s))

    def renew(self, host: str, lease: str, lease_s: float) -> None:
        self._ask("renew", host, lease, lease_s)

    def release(self, host: str, lease: str) -> None:
        self._ask("release", host, lease)

    def robots(self, origin: str) -> Robots:
        answer: Robots = self._ask("robots", origin)
        return answer

    def keep_robots(self, origin: str, rules: str, fault: str, passing: bool) -> None:
        self._ask("keep_robots", origin, rules, fault, passing)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments))


def start_shared_hosts(config: AcquireConfig) -> SharedHosts:
    """The actor of this run; it takes no CPU ticket."""
    import ray

    actor = ray.remote(HostLimits).options(num_cpus=0)
    return SharedHosts(actor.remote(requests_per_s=config.requests_per_s, connections=config.connections_per_host))
