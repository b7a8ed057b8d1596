"""A rig of values alone, for the control API's tests: it notes what it was told, and waits where told to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from fedpresence.engine.presence import PresenceState
from fedpresence.ids import DeviceID, ServerName, UserID, parse_server_name
from fedpresence.testing.homeserver import Answered, FakeHomeserver, SendOrder
from fedpresence.testing.rig.faults import Faults
from fedpresence.testing.rig.wirelog import WireLog

HERE, THERE = ServerName("here.test"), ServerName("there.test")
ALICE = UserID("@alice:here.test")


class StandInServer:
    """Notes what is done to it; `without_backup` it cannot be restored."""

    def __init__(self, name: ServerName, alias: str, done: list[tuple[object, ...]]) -> None:
        self.name = name
        self.alias = alias
        self.is_running = True
        self.without_backup = False
        self._done = done

    async def start(self) -> None:
        self.is_running = True
        self._note("start")

    async def stop(self) -> None:
        self.is_running = False
        self._note("stop")

    async def kill(self) -> None:
        self.is_running = False
        self._note("kill")

    async def backup(self) -> None:
        self._note("backup")

    async def restore(self) -> None:
        if self.without_backup:
            raise LookupError(f"{self.name} has no backup")
        self._note("restore")

    async def wipe(self) -> None:
        self._note("wipe")

    async def set_clock(self, offset_ms: int) -> None:
        self._note("set_clock", offset_ms)

    async def rotate_key(self) -> None:
        self._note("rotate_key")

    def _note(self, *what: object) -> None:
        self._done.append((self.name, *what))


class StandInHomeserver(FakeHomeserver):
    """Sends nothing: what it is ordered waits in `orders` for an answer."""

    def __init__(self, server_name: ServerName) -> None:
        nowhere = Path("/nowhere")
        super().__init__(
            server_name,
            MemoryReactorClock(),
            Clock(),
            (nowhere, nowhere),
            ca_file=nowhere,
            address_of=lambda name: ("127.0.0.1", 1),
        )
        self.orders: list[tuple[SendOrder, Deferred[Answered]]] = []

    async def obey(self, order: SendOrder) -> Answered:
        """Wait for the test to answer."""
        answered: Deferred[Answered] = Deferred()
        self.orders.append((order, answered))
        return await answered


class StandInRig:
    """`done` is what was asked of it, in order. An `advance` takes until `advancing[n]` fires."""

    def __init__(self, *, virtual: bool = True, alias: str | None = None) -> None:
        self.virtual = virtual
        self.is_stopping = False
        self.now_ms = 1_000
        self.wire = WireLog()
        self.done: list[tuple[object, ...]] = []
        here = StandInServer(HERE, alias or HERE, self.done)
        self.servers: dict[ServerName, StandInServer] = {
            HERE: here,
            THERE: StandInServer(THERE, THERE, self.done),
        }
        self.users: Mapping[UserID, object] = {ALICE: None}
        self.homeservers: dict[ServerName, StandInHomeserver] = {}
        self.advancing: list[Deferred[None]] = []

    def server(self, name: str) -> StandInServer:
        for server in self.servers.values():
            if name in (server.name, server.alias):
                return server
        raise KeyError(name)

    def ready(self) -> dict[str, Any]:
        return {"servers": {name: {"key_id": "ed25519:1"} for name in self.servers}}

    async def advance(self, ms: int) -> int:
        turned: Deferred[None] = Deferred()
        self.advancing.append(turned)
        self.done.append(("advance", ms))
        await turned
        self.now_ms += ms
        return self.now_ms

    async def settle(self) -> int:
        self.done.append(("settle",))
        return 0

    async def set_faults(self, origin: str, destination: str, faults: Faults) -> None:
        if origin not in self.servers or destination not in self.servers:
            raise KeyError(f"{origin} to {destination}")
        self.done.append(("faults", origin, destination, faults))

    async def set_stream(
        self,
        user_id: UserID,
        *,
        is_open: bool,
        device_id: DeviceID | None = None,
        set_presence: PresenceState | None = None,
    ) -> None:
        self.done.append(("stream", user_id, is_open, device_id, set_presence))

    async def add_external(self, server_name: str, address: str, ca_file: Path | None = None) -> None:
        if self.virtual:
            raise ValueError("start the rig with --clock real")
        self.done.append(("external", server_name, address, ca_file))

    async def add_homeserver(self, server_name: str) -> StandInHomeserver:
        name = parse_server_name(server_name)
        if name in self.servers or name in self.homeservers:
            raise ValueError(f"{name} is in the rig already")
        homeserver = self.homeservers[name] = StandInHomeserver(name)
        return homeserver
