from collections.abc import Callable

import pytest

from fedpresence.engine.effects import SendDropOnce, SendUnpoll
from fedpresence.engine.events import SettingsChanged, UserDeactivated
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, InvitePolicy
from fedpresence.engine.subscription import ObservedStage
from fedpresence.testing.builders import ALICE, BOB, HERE, a_drop, a_poll, an_invite, an_unpoll
from tests.engine.observed_pairs import (
    ACCEPT,
    DENY,
    INVITE,
    ONLINE,
    a_block,
    a_denial,
    a_grant,
    a_request,
    pushed,
    row_of,
    stage,
)
from tests.engine.side import Side, kinds, of_type, sent, told

# --- denied ---------------------------------------------------------------------------------------


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
def test_t_33_an_accept_forgives(begin: Callable[[], Side]) -> None:
    """She changed her mind; the count of denials begins anew."""
    side = begin()

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
def test_t_38_a_deactivated_users_denials_go_silently(begin: Callable[[], Side]) -> None:
    """Nobody is left to be protected by them: invites meet silence anyway (T-5)."""
    side = begin()

    effects = side.do(UserDeactivated(ALICE))

    assert (side.observed_row(ALICE, BOB), sent(effects)) == (None, [])


# --- beside the table -----------------------------------------------------------------------------


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
