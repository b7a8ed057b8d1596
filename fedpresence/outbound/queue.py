"""What waits for one destination (pure: `now_ms` in, answers out).

Always true:
- users wait as IDs, never as messages; the push is made when it leaves (decision 9);
- a user leaves the set only with a 2xx, and only if no newer news came since it was taken;
- EDUs of a pair leave in order, at most one of a pair in a transaction (decision 10);
- what is tried once (polls, unpolls, drops that nobody owes) is gone when taken;
- a change is left out only where the destination confirmed the very same content (decision 13);
- a refresh is due from a phase on that belongs to the two servers: the first user who is due takes the others
  along, so of phases of their own the smallest would count, and be about the same everywhere. Alone it then
  has time, and goes when it is its turn (`outbound.rounds`).

Source: decisions 9 to 14; Z-15, Z-17; S:3.5, S:T-28.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from math import ceil

from fedpresence.engine.effects import (
    SendDropOnce,
    SendEdu,
    SendPoll,
    SendUnpoll,
    UnsendEdus,
    Urgency,
)
from fedpresence.engine.outgoing import ListEdu, Wanted
from fedpresence.engine.presence import PresenceState, Published
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.budget import TokenBucket

QueueEffect = SendEdu | UnsendEdus | SendDropOnce | SendPoll | SendUnpoll

RIDE_AFTER = 0.5  # of a refresh interval after the last push: then a refresh goes where something goes anyway
REFRESH_AFTER, REFRESH_PHASES = 0.6, 0.15  # from then on by itself, at a phase in so much more
REFRESH_WITHIN = 0.9  # and by then: early enough to fail twice (decision 14)
BOOT_WITHIN = 0.2  # after a start (S:T-28)
MAX_OWED = 10_000  # what does not fit stays owed in its row, and is asked for again by S:3.5
MAX_ONCE = 10_000  # drops, polls and unpolls waiting, each: a restart asks for all users of a server
MAX_EDUS_TAKEN = 40  # list EDUs a transaction: with final pushes and m.presence well below 100 (F:7.1)
MAX_POLLS_TAKEN = 100  # receivers skip more (E:Q-1)
EDUS_PER_MINUTE = 100  # S:3.5, per destination
TIMER_WINDOW_MS = 2_000  # decision 12
SAME_ACTIVITY_MS = 60_000  # an age that moved less is no news (decision 13)
PATIENCE_MS = {  # how long each may wait for a turn before it is as urgent as any (Z-18)
    Urgency.ASKED: 0,
    Urgency.CHANGE: 200,
    Urgency.TIMER: 5_000,
    Urgency.REFRESH: 60_000,
}
OVERDRAWN_PATIENCE_MS = (
    60_000  # news of a user who has spent their share, and what is asked for in bulk (Z-18)
)

_CHANGE, _TIMER = Urgency.CHANGE, Urgency.TIMER  # an attribute of an enum is slow to find

Pair = tuple[UserID, UserID]  # observer, observed
OwedKey = tuple[UserID, UserID, int, EduKind]


class _News:
    """A user who is due: `count` tells newer news from what was taken."""

    __slots__ = ("count", "deadline_ms", "urgency")

    def __init__(self, urgency: Urgency, deadline_ms: int, count: int) -> None:
        self.urgency = urgency
        self.deadline_ms = deadline_ms
        self.count = count


class _Told:
    """What the destination confirmed of a user: `published` None where that is not sure."""

    __slots__ = ("published", "told_ms")

    def __init__(self, told_ms: int, published: Published | None) -> None:
        self.told_ms = told_ms
        self.published = published


class _Owed:
    """A list EDU that is owed; `aside` after a refusal."""

    __slots__ = ("aside", "edu")

    def __init__(self, edu: OwedEdu) -> None:
        self.edu = edu
        self.aside = False


class DestinationQueue:
    """Everything that waits for `destination`, and when it is due.

    `revision` changes whenever something is withdrawn: bytes made before are not sent again.
    """

    def __init__(
        self,
        origin: ServerName,
        destination: ServerName,
        *,
        batch_window_ms: int,
        refresh_interval_ms: int,
    ) -> None:
        self.revision = 0
        self._window_ms = batch_window_ms
        after = REFRESH_AFTER + REFRESH_PHASES * spread(origin, destination)
        self._ride_after_ms = int(refresh_interval_ms * RIDE_AFTER)
        self._refresh_after_ms = int(refresh_interval_ms * after)
        self._refresh_within_ms = int(refresh_interval_ms * REFRESH_WITHIN)
        self._boot_within_ms = int(refresh_interval_ms * BOOT_WITHIN)
        self._pending: dict[UserID, _News] = {}
        self._told: OrderedDict[UserID, _Told] = OrderedDict()  # in the order of told_ms: the oldest first
        self._owed: dict[OwedKey, _Owed] = {}
        self._any_aside = False  # since the last wake: mostly nothing is, and nothing need be looked for
        self._drops: dict[Pair, ListEdu] = {}
        self._polls: dict[UserID, None] = {}
        self._unpolls: dict[UserID, None] = {}
        self._edus_left = TokenBucket(EDUS_PER_MINUTE / 60, EDUS_PER_MINUTE)
        self._taken: dict[UserID, int] = {}  # user to the count of its news; 0 for a refresh
        self._counter = 0
        self._urgent = 0  # how many of the pending are more urgent than a timer
        self._left_ms: int | None = None  # when the last transaction left
        self._deadline_ms: int | None = None  # earliest of what waits

    # --- what comes in ---------------------------------------------------------------------------

    def add_push(self, user_id: UserID, urgency: Urgency, deadline_ms: int) -> None:
        """News of a user waits, to be told by `deadline_ms` if others do not wait longer."""
        self._counter += 1
        news = self._pending.get(user_id)
        if news is None:
            self._pending[user_id] = _News(urgency, deadline_ms, self._counter)
            self._urgent += urgency <= _CHANGE
        else:
            news.count = self._counter
            if deadline_ms < news.deadline_ms:
                news.deadline_ms = deadline_ms
            if urgency < news.urgency:
                self._urgent += urgency <= _CHANGE < news.urgency
                news.urgency = urgency
        if self._deadline_ms is None or deadline_ms < self._deadline_ms:
            self._deadline_ms = deadline_ms

    def add(self, effect: QueueEffect, now_ms: int, *, overdrawn: bool = False) -> None:
        """Something else waits, or (UnsendEdus) waits no longer."""
        match effect:
            case SendEdu():
                self._add_edu(effect.edu, now_ms)
            case UnsendEdus():
                self._unsend((effect.observer, effect.observed), now_ms)
            case SendDropOnce():
                self._add_drop((effect.observer, effect.observed), now_ms)
            case SendPoll():
                _add_bounded(self._polls, effect.user_id)
                self._expect(now_ms + (OVERDRAWN_PATIENCE_MS if overdrawn else 0))
            case SendUnpoll():
                _add_bounded(self._unpolls, effect.user_id)
                self._expect(now_ms + PATIENCE_MS[Urgency.TIMER])

    def add_at_boot(self, user_id: UserID, now_ms: int) -> None:
        """A user this destination may see: told again in the first fifth of a refresh interval (S:T-28)."""
        # As if told so long ago that it must go by then; it rides along with whatever goes before.
        self._remember(user_id, now_ms + self._boot_within_ms - self._refresh_within_ms, None)

    def add_again(self, user_id: UserID, now_ms: int) -> None:
        """As `add_at_boot`, but together with whoever waits longest: with them it goes, or rides along."""
        if user_id in self._told:
            return
        told_ms, oldest_ms = (
            now_ms + self._boot_within_ms - self._refresh_within_ms,
            self._longest_untold_ms(),
        )
        self._remember(user_id, told_ms if oldest_ms is None else min(told_ms, oldest_ms), None)
        self._told.move_to_end(user_id, last=False)

    def wake(self, now_ms: int) -> None:
        """The destination is heard of again: EDUs that it refused are offered once more.

        What waits is old, and is no reason any more to go before the news of others.
        """
        for owed in self._owed.values():
            owed.aside = False
        self._any_aside = False
        for news in self._pending.values():
            news.deadline_ms = max(news.deadline_ms, now_ms + PATIENCE_MS[Urgency.REFRESH])
        self._reckon(now_ms)

    # --- what goes out ---------------------------------------------------------------------------

    def take(self, now_ms: int, limit: int) -> Wanted:
        """What the next transaction should carry, at most `limit` users; it still waits until `delivered`."""
        users = self._users_to_take(now_ms, limit)
        self._taken = {user: news.count if (news := self._pending.get(user)) else 0 for user in users}
        # Nothing is gained by waiting where the next transaction is full already.
        self._left_ms = None if len(self._pending) >= 2 * limit else now_ms
        if not (self._owed or self._drops or self._polls or self._unpolls):
            return Wanted(users)  # as mostly
        drops = tuple(self._drops.values())[:MAX_EDUS_TAKEN]
        for drop in drops:
            del self._drops[(drop.observer, drop.observed)]
        owed = self._owed_to_take(now_ms, {(drop.observer, drop.observed) for drop in drops})
        polls = _pop_some(self._polls, MAX_POLLS_TAKEN)
        unpolls = _pop_some(self._unpolls, MAX_POLLS_TAKEN)
        return Wanted(users=users, owed=owed, drops=drops, polls=polls, unpolls=unpolls)

    def unchanged(self, published: dict[UserID, Published], now_ms: int) -> frozenset[UserID]:
        """Those of the taken users whose news cancelled out: nothing need be said (decision 13)."""
        same = set()
        for user, content in published.items():
            news, told = self._pending.get(user), self._told.get(user)
            if (
                news is not None
                and told is not None
                and told.published is not None
                and _CHANGE <= news.urgency <= _TIMER
                and told.told_ms + self._refresh_after_ms > now_ms
                and _same(told.published, content)
            ):
                same.add(user)
        return frozenset(same)

    def delivered(
        self,
        users: Iterable[UserID],
        owed: Iterable[OwedEdu],
        published: dict[UserID, Published],
        now_ms: int,
    ) -> None:
        """The destination took these with a 2xx; `published` is what was said of the users."""
        for user in users:
            self._forget_news(user)
            self._remember(user, now_ms, published[user])
        for edu in owed:
            self._owed.pop(_owed_key(edu), None)
        self._reckon(now_ms)

    def settled(self, users: Iterable[UserID], now_ms: int) -> None:
        """These need not be said: they leave the set as if delivered."""
        for user in users:
            self._forget_news(user)
        self._reckon(now_ms)

    def withdraw(self, users: Iterable[UserID], owed: Iterable[OwedEdu], now_ms: int) -> None:
        """The destination has no right to these users any more; no row owes these EDUs any more."""
        for user in users:
            self._forget_news(user)
            self._told.pop(user, None)
        for edu in owed:
            self._owed.pop(_owed_key(edu), None)
        self._reckon(now_ms)

    def failed(self, users: Iterable[UserID]) -> None:
        """A try failed after its bytes left: all waits on, and what the destination knows is not sure."""
        for user in users:
            if told := self._told.get(user):
                told.published = None

    def set_aside(self, users: Iterable[UserID], owed: Iterable[OwedEdu], now_ms: int) -> None:
        """A refusal that will not change: pushes wait for their next change or refresh (F:X-6).

        List EDUs stay owed, and are offered again when their row asks or the destination wakes.
        """
        for user in users:
            self._forget_news(user)
            self._remember(user, now_ms, None)
        for edu in owed:
            if item := self._owed.get(_owed_key(edu)):
                item.aside = self._any_aside = True
        self._reckon(now_ms)

    def prune(self, now_ms: int, needs_refresh: Callable[[UserID], bool]) -> None:
        """Forget users whose refresh is due and who need none: offline, or no right remains.

        Only up to the first who does need one: then it is worth a transaction, and with thousands in vain
        each try of a week's outage would ask for all of them.
        """
        while self._told:
            user, told = next(iter(self._told.items()))
            if told.told_ms + self._refresh_after_ms > now_ms:
                return
            if _may_refresh(told) and needs_refresh(user):
                return
            del self._told[user]

    # --- questions -------------------------------------------------------------------------------

    @property
    def pending_users(self) -> int:
        """How many users are due."""
        return len(self._pending)

    @property
    def owed(self) -> int:
        """How many list EDUs are owed, those set aside too."""
        return len(self._owed)

    @property
    def window_end_ms(self) -> int:
        """Before this nothing leaves, however urgent."""
        return 0 if self._left_ms is None else self._left_ms + self._window_ms

    def empty(self) -> bool:
        """Whether nothing waits and nobody will need a refresh: the queue can be forgotten."""
        return not (self._pending or self._told or self._owed or self._drops or self._polls or self._unpolls)

    def next_due_ms(self) -> int | None:
        """When the next transaction may leave; a moment that has passed means now."""
        if self._polls or self._urgent:
            return self.window_end_ms  # nothing goes sooner
        news_ms, refresh_ms = self.news_due_ms(), self.refresh_due_ms()
        if news_ms is None or refresh_ms is None:
            return refresh_ms if news_ms is None else news_ms
        return min(news_ms, refresh_ms)

    def news_due_ms(self) -> int | None:
        """When it should leave for what waits; None where nothing does but refreshes."""
        if self._polls or self._urgent:
            return self.window_end_ms  # nothing goes sooner
        if not (self._pending or self._drops or self._unpolls or self._owed):
            return None
        left_ms, window_end_ms = self._left_ms, self.window_end_ms
        timer_end_ms = left_ms + max(self._window_ms, TIMER_WINDOW_MS) if left_ms is not None else 0
        due: list[int] = []
        if self._pending or self._drops or self._unpolls:
            due.append(timer_end_ms)
        if self._owed and self._has_owed_to_offer():
            due.append(max(window_end_ms, self._edus_left.ready_ms()))
        return min(due, default=None)

    def refresh_due_ms(self) -> int | None:
        """From when on a refresh may leave by itself; None where nobody will need one."""
        told_ms = self._longest_untold_ms()
        if told_ms is None:
            return None
        due_ms, window_end_ms = told_ms + self._refresh_after_ms, self.window_end_ms
        return due_ms if due_ms > window_end_ms else window_end_ms

    def refresh_by_ms(self) -> int | None:
        """By when a refresh must have left; None where nobody will need one."""
        told_ms = self._longest_untold_ms()
        return None if told_ms is None else told_ms + self._refresh_within_ms

    def refreshes(self, limit: int) -> int:
        """How many transactions of at most `limit` users it takes to tell everybody again."""
        return ceil(len(self._told) / limit)

    def deadline_ms(self, now_ms: int) -> int:
        """By when it should have its turn, among destinations that are due; earlier goes first."""
        deadline_ms = now_ms + PATIENCE_MS[Urgency.REFRESH]
        return deadline_ms if self._deadline_ms is None else min(deadline_ms, self._deadline_ms)

    # --- inside ----------------------------------------------------------------------------------

    def _add_edu(self, edu: OwedEdu, now_ms: int) -> None:
        key = _owed_key(edu)
        if key not in self._owed:
            if len(self._owed) >= MAX_OWED:
                return
            self._owed[key] = _Owed(edu)
        if self._any_aside:  # what was refused goes first still, so it is offered again too
            for (observer, observed, *_), owed in self._owed.items():
                if (observer, observed) == (edu.observer, edu.observed):
                    owed.aside = False
        self._expect(now_ms)

    def _add_drop(self, pair: Pair, now_ms: int) -> None:
        if len(self._drops) < MAX_ONCE:
            self._drops[pair] = ListEdu(EduKind.DROP, *pair)
            self._expect(now_ms + PATIENCE_MS[Urgency.TIMER])

    def _unsend(self, pair: Pair, now_ms: int) -> None:
        gone = [key for key in self._owed if (key[0], key[1]) == pair]
        if not gone:
            return
        self.revision += 1
        for key in gone:
            del self._owed[key]
        self._reckon(now_ms)

    def _users_to_take(self, now_ms: int, limit: int) -> tuple[UserID, ...]:
        if len(self._pending) > limit:
            urgent = heapq.nsmallest(limit, self._pending.items(), key=lambda item: item[1].deadline_ms)
        else:
            urgent = sorted(self._pending.items(), key=lambda item: item[1].deadline_ms)
        users = [user for user, _ in urgent]
        for user, told in self._told.items():  # the longest untold first
            if len(users) >= limit or told.told_ms + self._ride_after_ms > now_ms:
                break
            if user not in self._pending and _may_refresh(told):
                users.append(user)
        return tuple(users)

    def _owed_to_take(self, now_ms: int, pairs: set[Pair]) -> tuple[OwedEdu, ...]:
        taken: list[OwedEdu] = []
        for owed in self._owed.values():
            pair = (owed.edu.observer, owed.edu.observed)
            if owed.aside:
                pairs.add(pair)  # nothing of a pair overtakes what it owed before (decision 10)
            if pair in pairs:
                continue
            if len(taken) >= MAX_EDUS_TAKEN or not self._edus_left.take(now_ms):
                break
            pairs.add(pair)
            taken.append(owed.edu)
        return tuple(taken)

    def _has_owed_to_offer(self) -> bool:
        """Whether an EDU is owed that neither is set aside nor stands behind one of its pair that is."""
        if not self._any_aside:
            return bool(self._owed)
        aside = {key[:2] for key, owed in self._owed.items() if owed.aside}
        return any(key[:2] not in aside for key in self._owed)

    def _forget_news(self, user: UserID) -> None:
        news = self._pending.get(user)
        if news is not None and news.count == self._taken.get(user):
            del self._pending[user]
            self._urgent -= news.urgency <= _CHANGE

    def _remember(self, user: UserID, told_ms: int, published: Published | None) -> None:
        told = self._told.get(user)
        if told is None:
            self._told[user] = _Told(told_ms, published)
            return
        # The record is not made anew: with a million pairs the collector would never rest.
        told.told_ms = told_ms
        told.published = published
        self._told.move_to_end(user)

    def _longest_untold_ms(self) -> int | None:
        return next(iter(self._told.values())).told_ms if self._told else None

    def _expect(self, deadline_ms: int) -> None:
        if self._deadline_ms is None or deadline_ms < self._deadline_ms:
            self._deadline_ms = deadline_ms

    def _reckon(self, now_ms: int) -> None:
        if not self._pending:
            self._pending.clear()  # or it would keep the room of the largest crowd it ever held
        deadlines = [news.deadline_ms for news in self._pending.values()]
        if self._polls or self._unpolls or self._drops or self._has_owed_to_offer():
            deadlines.append(now_ms)
        self._deadline_ms = min(deadlines, default=None)


def spread(origin: ServerName, destination: ServerName) -> float:
    """A number in 0..1 that is always the same for two servers, and even over all."""
    digest = blake2b(f"{origin}\0{destination}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _owed_key(edu: OwedEdu) -> OwedKey:
    return (edu.observer, edu.observed, edu.generation, edu.kind)


def _may_refresh(told: _Told) -> bool:
    return told.published is None or told.published.state is not PresenceState.OFFLINE


def _same(told: Published, content: Published) -> bool:
    return (
        told.state is content.state
        and told.status_msg == content.status_msg
        and told.currently_active == content.currently_active
        and (
            content.currently_active or abs(content.last_active_ms - told.last_active_ms) <= SAME_ACTIVITY_MS
        )
    )


def _add_bounded(once: dict[UserID, None], user_id: UserID) -> None:
    if len(once) < MAX_ONCE:
        once[user_id] = None


def _pop_some(once: dict[UserID, None], most: int) -> tuple[UserID, ...]:
    some = tuple(once)[:most]
    for user_id in some:
        del once[user_id]
    return some
