"""One piece of work that many wait for.

Always true: a waiter that gives up (its client has gone) does not end the work; the work's outcome
reaches everybody who still waits; an outcome nobody waits for is not an error.
"""

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Shared(Generic[T]):
    """Work that has begun, and those who wait for it."""

    def __init__(self, work: Deferred[T]) -> None:
        self._waiting: list[Deferred[T]] = []
        self._outcome: tuple[T | Failure] | None = None
        self._work = work
        work.addBoth(self._done)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def done(self) -> bool:
        """Whether the work has ended."""
        return self._outcome is not None

    def wait(self) -> Deferred[T]:
        """The outcome, for one more; cancelling it is giving up."""
        waiter: Deferred[T] = Deferred(self._waiting_ended)
        if self._outcome is not None:
            _fire(waiter, self._outcome[0])
        else:
            self._waiting.append(waiter)
        return waiter

    def cancel(self) -> None:
        """End the work; whoever waits gets a CancelledError."""
        self._work.cancel()

    def _done(self, outcome: T | Failure) -> None:
        self._outcome = (outcome,)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            _fire(waiter, outcome)

    def _waiting_ended(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)


def _fire(waiter: Deferred[T], outcome: T | Failure) -> None:
    if isinstance(outcome, Failure):
        waiter.errback(outcome)
    else:
        waiter.callback(outcome)
