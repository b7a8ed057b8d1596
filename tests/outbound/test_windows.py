import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.outbound.windows import BEATS, LATE_MS, MOST_BEAT_MS, Windows

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


@pytest.mark.parametrize("length_ms", [200, 500, 5_000])
def test_whoever_left_at_some_moment_leaves_with_the_others_from_then_on(length_ms: int) -> None:
    """Else each would wake the daemon by itself, for as long as all of them have something to say."""
    windows = Windows(length_ms)
    ends = {number: windows.end_ms(NOW_MS + 7 * number) for number in range(20)}
    moments: list[int] = []
    while len(moments) < 40:
        moments.append(min(ends.values()))
        for number in [number for number, end in ends.items() if end == moments[-1]]:
            ends[number] = windows.end_ms(moments[-1] + 1)  # a timer is a little late

    assert moments[-1] - moments[0] >= 40 // BEATS * length_ms
