"""Access tokens to their owners: what a store, or a homeserver, said of each is remembered for a while.

Always true:
- a token is kept in memory as a hash only, and never logged;
- after `forget()` no answer is given that was looked up before it, so a revoked token stops working;
- one look-up per token, and user that it acts as, is in flight at a time (Z-28); everything remembered is
  bounded.

Source: P:9, decision 22; contract.md, `fedpresence token`; H:4, Z-28.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from fedpresence.clients.requests import Credentials, Refused, access_token, credentials
from fedpresence.clients.views import Views
from fedpresence.clock import Clock, now_ms
from fedpresence.engine.events import UserAdded
from fedpresence.errors import BadRequest
from fedpresence.hub import Hub
from fedpresence.ids import UserID
from fedpresence.request import Request
from fedpresence.storage.store import TokenOwner

MAX_TOKEN_CHARACTERS = 1024  # homeservers' tokens stay far below; ours have a tenth of that
MAX_REMEMBERED = 100_000  # about 30 MB
MAX_LOOKUPS = 10_000  # in flight: as many as a listener has connections
KNOWN_FOR_MS = 60_000  # should nobody call forget(), a revoked token still ends
STALE_FOR_MS = 300_000  # a homeserver that is too busy to say it again is taken at its last word (H:4, 429)
UNKNOWN_FOR_MS = 200  # a token is honoured as soon as it was made (contract.md), but no hammering

Found = TokenOwner | Refused | None


class TokenChecker(Protocol):
    """Who says whose request this is: our own tokens, or a homeserver."""

    async def owner(self, request: Request) -> TokenOwner:
        """Whose token the request carries; BadRequest 401 where it has none or an unknown one."""


class TokenFinder(Protocol):
    """Who knows tokens."""

    def find_token(self, token: str) -> Awaitable[Found]:
        """Whose token this is; None for an unknown one."""


class Masquerades(Protocol):
    """Who knows whom an application service may act as."""

    def find(self, asked: Credentials) -> Awaitable[Found]:
        """Who it is that acts; None for an unknown token, or one that may not act so."""


class Tokens:
    """Whose tokens are whose, by a finder: our store (`auth.mode: tokens`), or the homeserver's whoami.

    `before_adding` hears of a user who is about to exist because a token was theirs.
    Without `masquerades` nobody acts as somebody else: `user_id` in a query says nothing then.
    """

    def __init__(
        self,
        finder: TokenFinder,
        hub: Hub,
        engine: Views,
        clock: Clock,
        *,
        masquerades: Masquerades | None = None,
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
        self._masquerades = masquerades
        self._hub = hub
        self._engine = engine
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[Found, int]] = OrderedDict()
        self._lookups: dict[bytes, list[Deferred[Found]]] = {}

    async def owner(self, request: Request) -> TokenOwner:
        """Whose token the request carries; BadRequest 401 where it has none or an unknown one."""
        if self._masquerades is None:
            return await self.owner_of(Credentials(access_token(request)))
        return await self.owner_of(credentials(request))

    async def owner_of(self, asked: Credentials) -> TokenOwner:
        """As `owner`, of a request that may be over."""
        owner: Found = None
        if len(asked.token) <= MAX_TOKEN_CHARACTERS:
            if self._masquerades is None and (asked.user_id or asked.device_id):
                asked = Credentials(asked.token)
            said = f"{asked.token!r} {asked.user_id!r} {asked.device_id!r}"  # no two askers say the same
            digest = hashlib.blake2b(said.encode("utf-8"), digest_size=32).digest()
            remembered = self._remembered.get(digest)
            if remembered is not None and now_ms(self._clock) < remembered[1]:
                owner = remembered[0]
            else:
                owner = await self._look_up(asked, digest)
        if isinstance(owner, TokenOwner):
            return owner
        refused = owner or Refused("M_UNKNOWN_TOKEN", soft_logout=False)
        raise BadRequest(refused.errcode, "Unknown access token", status=401, soft_logout=refused.soft_logout)

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

    def _look_up(self, asked: Credentials, digest: bytes) -> Deferred[Found]:
        answer: Deferred[Found] = Deferred()
        waiting = self._lookups.get(digest)
        if waiting is not None:
            waiting.append(answer)
            return answer
        if len(self._lookups) >= self._max_lookups:
            raise BadRequest("M_LIMIT_EXCEEDED", "Too many requests", status=429, retry_after_ms=1000)
        self._lookups[digest] = waiting = [answer]
        ensureDeferred(self._find(asked)).addBoth(self._found, digest, waiting)
        return answer

    async def _find(self, asked: Credentials) -> Found:
        if self._masquerades is None or not (asked.user_id or asked.device_id):
            owner = await self._finder.find_token(asked.token)
        else:
            owner = await self._masquerades.find(asked)
        if isinstance(owner, TokenOwner) and not self._engine.user_exists(owner.user_id):
            if self._before_adding is not None:
                await self._before_adding(owner.user_id)
            await self._hub.submit(UserAdded(owner.user_id))
        return owner

    def _found(
        self,
        result: Found | Failure,
        digest: bytes,
        waiting: list[Deferred[Found]],
    ) -> None:
        if self._lookups.get(digest) is waiting:
            del self._lookups[digest]
            if isinstance(result, Failure) and _is_busy(result):
                result = self._last_word(digest) or result
            elif not isinstance(result, Failure):
                lasts_ms = KNOWN_FOR_MS if isinstance(result, TokenOwner) else self._unknown_for_ms
                self._remember(digest, result, now_ms(self._clock) + lasts_ms)
        for answer in waiting:
            if isinstance(result, Failure):
                answer.errback(result)
            else:
                answer.callback(result)

    def _last_word(self, digest: bytes) -> Found:
        """Whose token it was, for a while after that should have been asked again."""
        owner, until_ms = self._remembered.get(digest, (None, 0))
        is_known = isinstance(owner, TokenOwner) and now_ms(self._clock) < until_ms + STALE_FOR_MS
        return owner if is_known else None

    def _remember(self, digest: bytes, owner: Found, until_ms: int) -> None:
        self._remembered[digest] = (owner, until_ms)
        self._remembered.move_to_end(digest)
        if len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


def _is_busy(failure: Failure) -> bool:
    return isinstance(failure.value, BadRequest) and failure.value.status == 429
