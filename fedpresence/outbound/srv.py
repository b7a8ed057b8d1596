"""SRV records of a server name, in the order in which they are to be tried.

Always true: "there is no record" and "the question failed" are different answers; only the second is an
OSError.

Source: RFC 2782; F:5 steps 3.3, 3.4, 4 and 5.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from twisted.names import dns
from twisted.names.client import Resolver
from twisted.names.error import DNSNameError, DNSQueryTimeoutError, ResolverError
from twisted.python.failure import Failure

TIMEOUTS_S = (1, 3, 5)  # each question to a name server
MAX_RECORDS = 16
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One offer; `target` without its last dot, empty where the service is not available."""

    priority: int
    weight: int
    port: int
    target: str
    ttl_s: int = 0


LookupSrv = Callable[[str], Awaitable[list[SrvRecord]]]


def names_lookup(resolver: Any) -> LookupSrv:
    """SRV questions asked of a `twisted.names` resolver (an IResolver)."""

    async def lookup(name: str) -> list[SrvRecord]:
        try:
            answers, _, _ = await resolver.lookupService(name, TIMEOUTS_S)
        except DNSNameError:
            return []
        except (ResolverError, DNSQueryTimeoutError, ValueError) as error:  # DomainError is a ValueError
            raise OSError(f"SRV look-up of {name} failed") from error
        return [record for answer in answers if (record := _record(answer)) is not None]

    return lookup


def system_lookup(reactor: Any) -> LookupSrv:
    """SRV questions asked of the name servers in resolv.conf, read anew each time."""

    async def lookup(name: str) -> list[SrvRecord]:
        make: Any = Resolver
        return await names_lookup(make(servers=_name_servers(), timeout=TIMEOUTS_S, reactor=reactor))(name)

    return lookup


def in_order(records: list[SrvRecord], random: Random) -> list[SrvRecord]:
    """Lowest priority first, inside a priority at random by weight (RFC 2782)."""
    ordered: list[SrvRecord] = []
    left = sorted(records[:MAX_RECORDS], key=lambda record: (record.priority, record.weight))
    while left:
        group = [record for record in left if record.priority == left[0].priority]
        point = random.randint(0, sum(record.weight for record in group))
        for record in group:
            point -= record.weight
            if point <= 0:
                ordered.append(record)
                left.remove(record)
                break
    return ordered


def _record(answer: dns.RRHeader) -> SrvRecord | None:
    if answer.type != dns.SRV or isinstance(answer.payload, Failure) or answer.payload is None:
        return None
    payload: Any = answer.payload
    target = payload.target.name.decode("ascii", "replace").rstrip(".")
    return SrvRecord(payload.priority, payload.weight, payload.port, target, answer.ttl or 0)


def _name_servers() -> list[tuple[str, int]]:
    try:
        lines = RESOLV_CONF.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    servers = [(word[1], dns.PORT) for word in words if len(word) > 1 and word[0] == "nameserver"]
    return servers or [("127.0.0.1", dns.PORT)]
