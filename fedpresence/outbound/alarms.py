"""When somebody wants to look at the clock again: many alarms behind one timer (pure).

A timer of the reactor's for each destination costs more than what it waits for.
"""

import heapq
from typing import Generic, TypeVar

N = TypeVar("N")


class Alarms(Generic[N]):
    """Who is to be woken when; the earliest first, those of one moment in the order of asking."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, N]] = []
        self._asked = 0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, who: N, at_ms: int) -> None:
        """Wake `who` then; an alarm is not taken back, whoever set it may have nothing to do any more."""
        self._asked += 1
        heapq.heappush(self._heap, (at_ms, self._asked, who))

    def next_ms(self) -> int | None:
        """When the next one is due; None where there is none."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ms: int) -> list[N]:
        """Who is to be woken now."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            due.append(heapq.heappop(self._heap)[2])
        return due
