"""A loopback in memory: a reactor for sockets that are none, with real TLS, and a clock turned by hand."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect

from fedpresence.ids import ServerName
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.homeserver import FakeHomeserver
from fedpresence.testing.rig.clock import TurnableClock
from tests.asynchronous import as_deferred, result_of

T = TypeVar("T")
_TLSFactory: Any = TLSMemoryBIOFactory
START_S = 1_700_000_000


class Loopback:
    """What a fake homeserver may use of a reactor; anything that waits on it is an AssertionError."""

    def __init__(self) -> None:
        self.clock = TurnableClock(START_S * 1000)
        self._at_once = Clock()
        self._ports: dict[int, Any] = {}
        self._pumps: list[IOPump] = []

    # --- IReactorTime, IReactorTCP, IReactorSSL --------------------------------------------------

    def callLater(self, delay: float, call: Any, *args: Any, **kw: Any) -> Any:
        assert delay == 0, "delays are the clock's"
        return self._at_once.callLater(0, call, *args, **kw)

    def seconds(self) -> float:
        return self._at_once.seconds()

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float | None = 30, bindAddress: object = None
    ) -> None:
        assert timeout is None, "delays are the clock's"
        assert host == "127.0.0.1"
        factory.doStart()
        if port not in self._ports:
            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
            return
        client = factory.buildProtocol(IPv4Address("TCP", host, port))
        server = self._ports[port].buildProtocol(IPv4Address("TCP", host, 50_000 + len(self._pumps)))
        pump = connect(
            server, FakeTransport(server, isServer=True), client, FakeTransport(client, isServer=False)
        )
        self._pumps.append(pump)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> "Listening":
        assert interface == "127.0.0.1"
        port = port or 8448 + len(self._ports)
        self.listen(port, _TLSFactory(contextFactory, False, factory, clock=self._at_once))
        return Listening(self._ports, port)

    def listen(self, port: int, factory: Any) -> None:
        factory.doStart()
        self._ports[port] = factory

    # --- for tests -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Carry all that was written, until nobody writes any more."""
        moved = True
        while moved:
            self._at_once.advance(0)
            moved = sum(pump.pump() for pump in self._pumps) > 0

    def advance(self, ms: int) -> None:
        """Turn the clock millisecond by millisecond, carrying what is written."""
        self.flush()
        for _ in range(ms):
            self.skip(1)

    def skip(self, ms: int) -> None:
        """Turn the clock at once, then carry what is written."""
        self.clock.turn_to(self.clock.now_ms + ms)
        self.clock.run_due()
        self.flush()

    def result(self, awaitable: Awaitable[T]) -> T:
        """What it comes to once everything is carried."""
        deferred = as_deferred(awaitable)
        self.flush()
        return result_of(deferred)


class Listening:
    """An open port."""

    def __init__(self, ports: dict[int, Any], port: int) -> None:
        self._ports, self._port = ports, port

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", self._port)

    def stopListening(self) -> "Deferred[None]":
        self._ports.pop(self._port).doStop()
        return succeed(None)


class Town:
    """Fake homeservers that know each other."""

    def __init__(self, folder: Path) -> None:
        self.loopback = Loopback()
        self.ca = ThrowawayCA(folder)
        self.servers: dict[str, FakeHomeserver] = {}

    def homeserver(self, name: str) -> FakeHomeserver:
        """One more, started."""
        server_name = ServerName(name)
        homeserver = FakeHomeserver(
            server_name,
            self.loopback,
            self.loopback.clock,
            self.ca.issue(server_name),
            ca_file=self.ca.ca_file,
            address_of=self.address_of,
        )
        self.servers[name] = homeserver
        self.loopback.result(homeserver.start())
        return homeserver

    def address_of(self, name: ServerName) -> tuple[str, int]:
        """Where it listens; LookupError for strangers."""
        return "127.0.0.1", self.servers[name].port
