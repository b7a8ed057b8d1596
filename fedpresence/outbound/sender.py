"""One destination: takes what waits, makes a transaction of it, sends it, learns from the answer.

Always true:
- one transaction is in flight (decision 10);
- bytes are made once the connection stands, from the newest state and by the rights of that moment;
- the same bytes are sent a second time only where it is unclear whether they arrived, and only while no
  right in them has ended (S:5);
- whatever fails, what waited still waits; only a 2xx, or a refusal that will not change, ends it.

| outcome | then |
| --- | --- |
| 2xx | delivered |
| no connection | later, rebuilt under a new id |
| no answer | later once more byte for byte, then rebuilt under a new id |
| 429 | later, rebuilt; no outage |
| 401, 408, 3xx, 5xx | later, rebuilt |
| 400, 413 | split in halves until the offender stands alone, which is set aside |
| any other | set aside |

Source: F:X-1 to X-9, Z-17, Z-20; decisions 9 to 15.
"""

from typing import Literal, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clock import now_ms
from fedpresence.debugging import debugging
from fedpresence.engine.effects import Urgency
from fedpresence.engine.events import DestinationAlive, EdusDelivered, Event
from fedpresence.engine.outgoing import Composed, Wanted
from fedpresence.engine.presence import Published
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.backoff import Backoff
from fedpresence.outbound.queue import PATIENCE_MS, DestinationQueue, News
from fedpresence.outbound.status import DestinationStatus, TransactionSeen
from fedpresence.outbound.tools import OpenLink, Tools
from fedpresence.wire.transactions import Packed, pack

_log = Logger()

MAX_USERS = 1_000  # in a transaction: twenty EDUs of fifty
TRY_PATIENCE_MS = PATIENCE_MS[Urgency.CHANGE]  # of those that fail, in their share of the budget; beyond it:
FAILING_PATIENCE_MS = 600_000  # thousands that fail would take every turn from those that do not (Z-18)
WOKEN_PATIENCE_MS = 60_000  # thousands that are back too; as any backlog
REFUSING_PATIENCE_MS = 60_000  # and who refuses costs twenty turns where others cost one (Z-17)
OUTAGE_KEPT_MS = 3_600_000  # after the last try that anything waited for: changes must not begin it anew
CONNECTING_MS = 2_000  # a connection that takes longer waits for packets that were lost
MAX_REFUSALS_IN_A_ROW = 20  # while splitting: twice what one offender among MAX_USERS can cause (Z-17)
SPLIT_STATUSES = frozenset({400, 413})
# 401: mostly it could not fetch our keys, because we were away ourselves a moment ago (as F:7.2 of Synapse).
# 408: a proxy gave up an idle connection, or a slow line, while we sent: it speaks of time, not of us.
# A redirect is such a proxy's too: to a page about maintenance, mostly.
FOR_NOW_STATUSES = frozenset({401, 408, 429})


class _Sealed(NamedTuple):
    """A transaction whose content is made; `again`: it goes out for the second time."""

    txn_id: str
    wanted: Wanted
    packed: Packed
    published: dict[UserID, Published]
    rights: int
    revision: int
    again: bool = False


class DestinationSender:
    """Delivers one destination's queue.

    Whoever puts something into the queue has it look at the clock (`look`): it says by when it should have
    its turn, or asks by `wake_at` to be woken (`woken`) when something falls due; it sends one transaction
    when it gets its turn (`go`). Where only a refresh is due it lines up for that (`line_up`), and has its
    turn after it was called (`called`). `permitted` False: it sleeps, and keeps what waits.
    """

    __slots__ = (
        "_alarms_ms",
        "_asked_by_ms",
        "_backoff",
        "_connecting_ms",
        "_in_flight",
        "_in_line",
        "_is_refusing",
        "_last_error",
        "_last_success_ms",
        "_parts",
        "_permitted",
        "_refusals",
        "_running",
        "_told_alive",
        "_tools",
        "_unclear",
        "destination",
        "queue",
    )

    def __init__(
        self,
        destination: ServerName,
        queue: DestinationQueue,
        tools: Tools,
        *,
        running: bool,
        permitted: bool,
    ) -> None:
        self.destination = destination
        self.queue = queue
        self._tools = tools
        self._running = running
        self._permitted = permitted
        self._in_line = False  # for its refresh
        self._alarms_ms: tuple[int, ...] = ()  # asked for and still to come, the earliest last
        self._asked_by_ms: int | None = None  # when it should have the turn that it asked for
        self._backoff = Backoff()
        self._parts: tuple[Wanted, ...] = ()  # of a transaction that was refused as a whole
        self._refusals = 0
        self._is_refusing = False  # it refused the last that it answered
        self._unclear: _Sealed | None = None
        self._told_alive = False
        self._connecting_ms: int | None = None  # since when, while it does
        self._in_flight: Deferred[None] | None = None
        self._last_success_ms: int | None = None
        self._last_error: str | None = None

    def start(self) -> None:
        """Send from now on."""
        self._running = True
        self.schedule()

    def stop(self) -> Deferred[None]:
        """Send no more; fires when nothing is in flight."""
        self._running = False
        stopped: Deferred[None] = Deferred()
        in_flight = self._in_flight
        if in_flight is None:
            stopped.callback(None)
        else:
            in_flight.addBoth(lambda _: stopped.callback(None))
            in_flight.cancel()
        return stopped

    # --- what happens to it ----------------------------------------------------------------------

    def add_push(self, user_id: UserID, news: News) -> bool:
        """News of a user waits; whether to `look`: not where a turn in time was asked for."""
        self.queue.add_push(user_id, news)
        return self._asked_by_ms is None or news.deadline_ms < self._asked_by_ms

    def seen_alive(self) -> None:
        """A signed request came from there (F:X-8)."""
        now = now_ms(self._tools.clock)
        if self._backoff.failing_since_ms is not None and not self._told_alive:
            self._told_alive = True
            self.queue.wake(now)
            self._submit(DestinationAlive(self.destination))
        in_vain = self._is_connecting_in_vain(now)
        if self._backoff.wake(now, trying=in_vain):
            if in_vain and self._in_flight is not None:
                self._in_flight.cancel()
            self.schedule()

    def retry(self) -> None:
        """An operator wants a try now."""
        now = now_ms(self._tools.clock)
        self._backoff.retry_now(now)
        self.queue.wake(now)
        if self._is_connecting_in_vain(now) and self._in_flight is not None:
            self._in_flight.cancel()
        self.schedule()

    def permit(self, permitted: bool) -> None:
        """Whether presence may be exchanged with this destination (Z-9)."""
        self._permitted = permitted
        if not permitted:
            self._unclear = None  # bytes of a right that has ended
            self._parts = ()
        self.schedule()

    def schedule(self) -> None:
        """Something changed: be woken when something falls due."""
        if self._in_flight is None and self._running:
            self._wake_by(self.next_due_ms())

    def woken(self, now_ms: int) -> int | None:
        """An alarm came: as `look`."""
        self._alarms_ms = self._alarms_ms[:-1]
        return self.look(now_ms)

    def look(self, now_ms: int) -> int | None:
        """By when it should have a turn that it has not asked for yet; None where it need have none now."""
        if self._in_flight is not None or not self._running:
            return None
        due_ms = self.next_due_ms()
        if due_ms is None or due_ms > now_ms:
            self._wake_by(due_ms)
            return None
        by_ms = self._refresh_alone_by_ms(now_ms)
        if by_ms is None:
            return self._ask(now_ms)
        self._in_line = True
        self._tools.line_up(self, by_ms)
        self._wake_by(self.next_due_ms())
        return None

    def _wake_by(self, due_ms: int | None) -> None:
        """An alarm that comes before that costs next to nothing; taking one back would cost more."""
        if due_ms is not None and (not self._alarms_ms or due_ms < self._alarms_ms[-1]):
            self._alarms_ms = (*self._alarms_ms, due_ms)
            self._tools.wake_at(self, due_ms)

    def called(self, now_ms: int) -> int | None:
        """Its refresh may go: by when it should have a turn; None where it need not go any more."""
        if not self._in_line:
            return None
        self._in_line = False
        if self._in_flight is None and self._running:
            self.queue.prune(now_ms, self._needs_refresh)
            due_ms = self.next_due_ms()
            if due_ms is not None and due_ms <= now_ms and self._refresh_alone_by_ms(now_ms) is not None:
                return self._ask(now_ms)
        self.schedule()
        return None

    # --- questions -------------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """When it will want a turn; None where nothing waits, or it sleeps."""
        if not self._permitted:
            return None
        if self._parts or self._unclear is not None:
            due_ms: int | None = 0
        elif self._in_line:
            due_ms = self.queue.news_due_ms()
        else:
            due_ms = self.queue.next_due_ms()
        next_try_ms = self._backoff.next_try_ms
        return next_try_ms if due_ms is not None and due_ms < next_try_ms else due_ms

    def rests_until_ms(self) -> int:
        """Before then nothing leaves, whatever comes. All are asked for each change, hence no `max`."""
        window_end_ms, next_try_ms = self.queue.window_end_ms, self._backoff.next_try_ms
        return window_end_ms if window_end_ms > next_try_ms else next_try_ms

    def idle(self) -> bool:
        """Whether nothing is in flight, nor due now."""
        due_ms = self.next_due_ms()
        return self._in_flight is None and (due_ms is None or due_ms > now_ms(self._tools.clock))

    def end_window(self, after_ms: int) -> None:
        """Where the batch window ends after that, it ends now."""
        if self.queue.window_end_ms > after_ms:
            self.queue.window_end_ms = 0
            self.schedule()

    def has_last_words(self, by_ms: int) -> bool:
        """Whether news is on its way, or may leave by then: not where the destination fails."""
        is_away = self._backoff.failing_since_ms is not None
        if self._in_flight is not None:
            return not is_away or self._connecting_ms is None
        if is_away or not self.queue.pending_users:
            return False
        due_ms = self.next_due_ms()
        return due_ms is not None and due_ms <= by_ms

    def forgettable(self) -> bool:
        """Whether a new sender would do as well as this one."""
        kept_ms = 0 if self._backoff.failing_since_ms is None else OUTAGE_KEPT_MS
        return (
            self._in_flight is None
            and not self._parts
            and self._unclear is None
            and self._backoff.next_try_ms + kept_ms <= now_ms(self._tools.clock)
            and self.queue.empty()
        )

    def status(self) -> DestinationStatus:
        """As the admin API shows it."""
        failing = self._backoff.failing_since_ms
        waits = self.queue.pending_users or self.queue.owed
        next_try_ms = self._backoff.next_try_ms
        state: Literal["idle", "sending", "waiting", "failing"] = "waiting" if waits else "idle"
        if self._in_flight is not None:
            state = "sending"
        elif failing is not None:
            state = "failing"
        return DestinationStatus(
            state=state,
            pending_users=self.queue.pending_users,
            owed=self.queue.owed,
            failing_since_ts=failing,
            next_try_ts=next_try_ms
            if failing is not None or next_try_ms > now_ms(self._tools.clock)
            else None,
            last_success_ts=self._last_success_ms,
            last_error=self._last_error,
        )

    # --- sending ---------------------------------------------------------------------------------

    def go(self, now: int) -> None:
        """Send one transaction, if there still is something to send; `now` may be some milliseconds ago."""
        self._asked_by_ms = None
        if self._in_flight is not None or not self._running:
            return
        try:
            in_flight = self._deliver(now)
        except Exception:
            in_flight = fail()  # our own fault: it lands like one that comes later
        if in_flight is None:
            self.schedule()
            return
        self._in_flight = in_flight
        in_flight.addBoth(self._landed)

    def _landed(self, result: Failure | None) -> None:
        self._in_flight = None
        if result is not None and not result.check(CancelledError):
            self._log_bug(result)
        self.schedule()

    def _deliver(self, now: int) -> Deferred[None] | None:
        """Mostly a connection stands and no turn runs: then nothing is waited for but the answer."""
        self.queue.prune(now, self._needs_refresh)
        due_ms = self.next_due_ms()
        if due_ms is None or due_ms > now:
            return None
        link = self._tools.client.kept(self.destination)
        if link is None:
            return ensureDeferred(self._connect(now))
        settling = self._tools.decisions.settling()
        return self._send(link, now) if settling is None else ensureDeferred(self._settle(link, settling))

    async def _connect(self, now: int) -> None:
        self._connecting_ms = now
        try:
            link = await self._tools.client.open(self.destination)
        except DeliveryFailed as error:
            self._parts = ()
            self._try_later(error)
            return
        finally:
            self._connecting_ms = None
        await self._settle(link, self._tools.decisions.settling())

    async def _settle(self, link: OpenLink, settling: Deferred[None] | None) -> None:
        """Send once all that was decided is committed."""
        try:
            if settling is not None:
                await settling
        except BaseException:
            link.give_back()
            raise
        sending = self._send(link, now_ms(self._tools.clock))
        if sending is not None:
            await sending

    def _send(self, link: OpenLink, now: int) -> Deferred[None] | None:
        sealed = None
        try:
            sealed = self._seal(now)
        finally:
            if sealed is None:
                link.give_back()
        if sealed is None:
            return None
        sending = link.send_transaction(sealed.txn_id, sealed.packed.body)
        about = (sealed, now)
        return sending.addCallbacks(self._delivered, self._failed, about, errbackArgs=about)

    def _seal(self, now: int) -> _Sealed | None:
        """The transaction to send now; None where nothing is left to say, or nothing may be said."""
        if not self._permitted or not self._running:
            return None  # while we waited
        unclear, self._unclear = self._unclear, None
        decisions = self._tools.decisions
        if (
            unclear is not None
            and unclear.revision == self.queue.revision
            and unclear.rights == decisions.rights(self.destination)
        ):
            return unclear
        if self._parts:
            wanted, *parts = self._parts
            self._parts = tuple(parts)
        else:
            wanted = self.queue.take(now, MAX_USERS)
        composed = decisions.compose(self.destination, wanted, now)
        lost: list[UserID] = []
        if len(composed.published) < len(wanted.users):
            lost = [user for user in wanted.users if user not in composed.published]
        if lost or composed.stale_owed:
            self.queue.withdraw(lost, composed.stale_owed, now)
        if wanted.owed and (unanswered := {*wanted.owed}.difference(composed.owed, composed.stale_owed)):
            self.queue.set_aside((), unanswered, now)
        same = self.queue.unchanged(composed.published, now)
        if same:
            self.queue.settled(same, now)
            composed = _without(composed, same)
        packed = pack(composed, self._tools.origin, now)
        if not packed.edu_count:
            return None
        txn_id = self._tools.next_txn_id()
        return _Sealed(txn_id, wanted, packed, composed.published, composed.rights, self.queue.revision)

    def _delivered(self, status: int, sealed: _Sealed, sent_ms: int) -> None:
        now = now_ms(self._tools.clock)
        self._report(sealed, sent_ms, now, status)
        packed = sealed.packed
        self.queue.delivered(packed.users, packed.owed, sealed.published, now)
        self._refusals = 0
        self._is_refusing = False
        self._answered(now)
        self._last_success_ms = now
        self._last_error = None
        self._tools.counters.count("outbound_pushes", len(packed.users))
        if packed.owed:
            self._submit(EdusDelivered(self.destination, packed.owed))

    def _failed(self, failure: Failure, sealed: _Sealed, sent_ms: int) -> Failure | None:
        error = failure.value
        if isinstance(error, DeliveryFailed):
            self._report(sealed, sent_ms, now_ms(self._tools.clock), error.status)
            self._not_delivered(sealed, error)
            return None
        if isinstance(error, CancelledError):
            self._report(sealed, sent_ms, now_ms(self._tools.clock), None)
        return failure

    def _answered(self, now: int) -> None:
        """The destination is there, whatever it says."""
        if self._backoff.failing_since_ms is not None:
            _log.info(
                "{destination} takes transactions again after {delay_ms} ms",
                destination=self.destination,
                delay_ms=now - self._backoff.failing_since_ms,
            )
            self.queue.wake(now)
            if not self._told_alive:
                self._submit(DestinationAlive(self.destination))
        self._told_alive = False
        self._backoff.succeeded()

    def _not_delivered(self, sealed: _Sealed, error: DeliveryFailed) -> None:
        packed = sealed.packed
        if error.heard:
            self.queue.failed(packed.users)
        if error.status is None:
            if error.heard and self._permitted and not sealed.again:
                self._unclear = sealed._replace(again=True)
            self._parts = ()
            self._try_later(error)
        elif error.status in FOR_NOW_STATUSES or not 400 <= error.status < 500:
            self._parts = ()
            self._try_later(error)
        else:
            self._refused(sealed, error)

    def _try_later(self, error: DeliveryFailed) -> None:
        now = now_ms(self._tools.clock)
        outage = error.status != 429
        if outage and self._backoff.failing_since_ms is None:
            _log.warn(
                "{destination} does not take transactions: {reason}",
                destination=self.destination,
                reason=error.reason,
            )
        self._last_error = error.reason
        jitter = self._tools.random.random()
        self._backoff.failed(now, jitter, retry_after_ms=error.retry_after_ms, outage=outage)

    def _refused(self, sealed: _Sealed, error: DeliveryFailed) -> None:
        """It will not take this, now or later: find what it does not like (Z-17), or set all aside (X-6)."""
        now = now_ms(self._tools.clock)
        self._answered(now)
        self._last_error = error.reason
        self._refusals += 1
        self._is_refusing = True
        halves = _halves(sealed) if error.status in SPLIT_STATUSES else None
        if halves is not None and self._refusals < MAX_REFUSALS_IN_A_ROW:
            self._parts = (*halves, *self._parts)
            return
        aside = [Wanted(sealed.packed.users, sealed.packed.owed)]
        if self._refusals >= MAX_REFUSALS_IN_A_ROW:
            aside.extend(self._parts)
            self._parts = ()
        for part in aside:
            self.queue.set_aside(part.users, part.owed, now)
        if not self._parts:
            self._refusals = 0
        _log.warn(
            "{destination} refused {txn_id}: {reason}; {users} pushes and {edus} list EDUs are set aside",
            destination=self.destination,
            txn_id=sealed.txn_id,
            reason=error.reason,
            users=sum(len(part.users) for part in aside),
            edus=sum(len(part.owed) for part in aside),
        )

    def _report(self, sealed: _Sealed, sent_ms: int, now: int, status: int | None) -> None:
        outcome = "unanswered" if status is None else f"{status // 100}xx"
        self._tools.counters.count("outbound_transactions", outcome=outcome)
        if debugging.is_read:
            _log.debug(
                "{destination} {txn_id}: {edus} EDUs, {status} after {delay_ms} ms",
                destination=self.destination,
                txn_id=sealed.txn_id,
                edus=sealed.packed.edu_count,
                status=status,
                delay_ms=now - sent_ms,
            )
        if self._tools.on_transaction is not None:
            answered_ms, body = None if status is None else now, sealed.packed.body
            self._tools.on_transaction(
                TransactionSeen(self.destination, sealed.txn_id, sent_ms, answered_ms, status, body)
            )

    # --- inside ----------------------------------------------------------------------------------

    def _is_connecting_in_vain(self, now: int) -> bool:
        """Whether a try is under way that began while the destination was away, as it seems."""
        if self._connecting_ms is None:
            return False
        return self._backoff.failing_since_ms is not None or now - self._connecting_ms >= CONNECTING_MS

    def _needs_refresh(self, user_id: UserID) -> bool:
        return self._tools.decisions.needs_refresh(self.destination, user_id)

    def _refresh_alone_by_ms(self, now: int) -> int | None:
        """By when it must go, where nothing is due but a refresh, and nothing is wrong; None otherwise."""
        if self._parts or self._unclear is not None or self._backoff.failing_since_ms is not None:
            return None
        news_ms = self.queue.news_due_ms()
        return None if news_ms is not None and news_ms <= now else self.queue.refresh_by_ms()

    def _submit(self, event: Event) -> None:
        self._tools.decisions.submit(event).addErrback(_log_not_submitted)

    def _log_bug(self, failure: Failure) -> None:
        _log.failure("sending to {destination} failed", failure, destination=self.destination)
        self._try_later(DeliveryFailed(self.destination, "our own fault, see the log"))

    def _ask(self, now: int) -> int | None:
        """By when it should have its turn; None where it has asked for one as early.

        What waits for one that fails is old, and must not go first.
        """
        asked_by_ms = self._asked_by_ms
        if self._is_refusing:
            deadline_ms = max(self.queue.deadline_ms(now), now + REFUSING_PATIENCE_MS)
        elif self._backoff.is_retrying:
            deadline_ms = now + TRY_PATIENCE_MS
            if (asked_by_ms is None or asked_by_ms > deadline_ms) and not self._tools.tries.take(now):
                is_away = self._backoff.failing_since_ms is not None and not self._backoff.is_woken
                deadline_ms = now + (FAILING_PATIENCE_MS if is_away else WOKEN_PATIENCE_MS)
        else:
            deadline_ms = self.queue.deadline_ms(now)
        if asked_by_ms is not None and asked_by_ms <= deadline_ms:
            return None
        self._asked_by_ms = deadline_ms
        return deadline_ms


def _without(composed: Composed, users: frozenset[UserID]) -> Composed:
    return composed._replace(pushes=tuple([push for push in composed.pushes if push.user_id not in users]))


def _halves(sealed: _Sealed) -> list[Wanted] | None:
    """What to try instead of a refused transaction; None where its offender stands alone already.

    What is tried once is not tried again: it goes first, and may have been the offence.
    """
    packed, wanted = sealed.packed, sealed.wanted
    if packed.polls or packed.unpolls or wanted.drops:
        return [Wanted(packed.users, packed.owed)] if packed.users or packed.owed else []
    count = len(packed.owed) + len(packed.users)
    if count <= 1:
        return None
    middle = count // 2
    owed, users = packed.owed[:middle], packed.users[: max(0, middle - len(packed.owed))]
    return [Wanted(users, owed), Wanted(packed.users[len(users) :], packed.owed[len(owed) :])]


def _log_not_submitted(failure: Failure) -> None:
    _log.failure("an event of a destination was not taken", failure)
