"""Bob's pair with Alice, who is online, at each stage of the observed user's table (subscriptions.md 4)."""

from fedpresence.engine.effects import SendPush, Urgency
from fedpresence.engine.settings import InvitePolicy
from fedpresence.engine.subscription import EduKind, ObservedRow, ObservedStage
from fedpresence.ids import RoomID, UserID
from fedpresence.testing.builders import ALICE, BOB, THERE, a_put, a_stream, an_invite
from tests.engine.side import Side

INVITE, ACCEPT, DENY, DROP = EduKind.INVITE, EduKind.ACCEPT, EduKind.DENY, EduKind.DROP
ROOM = RoomID("!room:here.test")
ONLINE, OFFLINE = f"{ALICE} online", f"{ALICE} offline"


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
