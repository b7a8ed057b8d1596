"""TLS on a connection: the transport of every protocol that speaks to another server.

Twisted's own TLS begins a protocol as soon as TCP stands, and tells it later that TLS failed. For us that is
the difference between "surely not heard" and "perhaps" (F:X-3), and between this address and the next. It
also makes several times as many calls for a message.

Always true:
- a protocol begins only once its server is authenticated, and is told once that its connection is lost;
- nothing is delivered to it after it closed or aborted, and what it writes then is dropped;
- closing says so to the other side and does not wait for it to agree;
- before it is authenticated a server can make us hold no more than `MAX_HANDSHAKE_BYTES` and one read.
"""

import socket
import ssl
from contextlib import suppress
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IProtocol, IPushProducer, ITransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from fedpresence.outbound.tls import TlsSession
from fedpresence.prompt import prompt

# What left and is not acknowledged for so long was lost with the line. Left to itself, TCP tries again after
# pauses that double, and may be silent for half a minute after the line is back.
UNACKNOWLEDGED_MS = 10_000

MAX_HANDSHAKE_BYTES = 128 * 1024  # OpenSSL takes certificates of 100 KiB, servers have 4
MAX_REFUSAL_BYTES = 1024  # each "no" to a new handshake has 31: nobody needs to hear more than a few
RECORD_BYTES = 16_384  # the most that one holds: OpenSSL reads and writes one at once


class TlsError(Exception):
    """The other side does with TLS what nobody needs to."""


async def authenticated(endpoint: Any, session: TlsSession, factory: Any) -> Any:
    """The protocol of `factory`, connected through `endpoint` and TLS as `session` has it."""
    connection: TlsConnection = await endpoint.connect(_TlsFactory(session, factory))
    return await connection.begun


class _TlsFactory(Factory):
    noisy = False

    def __init__(self, session: TlsSession, factory: Any) -> None:
        self._session = session
        self._factory = factory

    def buildProtocol(self, addr: Any) -> "TlsConnection":
        return TlsConnection(self._session, self._factory, addr)


@implementer(ITransport, IConsumer, IPushProducer)
class TlsConnection(Protocol):
    """A protocol to the socket, and a transport to what `factory` builds once the server is authenticated.

    `begun` fires with that protocol, or fails with the reason why there is none; cancelling it aborts.
    """

    transport: Any  # zope's interfaces mean nothing to mypy

    def __init__(self, session: TlsSession, factory: Any, address: Any) -> None:
        self.begun: Deferred[Any] = Deferred(lambda _: self.abortConnection())
        self.disconnecting = False  # the name that Twisted's transports have for it
        self._tls: Any = session.tls
        self._incoming: Any = session.incoming
        self._outgoing: Any = session.outgoing
        self._factory = factory
        self._address = address
        self._protocol: Any = None
        self._is_open = False  # between the handshake and our goodbye
        self._has_producer = False
        self._handshake_left = MAX_HANDSHAKE_BYTES
        self._refusals_left = MAX_REFUSAL_BYTES
        self._reason: Failure | None = None

    # --- to the socket ---------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """As IProtocol."""
        if isinstance(transport, Connection):
            transport.protocol = cast(
                IProtocol, self
            )  # the endpoint's own would pass on all that comes, for ever
            transport.setTcpNoDelay(True)
            give_up_early(transport.getHandle())
        Protocol.makeConnection(self, prompt(transport))

    def connectionMade(self) -> None:
        """We speak first."""
        self._shake_hands()

    def dataReceived(self, data: bytes) -> None:
        """As IProtocol."""
        if self.disconnecting:
            return
        self._incoming.write(data)
        if self._protocol is None:
            self._handshake_left -= len(data)
            self._shake_hands()
            if self._protocol is None:
                return
        self._deliver()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """As IProtocol."""
        if self._reason is not None:
            reason, self._reason = self._reason, None
        elif not self.disconnecting and reason.check(ConnectionDone):
            reason = Failure(ConnectionLost("TLS was not ended"))  # anybody on the way could have cut it
        self.disconnecting = True
        self._is_open = False
        self._tls = self._incoming = self._outgoing = None  # what it holds goes now, whoever still holds us
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)
        elif not self.begun.called:
            self.begun.errback(reason)

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._handshake_left < 0:
                self._reason = Failure(TlsError("its handshake is longer than anybody needs"))
                self.abortConnection()
            return
        except ssl.SSLError as error:
            self._break_off(error)
            return
        self._is_open = True
        protocol = self._factory.buildProtocol(self._address)
        protocol.makeConnection(self)
        self._protocol = protocol
        self.begun.callback(protocol)
        self._flush()  # only now: the end of the handshake has mostly left with what the protocol wrote

    def _deliver(self) -> None:
        tls, incoming = self._tls, self._incoming
        while not self.disconnecting:
            try:
                data = tls.read(RECORD_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                self._break_off(error)
                return
            if not data:  # their goodbye
                self.disconnecting = True
                self._close()
                return
            self._protocol.dataReceived(data)
            if not incoming.pending:  # nor has OpenSSL more in hand: it decrypts one record at a time
                break
        if self._is_open and self._outgoing.pending:
            self._refuse()

    def _refuse(self) -> None:
        """Send what OpenSSL answered by itself: in TLS 1.2, "no" to each new handshake it was asked for."""
        self._refusals_left -= self._outgoing.pending
        if self._refusals_left < 0:
            self._reason = Failure(TlsError("it asks for new handshakes again and again"))
            self.abortConnection()
        else:
            self._flush()

    def _break_off(self, error: ssl.SSLError) -> None:
        """TLS failed: tell them how, as far as OpenSSL does, and close."""
        self._reason = Failure(error)
        self.disconnecting = True
        self._is_open = False
        self._flush()
        self.transport.loseConnection()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.transport.write(data)

    # --- to the protocol -------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """As ITransport."""
        if not self._is_open or not data:
            return
        try:
            written = self._tls.write(data)
            while written < len(data):  # a record is full; what is in memory stays small, where it stays
                self._flush()
                written += self._tls.write(memoryview(data)[written:])
        except ssl.SSLError as error:
            self._break_off(error)
            return
        self.transport.write(self._outgoing.read())

    def writeSequence(self, data: Any) -> None:
        """As ITransport."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """As ITransport: what was written still leaves, and what a producer still writes."""
        if not self.disconnecting:
            self.disconnecting = True
            if not self._has_producer:
                self._close()

    def abortConnection(self) -> None:
        """As ITCPTransport, with a goodbye where there was a hello."""
        self.disconnecting = True
        self._say_goodbye()
        self.transport.abortConnection()

    def getPeer(self) -> Any:
        """As ITransport."""
        return self.transport.getPeer()

    def getHost(self) -> Any:
        """As ITransport."""
        return self.transport.getHost()

    def pauseProducing(self) -> None:
        """As IPushProducer: nothing more is read; what was, one read of the socket, is still delivered."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """As IPushProducer."""
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """As IPushProducer."""
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As IConsumer."""
        self.transport.registerProducer(producer, streaming)
        self._has_producer = True

    def unregisterProducer(self) -> None:
        """As IConsumer."""
        self._has_producer = False
        self.transport.unregisterProducer()
        if self.disconnecting and self._is_open:
            self._close()

    def _close(self) -> None:
        self._say_goodbye()
        self.transport.loseConnection()

    def _say_goodbye(self) -> None:
        if self._is_open:
            self._is_open = False
            with suppress(ssl.SSLError):  # it would go on to read theirs
                self._tls.unwrap()
            self._flush()


def give_up_early(connected: socket.socket) -> None:
    """Lose the connection once what was sent is not acknowledged for too long, where the system can do that.

    A server that takes all and answers nothing acknowledges: for that there is the deadline of the request.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
