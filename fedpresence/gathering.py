"""When a reactor looks away: while much comes, it looks for it at most some thirty times a second (pure).

A process that slept pays for a request with memory that has gone cold: a `PUT` by itself costs several times
what it costs right behind another. So what comes within 30 ms is taken together, once it comes often.

Always true:
- below a hundred events a second it never looks away, and never for longer than `GATHER_S`;
- what has come while others were served is taken before any pause: we are awake;
- a body that comes or leaves in many pieces goes on without pauses, for it is still there a moment later;
- whoever asks again as soon as we have answered is hardly ever made to wait: a pause in which only those
  spoke who had spoken right before is not repeated soon, and each such pause doubles the time until the next.
"""

from collections.abc import Collection

GATHER_S = 0.030
LEAST_S = 0.001
BUSY_PER_SECOND = 100  # events: less would mostly be gathered one by one
PERIOD_S = 0.250  # over which they are counted
FLOWS_S = 0.005  # between two pieces of a body: a read takes 64 KiB at most, and a pause would follow each
WORTH = 2  # new voices make a pause worth repeating
MOST_VAIN_S = 1.28  # until it is tried again, however often it was in vain


class Gathering:
    """Decides how long to look away. `who` are the file descriptors that were ready, times are in seconds."""

    def __init__(self) -> None:
        self.is_busy = False  # else there is no pause, and nothing to be told but how many were ready
        self._count = 0
        self._period_ends_s = 0.0
        self._looked_s = 0.0  # when something was there the last time
        self._lately: set[int] = set()  # who was there in the last while, as long as a pause
        self._before: set[int] = set()  # and in the one before
        self._while_ends_s = 0.0
        self._not_before_s = 0.0
        self._flows_until_s = 0.0
        self._vain_s = GATHER_S

    def pause_s(self, now_s: float, most_s: float) -> float:
        """How long to look away before the next look; `most_s` is when a timer is due."""
        if not self.is_busy or now_s < self._not_before_s or now_s < self._flows_until_s:
            return 0.0
        pause_s = min(most_s, self._looked_s + GATHER_S - now_s)
        return pause_s if pause_s >= LEAST_S else 0.0

    def counted(self, ready: int, now_s: float) -> None:
        """So many were ready: enough to say while not much comes."""
        self._count += ready
        if now_s >= self._period_ends_s:
            is_recent = now_s < self._period_ends_s + PERIOD_S
            self.is_busy = is_recent and self._count >= BUSY_PER_SECOND * PERIOD_S
            self._count, self._period_ends_s = 0, now_s + PERIOD_S

    def looked(self, who: Collection[int], now_s: float) -> None:
        """These were ready."""
        self.counted(len(who), now_s)
        if now_s >= self._while_ends_s:
            self._before = self._lately if now_s < self._while_ends_s + GATHER_S else set()
            self._lately, self._while_ends_s = set(), now_s + GATHER_S
        if now_s < self._flows_until_s and self._is_again(who):
            self._flows_until_s = now_s + FLOWS_S
        self._lately.update(who)
        self._looked_s = now_s

    def came_meanwhile(self, who: Collection[int], now_s: float) -> None:
        """These were ready before a pause, which need not be then."""
        if self._is_again(who):
            self._flows_until_s = now_s + FLOWS_S
        self.looked(who, now_s)

    def gathered(self, who: Collection[int], now_s: float) -> None:
        """These were ready after a pause."""
        if len({*who}.difference(self._lately, self._before)) >= WORTH:
            self._vain_s = GATHER_S
        else:
            self._not_before_s = now_s + self._vain_s
            self._vain_s = min(MOST_VAIN_S, 2 * self._vain_s)
        self.looked(who, now_s)

    def _is_again(self, who: Collection[int]) -> bool:
        return not self._lately.isdisjoint(who) or not self._before.isdisjoint(who)
