"""Alice's pair with Bob of another server, at each stage of the observer's table (subscriptions.md 3)."""

from fedpresence.engine.subscription import EduKind, ObserverRow, ObserverStage
from fedpresence.ids import RoomID, UserID
from fedpresence.testing.builders import ALICE, BOB, a_deny, a_push, an_accept
from tests.engine.side import Side

INVITE, ACCEPT, DENY, DROP = EduKind.INVITE, EduKind.ACCEPT, EduKind.DENY, EduKind.DROP
ROOM = RoomID("!room:here.test")


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
