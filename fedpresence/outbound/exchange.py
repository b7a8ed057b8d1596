"""A bare GET and its answer, and what answers say.

Always true:
- an answer is read to its cap and no further (Z-5);
- compression is neither asked for nor decoded (Z-5);
- once a status came it counts, even if the body is too long or breaks off: the body is then empty;
- an error after the request was begun says that the server may have heard it.

Source: F:X-3, Z-5; decision 26: transactions go over our own HTTP, the rest through treq.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss, stringToDatetime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from fedpresence.errors import DeliveryFailed, reason_of
from fedpresence.ids import ServerName
from fedpresence.outbound.connections import Connections
from fedpresence.outbound.http11 import USER_AGENT, Answer
from fedpresence.outbound.route import Route
from fedpresence.urls import as_written

TIMEOUT_S = 60.0  # F:X-6
_HTTPClient: Any = HTTPClient  # zope's interfaces mean nothing to mypy
_Agent: Any = Agent  # untyped in Twisted


async def fetch(connections: Connections, route: Route, uri: str, cap: int) -> Answer:
    """One GET without a signature, through treq (decision 26); a redirect is an answer like any other.

    Its connection is not kept, nor left to the other side to close: strangers make us ask as many servers as
    they like, and few twice.
    """
    agent = _RouteAgent(connections, route)
    try:
        return await _fetch(agent, route, uri, cap)
    finally:
        agent.abort()  # to close TLS in friendship takes two, and who never does would hold us for ever


async def _fetch(agent: "_RouteAgent", route: Route, uri: str, cap: int) -> Answer:
    try:
        response = await _HTTPClient(agent).get(
            as_written(f"https://{route.host_header}{uri}"),
            headers={"Host": route.host_header, "User-Agent": USER_AGENT},
            allow_redirects=False,
            unbuffered=True,
        )
    except (CancelledError, DeliveryFailed):
        raise
    except Exception as error:
        raise DeliveryFailed(route.server_name, f"no answer: {reason_of(error)}", heard=True) from error
    headers = {name.lower(): values for name, values in response.headers.getAllRawHeaders()}
    done: Deferred[bytes] = Deferred(lambda _: agent.abort())
    response.deliverBody(_Capped(cap, done, agent.abort))
    return Answer(response.code, headers, await done)


def values_of(headers: Mapping[bytes, list[bytes]], name: bytes) -> list[str]:
    """The values of a header that the other side wrote, whatever their bytes; `name` is in lower case."""
    return [value.decode("latin-1") for value in headers.get(name, ())]


def http_date_ms(value: str | bytes) -> int | None:
    """An HTTP date as Unix time in ms; None where it is none."""
    parse: Any = stringToDatetime
    try:
        return int(parse(value.encode() if isinstance(value, str) else value)) * 1000
    except (ValueError, IndexError, KeyError):
        return None


def refuse_encoding(server_name: ServerName, encodings: Sequence[bytes]) -> None:
    """DeliveryFailed where an answer of that server, by its Content-Encoding, is not as it is (Z-5)."""
    if any(encoding.strip().lower() not in (b"", b"identity") for encoding in encodings):
        reason = "its answer is encoded, which we did not ask for"
        raise DeliveryFailed(server_name, reason, heard=True)


@implementer(IAgent, IAgentEndpointFactory, IStreamClientEndpoint)
class _RouteAgent:
    """An IAgent for one request to a route; its connection is opened for it, and closed after the answer."""

    def __init__(self, connections: Connections, route: Route) -> None:
        self._connections = connections
        self._route = route
        self._agent = _Agent.usingEndpointFactory(connections.clock, self)
        self._protocol: Any = None

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

    def endpointForURI(self, uri: object) -> "_RouteAgent":
        """Itself, whatever the URI: it is the route that counts."""
        return self

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        """Connect and authenticate."""
        return ensureDeferred(self._connect(protocolFactory))

    def abort(self) -> None:
        """Close the connection at once, if there is one: its answer is read, or not worth reading on."""
        if self._protocol is not None:
            self._protocol.transport.abortConnection()

    def _refuse_encoding(self, response: Any) -> Any:
        try:
            encodings = response.headers.getRawHeaders(b"Content-Encoding", ())
            refuse_encoding(self._route.server_name, encodings)
        except DeliveryFailed:
            self.abort()
            raise
        return response

    async def _connect(self, factory: Any) -> Any:
        self._protocol = await self._connections.connect(self._route, factory)
        return self._protocol


class _Capped(Protocol):
    """Collects a body up to a cap; one byte more ends the connection."""

    def __init__(self, cap: int, done: Deferred[bytes], abort: Callable[[], None]) -> None:
        self._left = cap
        self._parts: list[bytes] = []
        self._done: Deferred[bytes] | None = done
        self._abort = abort

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._parts.append(data)
        elif self._done is not None:
            done, self._done = self._done, None
            self._abort()
            if not done.called:
                done.callback(b"")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        done, self._done = self._done, None
        if done is not None and not done.called:
            whole = isinstance(reason.value, (ResponseDone, PotentialDataLoss))
            done.callback(b"".join(self._parts) if whole else b"")
