"""What is under way in this process and goes on by itself: bytes on a socket, work in a thread.

Always true: where nothing is under way, nothing more happens until the clock is turned or somebody
outside asks for something.
"""

from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred


class Activity:
    """Counts what is under way. `stamp` grows with whatever happens."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._under_way = 0
        self._waiting: list[Deferred[None]] = []
        self._none_left: Deferred[None] | None = None
        self.stamp = 0

    def begin(self) -> None:
        """One more thing is under way."""
        self._under_way += 1
        self.stamp += 1

    def end(self) -> None:
        """One of them has arrived."""
        self._under_way -= 1
        self.stamp += 1
        if self._under_way == 0 and self._none_left is not None:
            none_left, self._none_left = self._none_left, None
            none_left.callback(None)

    def watched(self, deferred: "Deferred[Any]") -> "Deferred[Any]":
        """The same, under way until it fires."""
        if not deferred.called:
            self.begin()
            deferred.addBoth(self._passed)
        return deferred

    def is_quiet(self) -> bool:
        """Whether nothing is under way, nor due at once in the reactor."""
        return self._under_way == 0 and not self._due_at_once()

    def quiet(self) -> Deferred[None]:
        """Fires once nothing is under way."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:  # one looks for all: two would each see the other's round as work to do
            ensureDeferred(self._look())
        return waiting

    async def _look(self) -> None:
        while True:
            stamp = self.stamp
            await self._one_round()
            if self._under_way:
                self._none_left = Deferred()
                await self._none_left
            elif self.stamp == stamp and self.is_quiet():
                break
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _one_round(self) -> Deferred[None]:
        """Let the reactor look at its sockets and at what is due at once."""
        round_over: Deferred[None] = Deferred()
        self._reactor.callLater(0, round_over.callback, None)
        return round_over

    def _due_at_once(self) -> bool:
        if self._reactor.threadCallQueue:
            return True
        now = self._reactor.seconds()
        return any(call.getTime() <= now for call in self._reactor.getDelayedCalls())

    def _passed(self, result: object) -> object:
        self.end()
        return result
