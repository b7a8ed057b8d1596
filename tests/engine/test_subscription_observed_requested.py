from collections.abc import Callable

import pytest

from fedpresence.engine.effects import ForgetObservedRow, SaveObservedRow, SendEdu, Urgency
from fedpresence.engine.events import RoomMembersSet, SettingsChanged, StreamClosed, UserDeactivated
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, EngineSettings, InvitePolicy
from fedpresence.engine.subscription import ObservedStage
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    DAVE,
    HERE,
    PHONE,
    a_drop,
    a_poll,
    a_put,
    an_invite,
    an_unpoll,
)
from tests.engine.observed_pairs import (
    ACCEPT,
    DENY,
    DROP,
    INVITE,
    ONLINE,
    ROOM,
    a_denial,
    a_request,
    an_online_alice,
    pushed,
    row_of,
    stage,
)
from tests.engine.side import Side, kinds, of_type, sent, told

# --- none -----------------------------------------------------------------------------------------


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
def test_t_8c_a_revoke_without_a_grant_changes_nothing(begin: Callable[[], Side]) -> None:
    """200, and the request waits on."""
    side = begin()
    before = side.observed_row(ALICE, BOB)

    assert side.change(ALICE, revoke=(BOB,)) == ()
    assert side.observed_row(ALICE, BOB) == before


# --- requested ------------------------------------------------------------------------------------


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
