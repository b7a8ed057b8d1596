import pytest

from fedpresence.engine.effects import (
    ForgetObserverRow,
    SaveObserverRow,
    SendDropOnce,
    SendEdu,
    SendPoll,
    SendUnpoll,
    TellObservers,
    UnsendEdus,
)
from fedpresence.engine.events import DestinationAlive, RoomMembersSet
from fedpresence.engine.presence import OFFLINE, ONLINE
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, ServerLists
from fedpresence.engine.subscription import ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.builders import ALICE, BOB, THERE, a_deny, a_push, an_accept
from fedpresence.wire.lists import decode_list_change
from tests.engine.observer_pairs import (
    ACCEPT,
    DENY,
    DROP,
    INVITE,
    ROOM,
    a_pending_pair,
    listed,
    row_of,
    stage,
)
from tests.engine.side import Side, kinds, of_type, sent, told

# --- none -----------------------------------------------------------------------------------------


def test_o_1_an_invite_is_stored_before_it_leaves() -> None:
    """An accept may come while the invite's transaction is still open: its row must be there (E:C-3)."""
    side = Side()

    effects = side.change(ALICE, invite=(BOB,))

    assert [type(effect) for effect in effects] == [SaveObserverRow, SendEdu]
    assert stage(side) is ObserverStage.PENDING
    assert row_of(side).owed == (of_type(effects, SendEdu)[0].edu,)
    (entry,) = side.engine.presence_list(ALICE, side.now_ms)
    assert (entry.stage, entry.view.state) == (ObserverStage.PENDING, OFFLINE)
    assert kinds(side.sends_and_is_heard()) == [INVITE]
    assert row_of(side).owed == ()


def test_o_2_nobody_invites_themselves() -> None:
    """A client that adds everybody it knows adds its own user too."""
    side = Side()

    assert side.change(ALICE, invite=(ALICE,)) == ()
    assert side.change(ALICE, deny=(ALICE,)) == ()
    assert listed(side) == []


def test_o_3_what_is_no_user_id_never_reaches_the_engine() -> None:
    """The engine's share is that every ID in an event was parsed."""
    with pytest.raises(BadRequest) as refused:
        decode_list_change(ALICE, {"invite": ["bob"]})
    assert (refused.value.status, refused.value.errcode) == (400, "M_INVALID_PARAM")


def test_o_4_a_full_list_takes_no_more() -> None:
    """Nothing of such a change is done."""
    side = Side(max_entries=2)
    side.change(ALICE, invite=(BOB,))

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, invite=(UserID("@x:there.test"), UserID("@y:there.test")))

    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")
    assert listed(side) == [(BOB, ObserverStage.PENDING)]


def test_o_4_users_of_a_blocked_server_are_not_invited() -> None:
    """Its answer would be ignored, so the entry could only stay pending."""
    side = Side(servers=ServerLists(deny=("there.test",)))

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, invite=(BOB,))

    assert refused.value.status == 403


def test_o_5_dropping_what_is_not_listed_is_done_already() -> None:
    """Clients repeat themselves."""
    side = Side()

    assert side.change(ALICE, drop=(BOB,)) == ()


def test_o_6_an_accept_of_what_was_dropped_is_answered_with_a_drop() -> None:
    """Otherwise a lost drop leaves the other server pushing for ever; once a day will do (Z-14)."""
    side = a_pending_pair()
    side.change(ALICE, drop=(BOB,))
    side.sends_and_is_heard()

    assert of_type(side.hear(an_accept()), SendDropOnce) == [SendDropOnce(THERE, ALICE, BOB)]
    assert of_type(side.hear(an_accept()), SendDropOnce) == []
    side.wait(DAY_MS)
    assert of_type(side.hear(an_accept()), SendDropOnce) == [SendDropOnce(THERE, ALICE, BOB)]
    assert stage(side) is ObserverStage.NONE


def test_o_6_an_accept_nobody_asked_for_gets_no_answer() -> None:
    """Answers to invented pairs are work somebody else can order."""
    side = Side()

    assert of_type(side.hear(an_accept()), SendDropOnce) == []
    assert side.observer_row(ALICE, BOB) is None


def test_o_7_a_deny_of_nothing_is_nothing() -> None:
    """Z-12: a server that we know nothing of learns nothing."""
    side = Side()

    effects = side.hear(a_deny())

    assert (sent(effects), told(effects), side.observer_row(ALICE, BOB)) == ([], [], None)


def test_o_8_a_push_of_a_stranger_is_shown_to_nobody() -> None:
    """Any server may push anybody; nothing is kept of it (decision 19)."""
    side = Side()

    effects = side.hear(a_push())

    assert of_type(effects, TellObservers) == []
    assert of_type(effects, SendUnpoll) == [SendUnpoll(THERE, BOB)]
    assert side.engine.user_detail(BOB, side.now_ms) is None


def test_o_8_a_push_of_a_room_mate_is_shown() -> None:
    """The list is one ground of two."""
    side = Side()
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))

    effects = side.hear(a_push())

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,))]


# --- pending --------------------------------------------------------------------------------------


def test_o_9_an_accept_lists_the_observed_user() -> None:
    """The moment a subscription begins: confirmed, told, and nothing more to send."""
    side = a_pending_pair()

    effects = side.hear(an_accept())

    assert listed(side) == [(BOB, ObserverStage.ACCEPTED)]
    assert row_of(side).confirmed_ms == side.now_ms
    assert told(effects) == [(ALICE, ACCEPT, None)]
    assert sent(effects) == []


def test_o_9_a_poll_goes_out_where_no_push_follows_in_ten_seconds() -> None:
    """Synapse up to 0.13 waits for it before it says anything."""
    side = a_pending_pair()
    side.hear(an_accept())

    assert of_type(side.wait(9_999), SendPoll) == []
    assert of_type(side.wait(2), SendPoll) == [SendPoll(THERE, BOB)]


def test_o_9_no_poll_where_the_push_came_along() -> None:
    """Ours sends both in one transaction; a poll would be noise."""
    side = a_pending_pair()

    effects = side.hear(an_accept(), a_push())

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,))]
    assert of_type(side.wait(MINUTE_MS), SendPoll) == []


def test_o_9_an_accept_ends_the_invite_that_is_still_owed() -> None:
    """The 200 may come after the answer, or never: the invite must not be sent again."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.sends()

    side.hear(an_accept())

    assert row_of(side).owed == ()
    assert side.sends().stale_owed == tuple(side.owed)


def test_o_10_only_the_own_server_accepts_for_a_user() -> None:
    """Old servers took an accept from anybody: then any server flips any row."""
    side = a_pending_pair()
    evil = ServerName("evil.test")

    effects = side.hear(an_accept(origin=evil), origin=evil)

    assert stage(side) is ObserverStage.PENDING
    assert told(effects) == []


def test_o_11_a_deny_of_a_request_is_told_once() -> None:
    """The entry vanishes, and the user is told why."""
    side = a_pending_pair()

    effects = side.hear(a_deny())

    assert stage(side) is ObserverStage.DENIED
    assert listed(side) == []
    assert told(effects) == [(ALICE, DENY, "declined")]
    assert sent(effects) == []


def test_o_11_only_the_own_server_denies_for_a_user() -> None:
    """A deny from elsewhere would take entries off our users' lists."""
    side = a_pending_pair()
    evil = ServerName("evil.test")

    side.hear(a_deny(origin=evil), origin=evil)

    assert stage(side) is ObserverStage.PENDING


def test_o_12_an_impatient_observer_invites_once_in_ten_minutes() -> None:
    """A button that is pressed again is no reason to bother another server."""
    side = a_pending_pair()

    side.wait(10 * MINUTE_MS)
    assert sent(side.change(ALICE, invite=(BOB,))) == []
    side.wait(1)
    assert sent(side.change(ALICE, invite=(BOB,))) == [INVITE]
    assert listed(side) == [(BOB, ObserverStage.PENDING)]


def test_o_12_asking_again_begins_the_180_days_anew() -> None:
    """O-17 counts from the last local invite."""
    side = a_pending_pair()
    side.wait(100 * DAY_MS)
    side.change(ALICE, invite=(BOB,))

    side.wait(179 * DAY_MS)
    assert stage(side) is ObserverStage.PENDING
    side.wait(DAY_MS)
    assert stage(side) is ObserverStage.NONE


def test_o_13_a_drop_withdraws_the_request() -> None:
    """Nobody is asked any more for what nobody wants."""
    side = a_pending_pair()

    effects = side.change(ALICE, drop=(BOB,))

    assert UnsendEdus(THERE, ALICE, BOB) in effects
    assert kinds(side.sends_and_is_heard()) == [DROP]
    assert stage(side) is ObserverStage.NONE
    assert listed(side) == []


def test_o_13_an_invite_that_never_left_and_its_drop_cancel_out() -> None:
    """Z-15: a user who toggles makes us connect to nobody, and leaves nothing behind."""
    side = Side()
    side.change(ALICE, invite=(BOB,))

    effects = side.change(ALICE, drop=(BOB,))

    assert sent(effects) == []
    assert of_type(effects, ForgetObserverRow) == [ForgetObserverRow(ALICE, BOB)]
    assert side.sends().before == ()


def test_o_14_a_push_that_overtakes_its_accept_is_kept_for_a_minute() -> None:
    """Peers run the EDUs of one transaction concurrently (E:C-6)."""
    side = a_pending_pair()

    effects = side.hear(a_push(ONLINE))
    assert (of_type(effects, TellObservers), of_type(effects, SendUnpoll)) == ([], [])
    side.wait(MINUTE_MS)
    effects = side.hear(an_accept())

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,))]
    view = side.engine.view(ALICE, BOB, side.now_ms)
    assert view is not None
    assert (view.state, view.last_active_ago) == (ONLINE, MINUTE_MS)


def test_o_14_an_older_push_is_not_believed() -> None:
    """It may be stale by now: ask instead."""
    side = a_pending_pair()
    side.hear(a_push(ONLINE))
    side.wait(MINUTE_MS + 1)

    effects = side.hear(an_accept())

    assert of_type(effects, TellObservers) == []
    assert of_type(side.wait(11_000), SendPoll) == [SendPoll(THERE, BOB)]


def test_o_15_an_unanswered_invite_is_repeated_ever_more_rarely() -> None:
    """After 1 h, 6 h, 24 h, daily for a week, weekly after (S:3.5)."""
    side = a_pending_pair()
    hours = []
    begin_ms = side.now_ms

    while side.now_ms < begin_ms + 30 * DAY_MS:
        deadline_ms = side.engine.next_deadline_ms()
        assert deadline_ms is not None
        if sent(side.wait(deadline_ms - side.now_ms)):
            hours.append((side.now_ms - begin_ms) // HOUR_MS)
            side.sends_and_is_heard()

    assert hours == [1, 6, *(24 * day for day in (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)), 24 * 35]


def test_o_15_a_server_that_is_back_is_asked_at_once() -> None:
    """S:3.5: in addition, when it is seen alive after an outage; but not twice in ten minutes."""
    side = a_pending_pair()

    assert sent(side.do(DestinationAlive(THERE))) == []
    side.wait(11 * MINUTE_MS)
    assert sent(side.do(DestinationAlive(THERE))) == [INVITE]


def test_o_16_a_server_unreachable_for_a_fortnight_is_shown_as_such() -> None:
    """The user should know that it is not Bob who does not answer."""
    side = Side()
    side.change(ALICE, invite=(BOB,))

    side.wait(14 * DAY_MS)
    assert not side.engine.presence_list(ALICE, side.now_ms)[0].unreachable
    side.wait(1)
    assert side.engine.presence_list(ALICE, side.now_ms)[0].unreachable
    assert stage(side) is ObserverStage.PENDING
    assert sent(side.do(DestinationAlive(THERE))) == [INVITE]


def test_o_17_nobody_is_asked_for_ever() -> None:
    """After 180 days the entry goes, the user is told, and so is the other server."""
    side = a_pending_pair()

    effects = side.wait(180 * DAY_MS)

    assert told(effects) == [(ALICE, DENY, "expired")]
    assert sent(effects)[-1] is DROP
    assert stage(side) is ObserverStage.NONE


def test_o_18_after_a_restart_old_invites_go_out_within_the_hour() -> None:
    """They are asked again, and not all in one herd."""
    side = a_pending_pair()
    side.wait(5 * DAY_MS + HOUR_MS)
    side.sends_and_is_heard()
    before = side.observer_row(ALICE, BOB)
    assert before is not None
    side.now_ms += 25 * HOUR_MS  # we were away

    assert sent(side.restart()) == []
    assert sent(side.wait(HOUR_MS)) == [INVITE]


def test_o_18_after_a_restart_what_is_owed_goes_out_again() -> None:
    """Decision 16: what survives is the stage, and what it owes with it."""
    side = Side()
    side.change(ALICE, invite=(BOB,))

    assert sent(side.restart()) == [INVITE]


def test_o_19_a_200_is_no_answer() -> None:
    """Today's homeservers say 200 to what they do not know: the entry stays pending, as a normal state."""
    side = a_pending_pair()

    effects = side.wait(HOUR_MS - 1)

    assert effects == ()
    assert listed(side) == [(BOB, ObserverStage.PENDING)]
