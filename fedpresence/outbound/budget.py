"""How much may leave: token buckets, and whose turn is next when more is due than may go.

Always true:
- over any length of time no more is granted than the rate allows, plus one burst;
- of those who ask, the one with the earliest deadline goes first: urgency grows with waiting, so
  nobody is starved (Z-18).

Source: decisions 12 and 15.
"""

import heapq
from collections.abc import Hashable
from math import ceil, floor
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)

LARGEST = 5  # a group, in what `gather_ms` grants
MOST_GATHER_MS = 100  # so no group is more than half of what the bucket holds: it would wait in vain
_ROUNDING = 1e-6  # of a token: sums of floats differ in their last digits


class TokenBucket:
    """`per_second` on average and `burst` at once; full in the beginning. One number of state."""

    __slots__ = ("_empty_at_ms", "_headroom_ms", "_interval_ms")

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval_ms = 1000 / per_second
        self._headroom_ms = (burst - 1) * self._interval_ms
        self._empty_at_ms = 0.0  # when the bucket would be full again, as in GCRA

    def ready_ms(self, tokens: int = 1) -> int:
        """The first moment at which `take` succeeds so many times; it may lie in the past."""
        return ceil(self._empty_at_ms - self._headroom_ms + (tokens - 1) * self._interval_ms)

    def take(self, now_ms: int) -> bool:
        """Draw one token, if there is one."""
        if now_ms < self._empty_at_ms - self._headroom_ms:
            return False
        self._empty_at_ms = max(self._empty_at_ms, now_ms) + self._interval_ms
        return True

    def take_some(self, now_ms: int, most: int) -> int:
        """Draw at most so many tokens, as `take` would one by one: how many there were."""
        empty_at_ms = max(self._empty_at_ms, now_ms)
        intervals = (now_ms + self._headroom_ms - empty_at_ms) / self._interval_ms
        taken = max(0, min(most, floor(intervals + _ROUNDING) + 1))
        if taken:
            self._empty_at_ms = empty_at_ms + taken * self._interval_ms
        return taken

    def reserve(self, now_ms: int) -> int:
        """Draw one token that may be there only later: when it is; those who wait get theirs in order."""
        at_ms = max(now_ms, self.ready_ms())
        self._empty_at_ms = max(self._empty_at_ms, at_ms) + self._interval_ms
        return at_ms


class Turns(Generic[N]):
    """Who may send a transaction now: all destinations share one bucket, the earliest deadline wins.

    Where more wait than may go, they go in groups: a group shares the bytes of what it says, and wakes the
    daemon once. All that wait are one group, or several of about the same size, of at most what five times
    `gather_ms` grant: nobody's share gets smaller by it, and turns come as regularly as one by one. Whoever
    is more urgent than all that wait goes in a smaller group, of what `gather_ms` grant. `gather_ms` is
    taken for `MOST_GATHER_MS` at most: a group waits for half a second, for a tenth with somebody urgent.
    """

    def __init__(self, per_second: int, gather_ms: int = 0) -> None:
        self._bucket = TokenBucket(per_second, burst=per_second)  # a second's worth
        gather_ms = min(gather_ms, MOST_GATHER_MS)
        self._hurried_group = max(1, per_second * gather_ms // 1000)
        self._largest_group = max(1, LARGEST * per_second * gather_ms // 1000)
        self._is_hurried = False  # by somebody more urgent than all that waited
        self._deadlines: dict[N, int] = {}
        self._heap: list[tuple[int, int, N]] = []
        self._asked = 0  # breaks ties in the order of asking

    def __len__(self) -> int:
        return len(self._deadlines)

    def ask(self, name: N, deadline_ms: int) -> None:
        """`name` is due; asking again only ever moves it forward."""
        if deadline_ms >= self._deadlines.get(name, deadline_ms + 1):
            return
        if self._heap and deadline_ms < self._heap[0][0]:
            self._is_hurried = True
        self._deadlines[name] = deadline_ms
        self._asked += 1
        heapq.heappush(self._heap, (deadline_ms, self._asked, name))

    def withdraw(self, name: N) -> None:
        """`name` has nothing to send any more."""
        self._deadlines.pop(name, None)

    def next(self, now_ms: int) -> N | None:
        """Who goes now, one token drawn for it; None where nobody asks or the bucket is empty."""
        self._drop_stale()
        if not self._heap or not self._bucket.take(now_ms):
            return None
        self._is_hurried = False
        _, _, name = heapq.heappop(self._heap)
        del self._deadlines[name]
        return name

    def first_ms(self) -> int | None:
        """By when the most urgent should go; None where nobody asks."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def ready_ms(self) -> int | None:
        """When `next` is best asked again; None where nobody asks."""
        self._drop_stale()
        return self._bucket.ready_ms(self._group()) if self._heap else None

    def _group(self) -> int:
        waiting = len(self._deadlines)
        if self._is_hurried:
            return min(waiting, self._hurried_group)
        return ceil(waiting / ceil(waiting / self._largest_group))

    def _drop_stale(self) -> None:
        while self._heap and self._deadlines.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
