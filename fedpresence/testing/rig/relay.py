"""The two halves of a TLS reverse proxy that changes nothing: requests in, requests on, answers back.

Always true:
- a request is passed on once it is whole, and an answer too: neither is larger than 20 MiB;
- method, URI, body and all headers but those of the single hop are passed on as they came;
- each connection that came in has its own one going on, and when one closes so does the other, once no
  answer is owed: whoever is at either end sees what it would see without us;
- there is no timeout: the relay is as patient as the two ends.

Source: RFC 9110, 7.6.1 for the headers of the single hop.
"""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints, and as our base classes they are not excluded by name.)

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web._newclient import Request as ClientRequest
from twisted.web.client import ResponseDone
from twisted.web.http import NO_BODY_CODES, HTTPChannel, HTTPFactory, PotentialDataLoss, Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import INonQueuedRequestFactory
from zope.interface import provider

from fedpresence.clock import Clock

MAX_BODY = 20 * 1024 * 1024

_HOP_BY_HOP = frozenset(
    name.title()
    for name in (
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
) | {b"TE"}

Dial = Callable[[Any], Awaitable[Any]]
"""Connects a protocol of the factory that it is given to whoever answers."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole request, as it goes on."""

    method: bytes
    uri: bytes
    headers: Headers
    body: bytes

    def encoded(self) -> bytes:
        """Its bytes."""
        lines = [self.method, b" ", self.uri, b" HTTP/1.1\r\n"]
        for name, values in self.headers.getAllRawHeaders():
            if name not in _HOP_BY_HOP:
                for value in values:
                    lines += (name, b": ", value, b"\r\n")
        if self.body or self.method in (b"PUT", b"POST"):
            lines.append(b"Content-Length: %d\r\n" % len(self.body))
        lines += (b"\r\n", self.body)
        return b"".join(lines)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `closes` where it ends its connection."""

    status: int
    phrase: bytes
    headers: Headers
    body: bytes
    closes: bool = False

    def encoded(self, *, has_body: bool, closes: bool) -> bytes:
        """Its bytes; without a body it may still say how long that would be."""
        lines = [b"HTTP/1.1 %d " % self.status, self.phrase, b"\r\n"]
        for name, values in self.headers.getAllRawHeaders():
            for value in values:
                lines += (name, b": ", value, b"\r\n")
        if has_body:
            lines.append(b"Content-Length: %d\r\n" % len(self.body))
        if closes:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        if has_body:
            lines.append(self.body)
        return b"".join(lines)


# --- requests in -------------------------------------------------------------------------------------


@provider(INonQueuedRequestFactory)
class Asked(Request):
    """One request that came in. Answer it, or leave it."""

    channel: "Channel"
    _has_gone = False

    def __init__(self, channel: "Channel") -> None:
        super().__init__(channel)
        self._body = BytesIO()
        self.connection = channel
        self.message = Message(b"", b"", self.requestHeaders, b"")

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory: a temporary file would block the reactor."""

    def handleContentChunk(self, data: bytes) -> None:
        """Keep it, as long as it is within the bound."""
        if self._body.tell() + len(data) > MAX_BODY:
            self.connection.abort()
        else:
            self._body.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is whole."""
        self.method, self.uri, self.clientproto = command, path, version
        self.message = Message(command, path, self.requestHeaders, self._body.getvalue())
        self._body = BytesIO()
        self.connection.front.receive(self)

    def connectionLost(self, reason: Failure) -> None:
        """Whoever asked has gone."""
        self._has_gone = True
        super().connectionLost(reason)

    @property
    def has_gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self._has_gone or self.connection.is_closing

    def answer(self, answer: Answer) -> None:
        """Give it its answer; nothing where nobody waits."""
        if not self.has_gone:
            if answer.closes:
                self.connection.persistent = False
            self.connection.send(self.encoded(answer))
            self.connection.requestDone(self)

    def encoded(self, answer: Answer) -> bytes:
        """The bytes of an answer to this very request."""
        return answer.encoded(
            has_body=self.method != b"HEAD" and answer.status not in NO_BODY_CODES,
            closes=answer.closes or not self.connection.persistent,
        )


class Channel(HTTPChannel):
    """One connection that came in, and the one that goes on from it."""

    front: "Front"
    upstream: "Upstream"
    is_closing = False

    def connectionMade(self) -> None:
        """One more."""
        self.front.channels.add(self)
        self.upstream = Upstream(self.front, self._upstream_lost)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Nothing is heard any more once we are closing."""
        if not self.is_closing:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever asked has gone: what was passed on for it still arrives."""
        self.is_closing = True
        super().connectionLost(reason)
        self.front.gone(self)
        self.upstream.leave()

    def send(self, data: bytes) -> None:
        """Bytes, as they are."""
        transport: Any = self.transport
        transport.write(data)

    @property
    def peer_host(self) -> str:
        """The address of whoever connected."""
        return str(getattr(self.getPeer(), "host", "127.0.0.1"))

    def end(self) -> None:
        """Close, once what was sent has left."""
        if not self.is_closing:
            self.is_closing = True
            self.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self.is_closing = True
        _abort(self.transport)

    def _upstream_lost(self) -> None:
        if not self.requests:  # whoever waits for an answer that never comes shall wait
            self.end()


class Front(HTTPFactory):
    """Takes connections in. `receive` is called with each whole request."""

    protocol = Channel  # type: ignore[assignment]  # HTTP/1.1 only: no proxy that switches to 2
    noisy = False

    def __init__(
        self, receive: Callable[[Asked], None], dial: Dial, clock: Clock, changed: Callable[[], None]
    ):
        super().__init__(reactor=cast(IReactorTime, clock))
        self.timeOut = None
        self.receive = receive
        self.dial = dial
        self.channels: set[Channel] = set()
        self.clients: set[Client] = set()
        self._changed = changed

    def buildProtocol(self, addr: Any) -> Any:
        """One more connection."""
        channel: Any = super().buildProtocol(addr)
        channel.requestFactory = Asked
        channel.front = self
        return channel

    def gone(self, end: "Channel | Client") -> None:
        """A connection has ended, one that came in or one that went on."""
        if isinstance(end, Channel):
            self.channels.discard(end)
        else:
            self.clients.discard(end)
        self._changed()

    @property
    def is_empty(self) -> bool:
        """Whether no connection is left."""
        return not self.channels and not self.clients

    def abort(self) -> None:
        """Reset all connections."""
        for channel in list(self.channels):
            channel.abort()
        for client in list(self.clients):
            client.abort_now()

    def startFactory(self) -> None:
        """No access log, so nothing to open and no clock to keep."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def log(self, request: Any) -> None:
        """The wire log is enough."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only."""
        return [b"http/1.1"]


# --- requests on -------------------------------------------------------------------------------------


class Upstream:
    """The connection that goes on: opened for the first request, opened again where the other end closed."""

    def __init__(self, front: Front, lost: Callable[[], None]) -> None:
        self._front = front
        self._lost = lost
        self._client: Client | None = None
        self.was_left = False

    async def exchange(self, message: Message) -> Answer:
        """Send a request and await its answer; the error of the connection where there is none.

        Cancelling it closes the connection at once.
        """
        client = self._client
        if client is None or client.is_closing:
            client = self._client = await self._front.dial(_Clients(self._gone))
            self._front.clients.add(client)
        # Twisted asks for one of its own requests, and uses no more than this of it.
        response = client.request(cast(ClientRequest, _AsItCame(message)))
        if self.was_left:
            client.end()
        return await _whole(await response, client)

    def leave(self) -> None:
        """Nobody waits for answers any more: close, once what was sent has left."""
        self.was_left = True
        if self._client is not None:
            self._client.end()

    def _gone(self, client: "Client") -> None:
        self._front.gone(client)
        if self._client is client:
            self._client = None
            if not self.was_left:
                self._lost()


class Client(HTTP11ClientProtocol):
    """Twisted's client, that says when its connection is gone."""

    def __init__(self, gone: Callable[["Client"], None]) -> None:
        super().__init__()
        self._gone = gone

    @property
    def is_closing(self) -> bool:
        """Whether it takes no further request."""
        transport: Any = self.transport
        return self.state != "QUIESCENT" or bool(transport.disconnecting)

    def end(self) -> None:
        """Close, once what was sent has left."""
        transport: Any = self.transport
        transport.loseConnection()

    def abort_now(self) -> None:
        """Close at once."""
        _abort(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever asked hears of it first."""
        super().connectionLost(reason)
        self._gone(self)


class _Clients(Factory):
    """Makes one client."""

    noisy = False

    def __init__(self, gone: Callable[[Client], None]) -> None:
        self._gone = gone

    def buildProtocol(self, addr: Any) -> Client:
        return Client(self._gone)


class _AsItCame:
    """As much of a request as Twisted's client asks for: its own would look into the URI and change it."""

    persistent = True
    _parsedURI = None

    def __init__(self, message: Message) -> None:
        self.method = message.method
        self.headers = message.headers
        self._message = message

    def writeTo(self, transport: Any) -> Deferred[None]:
        transport.write(self._message.encoded())
        return succeed(None)

    def stopWriting(self) -> None:
        """All is written already."""


async def _whole(response: Any, client: Client) -> Answer:
    body = _Body(client)
    response.deliverBody(body)
    content = await body.done
    return Answer(response.code, response.phrase, response.headers, content, closes=client.is_closing)


class _Body(Protocol):
    """Collects the body of an answer, as long as it is within the bound."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parts: list[bytes] = []
        self._size = 0
        self.done: Deferred[bytes] = Deferred(lambda _: client.abort_now())

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        self._parts.append(data)
        if self._size > MAX_BODY:
            self._parts.clear()
            self._client.abort_now()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        whole = isinstance(reason.value, (ResponseDone, PotentialDataLoss))
        if whole and self._size <= MAX_BODY:
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)


def _abort(transport: Any) -> None:
    if getattr(transport, "connected", True):  # Twisted's TLS fails where the other end was quicker
        transport.abortConnection()
