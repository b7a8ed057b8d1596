"""Alice, who is online, and the rooms that she may share with users of two other servers."""

from typing import Any

from fedpresence.engine.outgoing import Wanted
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import ALICE, THERE, a_put, a_stream
from tests.engine.side import Side

ROOM, OTHER_ROOM = RoomID("!room:here.test"), RoomID("!other:here.test")
OTHER = ServerName("other.test")
ERIN = UserID("@erin:other.test")


def a_side(**settings: Any) -> Side:
    """Alice is online."""
    side = Side(**settings)
    side.do(a_stream(), a_put())
    return side


def may_hear(side: Side, server: ServerName = THERE, user_id: UserID = ALICE) -> bool:
    """Whether a push of the user would leave for the server now."""
    return bool(side.engine.compose(server, Wanted(users=(user_id,)), side.now_ms).pushes)
