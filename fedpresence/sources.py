"""Whom a request counts against: the address that it came from.

Always true: what nobody can choose freely is counted as one: an IPv6 address by its /64, and everything
that a reverse proxy here passes on by what the proxy says of it.

Source: Z-4.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from fedpresence.fields import Fields

MAX_ADDRESS_CHARACTERS = 45  # an IPv6 address that ends in an IPv4 one


def source_of(address: object, headers: Fields) -> str:
    """Whom a request from `address` counts against: that address, an IPv6 one by its /64.

    Behind a reverse proxy on this machine everybody comes from loopback: then the last entry of
    `X-Forwarded-For`, which the proxy wrote, counts.
    """
    peer = getattr(address, "host", None)
    found = _address(peer) if isinstance(peer, str) else None
    if found is None or found.is_loopback:
        # As bytes: Twisted's own decoding raises, and everybody may write what the proxy passes on.
        entries = headers.getRawHeaders(b"X-Forwarded-For") or [b""]
        found = _address(entries[-1].decode("latin-1").rpartition(",")[2].strip()) or found
    return "local" if found is None else found.counted_as


@dataclass(frozen=True, slots=True)
class _Address:
    counted_as: str
    is_loopback: bool


def _address(text: str) -> _Address | None:
    text = text.partition("%")[0]
    return _parsed_address(text) if len(text) <= MAX_ADDRESS_CHARACTERS else None


@lru_cache(maxsize=1000)  # each peer sends many requests, and the parser is slow
def _parsed_address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv6Address):
        return _Address(str(ipaddress.IPv6Network((address, 64), strict=False)), address.is_loopback)
    return _Address(str(address), address.is_loopback)
