"""Twisted's one reactor, for tests that need real sockets: it runs in a thread, for the whole run."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread

T = TypeVar("T")

_running: list[threading.Thread] = []


def in_reactor(work: Callable[[Any], Awaitable[T]]) -> T:
    """What `work(reactor)` answers, run to its end in the reactor's thread."""
    from twisted.internet import reactor

    any_reactor: Any = reactor
    if not _running:
        begun = threading.Event()
        any_reactor.callWhenRunning(begun.set)
        runs = threading.Thread(target=any_reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
        runs.start()
        _running.append(runs)
        assert begun.wait(10), "the reactor does not run"

    async def awaited() -> T:
        return await work(any_reactor)

    def begin() -> Any:
        return Deferred.fromCoroutine(awaited())

    answer: T = blockingCallFromThread(any_reactor, begin)
    return answer
