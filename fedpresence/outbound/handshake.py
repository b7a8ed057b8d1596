"""TLS handshakes that are waited for: a protocol begins only once its server is authenticated.

Twisted starts a protocol as soon as TCP stands, and tells it later that TLS failed. For us that is the
difference between "surely not heard" and "perhaps" (F:X-3), and between this address and the next.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from fedpresence.clock import Clock


async def authenticated(endpoint: Any, creator: Any, factory: Any, clock: Clock) -> Any:
    """The protocol of `factory`, connected through `endpoint` and TLS as `creator` has it."""
    # As endpoints.wrapClientTLS, which would take the global reactor for its clock.
    make: Any = TLSMemoryBIOFactory
    tls = await endpoint.connect(make(creator, True, _HandshakeFactory(factory), clock))
    handshake: _Handshake = tls.wrappedProtocol
    return await handshake.done


class _HandshakeFactory(Factory):
    """Wraps what a factory builds, so that it begins only once the server is authenticated."""

    noisy = False

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def buildProtocol(self, addr: Any) -> "_Handshake":
        return _Handshake(self._factory, addr)


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Builds the real protocol after the handshake, and passes everything on to it from then on."""

    def __init__(self, factory: Any, address: Any) -> None:
        self._factory = factory
        self._address = address
        self._inner: Any = None
        self.done: Deferred[Any] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)

    def handshakeCompleted(self) -> None:
        if self.done.called:
            return
        self._inner = self._factory.buildProtocol(self._address)
        self._inner.makeConnection(self.transport)
        self.done.callback(self._inner)

    def dataReceived(self, data: bytes) -> None:
        assert self._inner is not None, "application data follow the handshake"
        self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.done.called:
            self.done.errback(reason)

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()
