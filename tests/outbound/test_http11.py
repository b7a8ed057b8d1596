from collections.abc import Iterable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.outbound.http11 import (
    MAX_FIELDS,
    MAX_OVERHEAD_BYTES,
    Answer,
    AnswerReader,
    Connection,
    MalformedAnswerError,
    encode_request,
)
from fedpresence.outbound.route import route_at
from tests.asynchronous import failure_of, result_of

THERE = ServerName("there.test")
CAP = 20
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"


def read(pieces: Iterable[bytes], *, closed: bool = False) -> tuple[Answer | None, bool]:
    """The answer in these pieces, and whether its connection may serve again."""
    reader = AnswerReader(CAP)
    answer = None
    for piece in pieces:
        assert answer is None, "more was read than the answer"
        answer = reader.receive(piece)
    if answer is None and closed:
        answer = reader.closed()
    return answer, reader.reusable


WHOLE = [
    (OK + b"Content-Length: 2\r\n\r\n{}", 200, b"{}"),
    (OK + b"content-length:2\r\n\r\n{}", 200, b"{}"),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;a=b\r\n}\r\n0\r\n\r\n", 200, b"{}"),
    (
        OK + b"Transfer-Encoding: Chunked\r\n\r\n00A\r\n0123456789\r\n0\r\nX-T: a\r\nX-U: b\r\n\r\n",
        200,
        b"0123456789",
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + EMPTY, 200, b""),
    (b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 \r\n\r\n" + EMPTY, 200, b""),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, b""),
    (b"HTTP/1.1 429\r\nContent-Length: 0\r\n\r\n", 429, b""),
    (b"HTTP/1.1 500 \xff\r\nX-Odd: \xff\t \r\nX-Empty:\r\nContent-Length: 0\r\n\r\n", 500, b""),
]


@pytest.mark.parametrize(("data", "status", "body"), WHOLE)
def test_an_answer_may_come_in_any_pieces(data: bytes, status: int, body: bytes) -> None:
    """TCP cuts where it likes."""
    every_cut = [[data], [data[n : n + 1] for n in range(len(data))]]
    every_cut += [[data[:n], data[n:]] for n in range(1, len(data))]

    for pieces in every_cut:
        answer, reusable = read(pieces)

        assert answer is not None
        assert (answer.status, answer.body, reusable) == (status, body, True)


def test_headers_keep_their_values_in_order_under_names_in_lower_case() -> None:
    """Names have no case, values have: a date, a text."""
    answer, _ = read([OK + b"A: One \r\nB:\r\na:\ttwo\r\nContent-Length: 0\r\n\r\n"])

    assert answer is not None
    assert answer.headers == {b"a": [b"One", b"two"], b"b": [b""], b"content-length": [b"0"]}


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 -20 OK\r\n\r\n",
        b"\r\n" + EMPTY,
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n\r\n",
        OK + b"A: b\rc\r\n\r\n",
        OK + b"A: b\0c\r\n\r\n",
        OK + b"A: b\r\n folded\r\n\r\n",
        OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b": no name\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b"A\xff: b\r\n\r\n",
        OK + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n",
        OK + b"Content-Length: 2, 2\r\n\r\n",
        OK + b"Content-Length: -2\r\n\r\n",
        OK + b"Content-Length: +2\r\n\r\n",
        OK + b"Content-Length: 0x2\r\n\r\n",
        OK + b"Content-Length: \xb2\r\n\r\n",
        OK + b"Content-Length:\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 16 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"A: " + b"b" * MAX_OVERHEAD_BYTES,
        OK + b"A: " + b"b" * MAX_OVERHEAD_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_OVERHEAD_BYTES // 25 + 1),
    ],
)
def test_a_head_that_can_be_doubted_is_no_answer(data: bytes) -> None:
    """Where two readers may see two answers, an attacker chooses which one we see."""
    with pytest.raises(MalformedAnswerError):
        AnswerReader(CAP).receive(data)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: %d\r\n\r\n" % (CAP + 1),
        OK + b"\r\n" + b"x" * (CAP + 1),
        CHUNKED + b"%x\r\n" % (CAP + 1),
        CHUNKED + b"a\r\n0123456789\r\n" * 3,
        CHUNKED + b"ffffffff\r\n",
        CHUNKED + b"100000000\r\n",
        CHUNKED + b"\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"0x1\r\n",
        CHUNKED + b"1_0\r\n",
        CHUNKED + b"1\n{",
        CHUNKED + b"1\r\n{}\r\n",
        CHUNKED + b"1;" + b"x" * MAX_OVERHEAD_BYTES,
        CHUNKED + b"1;" + b"x" * MAX_OVERHEAD_BYTES + b"\r\n",
        CHUNKED + b"0\r\n" + b"X-T: a\r\n" * (MAX_OVERHEAD_BYTES // 8),
    ],
)
def test_a_status_counts_whatever_is_wrong_with_its_body(data: bytes) -> None:
    """A 200 says that the transaction was taken; a body that we do not read cannot change that (Z-5)."""
    answer, reusable = read([data], closed=True)

    assert answer is not None
    assert (answer.status, answer.body, reusable) == (200, b"", False)


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (OK + b"\r\n{}", b"{}"),
        (OK + b"\r\n", b""),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", b"{}"),
        (OK + b"Content-Length: 3\r\n\r\n{}", b""),
        (CHUNKED + b"2\r\n{}\r\n", b""),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b""),
    ],
)
def test_the_end_of_the_connection_ends_the_answer(data: bytes, body: bytes) -> None:
    """That is how old servers end a body; where an end was promised, what came is not the body."""
    answer, reusable = read([data[:-1], data[-1:]], closed=True)

    assert answer is not None
    assert (answer.status, answer.body, reusable) == (200, body, False)


def test_the_end_of_the_connection_before_a_status_is_no_answer() -> None:
    """Nobody knows what the server did."""
    assert read([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"], closed=True) == (None, False)


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        OK + b"Connection: keep-alive\r\nConnection: x , Close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        EMPTY + b"H",
        EMPTY + EMPTY,
        CHUNKED + b"0\r\n\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n{}",
    ],
)
def test_a_connection_that_ends_or_says_more_does_not_serve_again(data: bytes) -> None:
    """What follows an answer would be taken for the answer to the next request."""
    answer, reusable = read([data])

    assert answer is not None
    assert (answer.body, reusable) == (b"", False)


def test_a_request_is_one_piece() -> None:
    """One write, one TLS record, one packet."""
    head = b"Host: there.test\r\nAuthorization: X-Matrix a=b\r\nUser-Agent: fedpresence\r\n"

    put = encode_request("PUT", "/a?b=c", "there.test", "X-Matrix a=b", b"{}")
    get = encode_request("GET", "/", "there.test", "X-Matrix a=b", None)

    about_body = b"Content-Type: application/json\r\nContent-Length: 2\r\n"
    assert put == b"PUT /a?b=c HTTP/1.1\r\n" + head + about_body + b"\r\n{}"
    assert get == b"GET / HTTP/1.1\r\n" + head + b"\r\n"


@pytest.mark.parametrize("text", ["a\r\nB: c", "a\nb", "a\0", "é"])
def test_nothing_slips_a_line_into_a_request(text: str) -> None:
    """Names come from other servers; that they were checked before must not be all that protects us."""
    for uri, host, authorization in (("/" + text, "x", "y"), ("/", text, "y"), ("/", "x", text)):
        with pytest.raises(ValueError):
            encode_request("GET", uri, host, authorization, None)


# --- a connection ----------------------------------------------------------------------------


class Kept:
    """Remembers what it keeps."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []

    def keep(self, connection: Connection) -> None:
        """It may serve again."""
        self.connections.append(connection)

    keep_unused = keep

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        if connection in self.connections:
            self.connections.remove(connection)


class Line:
    """A connection to a server that is played by the test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.kept = Kept()
        self.transport = StringTransport()
        route = route_at(THERE, THERE, (("192.0.2.1", 8448),))
        self.connection = Connection(route, self.clock, self.kept)
        connection: Any = self.connection
        connection.makeConnection(self.transport)

    def ask(self) -> "Deferred[Answer]":
        """A request goes out."""
        return self.connection.request(b"GET / HTTP/1.1\r\n\r\n", CAP, 60)

    def lose(self) -> None:
        """The other side closes."""
        self.connection.connectionLost(Failure(ConnectionDone()))

    @property
    def is_open(self) -> bool:
        """Whether we have not closed it."""
        return not self.transport.disconnected


def test_a_connection_serves_one_request_after_the_other() -> None:
    """A TLS handshake costs more than all the rest of a transaction."""
    line = Line()

    for _ in range(3):
        answer = line.ask()
        assert line.kept.connections == []
        line.connection.dataReceived(EMPTY)
        assert result_of(answer).status == 200
        assert line.kept.connections == [line.connection]
        line.kept.connections.clear()  # taken for the next


def test_many_requests_share_a_timer() -> None:
    """Timers made and cancelled for each request cost as much as reading its answer."""
    line = Line()

    for _ in range(10):
        line.ask()
        line.connection.dataReceived(EMPTY)
        line.clock.advance(1)

    assert len(line.clock.getDelayedCalls()) == 1
    line.lose()
    assert not line.clock.getDelayedCalls()


def test_each_request_has_its_own_time() -> None:
    """The timer of an earlier one neither shortens it nor prolongs it (F:X-6)."""
    line = Line()
    line.ask()
    line.connection.dataReceived(EMPTY)
    line.clock.advance(50)

    late = line.ask()
    line.clock.advance(59)
    assert not late.called
    line.connection.dataReceived(b"HTTP/1.1 200 O")  # and what trickles in does not prolong it either
    line.clock.advance(1.1)

    assert failure_of(late, DeliveryFailed).heard
    assert not line.is_open


def test_a_status_counts_whose_body_never_comes() -> None:
    """What was taken would go out again every minute, for ever."""
    line = Line()
    answer = line.ask()

    line.connection.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{")
    line.clock.advance(60)

    assert result_of(answer) == Answer(200, {b"content-length": [b"11"]}, b"")
    assert not line.is_open
    assert line.kept.connections == []


def test_a_server_that_speaks_first_is_not_talked_to() -> None:
    """Its words would be taken for the answer to the next request."""
    for data in (EMPTY, b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"):
        line = Line()
        line.ask()
        line.connection.dataReceived(EMPTY)

        line.connection.dataReceived(data)

        assert line.kept.connections == []
        assert not line.is_open


def test_what_was_never_written_was_surely_not_heard() -> None:
    """A connection that is lost while the bytes are made: they are made anew, not repeated (F:X-3)."""
    line = Line()
    line.lose()

    with pytest.raises(DeliveryFailed) as refused:
        line.ask()

    assert not refused.value.heard


def test_an_answer_that_is_no_http_may_have_been_heard() -> None:
    """Something took our bytes; what, nobody knows."""
    line = Line()
    answer = line.ask()

    line.connection.dataReceived(b"SSH-2.0-OpenSSH_9.2\n\n")

    assert failure_of(answer, DeliveryFailed).heard
    assert not line.is_open


def test_a_lost_connection_ends_the_wait() -> None:
    """Whether with an answer or without."""
    for data, status in ((OK + b"\r\n{}", 200), (OK + b"Content-Length: 9\r\n\r\n", 200), (OK, None)):
        line = Line()
        answer = line.ask()
        line.connection.dataReceived(data)

        line.lose()

        if status is None:
            assert failure_of(answer, DeliveryFailed).heard
        else:
            assert result_of(answer).status == status
        assert line.kept.connections == []


def test_a_connection_that_was_not_used_goes_back_unless_it_is_gone() -> None:
    """A user who flaps would else cost a handshake each time that nothing is left to say."""
    line = Line()

    line.connection.give_back()
    assert line.kept.connections == [line.connection]

    line.lose()
    line.connection.give_back()
    assert line.kept.connections == []


def test_who_waits_no_longer_closes_the_connection() -> None:
    """Its answer would be taken for that of the next request."""
    line = Line()
    answer = line.ask()

    answer.cancel()

    failure_of(answer, CancelledError)
    assert not line.is_open
    line.lose()
    line.connection.abort()  # and again is harmless
