import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.outbound.budget import TokenBucket, Turns

NOW_MS = 1_700_000_000_000


@given(
    st.integers(1, 200),
    st.integers(1, 50),
    st.lists(st.integers(0, 400), max_size=200),
)
def test_no_more_is_granted_than_rate_and_burst_allow(rate: int, burst: int, steps: list[int]) -> None:
    """An operator says in one number what presence may cost (decision 12)."""
    bucket = TokenBucket(rate, burst)
    now = NOW_MS
    granted = []
    for step in steps:
        now += step
        if bucket.take(now):
            granted.append(now)

    for index, first in enumerate(granted):
        for count, later in enumerate(granted[index:], start=1):
            assert count <= burst + (later - first) * rate / 1000 + 1e-6


@given(st.integers(1, 200), st.integers(1, 50), st.lists(st.integers(0, 400), max_size=100))
def test_a_bucket_is_ready_exactly_when_it_says(rate: int, burst: int, steps: list[int]) -> None:
    """A timer set by `ready_ms` must not fire in vain, nor late."""
    bucket = TokenBucket(rate, burst)
    now = NOW_MS
    for step in steps:
        now += step
        ready = bucket.ready_ms()
        assert bucket.take(now) == (now >= ready)


@given(
    st.integers(1, 200),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=100),
)
def test_what_is_reserved_comes_in_order_and_within_the_rate(
    rate: int, burst: int, steps: list[tuple[int, bool]]
) -> None:
    """Who waits for a connection must not be overtaken for ever by those who come later (decision 15)."""
    bucket = TokenBucket(rate, burst)
    now = NOW_MS
    granted: list[int] = []
    for step, waits in steps:
        now += step
        if waits:
            granted.append(bucket.reserve(now))
        elif bucket.take(now):
            granted.append(now)

    assert granted == sorted(granted)
    for index, first in enumerate(granted):
        for count, later in enumerate(granted[index:], start=1):
            assert count <= burst + (later - first) * rate / 1000 + 1e-6


def test_the_earliest_deadline_goes_first() -> None:
    """Latency where a person waits, batching where nobody does (decision 12)."""
    turns: Turns[str] = Turns(10)
    turns.ask("a refresh", NOW_MS + 60_000)
    turns.ask("a change", NOW_MS + 200)
    turns.ask("a poll", NOW_MS)

    order = [turns.next(NOW_MS) for _ in range(4)]

    assert order == ["a poll", "a change", "a refresh", None]


def test_asking_again_only_moves_forward() -> None:
    """More urgent news pulls a waiting destination ahead, and it gets one turn, not two."""
    turns: Turns[str] = Turns(10)
    turns.ask("a", NOW_MS + 500)
    turns.ask("b", NOW_MS + 100)
    turns.ask("a", NOW_MS + 50)
    turns.ask("a", NOW_MS + 900)

    assert [turns.next(NOW_MS) for _ in range(3)] == ["a", "b", None]


def test_turns_wait_for_the_budget_and_say_until_when() -> None:
    """Under load the windows stretch so that the budget holds (decision 12)."""
    turns: Turns[int] = Turns(2)
    for number in range(3):
        turns.ask(number, NOW_MS)

    assert [turns.next(NOW_MS) for _ in range(3)] == [0, 1, None]
    assert turns.ready_ms() == NOW_MS + 500
    assert turns.next(NOW_MS + 499) is None
    assert turns.next(NOW_MS + 500) == 2
    assert turns.ready_ms() is None


def test_who_withdraws_takes_no_turn() -> None:
    """A forgotten destination must not spend the budget."""
    turns: Turns[str] = Turns(1)
    turns.ask("gone", NOW_MS)
    turns.ask("here", NOW_MS + 1)
    turns.withdraw("gone")

    assert len(turns) == 1
    assert turns.next(NOW_MS) == "here"


def test_who_must_wait_goes_in_groups() -> None:
    """Those who leave together wake the daemon once, and share what they say; the last wait for no more."""
    turns = _crowd(65)

    assert turns.ready_ms() == NOW_MS + 300  # fifteen stayed behind
    assert [turns.next(NOW_MS + 300) for _ in range(16)] == [*range(50, 65), None]


def test_a_group_has_a_largest_size_and_all_have_about_the_same() -> None:
    """Who asks meanwhile waits for the group; and unequal ones would make turns come unevenly."""
    turns = _crowd(80)  # thirty stayed behind: two groups of fifteen, not one of twenty-five and one of five

    assert turns.ready_ms() == NOW_MS + 300
    assert [turns.next(NOW_MS + 300) for _ in range(16)] == [*range(50, 65), None]


def test_who_is_more_urgent_than_all_that_wait_goes_with_the_smallest_group() -> None:
    """A person's change must not wait for long behind refreshes that could."""
    turns = _crowd(500)

    turns.ask(1_000, NOW_MS - 1)

    assert turns.ready_ms() == NOW_MS + 100
    assert turns.next(NOW_MS + 100) == 1_000


@pytest.mark.parametrize("gather_ms", [0, 100, 2_500])
@pytest.mark.parametrize("per_second", [1, 3, 50, 1_000])
def test_who_waits_because_there_are_many_gets_as_many_turns_in_groups(
    per_second: int, gather_ms: int
) -> None:
    """Every token is drawn, though we come a little late; and no group waits for long."""
    late_ms = 100
    turns: Turns[int] = Turns(per_second, gather_ms)
    for name in range(20 * per_second):
        turns.ask(name, NOW_MS)
    now_ms, gone = NOW_MS, 0
    while True:
        while turns.next(now_ms) is not None:
            gone += 1
        ready_ms = turns.ready_ms()
        assert ready_ms is not None
        assert ready_ms - now_ms <= max(500, 1000 / per_second) + 1
        if ready_ms > NOW_MS + 10_000:
            break
        now_ms = ready_ms + late_ms

    granted = per_second * (1 + (now_ms - NOW_MS) / 1000)
    assert granted - 1 - 1e-6 <= gone <= granted + 1e-6


def _crowd(size: int) -> Turns[int]:
    """So many asked at once, and a second's worth has gone."""
    turns: Turns[int] = Turns(50, gather_ms=100)
    for name in range(size):
        turns.ask(name, NOW_MS)
    assert [turns.next(NOW_MS) for _ in range(51)] == [*range(50), None]
    return turns


def test_of_some_tokens_as_many_are_drawn_as_there_are() -> None:
    """Part of a user's news may be within their share."""
    bucket = TokenBucket(1, burst=5)

    assert (bucket.take_some(NOW_MS, 3), bucket.take_some(NOW_MS, 3)) == (3, 2)
    assert bucket.take_some(NOW_MS + 1_000, 3) == 1


@given(
    st.integers(1, 300), st.integers(1, 50), st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 60)))
)
def test_some_tokens_are_drawn_as_one_by_one(rate: int, burst: int, steps: list[tuple[int, int]]) -> None:
    """Ten thousand at once must not take ten thousand steps, nor be granted more."""
    bucket, slow = TokenBucket(rate, burst), TokenBucket(rate, burst)
    now_ms = 1_700_000_000_000
    for pause_ms, most in steps:
        now_ms += pause_ms

        taken = bucket.take_some(now_ms, most)

        one_by_one = next((n for n in range(most) if not slow.take(now_ms)), most)
        assert abs(taken - one_by_one) <= (0 if 1000 % rate == 0 else 1)
        if taken != one_by_one:  # the last digits of floats: not to be compared any further
            return
