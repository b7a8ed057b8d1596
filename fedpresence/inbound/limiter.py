"""How much one origin, or one address, may ask of us (pure: `now_ms` in, an answer out).

Always true: a refusal says when to come again and takes nothing; the number of buckets is bounded, the
least recently used one goes first.

Source: Z-2, Z-4; contract, `limits.*`.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from fedpresence.config import LimitsConfig, Rate
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName

K = TypeVar("K", bound=Hashable)

MAX_BUCKETS = 10_000  # a forgotten bucket is a full one: it costs whoever is after it as many addresses


class Limiter(Generic[K]):
    """One token bucket per key.

    More than a burst at once passes through a full bucket and leaves it in debt: what is allowed at all
    must be possible some day.
    """

    def __init__(self, rate: Rate, max_buckets: int = MAX_BUCKETS) -> None:
        self.rate = rate
        self._max_buckets = max_buckets
        self._buckets: OrderedDict[K, tuple[float, int]] = OrderedDict()  # tokens, at which moment

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_ms(self, key: K, size: float, now_ms: int) -> int:
        """How long until `size` may be taken; 0: now."""
        tokens = self._tokens(key, now_ms)
        return 0 if size <= tokens else self._wait_ms(tokens, size)

    def take(self, key: K, size: float, now_ms: int) -> int:
        """Take `size`, answering 0; or nothing, answering how long to wait."""
        tokens = self._tokens(key, now_ms)
        wait_ms = 0 if size <= tokens else self._wait_ms(tokens, size)
        if wait_ms == 0:
            self._buckets[key] = (tokens - size, now_ms)
            self._buckets.move_to_end(key)
            if len(self._buckets) > self._max_buckets:
                self._buckets.popitem(last=False)
        return wait_ms

    def _wait_ms(self, tokens: float, size: float) -> int:
        missing = min(size, self.rate.burst) - tokens
        if missing <= 0:
            return 0
        return max(1, int(missing * 1000 / self.rate.per_second) + 1)

    def _tokens(self, key: K, now_ms: int) -> float:
        kept = self._buckets.get(key)
        if kept is None:
            return self.rate.burst
        tokens, at_ms = kept
        if now_ms > at_ms:
            tokens += (now_ms - at_ms) * self.rate.per_second / 1000
        return min(self.rate.burst, tokens)


class OriginLimits:
    """What one origin may send: the size of a body, bytes and entries over time."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.max_body = limits.transaction_body
        self._bytes: Limiter[ServerName] = Limiter(limits.origin_bytes)
        self._entries: Limiter[ServerName] = Limiter(limits.origin_entries)

    def reload(self, limits: LimitsConfig) -> None:
        """New limits; what was taken stays taken."""
        self.max_body = limits.transaction_body
        self._bytes.rate = limits.origin_bytes
        self._entries.rate = limits.origin_entries

    def expect_bytes(self, origin: ServerName, size: int, now_ms: int) -> None:
        """BadRequest 429 where `size` bytes would be refused now. Takes nothing: `origin` is a claim yet."""
        if wait_ms := self._bytes.wait_ms(origin, size, now_ms):
            raise _limited(wait_ms)

    def take_bytes(self, origin: ServerName, size: int, now_ms: int) -> None:
        """Charge `size` bytes to the authenticated `origin`; BadRequest 429 where it sent too many."""
        if wait_ms := self._bytes.take(origin, size, now_ms):
            raise _limited(wait_ms)

    def take_entries(self, origin: ServerName, count: int, now_ms: int) -> None:
        """Charge pushes, polls and list EDUs to `origin`; BadRequest 429 where it sent too many."""
        if wait_ms := self._entries.take(origin, count, now_ms):
            raise _limited(wait_ms)


def _limited(wait_ms: int) -> BadRequest:
    return BadRequest("M_LIMIT_EXCEEDED", "Too many requests", status=429, retry_after_ms=wait_ms)
