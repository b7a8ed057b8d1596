"""How much anybody may ask for: other servers by their invites, our users by their lists.

Always true:
- attempts count, whether the observed user exists or not, and end alike: by an answer, by a drop, or
  after the 180 days of a request. So a quota that is full tells nobody who exists (Z-7);
- what a user's change needs is checked as a whole, before any of it is done (S:8).

Source: edus.md 4 step 6; subscriptions.md O-3, O-4, O-30, T-6; security.md Z-7, Z-13, Z-15.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable

from fedpresence.engine.events import ListChanged
from fedpresence.engine.recently import Quota
from fedpresence.engine.schedules import REQUEST_LIFE_MS
from fedpresence.engine.settings import DAY_MS, HOUR_MS
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverStage
from fedpresence.engine.world import World
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, UserID, server_of

OPEN_PER_OBSERVED = 100
OPEN_PER_OBSERVER = 100
OPEN_PER_ORIGIN = 10_000
MAX_ATTEMPTS = 200_000  # remembered for all origins together; beyond it the oldest counts no more

TOMBSTONE_REST_MS = HOUR_MS  # S:O-30
NEW_DESTINATIONS_PER_DAY = 100  # per local user (Z-15)
ROWS_PER_ENTRY = 2  # rows of any kind a user may have, per list entry allowed (Z-15)


class InviteQuotas:
    """Invites of other servers that nobody has answered yet."""

    def __init__(self, world: World, max_attempts: int = MAX_ATTEMPTS) -> None:
        self._world = world
        self._max_attempts = max_attempts
        # (observer, observed): since when, oldest first; an OrderedDict finds its oldest at once
        self._attempts: OrderedDict[tuple[UserID, UserID], int] = OrderedDict()
        self._of_observer: Counter[UserID] = Counter()
        self._of_origin: Counter[ServerName] = Counter()

    def admit(self, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether an invite may be looked at; a repeated one always may, and one of a granted observer."""
        row = self._world.observed_row(observed, observer)
        if row is not None and row.stage is ObservedStage.GRANTED:
            return True
        while self._attempts and next(iter(self._attempts.values())) <= now_ms - REQUEST_LIFE_MS:
            self.settled(*next(iter(self._attempts)))
        if (observer, observed) in self._attempts:
            return True
        if self._of_observer[observer] >= OPEN_PER_OBSERVER:
            return False
        if self._of_origin[server_of(observer)] >= OPEN_PER_ORIGIN:
            return False
        self._count(observer, observed, now_ms)
        return True

    def settled(self, observer: UserID, observed: UserID) -> None:
        """The attempt was answered or withdrawn."""
        if self._attempts.pop((observer, observed), None) is None:
            return
        self._of_observer[observer] -= 1
        self._of_origin[server_of(observer)] -= 1
        if not self._of_observer[observer]:
            del self._of_observer[observer]
        if not self._of_origin[server_of(observer)]:
            del self._of_origin[server_of(observer)]

    def restore(self, rows: Iterable[ObservedRow]) -> None:
        """Requests that were open when the last run ended."""
        for row in sorted(rows, key=lambda row: row.created_ms):
            self._count(row.observer, row.observed, row.created_ms)

    def gives_way(self, observed: UserID, newcomer: UserID) -> UserID | None:
        """Whose request gives way as `newcomer` asks too: the newest of the most demanding origin (Z-13).

        None: there is room. The newcomer's own request is the newest of its origin.
        """
        rows = list(self._world.pairs.observed_rows(observed, ObservedStage.REQUESTED))
        if len(rows) < OPEN_PER_OBSERVED:
            return None
        by_origin = Counter(server_of(row.observer) for row in rows)
        by_origin[server_of(newcomer)] += 1
        most = max(by_origin.values())
        if by_origin[server_of(newcomer)] == most:
            return newcomer
        demanding = (row for row in rows if by_origin[server_of(row.observer)] == most)
        return max(demanding, key=lambda row: (row.created_ms, row.observer)).observer

    def _count(self, observer: UserID, observed: UserID, since_ms: int) -> None:
        if len(self._attempts) >= self._max_attempts:
            self.settled(*next(iter(self._attempts)))
        self._attempts[observer, observed] = since_ms
        self._of_observer[observer] += 1
        self._of_origin[server_of(observer)] += 1


class OwnLimits:
    """What our own users may ask for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._new_destinations = Quota(NEW_DESTINATIONS_PER_DAY, DAY_MS)

    def check(self, change: ListChanged, now_ms: int) -> None:
        """BadRequest where one part of `change` cannot be; nothing is done or used up then."""
        world, me = self._world, change.user_id
        for other in change.accept:
            theirs = world.observed_row(me, other)
            if theirs is None or theirs.stage is ObservedStage.NONE:  # S:T-6
                raise BadRequest("M_NOT_FOUND", "There is no such request", status=404)
        new = [other for other in change.invite if self._check_invite(me, other, now_ms)]
        blocks = [other for other in change.deny if world.observed_row(me, other) is None]  # S:T-7a
        if not new and not blocks:
            return
        pairs, limit = world.pairs, world.settings.max_entries
        entries = len(pairs.listed(me, ObserverStage.PENDING, ObserverStage.ACCEPTED))
        unlisted = sum(pairs.observer_stage(me, other) is None for other in new)
        rows = len(pairs.listed(me)) + pairs.blocked_by(me) + len(blocks) + unlisted
        if (new and entries + len(new) > limit) or rows > ROWS_PER_ENTRY * limit:
            raise BadRequest("M_FORBIDDEN", "The presence list is full", status=403)
        self._check_destinations(me, new, now_ms)

    def _check_invite(self, me: UserID, other: UserID, now_ms: int) -> bool:
        """Whether the invite makes a new entry."""
        world = self._world
        if not world.is_local(other) and not world.permits(server_of(other)):
            raise BadRequest("M_FORBIDDEN", "This server's users cannot be invited", status=403)
        row = world.observer_row(me, other)
        if row is not None and row.stage is ObserverStage.DENIED:
            rest_ms = row.changed_ms + TOMBSTONE_REST_MS - now_ms
            if rest_ms > 0:  # S:O-30
                raise BadRequest(
                    "M_LIMIT_EXCEEDED", "Declined: ask again later", status=429, retry_after_ms=rest_ms
                )
        return row is None or row.stage in (ObserverStage.NONE, ObserverStage.DENIED)

    def _check_destinations(self, me: UserID, new: list[UserID], now_ms: int) -> None:
        """Z-15: nobody makes us connect to thousands of invented names."""
        world = self._world
        known = {world.our_name, *(server_of(observed) for observed in world.pairs.listed(me))}
        unknown = {server_of(other) for other in new} - known
        unknown = {server for server in unknown if server not in world.open_pairs}
        if len(unknown) > self._new_destinations.left(me, now_ms):
            raise BadRequest(
                "M_LIMIT_EXCEEDED", "Too many new servers today", status=429, retry_after_ms=DAY_MS
            )
        for _ in unknown:
            self._new_destinations.allow(me, now_ms)
