"""Whether the two servers of a pair tell the same story about it.

Source: subscriptions.md 5, the liveness invariant and what it allows to last.
"""

from fedpresence.engine.settings import DAY_MS
from fedpresence.engine.subscription import ObservedStage, ObserverStage
from fedpresence.ids import UserID, server_of
from tests.engine.servers import Servers

QUIET_MS = 9 * DAY_MS  # in contact, and nothing new: after that they must agree
ASKED = (ObserverStage.PENDING, ObservedStage.REQUESTED)
WATCHES = (ObserverStage.ACCEPTED, ObservedStage.GRANTED)
AGREED = frozenset(
    {
        ASKED,
        WATCHES,
        (ObserverStage.NONE, ObservedStage.NONE),
        (ObserverStage.DENIED, ObservedStage.DENIED),
        (ObserverStage.NONE, ObservedStage.DENIED),
        (ObserverStage.DENIED, ObservedStage.NONE),
    }
)
UNANSWERED = (  # these last until the observed user answers
    (ObserverStage.DENIED, ObservedStage.REQUESTED),
    (ObserverStage.NONE, ObservedStage.REQUESTED),
)


def assert_both_servers_agree(world: Servers, observer: UserID, observed: UserID) -> None:
    """The pair is in one of the states that S:5 lists, or in one that it allows to last."""
    mine, theirs, row = world.stages(observer, observed)
    muted = row is not None and row.muted
    blocked = row is not None and row.blocked
    # What a lost database held cannot be told; it does no harm where its server sees the user anyway.
    no_note = world.server_of(observer).observer_row(observer, observed) is None
    match mine, theirs:
        case ObserverStage.NONE, ObservedStage.GRANTED:
            # A mute lasts until the observed user revokes.
            tolerated = muted or (no_note and _is_watched_otherwise(world, observer, observed))
        case ObserverStage.DENIED, ObservedStage.GRANTED:
            tolerated = muted
        case ObserverStage.PENDING, ObservedStage.DENIED:
            tolerated = blocked
        case _:
            tolerated = (mine, theirs) in UNANSWERED
    agreed = (mine, theirs) in AGREED and not muted
    assert agreed or tolerated, (observer, observed, mine, theirs, row)


def _is_watched_otherwise(world: Servers, observer: UserID, observed: UserID) -> bool:
    """Whether the observer's server has another reason to take pushes of the observed user."""
    server = world.server_of(observer)
    shares_room = any(
        observed in members and any(server_of(member) == server.name for member in members)
        for members in server.rooms.values()
    )
    return shares_room or any(
        row.observed == observed
        and row.observer != observer
        and row.stage in (ObserverStage.PENDING, ObserverStage.ACCEPTED)
        for row in server.stored().pairs.observer_rows()
    )
