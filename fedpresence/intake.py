"""Bounded HTTP for every listener: no request costs more than it may, whoever sends it.

Always true:
- a body is read only after its request was admitted by its head, and never beyond the limit that it got;
- all bodies in memory share one byte budget, and one origin has at most a quarter of it (Z-2);
- a request has one deadline from its first byte to its last, which does not run while we decide;
- a body that streams is never kept here: its resource takes it as it comes, and each piece has a deadline;
- who is refused early gets a JSON error and `Connection: close`; nothing after it is parsed;
- nothing is written to an access log.

Twisted's own request keeps a body without limit and asks nobody before it reads one; hence the subclasses
here. Source: Z-1, Z-2.
"""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints, and as our base classes they are not excluded by name.)

from collections.abc import Awaitable
from functools import partial
from io import BytesIO
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.iweb import INonQueuedRequestFactory
from twisted.web.resource import Resource, getChildForRequest
from twisted.web.server import Request, Site
from zope.interface import provider

from fedpresence.admission import Admit, Admitted, BodyBudget, RequestHead, busy, too_large
from fedpresence.clock import Alarm, Clock, Timer
from fedpresence.config import LimitsConfig
from fedpresence.errors import BadRequest
from fedpresence.incoming import IncomingBody
from fedpresence.web import CLIENT_PATHS, CORS_HEADERS, write_error

_log = Logger()

REQUEST_TIMEOUT_S = 60.0  # a whole request, head and body
ADMISSION_TIMEOUT_S = 60.0  # a key fetch gives up by itself long before
PIECE_TIMEOUT_S = 60.0  # the next piece of a body that streams, which may take hours as a whole
LINGER_S = 3.0  # after an early refusal: a close with unread bytes resets, and the answer would be lost
LINGER_BYTES = 1_048_576  # what we throw away meanwhile
CLOSE_S = 5.0  # what a clean stop waits for answers that are owed

_MALFORMED = b'{"errcode":"M_UNKNOWN","error":"Not an HTTP request that we can read"}'
MALFORMED = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_MALFORMED), _MALFORMED)
)  # what has no request gets no Request either: written as it is


@provider(INonQueuedRequestFactory)
class BoundedRequest(Request):
    """A request whose body is counted while it arrives."""

    def __init__(self, channel: "BoundedChannel") -> None:
        super().__init__(channel)
        self._bounded = channel
        self._body = BytesIO()
        self.admitted: Admitted | None = None
        self.incoming: IncomingBody | None = None
        self._held = 0

    def process(self) -> None:
        """Find the resource and render it: Twisted's own way, less what nothing here uses.

        No encoders and no `Server`; a `Date` is made once a second, and a path without a `%` is not unquoted.
        """
        if self.path == b"*":
            super().process()
            return
        self.setHeader(b"Date", self._bounded.site.date())
        segments = self.path[1:].split(b"/")
        self.prepath = []
        self.postpath = list(map(unquote_to_bytes, segments)) if b"%" in self.path else segments
        try:
            self.render(self._bounded.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())

    def begin(self, method: bytes, uri: bytes, version: bytes) -> None:
        """What Twisted sets only once the body is here: a refusal needs it before."""
        self.method, self.uri, self.clientproto = method, uri, version
        self.path = uri.partition(b"?")[0]

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory: it is bounded, and a temporary file would block the reactor."""
        self.content = self._body

    def handleContentChunk(self, data: bytes) -> None:
        """Keep `data` if the limit and the budget allow it; else refuse the whole request."""
        if self.finished or self.admitted is None:
            return
        if self.incoming is not None:
            self._bounded.more_came()
            if self.incoming.received + len(data) > self.admitted.limit:
                self.incoming.broken(too_large())
            self.incoming.arrived(data)
        elif self._held + len(data) > self.admitted.limit:
            self._bounded.refuse(self, too_large())
        elif not self._bounded.site.budget.take(self.admitted.origin, len(data)):
            self._bounded.refuse(self, busy())
        else:
            self._held += len(data)
            self._body.write(data)

    def stream(self, incoming: IncomingBody) -> None:
        """Ask the resource now; the body is still to come."""
        self.incoming = incoming
        super().requestReceived(self.method, self.uri, self.clientproto)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it is here."""
        if self.incoming is None:
            super().requestReceived(command, path, version)
        else:
            self.incoming.ended()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        super().connectionLost(reason)
        if self.incoming is not None:
            self.incoming.broken()

    @property
    def held(self) -> int:
        """Bytes of this body that count in the budget."""
        return self._held

    def let_go(self, budget: BodyBudget) -> None:
        """Give the bytes back; idempotent."""
        if self.admitted is not None and self._held:
            budget.give_back(self.admitted.origin, self._held)
        self._held = 0


class BoundedChannel(HTTPChannel):
    """One connection: Twisted's parser, stopped between head and body until the request is admitted."""

    site: "BoundedSite"
    timeOut: Any  # in seconds; Twisted says whole ones
    _networkProducer: Any
    _reading = False  # bytes of the next request have come
    _deadline_s = 0.0
    _deciding = False  # the head is here, the admission is not
    _content_due = False  # the (empty) body was complete before the decision
    _held_up = False  # the transport is paused for a decision
    _body_held = False  # the transport is paused because a body that streams cannot go on
    _refused = False
    _lingering = False
    _linger_left = 0
    _admitting: Deferred[None] | None = None
    _linger_call: Timer | None = None
    _patience: Alarm | None = None
    _peer: Any = None
    _host: Any = None

    def getPeer(self) -> Any:
        """The address of the other side, asked for once: each request wants it."""
        if self._peer is None:
            self._peer = super().getPeer()
        return self._peer

    def getHost(self) -> Any:
        """Our own address, asked for once: it is a call to the system."""
        if self._host is None:
            self._host = super().getHost()
        return self._host

    def setTimeout(self, period: float | None) -> float | None:
        """Be too slow in `period` seconds, or never; answers the period before. Set thrice a request."""
        before: float | None = self.timeOut
        self.timeOut = period
        if self._patience is None:
            self._patience = Alarm(self.site.clock, self.timeoutConnection)
        self._patience.set(period)
        return before

    def connectionMade(self) -> None:
        """Take the connection, or close it at once where there are too many."""
        transport: Any = self.transport
        if not self.site.opened(self):
            transport.abortConnection()
            return
        keep_alive = getattr(transport, "setTcpKeepAlive", None)
        if keep_alive is not None:
            keep_alive(True)  # a long poll of a client that is gone must end some day
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Feed the parser. Only the first byte of a request restarts the clock: a trickle does not."""
        if self._lingering:
            self._discard(data)
            return
        if data and not self._reading:
            self._reading = True
            self._deadline_s = self.site.clock.seconds() + REQUEST_TIMEOUT_S
            self.setTimeout(REQUEST_TIMEOUT_S)
        LineReceiver.dataReceived(self, data)

    def headerReceived(self, line: bytes) -> bool:
        """As Twisted's; a `Content-Length` of thousands of digits is malformed and not our bug."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line without end is malformed. Over TLS, Twisted's own close would wait for our producer."""
        self._respondToBadRequestAndDisconnect()

    def allHeadersReceived(self) -> None:
        """Ask whether the request is admitted; meanwhile nothing more is read."""
        request: BoundedRequest = self.requests[-1]
        method, uri, version = cast("tuple[bytes, bytes, bytes]", (self._command, self._path, self._version))
        self.persistent = self.checkPersistence(request, version)
        request.begin(method, uri, version)
        request.gotLength(self.length)
        head = RequestHead(
            request.method, request.uri, request.requestHeaders, self.length, request.getClientAddress()
        )
        try:
            awaited = self.site.admit(head) if self.site.admit is not None else None
        except BadRequest as error:
            self.refuse(request, error)
            return
        if awaited is None or isinstance(awaited, Admitted):
            self._admit(request, awaited or Admitted(self.site.limits.client_body))
            return
        self._deciding = True
        self._admitting = ensureDeferred(self._decide(request, awaited))
        self._admitting.addErrback(_expect_cancelled)
        if self._deciding:
            self._hold_up()

    def allContentReceived(self) -> None:
        """The request is complete: pass it on, once it is admitted."""
        if self._refused:
            return
        if self._deciding:
            self._content_due = True
            return
        self._hold_body(False)  # its taker, who has it all, will not ask for more
        super().allContentReceived()

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """As Twisted's, but in one piece: it would look at each of thirty."""
        lines = [b"%b %b %b" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines.extend(b"%b: %b" % (name, value) for value in values)
        self.write(b"\r\n".join((*lines, b"", b"")))

    def requestDone(self, request: Request) -> None:
        """The answer is written: its body's bytes are free; the next request may come."""
        assert isinstance(request, BoundedRequest)
        length, held = self.length, request.held
        request.let_go(self.site.budget)
        if request.incoming is not None and not request.incoming.complete:
            held = request.incoming.received
            self._refused = True  # answered before it was all sent: nothing more of it is read
            self.paused = True
            self.persistent = False
            self._hold_body(False)
        self._reading = False
        if self._savedTimeOut:
            self._savedTimeOut = self.site.limits.idle_connection_ms / 1000
        if self._refused:
            del self.requests[0]
            self._linger(None if length is None else length - held)
        else:
            super().requestDone(request)

    def refuse(self, request: BoundedRequest, error: BadRequest) -> None:
        """Answer `error` now, whatever of the request is still to come, and close."""
        self._refused = True
        self.persistent = False
        self.paused = True  # the parser reads no further
        request.setHeader("Connection", "close")
        if request.uri.startswith(CLIENT_PATHS):  # a browser hides an error without them (P:9.3)
            for name, value in CORS_HEADERS:
                request.setHeader(name, value)
        write_error(request, error)

    def resumeProducing(self) -> None:
        """The transport's buffer has room again: read on, unless a decision is awaited."""
        if self._held_up:
            self._waitingForTransport = False
        else:
            super().resumeProducing()
            if self._body_held:
                self._networkProducer.pauseProducing()

    def end(self) -> None:
        """Close once no answer is owed any more."""
        self.persistent = False
        is_asked = any(request.incoming is not None for request in self.requests)  # its body still comes
        if not self._handlingRequest and not is_asked:
            self._close()

    def abort(self) -> None:
        """Close without courtesy."""
        transport: Any = self.transport
        transport.abortConnection()

    def timeoutConnection(self) -> None:
        """Too slow: close, and soon without courtesy."""
        _log.debug("{peer} was too slow", peer=self.getPeer())
        self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Free whatever the connection held."""
        self.site.gone(self)
        for request in self.requests:
            request.let_go(self.site.budget)
        if self._linger_call is not None:
            self._linger_call.cancel()
            self._linger_call = None
        self._refused = True  # a decision that still comes finds nobody
        super().connectionLost(reason)
        if self._patience is not None:
            self._patience.close()
        if self._admitting is not None:
            self._admitting.cancel()

    async def _decide(self, request: BoundedRequest, awaited: Awaitable[Admitted]) -> None:
        outcome: Admitted | BadRequest
        try:
            outcome = await awaited
        except BadRequest as error:
            outcome = error
        except CancelledError:
            raise
        except Exception:
            _log.failure("admitting {method} {path} failed", method=request.method, path=request.path)
            outcome = BadRequest("M_UNKNOWN", "Internal server error", status=500)
        if self._refused:
            return
        self._deciding = False
        self._go_on()
        if isinstance(outcome, Admitted):
            self._admit(request, outcome)
        else:
            self.refuse(request, outcome)
        if self._content_due:
            self._content_due = False
            self.allContentReceived()
        if not self._refused:
            self.dataReceived(b"")  # what had come before the decision is still in the parser's buffer

    def _admit(self, request: BoundedRequest, admitted: Admitted) -> None:
        announced = self.length or 0
        if announced > admitted.limit:
            self.refuse(request, too_large())
            return
        if not admitted.streams and not self.site.budget.fits(admitted.origin, announced):
            self.refuse(request, busy())
            return
        request.admitted = admitted
        expect = request.requestHeaders.getRawHeaders(b"Expect") or [b""]
        if self.length != 0 and expect[0].lower() == b"100-continue" and self._version == b"HTTP/1.1":
            self._send100Continue()
        if admitted.streams and self.length != 0:
            hold, release = partial(self._hold_body, True), partial(self._hold_body, False)
            request.stream(IncomingBody(self.length, hold, release))

    def more_came(self) -> None:
        """A piece of a body that streams: the next one has its own time."""
        if not self._body_held:
            self.setTimeout(PIECE_TIMEOUT_S)

    def _hold_body(self, held: bool) -> None:
        """Read on, or not: not while those who take the body have no room for it."""
        if held == self._body_held:
            return
        self._body_held = held
        if held:
            self.setTimeout(None)
            self._networkProducer.pauseProducing()
        else:
            self.setTimeout(PIECE_TIMEOUT_S)
            if not self._waitingForTransport and not self._lingering:
                self._networkProducer.resumeProducing()

    def _hold_up(self) -> None:
        self._held_up = True
        self.paused = True
        self._networkProducer.pauseProducing()
        self.setTimeout(ADMISSION_TIMEOUT_S)
        self._deadline_s -= self.site.clock.seconds()

    def _go_on(self) -> None:
        if not self._held_up:
            return
        self._held_up = False
        self.paused = False
        left_s = max(1.0, self._deadline_s)
        self._deadline_s = self.site.clock.seconds() + left_s
        self.setTimeout(left_s)
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()

    def _linger(self, unread: int | None) -> None:
        """Throw away what is still on its way, for a while, so that the answer arrives; then close."""
        self._lingering = True
        already = len(self.clearLineBuffer())
        self._linger_left = LINGER_BYTES if unread is None else min(unread, LINGER_BYTES)
        self.setTimeout(None)
        self._linger_call = self.callLater(LINGER_S, self._linger_over)
        self._discard_count(already)

    def _discard(self, data: bytes) -> None:
        if self._linger_call is not None:
            self._discard_count(len(data))

    def _discard_count(self, count: int) -> None:
        self._linger_left -= count
        if self._linger_left <= 0 and self._linger_call is not None:
            self._linger_call.cancel()
            self._linger_over()

    def _linger_over(self) -> None:
        self._linger_call = None
        self._close()

    def _close(self) -> None:
        self._lingering = True  # over TLS the peer may take its time to agree, and send on meanwhile
        if self._abortingCall is None:
            self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
            self.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Say 400 and parse no further: there is no request that could be answered.

        Twisted's own would close. Over TLS that waits for the peer, and until then the parser goes on:
        it takes one line of each packet and keeps the rest, without limit.
        """
        if not self._refused:
            self._refused = True
            self.paused = True
            transport: Any = self.transport
            transport.write(MALFORMED)
            self._linger(None)


class BoundedSite(Site):
    """A listener's site: its limits, its connections, and who admits requests to it.

    `budget` is shared by all listeners of a daemon.
    """

    protocol = BoundedChannel  # type: ignore[assignment]  # HTTP/1.1 only: no proxy that switches to 2
    noisy = False  # the daemon says itself where it listens

    def __init__(
        self,
        resource: Resource,
        limits: LimitsConfig,
        clock: Clock,
        budget: BodyBudget,
        admit: Admit | None = None,
    ) -> None:
        super().__init__(
            resource,
            BoundedRequest,
            timeout=REQUEST_TIMEOUT_S,
            reactor=clock,
            parsePOSTFormSubmission=False,
        )
        self.clock = clock
        self.limits = limits
        self.budget = budget
        self.admit = admit
        self._channels: set[BoundedChannel] = set()
        self._closed: Deferred[None] | None = None
        self._date = (0, b"")

    def date(self) -> bytes:
        """This second, as HTTP writes it."""
        second = int(self.clock.seconds())
        if second != self._date[0]:
            self._date = (second, datetimeToString(second))
        return self._date[1]

    def getResourceFor(self, request: Request) -> Resource:
        """Who answers: as Twisted's, without the paths of sessions that nobody has here."""
        found: Resource = getChildForRequest(self.resource, request)
        return found

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._channels)

    def opened(self, channel: BoundedChannel) -> bool:
        """Whether one more connection may stay; it counts if so."""
        if self._closed is not None or len(self._channels) >= self.limits.connections:
            return False
        self._channels.add(channel)
        return True

    def gone(self, channel: BoundedChannel) -> None:
        """A connection has ended, whether it counted or not."""
        self._channels.discard(channel)
        if self._closed is not None and not self._channels and not self._closed.called:
            self._closed.callback(None)

    def close(self) -> Deferred[None]:
        """Take no more connections and end those that are open; called once, after the port is closed.

        Idle ones end now, the others with the answer that they wait for, all of them within 5 s. Fires
        when none is left.
        """
        self._closed = Deferred()
        if not self._channels:
            self._closed.callback(None)
            return self._closed
        abort = self.clock.callLater(CLOSE_S, self._abort)
        for channel in list(self._channels):
            channel.end()
        return self._closed.addBoth(lambda _: _cancel(abort))

    def _abort(self) -> None:
        for channel in list(self._channels):
            channel.abort()

    def reload(self, limits: LimitsConfig) -> None:
        """New limits, for what comes from now on."""
        self.limits = limits
        self.budget.total = limits.bodies_in_flight

    def startFactory(self) -> None:
        """No access log, so nothing to open and no clock to keep."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def log(self, request: Any) -> None:
        """Query strings carry tokens: no access log."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only."""
        return [b"http/1.1"]


def grounds_of(request: Request) -> object:
    """What the admission found out about `request`; None where nobody was asked."""
    if isinstance(request, BoundedRequest) and request.admitted is not None:
        return request.admitted.grounds
    return None


def body_of(request: Request) -> "IncomingBody | bytes":
    """The body of `request`: still to be taken where it streams, else all of it."""
    if isinstance(request, BoundedRequest) and request.incoming is not None:
        return request.incoming
    if request.content is None:
        return b""
    request.content.seek(0)
    data: bytes = request.content.read()
    return data


def _cancel(timer: Timer) -> None:
    if timer.active():
        timer.cancel()


def _expect_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
