import re
from collections.abc import Callable

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
from fedpresence.engine.events import (
    DestinationAlive,
    EdusDelivered,
    RoomMembersSet,
    SettingsChanged,
    UserDeactivated,
)
from fedpresence.engine.outgoing import ListEdu, Wanted
from fedpresence.engine.presence import OFFLINE, ONLINE
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, ServerLists
from fedpresence.engine.subscription import OBSERVER_TABLE, EduKind, ObserverRow, ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    HERE,
    THERE,
    a_deny,
    a_push,
    an_accept,
)
from fedpresence.wire.lists import decode_list_change
from tests.engine.side import Side, kinds, of_type, sent, told

INVITE, ACCEPT, DENY, DROP = EduKind.INVITE, EduKind.ACCEPT, EduKind.DENY, EduKind.DROP
ROOM = RoomID("!room:here.test")
ROWS = (  # subscriptions.md 3, every row
    *("O-1", "O-2", "O-3", "O-4", "O-5", "O-6", "O-7", "O-8"),
    *("O-9", "O-10", "O-11", "O-12", "O-13", "O-14", "O-15", "O-16", "O-17", "O-18", "O-19"),
    *("O-20", "O-21", "O-22", "O-23", "O-24", "O-25", "O-25a", "O-26", "O-26a", "O-27", "O-28"),
    *("O-29", "O-30", "O-31", "O-32", "O-33", "O-34", "O-35", "O-36", "O-37", "O-38"),
)


def a_pending_pair() -> Side:
    """Alice has invited Bob, and his server took the invite."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.sends_and_is_heard()
    return side


def an_accepted_pair() -> Side:
    """Bob has accepted, and is online."""
    side = a_pending_pair()
    side.hear(an_accept(), a_push())
    return side


def a_denied_pair() -> Side:
    """Bob has declined."""
    side = a_pending_pair()
    side.hear(a_deny())
    return side


def row_of(side: Side) -> ObserverRow:
    """Alice's half of her pair with Bob, which is there."""
    row = side.observer_row(ALICE, BOB)
    assert row is not None
    return row


def stage(side: Side, observer: UserID = ALICE) -> ObserverStage:
    """The stage of a pair with Bob, as stored."""
    row = side.observer_row(observer, BOB)
    return ObserverStage.NONE if row is None else row.stage


def listed(side: Side) -> list[tuple[UserID, ObserverStage]]:
    """Alice's list as her clients see it."""
    return [(entry.user_id, entry.stage) for entry in side.engine.presence_list(ALICE, side.now_ms)]


def test_every_row_of_the_table_has_its_test() -> None:
    """A row without a test is a rule that nobody keeps."""
    found = [re.match(r"test_o_(\d+a?)_", name) for name in globals()]
    assert {f"O-{match[1]}" for match in found if match} == set(ROWS)
    assert {step.row for step in OBSERVER_TABLE.values()} <= set(ROWS)


# --- none ------------------------------------------------------------------------------------------


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


# --- pending ---------------------------------------------------------------------------------------


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


# --- accepted --------------------------------------------------------------------------------------


def test_o_20_a_push_of_an_accepted_user_is_shown() -> None:
    """What all this is for."""
    side = a_pending_pair()
    side.hear(an_accept())

    effects = side.hear(a_push(ONLINE, 5_000, "at work"))

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,))]
    view = side.engine.view(ALICE, BOB, side.now_ms)
    assert view is not None
    assert (view.state, view.last_active_ago, view.status_msg) == (ONLINE, 5_000, "at work")


def test_o_21_a_repeated_accept_confirms_and_says_nothing() -> None:
    """It is the answer to a check, or a duplicate."""
    side = an_accepted_pair()
    side.wait(DAY_MS)

    effects = side.hear(an_accept())

    assert row_of(side).confirmed_ms == side.now_ms
    assert (told(effects), sent(effects), of_type(effects, TellObservers)) == ([], [], [])


def test_o_22_a_revocation_shows_the_user_offline_and_gone() -> None:
    """Whoever takes a grant back is seen no more, from that moment."""
    side = an_accepted_pair()

    effects = side.hear(a_deny())

    assert stage(side) is ObserverStage.DENIED
    assert told(effects) == [(ALICE, DENY, "revoked")]
    assert TellObservers(BOB, (ALICE,), gone=True) in effects
    assert side.engine.view(ALICE, BOB, side.now_ms) is None
    assert side.engine.user_detail(BOB, side.now_ms) is None


def test_o_22_who_shares_a_room_is_still_seen() -> None:
    """The other ground remains."""
    side = an_accepted_pair()
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))

    effects = side.hear(a_deny())

    assert of_type(effects, TellObservers) == []
    assert side.engine.view(ALICE, BOB, side.now_ms) is not None


def test_o_23_a_drop_is_told_with_an_unpoll() -> None:
    """Old servers know only the unpoll, ours the exact pair (E:Q-9)."""
    side = an_accepted_pair()

    side.change(ALICE, drop=(BOB,))

    assert kinds(side.sends_and_is_heard()) == [DROP, f"unpoll {BOB}"]
    assert (stage(side), listed(side)) == (ObserverStage.NONE, [])
    assert side.engine.user_detail(BOB, side.now_ms) is None


@pytest.mark.parametrize("reason", ["a pending pair", "a room"])
def test_o_23_no_unpoll_while_somebody_else_watches(reason: str) -> None:
    """An unpoll is per server: it would silence Bob for the others."""
    side = an_accepted_pair()
    if reason == "a room":
        side.do(RoomMembersSet(ROOM, frozenset({CAROL, BOB})))
    else:
        side.change(CAROL, invite=(BOB,))
        side.sends_and_is_heard()

    side.change(ALICE, drop=(BOB,))

    assert kinds(side.sends_and_is_heard()) == [DROP]


def test_o_23_an_unpoll_is_judged_again_as_it_leaves() -> None:
    """Carol may have asked for Bob while the drop waited for a server that was down."""
    side = an_accepted_pair()
    side.change(ALICE, drop=(BOB,))

    side.change(CAROL, invite=(BOB,))

    assert kinds(side.sends_and_is_heard()) == [DROP, INVITE]


def test_o_24_inviting_whom_one_sees_does_nothing() -> None:
    """Hist: 500."""
    side = an_accepted_pair()

    assert side.change(ALICE, invite=(BOB,)) == ()


def test_o_25_a_grant_is_confirmed_every_week() -> None:
    """The other side may have lost it, or its revocation was lost; pushes prove nothing."""
    side = a_pending_pair()
    side.hear(an_accept(), a_push(OFFLINE))
    assert sent(side.wait(6 * DAY_MS)) == []
    side.hear(a_push(OFFLINE))
    assert sent(side.wait(DAY_MS)) == []

    effects = side.wait(12 * HOUR_MS)

    assert sent(effects)[0] is INVITE
    assert (stage(side), told(effects)) == (ObserverStage.ACCEPTED, [])
    assert kinds(side.sends_and_is_heard()) == [INVITE]
    side.hear(an_accept())
    assert row_of(side).check_ms == 0
    assert sent(side.wait(7 * DAY_MS)) == []


def test_o_25_checks_of_many_pairs_are_spread() -> None:
    """A thousand grants of one day would otherwise make a herd every week."""
    users = [UserID(f"@{number}:there.test") for number in range(20)]
    side = Side()
    side.change(ALICE, invite=tuple(users))
    side.sends_and_is_heard()
    side.hear(*(an_accept(observed=user_id) for user_id in users))

    moments = set()
    for _ in users:
        deadline_ms = side.engine.next_deadline_ms()
        while deadline_ms is not None and not sent(side.wait(deadline_ms - side.now_ms)):
            deadline_ms = side.engine.next_deadline_ms()
        moments.add(side.now_ms)

    assert len(moments) == len(users)


def test_o_25a_an_unconfirmed_grant_is_pending_again() -> None:
    """What we hold may be long gone: the list says so, and asks on."""
    side = an_accepted_pair()
    side.wait(7 * DAY_MS + 12 * HOUR_MS)
    side.sends_and_is_heard()

    effects = side.wait(DAY_MS)

    assert listed(side) == [(BOB, ObserverStage.PENDING)]
    assert TellObservers(BOB, (ALICE,), gone=True) in effects
    assert side.engine.view(ALICE, BOB, side.now_ms) is None
    assert sent(side.wait(HOUR_MS)) == [INVITE]


def test_o_25a_asks_on_by_the_schedule_after_a_restart_too() -> None:
    """The invite of long ago is not the one that is repeated: the request begins anew."""
    side = an_accepted_pair()
    side.wait(2 * DAY_MS)
    side.sends_and_is_heard()
    side.hear(an_accept(), a_push(OFFLINE))
    side.restart()
    side.wait(8 * DAY_MS)
    side.sends_and_is_heard()

    while stage(side) is ObserverStage.ACCEPTED:
        side.wait(MINUTE_MS)

    assert sent(side.wait(HOUR_MS - MINUTE_MS)) == []
    assert sent(side.wait(MINUTE_MS)) == [INVITE]


def test_o_25a_a_server_that_takes_nothing_is_given_time() -> None:
    """Its outage says nothing about the grant: the day counts from when the check arrived."""
    side = an_accepted_pair()
    side.wait(30 * DAY_MS)
    assert stage(side) is ObserverStage.ACCEPTED

    side.sends_and_is_heard()
    side.wait(DAY_MS - 1)
    assert stage(side) is ObserverStage.ACCEPTED
    side.wait(1)
    assert stage(side) is ObserverStage.PENDING


def test_o_26_a_user_not_heard_of_is_shown_offline_and_asked_for() -> None:
    """Their server may be gone, or our subscription with it."""
    side = an_accepted_pair()

    effects = side.wait(30 * MINUTE_MS + 1)

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,))]
    assert of_type(effects, SendPoll) == [SendPoll(THERE, BOB)]
    view = side.engine.view(ALICE, BOB, side.now_ms)
    assert view is not None
    assert view.state is OFFLINE
    assert of_type(side.wait(5 * MINUTE_MS - 2), SendPoll) == []


def test_o_26a_three_unanswered_polls_make_a_check() -> None:
    """A poll without a grant is met with silence: only an invite gets an answer (decision 17)."""
    side = an_accepted_pair()

    effects = side.wait(2 * DAY_MS)

    assert INVITE in sent(effects)
    assert stage(side) is ObserverStage.ACCEPTED
    assert row_of(side).check_ms


def test_o_26a_is_one_check_a_day() -> None:
    """Z-16: silence must not make us a nuisance."""
    side = an_accepted_pair()
    invites = 0

    for _ in range(3):
        side.wait(DAY_MS)
        invites += kinds(side.sends_and_is_heard()).count(INVITE)
        side.hear(an_accept())

    assert 1 <= invites <= 3


def test_o_27_after_a_restart_the_observed_users_are_asked_for() -> None:
    """We have missed what they did."""
    side = an_accepted_pair()

    side.restart()

    assert of_type(side.wait(MINUTE_MS), SendPoll) == [SendPoll(THERE, BOB)]
    assert stage(side) is ObserverStage.ACCEPTED


def test_o_28_an_unreachable_server_ends_no_grant() -> None:
    """Offline is shown after half an hour; the list stays as it is."""
    side = an_accepted_pair()

    side.wait(6 * DAY_MS)

    assert listed(side) == [(BOB, ObserverStage.ACCEPTED)]
    assert side.engine.presence_list(ALICE, side.now_ms)[0].view.state is OFFLINE


# --- denied ----------------------------------------------------------------------------------------


def test_o_29_an_hour_later_one_may_ask_again() -> None:
    """People change their minds; a list that is full still takes nobody."""
    side = a_denied_pair()
    side.wait(HOUR_MS)

    effects = side.change(ALICE, invite=(BOB,))

    assert sent(effects) == [INVITE]
    assert stage(side) is ObserverStage.PENDING


def test_o_29_a_full_list_is_full_for_those_who_denied_too() -> None:
    """A tombstone is no entry."""
    side = Side(max_entries=1)
    side.change(ALICE, invite=(BOB,))
    side.sends_and_is_heard()
    side.hear(a_deny())
    side.wait(HOUR_MS)
    side.change(ALICE, invite=(UserID("@x:there.test"),))

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, invite=(BOB,))

    assert refused.value.status == 403


def test_o_30_within_the_hour_the_server_says_no() -> None:
    """Asking again and again is harassment, and not the other server's to stop."""
    side = a_denied_pair()
    side.wait(20 * MINUTE_MS)

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, invite=(BOB,))

    error = refused.value
    assert (error.status, error.errcode, error.retry_after_ms) == (429, "M_LIMIT_EXCEEDED", 40 * MINUTE_MS)
    assert stage(side) is ObserverStage.DENIED


def test_o_31_a_late_accept_needs_a_new_invite() -> None:
    """An accept counts for a pending entry alone; the other side is told, once a day (Z-14)."""
    side = a_denied_pair()

    effects = side.hear(an_accept())

    assert of_type(effects, SendDropOnce) == [SendDropOnce(THERE, ALICE, BOB)]
    assert (stage(side), told(effects)) == (ObserverStage.DENIED, [])
    assert of_type(side.hear(an_accept()), SendDropOnce) == []


def test_o_32_a_second_deny_changes_nothing() -> None:
    """The hour of O-30 does not begin anew, nor is anybody told twice."""
    side = a_denied_pair()
    side.wait(30 * MINUTE_MS)
    before = row_of(side)

    effects = side.hear(a_deny())

    assert (row_of(side), told(effects)) == (before, [])


def test_o_33_a_drop_does_not_wash_the_tombstone() -> None:
    """Z-13: drop and invite would otherwise get round the hour."""
    side = a_denied_pair()
    before = row_of(side)

    assert side.change(ALICE, drop=(BOB,)) == ()
    assert row_of(side) == before
    with pytest.raises(BadRequest):
        side.change(ALICE, invite=(BOB,))


def test_o_34_a_tombstone_lasts_a_month() -> None:
    """What nobody needs is not kept."""
    side = a_denied_pair()

    side.wait(30 * DAY_MS - 1)
    assert stage(side) is ObserverStage.DENIED
    effects = side.wait(1)
    assert of_type(effects, ForgetObserverRow) == [ForgetObserverRow(ALICE, BOB)]


def test_o_34_what_is_still_owed_outlives_the_tombstone() -> None:
    """A row goes when nothing is owed: otherwise the other side keeps a grant that nobody wants."""
    side = an_accepted_pair()
    side.change(ALICE, drop=(BOB,))

    side.wait(40 * DAY_MS)

    assert [owed.kind for owed in row_of(side).owed] == [DROP]
    side.sends_and_is_heard()
    side.wait(30 * DAY_MS)
    assert side.observer_row(ALICE, BOB) is None


def test_o_35_a_push_of_somebody_who_denied_is_not_shown() -> None:
    """It is answered with a drop: the other side seems not to know (Z-12)."""
    side = a_denied_pair()

    effects = side.hear(a_push())

    assert of_type(effects, TellObservers) == []
    assert of_type(effects, SendDropOnce) == [SendDropOnce(THERE, ALICE, BOB)]


@pytest.mark.parametrize(
    ("begin", "edus", "after"),
    [
        (a_pending_pair, [DROP], ObserverStage.NONE),
        (an_accepted_pair, [DROP, f"unpoll {BOB}"], ObserverStage.NONE),
        (a_denied_pair, [], ObserverStage.NONE),
    ],
)
def test_o_36_a_deactivated_user_watches_nobody(
    begin: Callable[[], Side], edus: list[EduKind | str], after: ObserverStage
) -> None:
    """Their lists are dropped, and those they watched are told."""
    side = begin()

    side.do(UserDeactivated(ALICE))

    assert kinds(side.sends_and_is_heard()) == edus
    assert stage(side) is after
    assert listed(side) == []


def test_o_37_a_server_newly_denied_makes_its_pairs_sleep() -> None:
    """Z-9: nothing is sent or believed, and nothing is lost when it is allowed again."""
    side = an_accepted_pair()
    denied = EngineSettings(HERE, servers=ServerLists(deny=("there.test",)))

    effects = side.do(SettingsChanged(denied))
    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,))]
    view = side.engine.view(ALICE, BOB, side.now_ms)
    assert view is not None
    assert view.state is OFFLINE
    assert of_type(side.hear(a_push(status_msg="hi")), TellObservers) == []
    side.hear(a_deny())
    assert stage(side) is ObserverStage.ACCEPTED

    side.do(SettingsChanged(EngineSettings(HERE)))
    view = side.engine.view(ALICE, BOB, side.now_ms)
    assert view is not None
    assert view.state is ONLINE


def test_o_37_what_is_owed_to_a_denied_server_waits() -> None:
    """It leaves once the server is allowed again."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.do(SettingsChanged(EngineSettings(HERE, servers=ServerLists(allow=()))))

    assert side.sends().before == ()
    effects = side.do(SettingsChanged(EngineSettings(HERE)))
    assert sent(effects) == [INVITE]
    assert kinds(side.sends_and_is_heard()) == [INVITE]


def test_o_38_what_a_server_refuses_stays_owed() -> None:
    """No 200, no end: it is offered again by the schedule of S:3.5."""
    side = an_accepted_pair()
    side.change(ALICE, drop=(BOB,))
    side.sends()

    effects = side.wait(25 * HOUR_MS)

    assert sent(effects) == [DROP, DROP, DROP]
    assert stage(side) is ObserverStage.NONE


# --- beside the table ------------------------------------------------------------------------------


def test_an_answer_to_an_older_invite_does_not_answer_a_newer_one() -> None:
    """A drop is on its way and an invite behind it: an accept that crosses them means neither."""
    side = a_pending_pair()
    side.change(ALICE, drop=(BOB,))
    side.change(ALICE, invite=(BOB,))

    side.hear(an_accept())

    assert stage(side) is ObserverStage.PENDING
    assert [owed.kind for owed in row_of(side).owed] == [DROP, INVITE]


def test_after_a_restart_an_invite_behind_a_drop_is_still_unanswered() -> None:
    """What left is forgotten in a restart; what stands behind a drop cannot have left."""
    side = a_pending_pair()
    side.change(ALICE, drop=(BOB,))
    side.change(ALICE, invite=(BOB,))
    side.restart()

    side.hear(an_accept())

    assert stage(side) is ObserverStage.PENDING


def test_a_200_for_an_older_invite_does_not_clear_a_drop() -> None:
    """Z-17: generations; otherwise a drop is lost to an invite's 200."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    invite = side.sends()
    side.change(ALICE, drop=(BOB,))

    side.do(EdusDelivered(THERE, invite.owed))

    assert [owed.kind for owed in row_of(side).owed] == [DROP]


def test_a_drop_that_is_tried_once_is_not_sent_where_somebody_watches_again() -> None:
    """Compose judges by the row of this moment."""
    side = a_denied_pair()
    (reminder,) = of_type(side.hear(an_accept()), SendDropOnce)
    side.wait(HOUR_MS)
    side.change(ALICE, invite=(BOB,))

    drop = ListEdu(DROP, reminder.observer, reminder.observed)
    composed = side.engine.compose(THERE, Wanted(drops=(drop,)), side.now_ms)

    assert composed.before == ()
