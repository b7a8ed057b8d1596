"""One server of a rig: a daemon to stop, kill, start, copy, empty, and give a wrong clock.

Always true:
- it is the very daemon that `fedpresence run` runs, with its SQLite file in its own folder;
- its ports and its users' tokens stay the same whatever happens to it;
- its keys outlive it: a rig in the same folder signs with the newest and publishes the older ones;
- a kill is a crash: nothing that was not committed is on disk, and nothing of it runs any more.

Source: contract.md, "Test rig".
"""

import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, cast

import yaml
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from unpaddedbase64 import encode_base64

from fedpresence.clock import Clock, now_ms
from fedpresence.config import Config, load_config
from fedpresence.daemon import Daemon
from fedpresence.engine.events import StreamClosed, StreamOpened
from fedpresence.engine.presence import PresenceState
from fedpresence.ids import DeviceID, KeyID, ServerName, UserID
from fedpresence.ops.keys import generate_key_file, load_signing_keys
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import Store, TokenOwner
from fedpresence.testing.merging import merged
from fedpresence.testing.rig.activity import Activity
from fedpresence.testing.rig.clock import QuietClock, ServerClock, TurnableClock
from fedpresence.testing.rig.network import Network, ServerReactor
from fedpresence.testing.rig.watched import CrashingStore

_log = Logger()

AroundStore = Callable[[ServerName, Store], Store]


@dataclass(frozen=True, slots=True)
class Place:
    """What a server of a rig is put into.

    `until` returns when a Deferred of a server's has fired, turning the clock meanwhile where it must;
    `changed` is told when the server began or ceased to listen. `around_store` makes of a server's store,
    at each start, the one it works with.
    """

    reactor: Any
    network: Network
    activity: Activity
    clock: Clock
    seed: int
    until: Callable[["Deferred[None]"], Awaitable[None]]
    changed: Callable[[ServerName], None]
    around_store: AroundStore = lambda _, store: store


@dataclass(frozen=True, slots=True)
class Ports:
    """Where it listens, on loopback: `federation` is behind `door`, the way in for everybody."""

    client: int
    federation: int
    door: int


class RigServer:
    """One server name's daemon, running or not. `alias` is what the rig's user called it."""

    def __init__(
        self,
        name: ServerName,
        alias: str,
        folder: Path,
        ports: Ports,
        tls: tuple[Path, Path],
        config: Mapping[str, Any],
        resolve: Mapping[ServerName, tuple[str, int]],
        admin_token: str,
        place: Place,
    ) -> None:
        self.name = name
        self.alias = alias
        self.admin_token = admin_token
        self.daemon: Daemon | None = None
        self._folder = folder
        self._ports = ports
        self._tls = tls
        self._given = config
        self._resolve = resolve
        self._place = place
        self._offset_ms = 0
        self._starts = 0
        self._keys = 0
        self._old_keys: dict[str, dict[str, object]] = {}
        self._tokens: dict[str, TokenOwner] = {}
        self._tokens_written = False
        self._streams: dict[tuple[UserID, DeviceID], PresenceState | None] = {}
        self._clock: ServerClock | None = None
        self._view: ServerReactor | None = None
        self._store: CrashingStore | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if self._config_file.exists():
            self._take_up_keys()
        else:
            self._new_key()
        self._config = self._configure()

    # --- what it is ------------------------------------------------------------------------------

    @property
    def client_url(self) -> str:
        """Where clients are, and the metrics."""
        return f"http://127.0.0.1:{self._ports.client}"

    @property
    def admin_url(self) -> str:
        """Where the admin API is."""
        return self.client_url

    @property
    def federation_url(self) -> str:
        """Where other servers are welcome."""
        return f"https://127.0.0.1:{self._ports.door}"

    @property
    def is_running(self) -> bool:
        """Whether it listens."""
        return self.daemon is not None

    @property
    def listening_at(self) -> tuple[str, int] | None:
        """Where its own federation listener is; None where it does not run."""
        return ("127.0.0.1", self._ports.federation) if self.is_running else None

    @property
    def signing_key_path(self) -> Path:
        """The file of the key that it signs with now."""
        return self._folder / f"signing{self._keys}.key"

    @property
    def key_id(self) -> KeyID:
        """The ID of that key."""
        key = load_signing_keys(self.signing_key_path)[0]
        return KeyID(f"{key.alg}:{key.version}")

    @property
    def verify_key(self) -> str:
        """Its public half, in unpadded base64."""
        return encode_base64(bytes(load_signing_keys(self.signing_key_path)[0].verify_key))

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self._config.database_path

    # --- its life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Run on the data there is; nothing where it runs. ConfigError, StoreError or OSError."""
        if self.is_running:
            return
        place = self._place
        self._starts += 1
        view, clock = place.network.view(), ServerClock(place.clock, self._offset_ms)
        self._view, self._clock = view, clock
        if not self._tokens_written:
            await self._write_tokens()
        patience = None
        if isinstance(place.clock, TurnableClock):
            patience = QuietClock(clock, lambda call: place.activity.quiet().addCallback(lambda _: call()))
        daemon = Daemon(
            self._config,
            view,
            clock,
            Random(f"{place.seed} {self.name} {self._starts}"),
            self._fatal,
            force=True,
            open_store=self._open_store,
            patience=patience,
        )
        try:
            await daemon.start()
        except BaseException:  # being cancelled is one
            await self._cut()
            raise
        self.daemon = daemon
        place.changed(self.name)
        for (user_id, device_id), set_presence in self._streams.items():
            await self._open_stream(user_id, device_id, set_presence)

    async def stop(self) -> None:
        """Stop cleanly, as SIGTERM would; nothing where it does not run."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return
        self._place.changed(self.name)
        await self._place.until(daemon.stop())
        await self._cut()

    async def kill(self) -> None:
        """Stop as a crash would; nothing where it does not run."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return
        self._place.changed(self.name)
        await self._cut()

    async def restart(self) -> None:
        """Stop cleanly and start, where it runs."""
        if self.is_running:
            await self.stop()
            await self.start()

    async def add_user(self, user_id: UserID, device_id: DeviceID, token: str) -> None:
        """A user who always exists here, with a token that is always good."""
        self._tokens[token] = TokenOwner(user_id, device_id)
        self._tokens_written = False
        parts = self.daemon.parts if self.daemon is not None else None
        if parts is not None:
            await parts.store.add_token(token, self._tokens[token], now_ms(parts.clock))
            await parts.take_up_new_users()

    async def set_stream(
        self, user_id: UserID, device_id: DeviceID, *, is_open: bool, set_presence: PresenceState | None
    ) -> None:
        """A device's event stream is open from now on, over restarts too, or no more."""
        key = (user_id, device_id)
        was_open = key in self._streams
        was = self._streams.pop(key, None)
        if is_open:
            self._streams[key] = set_presence
            await self._open_stream(user_id, device_id, set_presence)
        if was_open and was is not PresenceState.OFFLINE:
            await self._submit(StreamClosed(user_id, device_id))

    # --- its data --------------------------------------------------------------------------------

    async def backup(self) -> None:
        """Keep a copy of what is on disk now, in place of the last one."""
        with (
            closing(sqlite3.connect(self.database)) as database,
            closing(sqlite3.connect(self._backup)) as copy,
        ):
            database.backup(copy)

    async def restore(self) -> None:
        """Go back to the copy, by a crash where it runs; LookupError where there is none."""
        if not self._backup.exists():
            raise LookupError(f"{self.name} has no backup")
        self._tokens_written = False  # it may be older than they are
        await self._with_other_data(lambda: shutil.copyfile(self._backup, self.database))

    async def wipe(self) -> None:
        """Lose the data, by a crash where it runs. The users' accounts are made again, empty."""
        self._tokens_written = False
        await self._with_other_data(lambda: None)

    # --- what is wrong with it -------------------------------------------------------------------

    async def set_clock(self, offset_ms: int) -> None:
        """From now on its clock is that much ahead (or behind, negative): by a restart where it runs.

        A running daemon does not care about a clock that is set (Z-21), so nothing less would show.
        """
        self._offset_ms = offset_ms
        await self.restart()

    async def rotate_key(self) -> None:
        """Sign with a new key and publish the old one as old: by a restart where it runs."""
        old = load_signing_keys(self.signing_key_path)[0]
        self._old_keys[f"{old.alg}:{old.version}"] = {
            "key": encode_base64(bytes(old.verify_key)),
            "expired_ts": now_ms(self._place.clock) + self._offset_ms,
        }
        self._new_key()
        self._config = self._configure()
        await self.restart()

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _backup(self) -> Path:
        return self._folder / "backup.db"

    @property
    def _config_file(self) -> Path:
        return self._folder / "config.yaml"

    def _take_up_keys(self) -> None:
        """Go on with the keys of another rig that ran in this folder."""
        last = yaml.safe_load(self._config_file.read_text(encoding="utf-8"))
        self._keys = int(last["signing_key_path"].removeprefix("signing").removesuffix(".key"))
        self._old_keys = last.get("old_signing_keys", {})

    def _new_key(self) -> None:
        self._keys += 1
        if not self.signing_key_path.exists():
            generate_key_file(self.signing_key_path)

    def _configure(self) -> Config:
        key_file, certificate_file = self._tls
        own = {
            "server_name": self.name,
            "signing_key_path": self.signing_key_path.name,
            "listeners": [
                {
                    "endpoint": f"tcp:{self._ports.client}:interface=127.0.0.1",
                    "resources": ["client", "admin", "metrics"],
                },
                {
                    "endpoint": f"ssl:{self._ports.federation}:privateKey={key_file}:"
                    f"certKey={certificate_file}:interface=127.0.0.1",
                    "resources": ["federation"],
                },
            ],
            # Handshakes are most of the work of a rig whose clock is turned by days.
            "federation": {"ca_file": str(self._tls[1].parent / "ca.pem"), "keep_connections": "30d"},
            "limits": {"idle_connection": "30d"},
        }
        if self._old_keys:
            own["old_signing_keys"] = self._old_keys
        written = merged(own, self._given)
        admin = written.get("admin") or {}
        if isinstance(admin, dict) and not (admin.get("token") or admin.get("token_path")):
            written["admin"] = admin | {"token": self.admin_token}
        partial = self._config_file.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_text(yaml.safe_dump(written), encoding="utf-8")
        partial.replace(self._config_file)  # whole, or as before: the next rig reads it too
        config = load_config(self._config_file, {}, check_signing_key=load_signing_keys)
        self.admin_token = config.admin_token or self.admin_token  # the configuration may give its own
        # The rig's own links: the book is looked into at each transaction, so it may grow.
        federation = replace(config.federation, resolve=cast(Any, self._resolve))
        return replace(config, federation=federation)

    def _open_store(self, path: Path, reactor: Any) -> Store:
        self._store = CrashingStore(path, reactor, self._place.activity)
        return self._place.around_store(self.name, self._store.as_store())

    async def _write_tokens(self) -> None:
        store = SQLiteStore.open(self.database, self._view, exclusive=False)
        try:
            for token, owner in self._tokens.items():
                await self._place.activity.watched(store.add_token(token, owner, now_ms(self._place.clock)))
        finally:
            await self._place.activity.watched(store.close())
        self._tokens_written = True

    async def _open_stream(
        self, user_id: UserID, device_id: DeviceID, set_presence: PresenceState | None
    ) -> None:
        if set_presence is not PresenceState.OFFLINE:
            await self._submit(StreamOpened(user_id, device_id, set_presence))

    async def _submit(self, event: StreamOpened | StreamClosed) -> None:
        parts = self.daemon.parts if self.daemon is not None else None
        if parts is not None:
            await parts.hub.submit(event)

    async def _with_other_data(self, change: Callable[[], object]) -> None:
        was_running = self.is_running
        await self.kill()
        for path in self._folder.glob(f"{self.database.name}*"):
            if not path.name.endswith(".lock"):
                path.unlink()
        change()
        if was_running:
            await self.start()

    async def _cut(self) -> None:
        """Make sure that nothing of the last run goes on."""
        view, clock, store = self._view, self._clock, self._store
        ending: list[Deferred[Any]] = []
        if clock is not None:
            clock.stop()
        if store is not None:
            ending.append(store.crash())
        if view is not None:
            ending.append(view.cut())
        for ended in ending:
            await ended

    def _fatal(self, failure: Failure) -> None:
        _log.failure("{server_name} cannot go on", failure, server_name=self.name)
        if self.is_running:
            self._place.activity.watched(Deferred.fromCoroutine(self.kill()))
