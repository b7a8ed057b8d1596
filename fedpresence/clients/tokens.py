"""Access tokens to their owners: what a store, or a homeserver, said of each is remembered for a while.

Always true:
- a token is kept in memory as its SHA-256 only, and never logged;
- after `forget()` no answer is given that was looked up before it, so a revoked token stops working;
- one look-up per token is in flight at a time; everything remembered is bounded.

Source: P:9, decision 22; contract.md, `fedpresence token`.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure
from twisted.web.server import Request

from fedpresence.clients.requests import access_token
from fedpresence.clients.views import Views
from fedpresence.clock import Clock, now_ms
from fedpresence.engine.events import UserAdded
from fedpresence.errors import BadRequest
from fedpresence.hub import Hub
from fedpresence.ids import UserID
from fedpresence.storage.store import TokenOwner

MAX_TOKEN_CHARACTERS = 1024  # homeservers' tokens stay far below; ours have a tenth of that
MAX_REMEMBERED = 100_000  # about 30 MB
MAX_LOOKUPS = 10_000  # in flight: as many as a listener has connections
KNOWN_FOR_MS = 60_000  # should nobody call forget(), a revoked token still ends
UNKNOWN_FOR_MS = 200  # a token is honoured as soon as it was made (contract.md), but no hammering


class TokenChecker(Protocol):
    """Who says whose request this is: our own tokens, or a homeserver."""

    async def owner(self, request: Request) -> TokenOwner:
        """Whose token the request carries; BadRequest 401 where it has none or an unknown one."""


class TokenFinder(Protocol):
    """Who knows tokens."""

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        """Whose token this is; None for an unknown one."""


class Tokens:
    """Whose tokens are whose, by a finder: our store (`auth.mode: tokens`), or the homeserver's whoami.

    `before_adding` hears of a user who is about to exist because a token was theirs.
    """

    def __init__(
        self,
        finder: TokenFinder,
        hub: Hub,
        engine: Views,
        clock: Clock,
        *,
        max_remembered: int = MAX_REMEMBERED,
        max_lookups: int = MAX_LOOKUPS,
        unknown_for_ms: int = UNKNOWN_FOR_MS,
        before_adding: Callable[[UserID], Awaitable[None]] | None = None,
    ) -> None:
        self._before_adding = before_adding
        self._max_remembered = max_remembered
        self._max_lookups = max_lookups
        self._unknown_for_ms = unknown_for_ms
        self._finder = finder
        self._hub = hub
        self._engine = engine
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[TokenOwner | None, int]] = OrderedDict()
        self._lookups: dict[bytes, list[Deferred[TokenOwner | None]]] = {}

    async def owner(self, request: Request) -> TokenOwner:
        """Whose token the request carries; BadRequest 401 where it has none or an unknown one."""
        token = access_token(request)
        owner = None
        if len(token) <= MAX_TOKEN_CHARACTERS:
            digest = hashlib.sha256(token.encode("utf-8")).digest()
            remembered = self._remembered.get(digest)
            if remembered is not None and now_ms(self._clock) < remembered[1]:
                owner = remembered[0]
            else:
                owner = await self._look_up(token, digest)
        if owner is None:
            raise BadRequest("M_UNKNOWN_TOKEN", "Unknown access token", status=401)
        return owner

    def __len__(self) -> int:
        """How many tokens are remembered, unknown ones included."""
        return len(self._remembered)

    def forget(self) -> None:
        """Another process changed tokens: look everything up again."""
        self._remembered.clear()
        self._lookups.clear()  # those in flight still answer who waits for them, and are not remembered

    def forget_user(self, user_id: UserID) -> None:
        """This user's tokens changed: as `forget`, for an index by user would cost more than it saves."""
        self.forget()

    def _look_up(self, token: str, digest: bytes) -> Deferred[TokenOwner | None]:
        answer: Deferred[TokenOwner | None] = Deferred()
        waiting = self._lookups.get(digest)
        if waiting is not None:
            waiting.append(answer)
            return answer
        if len(self._lookups) >= self._max_lookups:
            raise BadRequest("M_LIMIT_EXCEEDED", "Too many requests", status=429, retry_after_ms=1000)
        self._lookups[digest] = waiting = [answer]
        ensureDeferred(self._find(token)).addBoth(self._found, digest, waiting)
        return answer

    async def _find(self, token: str) -> TokenOwner | None:
        owner = await self._finder.find_token(token)
        if owner is not None and not self._engine.user_exists(owner.user_id):
            if self._before_adding is not None:
                await self._before_adding(owner.user_id)
            await self._hub.submit(UserAdded(owner.user_id))
        return owner

    def _found(
        self,
        result: TokenOwner | Failure | None,
        digest: bytes,
        waiting: list[Deferred[TokenOwner | None]],
    ) -> None:
        if self._lookups.get(digest) is waiting:
            del self._lookups[digest]
            if not isinstance(result, Failure):
                lasts_ms = self._unknown_for_ms if result is None else KNOWN_FOR_MS
                self._remember(digest, result, now_ms(self._clock) + lasts_ms)
        for answer in waiting:
            if isinstance(result, Failure):
                answer.errback(result)
            else:
                answer.callback(result)

    def _remember(self, digest: bytes, owner: TokenOwner | None, until_ms: int) -> None:
        self._remembered[digest] = (owner, until_ms)
        self._remembered.move_to_end(digest)
        if len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)
