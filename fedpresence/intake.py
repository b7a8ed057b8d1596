"""Bounded HTTP for every listener: no request costs more than it may, whoever sends it.

Always true:
- a body is taken only after its request was admitted by its head, and never beyond the limit that it got;
- all bodies in memory share one byte budget, and one origin at one address has at most a quarter (Z-2);
- what has come of a connection and waits for its turn is at most what two reads bring; then it is not read;
- who does not read our answers gets no more of them made;
- a request has one deadline from its first byte to its last, which does not run while we decide;
- a body that streams is never kept here: its resource takes it as it comes, and each piece has a deadline;
- who is refused early gets a JSON error and `Connection: close`; nothing after it is answered;
- nothing is written to an access log.

The bytes are read by llhttp, the parser of Node.js, by way of httptools; when they may come, and what becomes
of them, is decided here. Twisted's own server keeps a body without limit and asks nobody before it reads one.

Source: Z-1, Z-2; RFC 9112.
"""

from collections import deque
from collections.abc import Awaitable
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fedpresence.admission import Admitted, RequestHead, busy, too_large
from fedpresence.clock import Alarm, Timer
from fedpresence.errors import BadRequest
from fedpresence.framing import MALFORMED, MAX_HEAD_BYTES, answer_to, head_of_body, is_endless, is_sound
from fedpresence.incoming import IncomingBody
from fedpresence.prompt import has_unsent, prompt
from fedpresence.request import Request, date_of
from fedpresence.web import CLIENT_PATHS, CORS_HEADERS, write_error

if TYPE_CHECKING:
    from fedpresence.site import BoundedSite

_log = Logger()

REQUEST_TIMEOUT_S = 60.0  # a whole request, head and body
ADMISSION_TIMEOUT_S = 60.0  # a key fetch gives up by itself long before
PIECE_TIMEOUT_S = 60.0  # the next piece of a body that streams, which may take hours as a whole
LINGER_S = 3.0  # after an early refusal: a close with unread bytes resets, and the answer would be lost
LINGER_BYTES = 1_048_576  # what we throw away meanwhile
ABORT_S = 15.0  # what a close waits for the other side's
MAX_AHEAD_BYTES = 16_384  # of following requests, read while an answer is owed: so we notice who leaves
MAX_WAITING = 50  # requests behind one whose answer is owed: each is far larger here than on its way


@implementer(IPushProducer)
class BoundedChannel(Protocol):
    """One connection: its requests in their order, each stopped between head and body until it is admitted.

    Those whose names begin with `on_` are called by the parser.
    """

    def __init__(self, site: "BoundedSite") -> None:
        self.site = site
        self.peer: Any = None
        self.is_secure = False
        self.is_persistent = True  # more requests may come
        self._parser: Any = HttpRequestParser(self)
        self._requests: deque[Request] = deque()  # not answered yet; the first is under way
        self._arriving: Request | None = None  # the last of them, while it is not complete
        self._is_parsing = self._is_going_on = False
        self._ahead: list[bytes] = []  # not parsed yet: an answer is owed, or a decision awaited
        self._ahead_bytes = 0
        self._unseen_bytes = 0  # parsed, but of a head or trailer that has not ended
        self._malformed: bytes = b""  # what cannot be read is answered with this, in its turn
        self._is_reading = False  # bytes of the next request have come
        self._deadline_s = 0.0
        self._admitting: Deferred[None] | None = None
        self._is_deciding = False  # the admission of the first is awaited
        self._holds: set[str] = set()  # why the transport is paused
        self._producer: Any = None  # who writes the answer
        self._is_refused = False
        self._linger_call: Timer | None = None
        self._linger_left = 0
        self._is_lingering = False
        self._abort_call: Timer | None = None
        self._patience = Alarm(site.clock, self._too_slow)

    # --- the connection ------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Take the connection, or close it at once where there are too many."""
        transport: Any = prompt(self.transport)
        self.transport = transport
        if not self.site.opened(self):
            transport.abortConnection()
            return
        if hasattr(transport, "setTcpNoDelay"):  # a Unix socket has neither
            transport.setTcpKeepAlive(True)  # a long poll of a client that is gone must end some day
            transport.setTcpNoDelay(True)  # a second piece does not wait until the first is acknowledged
        self.peer = transport.getPeer()
        self.is_secure = ISSLTransport.providedBy(transport)
        transport.registerProducer(self, True)  # who does not read our answers is not read from
        self._patience.set(REQUEST_TIMEOUT_S)

    def dataReceived(self, data: bytes) -> None:
        """Parse `data`, or keep it while an answer is owed."""
        if self._is_lingering:
            self._discard(len(data))
        elif self._is_busy():
            self._ahead.append(data)
            self._ahead_bytes += len(data)
            if self._ahead_bytes > MAX_AHEAD_BYTES:
                self._hold("ahead")
        else:
            self._parse(data)
            if self._requests or self._malformed or self._unseen_bytes:
                self._go_on()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Free whatever the connection held."""
        self._is_refused = self._is_lingering = True  # a decision that still comes finds nobody
        self._patience.close()
        for call in (self._linger_call, self._abort_call):
            if call is not None:
                _cancel(call)
        requests, self._requests = self._requests, deque()
        for request in requests:
            self._let_go(request)
            request.connectionLost(reason)
        if self._admitting is not None:
            self._admitting.cancel()
        self._arriving = None
        self._parser = None  # it knows us: a circle
        self.site.gone(self)  # last: who waits for the end of all finds nothing left

    @property
    def is_unused(self) -> bool:
        """Whether nothing is asked here: no whole head waits for an answer, and no answer for its reader."""
        is_asked = self._requests and self._requests[0].method
        return not (is_asked or "full" in self._holds or has_unsent(self.transport))

    def pauseProducing(self) -> None:
        """The other side does not read what we write."""
        self._hold("full")
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """It does again."""
        self._release("full")
        if self._producer is not None:
            self._producer.resumeProducing()
        self._go_on()

    def stopProducing(self) -> None:
        """The connection ends."""
        if self._producer is not None:
            self._producer.stopProducing()

    def end(self) -> None:
        """Close once no answer is owed any more."""
        self.is_persistent = False
        request = self._requests[0] if self._requests else None
        if request is None or request.admitted is None or not (request.is_complete or request.incoming):
            self._close()
        else:
            request.is_persistent = False

    def give_way(self) -> None:
        """Close now, whatever the other side says to it; what the system has taken still arrives there."""
        self._is_refused = self._is_lingering = True
        transport: Any = self.transport
        (transport.transport if self.is_secure else transport).loseConnection()

    def abort(self) -> None:
        """Close without courtesy."""
        self._is_refused = self._is_lingering = True
        transport: Any = self.transport
        transport.abortConnection()

    # --- for the answers -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """More of an answer."""
        transport: Any = self.transport
        transport.write(data)

    def write_for(self, producer: Any) -> None:
        """Who writes the answer, and waits while nobody reads; None: nobody any more."""
        self._producer = producer
        if producer is not None and "full" in self._holds:
            producer.pauseProducing()

    def answered(self, request: Request) -> None:
        """The answer is written: its body's bytes are free; the next request may come."""
        self._requests.popleft()
        self._let_go(request)
        self._producer = None
        if not request.is_complete:  # what is still to come of it is not read
            self._is_refused = True
            self._release("body")
        if self._is_refused:
            self._linger(request.unread)
        elif not (request.is_persistent and self.is_persistent):
            self._close(self.site.limits.idle_connection_ms / 1000)  # who stays has as long to read it
        else:
            self._is_reading = False
            self.site.answered(self)
            self._patience.set(self.site.limits.idle_connection_ms / 1000)
            if not self._is_parsing:
                self._go_on()

    # --- the parser ----------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """The beginning of a request, or a further piece of its target."""
        if self._is_refused:
            return
        if self._arriving is None:
            if len(self._requests) == MAX_WAITING:
                self._requests[-1].is_persistent = False  # no more are answered here
                return
            self._arriving = Request(self)
            self._requests.append(self._arriving)
        if not self._arriving.method:
            self._arriving.uri += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field. Those behind a chunked body say nothing to us."""
        request = self._arriving
        if request is not None and not request.method:
            request.requestHeaders.addRawHeader(name, value.strip())

    def on_headers_complete(self) -> None:
        """The head is here: it is looked at, when it is its turn."""
        request, parser = self._arriving, self._parser
        if request is None or request.method:
            return
        request.method, request.version = parser.get_method(), parser.get_http_version().encode("ascii")
        request.path = request.uri.partition(b"?")[0]
        request.is_persistent = request.version == b"1.1" and parser.should_keep_alive()
        request.is_sound = is_sound(request, self._unseen_bytes)
        if not request.is_sound:
            self._malformed = MALFORMED
        elif request is self._requests[0] and "full" not in self._holds:
            self._take_up(request)
        self._unseen_bytes = 0

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        request = self._arriving
        self._unseen_bytes = 0
        if self._is_lingering:
            self._discard(len(data))
        elif request is not None and request.admitted is None:
            request.pieces.append(data)
        elif request is not None:
            self._body_came(request, data)

    def on_message_complete(self) -> None:
        """All of it is here."""
        request = self._arriving
        self._unseen_bytes = 0
        if request is None or not request.is_sound:
            return
        if request.length != 0 and self._parser.should_upgrade():
            return  # it passes over the body: see `_parse`
        self._arriving = None
        request.is_complete = True
        if request.admitted is not None and not self._is_refused:
            self._complete(request)

    def _parse(self, data: bytes) -> None:
        self._unseen_bytes += len(data)
        self._is_parsing = True
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    break
                except HttpParserUpgrade as error:  # to another protocol: we speak this one alone
                    data = data[error.args[0] :]
                    if self._arriving is not None:
                        self._parser = HttpRequestParser(self)
                        self._parser.feed_data(head_of_body(self._arriving.length))
        except HttpParserCallbackError as error:
            failure = Failure(error.__context__ or error)
            _log.failure("reading a request of {peer} failed", failure, peer=self.peer)
            self.abort()
        except HttpParserError as error:
            is_first = self._unseen_bytes == len(data)  # of what came now, it is the first thing read
            self._malformed = answer_to(error, data if is_first else b"")
        self._is_parsing = False
        if self._unseen_bytes > MAX_HEAD_BYTES and is_endless(self._arriving, self._unseen_bytes):
            self._malformed = MALFORMED

    def _go_on(self) -> None:
        """Whatever can be done with what has come; not more answers than the other side reads."""
        if self._is_parsing or self._is_going_on:  # an answer was given at once: the loop goes on by itself
            return
        self._is_going_on = True
        while not self._is_refused and not self._is_deciding and "full" not in self._holds:
            request = self._requests[0] if self._requests else None
            if request is not None and request.is_sound and request.admitted is None:
                self._take_up(request)
            elif self._malformed and request is self._arriving:
                self._refuse_malformed(request)
            elif self._ahead and not self._is_busy():
                data, self._ahead, self._ahead_bytes = b"".join(self._ahead), [], 0
                self._release("ahead")
                self._parse(data)
            else:
                break
        self._is_going_on = False
        self._start_clock()

    def _is_busy(self) -> bool:
        """Whether an answer is owed, or a decision awaited: then what comes waits."""
        return bool(self._requests) and (self._is_deciding or self._requests[0].is_complete)

    def _start_clock(self) -> None:
        """Only the first byte of a request does, once it is its turn: a trickle does not."""
        if self._is_reading or self._is_refused:
            return
        if self._requests:
            is_due = self._requests[0].incoming is None and not self._is_busy()  # pieces have their own time
        else:
            is_due = self._unseen_bytes > 0
        if is_due:
            self._begin_clock()

    def _begin_clock(self) -> None:
        self._is_reading = True
        self._deadline_s = self.site.clock.seconds() + REQUEST_TIMEOUT_S
        self._patience.set(REQUEST_TIMEOUT_S)

    # --- the admission -------------------------------------------------------------------------------

    def _take_up(self, request: Request) -> None:
        """Ask whether `request`, whose turn it is, is admitted; meanwhile nothing more is read."""
        head = RequestHead(request.method, request.uri, request.requestHeaders, request.length, self.peer)
        try:
            awaited = self.site.admit(head) if self.site.admit is not None else None
        except BadRequest as error:
            self.refuse(request, error)
            return
        except Exception:
            self.refuse(request, _our_fault("admitting", request))
            return
        if awaited is None or isinstance(awaited, Admitted):
            self._admit(request, awaited or self.site.plain)
            return
        self._is_deciding = True
        self._admitting = ensureDeferred(self._decide(request, awaited))
        self._admitting.addErrback(_expect_cancelled)
        if self._is_deciding:
            if not self._is_reading:
                self._begin_clock()
            self._hold("decision")
            self._deadline_s -= self.site.clock.seconds()
            self._patience.set(ADMISSION_TIMEOUT_S)

    async def _decide(self, request: Request, awaited: Awaitable[Admitted]) -> None:
        outcome: Admitted | BadRequest
        try:
            outcome = await awaited
        except BadRequest as error:
            outcome = error
        except CancelledError:
            raise
        except Exception:
            outcome = _our_fault("admitting", request)
        if self._is_refused:
            return
        self._is_deciding = False
        if "decision" in self._holds:
            left_s = max(1.0, self._deadline_s)
            self._deadline_s = self.site.clock.seconds() + left_s
            self._patience.set(left_s)
            self._release("decision")
        if isinstance(outcome, Admitted):
            self._admit(request, outcome)
        else:
            self.refuse(request, outcome)
        self._go_on()

    def _admit(self, request: Request, admitted: Admitted) -> None:
        announced = request.length or 0
        if announced > admitted.limit:
            self.refuse(request, too_large())
            return
        if not admitted.streams and announced and not self.site.budget.fits(admitted.claimant, announced):
            self.refuse(request, busy())
            return
        request.admitted = admitted
        if request.length != 0:
            expect = request.requestHeaders.getRawHeaders(b"expect")
            if expect and expect[0].lower() == b"100-continue" and request.version == b"1.1":
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            early, request.pieces = request.pieces, []
            if admitted.streams:
                hold, release = partial(self._hold_body, True), partial(self._hold_body, False)
                request.incoming = IncomingBody(request.length, hold, release)
                self._patience.set(PIECE_TIMEOUT_S)  # for the first piece
                self._serve(request)
            for data in early:
                self._body_came(request, data)
        if request.is_complete and not (self._is_refused or request.finished):
            self._complete(request)

    # --- the body ------------------------------------------------------------------------------------

    def _body_came(self, request: Request, data: bytes) -> None:
        """Keep `data` if the limit and the budget allow it; else refuse the whole request."""
        admitted, incoming = request.admitted, request.incoming
        if request.finished or self._is_refused or admitted is None:
            return
        if incoming is not None:
            if "body" not in self._holds:
                self._patience.set(PIECE_TIMEOUT_S)  # for the next piece
            if incoming.received + len(data) > admitted.limit:
                incoming.broken(too_large())
            incoming.arrived(data)
        elif request.held + len(data) > admitted.limit:
            self.refuse(request, too_large())
        elif not self.site.budget.take(admitted.claimant, len(data)):
            self.refuse(request, busy())
        else:
            request.held += len(data)
            request.pieces.append(data)

    def _complete(self, request: Request) -> None:
        """Its body is whole: let it be answered, or tell who takes it."""
        self._patience.set(None)
        if request.incoming is None:
            self._serve(request)
        else:
            self._release("body")  # its taker, who has it all, will not ask for more
            request.incoming.ended()

    def _serve(self, request: Request) -> None:
        request.content = BytesIO(b"".join(request.pieces))
        request.setHeader(b"Date", date_of(int(self.site.clock.seconds())))
        try:
            request.answer_from(self.site.resource)
        except Exception:
            error = _our_fault("answering", request)
            if request.startedWriting and not request.finished:
                self.abort()
            else:
                write_error(request, error)

    def _let_go(self, request: Request) -> None:
        """Give the bytes of its body back; idempotent."""
        if request.admitted is not None and request.held:
            self.site.budget.give_back(request.admitted.claimant, request.held)
            request.held = 0

    # --- reading or not ------------------------------------------------------------------------------

    def _hold(self, reason: str) -> None:
        """Read no more, for one more reason."""
        transport: Any = self.transport
        if not self._holds:
            transport.pauseProducing()
        self._holds.add(reason)

    def _release(self, reason: str) -> None:
        """That reason is gone; idempotent."""
        transport: Any = self.transport
        if reason in self._holds:
            self._holds.remove(reason)
            if not self._holds:
                transport.resumeProducing()

    def _hold_body(self, held: bool) -> None:
        """Read on, or not: not while those who take the body have no room for it."""
        if held == ("body" in self._holds) or self._is_lingering:
            return
        self._patience.set(None if held else PIECE_TIMEOUT_S)
        if held:
            self._hold("body")
        else:
            self._release("body")

    # --- the end -------------------------------------------------------------------------------------

    def refuse(self, request: Request, error: BadRequest) -> None:
        """Answer `error` now, whatever of the request is still to come, and close."""
        self._is_refused = True
        request.is_persistent = False
        if request.uri.startswith(CLIENT_PATHS):  # a browser hides an error without them (P:9.3)
            for name, value in CORS_HEADERS:
                request.setHeader(name, value)
        write_error(request, error)

    def _refuse_malformed(self, request: Request | None) -> None:
        """Say so and parse no further: there is no request that could be answered, or not all of it."""
        self._is_refused = True
        if request is not None and request.incoming is not None:
            request.is_persistent = False
            request.incoming.broken(BadRequest("M_UNKNOWN", "Not an HTTP request that we can read"))
            return
        if request is not None:
            self._let_go(request)
        self.write(self._malformed)
        self._linger(None)

    def _linger(self, unread: int | None) -> None:
        """Throw away what is still on its way, for a while, so that the answer arrives; then close."""
        self._is_lingering = True
        for reason in list(self._holds - {"full"}):
            self._release(reason)
        already, self._ahead, self._ahead_bytes = self._ahead_bytes, [], 0
        self._linger_left = LINGER_BYTES if unread is None else min(unread, LINGER_BYTES)
        self._patience.set(None)
        self._linger_call = self.site.clock.callLater(LINGER_S, self._linger_over)
        self._discard(already)

    def _discard(self, count: int) -> None:
        self._linger_left -= count
        if self._linger_left <= 0 and self._linger_call is not None:
            self._linger_call.cancel()
            self._linger_over()

    def _linger_over(self) -> None:
        self._linger_call = None
        self._close()

    def _too_slow(self) -> None:
        _log.debug("{peer} was too slow", peer=self.peer)
        self._close()

    def _close(self, patience_s: float = ABORT_S) -> None:
        """Close, and after a while without courtesy."""
        self._is_refused = True
        self._is_lingering = True  # over TLS the peer may take its time to agree, and send on meanwhile
        if self._abort_call is None:
            self._patience.set(None)
            self._abort_call = self.site.clock.callLater(patience_s, self.abort)
            transport: Any = self.transport
            transport.unregisterProducer()  # a close would wait for it
            for reason in list(self._holds):  # over TLS the other side's close must be read
                self._release(reason)
            transport.loseConnection()


def grounds_of(request: Request) -> object:
    """What the admission found out about `request`; None where nobody was asked."""
    admitted: Admitted | None = getattr(request, "admitted", None)
    return None if admitted is None else admitted.grounds


def body_of(request: Request) -> "IncomingBody | bytes":
    """The body of `request`: still to be taken where it streams, else all of it."""
    incoming: IncomingBody | None = getattr(request, "incoming", None)
    if incoming is not None:
        return incoming
    request.content.seek(0)
    return request.content.read()


def _our_fault(doing: str, request: Request) -> BadRequest:
    """What is answered where we have a bug: its traceback is in the log, and nothing of it here."""
    _log.failure("{doing} {method} {path} failed", doing=doing, method=request.method, path=request.path)
    return BadRequest("M_UNKNOWN", "Internal server error", status=500)


def _cancel(timer: Timer) -> None:
    if timer.active():
        timer.cancel()


def _expect_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
