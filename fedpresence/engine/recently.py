"""How often something may be done about one key: at most once in a period, in bounded memory.

Used where a rule says "at most one per pair and day". What is forgotten when memory is full or in a
restart is done once more at the worst.
"""

from collections import OrderedDict
from collections.abc import Hashable

MAX_KEYS = 100_000


class Recently:
    """Remembers when each key was last allowed; the oldest gives way beyond `max_keys`."""

    def __init__(self, period_ms: int, max_keys: int = MAX_KEYS) -> None:
        self._period_ms = period_ms
        self._max_keys = max_keys
        self._last: OrderedDict[Hashable, int] = OrderedDict()  # finds its oldest at once

    def allow(self, key: Hashable, now_ms: int) -> bool:
        """Whether `key` was not allowed within the period; if so, it is now."""
        last = self._last.get(key)
        if last is not None and now_ms - last < self._period_ms:
            return False
        self._last.pop(key, None)
        self._last[key] = now_ms
        if len(self._last) > self._max_keys:
            self._last.popitem(last=False)
        return True


class Quota:
    """At most `limit` allowed for one key in each period; periods begin with the first."""

    def __init__(self, limit: int, period_ms: int, max_keys: int = MAX_KEYS) -> None:
        self._limit = limit
        self._period_ms = period_ms
        self._max_keys = max_keys
        self._used: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()  # since when, how many

    def left(self, key: Hashable, now_ms: int) -> int:
        """How many more are allowed now."""
        since, used = self._used.get(key, (now_ms, 0))
        return self._limit if now_ms - since >= self._period_ms else self._limit - used

    def allow(self, key: Hashable, now_ms: int) -> bool:
        """Whether one more is allowed; if so, it is used."""
        since, used = self._used.get(key, (now_ms, 0))
        if now_ms - since >= self._period_ms:
            since, used = now_ms, 0
        if used >= self._limit:
            return False
        self._used.pop(key, None)
        self._used[key] = (since, used + 1)
        if len(self._used) > self._max_keys:
            self._used.popitem(last=False)
        return True
