"""A reactor for the store's thread alone: the thread is real, and the test waits for its answers."""

import queue
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from zope.interface import implementer

T = TypeVar("T")

PATIENCE_S = 60.0  # far beyond what anything here takes, so only a hang reaches it


@implementer(IReactorFromThreads)
class ThreadReactor:
    """What `ConnectionPool` needs of a reactor; calls from its thread run inside `wait`."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()

    def wait(self, deferred: Deferred[T]) -> T:
        """The Deferred's result, or its error raised."""
        results: list[T | Failure] = []
        deferred.addBoth(results.append)
        while not results:
            self._calls.get(timeout=PATIENCE_S)()
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Keep a call for `wait`."""
        self._calls.put(lambda: callable(*args, **kwargs))

    def callWhenRunning(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        """At once: this reactor always runs."""
        callable(*args, **kwargs)

    def addSystemEventTrigger(self, *args: object) -> object:
        """It never shuts down either."""
        return args

    def removeSystemEventTrigger(self, trigger: object) -> None:
        """Nothing to do."""
