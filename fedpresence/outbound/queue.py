"""What waits for one destination (pure: `now_ms` in, answers out).

Always true:
- users wait as IDs, never as messages; the push is made when it leaves (decision 9);
- a user leaves the set only with a 2xx, and only if no newer news came since it was taken;
- a change is left out only where the destination confirmed the very same content (decision 13);
- a refresh is due from a phase on that belongs to the two servers: the first user who is due takes the others
  along, so of phases of their own the smallest would count, and be about the same everywhere. Alone it then
  has time, and goes when it is its turn (`outbound.rounds`).

Source: decisions 9 to 14; Z-15, Z-17; S:3.5, S:T-28.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
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
from fedpresence.engine.outgoing import Wanted
from fedpresence.engine.presence import PresenceState, Published
from fedpresence.engine.subscription import OwedEdu
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.errands import NO_ERRANDS, Errands
from fedpresence.outbound.windows import Windows

QueueEffect = SendEdu | UnsendEdus | SendDropOnce | SendPoll | SendUnpoll

RIDE_AFTER = 0.5  # of a refresh interval after the last push: then a refresh goes where something goes anyway
REFRESH_AFTER, REFRESH_PHASES = 0.6, 0.15  # from then on by itself, at a phase in so much more
REFRESH_WITHIN = 0.9  # and by then: early enough to fail twice (decision 14)
BOOT_WITHIN = 0.2  # after a start (S:T-28)
TIMER_WINDOW_MS = 2_000  # decision 12
SAME_ACTIVITY_MS = 60_000  # an age that moved less is no news (decision 13)
PATIENCE_MS = {  # how long each may wait for a turn before it is as urgent as any (Z-18)
    Urgency.ASKED: -3_600_000,  # somebody waits: before all who are late, in its share of the budget
    Urgency.CHANGE: 200,
    Urgency.TIMER: 5_000,
    Urgency.REFRESH: 60_000,
}
OVERDRAWN_PATIENCE_MS = (
    60_000  # news of a user who has spent their share, and what is asked for in bulk (Z-18)
)

_CHANGE, _TIMER = Urgency.CHANGE, Urgency.TIMER  # asked for at each push: an enum's attribute is slow to find


class News:
    """What makes a user due, for any number of destinations: it never changes.

    It should be told by `deadline_ms` if others do not wait longer. `since` is the part of it that came while
    the rest was on its way: what is left of it once that is delivered.
    """

    __slots__ = ("deadline_ms", "since", "urgency")

    def __init__(self, urgency: Urgency, deadline_ms: int, since: "News | None" = None) -> None:
        self.urgency = urgency
        self.deadline_ms = deadline_ms
        self.since = since


class _Told:
    """What the destination confirmed of a user: `published` None where that is not sure."""

    __slots__ = ("published", "told_ms")

    def __init__(self, told_ms: int, published: Published | None) -> None:
        self.told_ms = told_ms
        self.published = published


class Lengths:
    """How long what lasts, the same for all destinations but for the phase of their refreshes."""

    __slots__ = (
        "_origin",
        "_refresh_interval_ms",
        "boot_within_ms",
        "refresh_within_ms",
        "ride_after_ms",
        "timer_after_window_ms",
        "windows",
    )

    def __init__(self, origin: ServerName, batch_window_ms: int, refresh_interval_ms: int) -> None:
        self.windows = Windows(batch_window_ms)
        self.timer_after_window_ms = max(0, TIMER_WINDOW_MS - batch_window_ms)
        self.ride_after_ms = int(refresh_interval_ms * RIDE_AFTER)
        self.refresh_within_ms = int(refresh_interval_ms * REFRESH_WITHIN)
        self.boot_within_ms = int(refresh_interval_ms * BOOT_WITHIN)
        self._origin = origin
        self._refresh_interval_ms = refresh_interval_ms

    def refresh_after_ms(self, destination: ServerName) -> int:
        """How long after the last push a refresh goes to `destination` by itself."""
        after = REFRESH_AFTER + REFRESH_PHASES * spread(self._origin, destination)
        return int(self._refresh_interval_ms * after)


_NOBODY_TOLD: OrderedDict[UserID, _Told] = OrderedDict()  # of all who were told nothing yet; never written to


class DestinationQueue:
    """Everything that waits for `destination`, and when it is due.

    `revision` changes whenever something is withdrawn: bytes made before are not sent again. Before
    `window_end_ms` nothing leaves, however urgent. Thousands of queues are made where one change concerns
    thousands of destinations, so what most do not need is made when it is needed.
    """

    __slots__ = (
        "_deadline_ms",
        "_destination",
        "_errands",
        "_lengths",
        "_pending",
        "_refresh_after_ms",
        "_taken",
        "_told",
        "_urgent",
        "revision",
        "window_end_ms",
    )

    def __init__(self, destination: ServerName, lengths: Lengths) -> None:
        self.revision = 0
        self.window_end_ms = 0  # 0: of no transaction
        self._destination = destination
        self._lengths = lengths
        self._refresh_after_ms = 0  # `Lengths.refresh_after_ms`, as soon as anybody was told
        self._pending: dict[UserID, News] = {}
        self._told = _NOBODY_TOLD  # in the order of told_ms: the oldest first
        self._errands = NO_ERRANDS
        self._taken: dict[UserID, News | None] = {}  # user to the news that left; None for a refresh
        self._urgent = 0  # how many of the pending are more urgent than a timer
        self._deadline_ms: int | None = None  # earliest of what waits

    # --- what comes in ---------------------------------------------------------------------------

    def add_push(self, user_id: UserID, news: News) -> None:
        """News of a user waits."""
        urgency, deadline_ms = news.urgency, news.deadline_ms
        before = self._pending.get(user_id)
        if before is None:
            self._urgent += urgency <= _CHANGE
        else:  # with what is newest, and as soon as either
            self._urgent += urgency <= _CHANGE < before.urgency
            since = before.since
            if before is self._taken.get(user_id):
                since = news
            elif since is not None:
                since = _merged(since, news)
            news = _merged(before, news, since)
        self._pending[user_id] = news
        if self._deadline_ms is None or deadline_ms < self._deadline_ms:
            self._deadline_ms = deadline_ms

    def add(self, effect: QueueEffect, now_ms: int, *, overdrawn: bool = False) -> None:
        """Something else waits, or (UnsendEdus) waits no longer."""
        errands = self._errands
        if errands is NO_ERRANDS:
            errands = self._errands = Errands()
        match effect:
            case SendEdu():
                if errands.add_edu(effect.edu):
                    self._expect(now_ms)
            case UnsendEdus():
                if errands.unsend((effect.observer, effect.observed)):
                    self.revision += 1
                    self._reckon(now_ms)
            case SendDropOnce():
                if errands.add_drop((effect.observer, effect.observed)):
                    self._expect(now_ms + PATIENCE_MS[Urgency.TIMER])
            case SendPoll():
                by_ms = now_ms + (OVERDRAWN_PATIENCE_MS if overdrawn else PATIENCE_MS[Urgency.ASKED])
                errands.add_poll(effect.user_id, by_ms)
                self._expect(by_ms)
            case SendUnpoll():
                errands.add_unpoll(effect.user_id)
                self._expect(now_ms + PATIENCE_MS[Urgency.TIMER])

    def add_at_boot(self, user_id: UserID, now_ms: int) -> None:
        """A user this destination may see: told again in the first fifth of a refresh interval (S:T-28)."""
        # As if told so long ago that it must go by then; it rides along with whatever goes before.
        told_ms = now_ms + self._lengths.boot_within_ms - self._lengths.refresh_within_ms
        self._remember((user_id,), told_ms, {})

    def add_again(self, user_id: UserID, now_ms: int) -> None:
        """As `add_at_boot`, but together with whoever waits longest: with them it goes, or rides along."""
        if user_id in self._told:
            return
        oldest_ms = self._longest_untold_ms()
        told_ms = now_ms + self._lengths.boot_within_ms - self._lengths.refresh_within_ms
        self._remember((user_id,), told_ms if oldest_ms is None else min(told_ms, oldest_ms), {})
        self._told.move_to_end(user_id, last=False)

    def wake(self, now_ms: int) -> None:
        """The destination is heard of again: EDUs that it refused are offered once more.

        What waits is old, and is no reason any more to go before the news of others.
        """
        self._errands.wake()
        deadline_ms = now_ms + PATIENCE_MS[Urgency.REFRESH]
        for user, news in self._pending.items():
            if news.deadline_ms < deadline_ms:
                later = self._pending[user] = News(news.urgency, deadline_ms, news.since)
                if self._taken.get(user) is news:
                    self._taken[user] = later
        self._reckon(now_ms)

    # --- what goes out ---------------------------------------------------------------------------

    def take(self, now_ms: int, limit: int) -> Wanted:
        """What the next transaction should carry, at most `limit` users; it still waits until `delivered`."""
        users = self._users_to_take(now_ms, limit)
        pending, errands = self._pending, self._errands
        self._taken = {user: pending.get(user) for user in users}
        # Nothing is gained by waiting where the next transaction is full already.
        self.window_end_ms = 0 if len(pending) >= 2 * limit else self._lengths.windows.end_ms(now_ms)
        if errands is NO_ERRANDS:
            return Wanted(users)
        drops, polls, unpolls = errands.take_once()
        return Wanted(users, errands.owed_to_take(now_ms, drops), drops, polls, unpolls)

    def unchanged(self, published: dict[UserID, Published], now_ms: int) -> frozenset[UserID]:
        """Those of the taken users whose news cancelled out: nothing need be said (decision 13)."""
        same = set()
        pending, all_told, fresh_after_ms = self._pending, self._told, now_ms - self._refresh_after_ms
        for user, content in published.items():
            news, told = pending.get(user), all_told.get(user)
            if (
                news is not None
                and told is not None
                and told.published is not None
                and _same(told.published, content)
                and told.told_ms > fresh_after_ms
                and (news.urgency is _CHANGE or news.urgency is _TIMER)
            ):
                same.add(user)
        return frozenset(same)

    def delivered(
        self,
        users: Collection[UserID],
        owed: Collection[OwedEdu],
        published: Mapping[UserID, Published],
        now_ms: int,
    ) -> None:
        """The destination took these with a 2xx; `published` is what was said of the users."""
        self._forget_news(users)
        self._remember(users, now_ms, published)
        if owed:
            self._errands.delivered(owed)
        self._reckon(now_ms)

    def settled(self, users: Iterable[UserID], now_ms: int) -> None:
        """These need not be said: they leave the set as if delivered."""
        self._forget_news(users)
        self._reckon(now_ms)

    def withdraw(self, users: Collection[UserID], owed: Iterable[OwedEdu], now_ms: int) -> None:
        """The destination has no right to these users any more; no row owes these EDUs any more."""
        self._forget_news(users)
        for user in users:
            self._told.pop(user, None)
        self._errands.delivered(owed)
        self._reckon(now_ms)

    def failed(self, users: Iterable[UserID]) -> None:
        """A try failed after its bytes left: all waits on, and what the destination knows is not sure."""
        for user in users:
            if told := self._told.get(user):
                told.published = None

    def set_aside(self, users: Collection[UserID], owed: Iterable[OwedEdu], now_ms: int) -> None:
        """A refusal that will not change: pushes wait for their next change or refresh (F:X-6).

        List EDUs stay owed, and are offered again when their row asks or the destination wakes.
        """
        self._forget_news(users)
        self._remember(users, now_ms, {})
        self._errands.set_aside(owed)
        self._reckon(now_ms)

    def prune(self, now_ms: int, needs_refresh: Callable[[UserID], bool]) -> None:
        """Forget users whose refresh is due and who need none: offline, or no right remains.

        Only up to the first who does need one: then it is worth a transaction, and with thousands in vain
        each try of a week's outage would ask for all of them.
        """
        gone = []
        for user, told in self._told.items():  # the longest untold first
            is_due = told.told_ms + self._refresh_after_ms <= now_ms
            if not is_due or (_may_refresh(told) and needs_refresh(user)):
                break
            gone.append(user)
        for user in gone:
            del self._told[user]

    # --- questions -------------------------------------------------------------------------------

    @property
    def pending_users(self) -> int:
        """How many users are due."""
        return len(self._pending)

    @property
    def owed(self) -> int:
        """How many list EDUs are owed, those set aside too."""
        return self._errands.owed

    def empty(self) -> bool:
        """Whether nothing waits and nobody will need a refresh: the queue can be forgotten."""
        return not (self._pending or self._told) and self._errands.empty()

    def next_due_ms(self) -> int | None:
        """When the next transaction may leave; a moment that has passed means now."""
        if self._urgent:
            return self.window_end_ms  # nothing goes sooner
        news_ms, refresh_ms = self.news_due_ms(), self.refresh_due_ms()
        if news_ms is None or refresh_ms is None:
            return refresh_ms if news_ms is None else news_ms
        return min(news_ms, refresh_ms)

    def news_due_ms(self) -> int | None:
        """When it should leave for what waits; None where nothing does but refreshes."""
        errands = self._errands
        if self._urgent or errands.polls:
            return self.window_end_ms  # nothing goes sooner
        due_ms = None
        if self._pending or errands.drops or errands.unpolls:
            due_ms = self.window_end_ms and self.window_end_ms + self._lengths.timer_after_window_ms
        if errands is not NO_ERRANDS and (ready_ms := errands.owed_ready_ms()) is not None:
            owed_ms = max(self.window_end_ms, ready_ms)
            due_ms = owed_ms if due_ms is None else min(due_ms, owed_ms)
        return due_ms

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
        return None if told_ms is None else told_ms + self._lengths.refresh_within_ms

    def refreshes(self, limit: int) -> int:
        """How many transactions of at most `limit` users it takes to tell everybody again."""
        return ceil(len(self._told) / limit)

    def deadline_ms(self, now_ms: int) -> int:
        """By when it should have its turn, among destinations that are due; earlier goes first."""
        return now_ms + PATIENCE_MS[Urgency.REFRESH] if self._deadline_ms is None else self._deadline_ms

    # --- inside ----------------------------------------------------------------------------------

    def _users_to_take(self, now_ms: int, limit: int) -> tuple[UserID, ...]:
        pending = self._pending
        users = list(pending)
        if len(users) > limit:
            users = heapq.nsmallest(limit, users, key=lambda user: pending[user].deadline_ms)
        for user, told in self._told.items():  # the longest untold first
            if len(users) >= limit or told.told_ms + self._lengths.ride_after_ms > now_ms:
                break
            if user not in pending and _may_refresh(told):
                users.append(user)
        return tuple(users)

    def _forget_news(self, users: Iterable[UserID]) -> None:
        """What was taken of these is over; what came since waits on."""
        pending, taken = self._pending, self._taken
        for user in users:
            news = pending.get(user)
            if news is None:
                continue
            if news is taken.get(user):
                del pending[user]
                self._urgent -= news.urgency <= _CHANGE
            elif news.since is not None:
                pending[user] = news.since
                self._urgent -= news.urgency <= _CHANGE < news.since.urgency

    def _remember(self, users: Iterable[UserID], told_ms: int, published: Mapping[UserID, Published]) -> None:
        """These were told then; who is not in `published`, of that it is not sure what is known."""
        if self._told is _NOBODY_TOLD:
            self._told = OrderedDict()
            self._refresh_after_ms = self._lengths.refresh_after_ms(self._destination)
        all_told = self._told
        for user in users:
            told = all_told.get(user)
            if told is None:
                all_told[user] = _Told(told_ms, published.get(user))
            else:  # not made anew: with a million pairs the collector would never rest
                told.told_ms = told_ms
                told.published = published.get(user)
                all_told.move_to_end(user)

    def _longest_untold_ms(self) -> int | None:
        for told in self._told.values():  # the longest untold first
            return told.told_ms
        return None

    def _expect(self, deadline_ms: int) -> None:
        if self._deadline_ms is None or deadline_ms < self._deadline_ms:
            self._deadline_ms = deadline_ms

    def _reckon(self, now_ms: int) -> None:
        self._deadline_ms = None
        if self._pending:
            self._deadline_ms = min([news.deadline_ms for news in self._pending.values()])
        else:
            self._pending.clear()  # or it would keep the room of the largest crowd it ever held
        if self._errands is NO_ERRANDS:
            return
        if self._errands.polls_by_ms is not None:
            self._expect(self._errands.polls_by_ms)
        if self._errands.has_besides_polls():
            self._expect(now_ms)


def spread(origin: ServerName, destination: ServerName) -> float:
    """A number in 0..1 that is always the same for two servers, and even over all."""
    digest = blake2b(f"{origin}\0{destination}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _merged(before: News, news: News, since: News | None = None) -> News:
    urgency, deadline_ms = before.urgency, before.deadline_ms
    return News(
        news.urgency if news.urgency < urgency else urgency,
        news.deadline_ms if news.deadline_ms < deadline_ms else deadline_ms,
        since,
    )


def _may_refresh(told: _Told) -> bool:
    return told.published is None or told.published.state is not PresenceState.OFFLINE


def _same(told: Published, content: Published) -> bool:
    return (
        told.status_msg == content.status_msg
        and told.state is content.state
        and told.currently_active == content.currently_active
        and (
            content.currently_active or abs(content.last_active_ms - told.last_active_ms) <= SAME_ACTIVITY_MS
        )
    )
