import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from fedpresence.ids import ServerName
from fedpresence.outbound.handshake import UNACKNOWLEDGED_MS, authenticated, give_up_early
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.testing.certificates import ThrowawayCA
from tests.asynchronous import result_of

HOST = "there.test"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no TCP_USER_TIMEOUT")
def test_a_connection_whose_line_was_cut_is_given_up_within_seconds() -> None:
    """A transaction in flight when packets begin to vanish would hold up the next for a minute (issue 4)."""
    with socket.socket() as connected:
        give_up_early(connected)

        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKNOWLEDGED_MS
    assert UNACKNOWLEDGED_MS < 30_000


class _Reads(Protocol):
    """What a connection was told, piece by piece."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.is_lost = False

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_lost = True


class _Line:
    """A connection of ours, authenticated, and at its other end a server that is not Twisted's."""

    def __init__(self, folder: Path, version: ssl.TLSVersion, tickets: int = 0) -> None:
        authority = ThrowawayCA(folder)
        key, certificate = authority.issue(ServerName(HOST))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.minimum_version = context.maximum_version = version
        context.num_tickets = tickets
        self._into, self._from = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = context.wrap_bio(self._into, self._from, server_side=True)
        self.transport = StringTransport()
        creator = TlsPolicy(ca_file=authority.ca_file).creator_for(HOST)
        connecting = ensureDeferred(authenticated(self, creator, Factory.forProtocol(_Reads), Clock()))
        self._shake_hands()
        self.ours: Any = result_of(connecting)

    async def connect(self, factory: Any) -> Any:
        """As an endpoint: TCP stands at once."""
        self.tls = factory.buildProtocol(None)
        self.tls.makeConnection(self.transport)
        return self.tls

    def _shake_hands(self) -> None:
        for _ in range(4):
            self.to_server()
            try:
                self.server.do_handshake()
            except ssl.SSLWantReadError:
                pass
            else:
                break
            self.to_us(self.records())
        self.to_us(self.records())

    def records(self) -> bytes:
        """What the server has written since."""
        return self._from.read()

    def to_us(self, records: bytes) -> None:
        """One read of our socket."""
        if records:
            self.tls.dataReceived(records)

    def to_server(self) -> None:
        """What we have written since."""
        self._into.write(self.transport.value())
        self.transport.clear()

    def says(self, *pieces: bytes) -> bytes:
        """The records of these, one for each."""
        for piece in pieces:
            self.server.write(piece)
        return self.records()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> _Line:
    """A connection over each version of TLS."""
    return _Line(tmp_path, request.param)


def test_what_came_is_read_however_records_and_reads_lie_across_each_other(line: _Line) -> None:
    """A record by itself is read in another way than all else, and must leave nothing behind or out."""
    line.to_us(line.says(b"one"))
    line.to_us(line.says(b"two", b"three"))
    torn = line.says(b"four", b"five")
    for start in range(0, len(torn), 7):
        line.to_us(torn[start : start + 7])
    line.to_us(line.says(b"x" * 20_000))
    line.to_us(line.says(b"six"))

    assert b"".join(line.ours.got) == b"onetwothreefourfive" + b"x" * 20_000 + b"six"


def test_a_ticket_for_later_is_nothing_to_the_reader(tmp_path: Path) -> None:
    """In TLS 1.3 it looks from outside like a message, and comes alone where a server sends one."""
    line = _Line(tmp_path, ssl.TLSVersion.TLSv1_3, tickets=1)
    assert line.ours.got == []

    line.to_us(line.says(b"an answer"))
    assert line.ours.got == [b"an answer"]


def test_a_server_that_says_goodbye_is_gone(line: _Line) -> None:
    """Or the next transaction would be written to somebody who reads no more (F:X-3)."""
    line.to_us(line.says(b"an answer"))
    with pytest.raises(ssl.SSLWantReadError):
        line.server.unwrap()
    line.to_us(line.records())

    assert line.transport.disconnecting or line.transport.disconnected
    assert line.ours.got == [b"an answer"]


def test_a_record_that_was_changed_on_its_way_ends_the_connection(line: _Line) -> None:
    """Nothing of it is believed."""
    record = bytearray(line.says(b"an answer"))
    record[-1] ^= 1
    line.to_us(bytes(record))

    assert line.transport.disconnecting or line.transport.disconnected
    assert line.ours.got == []


def test_what_comes_after_we_have_given_up_is_not_told(line: _Line) -> None:
    """Whoever aborts a connection has stopped listening."""
    record = line.says(b"too late")
    line.tls.abortConnection()
    line.to_us(record)

    assert line.ours.got == []
