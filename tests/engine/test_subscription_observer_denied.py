from collections.abc import Callable

import pytest

from fedpresence.engine.effects import ForgetObserverRow, SendDropOnce, TellObservers
from fedpresence.engine.events import EdusDelivered, SettingsChanged, UserDeactivated
from fedpresence.engine.outgoing import ListEdu, Wanted
from fedpresence.engine.presence import OFFLINE, ONLINE
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, ServerLists
from fedpresence.engine.subscription import EduKind, ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.testing.builders import ALICE, BOB, HERE, THERE, a_deny, a_push, an_accept
from tests.engine.observer_pairs import (
    DROP,
    INVITE,
    a_denied_pair,
    a_pending_pair,
    an_accepted_pair,
    listed,
    row_of,
    stage,
)
from tests.engine.side import Side, kinds, of_type, sent, told

# --- denied ---------------------------------------------------------------------------------------


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


# --- at every stage -------------------------------------------------------------------------------


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


# --- beside the table -----------------------------------------------------------------------------


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
