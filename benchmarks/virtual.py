"""A server in virtual time: the daemon's own engine, hub and outbound; no sockets, no disk, no waiting.

Always true: what the clock calls and what is logged as failed ends the run; time passes only in `run_for`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from benchmarks.receivers import Heard, Receivers
from benchmarks.report import check
from fedpresence.clock import now_ms
from fedpresence.engine.effects import InboxFilled, Notice, Outgoing, TellObservers
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import Event, InboxDue, PresenceSet, Started, StreamOpened
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.presence import OFFLINE, ONLINE, UNAVAILABLE, PresenceRecord, PresenceState
from fedpresence.engine.settings import EngineSettings
from fedpresence.engine.subscription import ObservedRow, ObservedStage
from fedpresence.hub import Hub
from fedpresence.ids import DeviceID, ServerName, UserID
from fedpresence.outbound.service import Outbound, OutboundSettings
from fedpresence.outbound.tools import Decisions
from fedpresence.storage.memory import MemoryStore
from fedpresence.storage.store import Stored
from fedpresence.testing.rig.clock import TurnableClock

HERE = ServerName("here.test")
PHONE = DeviceID("PHONE")
START_MS = 1_700_000_000_000
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
RECONNECT_WITHIN_S = 20.0  # clients are back that soon after a restart
WRITE_BEHIND_S = 10.0
PROBE_EVERY_S = 0.7

Interest = Mapping[UserID, tuple[ServerName, ...]]  # which servers watch whom


def user(number: int) -> UserID:
    """One of our users."""
    return UserID(f"@user{number:05}:{HERE}")


def destination(number: int) -> ServerName:
    """One of the other servers."""
    return ServerName(f"there{number:04}.test")


def interest_of(users: int, destinations: int, each: int, random: Random) -> Interest:
    """Each user is watched by users of `each` servers, drawn at random."""
    names = [destination(number) for number in range(destinations)]
    return {user(number): tuple(random.sample(names, each)) for number in range(users)}


class VirtualServer:
    """Begins as after a restart: everybody idle or online as stored, clients on their way back."""

    def __init__(
        self,
        interest: Interest,
        random: Random,
        *,
        state: PresenceState = UNAVAILABLE,
        settings: EngineSettings | None = None,
        refresh_interval_ms: int = 25 * MINUTE_MS,
    ) -> None:
        self.clock = TurnableClock(START_MS)
        self.random = random
        self.interest = interest
        self.users = list(interest)
        self.receivers = Receivers(self.clock, random)
        self.engine = Engine(settings or EngineSettings(HERE), START_MS)
        self.transactions_ms: list[int] = []  # each one whose bytes left
        self.max_gap_ms = 0  # between two words on a user who was not offline
        self.changes = 0
        self.listeners: list[Callable[[ServerName, UserID], object]] = []  # to whatever is told elsewhere
        self.on_change: Callable[[UserID], object] = _nobody_looks
        self._failures: list[Failure] = []
        self._changing = False
        self.hub = Hub(self.engine, MemoryStore(), self.clock, self._perform, self._failures.append)
        self.outbound = Outbound(
            self.clock,
            self.receivers,
            Decisions(
                settling=self.hub.settling,
                compose=self.engine.compose,
                rights=self.engine.rights,
                needs_refresh=lambda to, who: self.engine.needs_refresh(to, who, now_ms(self.clock)),
                submit=self.hub.submit,
            ),
            OutboundSettings(HERE, refresh_interval_ms=refresh_interval_ms),
            random,
            boot_users=self.engine.boot_users,
            on_transaction=lambda seen: self.transactions_ms.append(seen.sent_ms),
        )
        self.receivers.on_heard = self._heard
        self.engine.load(self._stored(state), START_MS)

    def _stored(self, state: PresenceState) -> Stored:
        return Stored(
            users=[(user_id, False) for user_id in self.users],
            pairs=Pairs(
                observed_rows=(
                    ObservedRow(
                        UserID(f"@watcher:{to}"), user_id, ObservedStage.GRANTED, START_MS - DAY_MS, START_MS
                    )
                    for user_id, servers in self.interest.items()
                    for to in servers
                )
            ),
            presence=[
                PresenceRecord(user_id, state, START_MS - 10 * MINUTE_MS, None, False, 0)
                for user_id in self.users
            ],
            saved_at_ms=START_MS,
        )

    # --- what happens ----------------------------------------------------------------------------

    def boot(self) -> None:
        """As the daemon does; clients come back within seconds."""
        self.submit(Started())
        self.outbound.startService()
        self.clock.callLater(WRITE_BEHIND_S, self._write_behind)
        for user_id in self.users:
            back = StreamOpened(user_id, PHONE, None)
            self.clock.callLater(self.random.uniform(0, RECONNECT_WITHIN_S), self.submit, back)

    def submit(self, event: Event) -> None:
        """Something happens here."""
        self.hub.submit(event).addErrback(self._failures.append)

    def change(self, user_id: UserID) -> None:
        """The user says something new, online or away."""
        self.changes += 1
        self.on_change(user_id)
        state = self.random.choice([ONLINE, UNAVAILABLE])
        self.submit(PresenceSet(user_id, PHONE, state, f"word {self.changes}"))

    def keep_changing(self, every_ms: float, users: Iterable[UserID] | None = None) -> None:
        """Each of the users changes at random moments, on average that often, until `stop_changing`."""
        self._changing = True
        for user_id in self.users if users is None else users:
            self._change_later(user_id, every_ms)

    def stop_changing(self) -> None:
        """Everybody falls silent."""
        self._changing = False

    def run_for(self, length_ms: int) -> None:
        """Time passes."""
        end_ms = self.clock.now_ms + length_ms
        with self._failures_observed():
            while (due_ms := self.clock.next_due_ms()) is not None and due_ms <= end_ms:
                self.clock.turn_to(max(due_ms, self.clock.now_ms))
                while self.clock.run_due():
                    pass
                check(not self._failures, f"something failed: {self._failures[:1]}")
        self.clock.turn_to(end_ms)

    # --- what is true ----------------------------------------------------------------------------

    def now_ms(self) -> int:
        """The virtual time."""
        return self.clock.now_ms

    def behind(self, destinations: Iterable[ServerName] | None = None) -> int:
        """How many (user, server) have another last word there than the newest."""
        chosen = None if destinations is None else set(destinations)
        return sum(
            not self.is_told(to, user_id)
            for user_id, servers in self.interest.items()
            for to in servers
            if chosen is None or to in chosen
        )

    def is_told(self, to: ServerName, user_id: UserID) -> bool:
        """Whether the server's last word on the user is the newest."""
        view = self.engine.view(user_id, user_id, self.now_ms())
        heard = self.receivers.heard.get(to, {}).get(user_id)
        assert view is not None
        if heard is None:
            return view.state is OFFLINE
        return (heard.state, heard.status_msg) == (view.state.value, view.status_msg)

    def oldest_word_ms(self) -> int:
        """How long ago the longest silent user who is not offline was told, anywhere."""
        now = self.now_ms()
        ages = (now - h.at_ms for _, _, h in self.receivers.pairs() if h.state != OFFLINE.value)
        return max(ages, default=0)

    def waiting(self) -> tuple[int, int]:
        """Pushes that wait for all destinations, and the most for one."""
        pending = [status.pending_users for status in self.outbound.describe().values()]
        return sum(pending), max(pending, default=0)

    # --- inside ----------------------------------------------------------------------------------

    def _perform(self, effect: Outgoing) -> None:
        if isinstance(effect, InboxFilled):
            self.submit(InboxDue())
        elif not isinstance(effect, TellObservers | Notice):
            self.outbound.enqueue(effect)

    def _change_later(self, user_id: UserID, every_ms: float) -> None:
        def change() -> None:
            if self._changing:
                self.change(user_id)
                self._change_later(user_id, every_ms)

        self.clock.callLater(self.random.expovariate(1 / every_ms) / 1000, change)

    def _heard(self, to: ServerName, user_id: UserID, heard: Heard, before: Heard | None) -> None:
        if before is not None and before.state != OFFLINE.value:
            self.max_gap_ms = max(self.max_gap_ms, heard.at_ms - before.at_ms)
        for listen in self.listeners:
            listen(to, user_id)

    def _write_behind(self) -> None:
        self.engine.take_dirty(len(self.users))
        self.clock.callLater(WRITE_BEHIND_S, self._write_behind)

    @contextmanager
    def _failures_observed(self) -> Iterator[None]:
        """What is only logged fails the run too."""

        def observe(event: Mapping[str, Any]) -> None:
            if "log_failure" in event:
                self._failures.append(event["log_failure"])

        observer: Any = observe  # zope's interfaces mean nothing to mypy
        globalLogPublisher.addObserver(observer)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(observer)


class Probes:
    """Changes of users, one after the other, and how long until the first server hears of each."""

    def __init__(self, server: VirtualServer, users: list[UserID]) -> None:
        self.taken_s: list[float] = []
        self.waiting: dict[UserID, int] = {}
        self._server = server
        self._users = iter(users)
        self._running = False

    def start(self) -> None:
        """From now on."""
        self._running = True
        self._server.listeners.append(self._heard)
        self._next()

    def stop(self) -> None:
        """No more."""
        self._running = False

    def _next(self) -> None:
        user_id = next(self._users, None)
        if self._running and user_id is not None:
            self.waiting[user_id] = self._server.now_ms()
            self._server.change(user_id)
            self._server.clock.callLater(PROBE_EVERY_S, self._next)

    def _heard(self, to: ServerName, user_id: UserID) -> None:
        changed_ms = self.waiting.pop(user_id, None)
        if changed_ms is not None:
            self.taken_s.append((self._server.now_ms() - changed_ms) / 1000)


def _nobody_looks(user_id: UserID) -> None:
    pass
