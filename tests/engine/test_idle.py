from dataclasses import replace

import pytest

from fedpresence.engine.presence import (
    BUSY,
    ONLINE,
    UNAVAILABLE,
    PresenceState,
    Published,
    Reason,
)
from fedpresence.testing.builders import LAPTOP, PHONE
from tests.engine.users import MINUTE, SETTINGS, T, a_user, at, online

# --- idle (P:5) -------------------------------------------------------------------------------


def test_a_device_is_idle_after_more_than_the_idle_timeout() -> None:
    """P:I-1, I-2: at 300 000 ms exactly not yet."""
    user = online()
    user.settle(T + MINUTE, SETTINGS)

    assert user.next_deadline_ms(SETTINGS) == T + 300_001
    assert at(user, T + 300_000).state is ONLINE
    assert user.settle(T + 300_001, SETTINGS) is Reason.STATE
    assert user.published == Published(UNAVAILABLE, T)


def test_idle_may_follow_active_in_the_next_millisecond() -> None:
    """P:A-8, I-2: with both at a minute, as an operator may have it, neither edge swallows the other."""
    settings = replace(SETTINGS, idle_timeout_ms=SETTINGS.last_active_granularity_ms)
    user = online()

    assert user.settle(T + MINUTE, settings) is Reason.CURRENTLY_ACTIVE
    assert user.published == Published(ONLINE, T)
    assert user.next_deadline_ms(settings) == T + MINUTE + 1
    assert user.settle(T + MINUTE + 1, settings) is Reason.STATE
    assert user.published == Published(UNAVAILABLE, T)


def test_a_client_may_set_unavailable_by_hand() -> None:
    """P:I-3."""
    user = online()

    user.put(PHONE, UNAVAILABLE, None, T + 10)

    assert user.settle(T + 10, SETTINGS) is Reason.STATE


@pytest.mark.parametrize("delay_ms", [0, 10])
def test_activity_brings_back_from_unavailable_by_hand(delay_ms: int) -> None:
    """P:I-4: even in the very millisecond, as with a clock that stands still."""
    user = online()
    user.put(PHONE, UNAVAILABLE, None, T)
    at(user, T)

    user.active(PHONE, T + delay_ms, T + delay_ms)

    assert at(user, T + delay_ms) == Published(ONLINE, T + delay_ms, None, currently_active=True)


def test_activity_told_late_does_not_undo_a_later_put() -> None:
    """A homeserver reports a message of ten seconds ago: the user has stepped away since."""
    user = online()
    user.put(PHONE, UNAVAILABLE, None, T + 10_000)

    user.active(PHONE, T + 5000, T + 15_000)

    assert at(user, T + 15_000) == Published(UNAVAILABLE, T + 5000)


def test_activity_told_late_does_not_undo_a_later_word_of_a_stream() -> None:
    """The same where the client stepped away by `set_presence`."""
    user = online()
    user.stream_opened(PHONE, UNAVAILABLE, T + 10_000)

    user.active(PHONE, T + 5000, T + 15_000)

    assert at(user, T + 15_000) == Published(UNAVAILABLE, T + 5000)


def test_activity_on_one_client_brings_the_user_online() -> None:
    """P:I-4, I-5: whoever types on the laptop is there, whatever the phone says."""
    user = online()
    user.stream_opened(LAPTOP, None, T)
    user.put(PHONE, UNAVAILABLE, None, T + 1)
    at(user, T + 6 * MINUTE)

    user.active(LAPTOP, T + 7 * MINUTE, T + 7 * MINUTE)

    assert at(user, T + 7 * MINUTE).state is ONLINE


def test_the_idle_clock_runs_for_each_device() -> None:
    """P:I-5: the user is idle when the last device is."""
    user = online()
    user.stream_opened(LAPTOP, None, T + MINUTE)

    assert at(user, T + 300_001).state is ONLINE
    assert at(user, T + MINUTE + 300_001).state is UNAVAILABLE


def test_busy_never_goes_idle() -> None:
    """P:I-6: a call is a call, however long."""
    user = online()
    user.put(PHONE, BUSY, None, T)

    assert at(user, T + 24 * 60 * MINUTE).state is BUSY
    assert user.next_deadline_ms(SETTINGS) is None


@pytest.mark.parametrize("word", [ONLINE, None])
def test_a_sync_does_not_end_an_idle_state_that_the_server_set(word: PresenceState | None) -> None:
    """P:I-7: clients say `set_presence=online` on every sync, in an empty room too."""
    user = online()
    user.stream_opened(PHONE, word, T)
    at(user, T + 300_001)

    user.stream_opened(PHONE, word, T + 400_000)

    assert user.settle(T + 400_000, SETTINGS) is None
    assert user.published == Published(UNAVAILABLE, T)


def test_a_sync_does_not_end_an_unavailable_that_was_put() -> None:
    """P:I-7: a PUT is never compared with `set_presence`."""
    user = online()
    user.stream_opened(PHONE, ONLINE, T)
    user.put(PHONE, UNAVAILABLE, None, T + 10)

    user.stream_opened(PHONE, ONLINE, T + 20)

    assert at(user, T + 20).state is UNAVAILABLE


def test_a_client_that_declares_online_after_unavailable_is_back_and_active() -> None:
    """P:I-7, 3: that is a change of what it declares."""
    user = a_user()
    user.stream_opened(PHONE, UNAVAILABLE, T)
    at(user, T)

    user.stream_opened(PHONE, None, T + 5)
    still_away = at(user, T + 5)
    user.stream_opened(PHONE, ONLINE, T + 10)

    assert still_away.state is UNAVAILABLE  # an absent word declares nothing
    assert at(user, T + 10) == Published(ONLINE, T + 10, None, currently_active=True)


@pytest.mark.parametrize("delay_ms", [0, 10])
def test_a_repeated_unavailable_does_not_undo_what_the_user_did_since(delay_ms: int) -> None:
    """P:I-4: a client that syncs with `unavailable` repeats it at every sync; its user typed in between."""
    user = online()
    user.stream_opened(PHONE, UNAVAILABLE, T + 10)
    stepped_away = at(user, T + 10)

    moment = T + 10 + delay_ms
    user.active(PHONE, moment, moment)
    user.stream_opened(PHONE, UNAVAILABLE, moment + delay_ms)

    assert stepped_away.state is UNAVAILABLE
    assert at(user, moment + delay_ms) == Published(ONLINE, moment, None, currently_active=True)


def test_a_repeated_unavailable_after_idling_again_changes_nothing() -> None:
    """It goes on being away, and nobody is told."""
    user = a_user()
    user.stream_opened(PHONE, UNAVAILABLE, T)
    user.active(PHONE, T + 10, T + 10)
    at(user, T + 10)
    at(user, T + 10 + 300_001)

    user.stream_opened(PHONE, UNAVAILABLE, T + 400_000)

    assert user.settle(T + 400_000, SETTINGS) is None
    assert user.published.state is UNAVAILABLE


def test_a_second_unavailable_after_online_counts_again() -> None:
    """A changed word is a word, whatever was done before it."""
    user = a_user()
    for moment, word in enumerate((UNAVAILABLE, ONLINE, UNAVAILABLE)):
        user.stream_opened(PHONE, word, T + moment)

    assert at(user, T + 3).state is UNAVAILABLE


def test_a_stream_does_not_undo_busy() -> None:
    """P:1, MSC3026: a sync with a lower state leaves a call alone."""
    user = online()
    user.put(PHONE, BUSY, None, T)

    user.stream_opened(PHONE, UNAVAILABLE, T + 1)
    user.stream_opened(PHONE, ONLINE, T + 2)

    assert at(user, T + 3).state is BUSY
