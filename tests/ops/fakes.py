"""What the admin API and the metrics ask: an engine, destinations and a store that are made up."""

from collections.abc import Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, succeed

from fedpresence.engine.effects import Effect
from fedpresence.engine.events import Event
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.queries import Counts, DeviceDetail, ListEntry, ObserverEntry, Pair, UserDetail
from fedpresence.engine.subscription import ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import DeviceID, ServerName, UserID

THERE = ServerName("there.test")
ALICE = UserID("@alice:here.test")
BOB = UserID("@bob:there.test")
CAROL = UserID("@carol:there.test")
NOW_MS = 1_700_000_000_000


class FakeEngine:
    """Knows Alice; remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.refuse: BadRequest | None = None
        self.users = {ALICE}

    def receive(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Remember `event`."""
        if self.refuse is not None:
            raise self.refuse
        self.events.append(event)
        return ()

    def wake_ms(self) -> int | None:
        """Nothing is ever due."""
        return None

    def counts(self) -> Counts:
        """A small server."""
        return Counts(
            online=1,
            unavailable=2,
            offline=3,
            busy=0,
            remote=4,
            list_pending=5,
            list_accepted=6,
            requests=7,
            grants=8,
            rooms=9,
            rooms_doubted=10,
        )

    def unwanted(self) -> dict[ServerName, int]:
        """One server by name, and all beyond the hundredth."""
        return {ServerName("flood.test"): 7, ServerName(""): 2}

    def user_exists(self, user_id: UserID) -> bool:
        """Alice alone, at first."""
        return user_id in self.users

    def user_detail(self, user_id: UserID, now_ms: int) -> UserDetail | None:
        """Alice, with one of everything."""
        if user_id != ALICE:
            return None
        view = View(PresenceState.ONLINE, 5, "hello", currently_active=True)
        return UserDetail(
            ALICE,
            view,
            NOW_MS - 5,
            devices=(DeviceDetail(DeviceID("PHONE"), PresenceState.ONLINE, NOW_MS - 1, 1, hidden=False),),
            list=(ListEntry(BOB, ObserverStage.ACCEPTED, 10, 20, unreachable=False, view=view),),
            invites=(Pair(CAROL, 30),),
            observers=(ObserverEntry(BOB, 40, muted=True, confirmed_ms=50),),
        )


@dataclass
class FakeDestination:
    """A destination that fails."""

    state: str = "failing"
    pending_users: int = 2
    owed: int = 1
    failing_since_ts: int | None = 100
    next_try_ts: int | None = 200
    last_success_ts: int | None = None
    last_error: str | None = "connection refused"


class FakeDestinations:
    """Sends to there.test alone."""

    def __init__(self) -> None:
        self.retried: list[ServerName] = []

    def describe(self, destination: ServerName | None) -> dict[ServerName, FakeDestination]:
        """One destination."""
        return {THERE: FakeDestination()} if destination in (None, THERE) else {}

    def retry(self, destination: ServerName) -> bool:
        """Remember it."""
        if destination == THERE:
            self.retried.append(destination)
        return destination == THERE


class NoStore:
    """Nothing durable happens here."""

    def commit(self, effects: Sequence[object], now_ms: int) -> Deferred[None]:
        """Done."""
        return succeed(None)
