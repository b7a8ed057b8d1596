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

    def take(self, key: K, now_ms: int) -> int:
        """0 and a token is taken; otherwise in how many milliseconds there is one."""
        tokens = self._tokens(key, now_ms)
        if tokens >= 1:
            self._keep(key, tokens - 1, now_ms)
            return 0
        return max(1, -int(-(1 - tokens) // self._per_ms))

    def spend(self, key: K, now_ms: int) -> None:
        """Take a token whether or not there is one; the debt is at most a whole burst."""
        self._keep(key, max(-float(self._burst), self._tokens(key, now_ms) - 1), now_ms)

    def _tokens(self, key: K, now_ms: int) -> float:
        kept = self._buckets.get(key)
        if kept is None:
            return self._burst
        tokens, at_ms = kept
        return min(self._burst, tokens + (now_ms - at_ms) * self._per_ms)

    def _keep(self, key: K, tokens: float, now_ms: int) -> None:
        is_new = key not in self._buckets
        self._buckets[key] = (tokens, now_ms)
        if not is_new:
            self._buckets.move_to_end(key)
            return
        while len(self._buckets) > 1:
            oldest = next(iter(self._buckets))
            quiet_ms = now_ms - self._buckets[oldest][1]
            if quiet_ms < self._fills_in_ms and len(self._buckets) <= MAX_KEYS:
                break
            del self._buckets[oldest]
