"""Time that never goes back within a run.

The wall clock is read once, at the start; from then on the monotonic clock counts. Everything that
keeps or compares moments asks here, so a stepped wall clock cannot expire a key or deny a grant (Z-21).
"""

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer


@implementer(IReactorTime)
class MonotonicClock:
    """A reactor's timers with steady Unix time: `seconds()` is wall time at the start plus time since."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._offset_s = time.time() - time.monotonic()

    def seconds(self) -> float:
        """Unix time in seconds."""
        return self._offset_s + time.monotonic()

    def drift_ms(self) -> int:
        """How far the wall clock has moved away from this one since the start."""
        return int((time.time() - self.seconds()) * 1000)

    def callLater(  # noqa: N802 - the interface's name
        self, delay: float, callable: Callable[..., Any], *args: object, **kw: object
    ) -> IDelayedCall:
        """As the reactor's."""
        return self._reactor.callLater(delay, callable, *args, **kw)

    def getDelayedCalls(self) -> Any:  # noqa: N802 - the interface's name
        """As the reactor's."""
        return self._reactor.getDelayedCalls()


def now_ms(clock: IReactorTime) -> int:
    """The clock's Unix time in whole milliseconds."""
    return int(clock.seconds() * 1000)
