"""Connections to other servers: opened, authenticated, kept for the next request, closed.

Always true:
- every address is checked against the blocked networks after resolution, right before it is connected
  to, unless the operator gave it (Z-5);
- a connection is handed out only after its TLS handshake authenticated the server;
- compression is neither asked for nor decoded (Z-5);
- no more connections are opened per second than the budget allows (decision 15).

Source: F:5.2, Z-5.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from fedpresence.clock import Clock, now_ms, within
from fedpresence.errors import DeliveryFailed
from fedpresence.outbound.addresses import BlockedNetworks
from fedpresence.outbound.budget import TokenBucket
from fedpresence.outbound.handshake import authenticated
from fedpresence.outbound.route import Route
from fedpresence.outbound.tls import TlsPolicy

CONNECT_TIMEOUT_S = 10  # for one address, TLS included
MAX_ADDRESSES = 8  # tried for one connection
MAX_WAITING_CONNECTIONS = 10_000

Resolve = Callable[[str], Awaitable[list[str]]]
Dial = Callable[[str, int], Any]  # an IStreamClientEndpoint: zope's interfaces mean nothing to mypy
_Agent: Any = Agent  # untyped in Twisted, as is the pool
_Pool: Any = HTTPConnectionPool


class Connections:
    """Opens connections, at most so many a second, and keeps one per route while it idles for `keep_s`.

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
        self._clock = clock
        self._resolve = resolve
        self._dial = dial
        self._tls = tls
        self._blocked = blocked
        self._budget = TokenBucket(per_second, burst=per_second)
        self._waiting = 0
        kept: Any = _KeptConnections  # untyped in Twisted
        self._pool: Any = kept(clock, persistent=True)
        self._pool.maxPersistentPerHost = 1  # one transaction in flight
        self._pool.cachedConnectionTimeout = keep_s
        self._pool.retryAutomatically = False

    async def open(self, route: Route) -> "Connection":
        """A connection to that server, kept or new; DeliveryFailed (not heard) where there is none."""
        try:
            protocol = await self._pool.getConnection(route, _RouteEndpoint(self, route))
        except (CancelledError, DeliveryFailed):
            raise
        except Exception as error:
            raise DeliveryFailed(route.server_name, f"cannot connect: {reason_of(error)}") from error
        return Connection(self._clock, route, protocol)

    @property
    def kept(self) -> int:
        """To how many routes connections are kept."""
        return len(self._pool)

    async def close(self) -> None:
        """Close what is kept."""
        await self._pool.closeCachedConnections()

    async def connect(self, route: Route, factory: Any) -> Any:
        """A protocol of `factory`, connected and authenticated at the first address that lets us."""
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
        creator = self._tls.creator_for(tls_name)
        connecting = ensureDeferred(authenticated(self._dial(address, port), creator, factory, self._clock))
        within(connecting, CONNECT_TIMEOUT_S, self._clock)
        return await connecting

    async def _turn(self, route: Route) -> None:
        if self._waiting >= MAX_WAITING_CONNECTIONS:
            raise DeliveryFailed(route.server_name, "too many connections wait to be opened")
        self._waiting += 1
        try:
            now = now_ms(self._clock)
            at_ms = self._budget.reserve(
                now
            )  # in order: asked again and again, it would go to whoever is lucky
            if at_ms > now:
                await deferLater(cast(IReactorTime, self._clock), (at_ms - now) / 1000)
        finally:
            self._waiting -= 1


@implementer(IAgent)
class Connection:
    """One authenticated connection, for one request; after the answer it is kept for the next."""

    def __init__(self, clock: Clock, route: Route, protocol: Any) -> None:
        self.route = route
        self._protocol = protocol
        pool = _OneConnection(clock, protocol)
        self._agent = _Agent.usingEndpointFactory(clock, _Nowhere(), pool)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: Any = None,
    ) -> "Deferred[Any]":
        """As an IAgent that neither asks for compression nor takes it (Z-5): treq always would."""
        if headers is not None and headers.hasHeader("Accept-Encoding"):
            headers = headers.copy()
            headers.removeHeader("Accept-Encoding")
        response: Deferred[Any] = self._agent.request(method, uri, headers, bodyProducer)
        return response.addCallback(self._refuse_encoding)

    def abort(self) -> None:
        """Close it at once: it was not needed, or its answer is not worth reading on."""
        transport = self._protocol.transport
        if getattr(transport, "connected", True):  # Twisted's TLS fails where the other end was quicker
            transport.abortConnection()

    def _refuse_encoding(self, response: Any) -> Any:
        encodings = response.headers.getRawHeaders(b"Content-Encoding", [])
        if any(encoding.strip().lower() not in (b"", b"identity") for encoding in encodings):
            self.abort()
            name = self.route.server_name
            raise DeliveryFailed(name, "its answer is encoded, which we did not ask for", heard=True)
        return response


@implementer(IStreamClientEndpoint)
class _RouteEndpoint:
    """A route as an endpoint, for the pool."""

    def __init__(self, connections: Connections, route: Route) -> None:
        self._connections = connections
        self._route = route

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        """Connect and authenticate."""
        return ensureDeferred(self._connections.connect(self._route, protocolFactory))


class _KeptConnections(HTTPConnectionPool):
    """A pool that forgets a route with its last connection: Twisted's own remembers every route for ever.

    Strangers make us look for their keys under as many names as they like.
    """

    _connections: dict[object, list[object]]

    def __len__(self) -> int:
        """How many routes are remembered."""
        return len(self._connections)

    def getConnection(self, key: Any, endpoint: Any) -> "Deferred[Any]":
        """A kept connection, or a new one."""
        found: Deferred[Any] = super().getConnection(key, endpoint)
        self._forget_empty(key)
        return found

    def _removeConnection(self, key: Any, connection: Any) -> None:
        _Pool._removeConnection(self, key, connection)
        self._forget_empty(key)

    def _forget_empty(self, key: object) -> None:
        if not self._connections.get(key, True):
            del self._connections[key]


class _OneConnection(HTTPConnectionPool):
    """A pool that gives out the connection that we hold; its own pool takes it back after the answer."""

    def __init__(self, clock: Clock, protocol: Any) -> None:
        _Pool.__init__(self, clock, persistent=True)
        self._protocol = protocol

    def getConnection(self, key: object, endpoint: object) -> "Deferred[Any]":
        """The one there is."""
        return succeed(self._protocol)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Nowhere:
    """An Agent wants an endpoint even where it will not connect."""

    def endpointForURI(self, uri: object) -> "_Nowhere":
        """Itself."""
        return self

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        """Never."""
        return fail(ConnectionClosed("a connection is for one request"))


def tcp_dial(reactor: Any) -> Dial:
    """Endpoints of IP addresses on a reactor."""

    def dial(address: str, port: int) -> Any:
        kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        return kind(reactor, address, port, timeout=CONNECT_TIMEOUT_S)

    return dial


def reason_of(error: BaseException) -> str:
    """A failure in a few words, fit for a log."""
    reasons = getattr(error, "reasons", None)  # Twisted's ResponseFailed and its kin
    if reasons:
        error = reasons[0].value
    text = str(error).strip()
    name = type(error).__name__
    return f"{name}: {text}"[:200] if text else name
