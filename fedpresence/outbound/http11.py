"""HTTP/1.1 to other servers: one request at a time on a connection that is kept.

Every transaction goes this way (decision 26): encoding a request and reading its answer costs 14 µs here,
85 µs with h11, and more with Twisted's Agent. Keys and discovery go through treq.

Always true:
- of an answer no more is held than the caller's cap, `MAX_OVERHEAD_BYTES` and one read of the transport;
- what could be understood in two ways is refused: both framings, two lengths, folded lines, bare LF;
- once the head of an answer is read its status counts, even if the body is too long, malformed, breaks
  off or does not come: the body is then empty, and the connection is closed;
- a connection serves again only where the answer ended where it said it would, and nothing followed.

Source: RFC 9112; F:X-6, Z-5.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from typing import Protocol as Interface

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from fedpresence.clock import Clock, Timer
from fedpresence.errors import DeliveryFailed, reason_of
from fedpresence.outbound.route import Route

USER_AGENT = "fedpresence"
MAX_OVERHEAD_BYTES = 16 * 1024  # heads, 1xx too, chunk sizes, trailers: some servers send 1 KiB
MAX_FIELDS = 100  # header lines: Matrix servers send ten

# The whole grammar of a head, so that nothing in it is taken for what it is not.
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\0\r\n]*+)?\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\0\r\n]*+\r\n)*+)\r\n"
)
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\0\r\n]*)?")


class MalformedAnswerError(Exception):
    """What came is no answer in HTTP/1.1, or too long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, its body within the cap; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[bytes, list[bytes]]
    body: bytes


def encode_request(method: str, uri: str, host: str, authorization: str, body: bytes | None) -> bytes:
    """A request and its JSON as they go over the wire; ValueError where its head is not printable ASCII."""
    if not f"{method}{uri}{host}{authorization}".isprintable():
        raise ValueError("the head of a request must be printable")
    head = (
        f"{method} {uri} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        f"Authorization: {authorization}\r\n"
        f"User-Agent: {USER_AGENT}\r\n"
    )
    if body is None:
        return f"{head}\r\n".encode("ascii")
    about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"{head}{about}".encode("ascii") + body


def _is_close(values: list[bytes]) -> bool:
    return b"close" in [option.strip(b" \t") for option in b",".join(values).lower().split(b",")]


class AnswerReader:
    """Reads one answer out of bytes as they come, with a body of at most `cap`.

    `reusable`: whether the connection may serve again after the answer.
    """

    def __init__(self, cap: int) -> None:
        self.reusable = False
        self._room = cap  # for the rest of the body
        self._overhead_left = MAX_OVERHEAD_BYTES
        self._buffer = bytearray()
        self._status = 0  # until its head was read
        self._headers: dict[bytes, list[bytes]] = {}
        self._framing: Literal["length", "chunks", "close"] = "length"
        self._left = 0  # of the body, or of the chunk that is being read
        self._next: Literal["size", "end of data", "trailer"] = "size"  # the line behind what is left
        self._body = bytearray()

    def receive(self, data: bytes) -> Answer | None:
        """The answer, once it is whole; MalformedAnswerError where there will be none."""
        self._buffer += data
        while not self._status:
            if not self._read_head():
                return None
        try:
            if not self._read_body():
                return None
        except MalformedAnswerError:
            return self.end()
        if self._buffer:
            self.reusable = False  # nobody asked for more
        return Answer(self._status, self._headers, bytes(self._body))

    def end(self) -> Answer | None:
        """What is known of the answer when no more will be read; None where it has no status."""
        self.reusable = False
        return Answer(self._status, self._headers, b"") if self._status else None

    def closed(self) -> Answer | None:
        """As `end`, where the other side closed the connection: some bodies end so."""
        answer = self.end()
        if answer is None or self._framing != "close":
            return answer
        return replace(answer, body=bytes(self._body))

    # --- the head --------------------------------------------------------------------------------

    def _read_head(self) -> bool:
        """Whether a head was here; only one that counts leaves its status, behind any other follows one."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > self._overhead_left or b"\n\n" in self._buffer:
                raise MalformedAnswerError("its head is too long, or its lines end without CR")
            return False
        match = _HEAD.fullmatch(self._take_overhead(end + 4))
        if match is None:
            raise MalformedAnswerError("its head is malformed")
        lines = match[3].split(b"\r\n")[:-1]
        if len(lines) > MAX_FIELDS:
            raise MalformedAnswerError("it has too many headers")
        headers: dict[bytes, list[bytes]] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers.setdefault(name.lower(), []).append(value.strip(b" \t"))
        status = int(match[2])
        if status == 101:
            raise MalformedAnswerError("it changes the protocol")
        if status >= 200:
            self._decide_framing(status, headers, is_old=match[1] == b"0")
            self._status, self._headers = status, headers
        return True

    def _decide_framing(self, status: int, headers: Mapping[bytes, list[bytes]], *, is_old: bool) -> None:
        """Where the body will end (RFC 9112, 6.3), and whether the connection may serve again (9.3)."""
        codings, lengths = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if codings is not None and lengths is not None:
            raise MalformedAnswerError("it has both a length and a transfer coding")
        if lengths is not None and (len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0])):
            raise MalformedAnswerError("its length is malformed")
        if codings is not None and (is_old or [coding.lower() for coding in codings] != [b"chunked"]):
            raise MalformedAnswerError("its transfer coding is not known here")
        if codings is not None:
            self._framing = "chunks"
        elif lengths is None:
            self._framing = "close"
        else:
            self._left = int(lengths[0])
        if status in (204, 304):  # whatever they say, no body follows
            self._framing, self._left = "length", 0
        options = headers.get(b"connection")
        wants_to_close = is_old or (options is not None and _is_close(options))
        self.reusable = not wants_to_close and self._framing != "close"

    # --- the body --------------------------------------------------------------------------------

    def _read_body(self) -> bool:
        """Whether the body is whole; MalformedAnswerError where it never will be, or is too long."""
        if self._framing == "chunks":
            return self._read_chunks()
        if self._framing == "close":
            self._left = len(self._buffer)
            self._read_left()
            return False
        return self._read_left()

    def _read_left(self) -> bool:
        """Move what is left to the body, as far as it is here; whether it was."""
        if self._left > self._room:
            raise MalformedAnswerError("its body is too long")
        if not self._left:
            return True
        part = self._buffer[: self._left]
        del self._buffer[: self._left]
        self._body += part
        size = len(part)
        self._left -= size
        self._room -= size
        return not self._left

    def _read_chunks(self) -> bool:
        while self._read_left():
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > self._overhead_left:
                    raise MalformedAnswerError("a line between its chunks is too long")
                return False
            line = self._take_overhead(end + 2)[:-2]
            if self._next == "size":
                match = _CHUNK_SIZE.fullmatch(line)
                if match is None:
                    raise MalformedAnswerError("a chunk has no size")
                self._left = int(match[1], 16)
                self._next = "end of data" if self._left else "trailer"
            elif self._next == "end of data":
                if line:
                    raise MalformedAnswerError("a chunk is longer than it says")
                self._next = "size"
            elif not line:
                return True
        return False

    def _take_overhead(self, size: int) -> bytes:
        self._overhead_left -= size
        if self._overhead_left < 0:
            raise MalformedAnswerError("it has more around its body than anybody needs")
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class Keeper(Interface):
    """Whoever keeps connections for the next request."""

    def keep(self, connection: "Connection") -> None:
        """It may serve again."""

    def keep_unused(self, connection: "Connection") -> None:
        """It may still serve."""

    def forget(self, connection: "Connection") -> None:
        """It is gone."""


class Connection(Protocol):
    """An authenticated connection to the server of `route`.

    Whoever was given it makes one request, or gives it back, or aborts it; after the answer it goes back to
    its keeper. `gone` fires when it is closed.
    """

    def __init__(self, route: Route, clock: Clock, keeper: Keeper) -> None:
        self.route = route
        self.gone: Deferred[None] = Deferred()
        self.idle_since_s: float | None = None  # its keeper's note; None before its first request
        self._clock = clock
        self._keeper = keeper
        self._answer: Deferred[Answer] | None = None
        self._reader = AnswerReader(0)
        self._deadline_s = 0.0
        self._timer: Timer | None = None  # one for many requests: it looks at the deadline when it fires

    def request(self, request: bytes, cap: int, timeout_s: float) -> Deferred[Answer]:
        """Send the bytes of a request; DeliveryFailed where no status comes in time.

        Cancelling it closes the connection.
        """
        if self.gone.called:
            raise DeliveryFailed(self.route.server_name, "the connection was closed before it was used")
        answer: Deferred[Answer] = Deferred(lambda _: self.abort())
        self._answer = answer
        self._reader = AnswerReader(cap)
        self._deadline_s = self._clock.seconds() + timeout_s
        if self._timer is None:
            self._timer = self._clock.callLater(timeout_s, self._look_at_deadline)
        transport: Any = self.transport
        transport.write(request)
        return answer

    def give_back(self) -> None:
        """There is nothing to send after all."""
        if not self.gone.called:
            self._keeper.keep_unused(self)

    def abort(self) -> None:
        """Close it at once: it is not needed any more, or its answer is not worth reading on."""
        self._answer = None
        self._keeper.forget(self)
        if not self.gone.called:
            transport: Any = self.transport
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """A part of the answer; where none is due, it comes from nobody we should talk to."""
        if self._answer is None:
            self.abort()
            return
        try:
            answer = self._reader.receive(data)
        except MalformedAnswerError as error:
            self._fail(f"no answer in HTTP: {error}")
            return
        if answer is not None:
            self._succeed(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """No more will come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._keeper.forget(self)
        self.gone.callback(None)
        if self._answer is not None:
            self._end(self._reader.closed(), f"no answer: {reason_of(reason.value or ConnectionDone())}")

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._answer is None:
            return
        left_s = self._deadline_s - self._clock.seconds()
        if left_s > 0:
            self._timer = self._clock.callLater(max(0.001, left_s), self._look_at_deadline)
        else:
            self._end(self._reader.end(), "no answer in time")

    def _end(self, answer: Answer | None, reason: str) -> None:
        """No more is read: what has a status is an answer."""
        if answer is not None:
            self._succeed(answer)
        else:
            self._fail(reason)

    def _succeed(self, answer: Answer) -> None:
        waiting, self._answer = self._answer, None
        if self._reader.reusable:
            self._keeper.keep(self)  # first: who waits may have the next request
        else:
            self.abort()
        if waiting is not None and not waiting.called:
            waiting.callback(answer)

    def _fail(self, reason: str) -> None:
        waiting = self._answer
        self.abort()
        if waiting is not None and not waiting.called:
            waiting.errback(DeliveryFailed(self.route.server_name, reason, heard=True))
