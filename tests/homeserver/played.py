"""A homeserver that is played, over real loopback sockets: it remembers bytes, and answers with bytes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from fedpresence.listening import Certificates

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)


def an_answer(body: bytes = b"{}", status: bytes = b"200 OK", *headers: bytes) -> bytes:
    """A response with a length."""
    lines = [
        b"HTTP/1.1 " + status,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join([*lines, b"", b""]) + body


@dataclass
class Seen:
    """One request as it came: its head's lines, and its body without the framing."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        """The request line."""
        return self.head.split(b"\r\n")[0]

    def values(self, name: bytes) -> list[bytes]:
        """Of one header, in order."""
        pairs = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]


class Conversation(Protocol):
    """One connection to it."""

    def __init__(self, homeserver: "PlayedHomeserver") -> None:
        self.homeserver = homeserver
        self.data = b""
        self.lost = False

    def connectionMade(self) -> None:
        self.homeserver.connections.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self.homeserver.moved()

    def dataReceived(self, data: bytes) -> None:
        if self.homeserver.counting:
            self.homeserver.counted += len(data)
            return
        self.data += data
        while (seen := self._next()) is not None:
            self.homeserver.seen.append(seen)
            self.homeserver.answer(self, seen)
            self.homeserver.moved()

    def write(self, data: bytes) -> None:
        """Answer with these bytes."""
        transport: Any = self.transport
        transport.write(data)

    def close(self) -> None:
        """Hang up."""
        transport: Any = self.transport
        transport.loseConnection()

    def _next(self) -> Seen | None:
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return None
        head += b"\r\n"
        length = _LENGTH.search(head)
        if _CHUNKED.search(head):
            body = b""
            while True:
                size, found, after = rest.partition(b"\r\n")
                if not found or len(after) < int(size, 16) + 2:
                    return None
                body += after[: int(size, 16)]
                rest = after[int(size, 16) + 2 :]
                if int(size, 16) == 0:
                    break
        else:
            count = int(length[1]) if length else 0
            if len(rest) < count:
                return None
            body, rest = rest[:count], rest[count:]
        self.data = rest
        return Seen(head, body)


class PlayedHomeserver:
    """Listens on a loopback port. `answers` says what is answered; None: nothing, for now.

    It speaks TLS where it was given `certificates` before it listens.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.seen: list[Seen] = []
        self.connections: list[Conversation] = []
        self.answers: Callable[[Seen], bytes | None] = lambda _: an_answer()
        self.counting = False  # bodies too large to keep
        self.counted = 0
        self.hangs_up_after_answering = False
        self.certificates: Certificates | None = None
        self.port = 0
        self._listening: Any = None
        self._moved: Deferred[None] = Deferred()

    async def start(self) -> None:
        """Listen, on the port of the last time where there was one."""
        factory = Factory.forProtocol(lambda: Conversation(self))
        factory.noisy = False
        if self.certificates is None:
            self._listening = self.reactor.listenTCP(self.port, factory, interface="127.0.0.1")
        else:
            self._listening = self.reactor.listenSSL(
                self.port, factory, self.certificates, interface="127.0.0.1"
            )
        self.port = self._listening.getHost().port

    async def stop(self) -> None:
        """As a process that is killed."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        for connection in self.connections:
            transport: Any = connection.transport
            if not connection.lost:
                transport.abortConnection()
        await self.until(lambda: all(each.lost for each in self.connections))
        self.connections.clear()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'http' if self.certificates is None else 'https'}://127.0.0.1:{self.port}"

    def answer(self, conversation: Conversation, seen: Seen) -> None:
        """What it says to a request."""
        data = self.answers(seen)
        if data is not None:
            conversation.write(data)
            if self.hangs_up_after_answering:
                conversation.close()

    def moved(self) -> None:
        """Something happened."""
        moved, self._moved = self._moved, Deferred()
        moved.callback(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it, by what happens here or a little time."""
        await until(self.reactor, condition)


async def until(reactor: Any, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition; AssertionError where it does not come."""
    end_s = reactor.seconds() + timeout_s
    while not condition():
        assert reactor.seconds() < end_s, "did not happen"
        await deferLater(reactor, 0.005, lambda: None)


class Caller(Protocol):
    """A client's connection, in bytes."""

    def __init__(self) -> None:
        self.received = b""
        self.count = 0
        self.lost = False
        self.keeps = True
        self.producing: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.count += len(data)
        if self.keeps:
            self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    def send(self, data: bytes) -> None:
        """These bytes."""
        transport: Any = self.transport
        transport.write(data)

    def leave(self) -> None:
        """Without a word."""
        transport: Any = self.transport
        transport.abortConnection()

    @property
    def head(self) -> bytes:
        """Of the first answer."""
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """What came behind the first head, as it came."""
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        """Of the first answer."""
        return int(self.head.split(b" ", 2)[1])


async def call(reactor: Any, port: int, data: bytes = b"") -> Caller:
    """A connection to a port here, with bytes already on their way."""
    factory = Factory.forProtocol(Caller)
    factory.noisy = False
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    caller: Any = await endpoint.connect(factory)  # type: ignore[arg-type]  # zope
    if data:
        caller.send(data)
    result: Caller = caller
    return result


async def all_of(*works: Any) -> None:
    """All Deferreds, whatever becomes of them."""
    await DeferredList(list(works), consumeErrors=True)
