"""A rig in this process and its reactor: for tests that are written with Twisted, and for `fedpresence rig`.

    rig = await TwistedRig.start(reactor, RigOptions(servers=("here.test", "there.test")))
    await rig.advance(300_000)
    await rig.stop()

Always true:
- every byte between two of its servers passes a link, over TCP and TLS;
- with the virtual clock nothing depends on real time: `advance` and `settle` return once everything
  that was due has happened, and nothing more will until the clock is turned;
- with the virtual clock a name that is not the rig's leads nowhere.

Source: contract.md, "Test rig".
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater

from fedpresence.clock import Clock, MonotonicClock, now_ms
from fedpresence.engine.presence import PresenceState
from fedpresence.errors import BadRequest
from fedpresence.ids import DeviceID, ServerName, UserID, parse_server_name, parse_user_id, server_of
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.homeserver import FakeHomeserver
from fedpresence.testing.rig.activity import Activity
from fedpresence.testing.rig.clock import ServerClock, TurnableClock
from fedpresence.testing.rig.faults import Faults
from fedpresence.testing.rig.folder import Folder
from fedpresence.testing.rig.link import Door, Link, LinkTls
from fedpresence.testing.rig.network import Network
from fedpresence.testing.rig.server import AroundStore, Place, Ports, RigServer
from fedpresence.testing.rig.wirelog import WireLog

DEVICE = DeviceID("RIG")
MAX_FIRINGS_A_ROUND = 100  # of timers, before sockets are looked at in any case
PATIENCE_S = 10.0  # real: what `settle` waits for a peer that does not answer
LOOK_AGAIN_S = 0.005
MAX_STOP_MS = 60_000  # rig time that a clean stop may take


@dataclass(frozen=True, slots=True)
class RigOptions:
    """What a rig is made of.

    `servers` are names, or with `addressable` what their users call them: their names are then
    `127.0.0.1:PORT`. `users` are `alice@here.test` or `@alice:here.test`. `config` is merged into every
    server's. `folder` None: one that is removed at the end. `start_ms` None: now, or where the last rig in
    the folder had turned its clock to, where that is later. `around_store` puts something between a server
    and its store, at each of its starts: for tests that see what is committed.
    """

    servers: tuple[str, ...]
    users: tuple[str, ...] = ()
    virtual: bool = True
    folder: Path | None = None
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    addressable: bool = False
    start_ms: int | None = None
    around_store: AroundStore = lambda _, store: store


@dataclass(frozen=True, slots=True)
class RigUser:
    """A user who exists from the start, with a token."""

    user_id: UserID
    access_token: str
    device_id: DeviceID
    client_url: str


class AddressBook(Mapping[ServerName, tuple[str, int]]):
    """Where one server reaches the others: at its own links.

    A name that nobody has leads to `nowhere`; where that is None, it is a KeyError.
    """

    def __init__(self, nowhere: int | None) -> None:
        self._nowhere = nowhere
        self.links: dict[ServerName, int] = {}

    def __getitem__(self, name: ServerName) -> tuple[str, int]:
        port = self.links.get(name, self._nowhere)
        if port is None:
            raise KeyError(name)
        return "127.0.0.1", port

    def __iter__(self) -> Any:
        return iter(self.links)

    def __len__(self) -> int:
        return len(self.links)


class TwistedRig:
    """Servers, fake homeservers and servers of others, with a link for each direction between two."""

    def __init__(self, reactor: Any, options: RigOptions, folder: Folder) -> None:
        self.virtual = options.virtual
        self.seed = options.seed
        self.is_stopping = False
        self._folder = folder
        self.folder = folder.path
        self.activity = Activity(reactor)
        self.network = Network(reactor, self.activity)
        self.clock: Clock
        if options.virtual:
            start_ms = options.start_ms
            if start_ms is None:
                start_ms = max(int(time.time() * 1000), folder.last_ms())
            self.clock = TurnableClock(start_ms, self._due_at_once)
        else:
            self.clock = MonotonicClock(reactor)
        self.wire = WireLog()
        self.servers: dict[ServerName, RigServer] = {}
        self.homeservers: dict[ServerName, FakeHomeserver] = {}
        self.users: dict[UserID, RigUser] = {}
        self._options = options
        self._reactor = reactor
        self._view = self.network.view()
        self.ca = ThrowawayCA(self.folder / "tls")
        self._nowhere = self.network.reserve_port() if options.virtual else None
        self._books: dict[ServerName, AddressBook] = {}
        self._links: dict[tuple[ServerName, ServerName], Link] = {}
        self._doors: dict[ServerName, Door] = {}
        self._strangers: dict[tuple[ServerName, ServerName], Faults] = {}
        self._externals: dict[ServerName, tuple[tuple[str, int], Path | None]] = {}
        self._certificates: dict[ServerName, tuple[Path, Path]] = {}
        self._turning = DeferredLock()
        self._round_asked = False

    @classmethod
    async def start(cls, reactor: Any, options: RigOptions) -> "TwistedRig":
        """A rig whose servers all answer. ValueError for a bad name, ConfigError for a bad `config`."""
        folder = Folder(options.folder)
        try:
            rig = cls(reactor, options, folder)
        except BaseException:
            folder.close()
            raise
        try:
            await rig._start()
        except BaseException:
            await rig.stop()
            raise
        return rig

    async def stop(self) -> None:
        """Stop everything, and remove what is only ours. A turn of the clock ends where it has come to."""
        self.is_stopping = True
        for server in self.servers.values():
            await server.kill()
        for homeserver in self.homeservers.values():
            await homeserver.stop()
        for link in (*self._links.values(), *self._doors.values()):
            await link.stop()
        await self._view.cut()
        self.network.close()
        try:
            self._keep_time()
        finally:
            self._folder.close()

    # --- time ------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """The rig's time, Unix ms."""
        return now_ms(self.clock)

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that all of the rig's servers trust."""
        return self.ca.ca_file

    async def advance(self, ms: int) -> int:
        """Move the virtual time on, run all that falls due, in order; the new time.

        ValueError where the clock is the real one, or `ms` is negative.
        """
        if not isinstance(self.clock, TurnableClock):
            raise ValueError("only a virtual clock can be turned: start the rig with --clock virtual")
        if ms < 0:
            raise ValueError("time does not go back: ms must be 0 or more")
        await self._turning.acquire()
        try:
            await self._turn_to(self.clock, self.clock.now_ms + ms)
        finally:
            self._turning.release()
        self._keep_time()
        return self.clock.now_ms

    async def settle(self) -> int:
        """Return once nothing is in flight or due now: 0, or how many transactions hang.

        With the virtual clock that is known at once; with the real one a peer has 10 s to answer.
        """
        await self.activity.quiet()
        if not self.virtual:
            deadline_s = self._reactor.seconds() + PATIENCE_S
            while not self._is_settled() and self._reactor.seconds() < deadline_s:
                await deferLater(self._reactor, LOOK_AGAIN_S)
        return self.in_flight()

    def in_flight(self) -> int:
        """How many transactions of the rig's servers are being made or sent."""
        daemons = [server.daemon for server in self.servers.values()]
        return sum(each.parts.outbound.in_flight() for each in daemons if each is not None and each.parts)

    # --- what is in it ---------------------------------------------------------------------------

    def server(self, name: str) -> RigServer:
        """The server of that name or alias; KeyError where there is none."""
        for server in self.servers.values():
            if name in (server.name, server.alias):
                return server
        raise KeyError(name)

    async def add_homeserver(self, server_name: str) -> FakeHomeserver:
        """A scripted peer under this name, running; with `addressable` rigs named 127.0.0.1:PORT too."""
        port = self.network.reserve_port()
        name = _server_name(f"127.0.0.1:{port}" if self._options.addressable else server_name)
        self._refuse_known(name)
        book = self._books[name] = AddressBook(None)  # whoever sends to a name that nobody has made a mistake
        homeserver = FakeHomeserver(
            name,
            self._view,
            ServerClock(self.clock),
            self._certificate(name),
            ca_file=self.ca_file,
            address_of=lambda other: book[other],
        )
        self.homeservers[name] = homeserver
        await self._introduce(name)
        await homeserver.start(port)
        self._refresh(name)
        return homeserver

    async def add_external(self, server_name: str, address: str, ca_file: Path | None = None) -> None:
        """Let the rig's servers reach a server that is not the rig's, at `host:port`.

        Its certificate is verified with `ca_file`, or with the system's authorities. ValueError where the
        clock is virtual (nobody outside knows that time), or a name or address is no good.
        """
        if self.virtual:
            raise ValueError("a server outside lives in real time: start the rig with --clock real")
        name = _server_name(server_name)
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"address: {address!r} is not host:port")
        if name in self.homeservers or any(name in (each.name, each.alias) for each in self.servers.values()):
            raise ValueError(f"{name} is in the rig already")
        is_new = name not in self._externals
        self._externals[name] = ((host.strip("[]"), int(port)), ca_file)
        if not is_new:
            await self._forget(name)
        await self._introduce(name)

    def set_faults(self, origin: str, destination: str, faults: Faults) -> Deferred[None]:
        """What the path from `origin` to `destination` does from now on; KeyError for unknown names.

        Fires when both ends have noticed: a closed port takes a moment to close.
        """
        here, there = self._named(origin), self._named(destination)
        link = self._links.get((here, there))
        if link is not None:
            link.faults = faults
        elif here in self._externals and there in self.servers:
            self._strangers[here, there] = faults
        else:
            raise KeyError(f"{origin} to {destination}")
        return self.activity.quiet()

    async def set_stream(
        self,
        user_id: UserID,
        *,
        is_open: bool,
        device_id: DeviceID | None = None,
        set_presence: PresenceState | None = None,
    ) -> None:
        """A user's device has an event stream open from now on, or no more; KeyError for unknown users."""
        server = self.servers[server_of(user_id)]
        await server.set_stream(user_id, device_id or DEVICE, is_open=is_open, set_presence=set_presence)

    def ready(self) -> dict[str, Any]:
        """The ready file's content, but for where the control API is."""
        return {
            "clock": "virtual" if self.virtual else "real",
            "now_ms": self.now_ms,
            "seed": self.seed,
            "ca_file": str(self.ca_file),
            "servers": {
                server.name: {
                    "alias": server.alias,
                    "client_url": server.client_url,
                    "federation_url": server.federation_url,
                    "admin_url": server.admin_url,
                    "admin_token": server.admin_token,
                    "signing_key_path": str(server.signing_key_path),
                    "key_id": server.key_id,
                    "verify_key": server.verify_key,
                }
                for server in self.servers.values()
            },
            "users": {
                user.user_id: {
                    "access_token": user.access_token,
                    "device_id": user.device_id,
                    "client_url": user.client_url,
                }
                for user in self.users.values()
            },
        }

    # --- the beginning ---------------------------------------------------------------------------

    async def _start(self) -> None:
        for alias in self._options.servers:
            self._add_server(alias)
        for user in self._options.users:
            await self._add_user(user)
        for name in list(self.servers):
            await self._introduce(name)
        for server in self.servers.values():
            await server.start()
            if self.virtual:
                await self.activity.quiet()  # what data from before sets going, while the next is not up

    def _add_server(self, alias: str) -> None:
        ports = Ports(*(self.network.reserve_port() for _ in range(3)))
        name = _server_name(f"127.0.0.1:{ports.door}" if self._options.addressable else alias)
        self._refuse_known(name)
        book = self._books[name] = AddressBook(self._nowhere)
        place = Place(
            self._reactor,
            self.network,
            self.activity,
            self.clock,
            self._options.seed,
            self._until,
            self._refresh,
            self._options.around_store,
        )
        self.servers[name] = RigServer(
            name,
            alias,
            self.folder / alias.replace(":", "_"),
            ports,
            self._certificate(name),
            self._options.config,
            book,
            secrets.token_urlsafe(),
            place,
        )
        self._doors[name] = Door(
            name,
            ports.door,
            self._view,
            self.clock,
            self._chance(f"door of {alias}"),
            LinkTls(self._certificate(name), self.ca_file),
            lambda: self.servers[name].listening_at,
            self.wire,
            lambda origin: self._strangers.get((origin, name), Faults()),
        )

    async def _add_user(self, text: str) -> None:
        localpart, _, at = text.removeprefix("@").partition(":" if text.startswith("@") else "@")
        try:
            server = self.server(at)
        except KeyError:
            raise ValueError(f"{text}: no server of the rig is called {at!r}") from None
        try:
            user_id = parse_user_id(f"@{localpart}:{server.name}")
        except BadRequest as error:
            raise ValueError(f"{text}: no user ID can be made of {localpart!r}") from error
        token = secrets.token_urlsafe()
        await server.add_user(user_id, DEVICE, token)
        self.users[user_id] = RigUser(user_id, token, DEVICE, server.client_url)

    async def _introduce(self, name: ServerName) -> None:
        """Links between `name` and everybody else, in both directions; and its door."""
        if name in self._doors:
            await self._doors[name].start()
        everybody = (*self._books, *self._externals)
        pairs = [(other, name) for other in everybody] + [(name, other) for other in everybody]
        for origin, destination in pairs:
            is_new = (origin, destination) not in self._links
            if origin != destination and origin in self._books and is_new:
                await self._add_link(origin, destination)

    async def _add_link(self, origin: ServerName, destination: ServerName) -> None:
        port = self.network.reserve_port()
        ca_file: Path | None = self.ca_file
        if destination in self._externals:
            _, ca_file = self._externals[destination]
        link = Link(
            origin,
            destination,
            port,
            self._view,
            self.clock,
            self._chance(f"{self._called(origin)} to {self._called(destination)}"),
            LinkTls(self._certificate(destination), ca_file),
            lambda: self._target(destination),
            self.wire,
            source=f"192.0.2.{list(self._books).index(origin) % 250 + 1}",
        )
        self._links[origin, destination] = link
        self._books[origin].links[destination] = port
        await link.start()

    def _chance(self, path: str) -> Random:
        """One path's own: what happens on the others, or in which order, changes nothing there."""
        return Random(f"{self.seed} {path}")

    def _called(self, name: ServerName) -> str:
        """What a server was ordered as: an addressable one has another name each time."""
        return self.servers[name].alias if name in self.servers else name

    async def _forget(self, name: ServerName) -> None:
        for (origin, destination), link in list(self._links.items()):
            if destination == name:
                del self._links[origin, destination]
                await link.stop()

    def _certificate(self, name: ServerName) -> tuple[Path, Path]:
        if name not in self._certificates:
            self._certificates[name] = self.ca.issue(name)
        return self._certificates[name]

    def _refuse_known(self, name: ServerName) -> None:
        if name in self._books or name in self._externals:
            raise ValueError(f"{name} is in the rig already")

    def _named(self, name: str) -> ServerName:
        for server in self.servers.values():
            if name in (server.name, server.alias):
                return server.name
        if name in self.homeservers or name in self._externals:
            return ServerName(name)
        raise KeyError(name)

    def _target(self, name: ServerName) -> tuple[str, int] | None:
        """Where a destination really listens now."""
        if name in self.servers:
            return self.servers[name].listening_at
        if name in self.homeservers:
            port = self.homeservers[name].port
            return None if port is None else ("127.0.0.1", port)
        return self._externals[name][0]

    def _refresh(self, name: ServerName) -> None:
        """A server began or ceased to listen."""
        if name in self._doors:
            self._doors[name].refresh()
        for (_, destination), link in self._links.items():
            if destination == name:
                link.refresh()

    # --- turning ---------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Remember how far the virtual time has come, for the next rig in the folder."""
        if self.virtual:
            self._folder.keep_time(self.now_ms)

    async def _turn_to(self, clock: TurnableClock, until_ms: int) -> None:
        await self.activity.quiet()
        firings = 0
        while not self.is_stopping and (due_ms := clock.next_due_ms()) is not None and due_ms <= until_ms:
            stamp = self.activity.stamp
            clock.turn_to(max(due_ms, clock.now_ms))
            clock.run_due()
            firings += 1
            if (
                self.activity.stamp != stamp
                or firings % MAX_FIRINGS_A_ROUND == 0
                or not self.activity.is_quiet()
            ):
                await self.activity.quiet()
        if not self.is_stopping:
            clock.turn_to(until_ms)

    async def _until(self, done: "Deferred[None]") -> None:
        """Wait for `done`, turning the clock where nothing else helps."""
        clock = self.clock
        if isinstance(clock, TurnableClock):
            last_ms = clock.now_ms + MAX_STOP_MS
            await self.activity.quiet()
            while not done.called and (due_ms := clock.next_due_ms()) is not None and due_ms <= last_ms:
                clock.turn_to(max(due_ms, clock.now_ms))
                clock.run_due()
                await self.activity.quiet()
        await done
        self._keep_time()

    def _due_at_once(self) -> None:
        """Somebody asked for a call without any delay."""
        if not self._round_asked:
            self._round_asked = True
            self._reactor.callLater(0, self._run_due)

    def _run_due(self) -> None:
        self._round_asked = False
        if isinstance(self.clock, TurnableClock):
            self.clock.run_due()
            due_ms = self.clock.next_due_ms()
            if due_ms is not None and due_ms <= self.clock.now_ms:
                self._due_at_once()

    def _is_settled(self) -> bool:
        running = [server.daemon for server in self.servers.values() if server.daemon is not None]
        return self.activity.is_quiet() and all(daemon.idle() for daemon in running)


def _server_name(text: str) -> ServerName:
    try:
        return parse_server_name(text)
    except BadRequest as error:
        raise ValueError(f"{text!r} is no server name") from error
