import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.outbound.backoff import DAY_MS, Backoff

NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def failing_for(away_ms: int, jitter: float = 0.0) -> tuple[Backoff, int]:
    """A backoff whose destination has been away for so long, and the delay of its next try."""
    backoff = Backoff()
    backoff.failed(NOW_MS, jitter)
    if away_ms:
        backoff.failed(NOW_MS + away_ms, jitter)
    return backoff, backoff.next_try_ms - NOW_MS - away_ms


@pytest.mark.parametrize(
    ("away_ms", "delay_ms"),
    [
        (0, 2_000),
        (2_000, 2_000),
        (20_000, 3_000),
        (100_000, 15_000),
        (300_000, 45_000),
        (400_000, 50_000),
        (DAY_MS - 1, 50_000),
        (DAY_MS, 540_000),
        (14 * DAY_MS - 1, 540_000),
        (14 * DAY_MS, DAY_MS),
    ],
)
def test_delays_follow_how_long_it_has_been_away(away_ms: int, delay_ms: int) -> None:
    """First backoffs of ten minutes leave people offline for half an hour (decision 15)."""
    assert failing_for(away_ms)[1] == delay_ms


@given(st.integers(0, 20 * DAY_MS), st.floats(0, 1))
def test_jitter_only_ever_shortens(away_ms: int, jitter: float) -> None:
    """Destinations that failed together must not be tried together, and none later than it should."""
    _, plain_ms = failing_for(away_ms)
    _, delay_ms = failing_for(away_ms, jitter)
    assert 0.79 * plain_ms <= delay_ms <= plain_ms


def test_success_begins_anew() -> None:
    """An outage last month says nothing about this one."""
    backoff, _ = failing_for(DAY_MS)
    backoff.succeeded()
    assert (backoff.failing_since_ms, backoff.next_try_ms) == (None, 0)
    backoff.failed(NOW_MS + 2 * DAY_MS, 0.0)
    assert backoff.next_try_ms == NOW_MS + 2 * DAY_MS + 2_000


def test_its_own_retry_after_is_kept_even_when_it_is_heard_of() -> None:
    """Two servers must not wake each other in vain (Z-20)."""
    backoff = Backoff()
    backoff.failed(NOW_MS, 0.0, retry_after_ms=30_000)

    assert backoff.next_try_ms == NOW_MS + 30_000
    assert not backoff.wake(NOW_MS + 29_999)
    assert backoff.next_try_ms == NOW_MS + 30_000


def test_a_retry_after_shortens_nothing() -> None:
    """`Retry-After: 0` from a broken proxy is no reason to hammer it."""
    backoff = Backoff()
    backoff.failed(NOW_MS, 0.0, retry_after_ms=0)
    assert backoff.next_try_ms == NOW_MS + 2_000


def test_a_retry_after_of_a_year_is_a_day() -> None:
    """A typing error over there must not silence us for good."""
    backoff = Backoff()
    backoff.failed(NOW_MS, 0.0, retry_after_ms=365 * DAY_MS)
    assert backoff.next_try_ms == NOW_MS + DAY_MS


def test_something_authentic_wakes_it_at_most_once_a_minute() -> None:
    """A peer that sends much but takes nothing would otherwise be tried all the time (Z-20)."""
    backoff, _ = failing_for(DAY_MS)
    now = NOW_MS + DAY_MS

    assert backoff.wake(now)
    assert backoff.next_try_ms == now
    backoff.failed(now + 1, 0.0)
    assert not backoff.wake(now + MINUTE_MS - 1)
    assert backoff.wake(now + MINUTE_MS)


def test_a_try_that_waits_is_given_up_for_a_new_one_when_it_is_heard_of() -> None:
    """A connection asked for while a server was away may wait for seconds after its return (F:X-8)."""
    backoff, _ = failing_for(MINUTE_MS)
    now = backoff.next_try_ms

    assert not backoff.wake(now + 1)
    assert backoff.wake(now + 1, trying=True)
    assert not backoff.wake(now + 2, trying=True)


@given(st.integers(1, 7 * DAY_MS), st.floats(0, 1))
def test_a_destination_is_tried_soon_after_its_return(away_ms: int, jitter: float) -> None:
    """Within 5 s after 30 s, a minute after an hour, ten minutes after a week; less what sending takes."""
    backoff = Backoff()
    backoff.failed(NOW_MS, jitter)
    while backoff.next_try_ms < NOW_MS + away_ms:
        backoff.failed(backoff.next_try_ms, jitter)

    delay_ms = backoff.next_try_ms - NOW_MS - away_ms
    assert delay_ms <= max(2_000, 0.15 * away_ms)
    assert delay_ms <= (50_000 if away_ms < DAY_MS else 540_000)


def test_what_a_dead_destination_costs_a_day_is_bounded() -> None:
    """Thousands of servers never come back, and each is asked: often at first, then every few minutes."""
    backoff = Backoff()
    tries: dict[int, int] = {}
    backoff.failed(NOW_MS, 0.5)
    while (day := (backoff.next_try_ms - NOW_MS) // DAY_MS) < 20:
        tries[day] = tries.get(day, 0) + 1
        backoff.failed(backoff.next_try_ms, 0.5)

    assert tries[0] < 2_000
    assert all(tries[day] < 200 for day in range(1, 14))
    assert all(tries[day] <= 2 for day in range(15, 20))


def test_an_operator_always_gets_a_try() -> None:
    """Whoever has just mended a peer does not want to wait for it."""
    backoff = Backoff()
    backoff.failed(NOW_MS, 0.0, retry_after_ms=DAY_MS)
    backoff.retry_now(NOW_MS + 5)
    assert backoff.next_try_ms == NOW_MS + 5


def test_429_grows_like_any_backoff_and_is_no_outage() -> None:
    """Synapse answers 429 to a second transaction in progress; it is not away (Z-20)."""
    backoff = Backoff()
    backoff.failed(NOW_MS, 0.0, outage=False)
    backoff.failed(NOW_MS + 100_000, 0.0, outage=False)

    assert backoff.failing_since_ms is None
    assert backoff.next_try_ms == NOW_MS + 100_000 + 15_000
