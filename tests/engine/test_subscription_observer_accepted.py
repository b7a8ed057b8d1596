import pytest

from fedpresence.engine.effects import SendPoll, TellObservers
from fedpresence.engine.events import RoomMembersSet
from fedpresence.engine.presence import OFFLINE, ONLINE
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.engine.subscription import ObserverStage
from fedpresence.ids import UserID
from fedpresence.testing.builders import ALICE, BOB, CAROL, THERE, a_deny, a_push, an_accept
from tests.engine.observer_pairs import (
    DENY,
    DROP,
    INVITE,
    ROOM,
    a_pending_pair,
    an_accepted_pair,
    listed,
    row_of,
    stage,
)
from tests.engine.side import Side, kinds, of_type, sent, told


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
