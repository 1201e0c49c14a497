"""Where a request goes: a name is looked up once, every address of it is checked, and what was checked is what is connected to.

A list of songs is somebody else's text. Without this, an address in it, or where that redirects to, could name a service of the machine's
own network, whose answer would be stored as a song; a name that is looked up twice could mean another host the second time.
"""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.request import getproxies, proxy_bypass

import httpx

from pipelines.acquire.http_faults import PassingFault
from pipelines.song import SongError

NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: such an address leads to the IPv4 address in its last four bytes."""
# Not reserved in every Python's table: site-local addresses, NAT64 of one's own network (RFC 8215), IPv4-compatible ones (RFC 4291).
NOT_PUBLIC = tuple(IPv6Network(network) for network in ("fec0::/10", "64:ff9b:1::/48", "::/96"))


def checked_addresses(url: httpx.URL, private_hosts: Sequence[str], *, names: bool = True) -> list[str]:
    """The addresses of the URL's host, in the order to try them; without `names`, only of a host that is an address itself.

    Raises SongError unless all are public or the host is one of `private_hosts`, PassingFault when the lookup fails.
    """
    try:
        found = socket.getaddrinfo(url.raw_host.decode("ascii"), None, type=socket.SOCK_STREAM, flags=0 if names else socket.AI_NUMERICHOST)
    except UnicodeError as error:
        raise SongError(f"{url}: its host is not a name that can be looked up ({error}): correct it") from error
    except OSError as error:
        if not names:
            return []
        raise PassingFault(f"{url}: no connection ({error})") from error
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if url.host.casefold() not in {name.casefold() for name in private_hosts}:
        for address in addresses:
            if not is_public(address):
                raise SongError(
                    f"{url} leads to {address}, which is not a public address: leave the song out, or permit its host "
                    f"(--acquire.private-hosts {url.host})"
                )
    return addresses


def is_public(address: str) -> bool:
    """Neither loopback, private, link-local, shared, reserved nor multicast; of IPv6 that leads to IPv4, that is asked."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and any(parsed in network for network in NOT_PUBLIC):
        return False
    return parsed.is_global and not parsed.is_multicast and all(is_public(str(inner)) for inner in _inner(parsed))


def _inner(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    if isinstance(address, IPv4Address):
        return []
    translated = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
    return [inner for inner in (address.ipv4_mapped, address.sixtofour, translated) if inner is not None]


def proxy_for(url: httpx.URL) -> str:
    """The proxy that the environment wants for this address; empty for none."""
    if proxy_bypass(url.host):
        return ""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all", "")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
