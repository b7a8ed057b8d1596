"""When windows end: for all destinations at the same few moments, so that they leave together (pure).

A transaction that leaves by itself wakes the daemon, and its answer does so again: ten that leave together
cost half as much as ten apart. And who has once left apart from the others, because a connection had to be
opened or an answer was slow, would do so for ever.

Always true: a window is as long as it should be, or longer by one beat at most; shorter only by what a timer
comes late.
"""

BEATS = 8  # in a window: fewer would show as latency where many leave one after the other
MOST_BEAT_MS = 200
LATE_MS = 5  # who leaves so soon after a beat was to leave at it


class Windows:
    """The windows of all destinations, each `length_ms` long or a little longer."""

    def __init__(self, length_ms: int) -> None:
        self._length_ms = length_ms
        beats = max(BEATS, -(-length_ms // MOST_BEAT_MS))
        self._beat_ms = max(1.0, length_ms / beats)
        self._began_ms = 0  # here falls a beat
        self._last_end_ms = 0

    def end_ms(self, now_ms: int) -> int:
        """When that of a transaction that leaves now ends."""
        if now_ms >= self._last_end_ms:  # none is open: nobody needs to wait for another
            self._began_ms = now_ms
        after_beat_ms = (now_ms - self._began_ms) % self._beat_ms
        end_ms = round(now_ms + self._length_ms - after_beat_ms)
        if after_beat_ms > LATE_MS:
            end_ms += round(self._beat_ms)
        self._last_end_ms = max(self._last_end_ms, end_ms)
        return end_ms
