"""Performs a schedule on a rig of three servers with the virtual clock, and judges what comes of it.

Always true:
- a step that does not settle is followed by the next with its commit not done and its bytes on the way;
- what was answered is looked for on the disk at once, and after each start;
- the first broken invariant ends the run.

Source: contract.md, "Test rig"; subscriptions.md 5.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, assert_never, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from fedpresence.clock import now_ms
from fedpresence.engine.events import Activity, ListChanged, PresenceSet, RoomMembersSet
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.engine.subscription import ObservedStage, ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID, server_of
from fedpresence.parts import Parts
from fedpresence.storage.store import Store
from fedpresence.testing.rig.faults import NO_FAULTS
from fedpresence.testing.rig.twisted import RigOptions, TwistedRig
from tests.schedules.invariants import (
    Halves,
    WireWatch,
    disagreements,
    untrue_views,
    wrong_sights,
)
from tests.schedules.kept import Ledger, Pair, WatchedStore
from tests.schedules.schedule import (
    NOBODY,
    ROOMS,
    SERVERS,
    USERS,
    Act,
    Action,
    Grant,
    Members,
    Operate,
    Pass,
    Path,
    Put,
    Say,
    Schedule,
    SetClock,
    Stream,
    describe,
)

QUIET_MS = 9 * DAY_MS  # S:5
START_MS = 1_800_000_000_000  # the same moment each time, so that a seed is the same run
DEVICE = DeviceID("PHONE")
SHOWN_COMPLAINTS = 10
WIRE_LINES = 60


class Broken(AssertionError):
    """An invariant does not hold; the message says which, and when."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run was: how much it saw, how long it took, and what broke, if anything.

    `again`: transactions whose bytes were sent once more. `ends`: how many pairs were in which state after
    the nine days, of those that have a row.
    """

    seed: int
    seconds: float
    days: float
    transactions: int
    pushes: int
    list_edus: int
    final_pushes: int
    again: int
    ends: dict[str, int]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class _Said:
    """A list change that was submitted: how often its row had changed until then, and been talked of."""

    say: Say
    changes: int
    times: int


class Performer:
    """One run."""

    def __init__(self, reactor: Any, schedule: Schedule) -> None:
        self.schedule = schedule
        self._reactor = reactor
        self._rig: TwistedRig | None = None
        self._at = "the start"
        self._complaints: list[str] = []
        self._ledgers = {name: Ledger(name, self._now_ms, self._complain) for name in SERVERS}
        self._wire = WireWatch(self._ledgers, self, self._complain)
        self._backups: set[ServerName] = set()
        self._members: dict[tuple[ServerName, RoomID], frozenset[UserID]] = {}  # as told, or missed
        self._ends: Counter[str] = Counter()
        self._times: Counter[tuple[Pair, bool]] = Counter()

    async def run(self, *, seconds: float = 300.0) -> Report:
        """Perform all, heal all, judge all."""
        began = time.monotonic()
        failure = ""
        observer = cast(ILogObserver, self._logged)
        globalLogPublisher.addObserver(observer)
        try:
            running: Deferred[None] = ensureDeferred(self._run())
            await running.addTimeout(seconds, self._reactor)
        except Broken as error:
            failure = str(error)
        except Exception:
            failure = f"{self._at}: {Failure().getTraceback()}"
        finally:
            globalLogPublisher.removeObserver(observer)
        days, wire = 0.0, ""
        if self._rig is not None:
            days = (self._rig.now_ms - START_MS) / DAY_MS
            wire = self._rig.wire.text(last=WIRE_LINES)
            try:
                await self._rig.stop()
            except Exception:
                failure = failure or f"stopping: {Failure().getTraceback()}"
        if failure:
            failure = f"{self.schedule}\n{wire}\n{failure}"
        watch = self._wire
        return Report(
            self.schedule.seed,
            time.monotonic() - began,
            days,
            watch.transactions,
            watch.pushes,
            watch.list_edus,
            watch.final_pushes,
            watch.again,
            dict(self._ends),
            failure,
        )

    async def _run(self) -> None:
        options = RigOptions(
            servers=SERVERS,
            users=USERS,
            seed=self.schedule.seed,
            config={"lists": {"invite_policy": self.schedule.policy.value}},
            start_ms=START_MS,
            around_store=self._around,
        )
        rig = self._rig = await TwistedRig.start(self._reactor, options)
        rig.wire.watch = self._wire.sent
        for number, step in enumerate(self.schedule.steps):
            self._at = f"step {number}, {describe(step)}"
            await self._perform(rig, step.action)
            if step.settles:
                await rig.settle()
                self._look_around(rig)
            self._judge()
        await self._end(rig)

    # --- steps -----------------------------------------------------------------------------------

    async def _perform(self, rig: TwistedRig, action: Action) -> None:
        match action:
            case Say():
                self._say(action)
            case Grant(observer, observed):
                self._say(Say(observer, "invite", observed))
                await rig.settle()
                self._say(Say(observed, "accept", observer))
            case Put(user_id, state, status_msg):
                self._put(user_id, state, status_msg)
            case Act(user_id):
                self._submit(user_id, Activity(user_id, None))
            case Stream(user_id, is_open, set_presence):
                streaming = rig.set_stream(
                    user_id, is_open=is_open, device_id=DEVICE, set_presence=set_presence
                )
                ensureDeferred(streaming).addErrback(self._failed)
            case Members(room_id, members, servers):
                for name in servers:
                    self._members[name, room_id] = members
                    self._tell_room(name, room_id)
            case Path(origin, destination, faults):
                rig.set_faults(origin, destination, faults)
            case Operate():
                await self._operate(rig, action)
            case SetClock(name, offset_ms):
                await rig.servers[name].set_clock(offset_ms)
            case Pass(ms):
                await rig.advance(ms)
                self._read_again()
            case _:
                assert_never(action)

    async def _operate(self, rig: TwistedRig, action: Operate) -> None:
        server = rig.servers[action.name]
        if action.verb in ("restore", "wipe"):
            if action.verb == "restore" and action.name not in self._backups:
                return
            self._ledgers[action.name].data_replaced()
        if action.verb == "backup":
            self._backups.add(action.name)
        await getattr(server, action.verb)()

    def _say(self, say: Say) -> None:
        others = (say.other,)
        change = {
            "invite": lambda: ListChanged(say.user_id, invite=others),
            "accept": lambda: ListChanged(say.user_id, accept=others),
            "deny": lambda: ListChanged(say.user_id, deny=others),
            "revoke": lambda: ListChanged(say.user_id, revoke=others),
            "drop": lambda: ListChanged(say.user_id, drop=others),
        }[say.word]()
        ledger, key = self._ledgers[server_of(say.user_id)], _row_of(say)
        self._times[key] += 1
        said = _Said(say, ledger.row_changes[key], self._times[key])
        submitted = self._submit(say.user_id, change)
        if submitted is not None:
            submitted.addCallback(self._answered, said)

    def _put(self, user_id: UserID, state: PresenceState, status_msg: str | None) -> None:
        parts = self._parts(server_of(user_id))
        if parts is not None:
            event = PresenceSet(user_id, DEVICE, state, status_msg)
            changing = ensureDeferred(parts.changes.change(event))
            changing.addCallback(lambda _: self._look_for_hidden(user_id, state))
            changing.addErrback(self._failed)

    def _tell_room(self, name: ServerName, room_id: RoomID) -> None:
        """The last of the rooms is a homeserver's, the others are given by the admin API."""
        parts = self._parts(name)
        if parts is not None:
            members = self._members.get((name, room_id), frozenset())
            self._ledgers[name].told(room_id)
            event = RoomMembersSet(room_id, members, from_homeserver=room_id == ROOMS[-1])
            parts.hub.submit(event).addErrback(self._failed)

    def _read_again(self) -> None:
        """Rooms in doubt, a while after a start: what was to be told meanwhile was missed."""
        for name, ledger in self._ledgers.items():
            for room_id in sorted(ledger.doubted):
                self._tell_room(name, room_id)

    def _submit(self, user_id: UserID, event: Any) -> "Deferred[bool] | None":
        """True once it is answered with 200, False where it is refused; None where nobody answers."""
        parts = self._parts(server_of(user_id))
        if parts is None:
            return None
        submitted: Deferred[bool] = parts.hub.submit(event).addCallbacks(lambda _: True, _refused)
        return submitted.addErrback(self._failed)

    # --- what was answered -----------------------------------------------------------------------

    def _answered(self, accepted: bool, said: _Said) -> None:
        """The row says what was answered with 200, unless more has happened to it in the same moment."""
        if not accepted:
            return
        say, ledger = said.say, self._ledgers[server_of(said.say.user_id)]
        key = _row_of(say)
        if ledger.row_changes[key] > said.changes + 1 or self._times[key] > said.times:
            return
        if say.word in ("invite", "drop"):
            mine = ledger.kept.observer_rows.get((say.user_id, say.other))
            stage = ObserverStage.NONE if mine is None else mine.stage
            if say.word == "invite":
                is_right = stage in (ObserverStage.PENDING, ObserverStage.ACCEPTED)
            else:
                is_right = stage in (ObserverStage.NONE, ObserverStage.DENIED)
        else:
            theirs = ledger.kept.observed_rows.get((say.other, say.user_id))
            row = ObservedStage.NONE if theirs is None else theirs.stage
            if say.word == "accept":
                is_right = row is ObservedStage.GRANTED
            elif say.word == "deny":
                is_right = row is ObservedStage.DENIED
            else:
                is_right = row is not ObservedStage.GRANTED
        if not is_right:
            self._complain(f"{say} was answered, and is not on the disk")

    def _look_for_hidden(self, user_id: UserID, state: PresenceState) -> None:
        """Who declared themselves offline is so on the disk (P:D-8)."""
        is_hidden = (user_id, DEVICE) in self._ledgers[server_of(user_id)].kept.hidden
        if state is PresenceState.OFFLINE and not is_hidden:
            self._complain(f"{user_id} declared offline, and it is not on the disk")

    # --- judging ---------------------------------------------------------------------------------

    def _look_around(self, rig: TwistedRig) -> None:
        """All has come to rest: nobody sees whom they may not."""
        for name in SERVERS:
            if self._parts(name) is not None:
                ours = [user_id for user_id in USERS if server_of(user_id) == name]
                for complaint in wrong_sights(ours, list(USERS), self._ledgers[name], self._sees):
                    self._complain(complaint)

    def _judge(self) -> None:
        if self._complaints:
            shown = "\n".join(self._complaints[:SHOWN_COMPLAINTS])
            raise Broken(f"{self._at}, {(self._now_ms() - START_MS) / 1000:+.3f} s:\n{shown}")

    async def _end(self, rig: TwistedRig) -> None:
        """Heal all, be in contact for nine days, and then tell of everybody once (S:5)."""
        self._at = "healing"
        for origin, destination in permutations(SERVERS, 2):
            rig.set_faults(origin, destination, NO_FAULTS)
        for name in SERVERS:
            await rig.servers[name].start()
        self._read_again()
        for user_id in USERS:
            awake = user_id in self.schedule.awake
            await rig.set_stream(user_id, is_open=awake, device_id=DEVICE)
        await rig.settle()
        self._judge()
        self._at = "nine quiet days"
        await rig.advance(QUIET_MS)
        self._ends.update(
            each.state for pair in permutations(USERS, 2) if (each := self._halves(pair)).exists
        )
        self._agree(is_told=False)
        self._at = "everybody is told of"
        await self._tell_all(rig, PresenceState.OFFLINE, PresenceState.ONLINE)
        self._agree(is_told=True)
        self._at = "every request is answered"
        for pair in self._requests():
            self._say(Say(pair[1], "accept", pair[0]))
            await rig.settle()
        for pair in self._requests():
            self._complain(f"accepted, and nobody heard it: {self._halves(pair)}")
        await rig.advance(2 * HOUR_MS)  # "nobody here wants them" is said once in an hour (Z-12)
        await self._tell_all(rig, PresenceState.OFFLINE)
        self._agree(is_told=True)

    async def _tell_all(self, rig: TwistedRig, *states: PresenceState) -> None:
        """Everybody's presence changes, and is no longer active."""
        for state in states:
            for user_id in USERS:
                self._put(user_id, state, f"{self._at} {user_id}" if state is PresenceState.ONLINE else None)
            await rig.advance(MINUTE_MS + 5_000)

    def _agree(self, *, is_told: bool) -> None:
        pairs: list[Pair] = list(permutations(USERS, 2))
        pairs += [(user_id, NOBODY) for user_id in USERS]
        complaints: Iterable[str] = disagreements(
            pairs, self._ledgers, self.schedule.policy, is_told=is_told, users=frozenset(USERS)
        )
        for complaint in complaints:
            self._complain(complaint)
        for complaint in untrue_views(list(permutations(USERS, 2)), self._ledgers, self._sees):
            self._complain(complaint)
        assert self._rig is not None
        self._look_around(self._rig)
        self._judge()

    def _halves(self, pair: Pair) -> Halves:
        return Halves.of(pair, self._ledgers)

    def _requests(self) -> Sequence[Pair]:
        halves = [self._halves(pair) for pair in permutations(USERS, 2)]
        return [
            (each.observer, each.observed)
            for each in halves
            if (each.mine, each.theirs) == (ObserverStage.PENDING, ObservedStage.REQUESTED)
        ]

    # --- looking in ------------------------------------------------------------------------------

    def _parts(self, name: ServerName) -> Parts | None:
        daemon = None if self._rig is None else self._rig.servers[name].daemon
        return None if daemon is None else daemon.parts

    def _sees(self, observer: UserID, observed: UserID) -> View | None:
        parts = self._parts(server_of(observer))
        return None if parts is None else parts.engine.view(observer, observed, now_ms(parts.clock))

    def time_at(self, server_name: ServerName) -> int | None:
        """By the server's own clock; None where it does not run."""
        parts = self._parts(server_name)
        return None if parts is None else now_ms(parts.clock)

    def last_active_ms(self, user_id: UserID) -> int:
        """As the user's own server has it; 0: never."""
        parts = self._parts(server_of(user_id))
        detail = None if parts is None else parts.engine.user_detail(user_id, now_ms(parts.clock))
        return 0 if detail is None else detail.last_active_ms

    def _around(self, name: ServerName, store: Store) -> Store:
        return WatchedStore(store, self._ledgers[name]).as_store()

    def _now_ms(self) -> int:
        return START_MS if self._rig is None else self._rig.now_ms

    def _complain(self, complaint: str) -> None:
        self._complaints.append(f"{(self._now_ms() - START_MS) / 1000:+.3f} s: {complaint}")

    def _failed(self, failure: Failure) -> bool:
        self._complain(f"failed: {failure.getTraceback()}")
        return False

    def _logged(self, event: LogEvent) -> None:
        """Our own fault is an error in the log; whatever the servers bear, they do not fail."""
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            failure = event.get("log_failure")
            trace = "" if failure is None else f"\n{failure.getTraceback()}"
            self._complain(f"logged: {formatEvent(event)}{trace}")


def _row_of(say: Say) -> tuple[Pair, bool]:
    """The half that a list change is about."""
    if say.word in ("invite", "drop"):
        return (say.user_id, say.other), True
    return (say.other, say.user_id), False


def _refused(failure: Failure) -> bool:
    failure.trap(BadRequest)
    return False


def perform(reactor: Any, schedule: Schedule) -> Awaitable[Report]:
    """Run a schedule."""
    return Performer(reactor, schedule).run()
