import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.presence import (
    BUSY,
    NOTHING,
    OFFLINE,
    ONLINE,
    REASONS,
    UNAVAILABLE,
    PresenceState,
    Published,
    Reason,
    View,
    deciding_row,
    view_of,
    worth_telling,
)
from fedpresence.testing.builders import LAPTOP, PHONE
from tests.engine.users import MINUTE, SETTINGS, T, a_user, at, online

# --- the decision table (P:8.1) ---------------------------------------------------------------

ACTIVE = Published(ONLINE, T, "Tea", currently_active=True)
QUIET = ACTIVE._replace(currently_active=False)
IDLE = Published(UNAVAILABLE, T, "Tea")
GONE = Published(OFFLINE, T, "Tea")
IN_CALL = Published(BUSY, T, "Tea")


def later(published: Published, ms: int) -> Published:
    """The same, with a last active time moved by `ms`."""
    return published._replace(last_active_ms=published.last_active_ms + ms)


ROWS = (
    (1, ACTIVE, ACTIVE, None),
    (1, GONE, GONE, None),
    (2, ACTIVE, ACTIVE._replace(status_msg="Coffee"), Reason.STATUS_MSG),
    (2, ACTIVE, ACTIVE._replace(status_msg=None), Reason.STATUS_MSG),
    (2, GONE, IDLE._replace(status_msg=None), Reason.STATUS_MSG),
    (3, ACTIVE, IDLE, Reason.STATE),
    (3, IDLE, GONE, Reason.STATE),
    (3, GONE, ACTIVE, Reason.STATE),
    (3, IN_CALL, QUIET, Reason.STATE),
    (4, ACTIVE, QUIET, Reason.CURRENTLY_ACTIVE),
    (4, QUIET, ACTIVE, Reason.CURRENTLY_ACTIVE),
    (4, QUIET, later(ACTIVE, 1), Reason.CURRENTLY_ACTIVE),
    (5, QUIET, later(QUIET, MINUTE + 1), Reason.LAST_ACTIVE_ONLINE),
    (5, QUIET, later(QUIET, -MINUTE - 1), Reason.LAST_ACTIVE_ONLINE),
    (6, QUIET, later(QUIET, MINUTE), None),
    (6, ACTIVE, later(ACTIVE, MINUTE), None),
    (6, ACTIVE, later(ACTIVE, 24 * 60 * MINUTE), None),
    (7, IDLE, later(IDLE, MINUTE + 1), Reason.LAST_ACTIVE_NOT_ONLINE),
    (7, GONE, later(GONE, MINUTE + 1), Reason.LAST_ACTIVE_NOT_ONLINE),
    (7, IN_CALL, later(IN_CALL, MINUTE + 1), Reason.LAST_ACTIVE_NOT_ONLINE),
    (8, IDLE, later(IDLE, MINUTE), None),
    (8, GONE, later(GONE, -MINUTE), None),
)


@pytest.mark.parametrize(("row", "old", "new", "reason"), ROWS)
def test_each_row_of_the_decision_table_decides_what_it_says(
    row: int, old: Published, new: Published, reason: Reason | None
) -> None:
    """P:8.1 is what every homeserver does: too much costs everybody, too little freezes people."""
    assert deciding_row(old, new, MINUTE) == row
    assert worth_telling(old, new, MINUTE) is reason


def test_the_decision_table_is_complete_and_in_order() -> None:
    """The first match decides, so the order is part of the rule; rows tested are rows there are."""
    assert {row for row, *_ in ROWS} == {*range(1, 9)}
    assert {(row, reason) for row, _, _, reason in ROWS} == set(enumerate(REASONS)) - {(0, None)}


published = st.builds(
    lambda state, last, message, active: Published(state, last, message, active and state is ONLINE),
    st.sampled_from(PresenceState),
    st.integers(T - 10 * MINUTE, T),
    st.sampled_from([None, "Tea"]),
    st.booleans(),
)


@given(published, published)
def test_what_anybody_can_see_change_is_always_told(old: Published, new: Published) -> None:
    """P:A-7: state, message and activity are never suppressed."""
    seen_old = (old.state, old.status_msg, old.currently_active)
    seen_new = (new.state, new.status_msg, new.currently_active)

    if seen_old != seen_new:
        assert worth_telling(old, new, MINUTE) is not None


@given(published, st.integers(0, 10 * MINUTE))
def test_a_moved_last_active_time_alone_is_never_told_of_an_active_user(old: Published, moved: int) -> None:
    """P:A-2 is the promise of `currently_active`: silence while it holds."""
    active = Published(ONLINE, old.last_active_ms, old.status_msg, currently_active=True)

    assert worth_telling(active, later(active, moved), MINUTE) is None


# --- ages (P:2) -------------------------------------------------------------------------------


def test_an_age_is_made_for_the_moment_and_never_negative() -> None:
    """P:M-2, M-3: peers type it as unsigned, and drop a whole EDU for one negative age."""
    assert view_of(ACTIVE, T + 5) == View(ONLINE, 5, "Tea", currently_active=True)
    assert view_of(ACTIVE, T - 5).last_active_ago == 0


def test_who_was_never_active_has_no_age() -> None:
    """P:M-1: zero would say active in 1970."""
    assert view_of(NOTHING, T) == View(OFFLINE)


# --- currently active (P:4) -------------------------------------------------------------------


def test_a_user_is_active_for_less_than_the_granularity() -> None:
    """P:A-8, A-9: at 60 000 ms exactly the promise ends, and a timer is set to say so."""
    user = online()

    assert user.next_deadline_ms(SETTINGS) == T + MINUTE
    assert at(user, T + MINUTE - 1).currently_active
    assert not at(user, T + MINUTE).currently_active


def test_the_end_of_activity_is_told_once() -> None:
    """P:A-3, A-9: without it clients would show the user active for ever."""
    user = online()

    reasons = [user.settle(ms, SETTINGS) for ms in (T + MINUTE, T + MINUTE + 1, T + 2 * MINUTE)]

    assert reasons == [Reason.CURRENTLY_ACTIVE, None, None]


def test_activity_while_active_is_stored_and_not_told() -> None:
    """P:A-2, A-5: the truth is kept, for whoever asks and for whatever goes out next."""
    user = online()

    user.active(PHONE, T + 40_000, T + 40_000)

    assert user.settle(T + 40_000, SETTINGS) is None
    assert user.published.last_active_ms == T + 40_000
    assert user.next_deadline_ms(SETTINGS) == T + 100_000


def test_activity_of_a_quiet_user_is_told_at_once() -> None:
    """P:8.5 at 200 s: active again is news."""
    user = online()
    user.settle(T + MINUTE, SETTINGS)

    user.active(PHONE, T + 2 * MINUTE, T + 2 * MINUTE)

    assert user.settle(T + 2 * MINUTE, SETTINGS) is Reason.CURRENTLY_ACTIVE


def test_a_busy_user_is_not_called_active() -> None:
    """P:A-1: the flag goes with online alone."""
    user = online()

    user.put(PHONE, BUSY, None, T + 1)

    assert at(user, T + 1) == Published(BUSY, T + 1)


# --- what bumps (P:3) -------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "bumps"), [(ONLINE, True), (UNAVAILABLE, False), (OFFLINE, False)])
def test_only_a_put_of_online_is_activity(state: PresenceState, bumps: bool) -> None:
    """P:14.1: stepping away is not activity."""
    user = online()

    user.put(PHONE, state, None, T + 1000)

    assert at(user, T + 1000).last_active_ms == (T + 1000 if bumps else T)


def test_the_stream_that_brings_a_device_online_is_activity_once() -> None:
    """P:3, decision 6: a change to online counts, the syncs after it do not."""
    user = a_user()

    user.stream_opened(PHONE, None, T)
    user.stream_closed(PHONE, T + 5)
    user.stream_opened(PHONE, ONLINE, T + 10)

    assert at(user, T + 10).last_active_ms == T


def test_a_stream_declared_unavailable_brings_nobody_online() -> None:
    """P:13: the client says that its user is away."""
    user = a_user()

    user.stream_opened(PHONE, UNAVAILABLE, T)

    assert at(user, T) == Published(UNAVAILABLE)


# --- offline (P:7) ----------------------------------------------------------------------------


def test_a_device_without_a_stream_is_offline_after_more_than_half_a_minute() -> None:
    """P:O-1, U-4: from the end of the stream, at 30 000 ms exactly not yet."""
    user = online()
    user.stream_closed(PHONE, T + 10_000)

    assert user.next_deadline_ms(SETTINGS) == T + 40_001
    assert at(user, T + 40_000).state is ONLINE
    assert user.settle(T + 40_001, SETTINGS) is Reason.STATE
    assert user.published == Published(OFFLINE, T)


@pytest.mark.parametrize("contact", ["put", "activity", "stream"])
def test_any_contact_keeps_a_device_for_another_half_minute(contact: str) -> None:
    """P:O-1: last contact is the end of a stream, a PUT or an activity, whichever was last."""
    user = online(streams=False)

    if contact == "put":
        user.put(PHONE, UNAVAILABLE, None, T + 20_000)
    elif contact == "activity":
        user.active(PHONE, T + 20_000, T + 20_000)
    else:
        user.stream_opened(PHONE, None, T + 19_000)
        user.stream_closed(PHONE, T + 20_000)

    assert at(user, T + 50_000).state is not OFFLINE
    assert at(user, T + 50_001).state is OFFLINE


def test_an_open_stream_holds_a_device_for_ever() -> None:
    """P:O-2: also where one of two streams of the device has ended."""
    user = online()
    user.stream_opened(PHONE, None, T)
    user.stream_closed(PHONE, T)

    assert at(user, T + 24 * 60 * MINUTE).state is UNAVAILABLE

    user.stream_closed(PHONE, T + 24 * 60 * MINUTE)
    assert at(user, T + 24 * 60 * MINUTE + 30_001).state is OFFLINE


def test_a_stream_that_ends_twice_ends_once() -> None:
    """A token may be revoked while its stream is open: the end that follows finds another count."""
    user = online()

    user.stream_closed(PHONE, T)
    user.stream_closed(PHONE, T + 20_000)
    user.stream_closed(LAPTOP, T + 20_000)

    assert at(user, T + 30_001).state is OFFLINE


def test_a_busy_device_without_a_stream_has_an_hour() -> None:
    """P:U-6: calls go on while a client reconnects."""
    user = online(streams=False)
    user.put(PHONE, BUSY, None, T)
    at(user, T)

    assert user.next_deadline_ms(SETTINGS) == T + 3_600_001
    assert at(user, T + 3_600_000).state is BUSY
    assert at(user, T + 3_600_001).state is OFFLINE


def test_a_message_of_somebody_offline_without_a_word_brings_them_online() -> None:
    """P:O-3: implicit offline is lifted by a pro-active event."""
    user = online(streams=False)
    at(user, T + MINUTE)

    user.active(PHONE, T + 2 * MINUTE, T + 2 * MINUTE)

    assert at(user, T + 2 * MINUTE) == Published(ONLINE, T + 2 * MINUTE, None, currently_active=True)


def test_an_offline_user_has_no_timers() -> None:
    """P:O-5: millions of them cost nothing."""
    user = online(streams=False)
    at(user, T + 30_001)

    assert user.next_deadline_ms(SETTINGS) is None
