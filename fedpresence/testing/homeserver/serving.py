"""The HTTPS side of a fake homeserver: requests in, answers out, on time or never.

Always true:
- every delay is the given clock's; without one nothing waits, and no connection is closed for being idle;
- what was held back for a request ends with its connection.

Twisted's own server keeps the time of its access log by a timer a second, and a turnable clock would run
each of them; hence the subclass here.
"""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints, and as our base classes they are not excluded by name.)

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, HTTPFactory, Request
from twisted.web.http_headers import Headers

from fedpresence.clock import Clock, Timer
from fedpresence.testing.homeserver.answers import FakeAnswer

_log = Logger()


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it stands on the wire."""

    method: str
    uri: str
    headers: Headers
    body: bytes

    @property
    def authorizations(self) -> list[str]:
        """Its `Authorization` headers."""
        return [value.decode("latin-1") for value in self.headers.getRawHeaders(b"Authorization", [])]


Judge = Callable[[Incoming], Coroutine[Deferred[Any], Any, FakeAnswer]]


class FakeRequest(Request):
    """One request and its answer."""

    channel: Any
    content: Any
    _timer: Timer | None = None
    _gone = False

    def process(self) -> None:
        """Ask what to answer, and do it."""
        incoming = Incoming(
            self.method.decode("latin-1"),
            self.uri.decode("latin-1"),
            self.requestHeaders,
            self.content.read(),
        )
        ensureDeferred(self._answer(incoming))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Nobody waits for the answer any more."""
        self._gone = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(reason)

    async def _answer(self, incoming: Incoming) -> None:
        site: FakeSite = self.channel.factory
        try:
            answer = await site.judge(incoming)
        except Exception:
            _log.failure("answering {method} {uri} failed", method=incoming.method, uri=incoming.uri)
            answer = FakeAnswer(500)
        if self._gone:
            return  # asked, recorded, and gone before the answer was found
        if answer.delay_ms:
            self._timer = site.clock.callLater(answer.delay_ms / 1000, self._say, answer)
        else:
            self._say(answer)

    def _say(self, answer: FakeAnswer) -> None:
        if self._gone or answer.hang:
            return
        if answer.close:
            self.channel.loseConnection()
        elif answer.trickle_ms:
            self._trickle(answer.encoded(), answer.trickle_ms / 1000)
        elif answer.raw is not None:
            self.channel.write(answer.raw)
            self.channel.loseConnection()
        else:
            body = answer.encoded_body()
            self.setResponseCode(answer.status)
            self.setHeader("Content-Type", "application/json")
            self.setHeader("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.setHeader(name, value)
            self.write(body)
            self.finish()

    def _trickle(self, data: bytes, pause_s: float) -> None:
        if self._gone:
            return
        if not data:
            self.channel.loseConnection()
            return
        self.channel.write(data[:1])
        clock: Clock = self.channel.factory.clock
        self._timer = clock.callLater(pause_s, self._trickle, data[1:], pause_s)


class FakeChannel(HTTPChannel):
    """One connection."""

    requestFactory = FakeRequest
    factory: Any

    def connectionMade(self) -> None:
        """Take part."""
        self.factory.channels.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Part."""
        self.factory.channels.discard(self)
        super().connectionLost(reason)


class FakeSite(HTTPFactory):
    """Everybody who is connected; `judge` says what a request is answered."""

    protocol = FakeChannel  # type: ignore[assignment]  # HTTP/1.1 only: no proxy that switches to 2
    noisy = False

    def __init__(self, clock: Clock, judge: Judge) -> None:
        untyped: Any = super().__init__
        untyped(timeout=None, reactor=clock)
        self.clock = clock
        self.judge = judge
        self.channels: set[FakeChannel] = set()

    def abort(self) -> None:
        """End every connection at once."""
        for channel in list(self.channels):
            transport: Any = channel.transport
            transport.abortConnection()

    def startFactory(self) -> None:
        """No access log, so nothing to open and no time to keep."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def log(self, request: Any) -> None:
        """No access log."""


def server_options(key_file: Path, certificate_file: Path) -> Any:
    """What listening with this key and certificate needs, read now."""
    pem = key_file.read_bytes() + b"\n" + certificate_file.read_bytes()
    return PrivateCertificate.loadPEM(pem).options()
