"""One HTTP request, and the way to answer it.

Always true:
- an answer is begun once and ended once, and nothing is written to who has gone;
- an answer has a length, or is chunked, or ends with the connection: one that broke off can never be taken
  for a whole one.

The names are those of Twisted's `Request` and `Headers`, as far as they are needed here: its resource trees
serve these requests, and ours can be tried with its tools.

Source: RFC 9110; RFC 9112, 6 (how long a message is).
"""

from functools import lru_cache
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, RESPONSES, datetimeToString, parse_qs
from twisted.web.server import NOT_DONE_YET

from fedpresence.admission import Admitted
from fedpresence.fields import AnswerFields, Fields, one_line
from fedpresence.incoming import IncomingBody

_ENDED = "the answer has ended already"


class Channel(Protocol):
    """The connection of a request."""

    @property
    def peer(self) -> Any:
        """The address of the other side."""

    @property
    def is_secure(self) -> bool:
        """Whether it is TLS."""

    def write(self, data: bytes) -> None:
        """More of the answer."""

    def write_for(self, producer: Any) -> None:
        """Who must wait while the other side does not read; None: nobody."""

    def answered(self, request: "Request") -> None:
        """The answer has ended."""

    def abort(self) -> None:
        """Close without courtesy."""


class Request:
    """A request from its first byte to the end of its answer; made by the connection alone.

    `content` is the whole body where it is kept, `incoming` the body where it streams. `channel` is told of
    the end of the answer.
    """

    method = path = version = b""
    uri = b""  # exactly what stood in the request line
    length: int | None = 0  # of the body, as announced; None where it is chunked
    is_sound = False  # its head is whole, and can be read in one way only
    is_complete = False  # all of its body has come
    is_persistent = True  # another may follow on the same connection
    admitted: Admitted | None = None
    held = 0  # bytes of the body that count in the budget
    incoming: IncomingBody | None = None
    content: BytesIO
    prepath: list[bytes]
    postpath: list[bytes]
    finished = False
    startedWriting = False
    _disconnected = False
    _code, _phrase = 200, b"OK"
    _is_chunked = False
    _args: dict[bytes, list[bytes]] | None = None

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.requestHeaders = Fields()
        self.responseHeaders = AnswerFields()
        self.setHeader = self.responseHeaders.setHeader
        self.pieces: list[bytes] = []  # of the body, as far as it has come and is kept
        self._finishing: list[Deferred[None]] = []

    # --- what it says --------------------------------------------------------------------------------

    @property
    def args(self) -> dict[bytes, list[bytes]]:
        """The parameters of the query."""
        if self._args is None:
            query = self.uri.partition(b"?")[2]
            self._args = parse_qs(query, True) if query else {}
        return self._args

    def getHeader(self, name: bytes) -> bytes | None:
        """The last value of a field."""
        values = self.requestHeaders.getRawHeaders(name)
        return values[-1] if values else None

    def getClientAddress(self) -> Any:
        """The address of the other side of the connection."""
        return self.channel.peer

    def isSecure(self) -> bool:
        """Whether it came over TLS."""
        return self.channel.is_secure

    @property
    def unread(self) -> int | None:
        """How much of the body is still on its way; None where nobody said how long it is."""
        if self.is_complete:
            return 0
        came = sum(map(len, self.pieces)) if self.incoming is None else self.incoming.received
        return None if self.length is None else self.length - came

    # --- who answers it ------------------------------------------------------------------------------

    def answer_from(self, root: Any) -> None:
        """Let the resource at our path below `root` answer."""
        segments = self.path[1:].split(b"/")
        if b"%" in self.path:
            segments = [unquote_to_bytes(segment) for segment in segments]
        resource, depth = root, 0
        for segment in segments:
            if resource.isLeaf:
                break
            depth += 1
            if segment in resource.children:
                resource = resource.children[segment]
            else:  # who looks for a child may look at what follows
                self.prepath, self.postpath = segments[:depth], segments[depth:]
                resource = resource.getChild(segment, self)
        self.prepath, self.postpath = segments[:depth], segments[depth:]
        self.render(resource)

    def render(self, resource: Any) -> None:
        """Let `resource` answer, now or later."""
        body = resource.render(self)
        if body is not NOT_DONE_YET:
            self.setHeader(b"Content-Length", b"%d" % len(body))
            self.write(body)
            self.finish()

    # --- the answer ----------------------------------------------------------------------------------

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """The status of the answer."""
        self._code = code
        self._phrase = RESPONSES.get(code, b"Unknown Status") if message is None else one_line(message)

    def write(self, data: bytes) -> None:
        """A piece of the answer; the first one takes its head along."""
        if self.finished:
            raise RuntimeError(_ENDED)
        if self._disconnected:
            return
        head = b""
        if not self.startedWriting:
            head = self._begin()
        if not self._may_have_body():
            data = b""
        elif data and self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if head or data:
            self.channel.write(head + data)

    def finish(self) -> None:
        """That was all of the answer."""
        if self.finished:
            raise RuntimeError(_ENDED)
        if self._disconnected:
            return
        if not self.startedWriting:
            if not self.responseHeaders.hasHeader(b"Content-Length") and self._may_have_body():
                self.setHeader(b"Content-Length", b"0")
            self.write(b"")
        if self._is_chunked:
            self.channel.write(b"0\r\n\r\n")
        self.finished = True
        finishing, self._finishing = self._finishing, []
        for each in finishing:
            each.callback(None)
        self.channel.answered(self)

    def notifyFinish(self) -> Deferred[None]:
        """Fires when the answer has ended; fails when the client has gone before."""
        finishing: Deferred[None] = Deferred()
        self._finishing.append(finishing)
        return finishing

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Who writes the answer, and waits while the client does not read."""
        self.channel.write_for(producer)

    def unregisterProducer(self) -> None:
        """Nobody any more."""
        self.channel.write_for(None)

    def abort(self) -> None:
        """Break the answer off, so that the client does not take it for a whole one."""
        self.channel.abort()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        self._disconnected = True
        finishing, self._finishing = self._finishing, []
        for each in finishing:
            each.errback(reason)
        if self.incoming is not None:
            self.incoming.broken()

    def _may_have_body(self) -> bool:
        return self.method != b"HEAD" and self._code not in NO_BODY_CODES

    def _begin(self) -> bytes:
        """The head of the answer; what it says of its length is now decided."""
        self.startedWriting = True
        if not self.is_complete:  # the rest of its body is not read once this is answered
            self.is_persistent = False
        if not self.responseHeaders.hasHeader(b"Content-Length") and self._may_have_body():
            self._is_chunked = self.version == b"1.1"
            if self._is_chunked:
                self.setHeader(b"Transfer-Encoding", b"chunked")
            else:
                self.is_persistent = False
        if not self.is_persistent:
            self.setHeader(b"Connection", b"close")
        return b"HTTP/1.1 %d %b\r\n%b" % (self._code, self._phrase, self.responseHeaders.encode())


@lru_cache(maxsize=1)
def date_of(second: int) -> bytes:
    """This moment, as HTTP writes it: the same for every answer of a second."""
    date: bytes = datetimeToString(second)
    return date
