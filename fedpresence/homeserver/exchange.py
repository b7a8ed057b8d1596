"""One request to the homeserver and its answer, as a connection carries them.

Always true: what is written is framed by us, whatever the client's framing was; an answer is waited for from
the last piece of the request on, and each of its pieces has a deadline.

Source: RFC 9112, 6 (framing); RFC 9110, 9.2.2 (what may be repeated).
"""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

from typing import Any, Protocol

from twisted.internet import protocol
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from fedpresence.clock import Clock, Timer
from fedpresence.incoming import IncomingBody
from fedpresence.request import Request

ANSWER_TIMEOUT_S = 600.0  # a first join of a huge room takes minutes, and is the homeserver's to give up
PIECE_TIMEOUT_S = 600.0  # between two pieces of an answer: the client, or the homeserver, is stuck
REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})


class Through(Protocol):
    """Changes the body of an answer while it passes."""

    def feed(self, data: bytes) -> bytes:
        """What goes on of all that has come."""

    def finish(self) -> bytes:
        """What goes on at the end."""


def is_gone(request: Request) -> bool:
    """Whether nobody can be answered any more."""
    return bool(request.finished or request._disconnected)


class Patience:
    """How long an answer is waited for: from the last piece of the request on."""

    def __init__(self, asked: "Deferred[Any]", body: bytes | IncomingBody | None, clock: Clock) -> None:
        self.asked = asked
        self.is_over = False
        self._body = body if isinstance(body, IncomingBody) else None
        self._clock = clock
        self._wait()

    def end(self) -> None:
        """It came."""
        if self._timer.active():
            self._timer.cancel()

    def _wait(self) -> None:
        self._received = self._body.received if self._body is not None else 0
        self._timer: Timer = self._clock.callLater(ANSWER_TIMEOUT_S, self._expired)

    def _expired(self) -> None:
        if self._body is not None and self._body.received != self._received:
            self._wait()
        else:
            self.is_over = True
            self.asked.cancel()


class SentRequest:
    """One request as the connection writes it (`IClientRequest`): our bytes, and nothing of Twisted's."""

    absoluteURI = None
    persistent = True

    def __init__(self, method: bytes, head: bytes, body: bytes | IncomingBody | None) -> None:
        self.method = method
        self.broken: BaseException | None = None  # what the body failed with
        self._head = head
        self._body = body
        self._transport: Any = None

    @property
    def may_repeat(self) -> bool:
        """Whether it may be sent again, where no answer came."""
        return self.method in REPEATABLE and not isinstance(self._body, IncomingBody)

    def writeTo(self, transport: Any) -> "Deferred[None]":
        """Write it; fires when all of it was."""
        body = self._body
        if isinstance(body, IncomingBody):
            return self._stream(transport, body)
        framing = b""
        if body or self.method not in (b"GET", b"HEAD", b"OPTIONS", b"DELETE"):
            framing = b"Content-Length: %d\r\n" % len(body or b"")
        transport.writeSequence([self._head, framing, b"\r\n", body or b""])
        return succeed(None)

    def stopWriting(self) -> None:
        """The connection has ended."""
        if isinstance(self._body, IncomingBody):
            self._body.stopProducing()
        if self._transport is not None:
            self._transport.unregisterProducer()

    def _stream(self, transport: Any, body: IncomingBody) -> "Deferred[None]":
        self._transport = transport
        if body.length is None:
            transport.writeSequence([self._head, b"Transfer-Encoding: chunked\r\n\r\n"])
        else:
            transport.writeSequence([self._head, b"Content-Length: %d\r\n\r\n" % body.length])
        transport.registerProducer(body, True)
        sent = body.send_to(transport if body.length is not None else _Chunks(transport))

        def written(outcome: Any) -> Any:
            transport.unregisterProducer()
            if isinstance(outcome, Failure):
                self.broken = outcome.value
                transport.abortConnection()
            elif body.length is None:
                transport.write(b"0\r\n\r\n")
            return outcome

        return sent.addBoth(written)


class _Chunks:
    """Writes pieces as HTTP chunks."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if data:
            self._transport.writeSequence([b"%x\r\n" % len(data), data, b"\r\n"])


class _Timed(protocol.Protocol):
    """The body of an answer, whose pieces have a deadline."""

    def __init__(self, clock: Clock) -> None:
        self._timer: Any = clock.callLater(PIECE_TIMEOUT_S, self.give_up)

    def give_up(self) -> None:
        """End the connection: nobody reads on, or nothing comes."""
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def _stop_timer(self) -> None:
        timer: Timer = self._timer
        if timer.active():
            timer.cancel()


class Delivery(_Timed):
    """The body of an answer to the client, as it comes; `done` says whether all of it came."""

    def __init__(
        self, request: Request, done: "Deferred[bool]", clock: Clock, through: Through | None
    ) -> None:
        super().__init__(clock)
        self._request = request
        self._done = done
        self._through = through

    def connectionMade(self) -> None:
        """The client's pace is the homeserver's."""
        if not is_gone(self._request):
            self._request.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """A piece of it."""
        self._timer.reset(PIECE_TIMEOUT_S)
        if not is_gone(self._request):
            self._request.write(data if self._through is None else self._through.feed(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of it, or of the connection."""
        self._stop_timer()
        if not is_gone(self._request):
            self._request.unregisterProducer()
        self._done.callback(bool(reason.check(ResponseDone, PotentialDataLoss)))


class ReadWhole(_Timed):
    """The body of an answer for ourselves."""

    def __init__(self, limit: int, done: "Deferred[bytes | None]", clock: Clock) -> None:
        super().__init__(clock)
        self._left = limit
        self._parts: list[bytes] = []
        self._done = done

    def dataReceived(self, data: bytes) -> None:
        """A piece of it."""
        self._left -= len(data)
        if self._left < 0:
            self._parts.clear()
            self.give_up()
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of it, or of the connection."""
        self._stop_timer()
        whole = self._left >= 0 and reason.check(ResponseDone, PotentialDataLoss)
        self._done.callback(b"".join(self._parts) if whole else None)
