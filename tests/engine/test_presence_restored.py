import pytest

from fedpresence.engine.presence import (
    BUSY,
    OFFLINE,
    ONLINE,
    RESTORED,
    UNAVAILABLE,
    LocalUser,
    PresenceRecord,
    PresenceState,
    Published,
    Reason,
)
from fedpresence.testing.builders import ALICE, LAPTOP, PHONE
from tests.engine.users import MINUTE, SETTINGS, T, at

# --- after a restart (P:M-4) ------------------------------------------------------------------


def restored(
    state: PresenceState = ONLINE, ago_ms: int = 10 * MINUTE, *, active: bool = False, now_ms: int = T
) -> LocalUser:
    """A user who was in `state` when the server stopped."""
    record = PresenceRecord(ALICE, state, now_ms - ago_ms, "Tea", active, 0)
    return LocalUser.restored(record, now_ms, SETTINGS)


def test_after_a_restart_no_timer_runs_for_half_a_minute() -> None:
    """P:M-4: clients need a moment to come back; nobody's friends should see them leave meanwhile."""
    user = restored()

    assert user.next_deadline_ms(SETTINGS) == T + 30_000
    assert at(user, T + 29_999) == Published(ONLINE, T - 10 * MINUTE, "Tea")


def test_who_does_not_come_back_is_offline_after_half_a_minute() -> None:
    """P:M-4, O-1: the pseudo-device goes like any other."""
    user = restored(UNAVAILABLE)

    assert user.settle(T + 30_000, SETTINGS) is None
    assert user.settle(T + 30_001, SETTINGS) is Reason.STATE
    assert user.published == Published(OFFLINE, T - 10 * MINUTE, "Tea")
    assert user.next_deadline_ms(SETTINGS) is None


@pytest.mark.parametrize("state", [ONLINE, UNAVAILABLE, BUSY])
def test_who_comes_back_in_time_goes_on_as_before(state: PresenceState) -> None:
    """P:M-4, I-7: a restart is no activity of anybody, and no news."""
    user = restored(state, 2 * MINUTE)

    user.stream_opened(PHONE, None, T + 5000)

    assert user.settle(T + 5000, SETTINGS) is None
    assert user.settle(T + 30_001, SETTINGS) is None
    assert user.published == Published(state, T - 2 * MINUTE, "Tea")
    assert set(user.devices) == ({PHONE, RESTORED} if state is BUSY else {PHONE})


def test_a_client_that_comes_back_unavailable_is_so_when_the_half_minute_ends() -> None:
    """P:13: its word counts for its device; a call is left alone."""
    for state, then in ((ONLINE, UNAVAILABLE), (UNAVAILABLE, UNAVAILABLE), (BUSY, BUSY)):
        user = restored(state, 1000)

        user.stream_opened(PHONE, UNAVAILABLE, T + 1000)

        assert at(user, T + 30_001).state is then


def test_who_comes_back_as_the_half_minute_ends_is_late() -> None:
    """P:M-4: the same moment at which the timers begin to run."""
    user = restored(UNAVAILABLE)

    user.stream_opened(PHONE, None, T + 30_000)

    assert at(user, T + 30_000).last_active_ms == T + 30_000


def test_who_comes_back_after_that_is_a_device_like_any_other() -> None:
    """P:3: then the stream lifts an implicit offline."""
    user = restored(UNAVAILABLE)
    at(user, T + 30_001)

    user.stream_opened(PHONE, None, T + 31_000)

    assert at(user, T + 31_000) == Published(ONLINE, T + 31_000, "Tea", currently_active=True)


def test_a_user_who_idled_through_a_restart_is_idle_when_the_half_minute_ends() -> None:
    """P:M-4: the idle clock goes on from the stored time, it only may not ring before."""
    user = restored(ONLINE, 4 * MINUTE + 50_000)
    user.stream_opened(PHONE, ONLINE, T + 1000)

    assert at(user, T + 29_999).state is ONLINE
    assert at(user, T + 30_000).state is UNAVAILABLE


def test_an_active_user_is_active_through_a_restart_and_then_no_more() -> None:
    """P:A-9 after M-4: whoever was promised activity before the restart is told of its end."""
    user = restored(ONLINE, 50_000, active=True)
    assert user.published.currently_active

    user.stream_opened(PHONE, None, T + 1000)
    assert user.settle(T + 1000, SETTINGS) is None
    assert user.next_deadline_ms(SETTINGS) == T + 30_000

    assert user.settle(T + 30_000, SETTINGS) is Reason.CURRENTLY_ACTIVE


def test_the_word_of_a_put_replaces_what_was_guessed() -> None:
    """Z-8: who hides right after a restart is hidden at once, not half a minute later."""
    for state in (OFFLINE, UNAVAILABLE):
        user = restored(ONLINE, 1000)

        user.put(PHONE, state, None, T + 1000)

        assert at(user, T + 1000).state is state


def test_a_second_device_comes_back_as_before_though_the_first_has_spoken() -> None:
    """P:M-4: an idle laptop that reconnects is no activity, whatever the phone put meanwhile."""
    user = restored(UNAVAILABLE, 10 * MINUTE)
    user.put(PHONE, UNAVAILABLE, None, T + 1000)

    user.stream_opened(LAPTOP, None, T + 2000)

    assert at(user, T + 2000) == Published(UNAVAILABLE, T - 10 * MINUTE)


def test_activity_before_the_device_is_back_is_not_lost() -> None:
    """P:D-7, I-4: a message through the homeserver, then the client's stream: online for five minutes."""
    user = restored(UNAVAILABLE, 10 * MINUTE)

    user.active(None, T + 1000, T + 1000)
    user.stream_opened(PHONE, None, T + 2000)

    assert at(user, T + 2000) == Published(ONLINE, T + 1000, "Tea", currently_active=True)
    assert at(user, T + 60_999).currently_active
    assert at(user, T + 5 * MINUTE).state is ONLINE


def test_activity_while_we_were_away_counts_after_it() -> None:
    """A homeserver that repeats what we missed: typed three seconds before our start."""
    user = restored(UNAVAILABLE, 10 * MINUTE)

    user.active(None, T - 3000, T + 100)

    assert at(user, T + 100) == Published(ONLINE, T - 3000, "Tea", currently_active=True)


def test_a_stored_time_in_the_future_is_now() -> None:
    """Z-21: a clock that was wrong when we stopped makes nobody active for ever."""
    user = restored(ONLINE, -10 * MINUTE, active=True)

    assert user.published.last_active_ms == T


def test_a_hidden_device_is_hidden_after_a_restart() -> None:
    """P:D-8: whoever appears offline does so until they say otherwise."""
    user = restored(OFFLINE)
    user.hide(PHONE)

    user.stream_opened(PHONE, ONLINE, T + 1000)
    user.active(PHONE, T + 2000, T + 2000)
    user.active(None, T + 2000, T + 2000)

    assert user.settle(T + 2000, SETTINGS) is None
    assert user.published == Published(OFFLINE, T - 10 * MINUTE, "Tea")
