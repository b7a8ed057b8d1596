from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fedpresence.outbound.rounds import Round

NOW_MS = 1_700_000_000_000
INTERVAL_MS = 1_500_000
LENGTH_MS = 0.75 * INTERVAL_MS
DUE_MS, BY_MS = 900_000, 1_350_000  # 0.6 and 0.9 of the interval


def begun(count: int) -> Round[int]:
    """So many make a round, and one has just gone."""
    line: Round[int] = Round(LENGTH_MS)
    line.count = count
    line.went(NOW_MS)
    return line


def rounds(line: Round[int], told_ms: list[int], until_ms: int) -> list[int]:
    """When refreshes leave, if each asks from 0.6 of an interval on after it was told the last time."""
    due = sorted((told + DUE_MS, number) for number, told in enumerate(told_ms))
    left: list[int] = []
    while True:
        ready_ms = line.ready_ms()
        now = due[0][0] if ready_ms is None else max(ready_ms, left[-1] if left else 0)
        if due and due[0][0] <= now:
            asked_ms, number = due.pop(0)
            line.ask(number, asked_ms - DUE_MS + BY_MS)
            continue
        if now > until_ms:
            return left
        name = line.next(now)
        assert name is not None
        line.went(now)
        assert now - told_ms[name] <= BY_MS
        left.append(now)
        told_ms[name] = now
        due.append((now + DUE_MS, name))


def most_within_a_second(left: list[int]) -> int:
    """Counted from each that left."""
    return max(sum(0 <= other - one < 1000 for other in left[n : n + 50]) for n, one in enumerate(left))


def test_what_falls_due_together_is_spread_over_the_time_it_has_and_then_over_the_round() -> None:
    """A room that a thousand servers join, or our own line: after it they would meet again and again."""
    count = 1000

    left = rounds(begun(count), [NOW_MS] * count, NOW_MS + 5 * INTERVAL_MS)

    first, later = left[:count], left[2 * count :]
    assert first[-1] - NOW_MS <= BY_MS
    assert most_within_a_second(first) <= 3  # a thousand in 450 s
    assert {after - before for before, after in pairwise(later)} <= {1125}


@given(st.lists(st.integers(NOW_MS - 850_000, NOW_MS), min_size=1, max_size=60))
def test_nobody_waits_for_longer_than_they_may(told_ms: list[int]) -> None:
    """The other side would show them offline (P:T-6): whatever came before, and however few were counted."""
    for count in (1, len(told_ms)):
        left = rounds(begun(count), list(told_ms), NOW_MS + 2 * INTERVAL_MS)

        assert len(left) >= 2 * len(told_ms)


@given(st.lists(st.integers(NOW_MS - 850_000, NOW_MS), min_size=1, max_size=60))
def test_after_three_rounds_they_leave_one_by_one_at_an_even_pace(told_ms: list[int]) -> None:
    """However they were told before: no two in one second that a round has room to part."""
    count = len(told_ms)

    left = rounds(begun(count), told_ms, NOW_MS + 6 * INTERVAL_MS)

    late = [moment for moment in left if moment > NOW_MS + 4 * INTERVAL_MS]
    assert all(after - before >= LENGTH_MS // count for before, after in pairwise(late))


def test_who_need_not_go_any_more_takes_no_turn() -> None:
    """Most refreshes ride along with news while they stand in line."""
    line = begun(2)
    line.ask(1, NOW_MS + BY_MS)
    line.ask(2, NOW_MS + BY_MS)
    now = line.ready_ms() or 0

    assert (line.next(now), line.next(now), line.next(now)) == (1, 2, None)


def test_who_is_late_already_goes_at_once() -> None:
    """Sleep of the machine, say; the budget of all transactions holds them (decision 12)."""
    line = begun(10)
    line.ask(1, NOW_MS - 1)
    assert line.next(NOW_MS) == 1


def test_the_one_that_must_go_first_goes_first() -> None:
    """Whoever asked before."""
    line = begun(2)
    line.ask(1, NOW_MS + BY_MS)
    line.ask(2, NOW_MS + DUE_MS)
    assert line.next(NOW_MS + DUE_MS) == 2
    assert len(line) == 1
