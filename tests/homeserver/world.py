"""A homeserver that is played, and fedpresence beside it: engine, hub and store are real."""

import json
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fedpresence.config import engine_settings
from fedpresence.config_model import Config, ListenerConfig, RoomsConfig
from fedpresence.counters import NullCounters
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import Started
from fedpresence.errors import HomeserverRefused
from fedpresence.homeserver.appservice import AppService
from fedpresence.homeserver.registration import Registration
from fedpresence.homeserver.scan import Scan
from fedpresence.hub import Hub
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.storage.memory import MemoryStore
from tests.asynchronous import result_of

HERE = ServerName("here.test")
ALICE, CAROL, DAVE = (UserID(f"@{name}:here.test") for name in ("alice", "carol", "dave"))
BOB = UserID("@bob:there.test")
BOT = UserID("@fedpresence:here.test")
ROOM, OTHER = RoomID("!room:here.test"), RoomID("!other:here.test")
NOW_MS = 1_700_000_000_000
REGISTRATION = Registration("fedpresence", None, "a" * 64, "b" * 64, "fedpresence", receives_ephemeral=True)


class PlayedHomeserver:
    """Its rooms; what it was asked, and the answers that it holds back (`held`) until they are let go."""

    def __init__(self, rooms: dict[RoomID, set[UserID]] | None = None) -> None:
        self.rooms = rooms or {}
        self.asked: list[str] = []
        self.errors: list[Exception] = []  # what the next questions meet
        self.broken: dict[str, Exception] = {}  # what these questions meet each time
        self.holds = False
        self.held: list[Deferred[None]] = []
        self.users: set[UserID] = set()

    async def _ask(self, question: str) -> None:
        self.asked.append(question)
        if self.errors:
            raise self.errors.pop(0)
        if question in self.broken:
            raise self.broken[question]

    async def _answered(self) -> None:
        if self.holds:
            held: Deferred[None] = Deferred()
            self.held.append(held)
            await held

    async def register_bot(self) -> None:
        await self._ask("register")

    async def local_users(self, start: str, limit: int) -> tuple[tuple[UserID, ...], str | None]:
        await self._ask("users")
        if not self.users:
            raise HomeserverRefused(403, "M_FORBIDDEN")
        return tuple(sorted(self.users)), None

    async def joined_rooms(self, acting_as: UserID | None = None) -> tuple[RoomID, ...]:
        await self._ask(f"rooms of {acting_as or BOT}")
        return tuple(sorted(room for room, members in self.rooms.items() if (acting_as or BOT) in members))

    async def joined_members(self, room_id: RoomID, acting_as: UserID | None = None) -> tuple[UserID, ...]:
        await self._ask(f"members of {room_id}")
        found = tuple(sorted(self.rooms.get(room_id, ())))
        await self._answered()
        if not any(user_id.endswith(":here.test") for user_id in found):
            raise HomeserverRefused(403, "M_FORBIDDEN")
        return found

    async def join_rule(self, room_id: RoomID, acting_as: UserID | None = None) -> str | None:
        await self._ask(f"rule of {room_id}")
        return "invite"


class Beside:
    """fedpresence beside `homeserver`."""

    def __init__(
        self, homeserver: PlayedHomeserver, store: MemoryStore | None = None, *, max_members: int = 10
    ) -> None:
        self.homeserver = homeserver
        self.clock = Clock()
        self.clock.advance(NOW_MS / 1000)
        self.store = store or MemoryStore()
        config = Config(
            folder=None,  # type: ignore[arg-type]  # nothing is read
            server_name=HERE,
            signing_key_path=None,  # type: ignore[arg-type]
            listeners=(ListenerConfig("tcp:0", ("appservice",)),),
            rooms=RoomsConfig(max_members=max_members),
        )
        self.engine = Engine(engine_settings(config), NOW_MS)
        self.engine.load(result_of(self.store.load()), NOW_MS)
        self.fatal: list[Failure] = []
        self.hub = Hub(self.engine, self.store, self.clock, lambda _: None, self.fatal.append)
        result_of(self.hub.submit(Started()))
        api: Any = homeserver
        known = self.engine.known
        self.scan = Scan(
            api,
            self.store,
            known,
            self.hub.submit,
            BOT,
            max_members,
            self.clock,
            Random(1),
            self.fatal.append,
            per_second=1000,
        )
        result_of(self.scan.load())
        self.appservice = AppService(
            HERE, REGISTRATION, self.scan, known, self.hub.submit, self.clock, NullCounters()
        )

    def started(self, *, is_caught_up: bool = True) -> "Beside":
        """The scan has run as far as it can, and (`is_caught_up`) the stream tells what happens now."""
        self.scan.start()
        self.settle()
        self.appservice._happenings._is_old = not is_caught_up
        return self

    def settle(self, seconds: float = 1.0) -> None:
        """Time passes in small steps."""
        for _ in range(int(seconds * 100)):
            self.clock.advance(0.01)
        assert self.fatal == []

    def members(self, room_id: RoomID) -> set[UserID]:
        """Who the engine thinks is there."""
        room = self.engine._world.rooms.get(room_id)
        return set() if room is None else set(room.members)

    def restarted(self) -> "Beside":
        """The same store, another run; what was in flight is lost."""
        self.hub.stop()
        result_of(self.scan.stop())
        return Beside(self.homeserver, self.store.reopened(), max_members=10)


def tell(beside: Beside, *events: dict[str, object], txn_id: str = "1") -> None:
    """The homeserver pushes these events."""
    result_of(beside.appservice.take(txn_id, json.dumps({"events": events}).encode()))


def member(user_id: UserID, membership: str, room_id: RoomID = ROOM) -> dict[str, object]:
    """Somebody joins or leaves."""
    return {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": user_id,
        "state_key": user_id,
        "origin_server_ts": NOW_MS,
        "content": {"membership": membership},
    }


def message(user_id: UserID, room_id: RoomID = ROOM) -> dict[str, object]:
    """Somebody speaks."""
    return {
        "type": "m.room.message",
        "room_id": room_id,
        "sender": user_id,
        "origin_server_ts": NOW_MS,
        "content": {},
    }
