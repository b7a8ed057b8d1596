"""The daemon's reactor where the system has epoll: Twisted's, which does less around each event.

Twisted reads and writes each socket within a context of its old `log.msg`, which says whose turn it was:
fifteen calls and two dicts around one, and nobody here logs by that. It looks through its timers after each
look for events, whether or not one is due. And it looks for events as soon as it has handled some: here what
comes within 30 ms is taken together, while much comes (`gathering.py`).

Always true:
- what goes wrong with one connection ends that connection; what even that cannot end is logged by the loop,
  which goes on: whoever had an event that was not looked at has it in the next turn again;
- timers, signals and what threads have done never wait for events to be gathered.
"""

import select
import time
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import Logger

from fedpresence.gathering import GATHER_S, Gathering

_unexpected = Logger().failureHandler("unexpected error in the main loop")

_Events = list[tuple[int, int]]


class PlainReactor(EPollReactor):
    """As its parent, but for the context and the haste; `gathering` decides when to look away."""

    waker: Any
    _poller: Any
    _selectables: dict[int, Any]
    _doReadOrWrite: Any

    def __init__(self, gathering: Gathering | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's has no hints
        self._gathering = gathering or Gathering()
        self._woken = select.poll()  # by a thread or a signal: that alone ends a pause
        self._woken.register(self.waker, select.POLLIN)

    def mainLoop(self) -> None:
        """As its parent's, but timers and what threads have done are looked at only when it is time."""
        while self._started:
            with _unexpected:
                self.runUntilCurrent()
                self.doPoll(self.running and self.timeout())
                while self.running and not self._justStopped and not self.threadCallQueue:
                    until_due_s = self.timeout()
                    if until_due_s == 0:
                        break
                    self.doPoll(until_due_s)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, at most so many seconds (None: for ever), and let those read or write who can."""
        for fd, event in self._events(timeout):
            if fd in self._selectables:  # else one before it has closed it
                self._doReadOrWrite(self._selectables[fd], fd, event)

    doIteration = doPoll

    def _events(self, timeout: float | None) -> _Events:
        gathering = self._gathering
        if timeout != 0 and gathering.is_busy:
            pause_s = gathering.pause_s(time.monotonic(), GATHER_S if timeout is None else timeout)
            if pause_s:
                events = self._look(0)
                if events:
                    gathering.came_meanwhile([fd for fd, _ in events], time.monotonic())
                    return events
                self._woken.poll(pause_s * 1000)
                events = self._look(0)
                gathering.gathered([fd for fd, _ in events], time.monotonic())
                if events or pause_s == timeout:
                    return events
                timeout = None if timeout is None else timeout - pause_s
        events = self._look(-1 if timeout is None else timeout)
        if events and gathering.is_busy:
            gathering.looked([fd for fd, _ in events], time.monotonic())
        elif events:
            gathering.counted(len(events), time.monotonic())
        return events

    def _look(self, timeout: float) -> _Events:
        events: _Events = self._poller.poll(timeout, len(self._selectables))
        return events
