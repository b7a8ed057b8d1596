import time

import pytest
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import Clock

from fedpresence.clock import Alarm, MonotonicClock, now_ms, within
from tests.asynchronous import failure_of

DAY_S = 86_400


@pytest.mark.parametrize("jump_s", [10 * DAY_S, -10 * DAY_S])
def test_a_stepped_wall_clock_moves_no_time_here(jump_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Z-21: ten days forward would expire every key and drop every deny; back, nothing would ever be due."""
    clock = MonotonicClock(Clock())
    before_ms, wall = now_ms(clock), time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)

    after_ms, drift_ms = now_ms(clock), clock.drift_ms()

    assert 0 <= after_ms - before_ms < 60_000
    assert abs(drift_ms - jump_s * 1000) < 60_000


def test_time_here_is_unix_time() -> None:
    """Other servers' moments are compared with ours."""
    assert abs(now_ms(MonotonicClock(Clock())) - time.time() * 1000) < 60_000


def test_timers_are_the_reactors() -> None:
    """A test moves one clock and everything moves."""
    reactor = Clock()
    called: list[str] = []
    MonotonicClock(reactor).callLater(2, called.append, "x")

    reactor.advance(2)

    assert called == ["x"]


def test_an_alarm_is_called_at_the_moment_it_was_set_to_last() -> None:
    """A connection is too slow counted from its last request, and only then."""
    clock = Clock()
    called: list[float] = []
    alarm = Alarm(clock, lambda: called.append(clock.seconds()))

    alarm.set(10)
    clock.advance(5)
    alarm.set(10)
    clock.pump([1] * 9)
    assert called == []
    clock.advance(1)
    assert called == [15]

    alarm.set(60)
    alarm.set(2)
    clock.pump([1] * 60)
    assert called == [15, 17]


def test_an_alarm_that_is_moved_often_is_one_timer() -> None:
    """Three timers for each request would cost more than what they guard."""
    clock = Clock()
    alarm = Alarm(clock, lambda: None)

    for _ in range(100):
        alarm.set(60)
        alarm.set(None)
        alarm.set(300)

    assert len(clock.getDelayedCalls()) == 1


def test_an_alarm_that_is_off_is_not_called_and_a_closed_one_leaves_no_timer() -> None:
    """Whoever is answered late because we took our time was not too slow."""
    clock = Clock()
    called: list[str] = []
    alarm = Alarm(clock, lambda: called.append("x"))

    alarm.set(10)
    alarm.set(None)
    clock.advance(20)
    alarm.set(10)
    alarm.close()

    assert (called, clock.getDelayedCalls()) == ([], [])


def test_what_takes_too_long_says_for_how_long_it_was_waited_for() -> None:
    """An operator reads it as the reason why a server is not reached."""
    clock = Clock()
    answer = within(Deferred[None](), 10, clock)
    clock.advance(10)

    assert str(failure_of(answer, TimeoutError)) == "not done in 10 s"


def test_what_is_cancelled_in_time_is_cancelled() -> None:
    """Who waits for it may have gone: that is no timeout."""
    answer = within(Deferred[None](), 10, Clock())
    answer.cancel()

    failure_of(answer, CancelledError)
