import hmac
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from fedpresence.outbound.tls import TlsPolicy
from fedpresence.outbound.tls_connection import (
    MAX_HANDSHAKE_BYTES,
    MAX_REFUSAL_BYTES,
    UNACKNOWLEDGED_MS,
    TlsConnection,
    TlsError,
    give_up_early,
)
from tests.asynchronous import failure_of, result_of
from tests.outbound.network import Authority

MUCH = bytes(range(256)) * 3000
ALL_BYTES = 1 << 24


class Heard(Protocol):
    """Remembers what it is told; `react` is called with each piece of data."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[BaseException | None] = []
        self.react: Callable[[bytes], object] = lambda data: None

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.react(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason.value)


class _HeardFactory:
    def __init__(self) -> None:
        self.built: list[Heard] = []

    def buildProtocol(self, addr: object) -> Heard:
        self.built.append(Heard())
        return self.built[-1]


class Line:
    """A connection of ours, and an OpenSSL at the other end whose bytes are carried by hand."""

    def __init__(self, authority: Authority, version: int = SSL.TLS1_3_VERSION) -> None:
        certificate: Any = authority.certificate_for("there.test")
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.context.use_certificate(certificate.original)
        self.context.use_privatekey(certificate.privateKey.original)
        self.context.set_max_proto_version(version)
        self.context.set_cipher_list(b"ECDHE-ECDSA-AES128-GCM-SHA256")  # of TLS 1.2
        self.was_left = False
        self.socket = StringTransport()
        session = TlsPolicy(ca_file=authority.ca_file).session_with("there.test")
        factory = _HeardFactory()
        self.built = factory.built
        self.ours = TlsConnection(session, factory, None)

    def begin(self) -> None:
        """TCP stands."""
        self.peer = SSL.Connection(self.context, None)
        self.peer.set_accept_state()
        self.ours.makeConnection(self.socket)

    def begun(self) -> Heard:
        """The protocol, once the handshake is over."""
        self.begin()
        while not self.built:
            self.ours.dataReceived(self.from_peer())
        heard: Heard = result_of(self.ours.begun)
        self.carry_to_peer()
        self.shake_peers_hand()
        return heard

    def shake_peers_hand(self) -> None:
        with suppress(SSL.WantReadError):
            self.peer.do_handshake()

    def from_peer(self) -> bytes:
        """What the other end has to say to what was written so far."""
        self.carry_to_peer()
        if not self.built:
            self.shake_peers_hand()
        return self.peer.bio_read(ALL_BYTES)

    def carry_to_peer(self) -> None:
        """What was written is there."""
        written = self.socket.value()
        self.socket.clear()
        if written:
            self.peer.bio_write(written)

    def say(self, *parts: bytes) -> bytes:
        """The other end's records with those parts."""
        for part in parts:
            self.peer.sendall(part)
        return self.peer.bio_read(ALL_BYTES)

    def heard_by_peer(self) -> bytes:
        """What the other end decrypts, and in `was_left` whether it was told that nothing will follow."""
        self.carry_to_peer()
        data = b""
        try:
            while True:
                data += self.peer.recv(65_536)
        except SSL.WantReadError:
            self.was_left = False
        except SSL.ZeroReturnError:
            self.was_left = True
        return data

    def lose(self, reason: Exception | None = None) -> None:
        """The socket is closed."""
        self.ours.connectionLost(Failure(reason or ConnectionDone()))


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["TLS 1.2", "TLS 1.3"])
def line(request: pytest.FixtureRequest, authority: Authority) -> Line:
    return Line(authority, request.param)


@pytest.fixture
def old_line(authority: Authority) -> Line:
    return Line(authority, SSL.TLS1_2_VERSION)


@pytest.fixture(scope="module")
def long_chain(authority: Authority) -> Any:
    """A certificate of more than 90,000 bytes."""
    certificate: Any = authority.certificate_for(*(f"{n}{'.' + 'a' * 60}.test" for n in range(1300)))
    return certificate.original


# --- the handshake -----------------------------------------------------------------------------------


def test_a_protocol_begins_once_its_server_is_authenticated(line: Line) -> None:
    """Not when TCP stands: what fails before was surely not heard (F:X-3)."""
    line.begin()
    assert line.built == []
    assert not line.ours.begun.called

    while not line.built:
        line.ours.dataReceived(line.from_peer())

    assert result_of(line.ours.begun) is line.built[0]
    assert line.built[0].transport is line.ours


def test_a_handshake_may_come_byte_by_byte(line: Line) -> None:
    """TCP keeps no borders."""
    line.begin()

    while not line.built:
        for byte in line.from_peer():
            line.ours.dataReceived(bytes([byte]))

    line.ours.write(b"hello")
    line.carry_to_peer()
    line.shake_peers_hand()
    assert line.heard_by_peer() == b"hello"


def test_what_came_together_with_the_end_of_the_handshake_is_delivered(old_line: Line) -> None:
    """A server may be quick, and nothing would wake us again."""
    line = old_line
    line.begin()
    line.ours.dataReceived(line.from_peer())
    end = line.from_peer()
    assert line.built == []

    line.ours.dataReceived(end + line.say(b"hello"))

    assert line.built[0].data == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",  # an alert: handshake failure
        b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",  # a hello without anything in it
        b"\0" * 100,
    ],
)
def test_an_answer_that_is_no_handshake_ends_the_connection(line: Line, answer: bytes) -> None:
    """Any port may have been given for one that speaks TLS."""
    line.begin()

    line.ours.dataReceived(answer)

    assert line.socket.disconnecting
    line.lose()
    failure_of(line.ours.begun, ssl.SSLError)
    assert line.built == []


def test_whoever_hangs_up_in_the_handshake_is_not_there(line: Line) -> None:
    """The next address is tried."""
    line.begin()
    line.ours.dataReceived(line.from_peer()[:100])

    line.lose()

    failure_of(line.ours.begun, ConnectionLost)
    assert line.built == []


def test_a_handshake_can_be_cancelled(line: Line) -> None:
    """It has a deadline; what comes afterwards is for nobody."""
    line.begin()
    answer = line.from_peer()

    line.ours.begun.cancel()
    line.ours.dataReceived(answer)
    line.lose()

    failure_of(line.ours.begun, CancelledError)
    assert line.socket.disconnected
    assert line.built == []


def test_a_handshake_has_a_bound(authority: Authority, old_line: Line, long_chain: Any) -> None:
    """Who is not authenticated could else fill our memory."""
    line = old_line
    client_authority: Any = authority.certificate_for(common_names=["a" * 60] * 800)
    line.context.add_client_ca(client_authority.original)
    line.context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    line.context.add_extra_chain_cert(long_chain)
    line.begin()

    answer = line.from_peer()
    assert len(answer) > MAX_HANDSHAKE_BYTES
    line.ours.dataReceived(answer)

    assert line.socket.disconnected
    line.lose()
    failure_of(line.ours.begun, TlsError)


def test_a_long_chain_is_within_the_bound(line: Line, long_chain: Any) -> None:
    """Some servers show every certificate that they have."""
    line.context.add_extra_chain_cert(long_chain)

    assert line.begun().data == b""


# --- what is written ---------------------------------------------------------------------------------


def test_much_arrives_whole(line: Line) -> None:
    """OpenSSL takes a record of 16 KiB at a time, a transaction may have hundreds."""
    line.begun()

    line.ours.writeSequence([MUCH, b"", b"and more"])

    assert line.heard_by_peer() == MUCH + b"and more"


def test_a_protocol_may_write_as_soon_as_it_begins(line: Line) -> None:
    """As HTTP does; and it leaves together with the end of our handshake."""
    line.begin()
    line.ours.begun.addCallback(lambda heard: heard.transport.write(b"hello"))

    while not line.built:
        line.ours.dataReceived(line.from_peer())

    line.carry_to_peer()
    line.shake_peers_hand()
    assert line.heard_by_peer() == b"hello"


# --- what comes --------------------------------------------------------------------------------------


def test_all_that_came_is_delivered(line: Line) -> None:
    """Records do not begin and end where reads do."""
    heard = line.begun()
    records = line.say(MUCH[:20_000], b"", b"x", MUCH)

    for start in range(0, len(records), 5000):
        line.ours.dataReceived(records[start : start + 5000])

    assert heard.data == MUCH[:20_000] + b"x" + MUCH


def test_who_pauses_is_delivered_what_is_in_memory(line: Line) -> None:
    """One read of the socket at most: the socket is paused."""
    heard = line.begun()
    heard.react = lambda data: line.ours.pauseProducing()

    line.ours.dataReceived(line.say(b"a", b"b"))

    assert line.socket.producerState == "paused"
    assert heard.data == b"ab"
    line.ours.resumeProducing()
    assert line.socket.producerState == "producing"


@pytest.mark.parametrize("how", ["loseConnection", "abortConnection", "stopProducing"])
def test_nothing_is_delivered_to_who_closed(line: Line, how: str) -> None:
    """Neither what was read already nor what comes after."""
    heard = line.begun()
    heard.react = lambda data: getattr(line.ours, how)()

    line.ours.dataReceived(line.say(b"a", b"b"))
    line.ours.dataReceived(line.say(b"c"))

    assert heard.data == b"a"


@pytest.mark.parametrize("how", ["cut", "garbage"])
def test_a_record_that_cannot_be_decrypted_ends_the_connection(line: Line, how: str) -> None:
    """Somebody on the way changed it: nothing behind it can be believed, and the log says why."""
    heard = line.begun()
    record = line.say(b"a")

    line.ours.dataReceived(line.say(b"b") if how == "cut" else record[:-1] + bytes([record[-1] ^ 1]))
    line.ours.write(b"too late")
    line.lose()

    assert heard.data == b""
    assert [type(reason) for reason in heard.lost] == [ssl.SSLError]
    assert line.socket.disconnecting


# --- the end -----------------------------------------------------------------------------------------


def test_closing_says_goodbye_behind_all_that_was_written_and_does_not_wait(line: Line) -> None:
    """Two servers that wait for each other would hold a socket each, for ever."""
    heard = line.begun()

    line.ours.write(MUCH)
    line.ours.loseConnection()
    line.ours.write(b"too late")

    assert line.socket.disconnecting
    assert not line.socket.disconnected
    assert line.ours.disconnecting
    assert line.heard_by_peer() == MUCH
    assert line.was_left
    line.lose()
    assert [type(reason) for reason in heard.lost] == [ConnectionDone]


def test_aborting_says_goodbye_too(line: Line) -> None:
    """The other side need not take it for an attack."""
    line.begun()

    line.ours.abortConnection()
    line.ours.write(b"too late")

    assert line.socket.disconnected
    line.heard_by_peer()
    assert line.was_left


def test_who_says_goodbye_is_told_so_and_left(line: Line) -> None:
    """A half that is open is no use to HTTP."""
    heard = line.begun()
    line.peer.sendall(b"a")
    line.peer.shutdown()

    line.ours.dataReceived(line.from_peer())
    line.ours.write(b"too late")

    assert line.socket.disconnecting
    line.heard_by_peer()
    assert line.was_left
    line.lose()
    assert heard.data == b"a"
    assert [type(reason) for reason in heard.lost] == [ConnectionDone]


def test_an_end_without_goodbye_is_no_clean_one(line: Line) -> None:
    """Anybody on the way can close TCP: what ends so may have had more to say."""
    heard = line.begun()

    line.lose()

    assert [type(reason) for reason in heard.lost] == [ConnectionLost]


def test_a_connection_is_lost_once_and_takes_anything_afterwards(line: Line) -> None:
    """Whoever has it need not know that the other end was quicker."""
    heard = line.begun()
    line.lose(ConnectionLost("the line was cut"))

    line.lose()
    line.ours.dataReceived(b"late")
    line.ours.write(b"late")
    line.ours.loseConnection()
    line.ours.abortConnection()

    assert [str(reason) for reason in heard.lost] == [str(ConnectionLost("the line was cut"))]


# --- producers ---------------------------------------------------------------------------------------


def test_who_produces_finishes_before_the_connection_is_closed(line: Line) -> None:
    """Twisted's client closes as soon as the answer is whole, be it in the middle of its request."""
    heard, producer = line.begun(), object()
    line.ours.registerProducer(producer, True)
    assert line.socket.producer is producer

    line.ours.write(b"a")
    line.ours.loseConnection()
    line.ours.write(b"b")
    line.ours.dataReceived(line.say(b"for nobody"))
    assert not line.socket.disconnecting
    line.ours.unregisterProducer()

    assert line.socket.disconnecting
    assert line.heard_by_peer() == b"ab"
    assert heard.data == b""


def test_who_produces_for_somebody_that_left_is_not_waited_for(line: Line) -> None:
    """It may take its time."""
    line.begun()
    line.ours.registerProducer(object(), True)
    line.peer.shutdown()

    line.ours.dataReceived(line.from_peer())
    line.ours.unregisterProducer()

    assert line.socket.disconnecting


def test_the_addresses_are_those_of_the_socket(line: Line) -> None:
    """As of any transport."""
    line.begun()

    assert (line.ours.getHost(), line.ours.getPeer()) == (line.socket.getHost(), line.socket.getPeer())


# --- what TLS does by itself -------------------------------------------------------------------------


def test_a_new_handshake_is_refused_and_the_connection_goes_on(old_line: Line) -> None:
    """TLS 1.2 can ask for one at any time: to let it is to authenticate somebody else unnoticed."""
    line = old_line
    heard = line.begun()
    forger = _Forger(line)

    line.ours.dataReceived(forger.record(22, b"\0\0\0\0") + forger.record(23, b"hello"))

    assert heard.data == b"hello"
    with pytest.raises(SSL.Error, match="no renegotiation"):
        line.heard_by_peer()
    assert not line.socket.disconnecting


def test_who_asks_for_new_handshakes_without_end_is_left(old_line: Line) -> None:
    """Each "no" waits to be sent: who never reads would fill our memory with them."""
    line = old_line
    heard = line.begun()
    line.socket.clear()
    forger = _Forger(line)

    while not line.socket.disconnected:
        line.ours.dataReceived(forger.record(22, b"\0\0\0\0"))
        assert len(line.socket.value()) < 2 * MAX_REFUSAL_BYTES

    line.lose()
    assert [type(reason) for reason in heard.lost] == [TlsError]


class _Forger:
    """Makes a server's records of TLS 1.2, any that one may think of (RFC 5246, RFC 5288)."""

    def __init__(self, line: Line) -> None:
        peer = line.peer
        seed = b"key expansion" + (peer.server_random() or b"") + (peer.client_random() or b"")
        secret = peer.master_key() or b""
        block, link = b"", seed
        while len(block) < 40:
            link = _hmac(secret, link)
            block += _hmac(secret, link + seed)
        self._key, self._salt = AESGCM(block[16:32]), block[36:40]
        self._number = 1  # its Finished had 0

    def record(self, kind: int, content: bytes) -> bytes:
        number = self._number.to_bytes(8, "big")
        self._number += 1
        head = bytes([kind]) + b"\3\3"
        sealed = self._key.encrypt(
            self._salt + number, content, number + head + len(content).to_bytes(2, "big")
        )
        return head + (8 + len(sealed)).to_bytes(2, "big") + number + sealed


def _hmac(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, "sha256")


# --- the socket --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no TCP_USER_TIMEOUT")
def test_a_connection_whose_line_was_cut_is_given_up_within_seconds() -> None:
    """A transaction in flight when packets begin to vanish would hold up the next for a minute (issue 4)."""
    with socket.socket() as connected:
        give_up_early(connected)

        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKNOWLEDGED_MS
    assert UNACKNOWLEDGED_MS < 30_000
