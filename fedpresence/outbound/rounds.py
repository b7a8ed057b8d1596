"""Whose refresh goes next: one after the other, at an even pace (pure: `now_ms` in, answers out).

A refresh that is due alone has time. A moment drawn for each, by a hash or by lot, would put several into
one second and none into the next; in a line they leave evenly, as many in a round as there are.

Always true:
- who must go first goes first, and by then at the latest;
- between two that go lies the length of a round divided by their number; less only where those who wait
  would otherwise be late, and then it is the same for all of them: a thousand that fall due together are
  spread over the time that they have, and in their next round over all of it;
- so of what is told one round after the other, no second has more than its share, rounded up.

Source: decision 14.
"""

from bisect import bisect
from collections.abc import Hashable
from math import ceil
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)


class Round(Generic[N]):
    """`count` refreshes are to leave in `length_ms`, over and over."""

    def __init__(self, length_ms: float) -> None:
        self.count = 0
        self._length_ms = length_ms
        self._line: list[tuple[int, int, N]] = []  # who must go first stands first
        self._asked = 0  # who asked first, where two must go at one moment
        self._went_ms = 0
        self._ready_ms = 0  # when the next may go

    def __len__(self) -> int:
        return len(self._line)

    def ask(self, name: N, by_ms: int) -> None:
        """`name` is due, and must have gone by then; it asks once, until it is called."""
        self._asked += 1
        item = (by_ms, self._asked, name)
        place = bisect(self._line, item)
        self._line.insert(place, item)
        # Whoever stands behind it is reckoned with when the next one went.
        self._ready_ms = min(self._ready_ms, self._went_ms + self._share_ms(by_ms, place + 1))

    def next(self, now_ms: int) -> N | None:
        """Who is called now; None where nobody waits, or it is too soon."""
        if not self._line or now_ms < self._ready_ms:
            return None
        return self._line.pop(0)[2]

    def went(self, now_ms: int) -> None:
        """Who was called goes now."""
        self._went_ms = now_ms
        self._reckon()

    def ready_ms(self) -> int | None:
        """When `next` will answer a name; None where nobody waits."""
        return self._ready_ms if self._line else None

    def _reckon(self) -> None:
        gap_ms = ceil(self._length_ms / max(1, self.count))
        shares = (self._share_ms(by_ms, place) for place, (by_ms, _, _) in enumerate(self._line, start=1))
        self._ready_ms = self._went_ms + min(gap_ms, min(shares, default=gap_ms))

    def _share_ms(self, by_ms: int, place: int) -> int:
        """The pause that lets the one at this place go in time, if all before it make the same."""
        return (by_ms - self._went_ms) // place
