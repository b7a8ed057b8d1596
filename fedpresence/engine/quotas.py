"""How much anybody may ask for: other servers by their invites, our users by their lists.

Always true:
- attempts count, whether the observed user exists or not, and end alike: by an answer, a day after a drop,
  after the 180 days of a request, or with the run. So a quota that is full tells nobody who exists (Z-7):
  to count only the requests that a restart finds would;
- what a user's change needs is checked as a whole, before any of it is done (S:8).

Source: edus.md 4 step 6; subscriptions.md O-3, O-4, O-30, T-6; security.md Z-7, Z-13, Z-15.
"""

from collections import Counter, OrderedDict

from fedpresence.engine.events import ListChanged
from fedpresence.engine.recently import Quota, Recently
from fedpresence.engine.schedules import REQUEST_LIFE_MS
from fedpresence.engine.settings import DAY_MS, HOUR_MS
from fedpresence.engine.subscription import EduKind, ObservedStage, ObserverStage
from fedpresence.engine.world import World
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, UserID, server_of

OPEN_PER_OBSERVED = 100
OPEN_PER_OBSERVER = 100
OPEN_PER_ORIGIN = 10_000
WITHDRAWN_MS = DAY_MS  # names are free: who asks and gives up all day long would have no end of them
MAX_ATTEMPTS = 200_000  # remembered for all origins together; beyond it the oldest counts no more
# In a day, of one server's users to one of ours: who asks and withdraws again costs nothing to invent, and
# such user IDs can say anything.
NOTICES_PER_ORIGIN = 100

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
        self._withdrawn: OrderedDict[tuple[UserID, UserID], int] = OrderedDict()  # the same, since the drop
        self._of_observer: Counter[UserID] = Counter()
        self._of_origin: Counter[ServerName] = Counter()

    def admit(self, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether an invite may be looked at; a repeated one always may, and one of a granted observer."""
        row = self._world.observed_row(observed, observer)
        if row is not None and row.stage is ObservedStage.GRANTED:
            return True
        self._expire(self._attempts, now_ms - REQUEST_LIFE_MS)
        self._expire(self._withdrawn, now_ms - WITHDRAWN_MS)
        if (observer, observed) in self._attempts:
            return True
        if self._withdrawn.pop((observer, observed), None) is not None:
            self._attempts[observer, observed] = now_ms
            return True
        if self._of_observer[observer] >= OPEN_PER_OBSERVER:
            return False
        if self._of_origin[server_of(observer)] >= OPEN_PER_ORIGIN:
            return False
        self._count(observer, observed, now_ms)
        return True

    def settled(self, observer: UserID, observed: UserID) -> None:
        """The attempt was answered."""
        for attempts in (self._attempts, self._withdrawn):
            if attempts.pop((observer, observed), None) is not None:
                self._uncount(observer)

    def withdrawn(self, observer: UserID, observed: UserID, now_ms: int) -> None:
        """The observer gave up: the place is free again in a day."""
        if self._attempts.pop((observer, observed), None) is not None:
            self._withdrawn[observer, observed] = now_ms

    def gives_way(self, observed: UserID, newcomer: UserID) -> UserID | None:
        """Whose request gives way as `newcomer` asks too: the newest of the most demanding origin (Z-13).

        None: there is room. The newcomer's own request is the newest of its origin.
        """
        observers = self._world.pairs.requested(observed)
        if len(observers) < OPEN_PER_OBSERVED:
            return None
        by_origin = Counter(map(server_of, observers))
        by_origin[server_of(newcomer)] += 1
        most = max(by_origin.values())
        if by_origin[server_of(newcomer)] == most:
            return newcomer
        demanding = [observer for observer in observers if by_origin[server_of(observer)] == most]
        return max(demanding, key=lambda observer: (self._since_ms(observed, observer), observer))

    def _since_ms(self, observed: UserID, observer: UserID) -> int:
        row = self._world.observed_row(observed, observer)
        return 0 if row is None else row.created_ms

    def _count(self, observer: UserID, observed: UserID, since_ms: int) -> None:
        if len(self._attempts) + len(self._withdrawn) >= self._max_attempts:
            self._forget_oldest(self._withdrawn or self._attempts)
        self._attempts[observer, observed] = since_ms
        self._of_observer[observer] += 1
        self._of_origin[server_of(observer)] += 1

    def _uncount(self, observer: UserID) -> None:
        self._of_observer[observer] -= 1
        self._of_origin[server_of(observer)] -= 1
        if not self._of_observer[observer]:
            del self._of_observer[observer]
        if not self._of_origin[server_of(observer)]:
            del self._of_origin[server_of(observer)]

    def _expire(self, attempts: OrderedDict[tuple[UserID, UserID], int], until_ms: int) -> None:
        while attempts and next(iter(attempts.values())) <= until_ms:
            self._forget_oldest(attempts)

    def _forget_oldest(self, attempts: OrderedDict[tuple[UserID, UserID], int]) -> None:
        (observer, _), _ = attempts.popitem(last=False)
        self._uncount(observer)


class NoticeQuotas:
    """For what a client of the observed user is woken (Z-13).

    A request that was not told is listed, and told at the next connection as all that are open (S:T-1).
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pairs = Recently(DAY_MS)
        self._of_origin = Quota(NOTICES_PER_ORIGIN, DAY_MS)

    def allow(self, kind: EduKind, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether it may be told that `observer` asked or withdrew; if so, it counts."""
        pair, origin = (kind, observer, observed), (server_of(observer), observed)
        if self._world.is_local(observer):
            return self._pairs.allow(pair, now_ms)
        if self._of_origin.left(origin, now_ms) <= 0 or not self._pairs.allow(pair, now_ms):
            return False
        return self._of_origin.allow(origin, now_ms)


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
        strangers = [other for other in change.accept if self._is_stranger(me, other)]
        if not new and not blocks and not strangers:
            return
        pairs, limit = world.pairs, world.settings.max_entries
        entries = len(pairs.listed(me, ObserverStage.PENDING, ObserverStage.ACCEPTED))
        unlisted = sum(pairs.observer_stage(me, other) is None for other in new)
        rows = len(pairs.listed(me)) + pairs.blocked_by(me) + len(blocks) + unlisted
        adds_rows = bool(new or blocks)
        if (new and entries + len(new) > limit) or (adds_rows and rows > ROWS_PER_ENTRY * limit):
            raise BadRequest("M_FORBIDDEN", "The presence list is full", status=403)
        self._check_destinations(me, new, strangers, now_ms)

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

    def _is_stranger(self, me: UserID, other: UserID) -> bool:
        """Whether `me` blocked `other`, who never asked: nobody but `me` says that there is such a user."""
        row = self._world.observed_row(me, other)
        is_blocked = row is not None and row.stage is ObservedStage.DENIED and row.generation == 0
        return is_blocked and not self._world.is_local(other)

    def _check_destinations(
        self, me: UserID, new: list[UserID], strangers: list[UserID], now_ms: int
    ) -> None:
        """Z-15: nobody makes us connect to thousands of invented names.

        A stranger who is forgiven counts even where the server is known: the grant counts in no other limit.
        """
        world = self._world
        known = {world.our_name, *(server_of(observed) for observed in world.pairs.listed(me))}
        unknown = {server_of(other) for other in new} - known
        unknown = {server for server in unknown if server not in world.open_pairs}
        wanted = len(unknown) + len(strangers)
        if wanted > self._new_destinations.left(me, now_ms):
            raise BadRequest(
                "M_LIMIT_EXCEEDED", "Too many new servers today", status=429, retry_after_ms=DAY_MS
            )
        for _ in range(wanted):
            self._new_destinations.allow(me, now_ms)
