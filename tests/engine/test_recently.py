from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.recently import Quota, Recently

HOUR = 3_600_000


def test_once_in_a_period_and_then_again() -> None:
    """One answer an hour: at the hour exactly the next may go."""
    recently = Recently(HOUR)

    answers = [recently.allow("a", ms) for ms in (0, 1, HOUR - 1, HOUR, 2 * HOUR - 1)]

    assert answers == [True, False, False, True, False]


def test_each_key_has_its_own_period() -> None:
    """One peer's pushes never silence our answer to another."""
    recently = Recently(HOUR)
    recently.allow("a", 0)

    assert recently.allow("b", 1)


def test_a_refusal_does_not_begin_a_new_period() -> None:
    """A peer that asks all the time is answered each hour, not never."""
    recently = Recently(HOUR)

    allowed = sum(recently.allow("a", ms) for ms in range(0, 10 * HOUR, 60_000))

    assert allowed == 10


def test_memory_is_bounded_and_the_oldest_gives_way() -> None:
    """Anybody may invent names; forgetting one means answering once more, no worse."""
    recently = Recently(HOUR, max_keys=3)
    for ms, key in enumerate("abc"):
        recently.allow(key, ms)

    recently.allow("d", 3)

    assert not any(recently.allow(key, 4) for key in "bcd")
    assert recently.allow("a", 5)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50)), max_size=50))
def test_a_key_is_never_allowed_twice_within_a_period(asked: list[tuple[str, int]]) -> None:
    """The limit holds whatever the order of asking."""
    recently = Recently(10)
    last: dict[str, int] = {}
    now = 0

    for key, ms in asked:
        now += ms
        expected = key not in last or now - last[key] >= 10
        assert recently.allow(key, now) is expected
        if expected:
            last[key] = now


def test_a_quota_allows_so_many_in_each_period() -> None:
    """Z-12: a hundred answers per origin and minute, then silence until the minute is over."""
    quota = Quota(3, HOUR)

    assert [quota.allow("a", ms) for ms in (0, 10, 20, 30, HOUR - 1)] == [True, True, True, False, False]
    assert [quota.left("a", ms) for ms in (HOUR - 1, HOUR)] == [0, 3]
    assert quota.allow("a", HOUR)
    assert quota.left("a", HOUR) == 2


def test_asking_what_is_left_uses_nothing() -> None:
    """A question is not a use."""
    quota = Quota(1, HOUR)

    assert [quota.left("a", 0) for _ in range(3)] == [1, 1, 1]


def test_a_quota_forgets_the_key_unused_for_longest() -> None:
    """Memory is bounded here too."""
    quota = Quota(1, HOUR, max_keys=2)
    for ms, key in enumerate("abc"):
        quota.allow(key, ms)

    assert [quota.left(key, 3) for key in "abc"] == [1, 0, 0]
