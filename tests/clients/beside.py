"""The client API of one server beside a homeserver that is played: it answers when and what it is told."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence.clients.behind import Through
from fedpresence.clients.resource import add_clients_beside
from fedpresence.errors import BadRequest
from fedpresence.request import Request
from tests.clients.world import Asked, World

KEYS = {"signed_curve25519": 50}


@dataclass
class Relayed:
    """An answer of the homeserver's."""

    status: int
    headers: Headers
    body: bytes


@dataclass
class Forwarded:
    """A request that reached the homeserver."""

    request: Request
    uri: bytes
    headers: dict[bytes, bytes]
    answer: Deferred[Relayed]
    cancelled: bool = False

    def respond(self, body: object, status: int = 200, *, data: bytes | None = None, **more: str) -> None:
        """Answer it."""
        headers = Headers({"content-type": ["application/json"]})
        for name, value in more.items():
            headers.setRawHeaders(name.replace("_", "-"), [value])
        raw = json.dumps(body, separators=(",", ":")).encode() if data is None else data
        self.answer.callback(Relayed(status, headers, raw))

    def fail(self, status: int = 502) -> None:
        """It cannot be reached."""
        self.answer.errback(BadRequest("M_UNKNOWN", "The homeserver cannot be reached", status=status))


@dataclass
class PlayedRelay:
    """The way to a homeserver that answers when it is told; `pieces` cuts bodies into that many bytes."""

    asked: list[Forwarded] = field(default_factory=list)
    asked_again: list[bytes] = field(default_factory=list)  # not to wait, and answered so
    passed: list[bytes] = field(default_factory=list)
    filters: dict[bytes, object] = field(default_factory=dict)
    pieces: int = 7
    breaks_off: bool = False
    dropped: int = 0
    passing: list[Deferred[None]] = field(default_factory=list)
    holds: bool = False

    async def forward(
        self,
        request: Request,
        *,
        extra_headers: Iterable[tuple[bytes, bytes]] = (),
        uri: bytes | None = None,
    ) -> Relayed:
        """Remember it; filters are answered at once, and who is asked again."""
        asked = uri or request.uri
        if b"/filter/" in asked:
            found = self.filters.get(asked.partition(b"/filter/")[2].partition(b"?")[0])
            self.passed.append(asked)
            return Relayed(404 if found is None else 200, Headers(), json.dumps(found).encode())
        if uri is not None:
            self.asked_again.append(uri)
            since = request.args[b"since"][0].decode()
            quiet = {"next_batch": since, "device_one_time_keys_count": KEYS}
            headers = Headers({"content-type": ["application/json"]})
            return Relayed(200, headers, json.dumps(quiet).encode())
        answer: Deferred[Relayed] = Deferred()
        forwarded = Forwarded(request, asked, dict(extra_headers), answer)
        self.asked.append(forwarded)
        try:
            return await answer
        except BadRequest:
            raise
        except BaseException:
            forwarded.cancelled = True
            raise

    async def give_back(self, request: Request, relayed: Relayed, through: Through | None = None) -> bool:
        """In small pieces."""
        request.setResponseCode(relayed.status)
        for name, values in relayed.headers.getAllRawHeaders():
            request.responseHeaders.setRawHeaders(name, list(values))
        for at in range(0, len(relayed.body), self.pieces):
            piece = relayed.body[at : at + self.pieces]
            request.write(piece if through is None else through.feed(piece))
        if self.breaks_off:
            return False
        if through is not None:
            request.write(through.finish())
        request.finish()
        return True

    async def read(self, relayed: Relayed, limit: int) -> bytes | None:
        """All of it."""
        return relayed.body

    async def is_unserved(self, relayed: Relayed) -> tuple[bool, bytes]:
        """As the homeserver's words are."""
        body = json.loads(relayed.body)
        return not isinstance(body, dict) or body.get("errcode") in (None, "M_UNRECOGNIZED"), relayed.body

    def give_back_whole(self, request: Request, relayed: Relayed, body: bytes) -> None:
        """All at once."""
        request.setResponseCode(relayed.status)
        request.write(body)
        request.finish()

    def drop(self, relayed: Relayed) -> None:
        """Count it."""
        self.dropped += 1

    async def pass_through(self, request: Request) -> None:
        """Remember it; answered at once, or when it is let go."""
        self.passed.append(request.method + b" " + request.uri)
        if self.holds:
            moment: Deferred[None] = Deferred()
            self.passing.append(moment)
            await moment
        request.write(b'{"from":"homeserver"}')
        request.finish()


class _Passed(Resource):
    def __init__(self, relay: PlayedRelay) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._relay = relay

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self

    def render(self, request: Request) -> int:
        Deferred.fromCoroutine(self._relay.pass_through(request))
        return NOT_DONE_YET


class Beside(World):
    """A world whose clients reach a homeserver through us."""

    def restart(self, epoch: str, *, busy: bool = False) -> None:
        """A new run: positions are forgotten too."""
        super().restart(epoch, busy=busy)
        self.relay = PlayedRelay()
        root = Resource()
        add_clients_beside(root, self.parts, self.relay, lambda: _Passed(self.relay))
        self.treq = StubTreq(root)

    @property
    def last(self) -> Forwarded:
        """The request that came to the homeserver last."""
        return self.relay.asked[-1]

    def synced(
        self, since: str | None = None, given: str = "h1", *, token: str = "alice-phone", **body: Any
    ) -> Any:
        """A whole sync, answered by the homeserver at once: its body."""
        params: dict[str, str | int] = {} if since is None else {"since": since}
        asked = self.sync(token, **params)
        assert asked.waits
        self.last.respond({"next_batch": given, **body})
        return asked.answer.body

    def poll(self, since: str, token: str = "alice-phone", **params: str | int) -> Asked:
        """A long poll that has reached the homeserver."""
        asked = self.sync(token, since=since, timeout=30_000, **params)
        before = len(self.relay.asked)
        assert asked.waits or before
        return asked
