"""A sender, a path and a receiver, in memory: TLS and HTTP are real, sockets and time are not."""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

from dataclasses import dataclass, field
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from fedpresence.ids import ServerName
from fedpresence.listening import Certificates
from fedpresence.outbound.addresses import BlockedNetworks
from fedpresence.outbound.connections import Connections, tcp_dial
from fedpresence.outbound.http11 import Answer
from fedpresence.outbound.route import route_at
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.rig.link import Door, Link, LinkTls
from fedpresence.testing.rig.wirelog import WireLog
from tests.asynchronous import result_of
from tests.testing.rig.memory import MemoryNetwork

HERE, THERE = ServerName("here.test"), ServerName("there.test")
SEND = "/_matrix/federation/v1/send/"
PORT = 8448
LINK_PORT = 20_001
CAP = 1_000_000


@dataclass
class Heard:
    """A request that arrived."""

    method: bytes
    uri: bytes
    headers: dict[str, list[str]]
    body: bytes


class Receiver(Resource):
    """Keeps what arrives. It answers `status` and `{"n": how many}`, unless it is `silent`."""

    isLeaf = True

    def __init__(self, network: MemoryNetwork, certificate: Any) -> None:
        super().__init__()
        self.heard: list[Heard] = []
        self.left: list[bytes] = []
        self.status = 200
        self.silent = False
        self.closes = False
        self.padding = 0
        self._network = network
        self._certificate = certificate
        self.listening: Any = None

    def listen(self) -> None:
        """Begin."""
        site = Site(self, timeout=None, reactor=self._network)
        self.listening = self._network.listenSSL(PORT, site, self._certificate)

    def close(self) -> None:
        """Take no more connections."""
        self.listening.stopListening()
        self.listening = None
        self._network.settle()

    def render(self, request: Any) -> int:
        """Hear it."""
        headers = {
            name.decode().lower(): [value.decode() for value in values]
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        self.heard.append(Heard(request.method, request.uri, headers, request.content.read()))
        request.notifyFinish().addErrback(lambda _: self.left.append(request.uri))
        if not self.silent:
            request.setResponseCode(self.status, b"As I Please")
            request.setHeader(b"X-Odd", b"kept")
            if self.closes:
                request.setHeader(b"Connection", b"close")
                request.channel.persistent = False
            request.write(b'{"n":%d}' % len(self.heard) + b" " * self.padding)
            request.finish()
        return NOT_DONE_YET

    @property
    def txn_ids(self) -> list[str]:
        """The IDs of the transactions that arrived, in order."""
        return [each.uri.decode().removeprefix(SEND) for each in self.heard if each.method == b"PUT"]


class Sender:
    """Sends as our daemon does, over kept connections."""

    def __init__(self, network: MemoryNetwork, ca: ThrowawayCA, port: int) -> None:
        async def resolve(host: str) -> list[str]:
            return [host]

        self._network = network
        self._route = route_at(THERE, THERE, (("127.0.0.1", port),), trusted=True)
        self.connections = Connections(
            network,
            resolve,
            tcp_dial(network),
            TlsPolicy(ca_file=ca.ca_file),
            BlockedNetworks(()),
            per_second=1000,
        )

    def begin(
        self, method: str, uri: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> "Deferred[Answer]":
        """A request, sent, and everything arrived."""

        async def exchanged() -> Answer:
            connection = await self.connections.open(self._route)
            lines = [f"{method} {uri} HTTP/1.1", f"Host: {THERE}"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            if body is not None:
                lines.append(f"Content-Length: {len(body)}")
            request = "\r\n".join((*lines, "", "")).encode("ascii") + (body or b"")
            return await connection.request(request, CAP, 60)

        return self._network.begin(exchanged())

    def put(self, txn_id: str, body: bytes = b"{}") -> "Deferred[Answer]":
        """A transaction."""
        return self.begin("PUT", SEND + txn_id, body)


@dataclass
class Scene:
    """All of it. `clock` is the rig's; everything else is of the moment."""

    ca: ThrowawayCA
    certificate: Any
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    clock: Clock = field(default_factory=Clock)
    wire: WireLog = field(default_factory=WireLog)
    random: Random = field(default_factory=lambda: Random(1))

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.network, Certificates(*self.certificate))
        self.receiver.listen()
        self.sender = Sender(self.network, self.ca, LINK_PORT)

    def target(self) -> tuple[str, int] | None:
        """Where the receiver listens."""
        return None if self.receiver.listening is None else ("127.0.0.1", PORT)

    def link(self, source: str | None = "192.0.2.7") -> Link:
        """The path from here to there, open."""
        tls = LinkTls(self.certificate, self.ca.ca_file)
        link = Link(
            HERE,
            THERE,
            LINK_PORT,
            self.network,
            self.clock,
            self.random,
            tls,
            self.target,
            self.wire,
            source=source,
        )
        self.run(link.start())
        return link

    def door(self, faults_of: Any) -> Door:
        """The receiver's public entrance, open."""
        tls = LinkTls(self.certificate, self.ca.ca_file)
        door = Door(
            THERE,
            LINK_PORT,
            self.network,
            self.clock,
            self.random,
            tls,
            self.target,
            self.wire,
            faults_of,
        )
        self.run(door.start())
        return door

    def run(self, awaitable: Any) -> Any:
        """Its result, once everything arrived."""
        return result_of(self.network.begin(awaitable))

    def pass_ms(self, ms: int) -> None:
        """The rig's clock is turned."""
        self.clock.advance(ms / 1000)
        self.network.settle()
