"""What falls due when.

Always true:
- `next_ms` is exact: the earliest moment set, never an older one that was moved or cancelled; `no_sooner_ms`
  is that or earlier, and costs nothing, so who is told to wake then looks once instead of at each change;
- a key has one moment; moving it later costs a dictionary write, and `ask_again` puts off even finding
  out how much later, so a user who is active all the time costs nothing per tick, and keys without a
  moment cost nothing at all;
- keys that fall due together come out in the order in which they were first set.
"""

from collections.abc import Callable, Hashable
from heapq import heappop, heappush, heapreplace
from math import inf
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# Where everybody is later than was set, whoever wakes at `no_sooner_ms` has peace for so long; and a million
# who are pushed every 25 minutes are moved some thousands at a time.
TIDIED_AHEAD_MS = 10_000


class Deadlines(Generic[Key]):
    """A heap whose entries may be early: each is checked against the true moment when it surfaces.

    `moment_of` says when a key for which `ask_again` was called falls due now.
    """

    def __init__(self, moment_of: Callable[[Key], int | None] | None = None) -> None:
        self._moment_of = moment_of
        self._unsure: set[Key] = set()  # may be later than `_due` says
        self._due: dict[Key, int] = {}
        self._early: dict[Key, int] = {}  # a key's earliest entry in the heap, where it is not `_due`: few
        self._heap: list[tuple[int, int, Key]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: Key, at_ms: int | None) -> None:
        """`key` falls due at `at_ms`; None: not at all."""
        self._unsure.discard(key)
        queued = self._early.get(key, self._due.get(key))
        if at_ms is None:
            if self._due.pop(key, None) is not None and queued is not None:
                self._early[key] = queued
            return
        self._due[key] = at_ms
        if queued is None or at_ms < queued:
            self._early.pop(key, None)
            self._count += 1
            heappush(self._heap, (at_ms, self._count, key))
        elif at_ms > queued:
            self._early[key] = queued
        else:
            self._early.pop(key, None)

    def ask_again(self, key: Key) -> bool:
        """`key` may fall due later than was set, never earlier: it is asked when that moment surfaces.

        False, and nothing is done, where no moment is set.
        """
        if key not in self._due:
            return False
        self._unsure.add(key)
        return True

    def no_sooner_ms(self) -> int | None:
        """A moment before which nothing falls due; None where nothing is set."""
        return self._heap[0][0] if self._heap else None

    def next_ms(self) -> int | None:
        """When the next key falls due; None where nothing is set."""
        return self._first_until(inf)

    def _first_until(self, until_ms: float) -> int | None:
        """The same where it is not after `until_ms`; what is early is moved to its true moment on the way."""
        heap = self._heap
        while heap and heap[0][0] <= until_ms:
            at_ms, order, key = heap[0]
            if at_ms != self._early.get(key, self._due.get(key)):
                heappop(heap)  # moved earlier since, and that entry is gone already
                continue
            if key in self._unsure and self._moment_of is not None:
                self.set(key, self._moment_of(key))
            due = self._due.get(key)
            if due is None:
                heappop(heap)
                del self._early[key]
            elif due > at_ms:
                del self._early[key]
                heapreplace(heap, (due, order, key))
            else:
                return at_ms
        return None

    def pop_due(self, now_ms: int, limit: int | None = None) -> list[Key]:
        """The keys that are due at `now_ms`, in order, or the first `limit`; each is set no more."""
        due: list[Key] = []
        soon_ms = now_ms + TIDIED_AHEAD_MS
        while len(due) != limit and (at_ms := self._first_until(soon_ms)) is not None and at_ms <= now_ms:
            _, _, key = heappop(self._heap)
            del self._due[key]
            due.append(key)
        return due
