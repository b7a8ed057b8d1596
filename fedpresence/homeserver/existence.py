"""Whether users exist here of whom we have not heard yet: asked of the homeserver when they are invited.

Always true: what one resolution of the inbox asks is bounded, in number and in time; who does not exist is
not asked for again so soon; a homeserver that does not answer is left alone for a while, and the invite is
resolved without it (it comes again: S:O-16). Nothing of this can be seen from outside: the 200 has left.

Source: H:1; Z-7.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from twisted.internet.defer import TimeoutError, ensureDeferred, gatherResults

from fedpresence.clock import Clock, now_ms, within
from fedpresence.errors import HomeserverRefused, HomeserverUnavailable
from fedpresence.ids import UserID

MAX_AT_ONCE = 20  # invites of others wait meanwhile; theirs are repeated
PATIENCE_S = 5.0
NOT_FOR_MS = 600_000  # a new account is invitable ten minutes later at most; one that acts is known at once
LEFT_ALONE_MS = 30_000
MAX_REMEMBERED = 10_000


class Profiles(Protocol):
    """The homeserver, as far as it is asked here."""

    async def user_exists(self, user_id: UserID) -> bool:
        """Whether a local user exists."""


class Existence:
    """Asks, and remembers who does not exist."""

    def __init__(self, api: Profiles, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._missing: OrderedDict[UserID, int] = OrderedDict()
        self._left_alone_until_ms = 0

    def __len__(self) -> int:
        """How many are remembered not to exist."""
        return len(self._missing)

    async def existing(self, users: Iterable[UserID]) -> list[UserID]:
        """Those of `users` who exist, as far as the homeserver says so in time."""
        now = now_ms(self._clock)
        if now < self._left_alone_until_ms:
            return []
        asked = [u for u in users if now - self._missing.get(u, now - NOT_FOR_MS) >= NOT_FOR_MS][:MAX_AT_ONCE]
        answers = await gatherResults([ensureDeferred(self._ask(user_id, now)) for user_id in asked])
        return [user_id for user_id, exists in zip(asked, answers, strict=True) if exists]

    async def _ask(self, user_id: UserID, now: int) -> bool:
        try:
            exists = await within(ensureDeferred(self._api.user_exists(user_id)), PATIENCE_S, self._clock)
        except (HomeserverUnavailable, TimeoutError):
            self._left_alone_until_ms = now + LEFT_ALONE_MS
            return False
        except HomeserverRefused:
            return False
        if not exists:
            self._remember(user_id, now)
        return exists

    def _remember(self, user_id: UserID, now: int) -> None:
        self._missing[user_id] = now
        self._missing.move_to_end(user_id)
        if len(self._missing) > MAX_REMEMBERED:
            self._missing.popitem(last=False)
