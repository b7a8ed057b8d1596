import pytest

from fedpresence.engine.presence import (
    BUSY,
    OFFLINE,
    ONLINE,
    UNAVAILABLE,
    PresenceState,
    Published,
    Reason,
)
from fedpresence.testing.builders import LAPTOP, PHONE
from tests.engine.users import MINUTE, SETTINGS, T, a_user, at, online

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


@pytest.mark.parametrize("state", [OFFLINE, UNAVAILABLE])
def test_who_was_active_before_any_device_came_is_what_the_device_says(state: PresenceState) -> None:
    """P:D-7, D-8: a room is joined, then the client says how its user wants to be seen."""
    user = a_user()
    user.active(None, T, T)

    user.put(PHONE, state, None, T + 1000)

    assert at(user, T + 1000) == Published(state, T)


def test_who_appears_offline_does_so_whatever_they_did_before_and_do_after() -> None:
    """P:D-7, Z-8: the pseudo-device of the first message must not carry the following ones into the open."""
    user = a_user()
    user.active(None, T, T)
    user.put(PHONE, OFFLINE, None, T + 1000)
    assert at(user, T + 1000) == Published(OFFLINE, T)

    for seconds in range(2, 60, 10):
        user.active(None, T + seconds * 1000, T + seconds * 1000)

    assert at(user, T + 60_000) == Published(OFFLINE, T)


def test_a_stream_takes_over_what_was_done_before_any_device_came() -> None:
    """P:D-7: it was this device; its stream is no activity, for the user was online already."""
    user = a_user()
    user.active(None, T, T)

    user.stream_opened(PHONE, None, T + 2000)

    assert at(user, T + 2000) == Published(ONLINE, T, None, currently_active=True)
    assert user.devices.keys() == {PHONE}
    assert at(user, T + 5 * MINUTE + 1).state is UNAVAILABLE


def test_a_stream_that_says_unavailable_is_believed_right_after_activity() -> None:
    """P:13: `set_presence=unavailable` is seen by a room mate, of whoever has just joined the room too."""
    user = a_user()
    user.active(None, T, T)

    user.stream_opened(PHONE, UNAVAILABLE, T + 1000)

    assert at(user, T + 1000) == Published(UNAVAILABLE, T)


def test_a_token_without_a_device_speaks_for_itself_too() -> None:
    """An application service's user polls, and then a phone comes: neither is a guess."""
    user = a_user()
    user.active(None, T, T)
    user.stream_opened(None, None, T + 1000)

    user.put(PHONE, UNAVAILABLE, None, T + 2000)

    assert user.devices.keys() == {None, PHONE}
    assert at(user, T + 2000).state is ONLINE


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
