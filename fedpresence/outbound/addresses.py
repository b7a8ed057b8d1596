"""Addresses that we never connect to, whatever a name resolves to.

Always true: what is judged is the address that would really be connected to, after resolution, and an
IPv4 address inside an IPv6 one (mapped, compatible, NAT64, 6to4) is judged as that IPv4 address too.

Source: Z-5; Synapse's `ip_range_blacklist` for the default networks.
"""

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_BLOCKED_NETWORKS = (
    "0.0.0.0/8",  # "this host": many systems connect it to loopback
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "169.254.0.0/16",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",  # reserved, broadcast included
    "::/128",  # the unspecified address connects to loopback
    "::1/128",
    "fe80::/10",
    "fc00::/7",
    "2001:db8::/32",
    "ff00::/8",
    "fec0::/10",
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class BlockedNetworks:
    """The networks of `federation.blocked_networks`."""

    def __init__(self, networks: Iterable[str]) -> None:
        parsed = [ipaddress.ip_network(network, strict=False) for network in networks]
        self._v4 = [network for network in parsed if isinstance(network, ipaddress.IPv4Network)]
        self._v6 = [network for network in parsed if isinstance(network, ipaddress.IPv6Network)]

    def block(self, address: str) -> bool:
        """Whether `address` must not be connected to; so is whatever is no address at all."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return True
        return any(self._contain(meant) for meant in _meanings(parsed))

    def _contain(self, address: Address) -> bool:
        if isinstance(address, ipaddress.IPv4Address):
            return any(address in network for network in self._v4)
        return any(address in network for network in self._v6)


def _meanings(address: Address) -> list[Address]:
    """The address and every IPv4 address that its packets may end at."""
    meanings: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            address = ipaddress.IPv6Address(int(address))
            meanings = [address]
        if address.ipv4_mapped is not None:
            meanings.append(address.ipv4_mapped)
        if address.sixtofour is not None:
            meanings.append(address.sixtofour)
        if address in _NAT64 or address in _NAT64_LOCAL or address in _COMPATIBLE:
            meanings.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return meanings
