"""One destination's queue without its sender: what is put into it, and what leaves."""

from fedpresence.engine.effects import Urgency
from fedpresence.engine.outgoing import Wanted
from fedpresence.engine.presence import PresenceState, Published
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.queue import PATIENCE_MS, DestinationQueue, Lengths, News
from fedpresence.testing.builders import ALICE, BOB, HERE, NOW_MS, THERE

WINDOW_MS = 200
REFRESH_MS = 1_500_000

USERS = [UserID(f"@{name}:here.test") for name in "abcd"]
ONLINE = Published(PresenceState.ONLINE, NOW_MS, None, True)
OFFLINE = Published(PresenceState.OFFLINE, NOW_MS)


def a_queue(destination: ServerName = THERE, origin: ServerName = HERE) -> DestinationQueue:
    """Nothing waits, and nothing was ever sent."""
    return DestinationQueue(destination, Lengths(origin, WINDOW_MS, REFRESH_MS))


def push(
    queue: DestinationQueue, now_ms: int, user: UserID = ALICE, urgency: Urgency = Urgency.CHANGE
) -> None:
    """News of a user that is as urgent as that."""
    queue.add_push(user, News(urgency, now_ms + PATIENCE_MS[urgency]))


def edu(kind: EduKind = EduKind.INVITE, generation: int = 1, observer: UserID = ALICE) -> OwedEdu:
    """A word about a pair with Bob."""
    return OwedEdu(kind, observer, BOB, generation, NOW_MS)


def deliver(queue: DestinationQueue, now_ms: int, content: Published = ONLINE) -> Wanted:
    """All that waits goes out and is taken."""
    wanted = queue.take(now_ms, 500)
    queue.delivered(wanted.users, wanted.owed, dict.fromkeys(wanted.users, content), now_ms)
    return wanted
