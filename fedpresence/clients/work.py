"""Something under way that several may wait for, each with a patience of its own.

Always true: waiting changes nothing of the work; work that was cancelled, or whose outcome nobody asks for,
fails unheard.
"""

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from fedpresence.clock import Clock, Timer

T = TypeVar("T")


class Work(Generic[T]):
    """A coroutine or Deferred that was begun."""

    def __init__(self, work: "Coroutine[Deferred[Any], Any, T] | Deferred[T]") -> None:
        self.done = False
        self._outcome: T | Failure | None = None
        self._waiting: list[Deferred[None]] = []
        self._running = ensureDeferred(work)
        self._running.addBoth(self._ended)

    def result(self) -> T:
        """Its result, or its exception; to be asked for when it is done."""
        assert self.done, "not done yet"
        if isinstance(self._outcome, Failure):
            self._outcome.raiseException()
        return cast(T, self._outcome)

    def cancel(self) -> None:
        """End it, if it has not ended."""
        if not self.done:
            self._running.cancel()

    def tell(self, moment: "Deferred[None]") -> None:
        """Fire `moment` when this is done, if it has not fired."""
        self._waiting.append(moment)

    def forget(self, moment: "Deferred[None]") -> None:
        """Nobody waits for `moment` any more."""
        if moment in self._waiting:
            self._waiting.remove(moment)

    def _ended(self, outcome: T | Failure) -> None:
        self.done = True
        self._outcome = outcome
        waiting, self._waiting = self._waiting, []
        for moment in waiting:
            if not moment.called:
                moment.callback(None)


async def until(*works: Work[Any], clock: Clock, timeout_s: float | None = None) -> None:
    """Until one of these is done, or the time is up."""
    if any(work.done for work in works):
        return
    moment: Deferred[None] = Deferred()
    timer: Timer | None = None
    if timeout_s is not None:
        timer = clock.callLater(timeout_s, moment.callback, None)
    for work in works:
        work.tell(moment)
    try:
        await moment
    finally:
        for work in works:
            work.forget(moment)
        if timer is not None and timer.active():
            timer.cancel()
