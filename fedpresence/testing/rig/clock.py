"""Time that is turned by hand, and each server's own view of it.

Always true:
- a turnable clock stands still until it is turned; what falls due is called in order of its moment, and
  of its request where moments are the same;
- a moment is a whole millisecond, and never called early;
- a server's clock that was stopped calls nothing any more, as if its process had ended.
"""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from twisted.logger import Logger

from fedpresence.clock import Clock, Timer

_log = Logger()

_EPSILON_MS = 1e-3  # a float's error in a delay must not cost a millisecond


class TurnedTimer:
    """A call that is due when the clock has been turned to `due_ms`; as Twisted's own delayed calls."""

    __slots__ = ("_call", "_clock", "due_ms", "number")

    def __init__(self, clock: "TurnableClock", call: Callable[[], object]) -> None:
        self._clock = clock
        self._call: Callable[[], object] | None = call
        self.due_ms = 0
        self.number = 0  # of its place among all calls: a new one with each reset

    def cancel(self) -> None:
        """Not to be called after all."""
        if self._call is not None:
            self._call = None
            self._clock.forget_one()

    def reset(self, delay: float) -> None:
        """Call it in `delay` seconds from now instead."""
        if self._call is not None:
            self._clock.forget_one()
            self._clock.place(self, delay)

    def active(self) -> bool:
        """Whether it was neither called nor cancelled."""
        return self._call is not None

    def getTime(self) -> float:
        """When it is due, in seconds."""
        return self.due_ms / 1000

    def fire(self) -> None:
        """Its moment has come."""
        call, self._call = self._call, None
        if call is not None:
            call()


class TurnableClock:
    """Virtual time; `run_due` calls what is due now, `next_due_ms` says when there will be more.

    `due_at_once` is told where somebody asks for a call without any delay: no turning is needed for that.
    """

    def __init__(self, start_ms: int, due_at_once: Callable[[], None] = lambda: None) -> None:
        self.now_ms = start_ms
        self._due_at_once = due_at_once
        self._timers: list[tuple[int, int, TurnedTimer]] = []  # a heap
        self._asked = 0
        self._forgotten = 0

    def seconds(self) -> float:
        """Unix time in seconds.

        A quarter of a millisecond late, so that a float's error is never the millisecond before.
        """
        return (self.now_ms + 0.25) / 1000

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        """Call `callable` once the clock has been turned on by `delay` seconds."""
        timer = TurnedTimer(self, lambda: callable(*args, **kw))
        self.place(timer, delay)
        return timer

    def place(self, timer: TurnedTimer, delay: float) -> None:
        """The timer is due in `delay` seconds."""
        self._asked += 1
        timer.number = self._asked
        timer.due_ms = self.now_ms + max(0, math.ceil(delay * 1000 - _EPSILON_MS))
        heappush(self._timers, (timer.due_ms, timer.number, timer))
        if timer.due_ms <= self.now_ms:
            self._due_at_once()

    def forget_one(self) -> None:
        """A timer was cancelled or placed anew."""
        self._forgotten += 1
        if self._forgotten > 1000 and self._forgotten * 2 > len(self._timers):
            self._timers = sorted(entry for entry in self._timers if _counts(entry))
            self._forgotten = 0

    def next_due_ms(self) -> int | None:
        """The moment of the next call; None where there is none."""
        while self._timers and not _counts(self._timers[0]):
            heappop(self._timers)
            self._forgotten -= 1
        return self._timers[0][0] if self._timers else None

    def run_due(self) -> bool:
        """Call what is due now, and was asked for before; whether there was anything."""
        asked, ran = self._asked, False
        while (due_ms := self.next_due_ms()) is not None and due_ms <= self.now_ms:
            if self._timers[0][1] > asked:
                break
            timer = heappop(self._timers)[2]
            try:
                timer.fire()
            except Exception:  # as a reactor: one server's bug must not stop the others' time
                _log.failure("a call that was due failed")
            ran = True
        return ran

    def turn_to(self, now_ms: int) -> None:
        """The time is now `now_ms`, which is never before the time that was."""
        assert now_ms >= self.now_ms, "time does not go back"
        self.now_ms = now_ms


def _counts(entry: tuple[int, int, TurnedTimer]) -> bool:
    """Whether the timer is still to be called at this very place."""
    return entry[2].active() and entry[2].number == entry[1]


class ServerClock:
    """One server's view of a clock, `offset_ms` away from it; it ends with the server."""

    def __init__(self, base: Clock, offset_ms: int = 0) -> None:
        self._base = base
        self._offset_s = offset_ms / 1000
        self._timers: set[Timer] = set()
        self._many = 1000
        self._stopped = False

    def seconds(self) -> float:
        """Unix time in seconds, as this server knows it."""
        return self._base.seconds() + self._offset_s

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        """As the base's; never, once stopped."""
        timer: Timer

        def call() -> None:
            self._timers.discard(timer)
            callable(*args, **kw)

        timer = self._base.callLater(delay, call)
        if self._stopped:
            timer.cancel()
            return timer
        self._timers.add(timer)
        if len(self._timers) > self._many:
            self._timers = {timer for timer in self._timers if timer.active()}
            self._many = max(1000, 2 * len(self._timers))
        return timer

    def stop(self) -> None:
        """Call nothing any more."""
        self._stopped = True
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers.clear()


class QuietClock:
    """Waits of one request for an answer from elsewhere: over when nothing can arrive any more.

    With virtual time a client that asks once would otherwise wait until somebody turns the clock, and
    that is often the same client. `when_quiet` calls once nothing is under way.
    """

    def __init__(self, base: Clock, when_quiet: Callable[[Callable[[], None]], object]) -> None:
        self._base = base
        self._when_quiet = when_quiet

    def seconds(self) -> float:
        """Unix time in seconds."""
        return self._base.seconds()

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        """Call `callable` as soon as waiting longer is of no use, but not later than in `delay` seconds."""
        timer: Timer = self._base.callLater(delay, callable, *args, **kw)

        def quiet() -> None:
            if timer.active():
                timer.cancel()
                callable(*args, **kw)

        self._when_quiet(quiet)
        return timer
