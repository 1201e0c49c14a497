"""Which web pages may ask a service that asks for no key.

A browser sends what any page on the web tells it to, also to this machine and its network. A page of another site is known by its Origin
(Fetch, section 3.2). One whose own name was made to mean this machine (DNS rebinding) is of the same origin, and known by the name in Host.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from serving.problems import Problem, ProblemError

EVERY = "*"
NOT_PUBLIC = (".localhost", ".local", ".internal", ".home.arpa")
"""Names below these are nobody's in public DNS (RFC 6761, 6762, 8375; ICANN's reservation of .internal)."""


class Sites:
    """The pages and names that are permitted beside those that no stranger can have."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """allowed: host names of this service, or of pages that may ask it; "*" is any."""
        self._allowed = {name.casefold() for name in allowed}

    def check(self, headers: Headers) -> None:
        """ProblemError 403 for a name that a stranger may have, and for a page of another site."""
        if EVERY in self._allowed:
            return
        host = headers.get("host", "")
        name = _name(f"//{host}")
        if host and not (name in self._allowed or _is_nobodys(name)):
            raise _forbidden(f"this service has no keys and is not known as {name[:100]!r}")
        origin = headers.get("origin")
        # Schemes may differ: a proxy before this may speak TLS.
        if origin is not None and origin.partition("://")[2].casefold() != host.casefold() and _name(origin) not in self._allowed:
            raise _forbidden(f"this service has no keys, and pages of {origin[:100]!r} may not ask it")


def _forbidden(what: str) -> ProblemError:
    remedy = "its operator can name hosts in --allowed-hosts, or set BACKLINE_API_KEYS"
    return ProblemError(Problem(status=403, detail=f"{what}: {remedy}"))


def _name(address: str) -> str:
    """The host in an address, without port and brackets; empty for what is none."""
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_nobodys(name: str) -> bool:
    """Whether nobody can have it in public DNS: an address, a name of one word, or one below NOT_PUBLIC."""
    try:
        ip_address(name)
    except ValueError:
        return name != "" and ("." not in name or name.endswith(NOT_PUBLIC))
    return True
