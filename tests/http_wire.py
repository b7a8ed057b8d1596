"""Requests as bytes into a BoundedSite, answers as values out: everything but the socket is real."""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

import json
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence.intake import BoundedChannel
from fedpresence.site import BoundedSite
from fedpresence.web import write_json


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        """Its JSON object."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


class Client:
    """One connection to a site."""

    def __init__(self, site: BoundedSite, host: str = "192.0.2.1") -> None:
        peer = IPv4Address("TCP", host, 40000)
        self.transport = StringTransport(peerAddress=peer, lenient=True)
        channel = site.buildProtocol(peer)
        assert isinstance(channel, BoundedChannel)
        self.channel = channel
        channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Bytes arrive."""
        self.channel.dataReceived(data)

    def leave(self) -> None:
        """The connection is lost."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    def take_unparsed(self) -> bytes:
        """What came and was kept without being parsed."""
        return b"".join(self.channel._ahead)

    def answers(self) -> list[Answer]:
        """Every complete response so far; a `100 Continue` counts as one."""
        found = []
        data = self.transport.value()
        while data:
            head, _, data = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            size = int(headers.get("content-length", "0"))
            found.append(Answer(int(first.split()[1]), headers, data[:size]))
            data = data[size:]
        return found

    @property
    def answer(self) -> Answer:
        """The only response."""
        (answer,) = self.answers()
        return answer

    @property
    def closed(self) -> bool:
        """Whether we closed it."""
        return bool(self.transport.disconnecting)

    @property
    def paused(self) -> bool:
        """Whether nothing more is read from it."""
        return bool(self.transport.producerState == "paused")


def request(method: str, uri: str, body: bytes | None = None, *headers: str) -> bytes:
    """A request's bytes."""
    lines = [f"{method} {uri} HTTP/1.1", "Host: here.test", *headers]
    if body is not None and not any(h.lower().startswith("transfer-encoding") for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogateescape") + (body or b"")


class Echo(Resource):
    """Says how many bytes it was sent; with `delay` only when told to `finish`."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.delay = False
        self._waiting: list[Any] = []

    def render(self, request: Any) -> int:
        """Their number."""
        self.seen.append(request.content.read())
        self._waiting.append(request)
        if not self.delay:
            self.finish()
        return NOT_DONE_YET

    def finish(self) -> None:
        """Answer whoever waits."""
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            write_json(request, {"size": len(self.seen[-1])})
