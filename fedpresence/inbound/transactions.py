"""Verified transactions to the engine: those of one origin one at a time, each at most once at a time.

Always true:
- up to 5 transactions of an origin wait behind the one in progress, more get 429 (F:7.1);
- the same transaction again while it is in progress waits for that result (F:R-2); later the engine knows
  it (F:R-1);
- a client that goes away does not end what it began;
- an EDU that we skip is counted and changes nothing for the others (F:R-3).

Source: F:7.1, F:7.3.
"""

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clock import Clock, now_ms
from fedpresence.counters import Counters
from fedpresence.engine.events import ListEduReceived, PushesReceived, TransactionReceived
from fedpresence.engine.subscription import EduKind
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.shared import Shared
from fedpresence.wire.edus import PRESENCE
from fedpresence.wire.transactions import ReceivedTransaction, decode_transaction

_log = Logger()

MAX_QUEUED = 5  # per origin, behind the one in progress: F:7.1
QUEUE_RETRY_MS = 1_000  # a transaction takes milliseconds
MAX_SKIPPED_LOGGED = 5  # per transaction
EDU_TYPES = frozenset({PRESENCE, *(kind.value for kind in EduKind)})

Submit = Callable[[TransactionReceived], Deferred[None]]


class Transactions:
    """Where transactions go once their origin is proven."""

    def __init__(self, submit: Submit, limits: OriginLimits, clock: Clock, counters: Counters) -> None:
        self._submit = submit
        self._limits = limits
        self._clock = clock
        self._counters = counters
        self._running: dict[tuple[ServerName, str], Shared[None]] = {}
        self._queues: dict[ServerName, deque[Deferred[None]]] = {}  # of origins with one in progress
        self._stopped = False

    async def receive(self, origin: ServerName, txn_id: str, body: object, size: int) -> None:
        """Return once the engine has taken the transaction, and what must not be lost is committed.

        BadRequest: 429 where the origin sends too much, 400 or 403 where the envelope is wrong.
        """
        now = now_ms(self._clock)
        self._limits.take_bytes(origin, size, now)
        running = self._running.get((origin, txn_id))
        if running is None:
            work = self._begin(origin, txn_id, decode_transaction(body, origin), now)
            if work.called:  # mostly: there was nothing to wait for
                await work
                return
            running = self._running[origin, txn_id] = Shared(work)
            work.addBoth(lambda _: self._running.pop((origin, txn_id), None))
        await running.wait()

    def stop(self) -> Deferred[None]:
        """Take no more; fires when those in progress are done."""
        self._stopped = True
        ended = DeferredList([running.wait() for running in self._running.values()], consumeErrors=True)
        return ended.addCallback(lambda _: None)

    def _begin(
        self, origin: ServerName, txn_id: str, transaction: ReceivedTransaction, now: int
    ) -> Deferred[None]:
        if self._stopped:
            raise BadRequest("M_UNKNOWN", "Stopping", status=503)
        queue = self._queues.get(origin)
        if queue is not None and len(queue) >= MAX_QUEUED:
            raise BadRequest(
                "M_LIMIT_EXCEEDED",
                "Too many concurrent transactions",
                status=429,
                retry_after_ms=QUEUE_RETRY_MS,
            )
        self._limits.take_entries(origin, _entries(transaction), now)
        event = TransactionReceived(origin, txn_id, transaction.origin_server_ts, transaction.edus)
        if queue is None:
            self._queues[origin] = deque()
            work = self._submit(event)
        else:
            work = Deferred()
            queue.append(work)
            work.addCallback(lambda _: self._submit(event))
        taken = (origin, txn_id, transaction)
        return work.addCallbacks(self._taken, self._failed, callbackArgs=taken, errbackArgs=(origin,))

    def _failed(self, failure: Failure, origin: ServerName) -> Failure:
        self._next_turn(origin)
        return failure

    def _taken(self, _: None, origin: ServerName, txn_id: str, transaction: ReceivedTransaction) -> None:
        self._next_turn(origin)
        self._count(origin, transaction)
        _log.debug(
            "{origin} sent {txn_id!r}: {edus} EDUs, {skipped} skipped, {pdus} PDUs, {delay_ms} ms old",
            origin=origin,
            txn_id=txn_id,
            edus=transaction.edu_count,
            skipped=len(transaction.skipped),
            pdus=transaction.pdu_count,
            delay_ms=now_ms(self._clock) - transaction.origin_server_ts,
        )

    def _next_turn(self, origin: ServerName) -> None:
        queue = self._queues[origin]
        if queue:
            queue.popleft().callback(None)
        else:
            del self._queues[origin]

    def _count(self, origin: ServerName, transaction: ReceivedTransaction) -> None:
        amounts: dict[str, int] = {}
        for edu in transaction.edus:
            edu_type = edu.kind.value if isinstance(edu, ListEduReceived) else PRESENCE
            amount = len(edu.pushes) if isinstance(edu, PushesReceived) else 1
            amounts[edu_type] = amounts.get(edu_type, 0) + amount
        for edu_type, amount in amounts.items():
            self._counters.count("inbound_edus", amount, edu_type=edu_type, outcome="received")
        for skipped in transaction.skipped:
            edu_type = skipped.edu_type if skipped.edu_type in EDU_TYPES else "other"
            self._counters.count("inbound_edus", edu_type=edu_type, outcome="skipped")
        for skipped in transaction.skipped[:MAX_SKIPPED_LOGGED]:
            _log.debug(
                "{origin}: {edu_type!r} skipped: {reason}",
                origin=origin,
                edu_type=skipped.edu_type[:100],
                reason=skipped.reason[:200],
            )


def _entries(transaction: ReceivedTransaction) -> int:
    """What `limits.origin_entries` counts: users, not EDUs, for one `m.presence` can hold thousands."""
    entries = len(transaction.skipped)
    for edu in transaction.edus:
        if isinstance(edu, PushesReceived):
            entries += len(edu.pushes)
        else:
            entries += 1 if isinstance(edu, ListEduReceived) else len(edu.user_ids)
    return entries
