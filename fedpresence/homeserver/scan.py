"""Who is in which room, asked of the homeserver: at first everything, then whatever the stream newly names.

Always true:
- the homeserver's stream is taken before, during and after, and no answer overwrites what it said later, or
  a moment before (of a homeserver's processes the one that answers may be behind the one that tells); but a
  join from before the start may be over since: for one that was not known the room is asked for again;
- what is still to be asked is on disk before anything rests on it, so a restart goes on where it was and
  asks nothing twice that was told to the engine;
- a room that the engine doubts (Z-11) is read again in this run, before the next of its events where one
  comes; nothing about that is on disk, because the next run doubts anew;
- never more than `MAX_IN_FLIGHT` questions are open, and no more a second than the operator allows;
- a homeserver that is away is asked again for ever, with a backoff, and so is a question that fails alone;
  nothing of it stops the daemon;
- every room that we know is asked for again daily, so a change of members that the stream does not show
  (the homeserver resolved a room's state anew) counts within a day (Z-11).

Local users are found in rooms, rooms by their users: so from a few everything is reached. Synapse's admin
API gives all users at once, where it lets us.

Source: H:3; Z-11, Z-19.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.engine.events import (
    Event,
    RoomJoinRuleChanged,
    RoomMemberChanged,
    RoomMembersSet,
    UserAdded,
)
from fedpresence.errors import HomeserverRefused, HomeserverUnavailable, StoreError
from fedpresence.homeserver.frontier import ASK_AGAIN_MS, Frontier, Item, rows_of
from fedpresence.homeserver.happenings import Happened, RoomChange
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.storage.store import ScanKind, ScanRow

_log = Logger()

MAX_IN_FLIGHT = 4
FIRST_BACKOFF_S = 2.0
LONGEST_BACKOFF_S = 60.0  # a homeserver that is back has our questions within a minute
READ_AGAIN_S = 86_400.0  # Z-11
USERS_A_PAGE = 500  # of Synapse's list: one turn of the hub
TELL_EVERY_MS = 30_000
BEGUN = ScanRow(ScanKind.BEGUN)
UNTOLD_SIZE = 1_000_000  # of a room whose list of members is longer than we read


class Asked(Protocol):
    """The homeserver, as far as it is asked here."""

    async def register_bot(self) -> None:
        """Make our bot's account."""

    async def local_users(self, start: str, limit: int) -> tuple[tuple[UserID, ...], str | None]:
        """A page of all users."""

    async def joined_rooms(self, acting_as: UserID | None = None) -> tuple[RoomID, ...]:
        """A user's rooms."""

    async def joined_members(self, room_id: RoomID, acting_as: UserID | None = None) -> tuple[UserID, ...]:
        """A room's members."""

    async def join_rule(self, room_id: RoomID, acting_as: UserID | None = None) -> str | None:
        """A room's join rule."""


class Known(Protocol):
    """The engine, as far as it is asked here."""

    def knows_user(self, user_id: UserID) -> bool:
        """Whether a local user exists, or did."""

    def users(self) -> Sequence[UserID]:
        """All that exist."""

    def has_member(self, room_id: RoomID, user_id: UserID) -> bool:
        """Whether the user is known to be in the room."""

    def has_our_people(self, room_id: RoomID) -> bool:
        """Whether the room is known, with somebody of ours."""

    def rooms(self) -> Sequence[RoomID]:
        """All that are known."""

    def doubted(self) -> Sequence[RoomID]:
        """Those to be read again, the most important first."""

    @property
    def rooms_doubted(self) -> int:
        """How many these are."""


class Kept(Protocol):
    """The store, as far as it is used here."""

    def load_scan(self) -> Deferred[list[ScanRow]]:
        """What was kept."""

    def save_scan(self, saved: Sequence[ScanRow], gone: Sequence[ScanRow]) -> Deferred[None]:
        """Keep and forget."""


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """How far it is. `state` is `scanning`, `waiting` (for the homeserver) or `following` (its stream).

    By `rooms_doubted` of the rooms no presence is shared until they were asked for (Z-11).
    """

    state: str
    users_to_ask: int
    rooms_to_ask: int
    users_asked: int
    rooms_asked: int
    rooms_doubted: int


class Scan:
    """Asks, and tells the engine. `load` once, before the stream is taken; then `start`; in the end `stop`.

    `submit` is the hub's; `fatal` hears of a bug.
    """

    def __init__(
        self,
        api: Asked,
        store: Kept,
        engine: Known,
        submit: Callable[..., Awaitable[None]],
        bot: UserID,
        max_members: int,
        clock: Clock,
        random: Random,
        fatal: Callable[[Failure], None],
        *,
        per_second: int,
    ) -> None:
        self._api = api
        self._store = store
        self._engine = engine
        self._submit = submit
        self._bot = bot
        self._server_name: ServerName = server_of(bot)
        self._clock = clock
        self._random = random
        self._fatal = fatal
        self._interval_s = 1 / per_second
        self._frontier = Frontier((), max_members)
        self._running = False
        self._pumping = False
        self._in_flight: set[Deferred[None]] = set()
        self._next_s = 0.0  # when the next question may leave
        self._failures = 0
        self._pause: Timer | None = None
        self._put_off: Timer | None = None
        self._daily: Timer | None = None
        self._told_ms = 0
        self._is_told_done = False
        self._users_asked = self._rooms_asked = 0

    # --- its life -------------------------------------------------------------------------------

    async def load(self) -> None:
        """Go on where the last run was."""
        self._frontier = Frontier(await self._store.load_scan(), self._frontier.max_members)

    def start(self) -> None:
        """Ask, from here on."""
        self._running = True
        self._frontier.doubt(self._engine.doubted())
        self._is_told_done = self._frontier.is_done
        self._told_ms = now_ms(self._clock)
        if not self._is_told_done:
            users, rooms = self._frontier.waiting()
            _log.info(
                "finding out who is in which room: {users} users and {rooms} rooms to ask for so far; "
                "by {doubted} rooms no presence is shared yet",
                users=users,
                rooms=rooms,
                doubted=self._engine.rooms_doubted,
            )
        self._daily = self._clock.callLater(READ_AGAIN_S, self._read_again)
        self._pump()

    async def stop(self) -> None:
        """Ask no more; what was not answered is asked in the next run."""
        self._running = False
        for timer in (self._pause, self._put_off, self._daily):
            if timer is not None:
                timer.cancel()
        self._pause = self._put_off = self._daily = None
        asking = list(self._in_flight)
        for each in asking:
            each.cancel()
        await DeferredList(asking, consumeErrors=True)

    def progress(self) -> ScanProgress:
        """How far it is."""
        users, rooms = self._frontier.waiting()
        state = (
            "following" if self._frontier.is_done else "waiting" if self._pause is not None else "scanning"
        )
        doubted = self._engine.rooms_doubted
        return ScanProgress(state, users, rooms, self._users_asked, self._rooms_asked, doubted)

    def reload(self, max_members: int) -> None:
        """Rooms may be larger now: some that did not count are asked for again."""
        self._frontier.judge_again(max_members)
        self._pump()

    async def begin_again(self) -> None:
        """Ask for everything once more: something of the stream was lost."""
        await self._store.save_scan((), (BEGUN,))
        self._frontier.begin_again()
        self._is_told_done = False
        self._pump()

    def _read_again(self) -> None:
        """A day is over."""
        self._daily = self._clock.callLater(READ_AGAIN_S, self._read_again)
        asking = ensureDeferred(self._ask_for(self._engine.rooms()))
        asking.addBoth(self._asked, asking)

    # --- what the stream says -------------------------------------------------------------------

    async def expect(self, happened: Happened) -> None:
        """Keep the questions that a transaction raises, before anything of it is told to the engine."""
        now, frontier = now_ms(self._clock), self._frontier
        for room_id in (*happened.rooms, *(change.room_id for change in happened.changes)):
            frontier.hurry(room_id)
        found: dict[UserID | RoomID, None] = {}
        for room_id in happened.rooms:
            known = self._engine.has_our_people(room_id) or frontier.is_large(room_id)
            if not known and (room_id in happened.joined or not frontier.was_asked_lately(room_id, now)):
                found[room_id] = None
        for change in happened.changes:
            if self._is_outdated(change, happened):
                frontier.ask_once_more(change.room_id)
                if self._engine.has_our_people(change.room_id):
                    found[change.room_id] = None
        await self._ask_for([*found, *(u for u in happened.people if not self._engine.knows_user(u))])

    async def meet(self, user_id: UserID) -> None:
        """A local user exists whom we did not know: their rooms are to be asked for."""
        if not self._engine.knows_user(user_id):
            await self._ask_for([user_id])

    def passed(self, happened: Happened) -> list[RoomChange]:
        """Those changes that the engine is to be told of; in the same moment as they are told to it."""
        passed: list[RoomChange] = []
        for change in happened.changes:
            is_known = self._engine.has_our_people(change.room_id)
            if isinstance(change, RoomMemberChanged) and self._is_outdated(change, happened):
                self._frontier.forget_said(change.room_id, change.user_id)
            elif self._frontier.passes(change, now_ms(self._clock), is_known=is_known):
                passed.append(change)
        return passed

    def _is_outdated(self, change: RoomChange, happened: Happened) -> bool:
        """Whether it is a join, of somebody who was not there, that may be over since (Z-11)."""
        return (
            happened.is_old
            and isinstance(change, RoomMemberChanged)
            and change.joined
            and not self._engine.has_member(change.room_id, change.user_id)
        )

    def go_on(self) -> None:
        """A transaction was told to the engine: ask whatever it made worth asking."""
        self._pump()

    async def _ask_for(self, items: Iterable[UserID | RoomID]) -> None:
        new = [item for item in items if not self._frontier.is_kept(item)]
        if new:
            await self._store.save_scan(tuple(rows_of(new)), ())
            self._frontier.add(new)
            self._pump()

    # --- asking ---------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Ask as much at once as is allowed."""
        if self._pumping:
            return
        self._pumping = True
        while self._running and self._pause is None and len(self._in_flight) < MAX_IN_FLIGHT:
            taken = self._frontier.take(now_ms(self._clock))
            if taken is None:
                break
            asking = ensureDeferred(self._ask(taken[0]))
            if not asking.called:
                self._in_flight.add(asking)
            asking.addBoth(self._asked, asking)
        self._pumping = False
        self._tell_progress()

    def _asked(self, result: Failure | None, asking: Deferred[None]) -> None:
        self._in_flight.discard(asking)
        if not isinstance(result, Failure):
            self._pump()
        elif self._running:
            if not result.check(StoreError):
                _log.failure("asking the homeserver failed", result)
            self._fatal(result)

    async def _ask(self, item: Item) -> None:
        try:
            await self._question(item)
        except HomeserverUnavailable as error:
            self._frontier.again(item)
            self._back_off(error)
        except HomeserverRefused as error:  # a bug of the homeserver, in one answer
            delay_ms = self._frontier.failed(item, now_ms(self._clock), self._random.random())
            if delay_ms is not None:
                _log.warn(
                    "{item}: {error}; asking again in {delay:.0f} s, and so on",
                    item=item,
                    error=error,
                    delay=delay_ms / 1000,
                )
            self._expect_put_off()
        else:
            self._failures = 0

    async def _question(self, item: Item) -> None:
        if item is None:
            await self._begin()
            self._frontier.begun()
        elif item.startswith("!"):
            await self._room(RoomID(item))
            self._rooms_asked += 1
        else:
            await self._user(UserID(item))
            self._users_asked += 1

    async def _begin(self) -> None:
        """The first questions: whoever and whatever is known, our bot, and all users where we may."""
        try:
            await self._turn()
            await self._api.register_bot()
        except HomeserverRefused as error:
            _log.debug("our bot was not registered: {error}", error=error)
        known: list[UserID | RoomID] = [self._bot, *self._engine.users(), *self._engine.rooms()]
        await self._ask_for(known)
        start: str | None = "0"
        while start is not None:
            try:
                await self._turn()
                users, start = await self._api.local_users(start, USERS_A_PAGE)
            except HomeserverRefused:
                break  # not Synapse, or our token is no admin's: users are found in rooms
            await self._add_users(users)
        await self._store.save_scan((BEGUN,), ())

    async def _user(self, user_id: UserID) -> None:
        await self._turn()
        try:
            rooms = await self._api.joined_rooms(None if user_id == self._bot else user_id)
        except HomeserverRefused as error:
            _raise_unless_meant(error)
            rooms = ()  # not ours to act for, or gone
        new = [
            room_id
            for room_id in rooms
            if not (self._engine.has_our_people(room_id) or self._frontier.is_large(room_id))
            and not self._frontier.is_kept(room_id)
        ]
        await self._store.save_scan(tuple(rows_of(new)), tuple(rows_of([user_id])))
        self._frontier.answered(user_id)
        self._frontier.add(new)

    async def _room(self, room_id: RoomID) -> None:
        await self._turn()
        try:
            found = await self._api.joined_members(room_id)
        except HomeserverRefused as error:
            _raise_unless_meant(error)
            if error.errcode == "M_TOO_LARGE":
                await self._too_large(room_id, UNTOLD_SIZE)
                return
            found = ()  # nobody of ours is there
        ours = [u for u in found if server_of(u) == self._server_name and u != self._bot]
        if len(found) * 10 > self._frontier.max_members * 11:
            await self._add_users(ours)
            await self._too_large(room_id, len(found))
            return
        rule = None
        if ours:
            await self._turn()
            rule = await self._api.join_rule(room_id, ours[0])
        await self._add_users(ours)
        meanwhile = self._frontier.meanwhile(room_id)
        members = meanwhile.applied(found) - {self._bot}
        if not ours and any(server_of(u) == self._server_name for u in members):
            # The first of ours came while we asked, or whoever answered had not heard of it.
            self._frontier.put_off(room_id, now_ms(self._clock) + ASK_AGAIN_MS)
            self._expect_put_off()
            await self._store.save_scan(tuple(rows_of([room_id])), ())
            return
        events: list[Event] = []
        if any(server_of(user_id) == self._server_name for user_id in members):
            if not meanwhile.is_rule_told:
                events.append(RoomJoinRuleChanged(room_id, rule))
        else:
            members = frozenset()
            self._frontier.nobody_there(room_id, now_ms(self._clock))
        # From here to the engine in one go: what the stream says next comes after it.
        self._frontier.answered(room_id)
        if meanwhile.is_outdated:
            self._frontier.add((room_id,))
        await self._submit(*events, RoomMembersSet(room_id, members, from_homeserver=True))
        if not self._frontier.is_kept(room_id):
            await self._store.save_scan((), (*rows_of([room_id]), ScanRow(ScanKind.LARGE, room_id)))

    async def _too_large(self, room_id: RoomID, members: int) -> None:
        """Only its size is kept; who was in it is forgotten, if it was known."""
        self._frontier.answered(room_id)
        self._frontier.too_large(room_id, members)
        await self._submit(RoomMembersSet(room_id, frozenset()))
        await self._store.save_scan((ScanRow(ScanKind.LARGE, room_id, members),), tuple(rows_of([room_id])))

    async def _add_users(self, users: Iterable[UserID]) -> None:
        """Users that exist: new ones are to be asked for, on disk before they are known."""
        new = [
            u
            for u in users
            if u != self._bot and server_of(u) == self._server_name and not self._engine.knows_user(u)
        ]
        if new:
            await self._ask_for(new)
            await self._submit(*(UserAdded(user_id) for user_id in new))

    # --- when -----------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Wait until one more question may leave."""
        at_s = max(self._clock.seconds(), self._next_s)
        self._next_s = at_s + self._interval_s
        delay_s = at_s - self._clock.seconds()
        if delay_s <= 0:
            return
        timers: list[Timer] = []
        moment: Deferred[None] = Deferred(lambda _: timers[0].cancel())
        timers.append(self._clock.callLater(delay_s, moment.callback, None))
        await moment

    def _back_off(self, error: HomeserverUnavailable) -> None:
        if self._pause is not None or not self._running:
            return
        delay_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures, 10))
        delay_s *= self._random.uniform(0.5, 1.0)
        if error.retry_after_ms is not None:
            delay_s = max(delay_s, min(LONGEST_BACKOFF_S, error.retry_after_ms / 1000))
        if not self._failures:
            _log.warn("{error}; asking again in {delay:.0f} s, and so on", error=error, delay=delay_s)
        self._failures += 1

        def go_on() -> None:
            self._pause = None
            self._pump()

        self._pause = self._clock.callLater(delay_s, go_on)

    def _expect_put_off(self) -> None:
        """See to it that we wake when the first question that was put off is to be asked."""
        if self._put_off is not None:
            self._put_off.cancel()
            self._put_off = None
        until_ms = self._frontier.put_off_until_ms()
        if until_ms is None or not self._running:
            return

        def take_up() -> None:
            self._put_off = None
            self._frontier.take_up(now_ms(self._clock))
            self._expect_put_off()
            self._pump()

        self._put_off = self._clock.callLater(max(0, until_ms - now_ms(self._clock)) / 1000, take_up)

    def _tell_progress(self) -> None:
        now = now_ms(self._clock)
        if self._frontier.is_done:
            if not self._is_told_done:
                self._is_told_done = True
                _log.info(
                    "who is in which room is known: {users} users and {rooms} rooms were asked for",
                    users=self._users_asked,
                    rooms=self._rooms_asked,
                )
        elif now - self._told_ms >= TELL_EVERY_MS:
            self._told_ms = now
            users, rooms = self._frontier.waiting()
            _log.info(
                "who is in which room: {users} users and {rooms} rooms to ask for, {done} are asked; "
                "by {doubted} rooms no presence is shared yet",
                users=users,
                rooms=rooms,
                done=self._users_asked + self._rooms_asked,
                doubted=self._engine.rooms_doubted,
            )


def _raise_unless_meant(error: HomeserverRefused) -> None:
    """A homeserver's refusal means that nobody of ours is there; a fault or a proxy's page means nothing."""
    if error.status >= 500:
        raise error
    if error.errcode is None:
        raise HomeserverUnavailable(f"it answered {error.status}, and not as Matrix does") from error
