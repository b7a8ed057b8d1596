"""Engine: everything that is decided, behind one entrance.

Always true:
- the same events at the same times give the same effects;
- nothing here waits, reads a clock, or knows JSON; durable effects come before what they allow to leave;
- a deadline is exact: `next_deadline_ms` is when something will change by time alone;
- another server's event raises nothing; what breaks a rule has no effects. A local user's may raise
  BadRequest, and then nothing was done.

Source: decision 21; the parts name theirs.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import filterfalse, islice
from typing import Protocol, assert_never

from fedpresence.engine.answers import Answers
from fedpresence.engine.effects import (
    Effect,
    ForgetInbox,
    InboxFilled,
    SaveAnswer,
    SaveInbox,
    SendPush,
    TellObservers,
    Urgency,
)
from fedpresence.engine.events import (
    Activity,
    DestinationAlive,
    DeviceRemoved,
    EdusDelivered,
    Event,
    InboxDue,
    ListChanged,
    ListEduReceived,
    PollReceived,
    PresenceSet,
    PushesReceived,
    ReceivedEdu,
    RoomJoinRuleChanged,
    RoomMemberChanged,
    RoomMembersSet,
    SettingsChanged,
    Started,
    StatusWanted,
    Stopping,
    StreamClosed,
    StreamOpened,
    TimePassed,
    TransactionReceived,
    UnpollReceived,
    UserAdded,
    UserDeactivated,
)
from fedpresence.engine.known import Known
from fedpresence.engine.lists import Lists
from fedpresence.engine.outgoing import Composed, Edu, ListEdu, PresenceEdu, Push, Wanted
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.people import People
from fedpresence.engine.presence import (
    BUSY,
    NOTHING,
    OFFLINE,
    ONLINE,
    RESTORED,
    UNAVAILABLE,
    LocalUser,
    PresenceRecord,
    Published,
    View,
    view_of,
)
from fedpresence.engine.queries import (
    Counts,
    DeviceDetail,
    ListEntry,
    ObserverEntry,
    Pair,
    RoomDetail,
    UserDetail,
)
from fedpresence.engine.rooms import StoredRoom
from fedpresence.engine.settings import DAY_MS, HOUR_MS, EngineSettings, ServerLists
from fedpresence.engine.sharing import SMALL_AGAIN, UNFINISHED, Sharing
from fedpresence.engine.subscription import (
    ObservedRow,
    ObservedStage,
    ObserverStage,
)
from fedpresence.engine.world import Turn, World
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID, server_of

HOUSEKEEPING = UserID("\0housekeeping")  # a deadline of our own: no user can have this ID
UNREACHABLE_MS = 14 * DAY_MS  # S:O-16

MAX_DUE = 5_000  # keys in one turn: after a restart many fall due together; the next turn follows at once


class Memory(Protocol):
    """What was stored, as `load` reads it: rows of each kind, once."""

    users: Iterable[tuple[UserID, bool]]
    hidden: Iterable[tuple[UserID, DeviceID | None]]
    pairs: Pairs
    rooms: Iterable[StoredRoom]
    answers: Iterable[SaveAnswer]
    inbox: Iterable[SaveInbox]
    presence: Iterable[PresenceRecord]
    newest_origin_ts: dict[ServerName, int]
    saved_at_ms: int


class Engine:
    """Decides. `started_ms` is when this run began."""

    def __init__(self, settings: EngineSettings, started_ms: int) -> None:
        self._world = World(settings, started_ms)
        self._people = People(self._world)
        self._lists = Lists(self._world)
        self._sharing = Sharing(self._world, self._people, self._lists)
        self._answers = Answers()
        self._inbox: deque[tuple[int | None, tuple[ReceivedEdu, ...]]] = deque()
        self._inbox_id = 0
        self._pushes: dict[UserID, tuple[Push, Published]] = {}  # made at `_pushes_ms`, and of what
        self._pushes_ms: int | None = None  # None: before the last event
        self._said: tuple[tuple[UserID, ...], tuple[Push, ...], dict[UserID, Published]] = ((), (), {})
        self.known = Known(self._world, self._inbox)

    # --- events -----------------------------------------------------------------------------------

    def receive(self, event: Event, now_ms: int) -> tuple[Effect, ...]:
        """Everything that must be done because `event` happened at `now_ms`."""
        turn = Turn(now_ms)
        self._pushes_ms = None
        match event:
            case Activity():
                self._people.active(turn, event)
            case PresenceSet():
                self._people.set_presence(turn, event)
            case TransactionReceived():
                self._transaction(turn, event)
            case TimePassed():
                self._time_passed(turn)
            case StreamOpened():
                self._people.stream_opened(turn, event)
            case StreamClosed():
                self._people.stream_closed(turn, event)
            case InboxDue():
                self._resolve_inbox(turn)
            case EdusDelivered():
                for edu in event.edus:
                    self._lists.delivered(turn, edu)
            case DestinationAlive():
                self._lists.alive(turn, event.destination)
            case StatusWanted():
                self._lists.watching.status_wanted(turn, event.observer, event.observed)
            case ListChanged():
                self._lists.change(turn, event)
            case RoomMembersSet():
                self._sharing.set_members(
                    turn, event.room_id, event.members, from_homeserver=event.from_homeserver
                )
            case RoomMemberChanged():
                self._sharing.change_member(turn, event.room_id, event.user_id, joined=event.joined)
            case RoomJoinRuleChanged():
                self._sharing.set_join_rule(turn, event.room_id, event.join_rule)
            case UserAdded():
                if self._people.add(turn, event.user_id):
                    self._lists.user_added(turn, event.user_id)
            case UserDeactivated():
                if self._world.is_local(event.user_id):
                    self._lists.deactivate(turn, event.user_id)
                    self._people.deactivate(turn, event.user_id)
            case DeviceRemoved():
                self._people.remove_device(turn, event.user_id, event.device_id)
            case SettingsChanged():
                self._settings_changed(turn, event.settings)
            case Started():
                self._started(turn)
            case Stopping():
                self._people.stopping(turn, offline=event.offline)
            case _:
                assert_never(event)
        return tuple(turn.effects)

    def next_deadline_ms(self) -> int | None:
        """When time alone will change something; None: never. Waking earlier does nothing."""
        return self._world.deadlines.next_ms()

    def wake_ms(self) -> int | None:
        """When to tell that time has passed: then or earlier than `next_deadline_ms`, and found at once."""
        return self._world.deadlines.no_sooner_ms()

    def load(self, stored: Memory, now_ms: int) -> None:
        """Take up what was stored; once, before the first event, which is `Started`."""
        world = self._world
        if stored.saved_at_ms and abs(now_ms - stored.saved_at_ms) > HOUR_MS:
            world.hold_expiries_until_ms = now_ms + HOUR_MS  # Z-21
        for user_id, deactivated in stored.users:
            (world.deactivated if deactivated else world.users).add(user_id)
        for room in stored.rooms:
            world.rooms.restore(room)
        world.load_pairs(stored.pairs, now_ms)
        for record in stored.presence:
            if not world.is_local(record.user_id):
                self._lists.watching.restore(record, now_ms)
            elif record.user_id in world.users:
                self._people.restore(record, now_ms, stored.saved_at_ms or now_ms)
        for user_id, device_id in stored.hidden:
            world.local(user_id).hide(device_id)
        for answer in stored.answers:
            self._answers.restore(answer, now_ms)
        for origin, newest in stored.newest_origin_ts.items():
            self._answers.restore_newest(origin, newest, now_ms)
        for entry in stored.inbox:
            self._inbox.append((entry.entry_id, entry.edus))
            self._inbox_id = max(self._inbox_id, entry.entry_id)

    def _started(self, turn: Turn) -> None:
        self._sharing.started(turn)
        self._people.started(turn)
        self._lists.started(turn)
        if len(self._answers):
            self._world.deadlines.set(HOUSEKEEPING, turn.now_ms + HOUR_MS)
        if self._inbox:
            turn.add(InboxFilled())

    def _time_passed(self, turn: Turn) -> None:
        world = self._world
        for key in world.deadlines.pop_due(turn.now_ms, MAX_DUE):
            if isinstance(key, tuple):
                self._lists.due(turn, key)
            elif key == HOUSEKEEPING:
                self._answers.sweep(turn)
                if len(self._answers):
                    world.deadlines.set(HOUSEKEEPING, turn.now_ms + HOUR_MS)
            elif key == SMALL_AGAIN:
                self._sharing.judge_small(turn)
            elif key == UNFINISHED:
                self._sharing.go_on(turn)
            elif world.is_local(key):
                self._people.time_passed(turn, key)
            else:
                self._lists.watching.time_passed(turn, key)

    def _transaction(self, turn: Turn, event: TransactionReceived) -> None:
        """Take a transaction: list EDUs are stored now and resolved after the answer (Z-7)."""
        if self._answers.has(event.origin, event.txn_id):
            return
        if not len(self._answers):
            self._world.deadlines.set(HOUSEKEEPING, turn.now_ms + HOUR_MS)
        if not self._answers.take(turn, event.origin, event.txn_id, event.origin_server_ts):
            return
        list_edus = tuple([edu for edu in event.edus if isinstance(edu, ListEduReceived)])
        if list_edus:
            self._inbox_id += 1
            turn.add(SaveInbox(self._inbox_id, list_edus))
            self._inbox.append((self._inbox_id, event.edus))
        elif self._inbox:
            self._inbox.append((None, event.edus))  # in order behind what waits
        else:
            self._edus(turn, event.edus)
            return
        turn.add(InboxFilled())

    def _resolve_inbox(self, turn: Turn) -> None:
        while self._inbox:
            entry_id, edus = self._inbox.popleft()
            self._edus(turn, edus)
            if entry_id is not None:
                turn.add(ForgetInbox(entry_id))

    def _edus(self, turn: Turn, edus: tuple[ReceivedEdu, ...]) -> None:
        for edu in edus:
            match edu:
                case PushesReceived():
                    self._lists.watching.pushes_received(turn, edu)
                case ListEduReceived():
                    self._lists.received(turn, edu)
                case PollReceived():
                    for user_id in edu.user_ids:
                        self._lists.polled(turn, edu.origin, user_id)
                    self._lists.watching.poll_received(turn, edu)
                case UnpollReceived():
                    for user_id in edu.user_ids:
                        self._lists.unpolled(turn, edu.origin, user_id)
                case _:
                    assert_never(edu)

    def _settings_changed(self, turn: Turn, settings: EngineSettings) -> None:
        """A reload: server lists and policies count from this moment on (Z-9)."""
        world = self._world
        old = world.settings.servers
        servers = {server for _, server in self._rights()} if old != settings.servers else set()
        world.settings = settings
        self._sharing.settings_changed(turn)
        if old != settings.servers:
            self._server_lists_changed(turn, old, servers)

    def _server_lists_changed(self, turn: Turn, old: ServerLists, servers: set[ServerName]) -> None:
        world = self._world
        servers.update(server_of(user_id) for user_id in world.remotes)
        servers.update(world.open_pairs)
        changed = {server for server in servers if old.permit(server) != world.permits(server)}
        for server in sorted(changed):
            if world.permits(server):
                self._lists.alive(turn, server)
            else:
                world.rights_ended[server] += 1
        for user_id, server in self._rights():
            if server in changed and world.permits(server):
                turn.add(SendPush((server,), user_id, Urgency.ASKED))
        for user_id in sorted(world.remotes):
            if server_of(user_id) in changed:
                turn.add(TellObservers(user_id, world.local_observers_of(user_id)))

    def _rights(self) -> Iterator[tuple[UserID, ServerName]]:
        """Every (local user, server) with a right, the server lists left aside."""
        world = self._world
        for observed in world.pairs.everybody_observed():
            for observer in world.pairs.entitled(observed):
                if not world.is_local(observer):
                    yield observed, server_of(observer)
        for user_id in world.rooms.ours():
            for server in world.rooms.servers_of(user_id):
                if server != world.our_name:
                    yield user_id, server

    # --- what leaves ------------------------------------------------------------------------------

    def compose(self, destination: ServerName, wanted: Wanted, now_ms: int) -> Composed:
        """What of `wanted` may leave for `destination` at this moment, with ages of this moment.

        Called when bytes are made, and only then: owed EDUs count as heard from here on.
        """
        world = self._world
        rights = self.rights(destination)
        if not world.permits(destination):
            return Composed((), (), {}, (), (), (), (), rights)
        before: list[Edu] = []
        owed, stale = [], []
        last_pushed: set[UserID] = set()
        for edu in wanted.owed:
            if not self._lists.still_owed(edu):
                stale.append(edu)
                continue
            self._lists.left(edu)
            is_last = edu.final_push and not world.has_right(destination, edu.observed)
            if is_last and edu.observed not in last_pushed:
                last_pushed.add(edu.observed)
                before.append(PresenceEdu(push=(Push(edu.observed, OFFLINE, 0),)))
            before.append(ListEdu(edu.kind, edu.observer, edu.observed))
            if self._lists.is_unpoll_due(edu):
                before.append(PresenceEdu(unpoll=(edu.observed,)))
            owed.append(edu)
        for drop in wanted.drops:
            row = world.observer_row(drop.observer, drop.observed)
            if row is not None and row.stage in (ObserverStage.NONE, ObserverStage.DENIED):
                before.append(drop)
        users = tuple([user_id for user_id in wanted.users if world.is_granted(destination, user_id)])
        pushes, published = self._say(users, now_ms)
        return Composed(
            before=tuple(before),
            pushes=pushes,
            published=published,
            polls=tuple(filter(world.is_wanted, wanted.polls)),
            unpolls=tuple(filterfalse(self._is_watched, wanted.unpolls)),
            owed=tuple(owed),
            stale_owed=tuple(stale),
            rights=rights,
        )

    def _is_watched(self, user_id: UserID) -> bool:
        """Whether anybody here sees the remote user, or asks to (Z-12)."""
        return self._world.is_wanted(user_id) or bool(self._world.watched_in(user_id, ObserverStage.PENDING))

    def rights(self, destination: ServerName) -> int:
        """A counter that moves when any right of `destination` ends: older bytes are never sent again."""
        return self._world.rights_ended.get(destination, 0)

    def needs_refresh(self, destination: ServerName, user_id: UserID, now_ms: int) -> bool:
        """Whether `destination` would take the user for offline if it heard nothing (E:P-6)."""
        if self._world.published(user_id, now_ms).state is OFFLINE:
            return False
        return self._world.has_right(destination, user_id)

    def boot_users(self) -> Iterator[tuple[ServerName, UserID]]:
        """Who must be told again after a restart, and where (S:T-28)."""
        for user_id, user in self._world.locals.items():
            if user.published.state is not OFFLINE:
                for server in self._world.destinations_of(user_id):
                    yield server, user_id

    def _say(
        self, users: tuple[UserID, ...], now_ms: int
    ) -> tuple[tuple[Push, ...], dict[UserID, Published]]:
        """What is said of these users now, and of what: made once for all who are told at one moment.

        It ends with the moment, or with the next event.
        """
        if now_ms != self._pushes_ms:
            self._pushes_ms = now_ms
            self._pushes.clear()
            self._said = ((), (), {})
        if users != self._said[0]:
            made = self._pushes
            for user_id in users:
                if user_id not in made:
                    content = self._world.published(user_id, now_ms)
                    made[user_id] = self._make_push(user_id, content, now_ms), content
            pushes = tuple([made[user_id][0] for user_id in users])
            self._said = users, pushes, {user_id: made[user_id][1] for user_id in users}
        return self._said[1:]

    def _make_push(self, user_id: UserID, published: Published, now_ms: int) -> Push:
        since_ms = published.last_active_ms
        if not since_ms:
            user = self._world.locals.get(user_id)
            since_ms = self._world.started_ms if user is None else user.since_ms  # never active (E:P-3)
        return Push(
            user_id,
            published.state,
            max(0, now_ms - since_ms),
            published.status_msg,
            published.currently_active,
        )

    # --- what is asked ----------------------------------------------------------------------------

    def view(self, observer: UserID, observed: UserID, now_ms: int) -> View | None:
        """How `observer` may see `observed`; None: not at all, for whatever reason (decision 4)."""
        if not self._world.may_see(observer, observed):
            return None
        return view_of(self._world.shown(observed, now_ms), now_ms)

    def visible_to(self, observer: UserID) -> frozenset[UserID]:
        """Everybody `observer` may see, itself included."""
        return self._world.visible_to(observer)

    def wants_fresher_view(self, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether a GET should submit `StatusWanted` and wait a moment (decision 7)."""
        if not self._world.may_see(observer, observed):
            return False
        return self._lists.watching.wants_fresher(observed, now_ms)

    def presence_list(self, observer: UserID, now_ms: int) -> tuple[ListEntry, ...]:
        """The user's list: accepted and pending entries."""
        entries = []
        for row in sorted(self._world.pairs.observer_rows(observer), key=lambda row: row.observed):
            if row.stage in (ObserverStage.PENDING, ObserverStage.ACCEPTED):
                accepted = row.stage is ObserverStage.ACCEPTED
                shown = self._world.shown(row.observed, now_ms) if accepted else NOTHING
                unreachable = any(now_ms - owed.since_ms > UNREACHABLE_MS for owed in row.owed)
                since_ms = row.changed_ms if accepted else row.created_ms
                entries.append(
                    ListEntry(
                        row.observed,
                        row.stage,
                        since_ms,
                        row.confirmed_ms,
                        unreachable,
                        view_of(shown, now_ms),
                    )
                )
        return tuple(entries)

    def invites_of(self, observed: UserID) -> tuple[Pair, ...]:
        """Requests that wait for the user's answer."""
        return tuple(
            Pair(row.observer, row.created_ms)
            for row in self._sorted_by_observer(observed, ObservedStage.REQUESTED)
        )

    def observers_of(self, observed: UserID) -> tuple[ObserverEntry, ...]:
        """Who was granted the user's presence."""
        return tuple(
            ObserverEntry(row.observer, row.changed_ms, row.muted, row.confirmed_ms)
            for row in self._sorted_by_observer(observed, ObservedStage.GRANTED)
        )

    def _sorted_by_observer(self, observed: UserID, stage: ObservedStage) -> list[ObservedRow]:
        return sorted(self._world.pairs.observed_rows(observed, stage), key=lambda row: row.observer)

    def whose_users(self) -> ServerName:
        """The server of those who were stored: another one's where the database is not ours."""
        user_id = next(iter(self._world.users), None)
        return self._world.our_name if user_id is None else server_of(user_id)

    def user_exists(self, user_id: UserID) -> bool:
        """Whether a local user exists and is not deactivated."""
        return user_id in self._world.users

    def user_detail(self, user_id: UserID, now_ms: int) -> UserDetail | None:
        """Everything about one user, for the operator; None where there is nothing."""
        world = self._world
        if not world.is_local(user_id):
            remote = world.remotes.get(user_id)
            if remote is None:
                return None
            shown = remote.shown()
            return UserDetail(
                user_id,
                view_of(shown, now_ms),
                shown.last_active_ms,
                heard_ms=remote.heard_ms,
                stale=remote.stale,
            )
        if user_id not in world.users:
            return None
        user = world.locals.get(user_id)
        published = world.published(user_id, now_ms)
        devices = () if user is None else user.devices.items()
        return UserDetail(
            user_id,
            view_of(published, now_ms),
            published.last_active_ms,
            devices=tuple(
                DeviceDetail(
                    None if device_id == RESTORED else device_id,
                    device.state,
                    device.last_contact_ms,
                    device.streams,
                    device.hidden,
                )
                for device_id, device in devices
            ),
            list=self.presence_list(user_id, now_ms),
            invites=self.invites_of(user_id),
            observers=self.observers_of(user_id),
        )

    def room(self, room_id: RoomID) -> RoomDetail | None:
        """What is known of a room; None: nothing."""
        room = self._world.rooms.get(room_id)
        if room is None:
            return None
        return RoomDetail(
            len(room.members), len(room.ours), room.join_rule, room.counts, doubted=room.is_doubted
        )

    def rooms(self) -> tuple[RoomID, ...]:
        """Every room that is known, for whoever tells of rooms to compare with."""
        return tuple(room_id for room_id, _ in self._world.rooms.all())

    def counts(self) -> Counts:
        """The engine at a glance, at a cost that does not grow with it."""
        world = self._world
        here = {state: world.states[state] for state in (ONLINE, UNAVAILABLE, BUSY)}
        return Counts(
            online=here[ONLINE],
            unavailable=here[UNAVAILABLE],
            busy=here[BUSY],
            offline=max(0, len(world.users) - sum(here.values())),
            remote=len(world.remotes),
            list_pending=world.pairs.stages[ObserverStage.PENDING],
            list_accepted=world.pairs.stages[ObserverStage.ACCEPTED],
            requests=world.pairs.stages[ObservedStage.REQUESTED],
            grants=world.pairs.stages[ObservedStage.GRANTED],
            rooms=len(world.rooms),
            rooms_doubted=world.rooms.doubted,
        )

    def unwanted(self) -> dict[ServerName, int]:
        """Pushes of users whom nobody here may see, by origin; all beyond a hundred under an empty name."""
        return dict(self._lists.watching.unwanted)

    # --- written behind ---------------------------------------------------------------------------

    def has_unwritten(self) -> bool:
        """Whether `take_dirty` or `take_forgotten` has something."""
        return bool(self._world.dirty or self._world.forgotten)

    def take_dirty(self, limit: int) -> list[PresenceRecord]:
        """Presence that changed since it was last taken, of at most `limit` users; none: nothing did."""
        world = self._world
        records: list[PresenceRecord] = []
        for user_id in list(islice(world.dirty, limit)):
            del world.dirty[user_id]
            if world.is_local(user_id):
                user = world.locals.get(user_id, LocalUser(since_ms=0))
                is_untold = user_id in world.missed and user.published.state is OFFLINE
                records.append(user.record(user_id, untold_since_ms=world.started_ms if is_untold else 0))
            elif user_id in world.remotes:
                records.append(world.remotes[user_id].record(user_id))
        return records

    def take_forgotten(self, limit: int) -> list[UserID]:
        """Remote users whose stored presence may go."""
        world = self._world
        users = list(islice(world.forgotten, limit))
        for user_id in users:
            del world.forgotten[user_id]
        return users
