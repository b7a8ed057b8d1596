"""Which transactions were taken: the same one again changes nothing, and old ones count no more.

Source: federation.md R-1; security.md Z-6.
"""

from collections import OrderedDict

from fedpresence.engine.effects import ForgetAnswer, SaveAnswer
from fedpresence.engine.settings import DAY_MS, HOUR_MS
from fedpresence.engine.world import Turn
from fedpresence.ids import ServerName

KEEP_MS = DAY_MS
MAX_PER_ORIGIN = 1_000
MAX_ANSWERS = 200_000  # of all origins together: somebody may own any number of names
MAX_FORGOTTEN = 100  # of these with one transaction
MAX_ORIGINS = 100_000  # whose newest time is remembered; the one silent for longest gives way
MAX_LATE_MS = DAY_MS  # behind the newest of its origin: its EDUs are skipped


class Answers:
    """Transaction IDs by origin, for a day and at most a thousand each.

    Where there are too many in all, those give way whose origin has been silent for longest.
    """

    def __init__(self, max_origins: int = MAX_ORIGINS, max_answers: int = MAX_ANSWERS) -> None:
        self._max_origins = max_origins
        self._max_answers = max_answers
        self._taken: OrderedDict[ServerName, dict[str, int]] = OrderedDict()  # silent for longest first
        self._number = 0  # of transaction IDs
        self._newest_ts: OrderedDict[ServerName, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._taken)

    def has(self, origin: ServerName, txn_id: str) -> bool:
        """Whether this transaction was taken already."""
        return txn_id in self._taken.get(origin, ())

    def take(self, turn: Turn, origin: ServerName, txn_id: str, origin_server_ts: int) -> bool:
        """Remember a transaction; whether it is recent enough for its EDUs to count."""
        newest = self._newest_ts.pop(origin, 0)
        is_recent = origin_server_ts >= newest - MAX_LATE_MS
        clamped = min(origin_server_ts, turn.now_ms + HOUR_MS)
        self._newest_ts[origin] = max(newest, clamped)
        if len(self._newest_ts) > self._max_origins:
            self._newest_ts.popitem(last=False)
        self._remember(origin, txn_id, turn.now_ms)
        turn.add(SaveAnswer(origin, txn_id, turn.now_ms, self._newest_ts[origin]))
        self._forget_old(turn, origin)
        for _ in range(min(self._number - self._max_answers, MAX_FORGOTTEN)):
            self._forget_oldest(turn, next(iter(self._taken)))
        return is_recent

    def sweep(self, turn: Turn) -> None:
        """Forget what is older than a day, of origins that fell silent too."""
        for origin in list(self._taken):
            self._forget_old(turn, origin)

    def restore(self, answer: SaveAnswer, now_ms: int) -> None:
        """A stored answer; oldest first."""
        self._remember(answer.origin, answer.txn_id, min(answer.at_ms, now_ms))

    def restore_newest(self, origin: ServerName, origin_server_ts: int, now_ms: int) -> None:
        """The newest time of an origin."""
        self._newest_ts[origin] = min(origin_server_ts, now_ms + HOUR_MS)

    def _remember(self, origin: ServerName, txn_id: str, at_ms: int) -> None:
        taken = self._taken.setdefault(origin, {})
        self._number += txn_id not in taken
        taken[txn_id] = at_ms
        self._taken.move_to_end(origin)

    def _forget_old(self, turn: Turn, origin: ServerName) -> None:
        taken = self._taken[origin]
        while taken and (turn.now_ms - next(iter(taken.values())) > KEEP_MS or len(taken) > MAX_PER_ORIGIN):
            self._forget_oldest(turn, origin)

    def _forget_oldest(self, turn: Turn, origin: ServerName) -> None:
        taken = self._taken[origin]
        oldest = next(iter(taken))
        del taken[oldest]
        self._number -= 1
        turn.add(ForgetAnswer(origin, oldest))
        if not taken:
            del self._taken[origin]
