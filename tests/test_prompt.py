import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure

from fedpresence.prompt import PromptTransport

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
