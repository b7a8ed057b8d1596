"""When to try a destination again that did not take what we sent (pure).

Always true:
- the first retry comes within 2 s, later ones after at most 15 % of the time the destination has been
  away; jitter only ever shortens;
- never before the destination's own `Retry-After`, unless an operator says so;
- something authentic from the destination wakes it at most once a minute, also out of a try that waits.

Source: decision 15, F:X-7, F:X-8, Z-20; S:O-16 and S:T-26 for the fortnight.
"""

SECOND_MS = 1000
DAY_MS = 86_400_000
FIRST_RETRY_MS = 2 * SECOND_MS
AWAY_SHARE = 0.15
MAX_DELAY_FIRST_DAY_MS = 50 * SECOND_MS  # a minute from its return, with time to connect and to tell
MAX_DELAY_LATER_MS = 540 * SECOND_MS  # ten minutes, likewise
DARK_AFTER_MS = 14 * DAY_MS  # then only a daily connection, whatever it sends, or an operator (S:O-16)
DARK_DELAY_MS = DAY_MS
JITTER_SHARE = 0.2
WAKE_INTERVAL_MS = 60 * SECOND_MS  # Z-20
MAX_RETRY_AFTER_MS = DAY_MS  # a typing error over there must not silence us for a year


class Backoff:
    """One destination's failures. `failing_since_ms` is None while there is no outage."""

    __slots__ = ("_asked_ms", "_first_ms", "_not_before_ms", "_woken_ms", "failing_since_ms", "next_try_ms")

    def __init__(self) -> None:
        self.failing_since_ms: int | None = None
        self.next_try_ms = 0  # the past: now
        self._first_ms: int | None = None  # first failure in a row, outage or not
        self._not_before_ms = 0  # by its own Retry-After
        self._woken_ms: int | None = None
        self._asked_ms: int | None = None  # the try that it, or an operator, asked for

    def failed(
        self, now_ms: int, jitter: float, *, retry_after_ms: int | None = None, outage: bool = True
    ) -> None:
        """A try failed; `jitter` is random in 0..1.

        `outage` False (429 for concurrency) grows the same way, but the destination is not away (Z-20).
        """
        if self._first_ms is None:
            self._first_ms = now_ms
        if outage and self.failing_since_ms is None:
            self.failing_since_ms = now_ms
        delay_ms = _delay_ms(now_ms - self._first_ms)
        self.next_try_ms = now_ms + int(delay_ms * (1 - JITTER_SHARE * jitter))
        if retry_after_ms is not None:
            self._not_before_ms = now_ms + min(retry_after_ms, MAX_RETRY_AFTER_MS)
            self.next_try_ms = max(self.next_try_ms, self._not_before_ms)

    def succeeded(self) -> None:
        """It answered: the next failure is a first one again."""
        self.failing_since_ms = None
        self.next_try_ms = 0
        self._first_ms = None
        self._not_before_ms = 0

    def wake(self, now_ms: int, *, trying: bool = False) -> bool:
        """Something authentic came from it; whether it is tried at once.

        `trying`: a try is under way that began while it was away, and is worth less than a new one.
        """
        if (self.next_try_ms <= now_ms and not trying) or now_ms < self._not_before_ms:
            return False
        if self._woken_ms is not None and now_ms - self._woken_ms < WAKE_INTERVAL_MS:
            return False
        self._woken_ms = self._asked_ms = now_ms
        self.next_try_ms = now_ms
        return True

    @property
    def is_retrying(self) -> bool:
        """Whether the last try failed, an outage or not."""
        return self._first_ms is not None

    @property
    def is_woken(self) -> bool:
        """Whether the next try is not one of the many in vain: the destination, or an operator, asked."""
        return self.next_try_ms == self._asked_ms

    def retry_now(self, now_ms: int) -> None:
        """An operator wants a try, whatever speaks against it."""
        self._asked_ms = self.next_try_ms = now_ms


def _delay_ms(away_ms: int) -> int:
    if away_ms >= DARK_AFTER_MS:
        return DARK_DELAY_MS
    longest_ms = MAX_DELAY_FIRST_DAY_MS if away_ms < DAY_MS else MAX_DELAY_LATER_MS
    return min(max(FIRST_RETRY_MS, int(away_ms * AWAY_SHARE)), longest_ms)
