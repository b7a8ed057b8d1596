"""TLS handshakes that are waited for: a protocol begins only once its server is authenticated.

Twisted starts a protocol as soon as TCP stands, and tells it later that TLS failed. For us that is the
difference between "surely not heard" and "perhaps" (F:X-3), and between this address and the next.
"""

import socket
import ssl
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from fedpresence.outbound.tls import TlsSession
from fedpresence.prompt import prompt

# What left and is not acknowledged for so long was lost with the line. Left to itself, TCP tries again after
# pauses that double, and may be silent for half a minute after the line is back.
UNACKNOWLEDGED_MS = 10_000

READ_BYTES = 16_384  # a whole record


async def authenticated(endpoint: Any, session: TlsSession, factory: Any) -> Any:
    """The protocol of `factory`, connected through `endpoint` and TLS as `session` has it."""
    tls: _Tls = await endpoint.connect(_TlsFactory(session, factory))
    return await tls.done


class _TlsFactory(Factory):
    noisy = False

    def __init__(self, session: TlsSession, factory: Any) -> None:
        self._session = session
        self._factory = factory

    def buildProtocol(self, addr: Any) -> "_Tls":
        return _Tls(self._session, self._factory, addr)


class _Tls(Protocol):
    """TLS to a server; a transport to the protocol that `factory` builds once the server is authenticated."""

    def __init__(self, session: TlsSession, factory: Any, address: Any) -> None:
        self.done: Deferred[Any] = Deferred(lambda _: self.abortConnection())
        self._tls = session.tls
        self._incoming, self._outgoing = session.incoming, session.outgoing
        self._factory = factory
        self._address = address
        self._inner: Any = None
        self._reason: Failure | None = None
        self.disconnecting = False

    def makeConnection(self, transport: Any) -> None:
        if isinstance(transport, Connection):
            transport.setTcpNoDelay(True)
            give_up_early(transport.getHandle())
        Protocol.makeConnection(self, prompt(transport))

    def connectionMade(self) -> None:
        self._shake_hands()

    def dataReceived(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._inner is None:
            self._shake_hands()
            if self._inner is None:
                return
        self._read()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        inner, self._inner = self._inner, None
        reason = self._reason or reason
        if inner is not None:
            inner.connectionLost(reason)
        if not self.done.called:
            self.done.errback(reason)

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._break_off(error)
            return
        self._flush()
        if self.done.called:
            return
        self._inner = inner = self._factory.buildProtocol(self._address)
        inner.makeConnection(self)
        self.done.callback(inner)

    def _read(self) -> None:
        try:
            while self._inner is not None:
                data = self._tls.read(READ_BYTES)
                if not data:
                    break
                self._inner.dataReceived(data)
                if not self._incoming.pending and not self._tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.loseConnection()
        except ssl.SSLError as error:
            self._break_off(error)
            return
        if self._outgoing.pending:
            self._flush()

    def _break_off(self, error: ssl.SSLError) -> None:
        self._reason = Failure(error)
        self._flush()
        self.transport.abortConnection()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.transport.write(data)

    # --- as a transport

    def write(self, data: bytes) -> None:
        if self._inner is None or self.disconnecting:
            return
        self._tls.write(data)
        self.transport.write(self._outgoing.read())

    def writeSequence(self, data) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._say_goodbye()
            self.transport.loseConnection()

    def abortConnection(self) -> None:
        self.disconnecting = True
        self._say_goodbye()
        self.transport.abortConnection()

    def _say_goodbye(self) -> None:
        if self._inner is not None:
            try: self._tls.unwrap()
            except ssl.SSLError: pass
            self._flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def give_up_early(connected: socket.socket) -> None:
    """Lose the connection once what was sent is not acknowledged for too long, where the system can do that.

    A server that takes all and answers nothing acknowledges: for that there is the deadline of the request.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
