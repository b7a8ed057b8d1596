"""Connections to other servers: opened, authenticated, kept for the next request, closed.

Always true:
- every address is checked against the blocked networks after resolution, right before it is connected
  to, unless the operator gave it (Z-5);
- a connection is handed out only after its TLS handshake authenticated the server;
- an answer is read to its cap and no further; compression is neither asked for nor decoded (Z-5);
- no more connections are opened per second than the budget allows (decision 15).

Source: F:5.2, Z-5; decision 26 for going below treq where a request must be cheap.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from fedpresence.clock import now_ms
from fedpresence.errors import DeliveryFailed
from fedpresence.outbound.addresses import BlockedNetworks
from fedpresence.outbound.budget import TokenBucket
from fedpresence.outbound.route import Route
from fedpresence.outbound.tls import TlsPolicy

CONNECT_TIMEOUT_S = 10.0  # for one address, TLS included
KEEP_S = 55.0  # idle connections: below the 60 s after which Twisted servers, Synapse too, close them
MAX_ADDRESSES = 8  # tried for one connection
MAX_WAITING_CONNECTIONS = 10_000
USER_AGENT = "fedpresence"

Resolve = Callable[[str], Awaitable[list[str]]]
Dial = Callable[[str, int], IStreamClientEndpoint]


class Connections:
    """Opens connections, at most so many a second, and keeps one idle connection per route.

    `resolve` gives the addresses of a host name, `dial` the endpoint of an IP address and port.
    """

    def __init__(
        self,
        clock: IReactorTime,
        resolve: Resolve,
        dial: Dial,
        tls: TlsPolicy,
        blocked: BlockedNetworks,
        *,
        per_second: int,
    ) -> None:
        self._clock = clock
        self._resolve = resolve
        self._dial = dial
        self._tls = tls
        self._blocked = blocked
        self._budget = TokenBucket(per_second, burst=per_second)
        self._waiting = 0
        self._pool = HTTPConnectionPool(clock, persistent=True)
        self._pool.maxPersistentPerHost = 1  # one transaction in flight
        self._pool.cachedConnectionTimeout = KEEP_S
        self._pool.retryAutomatically = False

    async def open(self, route: Route) -> "Connection":
        """A connection to that server, kept or new; DeliveryFailed (not heard) where there is none."""
        endpoint = _RouteEndpoint(self, route)
        try:
            protocol = await self._pool.getConnection(route, endpoint)
        except CancelledError:
            raise
        except DeliveryFailed:
            raise
        except Exception as error:
            raise DeliveryFailed(route.server_name, f"cannot connect: {_reason(error)}") from error
        return Connection(self._clock, route, protocol)

    async def close(self) -> None:
        """Close what is kept."""
        await self._pool.closeCachedConnections()

    async def connect(self, route: Route, factory: IProtocolFactory) -> IProtocol:
        """Connect and authenticate at the first address of the route that lets us."""
        await self._turn(route)
        error: Exception = DeliveryFailed(route.server_name, "its name has no address")
        tried = 0
        for host, port in route.addresses:
            try:
                addresses = await self._resolve(host)
            except OSError as problem:
                error = DeliveryFailed(route.server_name, f"{host} cannot be resolved: {_reason(problem)}")
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

    async def _connect_to(
        self, address: str, port: int, tls_name: str, factory: IProtocolFactory
    ) -> IProtocol:
        endpoint = wrapClientTLS(self._tls.creator_for(tls_name), self._dial(address, port))
        connecting = ensureDeferred(_authenticated(endpoint, factory))
        connecting.addTimeout(CONNECT_TIMEOUT_S, self._clock, lambda _, __: _raise_timeout())
        return await connecting

    async def _turn(self, route: Route) -> None:
        if self._waiting >= MAX_WAITING_CONNECTIONS:
            raise DeliveryFailed(route.server_name, "too many connections wait to be opened")
        self._waiting += 1
        try:
            while not self._budget.take(now := now_ms(self._clock)):
                await deferLater(self._clock, max(1, self._budget.ready_ms() - now) / 1000)
        finally:
            self._waiting -= 1


@implementer(IAgent)
class Connection:
    """One authenticated connection, for one request; it is kept for the next by itself."""

    def __init__(self, clock: IReactorTime, route: Route, protocol: Any) -> None:
        self.route = route
        self._protocol = protocol
        pool = _OneConnection(clock, protocol)
        self._agent = Agent.usingEndpointFactory(clock, _NoEndpoint(), pool)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803 - the interface's name
    ) -> "Deferred[IResponse]":
        """As an IAgent that neither asks for compression nor takes it (Z-5)."""
        if headers is not None and headers.hasHeader(b"Accept-Encoding"):
            headers = headers.copy()
            headers.removeHeader(b"Accept-Encoding")
        response: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
        return response.addCallback(self._refuse_encoding)

    def abort(self) -> None:
        """Close it at once: it was not needed, or its answer is not worth reading on."""
        self._protocol.transport.abortConnection()

    def _refuse_encoding(self, response: IResponse) -> IResponse:
        encodings = response.headers.getRawHeaders(b"Content-Encoding", [])
        if any(encoding.strip().lower() not in (b"", b"identity") for encoding in encodings):
            self.abort()
            raise DeliveryFailed(
                self.route.server_name, "its answer is encoded, which we did not ask for", heard=True
            )
        return response


@implementer(IStreamClientEndpoint)
class _RouteEndpoint:
    """A route as an endpoint, for the pool."""

    def __init__(self, connections: Connections, route: Route) -> None:
        self._connections = connections
        self._route = route

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":  # noqa: N803
        return ensureDeferred(self._connections.connect(self._route, protocolFactory))


class _OneConnection(HTTPConnectionPool):
    """A pool that gives out the connection that we hold; its own pool takes it back after the answer."""

    def __init__(self, clock: IReactorTime, protocol: Any) -> None:
        super().__init__(clock, persistent=True)
        self._protocol = protocol

    def getConnection(self, key: object, endpoint: object) -> "Deferred[Any]":  # noqa: N802
        held: Deferred[Any] = Deferred()
        held.callback(self._protocol)
        return held


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _NoEndpoint:
    """An Agent wants an endpoint even where it will not connect."""

    def endpointForURI(self, uri: object) -> IStreamClientEndpoint:  # noqa: N802 - the interface's name
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":  # noqa: N803
        return fail(ConnectTimeout("this connection is used up"))


def tcp_dial(reactor: Any) -> Dial:
    """Endpoints of IP addresses on a reactor."""

    def dial(address: str, port: int) -> IStreamClientEndpoint:
        kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        endpoint: IStreamClientEndpoint = kind(reactor, address, port, timeout=int(CONNECT_TIMEOUT_S))
        return endpoint

    return dial
