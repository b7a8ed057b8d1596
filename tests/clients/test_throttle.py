import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.clients.throttle import MAX_KEYS, Throttle


def test_a_burst_and_then_the_rate() -> None:
    """contract.md: `5/s`, burst 10."""
    throttle: Throttle[str] = Throttle(5, 10)

    taken = [throttle.take("a", 0) for _ in range(11)]

    assert taken == [0] * 10 + [200]
    assert throttle.take("a", 199) > 0
    assert throttle.take("a", 200) == 0
    assert throttle.take("a", 200) == 200


def test_keys_do_not_share() -> None:
    """One user's haste is not another's."""
    throttle: Throttle[str] = Throttle(1, 1)
    throttle.take("a", 0)

    assert throttle.take("b", 0) == 0


def test_a_debt_is_bounded_by_a_burst() -> None:
    """What may not wait is paid for later, but not for ever."""
    throttle: Throttle[str] = Throttle(5, 10)

    for _ in range(100):
        throttle.take("a", 0, on_credit=True)

    assert throttle.take("a", 0) == 11 * 200


@given(st.lists(st.integers(0, 500), max_size=100))
def test_never_more_than_burst_and_rate(gaps_ms: list[int]) -> None:
    """The bound holds whatever the rhythm, and a refusal says when to come back."""
    throttle: Throttle[str] = Throttle(5, 10)
    now_ms, taken = 0, 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        wait_ms = throttle.take("a", now_ms)
        if wait_ms == 0:
            taken += 1
        else:
            assert throttle.take("a", now_ms + wait_ms - 1) > 0

    assert taken <= 10 + now_ms * 5 / 1000


def test_the_quiet_are_forgotten() -> None:
    """Memory follows who is active."""
    throttle: Throttle[int] = Throttle(5, 10)
    for key in range(100):
        throttle.take(key, 0)

    throttle.take(1000, 4_000)

    assert len(throttle) == 1


@pytest.mark.parametrize("extra", [0, 10])
def test_memory_is_bounded(extra: int) -> None:
    """However many names are invented."""
    throttle: Throttle[int] = Throttle(5, 10)
    for key in range(MAX_KEYS + extra):
        throttle.take(key, 0)

    assert len(throttle) == MAX_KEYS
