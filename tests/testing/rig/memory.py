"""A reactor in memory: ports, connections and TLS that are real above the socket, and time to be turned."""

from collections.abc import Awaitable
from typing import Any, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test import iosim

from tests.asynchronous import as_deferred

T = TypeVar("T")
_TLSFactory: Any = TLSMemoryBIOFactory
_iosim: Any = iosim


class MemoryNetwork(Clock):
    """As much of a reactor as servers and clients need; `settle` lets everything arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[int, Any] = {}
        self.pumps: list[Any] = []
        self.opened = 0

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> "_Port":
        """Listen, where nobody does."""
        if port in self.ports:
            raise CannotListenError(interface, port, OSError("in use"))
        self.ports[port] = factory
        factory.doStart()
        return _Port(self, port)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> "_Port":
        """Listen with TLS."""
        return self.listenTCP(port, _TLSFactory(contextFactory, False, factory, self), backlog, interface)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: object = None
    ) -> None:
        """Connect to whoever listens."""
        factory.doStart()
        listening = self.ports.get(port)
        if listening is None:
            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
            return
        self.opened += 1
        here = IPv4Address("TCP", "127.0.0.1", 40_000 + self.opened)
        there = IPv4Address("TCP", "127.0.0.1", port)
        server, client = listening.buildProtocol(here), factory.buildProtocol(there)
        at_server = _iosim.FakeTransport(server, True, hostAddress=there, peerAddress=here)
        at_client = _iosim.FakeTransport(client, False, hostAddress=here, peerAddress=there)
        self.pumps.append(_iosim.connect(server, at_server, client, at_client, greet=False))

    def settle(self) -> None:
        """Until nothing is on its way and nothing due."""
        moved = True
        while moved:
            calls: list[Any] = list(self.getDelayedCalls())
            due = [call for call in calls if call.getTime() <= self.seconds()]
            self.advance(0)
            pumped = [pump.pump() for pump in list(self.pumps)]
            moved = any(pumped) or bool(due)
            self.pumps = [pump for pump in self.pumps if not _is_over(pump)]

    def turn(self, seconds: float) -> None:
        """Everything arrives, then time passes, then everything arrives again."""
        self.settle()
        self.advance(seconds)
        self.settle()

    def begin(self, awaitable: Awaitable[T]) -> "Deferred[T]":
        """Start it, and let everything arrive."""
        begun = as_deferred(awaitable)
        self.settle()
        return begun


class _Port:
    """A listening port."""

    def __init__(self, network: MemoryNetwork, port: int) -> None:
        self._network = network
        self._port = port

    def stopListening(self) -> "Deferred[None]":
        """As Twisted's: closed in the next round."""
        closed: Deferred[None] = Deferred()

        def close() -> None:
            del self._network.ports[self._port]
            closed.callback(None)

        self._network.callLater(0, close)
        return closed

    def getHost(self) -> IPv4Address:
        """Where."""
        return IPv4Address("TCP", "127.0.0.1", self._port)


def _is_over(pump: Any) -> bool:
    return bool(pump.clientIO.disconnected and pump.serverIO.disconnected)
