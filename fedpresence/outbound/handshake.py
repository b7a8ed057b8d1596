"""TLS handshakes that are waited for: a protocol begins only once its server is authenticated.

Twisted starts a protocol as soon as TCP stands, and tells it later that TLS failed. For us that is the
difference between "surely not heard" and "perhaps" (F:X-3), and between this address and the next.
"""

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from fedpresence.clock import Clock
from fedpresence.prompt import PromptTls, PromptTlsFactory

# What left and is not acknowledged for so long was lost with the line. Left to itself, TCP tries again after
# pauses that double, and may be silent for half a minute after the line is back.
UNACKNOWLEDGED_MS = 10_000


async def authenticated(endpoint: Any, creator: Any, factory: Any, clock: Clock) -> Any:
    """The protocol of `factory`, connected through `endpoint` and TLS as `creator` has it."""
    # As endpoints.wrapClientTLS, which would take the global reactor for its clock.
    make: Any = _ClientTlsFactory
    tls = await endpoint.connect(make(creator, True, _HandshakeFactory(factory), clock))
    handshake: _Handshake = tls.handshake
    return await handshake.done


class _ClientTls(PromptTls):
    """TLS that knows who waits for its handshake."""

    def __init__(self, factory: Any, handshake: "_Handshake", connect: bool = True) -> None:
        super().__init__(factory, handshake, connect)  # type: ignore[no-untyped-call]  # Twisted's has no hints
        self.handshake = handshake

    def makeConnection(self, transport: Any) -> None:
        """As IProtocol."""
        if isinstance(transport, Connection):
            transport.setTcpNoDelay(True)
            give_up_early(transport.getHandle())
        PromptTls.makeConnection(self, transport)


class _ClientTlsFactory(PromptTlsFactory):
    protocol = _ClientTls


class _HandshakeFactory(Factory):
    """Wraps what a factory builds, so that it begins only once the server is authenticated."""

    noisy = False

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def buildProtocol(self, addr: Any) -> "_Handshake":
        return _Handshake(self._factory, addr)


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Builds the real protocol after the handshake, which takes its place."""

    def __init__(self, factory: Any, address: Any) -> None:
        self._factory = factory
        self._address = address
        self.done: Deferred[Any] = Deferred(lambda _: self._abort())

    def handshakeCompleted(self) -> None:
        if self.done.called:
            return
        tls: Any = self.transport
        inner = self._factory.buildProtocol(self._address)
        tls.wrappedProtocol = inner
        inner.makeConnection(tls)
        self.done.callback(inner)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.errback(reason)

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


def give_up_early(connected: socket.socket) -> None:
    """Lose the connection once what was sent is not acknowledged for too long, where the system can do that.

    A server that takes all and answers nothing acknowledges: for that there is the deadline of the request.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
