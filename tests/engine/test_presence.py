from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.presence import (
    BUSY,
    DECISIONS,
    NOTHING,
    OFFLINE,
    ONLINE,
    RESTORED,
    UNAVAILABLE,
    LocalUser,
    PresenceRecord,
    PresenceState,
    Published,
    Reason,
    View,
    view_of,
    worth_telling,
)
from fedpresence.testing.builders import ALICE, LAPTOP, NOW_MS, PHONE, settings_of

T = NOW_MS
MINUTE = 60_000
SETTINGS = settings_of()


def at(user: LocalUser, now_ms: int) -> Published:
    """What the user publishes at `now_ms`."""
    user.settle(now_ms, SETTINGS)
    return user.published


def a_user() -> LocalUser:
    """A user who was never there."""
    return LocalUser(since_ms=T)


def online(*, streams: bool = True) -> LocalUser:
    """A user who went online at T, on the phone."""
    user = a_user()
    user.put(PHONE, ONLINE, None, T)
    if streams:
        user.stream_opened(PHONE, None, T)
    at(user, T)
    return user


# --- the decision table (P:8.1) ---------------------------------------------------------------

ACTIVE = Published(ONLINE, T, "Tea", currently_active=True)
QUIET = replace(ACTIVE, currently_active=False)
IDLE = Published(UNAVAILABLE, T, "Tea")
GONE = Published(OFFLINE, T, "Tea")
IN_CALL = Published(BUSY, T, "Tea")


def later(published: Published, ms: int) -> Published:
    """The same, with a last active time moved by `ms`."""
    return replace(published, last_active_ms=published.last_active_ms + ms)


ROWS = (
    (1, ACTIVE, ACTIVE, None),
    (1, GONE, GONE, None),
    (2, ACTIVE, replace(ACTIVE, status_msg="Coffee"), Reason.STATUS_MSG),
    (2, ACTIVE, replace(ACTIVE, status_msg=None), Reason.STATUS_MSG),
    (2, GONE, replace(IDLE, status_msg=None), Reason.STATUS_MSG),
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
    deciding = next((number for number, holds, _ in DECISIONS if holds(old, new, MINUTE)), 8)

    assert deciding == row
    assert worth_telling(old, new, MINUTE) is reason


def test_the_decision_table_is_complete_and_in_order() -> None:
    """The first match decides, so the order is part of the rule; rows tested are rows there are."""
    assert [number for number, _, _ in DECISIONS] == [1, 2, 3, 4, 5, 6, 7]
    assert {row for row, *_ in ROWS} == {*range(1, 9)}


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


# --- idle (P:5) -------------------------------------------------------------------------------


def test_a_device_is_idle_after_more_than_the_idle_timeout() -> None:
    """P:I-1, I-2: at 300 000 ms exactly not yet."""
    user = online()
    user.settle(T + MINUTE, SETTINGS)

    assert user.next_deadline_ms(SETTINGS) == T + 300_001
    assert at(user, T + 300_000).state is ONLINE
    assert user.settle(T + 300_001, SETTINGS) is Reason.STATE
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


# --- several devices (P:6) --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phone", "laptop", "best"),
    [
        (BUSY, ONLINE, BUSY),
        (ONLINE, UNAVAILABLE, ONLINE),
        (UNAVAILABLE, OFFLINE, UNAVAILABLE),
        (OFFLINE, OFFLINE, OFFLINE),
        (OFFLINE, ONLINE, ONLINE),
    ],
)
def test_the_best_device_decides(phone: PresenceState, laptop: PresenceState, best: PresenceState) -> None:
    """P:6, D-2, D-3: a PUT changes its own device, then all are merged."""
    for first, second in ((phone, laptop), (laptop, phone)):
        user = a_user()
        user.put(PHONE, first, None, T)
        user.put(LAPTOP, second, None, T)

        assert at(user, T).state is best


def test_a_device_that_times_out_is_forgotten() -> None:
    """P:D-1: devices come and go for years."""
    user = online(streams=False)

    at(user, T + 30_001)

    assert user.devices == {}


def test_the_message_belongs_to_the_user() -> None:
    """P:D-4, S-1, S-6: the last writer wins; none and empty clear it."""
    user = a_user()
    user.put(PHONE, ONLINE, "Tea", T)
    user.put(LAPTOP, UNAVAILABLE, "Coffee", T)
    assert at(user, T).status_msg == "Coffee"

    user.put(PHONE, ONLINE, "", T)
    assert at(user, T).status_msg is None


def test_a_stream_never_touches_the_message_and_going_offline_keeps_it() -> None:
    """P:S-2, S-3."""
    user = a_user()
    user.put(PHONE, ONLINE, "Tea", T)
    user.stream_opened(PHONE, UNAVAILABLE, T)
    user.stream_closed(PHONE, T)

    assert at(user, T + 30_001) == Published(OFFLINE, T, "Tea")


def test_a_message_alone_is_told() -> None:
    """P:S-4, A-7: even of a user who is active now."""
    user = online()

    user.put(PHONE, ONLINE, "Tea", T + 10)

    assert user.settle(T + 10, SETTINGS) is Reason.STATUS_MSG


def test_a_device_in_hiding_counts_in_nothing() -> None:
    """P:D-5, D-9: neither its state nor what is done on it shows, then or ever."""
    user = online()
    user.put(PHONE, OFFLINE, None, T + 1000)
    hidden = at(user, T + 1000)

    for moment in (T + 2000, T + 5 * MINUTE, T + 10 * MINUTE):
        user.active(PHONE, moment, moment)
        user.active(None, moment, moment)
        user.stream_opened(PHONE, ONLINE, moment)
        user.stream_closed(PHONE, moment)
        assert at(user, moment) == hidden
    user.put(PHONE, UNAVAILABLE, None, T + 11 * MINUTE)

    assert hidden == Published(OFFLINE, T)
    assert at(user, T + 11 * MINUTE) == Published(UNAVAILABLE, T)


def test_only_a_put_ends_hiding() -> None:
    """P:D-8: no stream and no time does; only the user's word, or the end of the token."""
    user = online()
    user.put(PHONE, OFFLINE, None, T)
    user.stream_closed(PHONE, T)
    at(user, T + 365 * 24 * 60 * MINUTE)

    assert user.devices[PHONE].hidden
    assert user.next_deadline_ms(SETTINGS) is None

    user.put(PHONE, ONLINE, None, T + 366 * 24 * 60 * MINUTE)
    assert at(user, T + 366 * 24 * 60 * MINUTE).state is ONLINE


def test_what_was_done_in_hiding_and_is_told_after_it_does_not_count() -> None:
    """P:D-9: a homeserver may report a message late, when the user has shown up again as unavailable."""
    user = online()
    user.put(PHONE, OFFLINE, None, T + 1000)
    user.put(PHONE, UNAVAILABLE, None, T + 9000)

    user.active(PHONE, T + 5000, T + 10_000)
    user.active(None, T + 5000, T + 10_000)

    assert at(user, T + 10_000) == Published(UNAVAILABLE, T)


def test_what_one_device_did_in_hiding_is_not_laid_at_the_door_of_a_new_one() -> None:
    """P:D-7, D-9: activity without a device, from a time when every device was hidden."""
    user = online()
    user.put(PHONE, OFFLINE, None, T + 1000)
    user.stream_opened(LAPTOP, UNAVAILABLE, T + 9000)

    user.active(None, T + 5000, T + 10_000)

    assert at(user, T + 10_000) == Published(UNAVAILABLE, T)


def test_a_hidden_device_beside_a_visible_one_stays_hidden() -> None:
    """P:D-3: the laptop decides; the phone's typing moves nothing."""
    user = online()
    user.stream_opened(LAPTOP, None, T)
    user.put(PHONE, OFFLINE, None, T)

    user.active(PHONE, T + 2 * MINUTE, T + 2 * MINUTE)

    assert at(user, T + 2 * MINUTE) == Published(ONLINE, T)


def test_activity_without_a_device_belongs_to_the_one_most_recently_connected() -> None:
    """P:D-7: where it says nothing about the device, the one in use is the best guess."""
    user = a_user()
    user.put(LAPTOP, UNAVAILABLE, None, T + 2000)
    user.stream_opened(PHONE, UNAVAILABLE, T)

    user.active(None, T + 3000, T + 3000)

    assert user.devices[PHONE].state is ONLINE
    assert user.devices[LAPTOP].state is UNAVAILABLE


def test_activity_without_any_device_makes_the_user_online_for_a_while() -> None:
    """P:D-7, O-3: somebody writes through an application service: there, though without a stream."""
    user = a_user()

    user.active(None, T, T)

    assert at(user, T + 30_000).state is ONLINE
    assert at(user, T + 30_001) == Published(OFFLINE, T)
    assert user.devices == {}


def test_activity_told_an_hour_late_brings_nobody_online() -> None:
    """It was an hour ago: the age moves, the state does not."""
    user = a_user()

    user.active(PHONE, T - 60 * MINUTE, T)

    assert at(user, T) == Published(OFFLINE, T - 60 * MINUTE)
    assert user.devices == {}


def test_the_published_last_active_time_never_goes_back() -> None:
    """P:D-9: the phone that was active last is gone; that it was active stays true."""
    user = online()
    user.stream_opened(LAPTOP, None, T - 1000)

    user.active(PHONE, T + 500, T + 500)
    user.remove_device(PHONE)
    user.active(LAPTOP, T + 100, T + 600)

    assert at(user, T + 600) == Published(ONLINE, T + 500, None, currently_active=True)


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
