"""The reactor: events reach whom they are for, and no connection ends the loop."""

import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("there is no epoll here", allow_module_level=True)

from twisted.internet.abstract import FileDescriptor
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from fedpresence.gathering import Gathering
from fedpresence.polling import PlainReactor


class _End(FileDescriptor):
    """One end of a socket pair, which has something to read."""

    def __init__(self, reactor: Any, ours: socket.socket, read: Callable[["_End"], object]) -> None:
        super().__init__(reactor)
        self.socket = ours
        self.fileno = ours.fileno  # type: ignore[method-assign]  # as Twisted's own connections have it
        self.lost: list[Failure] = []
        self._read = read

    def doRead(self) -> Any:
        """As IReadDescriptor."""
        return self._read(self)

    def connectionLost(self, reason: Failure) -> None:
        """As IReadDescriptor."""
        self.lost.append(reason)


@contextmanager
def two_ends(
    read: Callable[[_End], object], gathering: Gathering | None = None
) -> Iterator[tuple[PlainReactor, list[_End]]]:
    """A reactor, and two who have something to read."""
    reactor: Any = PlainReactor(gathering)
    pairs = [socket.socketpair() for _ in range(2)]
    ends = [_End(reactor, ours, read) for ours, _ in pairs]
    with closing(pairs[0][0]), closing(pairs[0][1]), closing(pairs[1][0]), closing(pairs[1][1]):
        for end, (_, theirs) in zip(ends, pairs, strict=True):
            reactor.addReader(end)
            theirs.send(b"x")
        yield reactor, ends
        reactor.removeAll()


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """What is logged."""
    events: list[LogEvent] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


def test_everybody_with_an_event_reads() -> None:
    """The loop is Twisted's but for what stands around each event."""
    read: list[_End] = []

    with two_ends(read.append) as (reactor, ends):
        reactor.doIteration(1.0)

    assert set(read) == set(ends)


def test_who_was_removed_by_one_before_is_not_asked() -> None:
    """A stop closes many connections at once, and their events have come together."""
    read: list[_End] = []

    def remove_all(end: _End) -> None:
        read.append(end)
        reactor: Any = end.reactor
        reactor.removeAll()

    with two_ends(remove_all) as (reactor, _):
        reactor.doIteration(1.0)

    assert len(read) == 1


def test_an_error_ends_its_connection_and_no_other(logged: list[LogEvent]) -> None:
    """A bug that one client finds must not be felt by the others."""

    def fail(end: _End) -> None:
        raise RuntimeError("a bug")

    with two_ends(fail) as (reactor, ends):
        reactor.doIteration(1.0)

    assert [len(end.lost) for end in ends] == [1, 1]
    assert len([event for event in logged if event.get("isError")]) == 2


class _Patient(Gathering):
    """Would look away for as long as it may."""

    def __init__(self) -> None:
        super().__init__()
        self.is_busy = True
        self.found: Collection[int] = ()
        self.meanwhile: Collection[int] = ()

    def pause_s(self, now_s: float, most_s: float) -> float:
        return 3_600.0

    def looked(self, who: Collection[int], now_s: float) -> None:
        """As when nothing is to be waited for."""

    def gathered(self, who: Collection[int], now_s: float) -> None:
        self.found = who

    def came_meanwhile(self, who: Collection[int], now_s: float) -> None:
        self.meanwhile = who


def _take(end: _End) -> None:
    end.socket.recv(1)


def test_what_a_thread_has_done_ends_a_pause() -> None:
    """A commit is on disk, a name is resolved, a signal came: the reactor is woken."""
    patient = _Patient()
    with two_ends(_take, patient) as (reactor, _):
        reactor.doIteration(0)
        threading.Timer(0.01, reactor.wakeUp).start()

        reactor.doIteration(None)

    assert len(patient.found) == 1  # who woke it
    assert not patient.meanwhile


def test_what_has_come_already_is_taken_before_a_pause() -> None:
    """The rest of a body, the request of who was let in a moment ago: the process is awake."""
    patient = _Patient()
    with two_ends(_take, patient) as (reactor, _):
        reactor.doIteration(None)

    assert len(patient.meanwhile) == 2
    assert not patient.found


# Signal handlers are the main thread's own, and another reactor may have them.
def _run(reactor: PlainReactor) -> None:
    reactor.callLater(10, reactor.stop)  # else a loop that misses something never ends
    reactor.run(installSignalHandlers=False)


def test_what_one_who_reads_sets_going_is_done() -> None:
    """A timer that is due at once or soon, and a call as from a thread, do not wait for more to read."""
    done: list[str] = []

    def read(end: _End) -> None:
        _take(end)
        reactor: Any = end.reactor
        reactor.callFromThread(done.append, "thread")
        reactor.callLater(0, done.append, "now")
        reactor.callLater(0.001, done.append, "soon")
        reactor.callLater(0.002, lambda: reactor.running and len(done) == 6 and reactor.stop())

    with two_ends(read) as (reactor, _):
        _run(reactor)

    assert sorted(done) == ["now", "now", "soon", "soon", "thread", "thread"]


def test_who_reads_may_stop_the_reactor() -> None:
    """What is to be done before the end is done then, and not when the next timer is due."""
    ended: list[bool | None] = []

    def stop(end: _End) -> None:
        _take(end)
        reactor: Any = end.reactor
        if not ended:
            ended.append(False)
            reactor.stop()

    with two_ends(stop) as (reactor, _):
        reactor.addSystemEventTrigger("before", "shutdown", lambda: ended.append(reactor.running))
        reactor.callLater(10, ended.append, None)
        reactor.run(installSignalHandlers=False)

    assert ended == [False, True]


def test_an_error_of_the_loop_itself_is_logged_and_the_loop_goes_on(logged: list[LogEvent]) -> None:
    """It must be heard of, and must not end the daemon."""
    with two_ends(_take) as (reactor, _):
        look = reactor._look
        errors = [OSError("nothing to look at")]

        def fail_once(timeout: float) -> list[tuple[int, int]]:
            if errors:
                raise errors.pop()
            return look(timeout)

        reactor._look = fail_once  # type: ignore[method-assign]
        reactor.callLater(0.01, reactor.stop)
        _run(reactor)

    assert [event["log_failure"].type for event in logged if "log_failure" in event] == [OSError]
