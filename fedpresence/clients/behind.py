"""What clients' requests need of the homeserver beside us: the way to it, and what it keeps for them.

Always true: it is asked with the client's own token; a filter that cannot be read filters nothing.

Source: H:6.3; P:13.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from twisted.logger import Logger
from twisted.web.http_headers import Headers

from fedpresence.clients.requests import credentials
from fedpresence.clients.work import Work, until
from fedpresence.clock import Clock
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.request import Request
from fedpresence.storage.store import TokenOwner
from fedpresence.wire.filters import EVERYTHING, PresenceFilter, decode_filter, filter_of
from fedpresence.wire.json import decode_json

_log = Logger()

MAX_FILTERS = 10_000  # remembered; clients have one or two each, and it never changes
MAX_FILTER_BYTES = 65_536
FILTER_TIMEOUT_S = 2.0  # a client waits for this

_PLAIN = ((b"Accept-Encoding", b"identity"),)


class Relayed(Protocol):
    """What the homeserver answered; its body is not read yet."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Headers:
        """Without those of the connection."""


class Through(Protocol):
    """Changes the body of an answer while it passes."""

    def feed(self, data: bytes) -> bytes:
        """What goes on of all that has come."""

    def finish(self) -> bytes:
        """What goes on at the end."""


class Relay(Protocol):
    """The way to the homeserver. What it answers is given back, read or dropped."""

    async def forward(
        self,
        request: Request,
        *,
        extra_headers: Iterable[tuple[bytes, bytes]] = (),
        uri: bytes | None = None,
    ) -> Any:
        """The `Relayed` that it answers to this, without a body; BadRequest 502 or 504 where it does not."""

    async def give_back(self, request: Request, relayed: Any, through: Through | None = None) -> bool:
        """Answer as it did, its body by way of `through`; whether all of it was written."""

    async def read(self, relayed: Any, limit: int) -> bytes | None:
        """The whole body; None where it is longer or breaks off."""

    async def is_unserved(self, relayed: Any) -> tuple[bool, bytes]:
        """Whether it has nothing of the kind, and the body that was read to know it."""

    def give_back_whole(self, request: Request, relayed: Any, body: bytes) -> None:
        """Answer as it did, with a body that was read."""

    def drop(self, relayed: Any) -> None:
        """Nobody wants it any more."""

    async def pass_through(self, request: Request) -> None:
        """Ask and give back."""


class Filters:
    """Filters by what a request says of them: inline JSON, or the ID of one that the homeserver keeps."""

    def __init__(self, relay: Relay, clock: Clock) -> None:
        self._relay = relay
        self._clock = clock
        self._kept: OrderedDict[tuple[UserID, str], PresenceFilter] = OrderedDict()

    async def find(self, request: Request, owner: TokenOwner, said: str | None) -> PresenceFilter:
        """The presence part of it; BadRequest where it is inline and wrong."""
        if not said or said.startswith("{"):
            return filter_of(said) if said else EVERYTHING
        key = (owner.user_id, said)
        found = self._kept.get(key)
        if found is None:
            found = await self._ask(request, owner, said)
        if found is None:
            return EVERYTHING
        self._kept[key] = found
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_FILTERS:
            self._kept.popitem(last=False)
        return found

    async def _ask(self, request: Request, owner: TokenOwner, filter_id: str) -> PresenceFilter | None:
        asking = Work(self._fetch(request, owner, filter_id))
        try:
            await until(asking, clock=self._clock, timeout_s=FILTER_TIMEOUT_S)
            return asking.result() if asking.done else None
        except BadRequest as error:
            _log.debug("a filter cannot be read: {reason}", reason=error.message)
            return None
        finally:
            asking.cancel()

    async def _fetch(self, request: Request, owner: TokenOwner, filter_id: str) -> PresenceFilter | None:
        user, name = quote(owner.user_id, safe=""), quote(filter_id, safe="")
        uri = _with_credentials(f"/_matrix/client/v3/user/{user}/filter/{name}", request)
        relayed = await self._relay.forward(request, uri=uri, extra_headers=_PLAIN)
        body = await self._relay.read(relayed, MAX_FILTER_BYTES)
        return decode_filter(decode_json(body)) if relayed.status == 200 and body else None


def _with_credentials(path: str, request: Request) -> bytes:
    """The path with those parameters of the request that say whose it is."""
    asked = credentials(request)
    query = {"user_id": asked.user_id, "device_id": asked.device_id}
    if request.getHeader(b"authorization") is None:
        query["access_token"] = asked.token
    named = urlencode({key: value for key, value in query.items() if value})
    return (f"{path}?{named}" if named else path).encode("ascii")
