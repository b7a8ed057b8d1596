"""Engines with their stores and queues, and links between them that do what links do.

Always true:
- a server decides, commits, and only then performs, as the hub does; a crash loses what was not committed;
- a queue, one for each other server, keeps user IDs and owed EDUs, has one transaction in flight, and
  repeats bytes once at most, and only while no right in them has ended, as the senders do;
- whenever bytes leave, the privacy rule of subscriptions.md 5 is checked against the *stored* rows.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedpresence.engine.effects import (
    Durable,
    Effect,
    InboxFilled,
    Notice,
    SendDropOnce,
    SendEdu,
    SendPoll,
    SendPush,
    SendUnpoll,
    UnsendEdus,
    Urgency,
)
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import (
    DestinationAlive,
    EdusDelivered,
    Event,
    InboxDue,
    ListEduReceived,
    PollReceived,
    PushesReceived,
    PushReceived,
    ReceivedEdu,
    RoomMembersSet,
    SettingsChanged,
    Started,
    StreamOpened,
    TimePassed,
    TransactionReceived,
    UnpollReceived,
    UserAdded,
)
from fedpresence.engine.outgoing import Composed, Edu, ListEdu, PresenceEdu, Push, Wanted
from fedpresence.engine.presence import OFFLINE, PresenceState
from fedpresence.engine.settings import HOUR_MS, MINUTE_MS, EngineSettings
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.errors import BadRequest
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.storage.memory import MemoryStore
from fedpresence.storage.store import Stored
from fedpresence.testing.builders import NOW_MS, a_put
from tests.asynchronous import result_of

ForOneServer = SendEdu | UnsendEdus | SendDropOnce | SendPoll | SendUnpoll

MIN_RETRY_MS, MAX_RETRY_MS = MINUTE_MS, 12 * HOUR_MS  # rarer than decision 15: half a year passes here
MAX_ROUNDS = 60  # of one transaction a link: healthy servers fall silent long before

_txn_ids = itertools.count()


@dataclass(frozen=True)
class Sealed:
    """A transaction whose bytes are made."""

    event: TransactionReceived
    users: dict[UserID, int]
    owed: tuple[OwedEdu, ...]
    pushed: tuple[Push, ...]  # by a right: not the final pushes
    rights: int
    revision: int
    again: bool = False


@dataclass
class Queue:
    """What waits for one other server: a set of users, owed EDUs in order, and what is tried once."""

    users: dict[UserID, int] = field(default_factory=dict)
    owed: list[OwedEdu] = field(default_factory=list)
    drops: list[ListEdu] = field(default_factory=list)
    polls: list[UserID] = field(default_factory=list)
    unpolls: list[UserID] = field(default_factory=list)
    revision: int = 0
    count: int = 0
    in_flight: Sealed | None = None
    unclear: Sealed | None = None
    next_try_ms: int = 0
    woken_ms: int = 0
    failing: bool = False
    failing_since_ms: int = 0

    def add(self, effect: Effect) -> None:
        """Take one outgoing effect."""
        match effect:
            case SendPush(user_id=user_id):
                self.count += 1
                self.users[user_id] = self.count
            case SendEdu(edu=edu):
                if edu not in self.owed:
                    self.owed.append(edu)
            case UnsendEdus(observer=observer, observed=observed):
                kept = [edu for edu in self.owed if (edu.observer, edu.observed) != (observer, observed)]
                self.revision += len(kept) != len(self.owed)
                self.owed = kept
            case SendDropOnce(observer=observer, observed=observed):
                self.drops.append(ListEdu(EduKind.DROP, observer, observed))
            case SendPoll(user_id=user_id):
                self.polls.append(user_id)
            case SendUnpoll(user_id=user_id):
                self.unpolls.append(user_id)

    def take(self) -> Wanted:
        """What would go now: of each pair one EDU at most."""
        pairs = {(drop.observer, drop.observed) for drop in self.drops}
        owed: list[OwedEdu] = []
        for edu in self.owed:
            if (edu.observer, edu.observed) not in pairs:
                pairs.add((edu.observer, edu.observed))
                owed.append(edu)
        wanted = Wanted(
            tuple(self.users), tuple(owed), tuple(self.drops), tuple(self.polls), tuple(self.unpolls)
        )
        self.drops, self.polls, self.unpolls = [], [], []
        return wanted

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not (
            self.users or self.owed or self.drops or self.polls or self.unpolls or self.unclear is not None
        )


class Server:
    """One server: an engine, what it stored, and its queues to the others."""

    def __init__(
        self, name: ServerName, others: Iterable[ServerName], users: Iterable[UserID], now_ms: int
    ) -> None:
        self.name = name
        self.others = tuple(others)
        self.users = tuple(users)
        self.settings = EngineSettings(name)
        self.now_ms = now_ms
        self.store = MemoryStore()
        self.backup = self.store.snapshot()
        self.queues = {other: Queue() for other in self.others}
        self.rooms: dict[RoomID, frozenset[UserID]] = {}
        self.notices: list[Notice] = []
        self.crashes_at_next_turn = False
        self.start()

    @property
    def other(self) -> ServerName:
        """The other server, where there is but one."""
        (other,) = self.others
        return other

    @property
    def queue(self) -> Queue:
        """The queue to the other server, where there is but one."""
        return self.queues[self.other]

    # --- its life ---

    def start(self) -> None:
        """Begin a run on what is stored."""
        self.queues = {other: Queue() for other in self.others}
        self.crashes_at_next_turn = False
        self.engine = Engine(self.settings, self.now_ms)
        self.engine.load(self.stored(), self.now_ms)
        self.run(Started())
        for user_id in self.users:
            self.run(UserAdded(user_id))
        for room_id, members in self.rooms.items():
            self.run(RoomMembersSet(room_id, members))  # whoever tells of rooms tells again
        for other, user_id in self.engine.boot_users():
            self.queues[other].add(SendPush((other,), user_id, Urgency.REFRESH))

    def stop_and_start(self) -> None:
        """A clean restart: presence was written behind."""
        result_of(self.store.save_presence(self.engine.take_dirty(1000), self.now_ms))
        self.store = self.store.reopened()
        self.start()

    def back_up(self) -> None:
        """What is stored now is kept, to be restored later, or never."""
        self.backup = self.store.snapshot()

    def restore(self) -> None:
        """A start on the last backup (Z-24)."""
        self.store = self.backup.snapshot()
        self.start()

    def lose_database(self) -> None:
        """A start on nothing."""
        self.store = type(self.store)()
        self.start()

    def run(self, event: Event) -> tuple[Effect, ...]:
        """One turn: decide, commit, perform; or decide, commit, crash."""
        effects = self.engine.receive(event, self.now_ms)
        durable = [effect for effect in effects if isinstance(effect, Durable)]
        if durable:
            result_of(self.store.commit(durable, self.now_ms))
            if self.crashes_at_next_turn:
                self.crashes_at_next_turn = False
                raise Crashed
        for effect in effects:
            if isinstance(effect, InboxFilled):
                self.run(InboxDue())
            elif isinstance(effect, Notice):
                self.notices.append(effect)
            elif isinstance(effect, SendPush):
                for other in effect.destinations:
                    self.queues[other].add(effect)
            elif isinstance(effect, ForOneServer):
                self.queues[effect.destination].add(effect)
        return effects

    def submit(self, event: Event) -> bool:
        """One event; a refusal changes nothing, a crash restarts. Whether it was not refused."""
        try:
            self.run(event)
        except BadRequest:
            return False
        except Crashed:
            self.start()
        return True

    def tick(self) -> None:
        """Time has passed."""
        run = self.engine
        self.submit(TimePassed())
        if self.engine is not run:  # it crashed at that, and what was due is due in the next run
            self.submit(TimePassed())
        deadline_ms = self.engine.next_deadline_ms()
        assert deadline_ms is None or deadline_ms > self.now_ms, "a deadline that never ends"

    # --- what it holds ---

    def stored(self) -> Stored:
        """What a restart would find."""
        return result_of(self.store.load())

    def observer_row(self, observer: UserID, observed: UserID) -> ObserverRow | None:
        """The observer's half as stored."""
        rows = self.stored().pairs.observer_rows()
        return next((r for r in rows if (r.observer, r.observed) == (observer, observed)), None)

    def observed_row(self, observer: UserID, observed: UserID) -> ObservedRow | None:
        """The observed user's half as stored."""
        rows = self.stored().pairs.observed_rows()
        return next((r for r in rows if (r.observer, r.observed) == (observer, observed)), None)

    def may_tell(self, destination: ServerName, user_id: UserID) -> bool:
        """The privacy rule, from what is stored and from what the test knows of rooms."""
        if not self.settings.servers.permit(destination):
            return False
        for members in self.rooms.values():
            if user_id in members and any(server_of(member) == destination for member in members):
                return True
        return any(
            row.observed == user_id
            and server_of(row.observer) == destination
            and row.stage is ObservedStage.GRANTED
            and not row.muted
            for row in self.stored().pairs.observed_rows()
        )

    # --- sending ---

    def seal(self, destination: ServerName) -> Sealed | None:
        """Make the bytes of the next transaction, or repeat those whose fate is unclear."""
        queue = self.queues[destination]
        unclear, queue.unclear = queue.unclear, None
        rights = self.engine.rights(destination)
        if unclear is not None and (unclear.rights, unclear.revision) == (rights, queue.revision):
            for push in unclear.pushed:
                assert self.may_tell(destination, push.user_id), f"{push.user_id} is sent again, no right"
            return replace(unclear, again=True)
        wanted = queue.take()
        composed = self.engine.compose(destination, wanted, self.now_ms)
        self._check(destination, composed)
        for user_id in wanted.users:
            if user_id not in composed.published:
                del queue.users[user_id]
        queue.owed = [edu for edu in queue.owed if edu not in composed.stale_owed]
        edus = (*composed.before, *(PresenceEdu(push=(push,)) for push in composed.pushes))
        if composed.polls or composed.unpolls:
            edus = (*edus, PresenceEdu(poll=composed.polls, unpoll=composed.unpolls))
        if not edus:
            return None
        event = TransactionReceived(
            self.name,
            f"t{next(_txn_ids)}",
            self.now_ms,
            tuple(item for edu in edus for item in as_received(edu, self.name)),
        )
        users = {user_id: queue.users[user_id] for user_id in composed.published}
        return Sealed(event, users, composed.owed, composed.pushes, composed.rights, queue.revision)

    def answered(self, destination: ServerName, sealed: Sealed) -> None:
        """The other server said 200."""
        queue = self.queues[destination]
        queue.failing = False
        for user_id, count in sealed.users.items():
            if queue.users.get(user_id) == count:
                del queue.users[user_id]
        queue.owed = [edu for edu in queue.owed if edu not in sealed.owed]
        if sealed.owed:
            self.submit(EdusDelivered(destination, sealed.owed))

    def unanswered(self, destination: ServerName, sealed: Sealed) -> None:
        """No answer came: nobody knows whether it was heard."""
        queue = self.queues[destination]
        if not queue.failing:
            queue.failing = True
            queue.failing_since_ms = self.now_ms
        away_ms = self.now_ms - queue.failing_since_ms
        queue.next_try_ms = self.now_ms + min(MAX_RETRY_MS, max(MIN_RETRY_MS, away_ms * 3 // 20))
        if not sealed.again:
            queue.unclear = sealed

    def hears_from(self, origin: ServerName) -> None:
        """Something authentic came from another server."""
        queue = self.queues[origin]
        if queue.failing and self.now_ms >= queue.woken_ms + MINUTE_MS:  # Z-20
            queue.woken_ms = self.now_ms
            queue.next_try_ms = 0
            self.submit(DestinationAlive(origin))

    def _check(self, destination: ServerName, composed: Composed) -> None:
        for push in composed.pushes:
            assert self.may_tell(destination, push.user_id), f"{push.user_id} leaves without a right"
        for edu, following in itertools.pairwise((*composed.before, None)):
            if isinstance(edu, PresenceEdu) and edu.push:
                (push,) = edu.push
                assert push == Push(push.user_id, OFFLINE, 0), "a final push says offline and nothing else"
                assert not self.may_tell(destination, push.user_id), "the final push is for the last right"
                assert isinstance(following, ListEdu)
                assert (following.kind, following.observed) == (EduKind.DENY, push.user_id)


class Crashed(Exception):
    """The process is gone: what was committed is all there is."""


class Link:
    """The way from one server to the other.

    `mode`: "up"; "lost" (the request), "deaf" (the answer), "forgetful" (answered 200 and not taken),
    "slow" (in flight until told), "late" (given up by the sender, and arrives when told), "double" (comes
    twice).
    """

    def __init__(self, sender: Server, receiver: Server) -> None:
        self.sender = sender
        self.receiver = receiver
        self.mode = "up"
        self.seen: list[TransactionReceived] = []
        self.late: list[TransactionReceived] = []

    @property
    def queue(self) -> Queue:
        """What waits for the receiver."""
        return self.sender.queues[self.receiver.name]

    def carry_one(self) -> bool:
        """Send one transaction if one is due; whether anything happened."""
        sender, queue = self.sender, self.queue
        if queue.in_flight is None:
            if queue.is_empty() or queue.next_try_ms > sender.now_ms:
                return False
            if not sender.settings.servers.permit(self.receiver.name):
                return False
            queue.in_flight = sender.seal(self.receiver.name)
            if queue.in_flight is None:
                return True
            self.seen.append(queue.in_flight.event)
        if self.mode == "slow":
            return False
        return self.land()

    def land(self) -> bool:
        """What is in flight arrives, or not; whether anything was in flight."""
        sender, queue, destination = self.sender, self.queue, self.receiver.name
        sealed, queue.in_flight = queue.in_flight, None
        if sealed is None:
            return False
        if self.mode in ("lost", "late"):
            if self.mode == "late":
                self.late.append(sealed.event)
            sender.unanswered(destination, sealed)
            return True
        taken = self.mode == "forgetful" or self.deliver(sealed.event)
        if taken and self.mode == "double":
            taken = self.deliver(sealed.event)
        if taken and self.mode != "deaf":
            sender.answered(destination, sealed)
        else:
            sender.unanswered(destination, sealed)
        return True

    def land_late(self) -> None:
        """What the sender gave up arrives after all, in the order in which it was sent."""
        late, self.late = self.late, []
        for event in late:
            self.deliver(event)

    def deliver(self, event: TransactionReceived) -> bool:
        """The receiver gets it; whether it lived to answer."""
        receiver = self.receiver
        receiver.hears_from(event.origin)
        if not receiver.settings.servers.permit(event.origin):
            return False
        try:
            receiver.run(event)
        except Crashed:
            receiver.start()
            return False
        return True


class Servers:
    """All of them, each with a link to each other, and the clock they share."""

    def __init__(self, users: Mapping[ServerName, tuple[UserID, ...]]) -> None:
        self.now_ms = NOW_MS
        names = tuple(users)
        self.servers = {
            name: Server(name, [other for other in names if other != name], users[name], NOW_MS)
            for name in names
        }
        self.all_links = {
            (a, b): Link(self.servers[a], self.servers[b]) for a, b in itertools.permutations(names, 2)
        }

    def server_of(self, user_id: UserID) -> Server:
        """The server a user belongs to."""
        return self.servers[server_of(user_id)]

    def tell(self, user_id: UserID, event: Event) -> None:
        """An event at a user's own server."""
        self.server_of(user_id).submit(event)
        self.settle()

    def settle(self) -> None:
        """Carry transactions until nothing more is due."""
        for _ in range(MAX_ROUNDS):
            carried = [link.carry_one() for link in self.all_links.values()]
            if not any(carried):
                return
        raise AssertionError("the servers never fall silent")

    def advance(self, ms: int) -> None:
        """Time passes, through every deadline of all in order."""
        end_ms = self.now_ms + ms
        self.settle()
        while True:
            moments = [end_ms]
            for server in self.servers.values():
                deadline_ms = server.engine.next_deadline_ms()
                if deadline_ms is not None:
                    moments.append(deadline_ms)
                for queue in server.queues.values():
                    if not queue.is_empty() and queue.next_try_ms > self.now_ms:
                        moments.append(queue.next_try_ms)
            self.now_ms = max(self.now_ms, min(moments))
            for server in self.servers.values():
                server.now_ms = self.now_ms
            for server in self.servers.values():
                server.tick()
            self.settle()
            if self.now_ms >= end_ms:
                return

    def set_room(self, room_id: RoomID, members: frozenset[UserID]) -> None:
        """Every server learns who is in a room."""
        for server in self.servers.values():
            server.rooms[room_id] = members
            server.submit(RoomMembersSet(room_id, members))
        self.settle()

    def change_state(self, user_id: UserID, online: bool) -> None:
        """A user is online with a stream that stays open, or declared offline."""
        state = PresenceState.ONLINE if online else PresenceState.OFFLINE
        if online:
            self.tell(user_id, StreamOpened(user_id, None, None))
        self.tell(user_id, a_put(state, "at work" if online else None, user_id=user_id, device_id=None))

    def change_settings(self, name: ServerName, settings: EngineSettings) -> None:
        """A reload."""
        server = self.servers[name]
        server.settings = settings
        server.submit(SettingsChanged(settings))
        self.settle()

    def heal(self) -> None:
        """Everything works again."""
        for server in self.servers.values():
            server.crashes_at_next_turn = False
        for link in self.all_links.values():
            link.queue.next_try_ms = 0
            link.mode = "up"
        for name in self.servers:
            self.change_settings(name, EngineSettings(name))
        self.settle()

    def stages(
        self, observer: UserID, observed: UserID
    ) -> tuple[ObserverStage, ObservedStage, ObservedRow | None]:
        """The pair's stage here and there, and the observed user's row."""
        mine = self.server_of(observer).observer_row(observer, observed)
        theirs = self.server_of(observed).observed_row(observer, observed)
        return (
            ObserverStage.NONE if mine is None else mine.stage,
            ObservedStage.NONE if theirs is None else theirs.stage,
            theirs,
        )


def as_received(edu: Edu, origin: ServerName) -> list[ReceivedEdu]:
    """What the other server reads."""
    if isinstance(edu, ListEdu):
        return [ListEduReceived(edu.kind, origin, edu.observer, edu.observed)]
    received: list[ReceivedEdu] = []
    if edu.push:
        pushes = (
            PushReceived(p.user_id, p.state, p.last_active_ago, p.status_msg, p.currently_active)
            for p in edu.push
        )
        received.append(PushesReceived(origin, tuple(pushes)))
    if edu.poll:
        received.append(PollReceived(origin, edu.poll))
    if edu.unpoll:
        received.append(UnpollReceived(origin, edu.unpoll))
    return received
