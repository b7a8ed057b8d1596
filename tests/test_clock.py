import time

import pytest
from twisted.internet.task import Clock

from fedpresence.clock import MonotonicClock, now_ms

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
