"""When windows end: for all destinations at the same few moments, so that they leave together (pure).

A transaction that leaves by itself wakes the daemon, and its answer does so again: ten that leave together
cost half as much as ten apart. And who has once left apart from the others, because a connection had to be
opened or an answer was slow, would do so for ever.

So a window has beats, and ends at one. The windows of those who leave at the main beat, one in each length of
a window, are as long as they should be. Those of all others are a beat longer, until they have come there
too; or only to the beat before, where a group is so large that one more gains nothing by it. Whoever comes
too late for the main beat would have the longest way to it: so the main beat comes to them.

Always true: a window is as long as it should be, or longer by one beat at most; shorter only by what a timer
comes late.
"""

BEATS = 8  # in a window: fewer would show as latency where many leave one after the other
MOST_BEAT_MS = 200
LATE_MS = 5  # who leaves so soon after a beat was to leave at it
LARGEST = 25  # a group that others still join: more at once would keep those waiting who come meanwhile


class Windows:
    """The windows of all destinations, each `length_ms` long or a little longer."""

    def __init__(self, length_ms: int) -> None:
        self._length_ms = length_ms
        self._beats = min(max(BEATS, -(-length_ms // MOST_BEAT_MS)), max(1, length_ms))
        self._beat_ms = max(1.0, length_ms / self._beats)
        self._began_ms = 0  # here falls a beat
        self._main = 0  # its number, counted from there; and those of all main beats, one in each window
        self._last_end_ms = 0
        self._ending: dict[int, int] = {}  # by number of the beat: how many windows end there

    def end_ms(self, now_ms: int) -> int:
        """When that of a transaction that leaves now ends."""
        if now_ms >= self._last_end_ms:  # none is open: nobody needs to wait for another
            self._began_ms, self._main = now_ms, 0
            self._ending.clear()
        beat, after_beat_ms = divmod(now_ms - self._began_ms, self._beat_ms)
        begins = int(beat)
        ends = begins + self._beats
        if after_beat_ms > LATE_MS:
            ends += 1
            if self._is_main(ends - 1) and self._may_join(begins):
                self._main += 1
        elif not self._is_main(begins) and self._may_join(begins + 1):
            ends += 1
        self._ending[ends] = self._ending.get(ends, 0) + 1
        if len(self._ending) > 4 * self._beats:
            self._ending = {at: count for at, count in self._ending.items() if at >= begins}
        end_ms = round(self._began_ms + ends * self._beat_ms)
        self._last_end_ms = max(self._last_end_ms, end_ms)
        return end_ms

    def _is_main(self, beat: int) -> bool:
        return (beat - self._main) % self._beats == 0

    def _may_join(self, beat: int) -> bool:
        """Whether the group that leaves at that beat, and those that join it already, are few enough."""
        return self._ending.get(beat, 0) + self._ending.get(beat + self._beats, 0) < LARGEST
