import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.outbound.windows import BEATS, LARGEST, LATE_MS, MOST_BEAT_MS, Windows

NOW_MS = 1_700_000_000_000


@given(st.integers(0, 10_000), st.lists(st.integers(0, 3_000), min_size=1, max_size=50))
def test_a_window_is_hardly_ever_shorter_and_never_much_longer(length_ms: int, steps: list[int]) -> None:
    """It is the least time between two transactions to one destination (contract, `batch_window`)."""
    windows = Windows(length_ms)
    now = NOW_MS
    for step in steps:
        now += step
        lasts_ms = windows.end_ms(now) - now
        assert length_ms - LATE_MS <= lasts_ms <= length_ms + min(MOST_BEAT_MS, length_ms // BEATS + 1)


@given(st.integers(1, 10_000), st.lists(st.integers(0, 3_000), min_size=1, max_size=20))
def test_who_sends_alone_has_windows_as_long_as_they_should_be(length_ms: int, pauses: list[int]) -> None:
    """Nobody waits for others where there are none."""
    windows = Windows(length_ms)
    now = NOW_MS
    for pause in pauses:
        end = windows.end_ms(now)
        assert end == now + length_ms
        now = end + pause


def _groups(windows: Windows, began_ms: list[int], until_ms: int) -> list[tuple[int, list[int]]]:
    """All leave again whenever their window ends: at which moments, and who with whom."""
    ends = [windows.end_ms(at_ms) for at_ms in began_ms]
    groups = []
    while (moment := min(ends)) < until_ms:
        group = [number for number, end in enumerate(ends) if end == moment]
        groups.append((moment, group))
        for number in group:
            ends[number] = windows.end_ms(moment + 1)  # a timer is a little late
    return groups


@pytest.mark.parametrize("length_ms", [200, 500, 5_000])
def test_whoever_left_at_some_moment_leaves_with_the_others_before_long(length_ms: int) -> None:
    """Else each would wake the daemon by itself, for as long as all of them have something to say."""
    apart = [NOW_MS + 7 * number for number in range(20)]
    windows = max(BEATS, length_ms // MOST_BEAT_MS) + 3

    *_, before, last = _groups(Windows(length_ms), apart, NOW_MS + windows * length_ms)

    assert before[1] == last[1] == list(range(20))
    assert last[0] - before[0] == pytest.approx(length_ms, abs=1)


def test_who_is_late_once_is_with_the_others_in_the_next_window() -> None:
    """They wait a beat for it; its own way to them would be nearly a whole window, a beat at a time."""
    windows = Windows(200)
    for _ in range(10):
        windows.end_ms(NOW_MS)
    late = windows.end_ms(NOW_MS + 8)

    others = [windows.end_ms(NOW_MS + 200) for _ in range(10)]

    assert {windows.end_ms(late), *others} == {NOW_MS + 425}


def test_groups_do_not_grow_beyond_what_gains_by_it() -> None:
    """Hundreds at once would make whoever comes meanwhile wait behind them."""
    apart = [NOW_MS + number for number in range(1, 200)]  # as many at each beat as may join, by and large

    groups = _groups(Windows(200), apart, NOW_MS + 10_000)

    assert max(len(group) for _, group in groups) <= LARGEST + len(apart) // BEATS


def test_who_finds_no_room_in_a_group_stays_where_they_are() -> None:
    """Their windows are as long as they should be, too."""
    apart = [NOW_MS] * LARGEST + [NOW_MS + 30] * LARGEST

    groups = _groups(Windows(200), apart, NOW_MS + 10_000)

    assert {len(group) for _, group in groups} == {LARGEST}
    assert groups[-1][0] - groups[-3][0] == 200
