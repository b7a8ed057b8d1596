import re

import pytest

from fedpresence.engine.effects import (
    ForgetObservedRow,
    SaveObservedRow,
    SendDropOnce,
    SendEdu,
    SendPush,
    SendUnpoll,
    Urgency,
)
from fedpresence.engine.events import (
    DestinationAlive,
    RoomMembersSet,
    SettingsChanged,
    StreamClosed,
    UserDeactivated,
)
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, InvitePolicy
from fedpresence.engine.subscription import OBSERVED_TABLE, EduKind, ObservedRow, ObservedStage
from fedpresence.errors import BadRequest
from fedpresence.ids import RoomID, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    DAVE,
    HERE,
    PHONE,
    THERE,
    a_drop,
    a_poll,
    a_put,
    a_stream,
    an_invite,
    an_unpoll,
)
from tests.engine.side import Side, kinds, of_type, sent, told

INVITE, ACCEPT, DENY, DROP = EduKind.INVITE, EduKind.ACCEPT, EduKind.DENY, EduKind.DROP
ROOM = RoomID("!room:here.test")
ONLINE, OFFLINE = f"{ALICE} online", f"{ALICE} offline"
ROWS = (  # subscriptions.md 4, every row
    *("T-1", "T-2", "T-3", "T-4", "T-5", "T-6", "T-7a", "T-8", "T-8a", "T-8b", "T-8c"),
    *("T-10", "T-11", "T-13", "T-14", "T-15", "T-16", "T-17", "T-18", "T-19"),
    *("T-20", "T-21", "T-9", "T-7", "T-22", "T-12", "T-23", "T-24", "T-25", "T-26", "T-27", "T-27a"),
    *("T-28", "T-29"),
    *("T-30", "T-31", "T-32", "T-33", "T-34", "T-35", "T-36", "T-37", "T-38"),
)


def an_online_alice(policy: InvitePolicy = InvitePolicy.ASK) -> Side:
    """Alice is online, with a stream that stays open."""
    side = Side(invite_policy=policy)
    side.do(a_stream(), a_put(status_msg="at work"))
    return side


def a_request() -> Side:
    """Bob has asked to observe Alice."""
    side = an_online_alice()
    side.hear(an_invite())
    return side


def a_grant() -> Side:
    """Alice has let him, and his server knows."""
    side = a_request()
    side.change(ALICE, accept=(BOB,))
    side.sends_and_is_heard(ALICE)
    return side


def a_denial() -> Side:
    """Alice has declined, and his server knows."""
    side = a_request()
    side.change(ALICE, deny=(BOB,))
    side.sends_and_is_heard()
    return side


def a_block() -> Side:
    """Alice wants never to be asked by Bob."""
    side = an_online_alice()
    side.change(ALICE, deny=(BOB,))
    return side


def row_of(side: Side) -> ObservedRow:
    """Alice's half of her pair with Bob, which is there."""
    row = side.observed_row(ALICE, BOB)
    assert row is not None
    return row


def stage(side: Side, observer: UserID = BOB) -> ObservedStage:
    """The stage of a pair with Alice, as stored."""
    row = side.observed_row(ALICE, observer)
    return ObservedStage.NONE if row is None else row.stage


def pushed(effects: tuple[object, ...]) -> list[tuple[UserID, Urgency]]:
    """Whose state `there.test` is due, and how urgently."""
    return [
        (effect.user_id, effect.urgency)
        for effect in effects
        if isinstance(effect, SendPush) and THERE in effect.destinations
    ]


def test_every_row_of_the_table_has_its_test() -> None:
    """A row without a test is a rule that nobody keeps."""
    found = [re.match(r"test_t_(\d+[a-c]?)_", name) for name in globals()]
    assert {f"T-{match[1]}" for match in found if match} == set(ROWS)
    assert {step.row for step in OBSERVED_TABLE.values()} <= set(ROWS)


# --- none ------------------------------------------------------------------------------------------


def test_t_1_an_invite_waits_for_the_users_word() -> None:
    """`ask`: nothing goes back, not even that the invite came (decision 4)."""
    side = an_online_alice()

    effects = side.hear(an_invite())

    assert stage(side) is ObservedStage.REQUESTED
    assert told(effects) == [(ALICE, INVITE, None)]
    assert [pair.user_id for pair in side.engine.invites_of(ALICE)] == [BOB]
    assert (sent(effects), pushed(effects)) == ([], [])
    assert kinds(side.sends_and_is_heard(ALICE)) == []


def test_t_2_a_policy_may_accept_at_once() -> None:
    """What all old servers did; here only where the operator says so."""
    side = an_online_alice(InvitePolicy.ACCEPT)

    effects = side.hear(an_invite())

    assert stage(side) is ObservedStage.GRANTED
    assert pushed(effects) == [(ALICE, Urgency.ASKED)]
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]
    assert [entry.user_id for entry in side.engine.observers_of(ALICE)] == [BOB]


def test_t_3_the_policy_deny_is_silence() -> None:
    """As if the user did not exist: a denial is a user's own word (decision 4)."""
    side = an_online_alice(InvitePolicy.DENY)

    effects = side.hear(an_invite())

    assert (stage(side), sent(effects), told(effects)) == (ObservedStage.NONE, [], [])
    assert side.observed_row(ALICE, BOB) is None


def test_t_4_nobody_learns_who_does_not_exist() -> None:
    """An automatic deny would be an account oracle."""
    side = Side()
    nobody = UserID("@nobody:here.test")

    effects = side.hear(an_invite(observed=nobody))

    assert side.observed_row(nobody, BOB) is None
    assert (sent(effects), told(effects)) == ([], [])


def test_t_5_a_deactivated_user_does_not_answer() -> None:
    """Exactly as if they had never existed."""
    side = Side()
    side.do(UserDeactivated(ALICE))

    effects = side.hear(an_invite())

    assert (side.observed_row(ALICE, BOB), sent(effects), told(effects)) == (None, [], [])


def test_t_6_there_is_no_accepting_in_advance() -> None:
    """A request is needed first."""
    side = Side()

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, accept=(BOB,))

    assert (refused.value.status, refused.value.errcode) == (404, "M_NOT_FOUND")
    assert side.observed_row(ALICE, BOB) is None


def test_t_7a_a_deny_in_advance_blocks() -> None:
    """The one way never to be asked; the other side sees somebody who does not answer."""
    side = an_online_alice()

    effects = side.change(ALICE, deny=(BOB,))

    assert (row_of(side).stage, row_of(side).blocked) == (ObservedStage.DENIED, True)
    assert sent(effects) == []
    assert (sent(side.hear(an_invite())), told(side.hear(an_invite()))) == ([], [])


def test_t_8_a_drop_of_nothing_is_nothing() -> None:
    """Z-12: no answer, no trace."""
    side = Side()

    effects = side.hear(a_drop())

    assert (sent(effects), told(effects), side.observed_row(ALICE, BOB)) == ([], [], None)


def test_t_8a_a_poll_is_answered_only_by_right() -> None:
    """Old servers answered anybody: a privacy hole (E:Q-2)."""
    side = an_online_alice()

    assert pushed(side.hear(a_poll())) == []
    assert side.sends_and_is_heard(ALICE) == ()

    side.do(RoomMembersSet(ROOM, frozenset({ALICE, DAVE})))
    side.wait(11_000)
    assert pushed(side.hear(a_poll())) == [(ALICE, Urgency.ASKED)]


def test_t_8b_an_unpoll_of_nothing_is_nothing() -> None:
    """In Synapse 0.10 a KeyError."""
    side = Side()

    assert of_type(side.hear(an_unpoll()), SaveObservedRow) == []


@pytest.mark.parametrize("begin", [an_online_alice, a_request, a_denial])
def test_t_8c_a_revoke_without_a_grant_changes_nothing(begin: object) -> None:
    """200, and the request waits on."""
    side = begin() if callable(begin) else Side()
    before = side.observed_row(ALICE, BOB)

    assert side.change(ALICE, revoke=(BOB,)) == ()
    assert side.observed_row(ALICE, BOB) == before


# --- requested -------------------------------------------------------------------------------------


def test_t_10_an_accept_and_the_state_travel_together() -> None:
    """The observer sees somebody at once, and in this order."""
    side = a_request()

    effects = side.change(ALICE, accept=(BOB,))

    assert stage(side) is ObservedStage.GRANTED
    order = [type(effect) for effect in effects]
    assert order.index(SaveObservedRow) < order.index(SendEdu)
    assert pushed(effects) == [(ALICE, Urgency.ASKED)]
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]
    assert side.engine.invites_of(ALICE) == ()
    assert [entry.user_id for entry in side.engine.observers_of(ALICE)] == [BOB]


def test_t_11_a_deny_declines_the_request() -> None:
    """The user's own word, told to the other side; no presence goes with it."""
    side = a_request()

    effects = side.change(ALICE, deny=(BOB,))

    assert (row_of(side).stage, row_of(side).blocked) == (ObservedStage.DENIED, False)
    assert sent(effects) == [DENY]
    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]
    assert side.engine.invites_of(ALICE) == ()


def test_t_11_the_second_deny_blocks() -> None:
    """Z-13: nobody need say no a third time. It is still told, once."""
    side = a_denial()
    side.wait(DAY_MS)
    side.hear(an_invite())

    effects = side.change(ALICE, deny=(BOB,))

    assert sent(effects) == [DENY]
    assert row_of(side).blocked
    side.wait(40 * DAY_MS)
    assert told(side.hear(an_invite())) == []


def test_t_13_a_repeated_invite_is_no_second_request() -> None:
    """Invites are repeated by schedule: no notice, no new time, nothing stored."""
    side = a_request()
    side.wait(2 * DAY_MS)
    before = row_of(side)

    effects = side.hear(an_invite())

    assert (told(effects), sent(effects), row_of(side)) == ([], [], before)
    assert of_type(effects, SaveObservedRow) == []


def test_t_13_a_request_is_not_granted_by_a_later_policy() -> None:
    """It was put to the user: the answer is theirs."""
    side = a_request()
    side.do(SettingsChanged(EngineSettings(HERE, invite_policy=InvitePolicy.ACCEPT)))

    side.hear(an_invite())

    assert stage(side) is ObservedStage.REQUESTED


def test_t_14_a_withdrawn_request_vanishes() -> None:
    """Nobody should be asked for what is not wanted any more."""
    side = a_request()

    effects = side.hear(a_drop())

    assert side.engine.invites_of(ALICE) == ()
    assert of_type(effects, ForgetObservedRow) == [ForgetObservedRow(BOB, ALICE)]
    assert told(effects) == [(ALICE, DROP, None)]


def test_t_14_asking_and_withdrawing_all_day_is_told_once() -> None:
    """Z-13: at most one notice of a kind per pair and day."""
    side = a_request()
    side.hear(a_drop())

    effects = (*side.hear(an_invite()), *side.hear(a_drop()), *side.hear(an_invite()))

    assert told(effects) == []
    assert stage(side) is ObservedStage.REQUESTED


def test_t_15_a_request_gives_no_right_to_a_poll() -> None:
    """Unless a room is shared."""
    side = a_request()

    assert pushed(side.hear(a_poll())) == []
    assert side.sends_and_is_heard(ALICE) == ()


def test_t_16_an_unpoll_does_not_touch_a_request() -> None:
    """There is nothing to mute yet, and the later grant is not muted."""
    side = a_request()
    before = row_of(side)

    side.hear(an_unpoll())

    assert row_of(side) == before


def test_t_17_a_change_is_not_told_to_those_who_wait() -> None:
    """Acceptance first."""
    side = a_request()

    effects = side.do(a_put(PresenceState.UNAVAILABLE))

    assert pushed(effects) == []


def test_t_18_a_request_expires_silently() -> None:
    """After 180 days, as the other side does by itself (O-17)."""
    side = a_request()
    side.do(StreamClosed(ALICE, PHONE))

    effects = side.wait(180 * DAY_MS)

    assert (side.observed_row(ALICE, BOB), sent(effects)) == (None, [])
    assert side.engine.invites_of(ALICE) == ()


def test_t_19_a_deactivated_user_leaves_requests_unanswered() -> None:
    """Z-7: an answer would tell that the user had existed."""
    side = a_request()

    effects = side.do(UserDeactivated(ALICE))

    assert (side.observed_row(ALICE, BOB), sent(effects)) == (None, [])
    assert kinds(side.sends_and_is_heard(ALICE)) == []


# --- granted ---------------------------------------------------------------------------------------


def test_t_20_a_change_goes_once_to_each_server() -> None:
    """Two observers on a server are one push."""
    side = a_grant()
    side.hear(an_invite(observer=DAVE))
    side.change(ALICE, accept=(DAVE,))

    effects = side.do(a_put(PresenceState.UNAVAILABLE))

    assert pushed(effects) == [(ALICE, Urgency.CHANGE)]


def test_t_21_an_unchanged_state_needs_a_refresh_while_it_is_not_offline() -> None:
    """Peers take a silent user for offline after 30 minutes. The queue asks; the engine answers."""
    side = a_grant()
    assert side.engine.needs_refresh(THERE, ALICE, side.now_ms)

    side.do(a_put(PresenceState.OFFLINE))
    assert not side.engine.needs_refresh(THERE, ALICE, side.now_ms)

    side.do(a_put(PresenceState.ONLINE))
    side.change(ALICE, revoke=(BOB,))
    assert not side.engine.needs_refresh(THERE, ALICE, side.now_ms)


@pytest.mark.parametrize("policy", [InvitePolicy.ASK, InvitePolicy.ACCEPT, InvitePolicy.DENY])
def test_t_9_a_granted_observer_who_asks_is_told_again(policy: InvitePolicy) -> None:
    """A lost accept, or a check: the server answers by itself, whatever the policy for new ones."""
    side = a_grant()
    side.do(SettingsChanged(EngineSettings(HERE, invite_policy=policy)))

    effects = side.hear(an_invite())

    assert (stage(side), told(effects)) == (ObservedStage.GRANTED, [])
    assert pushed(effects) == [(ALICE, Urgency.ASKED)]
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]


def test_t_9_an_invite_ends_a_mute() -> None:
    """Somebody on that server wants to see her again (E:Q-5)."""
    side = a_grant()
    side.hear(an_unpoll())

    side.hear(an_invite())

    assert not row_of(side).muted
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]


@pytest.mark.parametrize("word", ["deny", "revoke"])
def test_t_7_a_revocation_says_offline_and_then_deny(word: str) -> None:
    """Exactly and at once; the last push says offline and nothing else (E:P-11)."""
    side = a_grant()
    rights = side.engine.rights(THERE)

    effects = side.change(ALICE, **{word: (BOB,)})

    assert stage(side) is ObservedStage.DENIED
    assert side.engine.rights(THERE) == rights + 1
    assert sent(effects) == [DENY]
    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE, DENY]
    assert side.engine.observers_of(ALICE) == ()


def test_t_7_who_is_offline_already_sends_no_last_push() -> None:
    """There is nothing to take back."""
    side = a_grant()
    side.do(a_put(PresenceState.OFFLINE))

    side.change(ALICE, revoke=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]


@pytest.mark.parametrize("ground", ["another grant", "a room"])
def test_t_7_no_last_push_where_the_server_may_still_hear(ground: str) -> None:
    """It would show her offline to those who may see her."""
    side = a_grant()
    if ground == "a room":
        side.do(RoomMembersSet(ROOM, frozenset({ALICE, DAVE})))
    else:
        side.hear(an_invite(observer=DAVE))
        side.change(ALICE, accept=(DAVE,))
        side.sends_and_is_heard()

    side.change(ALICE, revoke=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY, ONLINE]


def test_t_22_accepting_twice_is_accepting_once() -> None:
    """Clients repeat themselves."""
    side = a_grant()

    assert side.change(ALICE, accept=(BOB,)) == ()


def test_t_12_a_drop_ends_the_grant() -> None:
    """XMPP 3.3: the state goes and the user is told. Coming back means asking again."""
    side = a_grant()
    rights = side.engine.rights(THERE)

    effects = side.hear(a_drop())

    assert side.observed_row(ALICE, BOB) is None
    assert side.engine.rights(THERE) == rights + 1
    assert told(effects) == [(ALICE, DROP, None)]
    assert kinds(side.sends_and_is_heard(ALICE)) == []
    side.hear(an_invite())
    assert stage(side) is ObservedStage.REQUESTED


def test_t_12_an_accept_that_is_still_owed_goes_with_the_grant() -> None:
    """Delivered later, it would answer a newer invite that nobody has accepted."""
    side = a_request()
    side.change(ALICE, accept=(BOB,))

    side.hear(a_drop())
    assert side.observed_row(ALICE, BOB) is None
    side.hear(an_invite())

    assert (row_of(side).stage, row_of(side).owed) == (ObservedStage.REQUESTED, ())
    assert kinds(side.sends_and_is_heard(ALICE)) == []


def test_t_23_a_poll_is_answered_and_unmutes() -> None:
    """The other server wants pushes again."""
    side = a_grant()
    side.hear(an_unpoll())

    effects = side.hear(a_poll())

    assert (ALICE, Urgency.ASKED) in pushed(effects)
    assert not row_of(side).muted
    assert kinds(side.sends_and_is_heard(ALICE)) == [ONLINE]


def test_t_23_a_poll_that_changes_nothing_is_not_written_down() -> None:
    """Polls come by the thousand; the disk need not hear of them."""
    side = a_grant()

    assert of_type(side.hear(a_poll()), SaveObservedRow) == []


def test_t_24_an_unpoll_mutes_and_the_grant_stays() -> None:
    """That server wants no pushes on this ground; the user's word stands (E:Q-5)."""
    side = a_grant()
    rights = side.engine.rights(THERE)

    side.hear(an_unpoll())

    assert (row_of(side).stage, row_of(side).muted) == (ObservedStage.GRANTED, True)
    assert side.engine.rights(THERE) == rights + 1
    assert pushed(side.do(a_put(PresenceState.UNAVAILABLE))) == []
    assert side.sends_and_is_heard(ALICE) == ()


def test_t_24_a_room_is_heard_through_a_mute() -> None:
    """Lists alone are muted."""
    side = a_grant()
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))

    side.hear(an_unpoll())

    assert pushed(side.do(a_put(PresenceState.UNAVAILABLE))) == [(ALICE, Urgency.CHANGE)]


def test_t_24_a_muted_grant_is_revoked_without_a_last_push() -> None:
    """They asked for no pushes."""
    side = a_grant()
    side.hear(an_unpoll())

    side.change(ALICE, revoke=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]


def test_t_25_while_a_server_is_away_only_the_newest_counts() -> None:
    """The engine gives user IDs; the state is taken when bytes are made (decision 9)."""
    side = a_grant()
    side.do(a_put(PresenceState.UNAVAILABLE), a_put(PresenceState.ONLINE), a_put(PresenceState.OFFLINE))

    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE]


def test_t_26_an_outage_ends_no_grant() -> None:
    """However long: when the server is seen alive it may hear of her again."""
    side = a_grant()
    side.wait(60 * DAY_MS)

    side.do(DestinationAlive(THERE))

    assert stage(side) is ObservedStage.GRANTED
    assert kinds(side.sends_and_is_heard(ALICE))


def test_t_27_a_deactivated_user_ends_her_grants() -> None:
    """Those who watched her see her go."""
    side = a_grant()

    side.do(UserDeactivated(ALICE))

    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE, DENY]
    assert side.observed_row(ALICE, BOB) is None


def test_t_27a_a_grant_by_a_room_ends_with_the_room() -> None:
    """Z-10: join, invite, leave must not make a permanent grant."""
    side = an_online_alice(InvitePolicy.ACCEPT_SHARED_ROOM)
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))
    side.hear(an_invite())
    assert stage(side) is ObservedStage.GRANTED
    side.sends_and_is_heard()

    side.do(RoomMembersSet(ROOM, frozenset({ALICE})))

    assert stage(side) is ObservedStage.NONE
    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE, DENY]
    assert side.observed_row(ALICE, BOB) is None


def test_t_28_after_a_restart_who_is_not_offline_is_told_again() -> None:
    """The other side would take her for offline soon."""
    side = a_grant()

    side.restart()

    assert list(side.engine.boot_users()) == [(THERE, ALICE)]


def test_t_29_a_refused_list_edu_is_owed_on() -> None:
    """Pushes wait for the next change; an accept must arrive (S:3.5)."""
    side = a_request()
    side.change(ALICE, accept=(BOB,))
    side.sends()

    effects = side.wait(25 * HOUR_MS)

    assert sent(effects) == [ACCEPT, ACCEPT, ACCEPT]
    assert all(urgency is Urgency.TIMER for _, urgency in pushed(effects)), "her own changes alone"


# --- denied ----------------------------------------------------------------------------------------


def test_t_30_a_day_later_the_user_is_asked_again() -> None:
    """One no is not a no for ever."""
    side = a_denial()
    side.wait(DAY_MS)

    effects = side.hear(an_invite())

    assert stage(side) is ObservedStage.REQUESTED
    assert told(effects) == [(ALICE, INVITE, None)]


@pytest.mark.parametrize(
    ("policy", "after"),
    [
        (InvitePolicy.ACCEPT, ObservedStage.REQUESTED),
        (InvitePolicy.DENY, ObservedStage.DENIED),
    ],
)
def test_t_30_no_policy_overrules_a_denial(policy: InvitePolicy, after: ObservedStage) -> None:
    """The user's own denials come before the operator's policy (S:7)."""
    side = a_denial()
    side.do(SettingsChanged(EngineSettings(HERE, invite_policy=policy)))
    side.wait(DAY_MS)

    effects = side.hear(an_invite())

    assert (stage(side), sent(effects)) == (after, [])


def test_t_30_a_deny_that_is_still_owed_does_not_answer_the_new_request() -> None:
    """The server was away for a day: its invite is answered by what the user says now."""
    side = a_request()
    side.change(ALICE, deny=(BOB,))
    side.wait(DAY_MS)

    side.hear(an_invite())

    assert (stage(side), row_of(side).owed) == (ObservedStage.REQUESTED, ())
    assert kinds(side.sends_and_is_heard()) == []


def test_t_31_a_lost_deny_is_said_again_once_an_hour() -> None:
    """The other side may not have heard it; a flood of invites gets one answer."""
    side = a_denial()
    side.wait(HOUR_MS)

    assert sent(side.hear(an_invite(), an_invite())) == [DENY]
    assert sent(side.hear(an_invite())) == []
    side.wait(HOUR_MS)
    assert sent(side.hear(an_invite())) == [DENY]
    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]


def test_t_32_who_is_blocked_hears_nothing() -> None:
    """A week or a year later: as if the user did not answer."""
    side = a_block()
    side.wait(60 * DAY_MS)
    before = row_of(side)

    effects = side.hear(an_invite())

    assert (sent(effects), told(effects), row_of(side)) == ([], [], before)


@pytest.mark.parametrize("begin", [a_denial, a_block])
def test_t_33_an_accept_forgives(begin: object) -> None:
    """She changed her mind; the count of denials begins anew."""
    side = begin() if callable(begin) else Side()

    side.change(ALICE, accept=(BOB,))

    assert (row_of(side).stage, row_of(side).blocked, row_of(side).denials) == (
        ObservedStage.GRANTED,
        False,
        0,
    )
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]


def test_t_34_denying_again_blocks() -> None:
    """Without a request in between, too."""
    side = a_denial()

    effects = side.change(ALICE, deny=(BOB,))

    assert row_of(side).blocked
    assert sent(effects) == []


def test_t_35_a_drop_does_not_wash_the_tombstone() -> None:
    """Z-13: deny, drop, invite would otherwise be a new request each time."""
    side = a_denial()
    before = row_of(side)

    effects = side.hear(a_drop())

    assert (row_of(side), told(effects)) == (before, [])
    assert told(side.hear(an_invite())) == []


def test_t_36_polls_and_unpolls_do_not_touch_a_denial() -> None:
    """No right, no answer."""
    side = a_denial()
    before = row_of(side)

    effects = (*side.hear(a_poll()), *side.hear(an_unpoll()))

    assert (pushed(effects), row_of(side)) == ([], before)


def test_t_37_a_tombstone_lasts_a_month() -> None:
    """A block lasts."""
    denied, blocked = a_denial(), a_block()

    denied.wait(30 * DAY_MS - 1)
    assert stage(denied) is ObservedStage.DENIED
    denied.wait(1)
    blocked.wait(300 * DAY_MS)

    assert denied.observed_row(ALICE, BOB) is None
    assert stage(blocked) is ObservedStage.DENIED


def test_t_37_a_denial_that_was_never_heard_is_still_owed() -> None:
    """A row goes when nothing is owed: a server that was away for a month hears it all the same."""
    side = a_grant()
    side.change(ALICE, revoke=(BOB,))

    side.wait(40 * DAY_MS)

    assert stage(side) is ObservedStage.NONE
    assert DENY in kinds(side.sends_and_is_heard(ALICE))
    assert side.observed_row(ALICE, BOB) is None


@pytest.mark.parametrize("begin", [a_denial, a_block])
def test_t_38_a_deactivated_users_denials_go_silently(begin: object) -> None:
    """Nobody is left to be protected by them: invites meet silence anyway (T-5)."""
    side = begin() if callable(begin) else Side()

    effects = side.do(UserDeactivated(ALICE))

    assert (side.observed_row(ALICE, BOB), sent(effects)) == (None, [])


# --- beside the table ------------------------------------------------------------------------------


def test_a_request_withdrawn_behind_a_denial_leaves_the_count() -> None:
    """Z-13: deny, wait a day, ask, drop, ask: the second no blocks all the same."""
    side = a_denial()
    side.wait(DAY_MS)
    side.hear(an_invite(), a_drop(), an_invite())
    assert stage(side) is ObservedStage.REQUESTED

    side.change(ALICE, deny=(BOB,))

    assert row_of(side).blocked


def test_nothing_is_ever_answered_on_the_observed_side_but_by_its_row() -> None:
    """Drops and unpolls are the observer's words; the observed side never says them (decision 3)."""
    side = a_grant()

    effects = (
        *side.hear(an_invite(), a_poll(), an_unpoll(), a_drop()),
        *side.hear(a_drop(), a_poll(), an_unpoll()),
        *side.wait(MINUTE_MS),
    )

    assert (of_type(effects, SendDropOnce), of_type(effects, SendUnpoll)) == ([], [])
