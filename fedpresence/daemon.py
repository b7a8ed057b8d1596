"""Composition: Config and reactor to one running daemon.

Always true:
- constructing opens nothing; `start` opens the database first and the listeners last, so that nobody is
  answered from half a daemon;
- what was started is stopped in the opposite order, and what must survive is written before the lock goes;
- our keys are shown until the last words have left, because whoever verifies them asks for those;
- a failed commit, or a bug in the background, stops everything.

Source: style.md's layout; decisions 21 and 22; contract, `fedpresence run`.
"""

import gc
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from signedjson.types import SigningKey
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence import __version__
from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.config import Config, engine_settings
from fedpresence.config_keys import KEYS, Key
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import SettingsChanged, Started, Stopping, TimePassed
from fedpresence.engine.settings import EngineSettings, ServerLists
from fedpresence.errors import ConfigError, StoreError
from fedpresence.homeserver.checks import Checks, Finding, Verdict, worth_saying
from fedpresence.homeserver.registration import Registration, load_registration
from fedpresence.listening import Listener, listen, reload_certificates
from fedpresence.ops.keys import load_signing_keys
from fedpresence.outbound.status import TransactionSeen
from fedpresence.parts import Parts, Surroundings, Work, check_homeserver_authorities, tls_policy
from fedpresence.selfcheck import Arrival, is_public
from fedpresence.serving import site_for
from fedpresence.site import BoundedSite
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import Store
from fedpresence.wire.signing import Identity

_log = Logger()

WRITE_BEHIND_S = 30.0  # how much presence a crash may cost (decision 22)
LOOK_AROUND_S = 0.5  # real time: how late a token revoked by the command line is noticed
FLUSH_S = 5.0  # what a clean stop waits for the last words
FLUSH_STEP_S = 0.05
# What a reload takes over, keys and whole sections: all else needs a restart.
RELOADED = (
    "federation.allow",
    "federation.deny",
    "federation.ca_file",
    "limits.",
    "lists.max_entries",
    "log.",
    "presence.offline_on_stop",
    "rooms.",
)
KEY_PATHS = (b"/_matrix/key/", b"/.well-known/matrix/server")  # what verifying our last words needs
SELF_CHECK_AGAIN_S = 600.0
CHECK_AGAIN_S = 60.0  # what is around us, where something was not well: first after this long,
CHECK_AT_LEAST_S = 3600.0  # and in the end hourly (H:9)
CLOCK_JUMP_MS = 3_600_000  # Z-21
NOBODY = ServerLists(allow=())

Findings = tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Listening:
    """One open listener, as the ready file names it."""

    resources: tuple[str, ...]
    host: str
    port: int


class Secrets(NamedTuple):
    """What stands in files that a start reads, and a reload does not take over."""

    signing_keys: tuple[SigningKey, ...]
    registration: Registration | None


class Daemon:
    """One server name's presence. `start` is called once; `stop` may be, at any time after.

    `fatal` hears, once, of the failure that makes going on impossible; it should end the process.
    `open_store` opens the database at a path; `patience` is as in `Surroundings`.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        clock: Clock,
        random: Random,
        fatal: Callable[[Failure], None],
        *,
        wire_log: Callable[[TransactionSeen], None] | None = None,
        force: bool = False,
        open_store: Callable[[Path, Any], Store] | None = None,
        patience: Clock | None = None,
    ) -> None:
        self.config = config
        self._running = config  # what we are built with: where a reload cannot follow, to the next restart
        self.listening: tuple[Listening, ...] = ()
        self._reactor = reactor
        self._clock = clock
        self._open_store = open_store
        self._around = Surroundings(
            reactor,
            clock,
            clock if patience is None else patience,
            random,
            self._background,
            self._fatal,
            self._turned,
            wire_log,
        )
        self._fatal_heard = fatal
        self._secrets: Secrets | None = None
        self._store: Store | None = None
        self._parts: Parts | None = None
        self._listeners: list[Listener] = []
        self._sites: list[BoundedSite] = []
        self._timers: dict[str, Timer] = {}
        self._serving = False
        self._failed = False
        self._started: Deferred[None] | None = None  # fires when `start` has ended, well or not
        self._stopped: Deferred[None] | None = None
        # Nothing leaves before our name is known to lead here (Z-23).
        self._held = not force and is_public(config.server_name, config.federation.resolve)

    async def start(self) -> None:
        """Open everything; returns once every listener answers. ConfigError, StoreError or OSError.

        Returns early where `stop` was called meanwhile.
        """
        self._started = Deferred()
        gc.disable()  # a million new rows and no garbage: collecting would take half of the time
        try:
            await self._start()
        finally:
            gc.enable()
            self._started.callback(None)

    async def _start(self) -> None:
        config = self._running
        secrets = self._secrets = _read_secrets(config)
        identity = Identity(config.server_name, secrets.signing_keys, config.old_signing_keys)
        open_store = self._open_store or SQLiteStore.open
        store = self._store = open_store(config.database_path, self._reactor)
        engine = await self._load(store)
        if self._stopped is not None:
            return
        registration = secrets.registration
        servers = NOBODY if self._held else engine_settings(config).servers
        parts = self._parts = Parts(config, identity, store, engine, self._around, servers, registration)
        await parts.keyring.load()
        if parts.scan is not None:
            await parts.scan.load()
        parts.outbound.startService()
        await parts.hub.submit(Started())
        await self._listen(parts)
        self._serving = True
        if parts.scan is not None:
            parts.scan.start()
        if self._held:
            self._background("the self-check", self._check_ourselves(parts))
        if parts.checks is not None:
            self._background("the checks", self._look_at_homeserver(parts.checks, CHECK_AGAIN_S))
        self._look_around_soon(parts)
        if self.config is not config:
            self._reload_at_last()
        _log.info(
            "{server_name} serves presence (fedpresence {version}, {key_id})",
            server_name=config.server_name,
            version=__version__,
            key_id=identity.key_id,
        )

    def reload(self, config: Config) -> list[str]:
        """Take over what may change while running; answers the keys that need a restart.

        ConfigError, and nothing changes, where a certificate or an authority is no good, or one of the files
        that need a restart.
        """
        parts, secrets = self._parts, _read_secrets(config)
        authorities = None
        if parts is None:  # they will be built with it
            tls_policy(config)
        else:
            check_homeserver_authorities(config)
            authorities = parts.tls.read(config.federation.ca_file)
        reload_certificates(self._listeners)
        self.config = config
        if parts is not None and authorities is not None:
            parts.tls.take_over(authorities)
            if parts.relay is not None:
                parts.relay.renew_trust()
            settings = _reloaded(engine_settings(self._running), engine_settings(config))
            parts.origins.reload(settings.servers)
            parts.origin_limits.reload(config.limits)
            parts.changes.reload(config.limits)
            if parts.scan is not None:
                parts.scan.reload(config.rooms.max_members)
            for site in self._sites:
                site.reload(config.limits)
            # Before the engine hears, so that what waits for a server that is denied is kept.
            parts.outbound.reload(NOBODY if self._held else settings.servers)
            self._background("the reload", _submitted(parts, SettingsChanged(settings)))
        changed = _needing_restart(self._running, config)
        if self._secrets is not None:
            changed += _replaced(self._secrets, secrets)
        return list(dict.fromkeys(changed))

    def _reload_at_last(self) -> None:
        """What was reloaded while we started."""
        try:
            self.reload(self.config)
        except ConfigError as error:  # it was well a moment ago
            self.config = self._running
            _log.error("the reload while starting did not hold: {error}", error=str(error))

    @property
    def parts(self) -> Parts | None:
        """What it is made of, for those who look inside; None before they are built."""
        return self._parts

    def idle(self) -> bool:
        """Whether nothing is in flight or due now."""
        return self._parts is None or (self._parts.hub.idle() and self._parts.outbound.idle())

    def stop(self) -> Deferred[None]:
        """Stop cleanly: the last words leave, what must survive is written. Asked twice, stops once."""
        if self._stopped is None:
            self._stopped = Deferred()
            stopping = ensureDeferred(self._stop())
            stopping.addErrback(self._not_stopped_cleanly)
            stopping.chainDeferred(self._stopped)
        waiting: Deferred[None] = Deferred()

        def tell(_: object) -> None:
            waiting.callback(None)

        self._stopped.addCallback(tell)
        return waiting

    # --- the beginning --------------------------------------------------------------------------

    async def _load(self, store: Store) -> Engine:
        stored = await store.load()
        now = now_ms(self._clock)
        engine = Engine(engine_settings(self._running), now)
        engine.load(stored, now)
        if now < stored.saved_at_ms - CLOCK_JUMP_MS:
            _log.warn(
                "the clock stands {ms} ms before the last write: expiries wait an hour",
                ms=stored.saved_at_ms - now,
            )
        if (whose := engine.whose_users()) != self.config.server_name:
            _log.warn(
                "{path} has the users of {whose}, who are strangers to {server_name}: maybe server_name or "
                "database.url is another server's",
                path=str(self.config.database_path),
                whose=whose,
                server_name=self.config.server_name,
            )
        return engine

    async def _listen(self, parts: Parts) -> None:
        listening = []
        for place in self._running.listeners:
            site = site_for(parts, place, lambda: self._serving)
            listener = await listen(place.endpoint, site, self._reactor)
            self._sites.append(site)
            self._listeners.append(listener)
            address = listener.port.getHost()
            is_unix = isinstance(address, UNIXAddress)
            host = os.fsdecode(address.name) if is_unix else getattr(address, "host", str(address))
            at = Listening(place.resources, host, getattr(address, "port", 0))
            listening.append(at)
            _log.info(
                "{resources} on {host}:{port}", resources=", ".join(at.resources), host=at.host, port=at.port
            )
        self.listening = tuple(listening)

    async def _check_ourselves(self, parts: Parts) -> None:
        """Send from here on, unless our name leads to somebody else (Z-23)."""
        arrival, answered = await parts.self_check.ask(parts.client.send)
        if self._stopped is not None:
            return
        name = self.config.server_name
        if arrival is Arrival.ELSEWHERE:
            _log.error(
                "{server_name} leads to another process ({answered}): nothing is sent. Point the name here, "
                "or start with --force if you are sure. Asking again in {minutes} minutes",
                server_name=name,
                answered=answered,
                minutes=int(SELF_CHECK_AGAIN_S // 60),
            )
            self._later("self-check", SELF_CHECK_AGAIN_S, lambda: self._check_ourselves(parts))
            return
        if arrival is Arrival.NOWHERE:
            _log.warn(
                "{server_name} cannot be reached from here ({answered}): maybe not from elsewhere either",
                server_name=name,
                answered=answered,
            )
        self._held = False
        parts.outbound.reload(engine_settings(self.config).servers)

    async def _look_at_homeserver(self, checks: Checks, again_s: float, before: Findings = ()) -> None:
        """Say what is not as it must be beside a homeserver (H:9), once each; ask again until all is well."""
        findings = await checks.all()
        if self._stopped is not None:
            return
        for finding in worth_saying(findings, before):
            if finding.verdict is Verdict.FATAL:
                self._fatal(Failure(ConfigError.of(finding.subject, finding.words, finding.fix)))
                return
            if finding.is_good:
                _log.info("{finding}", finding=str(finding))
            else:
                _log.warn("{finding}", finding=str(finding))
        if not all(finding.is_good for finding in findings):
            later_s = min(2 * again_s, CHECK_AT_LEAST_S)
            self._later("checks", again_s, lambda: self._look_at_homeserver(checks, later_s, findings))

    # --- in the background ----------------------------------------------------------------------

    def _turned(self) -> None:
        """A turn has ended: what it changed is written within `WRITE_BEHIND_S`."""
        parts = self._parts
        if parts is not None and "write behind" not in self._timers and parts.has_unwritten():
            self._later("write behind", WRITE_BEHIND_S, parts.write_behind)

    def _look_around_soon(self, parts: Parts) -> None:
        """By the reactor's time: other processes know no other."""

        def look() -> None:
            try:
                is_touched = parts.store.touched()
            except StoreError:
                self._fatal(Failure())
                return
            if is_touched:
                self._background("look around", take_up())
            else:
                self._look_around_soon(parts)

        async def take_up() -> None:
            await parts.take_up_changes()
            self._look_around_soon(parts)

        self._call_later("look around", LOOK_AROUND_S, look, self._reactor)

    def _later(self, name: str, delay_s: float, work: Callable[[], Work]) -> None:
        self._call_later(name, delay_s, lambda: self._background(name, work()), self._clock)

    def _call_later(self, name: str, delay_s: float, call: Callable[[], None], clock: Clock) -> None:
        def begin() -> None:
            del self._timers[name]
            call()

        if self._stopped is None and not self._failed:
            self._timers[name] = clock.callLater(delay_s, begin)

    def _background(self, name: str, work: Work) -> None:
        """Nothing fails unheard: what goes wrong in the background stops the daemon."""

        def failed(failure: Failure) -> None:
            if self._stopped is None and not self._failed:
                if not failure.check(StoreError):
                    _log.failure("{work} failed", failure, work=name)
                self._fatal(failure)

        ensureDeferred(work).addErrback(failed)

    def _fatal(self, failure: Failure) -> None:
        if not self._failed:
            self._failed = True
            self._serving = False
            self._fatal_heard(failure)

    # --- the end --------------------------------------------------------------------------------

    def _not_stopped_cleanly(self, failure: Failure) -> None:
        """What could not be written is told as any other failure is, and once."""
        if self._failed and not failure.check(StoreError):
            _log.failure("the daemon did not stop cleanly", failure)
        self._fatal(failure)

    async def _stop(self) -> None:
        if self._started is not None:
            await self._started  # half a daemon cannot be stopped cleanly
        self._serving = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        showing_keys = [] if self._failed else self._only_show_keys()
        await _stop_listening([each for each in self._listeners if each not in showing_keys])
        parts = self._parts
        try:
            try:
                if parts is not None:
                    await self._say_last_words(parts)
            finally:
                await _stop_listening(showing_keys)
            if parts is not None:
                await self._stop_parts(parts)
        finally:
            if self._store is not None:
                await self._store.close()

    def _only_show_keys(self) -> list[Listener]:
        """Refuse everything else; the listeners where other servers find our keys."""
        showing = []
        for place, listener, site in zip(self.listening, self._listeners, self._sites, strict=False):
            if "federation" in place.resources:
                site.refuse_all_but(KEY_PATHS)
                showing.append(listener)
        return showing

    async def _say_last_words(self, parts: Parts) -> None:
        if parts.scan is not None:
            await parts.scan.stop()
        if not self._failed:
            await parts.hub.submit(Stopping(self.config.presence.offline_on_stop))
            parts.feed.close()
            parts.tap.close()
            await parts.changes.stopService()
            await parts.transactions.stop()
            await self._flush(parts)

    async def _stop_parts(self, parts: Parts) -> None:
        await DeferredList([site.close() for site in self._sites], consumeErrors=True)
        await parts.outbound.stopService()
        await parts.keyring.stop()
        await parts.homeserver_pool.closeCachedConnections()
        if parts.relay is not None:
            await parts.relay.stop()
        if not self._failed:
            await parts.hub.submit(TimePassed())  # what came before it is committed before the store closes
        parts.hub.stop()
        if not self._failed:
            await parts.write_behind()
            await parts.store.save_presence((), now_ms(self._clock))  # when we stopped, whatever changed

    async def _flush(self, parts: Parts) -> None:
        """Let the last words leave, those that wait for a batch window too; for a moment at most."""
        until_s = self._clock.seconds() + FLUSH_S
        until_ms, windows_ms = int(until_s * 1000), int((until_s - FLUSH_S / 2) * 1000)
        while self._clock.seconds() < until_s:
            parts.outbound.end_windows(windows_ms)  # each time: a transaction opens one
            if not parts.outbound.has_last_words(until_ms):
                return
            moment: Deferred[None] = Deferred()
            self._clock.callLater(FLUSH_STEP_S, moment.callback, None)
            await moment


async def _stop_listening(listeners: Iterable[Listener]) -> None:
    closing: list[Deferred[Any]] = [maybeDeferred(each.port.stopListening) for each in listeners]
    await DeferredList(closing, consumeErrors=True)


async def _submitted(parts: Parts, event: SettingsChanged) -> None:
    await parts.hub.submit(event)


def _reloaded(old: EngineSettings, new: EngineSettings) -> EngineSettings:
    """What the engine may take over while it runs: who may be talked to, and what the limits are."""
    return replace(
        old,
        servers=new.servers,
        max_entries=new.max_entries,
        share_presence_in_rooms=new.share_presence_in_rooms,
        max_room_members=new.max_room_members,
        room_policy=new.room_policy,
        news_burst=new.news_burst,
    )


def _read_secrets(config: Config) -> Secrets:
    path = config.appservice_registration
    return Secrets(
        load_signing_keys(config.signing_key_path), load_registration(path) if path is not None else None
    )


def _replaced(old: Secrets, new: Secrets) -> list[str]:
    """Keys whose file holds something else now, whether its name is another or not."""
    before, now = ([(key.version, key.encode()) for key in each.signing_keys] for each in (old, new))
    is_replaced = {
        "signing_key_path": before != now,
        "appservice.registration": old.registration != new.registration,
    }
    return [key for key in is_replaced if is_replaced[key]]


def _needing_restart(old: Config, new: Config) -> list[str]:
    """Keys whose change a reload cannot follow."""
    return [
        key.path for key in KEYS if not key.path.startswith(RELOADED) and _value(old, key) != _value(new, key)
    ]


def _value(config: Config, key: Key) -> object:
    value: Any = config
    for name in key.field.split("."):
        value = getattr(value, name, None)  # a token that a file gave is `admin_token`
    return value
