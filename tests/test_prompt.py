import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from fedpresence.admission import BodyBudget
from fedpresence.clock import MonotonicClock
from fedpresence.config import LimitsConfig
from fedpresence.ids import parse_server_name
from fedpresence.listening import listen
from fedpresence.prompt import PromptTransport
from fedpresence.site import BoundedSite
from fedpresence.testing.certificates import ThrowawayCA
from tests.in_reactor import in_reactor

MUCH = b"0123456789" * 100_000


class Line:
    """A connection over a socket pair, with a reactor that only remembers who wants to write."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.reactor = MemoryReactor()
        reactor: Any = self.reactor
        protocol: Any = Protocol()
        self.connection = Connection(self.ours, protocol, reactor)
        self.connection.connected = True
        self.transport = PromptTransport(self.connection)

    def arrived(self, size: int) -> bytes:
        """So many bytes of what was written, the reactor turning as long as somebody wants to write."""
        data = bytearray()
        while len(data) < size:
            if self.reactor.getWriters():
                self.connection.doWrite()
            data += self.theirs.recv(65_536)
        return bytes(data)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.theirs.close()
    made.ours.close()


def test_what_is_written_has_left_at_once(line: Line) -> None:
    """The reactor need not ask whether it may."""
    line.transport.write(b"a")
    line.transport.writeSequence([b"b", b"c"])

    assert not line.reactor.getWriters()
    assert line.theirs.recv(10) == b"abc"


def test_what_the_system_does_not_take_leaves_in_order(line: Line) -> None:
    """A TLS record in the wrong place ends the connection."""
    line.transport.write(MUCH)
    line.transport.write(b"behind it")
    assert line.reactor.getWriters()

    assert line.arrived(len(MUCH) + 9) == MUCH + b"behind it"

    line.transport.write(b"last")
    assert line.arrived(4) == b"last"


def test_a_connection_that_broke_is_found_out_by_twisted(line: Line) -> None:
    """Not by an exception in whoever writes."""
    line.theirs.close()

    line.transport.write(b"a")
    line.transport.write(b"b")

    assert line.reactor.getWriters()
    assert isinstance(line.connection.doWrite(), Exception)


def test_a_connection_that_is_lost_takes_no_more(line: Line) -> None:
    """Its socket is closed: the number may be another connection's by now."""
    line.connection.connectionLost(Failure(ConnectionDone()))

    line.transport.write(b"a")

    assert line.theirs.recv(10) == b""


class _Asked:
    """A producer that writes a piece whenever it is asked to, and stops after the last."""

    def __init__(self, line: Line, pieces: list[bytes]) -> None:
        self._line, self._pieces = line, pieces

    def resumeProducing(self) -> None:
        self._line.transport.write(self._pieces.pop(0))
        if not self._pieces:
            self._line.transport.unregisterProducer()


def test_a_producer_that_waits_to_be_asked_is_asked(line: Line) -> None:
    """By Twisted, each time that its buffer is empty: it must have been in use for that."""
    line.transport.registerProducer(_Asked(line, [b"a", b"b", b"c"]), False)

    assert line.arrived(3) == b"abc"


def test_all_but_writing_is_the_connection_itself(line: Line) -> None:
    """Whoever is told of a transport asks it more."""
    assert line.transport.getHandle() is line.ours


class Answer(Resource):
    """The same to every request."""

    isLeaf = True

    def __init__(self, body: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's has no hints
        self._body = body

    def render_GET(self, request: object) -> bytes:
        """Its body."""
        return self._body


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("taken", "size"),  # most is in a buffer of Twisted's, too much for it, in one of the system's
    [(4_096, 60_000), (4_096, 300_000), (1_000_000, 60_000)],
)
@pytest.mark.parametrize("last", [b"keep-alive", b"close"])
def test_an_answer_that_is_on_its_way_is_not_cut_off_at_the_limit(
    last: bytes, taken: int, size: int, secure: bool, tmp_path: Path
) -> None:
    """Who asks through nginx has `Connection: close` each time, and may be slow to read."""
    ca = ThrowawayCA(tmp_path)
    key_file, certificate_file = ca.issue(parse_server_name("here.test"))
    answer = Answer(b"x" * size)

    async def begin(reactor: Any) -> Any:
        limits = LimitsConfig(connections=1)
        site = BoundedSite(answer, limits, MonotonicClock(reactor), BodyBudget(1))
        endpoint = f"ssl:0:privateKey={key_file}:certKey={certificate_file}" if secure else "tcp:0"
        listener = await listen(f"{endpoint}:interface=127.0.0.1", site, reactor)
        listener.port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, taken)
        return listener.port

    async def end(reactor: Any) -> None:
        await port.stopListening()

    port = in_reactor(begin)
    address = ("127.0.0.1", port.getHost().port)
    with socket.socket() as slow, socket.socket() as other:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(10)
        slow.connect(address)
        reader: Any = slow
        if secure:
            context = ssl.create_default_context(cafile=str(ca.ca_file))
            reader = context.wrap_socket(slow, server_hostname="here.test")
        reader.sendall(b"GET / HTTP/1.1\r\nHost: here.test\r\nConnection: " + last + b"\r\n\r\n")
        read = reader.recv(100)
        other.settimeout(10)
        with suppress(ConnectionResetError, BrokenPipeError):
            other.connect(address)
            other.sendall(b"GET / HTTP/1.1\r\nHost: here.test\r\n\r\n")
            other.recv(1)  # until it is let in, or refused
        while not read.endswith(b"x" * size):
            piece = reader.recv(65_536)
            assert piece, "the rest is missing"
            read += piece
    in_reactor(end)
