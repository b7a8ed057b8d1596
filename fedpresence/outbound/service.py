"""Everything that leaves for other servers: a sender for each destination, and one budget for all.

Always true:
- a destination has a sender only while something waits, fails, or will need a refresh there;
- news lies in one place until somebody looks at the destinations, at the latest when it may leave for one of
  them: what comes for ten that have just sent something is put into their queues all at once;
- one timer wakes whoever has something to do;
- destinations that the server lists deny are asleep: what waits is kept, nothing is sent (Z-9);
- constructing opens nothing; when `stopService` has fired, nothing is in flight.

Source: decisions 9 to 15; Z-18, Z-22; S:T-28.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger

from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.counters import Counters, NullCounters
from fedpresence.engine.effects import SendPoll, SendPush, Urgency
from fedpresence.engine.settings import ServerLists
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.alarms import Alarms
from fedpresence.outbound.budget import TokenBucket, Turns
from fedpresence.outbound.queue import (
    OVERDRAWN_PATIENCE_MS,
    PATIENCE_MS,
    DestinationQueue,
    Lengths,
    News,
    QueueEffect,
)
from fedpresence.outbound.rounds import Round
from fedpresence.outbound.sender import MAX_USERS, DestinationSender
from fedpresence.outbound.status import DestinationStatus, TransactionSeen
from fedpresence.outbound.tools import Decisions, Opens, Tools

_log = Logger()

SWEEP_INTERVAL_S = 300.0  # how often senders with nothing to do are forgotten, and refreshes are counted
ROUND = 0.75  # of a refresh interval: in the middle of when a refresh is due, early enough to fail twice
USER_SHARE = 4  # one user's lasting share of the budget is a fourth of it (Z-18)
ASKED_SHARE = 4  # a fourth goes to who waits for an answer, before all others; what is more has time (Z-18)
TRIES_SHARE = 4  # and a fourth to those that fail, as urgent as what people do now
USER_BURST_S = 10  # and at once as many pushes as the whole budget has in ten seconds
MAX_USER_BUCKETS = 10_000
MAX_CAME = 1_000  # changes that are in no queue yet
MOMENT_MS = 10  # how long ago what leaves now was made at most: equal ages make equal bytes
GATHER = 2  # who must wait gathers for half a batch window: longer would show as latency

_ASKED, _CHANGE, _AGAIN = Urgency.ASKED, Urgency.CHANGE, Urgency.AGAIN  # an enum's attribute is slow to find


class ClosingClient(Opens, Protocol):
    """A client that can be closed."""

    async def close(self) -> None:
        """Close what it keeps open."""


@dataclass(frozen=True, slots=True)
class OutboundSettings:
    """The operator's share: `federation.*`, `presence.refresh_interval`."""

    server_name: ServerName
    batch_window_ms: int = 200
    refresh_interval_ms: int = 1_500_000
    max_transactions_per_second: int = 50
    servers: ServerLists = field(default_factory=ServerLists)


class Outbound(Service):
    """Takes outgoing effects and delivers them.

    `boot_users` is read once, at the start: who must be told again, and where. `on_transaction` is
    called after each attempt; it must not raise.
    """

    def __init__(
        self,
        clock: Clock,
        client: ClosingClient,
        decisions: Decisions,
        settings: OutboundSettings,
        random: Random,
        *,
        counters: Counters | None = None,
        boot_users: Callable[[], Iterable[tuple[ServerName, UserID]]] = tuple,
        on_transaction: Callable[[TransactionSeen], None] | None = None,
    ) -> None:
        per_second = settings.max_transactions_per_second
        self._clock = clock
        self._client = client
        self._settings = settings
        self._servers = settings.servers
        self._boot_users = boot_users
        self._tools = Tools(
            origin=settings.server_name,
            clock=clock,
            client=client,
            decisions=decisions,
            next_txn_id=_TxnIds(now_ms(clock), random).next,
            random=random,
            counters=counters or NullCounters(),
            on_transaction=on_transaction,
            wake_at=self._wake_at,
            line_up=self._line_up,
            tries=TokenBucket(per_second / TRIES_SHARE, max(1, per_second // TRIES_SHARE)),
        )
        self._lengths = Lengths(settings.server_name, settings.batch_window_ms, settings.refresh_interval_ms)
        self._senders: dict[ServerName, DestinationSender] = {}
        self._came: list[tuple[SendPush, int]] = []  # and when: not in the queues yet
        self._came_ms = 0  # when the first of it may leave
        self._turns: Turns[ServerName] = Turns(per_second, settings.batch_window_ms // GATHER)
        self._asked = TokenBucket(per_second / ASKED_SHARE, per_second)
        self._users: OrderedDict[UserID, TokenBucket] = OrderedDict()
        self._round: Round[ServerName] = Round(settings.refresh_interval_ms * ROUND)
        self._alarms: Alarms[DestinationSender] = Alarms()
        self._timer: Timer | None = None
        self._timer_ms = 0.0  # when it comes
        self._sweep_timer: Timer | None = None

    # --- service ---------------------------------------------------------------------------------

    def startService(self) -> None:
        """Send from now on, what an earlier run would have refreshed too."""
        now = now_ms(self._clock)
        for destination, user_id in self._boot_users():
            sender = self._senders.get(destination) or self._new_sender(destination)
            sender.queue.add_at_boot(user_id, now)
        self._count_refreshes()
        self._round.went(now)  # as if one had just gone: the first wait for theirs too
        Service.startService(self)
        for sender in self._senders.values():
            sender.start()
        self._set_timer()
        self._sweep_timer = self._clock.callLater(SWEEP_INTERVAL_S, self._sweep)

    def stopService(self) -> Deferred[None]:
        """Cancel what is in flight, close connections."""
        Service.stopService(self)
        for timer in (self._timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._sweep_timer = None
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        for stopped in [sender.stop() for sender in self._senders.values()]:
            await stopped
        await self._client.close()

    # --- what others call ------------------------------------------------------------------------

    def enqueue(self, effect: SendPush | QueueEffect) -> None:
        """Something is to be sent; never waits, never raises."""
        now = now_ms(self._clock)
        if isinstance(effect, SendPush):
            self._enqueue_push(effect, now)
            return
        self._take_in()
        sender = self._senders.get(effect.destination) or self._new_sender(effect.destination)
        overdrawn = isinstance(effect, SendPoll) and not self._asked.take(now)
        sender.queue.add(effect, now, overdrawn=overdrawn)
        if self._turns:
            self._let_ask((sender,), now)  # who is more urgent than all that wait must not wait as they do
            self._set_timer()
        else:
            sender.schedule()

    def seen_alive(self, origin: ServerName) -> None:
        """Something authentic came from `origin` (F:X-8, Z-20)."""
        sender = self._senders.get(origin)
        if sender is not None:
            sender.seen_alive()

    def retry(self, destination: ServerName) -> bool:
        """Try `destination` now, before all others; False where nothing was ever to be sent there."""
        self._take_in()
        sender = self._senders.get(destination)
        if sender is None:
            return False
        sender.retry()
        self._turns.ask(destination, now_ms(self._clock) + PATIENCE_MS[_ASKED])
        self._set_timer()
        return True

    def describe(self, destination: ServerName | None = None) -> dict[ServerName, DestinationStatus]:
        """How it goes with all destinations, or with one: empty where there is nothing to say."""
        self._take_in()
        if destination is None:
            return {name: sender.status() for name, sender in self._senders.items()}
        sender = self._senders.get(destination)
        return {} if sender is None else {destination: sender.status()}

    def reload(self, servers: ServerLists) -> None:
        """New server lists. Call it before the engine hears of them, so that what waits is kept."""
        self._take_in()
        self._servers = servers
        for destination, sender in self._senders.items():
            sender.permit(servers.permit(destination))

    def idle(self) -> bool:
        """Whether nothing is in flight, nor due now."""
        self._take_in()
        return all(sender.idle() for sender in self._senders.values())

    def end_windows(self, after_ms: int) -> None:
        """Nothing follows what waits now: no window that lasts longer than until then is waited for."""
        self._take_in()
        for sender in self._senders.values():
            sender.end_window(after_ms)

    def has_last_words(self, by_ms: int) -> bool:
        """Whether news is on its way anywhere, or may leave by then: not where the destination fails."""
        self._take_in()
        return any(sender.has_last_words(by_ms) for sender in self._senders.values())

    def in_flight(self) -> int:
        """How many transactions are being made or sent."""
        return sum(sender.status().state == "sending" for sender in self._senders.values())

    def queues(self) -> list[DestinationQueue]:
        """What waits for each destination, for whoever measures."""
        self._take_in()
        return [sender.queue for sender in self._senders.values()]

    # --- what came -------------------------------------------------------------------------------

    def _enqueue_push(self, push: SendPush, now: int) -> None:
        may_leave_ms = self._may_leave_ms(push, now)
        is_first = not self._came or may_leave_ms < self._came_ms
        self._came.append((push, now))
        if is_first:
            self._came_ms = may_leave_ms
            self._set_timer()
        elif len(self._came) >= MAX_CAME:
            self._take_in()
        if may_leave_ms <= now and self._turns and self._is_ahead(push, now):
            self._take_in()

    def _is_ahead(self, push: SendPush, now: int) -> bool:
        """Whether it is more urgent than all that wait for a turn."""
        first_ms = self._turns.first_ms()
        return first_ms is not None and now + PATIENCE_MS.get(push.urgency, OVERDRAWN_PATIENCE_MS) < first_ms

    def _may_leave_ms(self, push: SendPush, now: int) -> int:
        """When it may leave for the first of its destinations, 0 for now; or when it has lain for long."""
        first_ms = now + self._settings.batch_window_ms
        for destination in push.destinations:
            sender = self._senders.get(destination)
            rests_until_ms = 0 if sender is None else sender.rests_until_ms()
            if rests_until_ms <= now:
                return 0
            if rests_until_ms < first_ms:
                first_ms = rests_until_ms
        return first_ms

    def _take_in(self) -> None:
        """Put what came into the queues, and let those whose turn it may be sooner ask for it."""
        if self._came:
            self._let_ask(self._put_into_queues(), now_ms(self._clock))
            self._set_timer()

    def _put_into_queues(self) -> Iterable[DestinationSender]:
        """Whom to look at then."""
        came, self._came = self._came, []
        looking: dict[DestinationSender, None] = {}
        for push, at_ms in came:
            if push.urgency is _AGAIN:
                self._tell_again(push, at_ms)
            else:
                self._queue_push(push, at_ms, looking)
        return looking

    def _let_ask(
        self, looking: Iterable[DestinationSender], now: int, woken: Iterable[DestinationSender] = ()
    ) -> None:
        """Let those ask whose turn it may be; the most urgent first, or the others would be torn apart."""
        by_ms = [(sender.look(now), sender.destination) for sender in looking]
        by_ms += [(sender.woken(now), sender.destination) for sender in woken]
        for deadline_ms, name in sorted([(at_ms, name) for at_ms, name in by_ms if at_ms is not None]):
            self._turns.ask(name, deadline_ms)

    def _queue_push(self, push: SendPush, at_ms: int, looking: dict[DestinationSender, None]) -> None:
        user_id, urgency, senders = push.user_id, push.urgency, self._senders
        in_share = self._within_share(push, at_ms)
        news = News(urgency, at_ms + PATIENCE_MS[urgency])
        for number, destination in enumerate(push.destinations):
            if number == in_share:
                news = News(urgency, at_ms + OVERDRAWN_PATIENCE_MS)
            sender = senders.get(destination) or self._new_sender(destination)
            if sender.add_push(user_id, news):
                looking[sender] = None

    def _tell_again(self, push: SendPush, at_ms: int) -> None:
        for destination in push.destinations:
            sender = self._senders.get(destination) or self._new_sender(destination)
            sender.queue.add_again(push.user_id, at_ms)
            sender.schedule()

    def _new_sender(self, destination: ServerName) -> DestinationSender:
        sender = self._senders[destination] = DestinationSender(
            destination,
            DestinationQueue(destination, self._lengths),
            self._tools,
            running=bool(self.running),
            permitted=self._servers.permit_all or self._servers.permit(destination),
        )
        return sender

    def _within_share(self, effect: SendPush, now: int) -> int:
        """To how many of its destinations such news goes as it should, the others when there is room (Z-18).

        Either the user has spent more than one user's share, or so much is asked for at once (a room of
        thousands) that people's changes would have to wait behind it.
        """
        most = len(effect.destinations)
        if effect.urgency is _CHANGE:
            return self._share_of(effect.user_id).take_some(now, most)
        if effect.urgency is _ASKED:
            return self._asked.take_some(now, most)
        return most

    def _share_of(self, user_id: UserID) -> TokenBucket:
        bucket = self._users.get(user_id)
        if bucket is None:
            rate = self._settings.max_transactions_per_second
            bucket = self._users[user_id] = TokenBucket(rate / USER_SHARE, rate * USER_BURST_S)
            if len(self._users) > MAX_USER_BUCKETS:
                self._users.popitem(last=False)
        else:
            self._users.move_to_end(user_id)
        return bucket

    # --- whose moment it is ----------------------------------------------------------------------

    def _wake_at(self, sender: DestinationSender, at_ms: int) -> None:
        self._alarms.set(sender, at_ms)
        if self._timer is None or at_ms < self._timer_ms:
            self._set_timer()

    def _line_up(self, sender: DestinationSender, by_ms: int) -> None:
        self._round.ask(sender.destination, by_ms)

    def _next_ms(self) -> int | None:
        """When there is something to do, maybe in the past; None where there never is."""
        turn_ms = self._turns.ready_ms()
        if turn_ms is not None:
            return turn_ms  # nobody goes before: a group that gathers would be torn
        came_ms = self._came_ms if self._came else None
        moments = (came_ms, self._alarms.next_ms(), self._round.ready_ms())
        return min([at_ms for at_ms in moments if at_ms is not None], default=None)

    def _set_timer(self) -> None:
        """See to it that the timer comes when there is something to do; never later, and only then sooner."""
        next_ms = self._next_ms()
        if next_ms is None or not self.running:
            return
        if self._timer is not None:
            if self._timer_ms <= next_ms:
                return
            self._timer.cancel()
        self._timer_ms = next_ms
        # At least a whole millisecond where it is not due yet: less may round to no time at all.
        delay_ms = max(0, next_ms - now_ms(self._clock))
        self._timer = self._clock.callLater(delay_ms / 1000, self._woken)

    def _woken(self) -> None:
        """Only when all whose moment it is have asked does the most urgent get its turn."""
        now = now_ms(self._clock)
        self._timer_ms = -inf  # no other is set meanwhile
        try:
            self._let_ask(self._put_into_queues(), now, self._alarms.pop_due(now))
            self._call_round(now)
            self._give_turns()
        finally:
            self._timer = None
            self._set_timer()

    def _call_round(self, now: int) -> None:
        while (name := self._round.next(now)) is not None:
            sender = self._senders.get(name)
            deadline_ms = None if sender is None else sender.called(now)
            if deadline_ms is not None:
                self._round.went(now)
                self._turns.ask(name, deadline_ms)

    def _give_turns(self) -> None:
        now = now_ms(self._clock)
        ready_ms = self._turns.ready_ms()
        if ready_ms is None or ready_ms > now:  # before, a group that gathers would be torn
            return
        moment = now
        while (name := self._turns.next(now)) is not None:
            sender = self._senders.get(name)
            if sender is not None:
                at_ms = now_ms(self._clock)
                if at_ms - moment > MOMENT_MS:
                    moment = at_ms
                sender.go(moment)

    def _count_refreshes(self) -> None:
        self._round.count = sum(sender.queue.refreshes(MAX_USERS) for sender in self._senders.values())

    def _sweep(self) -> None:
        self._take_in()
        for destination, sender in list(self._senders.items()):
            if sender.forgettable():
                del self._senders[destination]
                self._turns.withdraw(destination)
        self._count_refreshes()
        self._sweep_timer = self._clock.callLater(SWEEP_INTERVAL_S, self._sweep)


class _TxnIds:
    """Transaction IDs that no other run, restored or cloned, will use too (F:X-1, Z-22)."""

    def __init__(self, start_ms: int, random: Random) -> None:
        self._prefix = f"fp{start_ms}{random.getrandbits(48):012x}"
        self._counter = 0

    def next(self) -> str:
        """A new one."""
        self._counter += 1
        return f"{self._prefix}.{self._counter}"
