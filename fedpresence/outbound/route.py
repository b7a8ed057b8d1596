"""Where a server is reached, as discovery found it: addresses, `Host` header and certificate name.

Source: the table of F:5.
"""

from dataclasses import dataclass
from functools import lru_cache

from fedpresence.ids import ServerName, is_ip_literal, split_server_name

FEDERATION_PORT = 8448


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one server.

    `addresses` are (IP or host name, port), tried in order. `trusted`: the operator gave the address,
    and no network is forbidden for it (`federation.resolve`).
    """

    server_name: ServerName
    addresses: tuple[tuple[str, int], ...]
    host_header: str
    tls_name: str
    trusted: bool = False


@lru_cache(maxsize=10_000)  # each transaction asks, and to find out that a name is no IP address takes long
def direct_route(asked: ServerName, name: ServerName) -> Route | None:
    """The route to `name` that needs no look-up, on behalf of `asked`; None where one is needed."""
    host, port = split_server_name(name)
    if port is None and not is_ip_literal(host):
        return None
    return Route(asked, ((host, port or FEDERATION_PORT),), host_header=name, tls_name=host)


def route_at(
    asked: ServerName, name: ServerName, addresses: tuple[tuple[str, int], ...], *, trusted: bool = False
) -> Route:
    """The route to `name` at addresses found elsewhere."""
    return Route(asked, addresses, host_header=name, tls_name=split_server_name(name)[0], trusted=trusted)
