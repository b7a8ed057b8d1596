"""Time that never goes back within a run.

The wall clock is read once, at the start; from then on the monotonic clock counts. Everything that
keeps or compares moments asks here, so a stepped wall clock cannot expire a key or deny a grant (Z-21).
"""

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


class Timer(Protocol):
    """A call that is due later: what `callLater` answers."""

    def cancel(self) -> None:
        """Not to be called after all."""

    def active(self) -> bool:
        """Whether it was neither called nor cancelled."""


class Clock(Protocol):
    """Twisted's IReactorTime, as far as it is used here: a reactor, a `task.Clock`, or the class below."""

    def seconds(self) -> float:
        """Unix time in seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        """Call `callable` in `delay` seconds; answers a `Timer`."""


class MonotonicClock:
    """A reactor's timers with steady Unix time: `seconds()` is wall time at the start plus time since."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._offset_s = time.time() - time.monotonic()

    def seconds(self) -> float:
        """Unix time in seconds."""
        return self._offset_s + time.monotonic()

    def drift_ms(self) -> int:
        """How far the wall clock has moved away from this one since the start."""
        return int((time.time() - self.seconds()) * 1000)

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        """As the reactor's."""
        return self._reactor.callLater(delay, callable, *args, **kw)


_NOW_S = 0.001  # as good as now: sums of floats differ in their last digits


class Alarm:
    """One moment at which something is called, moved as often as you like.

    A timer for each move would cost more than most of what it guards: the one timer stays where it is
    unless that is too late, and looks again when it fires.
    """

    def __init__(self, clock: Clock, call: Callable[[], object]) -> None:
        self._clock = clock
        self._call = call
        self._due_s: float | None = None
        self._timer: Timer | None = None
        self._timer_s = 0.0

    def set(self, delay_s: float | None) -> None:
        """Call in `delay_s` seconds, and not when it was to be before; None: not at all."""
        if delay_s is None:
            self._due_s = None
            return
        self._due_s = self._clock.seconds() + delay_s
        if self._timer is None or self._due_s < self._timer_s:
            self._start(delay_s)

    def close(self) -> None:
        """Never call, and leave no timer behind."""
        self._due_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = self._clock.seconds() + delay_s
        self._timer = self._clock.callLater(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due_s is None:
            return
        left_s = self._due_s - self._clock.seconds()
        if left_s > _NOW_S:
            self._start(left_s)
        else:
            self._due_s = None
            self._call()


def within(deferred: "Deferred[T]", timeout_s: float, clock: Clock) -> "Deferred[T]":
    """The same Deferred, cancelled with a TimeoutError of Twisted's where it takes longer."""
    return deferred.addTimeout(timeout_s, cast(IReactorTime, clock), _took_too_long)


def _took_too_long(result: T | Failure, timeout_s: float) -> T:
    if isinstance(result, Failure):
        result.trap(CancelledError)
        raise TimeoutError(f"not done in {timeout_s:g} s")
    return result


def now_ms(clock: Clock) -> int:
    """The clock's Unix time in whole milliseconds."""
    return int(clock.seconds() * 1000)
