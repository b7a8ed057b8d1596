"""The daemon's reactor where the system has epoll: Twisted's, without a logging context around each event.

Twisted reads and writes each socket within a context of its old `log.msg`, which says whose turn it was:
fifteen calls and two dicts around one, and nobody here logs by that. What wakes the daemon is mostly a single
event after a sleep, for which all of that would come back from far memory.

Always true: what goes wrong with one connection ends that connection; what even that cannot end is logged by
the loop, which goes on: whoever had an event that was not looked at has it in the next turn again.
"""

from typing import Any

from twisted.internet.epollreactor import EPollReactor


class PlainReactor(EPollReactor):
    """As its parent, but for the context."""

    _poller: Any
    _selectables: dict[int, Any]
    _doReadOrWrite: Any

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, at most so many seconds (None: for ever), and let those read or write who can."""
        events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        for fd, event in events:
            if fd in self._selectables:  # else one before it has closed it
                self._doReadOrWrite(self._selectables[fd], fd, event)

    doIteration = doPoll
