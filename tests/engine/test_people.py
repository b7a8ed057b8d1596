from dataclasses import replace

import pytest

from fedpresence.engine.effects import SaveHidden, SavePresence, SaveUser, SendPush, TellObservers, Urgency
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import (
    Activity,
    DeviceRemoved,
    RoomMembersSet,
    Started,
    Stopping,
    TimePassed,
    UserAdded,
    UserDeactivated,
)
from fedpresence.engine.outgoing import Push, Wanted
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.presence import BUSY, OFFLINE, ONLINE, UNAVAILABLE, PresenceRecord, View
from fedpresence.engine.settings import DAY_MS
from fedpresence.engine.subscription import ObservedRow, ObservedStage
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID
from fedpresence.storage.store import Stored
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    LAPTOP,
    NOW_MS,
    PHONE,
    THERE,
    a_poll,
    a_put,
    a_stream,
    an_activity,
    an_end,
    an_engine,
    deliver,
    grant,
    pass_time,
    restarted,
    settings_of,
)
from tests.engine.costs import calls_of
from tests.engine.destination import Destination, a_watched_engine

T = NOW_MS
S = 1000
MINUTE = 60 * S
ROOM = RoomID("!room:here.test")


# --- who is told ----------------------------------------------------------------------------------


def test_a_change_goes_to_every_server_with_a_right_once_and_to_local_observers() -> None:
    """S:T-20, P:11: one push a server, however many of its users watch; the user's own clients too."""
    engine = an_engine(users=(ALICE, CAROL))
    grant(engine)
    grant(engine, observer=UserID("@dave:there.test"))
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, CAROL, UserID("@x:else.test")})), T)

    effects = engine.receive(a_put(), T)

    assert effects == (
        SendPush((ServerName("else.test"), THERE), ALICE, Urgency.CHANGE),
        TellObservers(ALICE, (ALICE, CAROL)),
    )


def test_what_time_does_is_less_urgent_than_what_people_do() -> None:
    """Decision 12: where the destination is busy, a timer's news may wait a moment."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put())

    effects = there.at(31 * S)

    assert [e.urgency for e in effects if isinstance(e, SendPush)] == [Urgency.TIMER]


def test_activity_while_active_has_no_effects_at_all() -> None:
    """P:A-2: and that is nearly all activity there is."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())

    for moment in range(1, 50):
        assert there.at(moment * S, an_activity(), an_activity(device_id=None)) == ()


def test_activity_while_active_costs_the_same_however_many_watch() -> None:
    """A message in a busy room must not cost a look at every server that watches its sender."""
    quiet, famous = an_engine(), an_engine()
    for number in range(300):
        grant(famous, observer=UserID(f"@fan:server{number}.test"))
    for engine in (quiet, famous):
        engine.receive(a_put(), T)
        engine.receive(an_activity(), T + 1)

    few = calls_of(lambda: quiet.receive(an_activity(), T + 2))
    many = calls_of(lambda: famous.receive(an_activity(), T + 2))

    assert few == many


def test_activity_of_a_user_we_do_not_know_is_nobodys() -> None:
    """The admin API and a homeserver may name anybody; a record for each would fill our memory."""
    engine = an_engine()

    effects = engine.receive(Activity(CAROL), T)

    assert effects == ()
    assert engine.view(CAROL, CAROL, T) == View(OFFLINE)
    assert engine.counts().online == 0


def test_activity_from_the_future_is_activity_now() -> None:
    """A homeserver whose clock is ahead makes nobody active for ever."""
    there = a_watched_engine(an_engine())

    there.at(0, a_stream(), an_activity(T + DAY_MS))

    assert there.engine.next_deadline_ms() == T + MINUTE
    assert there.engine.view(ALICE, ALICE, T) == View(ONLINE, 0, None, currently_active=True)


def test_a_sleeping_user_costs_nothing_per_tick() -> None:
    """P:O-5: a wake-up for one touches no other of the thousands."""
    few, many = an_engine(), an_engine()
    for number in range(3000):
        user_id = UserID(f"@u{number}:here.test")
        many.receive(UserAdded(user_id), T)
        many.receive(a_put(UNAVAILABLE, user_id=user_id), T)
        many.receive(a_stream(user_id=user_id), T)

    assert many.next_deadline_ms() is None
    assert calls_of(lambda: many.receive(TimePassed(), T + DAY_MS)) == (
        calls_of(lambda: few.receive(TimePassed(), T + DAY_MS))
    )


def test_the_flag_is_not_published_past_its_time_though_the_timer_is_late() -> None:
    """P:A-8: a GET or a push between the moment and the wake-up says what is true."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())

    late = T + MINUTE + 5
    view = there.engine.view(ALICE, ALICE, late)
    composed = there.engine.compose(THERE, Wanted(users=(ALICE,)), late)

    assert view == View(ONLINE, MINUTE + 5)
    assert composed.pushes == (Push(ALICE, ONLINE, MINUTE + 5),)


def test_a_poll_in_the_silent_time_is_answered_with_the_truth() -> None:
    """P:A-2a, A-5, E:Q-3: it was asked for, so it is no news in the sense of A-2."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    there.at(30 * S, an_activity())
    there.news()

    there.take(deliver(there.engine, a_poll(), T + 40 * S), T + 40 * S)

    assert there.news() == [(40 * S, Push(ALICE, ONLINE, 10 * S, None, currently_active=True))]


def test_a_server_that_comes_to_watch_in_the_silent_time_hears_everything() -> None:
    """P:A-10: the promise of silence was never made to it."""
    engine = an_engine()
    engine.receive(a_put(status_msg="Tea"), T)
    engine.receive(an_activity(), T + 20 * S)
    there = Destination(engine)

    there.take(grant(engine, now_ms=T + 30 * S), T + 30 * S)

    assert there.news() == [(30 * S, Push(ALICE, ONLINE, 10 * S, "Tea", currently_active=True))]


@pytest.mark.parametrize(
    ("since_ms", "message", "told"),
    [(7 * DAY_MS, None, True), (7 * DAY_MS + 1, None, False), (7 * DAY_MS + 1, "Away", True)],
)
def test_who_is_long_gone_is_not_announced_to_new_room_mates(
    since_ms: int, message: str | None, told: bool
) -> None:
    """P:11: rooms are full of people who left years ago."""
    engine = an_engine()
    engine.receive(a_put(ONLINE, message), T)
    pass_time(engine, T + since_ms)

    effects = engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T + since_ms)

    assert (SendPush((THERE,), ALICE, Urgency.ASKED) in effects) is told


def test_who_is_there_is_announced_to_new_room_mates() -> None:
    """P:11, E:P-9: also after a week without a word."""
    engine = an_engine()
    engine.receive(a_put(UNAVAILABLE), T)
    engine.receive(a_stream(), T)

    effects = engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T + 30 * DAY_MS)

    assert SendPush((THERE,), ALICE, Urgency.ASKED) in effects


# --- hiding (Z-8) ---------------------------------------------------------------------------------


def test_hiding_is_saved_before_its_answer() -> None:
    """P:D-8: an "appear offline" that a crash undoes was a lie."""
    engine = an_engine()

    assert engine.receive(a_put(OFFLINE), T) == (SaveHidden(ALICE, PHONE, hidden=True),)
    assert engine.receive(a_put(OFFLINE, "Gone"), T)[0] == TellObservers(ALICE, (ALICE,))
    assert engine.receive(a_put(ONLINE), T)[0] == SaveHidden(ALICE, PHONE, hidden=False)


def test_who_types_in_hiding_shows_nothing_anywhere() -> None:
    """Z-8: no update, and poll, repeated accept, GET and admin detail say the frozen value."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    there.at(10 * S, a_put(OFFLINE))
    there.news()

    for moment in range(20, 2000, 20):
        effects = there.at(moment * S, an_activity(), an_activity(device_id=None), an_end(), a_stream(ONLINE))
        assert effects == ()
    now_ms = there.now_ms
    there.take(deliver(there.engine, a_poll(), now_ms), now_ms)

    since_ms = now_ms - T
    assert there.engine.view(ALICE, ALICE, now_ms) == View(OFFLINE, since_ms)
    assert there.news() == [(since_ms, Push(ALICE, OFFLINE, since_ms))]
    detail = there.engine.user_detail(ALICE, now_ms)
    assert detail is not None
    assert detail.last_active_ms == T


def test_the_end_of_hiding_tells_nothing_of_what_was_done_in_it() -> None:
    """P:D-9: the age that goes out was made before."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    there.at(10 * S, a_put(OFFLINE))
    there.at(100 * S, an_activity())
    there.news()

    there.at(110 * S, a_put(UNAVAILABLE), an_activity(T + 105 * S))

    assert there.news() == [(110 * S, Push(ALICE, UNAVAILABLE, 110 * S))]


def test_a_hidden_device_whose_token_goes_is_hidden_no_more() -> None:
    """P:D-8: the device is gone, and a new one with the same name begins anew."""
    engine = an_engine()
    engine.receive(a_put(OFFLINE), T)

    effects = engine.receive(DeviceRemoved(ALICE, PHONE), T)
    engine.receive(a_stream(), T + 1)

    assert effects == (SaveHidden(ALICE, PHONE, hidden=False),)
    assert engine.view(ALICE, ALICE, T + 1) == View(ONLINE, 0, None, currently_active=True)


def test_a_token_of_a_device_that_is_not_there_goes_without_a_trace() -> None:
    """It timed out long ago, or its user never came."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(a_put(), T)

    assert engine.receive(DeviceRemoved(ALICE, LAPTOP), T) == ()
    assert engine.receive(DeviceRemoved(CAROL, LAPTOP), T) == ()


def test_a_device_whose_token_goes_counts_no_more_at_once() -> None:
    """Whoever signs out is not online for another half minute; the stream's end comes later."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    there.news()

    there.at(1 * S, DeviceRemoved(ALICE, PHONE), an_end())

    assert there.news() == [(1 * S, Push(ALICE, OFFLINE, 1 * S))]
    assert there.engine.next_deadline_ms() is None or there.at(DAY_MS) == ()


# --- the life of an account -----------------------------------------------------------------------


def test_a_user_is_made_once() -> None:
    """Events that come again change nothing, and strangers are not made here."""
    engine = an_engine(users=())

    assert engine.receive(UserAdded(ALICE), T) == (SaveUser(ALICE, deactivated=False),)
    assert engine.receive(UserAdded(ALICE), T) == ()
    assert engine.receive(UserAdded(BOB), T) == ()


def test_a_deactivated_user_shows_nothing_any_more() -> None:
    """S:T-27: gone for servers that share a room too, message and devices with them."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, CAROL, BOB})), T)
    engine.receive(a_put(ONLINE, "Tea"), T)
    engine.receive(a_put(OFFLINE, "Tea", device_id=LAPTOP), T)

    effects = engine.receive(UserDeactivated(ALICE), T + S)

    assert SaveUser(ALICE, deactivated=True) in effects
    assert SaveHidden(ALICE, LAPTOP, hidden=False) in effects
    assert SendPush((THERE,), ALICE, Urgency.CHANGE) in effects
    assert engine.view(CAROL, ALICE, T + S) == View(OFFLINE, S)
    assert engine.counts().online == 0


def test_nothing_brings_a_deactivated_user_back() -> None:
    """Their last requests may still be on the way when the account ends."""
    engine = an_engine()
    engine.receive(UserDeactivated(ALICE), T)

    for event in (a_put(), a_stream(), an_activity(), an_end(), UserAdded(ALICE)):
        assert engine.receive(event, T + 1) == ()
    assert engine.view(ALICE, ALICE, T + 1) == View(OFFLINE)


def test_counts_follow_every_change() -> None:
    """The operator's numbers are kept, not counted; they must not drift."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(a_put(), T)
    engine.receive(a_put(BUSY, user_id=CAROL), T)
    both = engine.counts()
    engine.receive(a_put(UNAVAILABLE), T)
    engine.receive(UserDeactivated(CAROL), T)
    after = engine.counts()

    assert (both.online, both.busy, both.unavailable, both.offline) == (1, 1, 0, 0)
    assert (after.online, after.busy, after.unavailable, after.offline) == (0, 0, 1, 0)


def test_a_clean_stop_may_say_that_everybody_is_offline() -> None:
    """E:P-10: once for each, and hidden devices stay hidden."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(status_msg="Tea"), a_stream(), a_put(OFFLINE, "Tea", device_id=LAPTOP))
    there.news()

    effects = there.at(1 * S, Stopping())
    again = there.at(1 * S, Stopping())

    assert there.news() == [(1 * S, Push(ALICE, OFFLINE, 1 * S, "Tea"))]
    assert again == ()
    assert not any(isinstance(effect, SaveHidden) for effect in effects)


# --- written behind, and read again (P:M-4) -------------------------------------------------------


GRANTED = ObservedRow(BOB, ALICE, ObservedStage.GRANTED, T - DAY_MS, T - DAY_MS)


def stored_of(*records: PresenceRecord, hidden: tuple[DeviceID | None, ...] = ()) -> Stored:
    """Alice, whom Bob may see, as she was written behind."""
    return Stored(
        users=[(ALICE, False)],
        pairs=Pairs(observed_rows=[GRANTED]),
        presence=records,
        hidden=[(ALICE, device_id) for device_id in hidden],
    )


def test_a_restart_is_no_news_where_the_client_comes_back() -> None:
    """P:M-4: a server that restarts must not make its users flicker on every other."""
    before = an_engine()
    before.receive(a_put(status_msg="Tea"), T)
    before.receive(a_stream(), T)
    (record,) = before.take_dirty(10)

    there = Destination(restarted(stored_of(record), T + 10 * S))
    there.at(15 * S, a_stream(ONLINE))
    there.at(59 * S)
    quiet = there.news()
    there.at(61 * S)

    assert quiet == []
    assert there.news() == [(MINUTE, Push(ALICE, ONLINE, MINUTE, "Tea"))]


def test_a_restart_tells_who_did_not_come_back() -> None:
    """P:M-4, O-1: half a minute after the start, once."""
    record = PresenceRecord(ALICE, ONLINE, T - 5 * S, None, True, 0)

    there = Destination(restarted(stored_of(record)))
    there.at(DAY_MS)

    assert there.news() == [(30_001, Push(ALICE, OFFLINE, 35_001))]


def test_after_a_restart_the_servers_that_watch_are_told_again() -> None:
    """S:T-28: they may have taken our silence for absence; nobody offline is named."""
    record = PresenceRecord(ALICE, UNAVAILABLE, T - 5 * S, None, False, 0)

    assert list(restarted(stored_of(record)).boot_users()) == [(THERE, ALICE)]
    assert list(restarted(stored_of(replace(record, state=OFFLINE))).boot_users()) == []


def test_who_was_hidden_before_a_restart_is_hidden_after_it() -> None:
    """P:D-8, Z-8: with a record or, where presence was not yet written, without one."""
    record = PresenceRecord(ALICE, OFFLINE, T - 5 * S, None, False, 0)
    for stored in (stored_of(record, hidden=(PHONE,)), stored_of(hidden=(PHONE,))):
        there = Destination(restarted(stored))

        there.at(1 * S, a_stream(ONLINE), an_activity(), an_activity(device_id=None))
        there.at(DAY_MS)

        assert there.news() == []


def test_who_hid_just_before_a_crash_is_not_shown_by_what_was_written_behind() -> None:
    """P:D-8: the record on disk said "online"; the one of the hiding replaces it, and observers are told."""
    before = an_engine()
    grant(before)
    before.receive(a_put(status_msg="Tea"), T)
    before.take_dirty(10)

    effects = before.receive(a_put(OFFLINE, "Tea"), T + 10 * S)
    (record,) = [effect.record for effect in effects if isinstance(effect, SavePresence)]
    after = Engine(settings_of(), T + 20 * S)
    after.load(stored_of(record, hidden=(PHONE,)), T + 20 * S)

    assert SendPush((THERE,), ALICE, Urgency.CHANGE) in after.receive(Started(), T + 20 * S)
    assert after.view(ALICE, ALICE, T + 20 * S) == View(OFFLINE, 20 * S, "Tea")
    assert [written.heard_ms for written in after.take_dirty(10)] == [0], "told once, not at every start"


def test_a_phone_that_hides_beside_a_laptop_leaves_the_record_alone() -> None:
    """What is published did not change, so nothing on disk is wrong."""
    engine = an_engine()
    engine.receive(a_put(device_id=LAPTOP), T)

    effects = engine.receive(a_put(OFFLINE), T)

    assert not [effect for effect in effects if isinstance(effect, SavePresence)]


def test_presence_is_written_behind_and_only_where_it_changed() -> None:
    """Decision 22: what is taken is not asked for again, and a limit keeps each turn short."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(a_put(), T)
    engine.receive(a_put(user_id=CAROL), T)

    taken = [engine.take_dirty(1), engine.take_dirty(5), engine.take_dirty(5)]

    assert [[record.user_id for record in records] for records in taken] == [[ALICE], [CAROL], []]


def test_what_changes_nothing_published_is_not_written() -> None:
    """Decision 22: syncs end and begin all the time."""
    engine = an_engine()
    engine.receive(a_put(), T)
    engine.receive(a_stream(), T)
    engine.take_dirty(5)

    engine.receive(an_end(), T + 1)
    engine.receive(a_stream(), T + 2)

    assert engine.take_dirty(5) == []


def test_a_last_active_time_that_nobody_is_told_is_written_too() -> None:
    """P:A-5, M-4: tracking never stops, so a restart loses none of it."""
    engine = an_engine()
    engine.receive(a_put(), T)
    engine.take_dirty(5)

    engine.receive(an_activity(), T + 10 * S)

    assert [record.last_active_ms for record in engine.take_dirty(5)] == [T + 10 * S]


def test_a_user_who_was_never_active_has_the_age_of_the_record() -> None:
    """E:P-3: `last_active_ago` is always there, because strict peers drop an EDU without it."""
    there = a_watched_engine(an_engine())

    there.take(deliver(there.engine, a_poll(), T + 20 * S), T + 20 * S)

    assert there.news() == [(20 * S, Push(ALICE, OFFLINE, 20 * S))]
