"""Connections to other servers: opened, authenticated, kept for the next request, closed.

Always true:
- every address is checked against the blocked networks after resolution, right before it is connected
  to, unless the operator gave it (Z-5);
- a connection is handed out only after its TLS handshake authenticated the server;
- no more connections are opened per second than the budget allows (decision 15).

Source: F:5.2, Z-5.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from fedpresence.clock import Clock, Timer, now_ms, within
from fedpresence.errors import DeliveryFailed, reason_of
from fedpresence.ids import ServerName
from fedpresence.outbound.addresses import BlockedNetworks
from fedpresence.outbound.budget import TokenBucket
from fedpresence.outbound.http11 import Connection
from fedpresence.outbound.route import Route
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.outbound.tls_connection import authenticated

CONNECT_TIMEOUT_S = 10  # for one address, TLS included
MAX_ADDRESSES = 8  # tried for one connection
MAX_WAITING_CONNECTIONS = 10_000

Resolve = Callable[[str], Awaitable[list[str]]]
Dial = Callable[[str, int], Any]  # an IStreamClientEndpoint: zope's interfaces mean nothing to mypy


class Connections:
    """Opens connections, at most so many a second, and keeps one per server while it idles for `keep_s`.

    `resolve` gives the addresses of a host name (OSError where it cannot), `dial` the endpoint of an IP
    address and port.
    """

    def __init__(
        self,
        clock: Clock,
        resolve: Resolve,
        dial: Dial,
        tls: TlsPolicy,
        blocked: BlockedNetworks,
        *,
        per_second: int,
        keep_s: float = 55.0,
    ) -> None:
        self.clock = clock
        self._resolve = resolve
        self._dial = dial
        self._tls = tls
        self._blocked = blocked
        self._budget = TokenBucket(per_second, burst=per_second)
        self._waiting = 0
        self._keep_s = keep_s
        self._kept: OrderedDict[ServerName, Connection] = OrderedDict()  # the longest idle first
        self._timer: Timer | None = None  # for the first of them

    async def open(self, route: Route) -> Connection:
        """A connection to that server, kept or new; DeliveryFailed (not heard) where there is none."""
        kept = self.take(route)
        if kept is not None:
            return kept
        connection: Connection = await self.connect(route, _ConnectionFactory(route, self.clock, self))
        return connection

    def take(self, route: Route) -> Connection | None:
        """The connection that is kept for that server; None where there is none."""
        kept = self._kept.pop(route.server_name, None)
        if kept is None or kept.route is route or kept.route == route:
            return kept
        kept.abort()  # it leads to where the server was
        return None

    def keep(self, connection: Connection) -> None:
        """Keep it for the next request, one for a server: one transaction is in flight."""
        name = connection.route.server_name
        if name in self._kept:
            connection.abort()
            return
        self._kept[name] = connection
        connection.idle_since_s = self.clock.seconds()
        if self._timer is None:
            self._timer = self.clock.callLater(self._keep_s, self._close_idle)

    def keep_unused(self, connection: Connection) -> None:
        """The same where nothing was sent: to the other side it is idle since its last request."""
        idle_since_s, name = connection.idle_since_s, connection.route.server_name
        self.keep(connection)
        if idle_since_s is not None and self._kept.get(name) is connection:
            connection.idle_since_s = idle_since_s
            self._kept.move_to_end(name, last=False)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        name = connection.route.server_name
        if self._kept.get(name) is connection:
            del self._kept[name]

    @property
    def kept(self) -> int:
        """To how many servers connections are kept."""
        return len(self._kept)

    async def close(self) -> None:
        """Close what is kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        closing = list(self._kept.values())
        for connection in closing:
            connection.abort()
        for connection in closing:
            await connection.gone

    async def connect(self, route: Route, factory: Any) -> Any:
        """A protocol of `factory`, connected and authenticated at the first address that lets us.

        DeliveryFailed (not heard) where none does.
        """
        try:
            return await self._connect(route, factory)
        except (CancelledError, DeliveryFailed):
            raise
        except Exception as error:
            raise DeliveryFailed(route.server_name, f"cannot connect: {reason_of(error)}") from error

    async def _connect(self, route: Route, factory: Any) -> Any:
        await self._turn(route)
        error: Exception = DeliveryFailed(route.server_name, "its name has no address")
        tried = 0
        for host, port in route.addresses:
            try:
                addresses = await self._resolve(host)
            except OSError as problem:
                error = DeliveryFailed(route.server_name, f"{host} cannot be resolved: {reason_of(problem)}")
                continue
            for address in addresses:
                if not route.trusted and self._blocked.block(address):
                    error = DeliveryFailed(route.server_name, f"{address} is in a blocked network")
                    continue
                if tried >= MAX_ADDRESSES:
                    raise error
                tried += 1
                try:
                    return await self._connect_to(address, port, route.tls_name, factory)
                except CancelledError:
                    raise
                except Exception as problem:  # refused, unreachable, silent, or not who it should be
                    error = problem
        raise error

    async def _connect_to(self, address: str, port: int, tls_name: str, factory: Any) -> Any:
        session = self._tls.session_with(tls_name)
        connecting = ensureDeferred(authenticated(self._dial(address, port), session, factory))
        within(connecting, CONNECT_TIMEOUT_S, self.clock)
        return await connecting

    async def _turn(self, route: Route) -> None:
        if self._waiting >= MAX_WAITING_CONNECTIONS:
            raise DeliveryFailed(route.server_name, "too many connections wait to be opened")
        self._waiting += 1
        try:
            now = now_ms(self.clock)
            at_ms = self._budget.reserve(
                now
            )  # in order: asked again and again, it would go to whoever is lucky
            if at_ms > now:
                await deferLater(cast(IReactorTime, self.clock), (at_ms - now) / 1000)
        finally:
            self._waiting -= 1

    def _close_idle(self) -> None:
        self._timer = None
        now_s = self.clock.seconds()
        while self._kept:
            connection = next(iter(self._kept.values()))
            left_s = (connection.idle_since_s or 0.0) + self._keep_s - now_s
            if left_s > 0:
                self._timer = self.clock.callLater(max(0.001, left_s), self._close_idle)
                return
            connection.abort()  # and it is kept no longer


class _ConnectionFactory(Factory):
    """Makes the protocol of one connection."""

    noisy = False

    def __init__(self, route: Route, clock: Clock, keeper: Connections) -> None:
        self._make = partial(Connection, route, clock, keeper)

    def buildProtocol(self, addr: object) -> Connection:
        """As IProtocolFactory."""
        return self._make()


def tcp_dial(reactor: Any) -> Dial:
    """Endpoints of IP addresses on a reactor."""

    def dial(address: str, port: int) -> Any:
        kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        return kind(reactor, address, port, timeout=CONNECT_TIMEOUT_S)

    return dial
