"""The sockets of a rig: each server has its own view of the reactor, and every byte is accounted for.

Always true:
- a byte that was written at one end and can be read at the other is under way until it was read there;
- so is a connection until it is accepted or refused, and an end of one until the other has noticed;
- a view that was cut off opens nothing, accepts nothing and hears nothing any more, like a process that
  is gone, and its connections are reset.

A connection whose other end is not in this process is not accounted for: nobody can know what it does.
"""

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from fedpresence.testing.rig.activity import Activity

_WrappingFactory: Any = WrappingFactory
_ProtocolWrapper: Any = ProtocolWrapper
_TLSFactory: Any = TLSMemoryBIOFactory

Address = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Flow:
    """One connection between two ends in this process."""

    client: "_End | None" = None
    server: "_End | None" = None
    under_way: bool = False

    def is_open(self) -> bool:
        """Whether one of its ends is."""
        return any(end is not None and end.is_open for end in (self.client, self.server))

    def moves(self) -> bool:
        """Whether something happens to it by itself."""
        client, server = self.client, self.server
        if client is None:
            return False  # the other end is somebody else's, or is still connecting, which counts by itself
        if server is None:
            return client.is_open  # not accepted yet
        return client.awaits(server) or server.awaits(client)


class _End(_ProtocolWrapper):  # type: ignore[misc]  # untyped in Twisted
    """One end of a connection, below TLS: counts bytes, and can be cut off."""

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._view: ServerReactor = factory.view
        self._is_client: bool = factory.is_client
        self._flow: _Flow | None = None
        self.key: tuple[Address, Address] | None = None
        self.is_open = False
        self.written = 0
        self.read = 0
        self.paused = False
        self.closing = False

    def awaits(self, other: "_End") -> bool:
        """Whether it will be told something: bytes, or that the other end has gone."""
        if not self.is_open:
            return False
        if self.closing:
            return True
        return not self.paused and (self.read < other.written or not other.is_open)

    # --- from the socket -------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        self.is_open = True
        self._flow = self._view.network.opened(self, transport, is_client=self._is_client)
        self._view.ends.add(self)
        if self._view.is_cut:
            transport.abortConnection()
        super().makeConnection(transport)
        self._changed()

    def dataReceived(self, data: bytes) -> None:
        self.read += len(data)
        if not self._view.is_cut:
            super().dataReceived(data)
        self._changed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_open = False
        self._view.ends.discard(self)
        self._view.network.closed(self)
        self._changed()
        if not self._view.is_cut:
            super().connectionLost(reason)

    # --- to the socket ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self.closing:
            self.written += len(data)
            super().write(data)
            self._changed()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.closing = True
        super().loseConnection()
        self._changed()

    def abortConnection(self) -> None:
        """Close without courtesy."""
        self.closing = True
        self.transport.abortConnection()
        self._changed()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self.paused = True
        self.transport.pauseProducing()
        self._changed()

    def resumeProducing(self) -> None:
        """Read on."""
        self.paused = False
        if self.is_open and not self.closing:
            self.transport.resumeProducing()
        self._changed()

    def _changed(self) -> None:
        if self._flow is not None:
            self._view.network.changed(self._flow)


class _Ends(_WrappingFactory):  # type: ignore[misc]  # untyped in Twisted
    """Makes ends of what a factory of ours makes."""

    protocol = _End
    noisy = False

    def __init__(self, wrapped: Any, view: "ServerReactor", *, is_client: bool) -> None:
        super().__init__(wrapped)
        self.view = view
        self.is_client = is_client
        self._connecting = is_client
        if is_client:
            view.network.activity.begin()

    def buildProtocol(self, address: Any) -> Any:
        self._connected()
        if self.view.is_cut:
            return None
        made = self.wrappedFactory.buildProtocol(address)
        return None if made is None else self.protocol(self, made)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._connected()
        if not self.view.is_cut:
            super().clientConnectionFailed(connector, reason)

    def _connected(self) -> None:
        if self._connecting:
            self._connecting = False
            self.view.network.activity.end()


class _Nowhere:
    """What is left of a connection that a dead server would open."""

    def stopConnecting(self) -> None:
        """Nothing to stop."""

    disconnect = stopConnecting


class ServerReactor:
    """The reactor as one server sees it: sockets are accounted for, the rest is the reactor's own."""

    def __init__(self, reactor: Any, network: "Network") -> None:
        self._reactor = reactor
        self.network = network
        self.ends: set[_End] = set()
        self._ports: list[Any] = []
        self._calls: set[Any] = set()
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Address | None = None
    ) -> Any:
        """As the reactor's; to nowhere, once cut off."""
        if self.is_cut:
            return _Nowhere()
        ends = _Ends(factory, self, is_client=True)
        return self._reactor.connectTCP(host, port, ends, timeout, bindAddress)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """As the reactor's."""
        ends = _Ends(factory, self, is_client=False)
        listening = self._reactor.listenTCP(port, ends, backlog, interface)
        self._ports.append(listening)
        return listening

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        """As the reactor's, with the accounting below TLS."""
        return self.listenTCP(port, _TLSFactory(contextFactory, False, factory), backlog, interface)

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        """As the reactor's: real time; never, once cut off."""

        def call() -> None:
            self._calls.discard(timer)
            callable(*args, **kw)

        timer = self._reactor.callLater(delay, call)
        if self.is_cut:
            timer.cancel()
        else:
            self._calls = {each for each in self._calls if each.active()} | {timer}
        return timer

    def cut(self) -> Deferred[Any]:
        """Nothing gets through any more, and what is open is reset; fires when its ports are free."""
        self.is_cut = True
        for timer in self._calls:
            if timer.active():
                timer.cancel()
        closed = [maybeDeferred(port.stopListening) for port in self._ports]
        for end in list(self.ends):
            end.abortConnection()
        return DeferredList(closed, consumeErrors=True)


@dataclass
class Network:
    """All connections of a rig."""

    reactor: Any
    activity: Activity
    _flows: dict[tuple[Address, Address], _Flow] = field(default_factory=dict)
    _reserved: list[socket.socket] = field(default_factory=list)
    _ports: set[int] = field(default_factory=set)

    def view(self) -> ServerReactor:
        """A reactor for one more server."""
        return ServerReactor(self.reactor, self)

    def reserve_port(self) -> int:
        """A loopback port for one listener, for the rig's life.

        Bound but not listening: nobody else gets it while the listener is away, and who connects
        then is refused.
        """
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform == "linux":  # elsewhere a bound port cannot be listened at by another socket
            self._reserved.append(holder)
        else:
            holder.close()
        self._ports.add(port)
        return port

    def close(self) -> None:
        """Give the ports back."""
        for holder in self._reserved:
            holder.close()
        self._reserved.clear()

    # --- what the ends tell ----------------------------------------------------------------------

    def opened(self, end: _End, transport: Any, *, is_client: bool) -> _Flow | None:
        """One end of a connection is open; None where the other is not ours."""
        here, there = _address(transport.getHost()), _address(transport.getPeer())
        key = (here, there) if is_client else (there, here)
        if key[1][1] not in self._ports:
            return None
        end.key = key
        flow = self._flows.get(key)
        if flow is None or (flow.client if is_client else flow.server) is not None:
            flow = self._flows[key] = _Flow()  # or the port of a connection that is gone is used again
        if is_client:
            flow.client = end
        else:
            flow.server = end
        return flow

    def closed(self, end: _End) -> None:
        """One end is closed; forget the connection with its other one."""
        key = end.key
        flow = None if key is None else self._flows.get(key)
        if key is not None and flow is not None and not flow.is_open():
            del self._flows[key]

    def changed(self, flow: _Flow) -> None:
        """Something happened to a connection."""
        moves = flow.moves()
        self.activity.stamp += 1
        if moves and not flow.under_way:
            flow.under_way = True
            self.activity.begin()
        elif flow.under_way and not moves:
            flow.under_way = False
            self.activity.end()


def _address(address: Any) -> Address:
    return getattr(address, "host", ""), getattr(address, "port", 0)
