"""Server name to route: the table of F:5, cached.

Always true:
- a name in `federation.resolve` is looked up nowhere else;
- one look-up in flight per name, with one deadline for all of it; who waits may leave without ending it;
- the `Host` header and the certificate follow the delegation, never the SRV target;
- the cache is bounded, the least recently used name goes.

Source: F:5, F:5.1, Z-5.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from fedpresence.clock import Clock, now_ms, within
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.outbound.http11 import Answer
from fedpresence.outbound.route import FEDERATION_PORT, Route, direct_route, route_at
from fedpresence.outbound.srv import LookupSrv, in_order
from fedpresence.outbound.wellknown import Delegation, judge

DEADLINE_S = 30.0
MAX_CACHED = 10_000
SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")  # the second is deprecated, and still out there
SHORTEST_SRV_LIFE_MS = 60_000  # also where the question failed
LONGEST_SRV_LIFE_MS = 3_600_000
NO_SRV_LIFE_MS = 300_000

FetchWellKnown = Callable[[str], Awaitable[Answer | None]]


@dataclass(frozen=True, slots=True)
class _Found:
    """A route, when it should be looked up again, and until when it may be used meanwhile."""

    route: Route
    refresh_at_ms: int
    expires_at_ms: int


class Discovery:
    """Finds routes; `fetch` gets the well-known of a host name, `lookup_srv` SRV records."""

    def __init__(
        self,
        clock: Clock,
        fetch: FetchWellKnown,
        lookup_srv: LookupSrv,
        resolve: Mapping[ServerName, tuple[str, int]],
        random: Random,
    ) -> None:
        self._clock = clock
        self._fetch = fetch
        self._lookup_srv = lookup_srv
        self._resolve = resolve  # not a copy: a test rig's servers come and go
        self._fixed: dict[ServerName, Route] = {}
        self._random = random
        self._found: OrderedDict[ServerName, _Found] = OrderedDict()
        self._delegations: OrderedDict[ServerName, Delegation] = OrderedDict()
        self._lookups: dict[ServerName, Deferred[None]] = {}
        self._waiting: dict[ServerName, list[Deferred[Route]]] = {}

    async def route(self, name: ServerName) -> Route:
        """Where `name` is reached; DeliveryFailed (not heard) where that cannot be found out."""
        route = self.known_route(name)
        if route is not None:
            return route
        answer: Deferred[Route] = Deferred()
        self._waiting.setdefault(name, []).append(answer)
        if name not in self._lookups:
            self._start(name)
        return await answer

    def known_route(self, name: ServerName) -> Route | None:
        """Where `name` is reached, if nobody need be asked for that."""
        address = self._resolve.get(name)
        if address is not None:
            fixed = self._fixed.get(name)
            if fixed is None or fixed.addresses != (address,):
                fixed = self._fixed[name] = route_at(name, name, (address,), trusted=True)
            return fixed
        route = direct_route(name, name)
        if route is not None:
            return route
        now = now_ms(self._clock)
        found = self._found.get(name)
        if found is not None and now < found.expires_at_ms:
            self._found.move_to_end(name)
            if now >= found.refresh_at_ms and name not in self._lookups:
                self._start(name)  # the old answer serves until the new one is here
            return found.route
        return None

    async def stop(self) -> None:
        """End what is being looked up."""
        for lookup in list(self._lookups.values()):
            lookup.cancel()

    def _start(self, name: ServerName) -> None:
        lookup = ensureDeferred(self._look_up(name))
        within(lookup, DEADLINE_S, self._clock)
        done = lookup.addCallbacks(self._remember, lambda failure: self._fail(name, failure))
        if not done.called:
            self._lookups[name] = done

    def _remember(self, found: _Found) -> None:
        name = found.route.server_name
        self._lookups.pop(name, None)
        self._found[name] = found
        self._found.move_to_end(name)
        if len(self._found) > MAX_CACHED:
            self._found.popitem(last=False)
        for answer in self._waiting.pop(name, []):
            if not answer.called:
                answer.callback(found.route)

    def _fail(self, name: ServerName, failure: Failure) -> None:
        self._lookups.pop(name, None)
        error = failure.value
        if not isinstance(error, DeliveryFailed):
            late = isinstance(error, (DeferredTimeout, CancelledError))
            error = DeliveryFailed(
                name, f"discovery {'took too long' if late else f'failed: {error!r}'[:200]}"
            )
        for answer in self._waiting.pop(name, []):
            if not answer.called:
                answer.errback(error)

    async def _look_up(self, name: ServerName) -> _Found:
        delegation = await self._delegation(name)
        there = delegation.delegated or name
        route = direct_route(name, there)
        if route is not None:
            return _Found(route, delegation.refresh_at_ms, delegation.expires_at_ms)
        addresses, life_ms = await self._addresses(name, there)
        expires_at_ms = min(delegation.expires_at_ms, now_ms(self._clock) + life_ms)
        refresh_at_ms = min(delegation.refresh_at_ms, expires_at_ms)
        return _Found(route_at(name, there, addresses), refresh_at_ms, expires_at_ms)

    async def _delegation(self, name: ServerName) -> Delegation:
        """Steps 3 to 3.5: what the well-known of `name` says; it is never followed a second time."""
        before = self._delegations.get(name)
        now = now_ms(self._clock)
        if before is not None and now < before.refresh_at_ms:
            return before  # the SRV records expired, not this
        answer = await self._fetch(name)
        delegation = judge(answer, before, now_ms(self._clock), self._random.random())
        self._delegations[name] = delegation
        self._delegations.move_to_end(name)
        if len(self._delegations) > MAX_CACHED:
            self._delegations.popitem(last=False)
        return delegation

    async def _addresses(
        self, name: ServerName, there: ServerName
    ) -> tuple[tuple[tuple[str, int], ...], int]:
        """Steps 3.3 to 3.5 and 4 to 6, and for how long they hold."""
        life_ms = NO_SRV_LIFE_MS
        for service in SERVICES:
            try:
                records = await self._lookup_srv(f"{service}.{there}")
            except OSError:  # no word from DNS: port 8448 is the next best guess, for a minute
                life_ms = SHORTEST_SRV_LIFE_MS
                continue
            if records:
                addresses = tuple(
                    (record.target, record.port)
                    for record in in_order(records, self._random)
                    if record.target and record.port
                )
                if not addresses:
                    raise DeliveryFailed(name, f"{service}.{there} says that there is no such service")
                ttl_ms = min(record.ttl_s for record in records) * 1000
                return addresses, min(max(ttl_ms, SHORTEST_SRV_LIFE_MS), LONGEST_SRV_LIFE_MS)
        return ((there, FEDERATION_PORT),), life_ms
