"""Token buckets by key: how often somebody may, and when again. Pure.

Always true: memory is bounded; a key that has not been seen for as long as its bucket takes to fill
is forgotten, for a full bucket says nothing.

Source: contract.md, `limits.*`; Z-18.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_KEYS = 100_000  # about 15 MB; past that the longest quiet is forgotten, and starts afresh


class Throttle(Generic[K]):
    """A bucket for each key, with `burst` tokens at most and `per_second` new ones."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._buckets: OrderedDict[K, tuple[float, int]] = OrderedDict()  # tokens, as of when
        self.change(per_second, burst)

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._buckets)

    def change(self, per_second: float, burst: int) -> None:
        """Other limits from now on; what was taken stays taken."""
        self._per_ms = per_second / 1000
        self._burst = burst
        self._fills_in_ms = 2 * burst / self._per_ms  # from the deepest debt

    def take(self, key: K, now_ms: int, *, on_credit: bool = False) -> int:
        """0 and a token is taken; otherwise in how many milliseconds there is one.

        `on_credit` takes one whether or not there is one; the debt is at most a whole burst.
        """
        kept = self._buckets.get(key)
        tokens: float = self._burst
        if kept is not None:
            tokens = min(tokens, kept[0] + (now_ms - kept[1]) * self._per_ms)
        if tokens < 1:
            if not on_credit:
                return max(1, -int(-(1 - tokens) // self._per_ms))
            tokens = max(tokens, 1 - self._burst)
        self._buckets[key] = (tokens - 1, now_ms)
        if kept is None:
            self._forget_quiet(now_ms)
        else:
            self._buckets.move_to_end(key)
        return 0

    def _forget_quiet(self, now_ms: int) -> None:
        while len(self._buckets) > 1:
            oldest = next(iter(self._buckets))
            quiet_ms = now_ms - self._buckets[oldest][1]
            if quiet_ms < self._fills_in_ms and len(self._buckets) <= MAX_KEYS:
                break
            del self._buckets[oldest]
