"""Everything that leaves for other servers: a sender for each destination, and one budget for all.

Always true:
- a destination has a sender only while something waits, fails, or will need a refresh there;
- destinations that the server lists deny are asleep: what waits is kept, nothing is sent (Z-9);
- constructing opens nothing; when `stopService` has fired, nothing is in flight.

Source: decisions 9 to 15; Z-18, Z-22; S:T-28.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from twisted.application.service import MultiService
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
USER_BURST_S = 10  # and at once as many pushes as the whole budget has in ten seconds
MAX_USER_BUCKETS = 10_000
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


class Outbound(MultiService):
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
        MultiService.__init__(self)
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
        )
        self._senders: dict[ServerName, DestinationSender] = {}
        self._turns: Turns[ServerName] = Turns(
            settings.max_transactions_per_second, settings.batch_window_ms // GATHER
        )
        self._asked = TokenBucket(settings.max_transactions_per_second, settings.max_transactions_per_second)
        self._users: OrderedDict[UserID, TokenBucket] = OrderedDict()
        self._turn_timer: Timer | None = None
        self._round: Round[ServerName] = Round(settings.refresh_interval_ms * ROUND)
        self._round_timer: Timer | None = None
        self._round_ms = 0  # when it comes
        self._alarms: Alarms[DestinationSender] = Alarms()
        self._alarm_timer: Timer | None = None
        self._alarm_ms = 0  # when it comes
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
        MultiService.startService(self)
        self._sweep_timer = self._clock.callLater(SWEEP_INTERVAL_S, self._sweep)

    def stopService(self) -> Deferred[None]:
        """Cancel what is in flight, close connections."""
        for timer in (self._turn_timer, self._round_timer, self._alarm_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self._turn_timer = self._round_timer = self._alarm_timer = self._sweep_timer = None
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        await MultiService.stopService(self)
        await self._client.close()

    # --- what others call ------------------------------------------------------------------------

    def enqueue(self, effect: SendPush | QueueEffect) -> None:
        """Something is to be sent; never waits, never raises."""
        now = now_ms(self._clock)
        if isinstance(effect, SendPush):
            self._enqueue_push(effect, now)
            return
        sender = self._senders.get(effect.destination) or self._new_sender(effect.destination)
        overdrawn = isinstance(effect, SendPoll) and not self._asked.take(now)
        sender.add(effect, now, overdrawn=overdrawn)

    def seen_alive(self, origin: ServerName) -> None:
        """Something authentic came from `origin` (F:X-8, Z-20)."""
        sender = self._senders.get(origin)
        if sender is not None:
            sender.seen_alive()

    def retry(self, destination: ServerName) -> bool:
        """Try `destination` now; False where nothing was ever to be sent there."""
        sender = self._senders.get(destination)
        if sender is None:
            return False
        sender.retry()
        return True

    def describe(self, destination: ServerName | None = None) -> dict[ServerName, DestinationStatus]:
        """How it goes with all destinations, or with one: empty where there is nothing to say."""
        if destination is None:
            return {name: sender.status() for name, sender in self._senders.items()}
        sender = self._senders.get(destination)
        return {} if sender is None else {destination: sender.status()}

    def reload(self, servers: ServerLists) -> None:
        """New server lists. Call it before the engine hears of them, so that what waits is kept."""
        self._servers = servers
        for destination, sender in self._senders.items():
            sender.permit(servers.permit(destination))

    def idle(self) -> bool:
        """Whether nothing is in flight, nor due now."""
        return all(sender.idle() for sender in self._senders.values())

    def in_flight(self) -> int:
        """How many transactions are being made or sent."""
        return sum(sender.status().state == "sending" for sender in self._senders.values())

    # --- inside ----------------------------------------------------------------------------------

    def _enqueue_push(self, effect: SendPush, now: int) -> None:
        user_id, urgency = effect.user_id, effect.urgency
        if urgency is _AGAIN:
            for destination in effect.destinations:
                (self._senders.get(destination) or self._new_sender(destination)).add_again(user_id, now)
            return
        in_share = self._within_share(effect, now)
        deadline_ms, senders = now + PATIENCE_MS[urgency], self._senders
        for number, destination in enumerate(effect.destinations):
            if number == in_share:
                deadline_ms = now + OVERDRAWN_PATIENCE_MS
            sender = senders.get(destination) or self._new_sender(destination)
            sender.add_push(user_id, urgency, now, deadline_ms)

    def _new_sender(self, destination: ServerName) -> DestinationSender:
        queue = DestinationQueue(
            self._settings.server_name,
            destination,
            batch_window_ms=self._settings.batch_window_ms,
            refresh_interval_ms=self._settings.refresh_interval_ms,
        )
        permitted = self._servers.permit(destination)
        sender = DestinationSender(
            destination, queue, self._tools, self._wake_at, self._line_up, permitted=permitted
        )
        self._senders[destination] = sender
        MultiService.addService(self, sender)
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

    def _wake_at(self, sender: DestinationSender, at_ms: int) -> None:
        self._alarms.set(sender, at_ms)
        self._set_alarm_timer()

    def _set_alarm_timer(self) -> None:
        """See to it that the timer comes with the first alarm; never later, and only then sooner."""
        at_ms = self._alarms.next_ms()
        if at_ms is None or not self.running:
            return
        if self._alarm_timer is not None:
            if self._alarm_ms <= at_ms:
                return
            self._alarm_timer.cancel()
        self._alarm_ms = at_ms
        # At least a whole millisecond where it is not due yet: less may round to no time at all.
        delay_ms = max(0, at_ms - now_ms(self._clock))
        self._alarm_timer = self._clock.callLater(delay_ms / 1000, self._alarm_came)

    def _alarm_came(self) -> None:
        """Wake whose moment it is; only when all have asked does the most urgent get its turn."""
        self._alarm_timer = None
        now = now_ms(self._clock)
        for sender in self._alarms.pop_due(now):
            deadline_ms = sender.look(now)
            if deadline_ms is not None:
                self._turns.ask(sender.destination, deadline_ms)
        self._give_turns()
        self._set_alarm_timer()
        self._set_round_timer()

    def _line_up(self, sender: DestinationSender, by_ms: int) -> None:
        self._round.ask(sender.destination, by_ms)

    def _set_round_timer(self) -> None:
        """See to it that the next refresh is called when it is its turn, or sooner: then nobody is."""
        ready_ms = self._round.ready_ms()
        if ready_ms is None or not self.running:
            return
        if self._round_timer is not None:
            if self._round_ms <= ready_ms:
                return
            self._round_timer.cancel()
        self._round_ms = ready_ms
        delay_ms = max(0, ready_ms - now_ms(self._clock))
        self._round_timer = self._clock.callLater(delay_ms / 1000, self._round_came)

    def _round_came(self) -> None:
        self._round_timer = None
        now = now_ms(self._clock)
        while (name := self._round.next(now)) is not None:
            sender = self._senders.get(name)
            deadline_ms = None if sender is None else sender.called(now)
            if deadline_ms is not None:
                self._round.went(now)
                self._turns.ask(name, deadline_ms)
        self._give_turns()
        self._set_round_timer()

    def _count_refreshes(self) -> None:
        self._round.count = sum(sender.queue.refreshes(MAX_USERS) for sender in self._senders.values())

    def _give_turns(self) -> None:
        now = now_ms(self._clock)
        ready_ms = self._turns.ready_ms()
        if ready_ms is not None and ready_ms <= now:  # before, a group that gathers would be torn
            self._tools.burst.at_ms = now
            while (name := self._turns.next(now)) is not None:
                sender = self._senders.get(name)
                if sender is not None:
                    sender.go()
            self._tools.burst.at_ms = None
            ready_ms = self._turns.ready_ms()
        if ready_ms is not None and self._turn_timer is None and self.running:
            delay_s = max(0.001, ready_ms / 1000 - self._clock.seconds())
            self._turn_timer = self._clock.callLater(delay_s, self._turn_came)

    def _turn_came(self) -> None:
        self._turn_timer = None
        self._give_turns()

    def _sweep(self) -> None:
        for destination, sender in list(self._senders.items()):
            if sender.forgettable():
                del self._senders[destination]
                self._turns.withdraw(destination)
                MultiService.removeService(self, sender)
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
