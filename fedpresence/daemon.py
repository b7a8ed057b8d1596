"""Composition: Config and reactor to one running daemon.

Always true:
- building opens nothing; `start` opens the database first and the listeners last, so that nobody is
  answered from half a daemon;
- what was started is stopped in the opposite order, and what must survive is written before the lock goes;
- a failed commit, or a bug in a turn, stops everything with one clear last line.

Source: style.md's layout; decisions 21 and 22; contract, `fedpresence run`.
"""

import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.resource import Resource

from fedpresence import __version__
from fedpresence.clients.changes import PresenceChanges
from fedpresence.clients.feed import Feed
from fedpresence.clients.parts import ClientParts, ClientSettings
from fedpresence.clients.resource import add_clients
from fedpresence.clients.tokens import Tokens
from fedpresence.clients.whoami import UNKNOWN_FOR_MS, HomeserverTokens
from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.config import Config, ListenerConfig, engine_settings
from fedpresence.engine.effects import InboxFilled, Notice, Outgoing, TellObservers
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import (
    InboxDue,
    PushReceived,
    SettingsChanged,
    Started,
    Stopping,
    TransactionReceived,
    UserAdded,
)
from fedpresence.engine.settings import ServerLists
from fedpresence.errors import StoreError
from fedpresence.hub import Hub
from fedpresence.ids import ServerName, UserID
from fedpresence.inbound.gate import Gate
from fedpresence.inbound.keyfetch import KeyFetcher
from fedpresence.inbound.keyring import KeyRing
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import OriginCheck
from fedpresence.inbound.resource import Federation, add_federation
from fedpresence.inbound.transactions import Transactions
from fedpresence.intake import BodyBudget, BoundedSite
from fedpresence.listening import Listener, listen
from fedpresence.ops.admin import AdminParts, add_admin, admission
from fedpresence.ops.keys import load_signing_keys
from fedpresence.ops.status import PrometheusCounters, add_health, add_metrics
from fedpresence.outbound.client import build_client
from fedpresence.outbound.sender import Decisions
from fedpresence.outbound.service import Outbound, OutboundSettings
from fedpresence.selfcheck import Arrival, SelfCheck, is_public
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import Store
from fedpresence.web import Unknown
from fedpresence.wire.signing import Identity

_log = Logger()
Work = Coroutine[Deferred[Any], Any, None]

WRITE_BEHIND_S = 30.0  # how much presence a crash may cost (decision 22)
WRITE_BEHIND_BATCH = 5_000  # users a transaction, so that a commit never waits long behind one
LOOK_AROUND_S = 1.0  # how late a revoked token is noticed
FLUSH_S = 5.0  # what a clean stop waits for queues that are on their way
FLUSH_STEP_S = 0.05
CONNECT_TIMEOUT_S = 5.0  # to the homeserver, which is near
SELF_CHECK_AGAIN_S = 600.0
NOBODY = ServerLists(allow=())
CLOCK_JUMP_MS = 3_600_000  # Z-21


@dataclass(frozen=True, slots=True)
class Listening:
    """One open listener, as the ready file names it."""

    resources: tuple[str, ...]
    host: str
    port: int


class Daemon:
    """One server name's presence. `start` and `stop` are called once each.

    `fatal` hears of the failure that makes going on impossible; it should end the process.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        clock: Clock,
        random: Random,
        fatal: Callable[[Failure], None],
        *,
        wire_log: Callable[[Any], None] | None = None,
        force: bool = False,
    ) -> None:
        self.config = config
        self.listening: tuple[Listening, ...] = ()
        self._reactor = reactor
        self._homeserver_pool: Any = HTTPConnectionPool(reactor)
        self._clock = clock
        self._random = random
        self._fatal_heard = fatal
        self._wire_log = wire_log
        self._stopping: Deferred[None] | None = None
        self._listeners: list[Listener] = []
        self._sites: list[BoundedSite] = []
        self._timers: dict[str, Timer] = {}
        self._serving = False
        self._failed = False
        # Nothing leaves before our name is known to lead here (Z-23).
        self._held = not force and is_public(config.server_name, config.federation.resolve)
        self._self_check = SelfCheck(config.server_name, clock)

    async def start(self) -> None:
        """Open everything; returns once every listener answers. ConfigError, StoreError or OSError."""
        config = self.config
        keys = load_signing_keys(config.signing_key_path)
        self.identity = Identity(config.server_name, keys, config.old_signing_keys)
        self._store: Store = SQLiteStore.open(config.database_path, self._reactor)
        try:
            await self._build()
            await self._listen()
        except BaseException:
            await self.stop()
            raise
        self._serving = True
        if self._held:
            self._watch("the self-check", self._check_ourselves())
        self._every("write behind", WRITE_BEHIND_S, self._write_behind)
        self._every("look around", LOOK_AROUND_S, self._look_around)
        _log.info(
            "{server_name} serves presence (fedpresence {version}, {key_id})",
            server_name=config.server_name,
            version=__version__,
            key_id=self.identity.key_id,
        )

    async def _build(self) -> None:
        config, clock, store = self.config, self._clock, self._store
        stored = await store.load()
        now = now_ms(clock)
        if stored.saved_at_ms and now < stored.saved_at_ms - CLOCK_JUMP_MS:
            _log.warn(
                "the clock stands {ms} ms before the last write: expiries wait an hour",
                ms=stored.saved_at_ms - now,
            )
        self.engine = Engine(engine_settings(config), now)
        self.engine.load(stored, now)
        del stored
        self.counters = PrometheusCounters()
        self.hub = Hub(self.engine, store, clock, self._perform, self._fatal)
        self.feed = Feed(clock, epoch=secrets.token_hex(4))
        self.tokens = self._build_tokens()
        self.changes = PresenceChanges(self.hub, clock, config.limits)
        client = build_client(self._reactor, clock, config.federation, self.identity, self._random)
        self._client = client
        settings = engine_settings(config)
        self.outbound = Outbound(
            clock,
            client,
            self._decisions(),
            OutboundSettings(
                server_name=config.server_name,
                batch_window_ms=config.federation.batch_window_ms,
                refresh_interval_ms=config.presence.refresh_interval_ms,
                max_transactions_per_second=config.federation.max_transactions_per_second,
                servers=NOBODY if self._held else settings.servers,
            ),
            self._random,
            counters=self.counters,
            boot_users=self.engine.boot_users,
            on_transaction=self._wire_log,
        )
        fetcher = KeyFetcher(client.get_unsigned, clock, config.federation.notaries)
        self.keyring = KeyRing(self.identity, fetcher, store, clock, self._random, self.counters)
        await self.keyring.load()
        self._origin_limits = OriginLimits(config.limits)
        self._origins = OriginCheck(config.server_name, self.keyring.verify_key, settings.servers)
        self._budget = BodyBudget(config.limits.bodies_in_flight)
        self._gate = Gate(self._origins, self._origin_limits, self._budget, clock, self.counters)
        self._transactions = Transactions(self._take_transaction, self._origin_limits, clock, self.counters)
        self.outbound.startService()
        await self.hub.submit(Started())

    def _build_tokens(self) -> Tokens:
        config, clock = self.config, self._clock
        if config.auth_mode != "homeserver" or config.homeserver_url is None:
            return Tokens(self._store, self.hub, self.engine, clock)
        agent: Any = Agent
        http: Any = HTTPClient(
            agent(self._reactor, connectTimeout=CONNECT_TIMEOUT_S, pool=self._homeserver_pool)
        )
        finder = HomeserverTokens(config.server_name, config.homeserver_url, http, clock)
        return Tokens(finder, self.hub, self.engine, clock, unknown_for_ms=UNKNOWN_FOR_MS)

    async def _listen(self) -> None:
        listening = []
        for place in self.config.listeners:
            site = BoundedSite(
                self._tree(place), self.config.limits, self._clock, self._budget, self._admit(place)
            )
            self._sites.append(site)
            listener = await listen(place.endpoint, site, self._reactor)
            self._listeners.append(listener)
            address = listener.port.getHost()
            host, number = getattr(address, "host", str(address)), getattr(address, "port", 0)
            listening.append(Listening(place.resources, host, number))
            _log.info(
                "{resources} on {host}:{port}", resources=", ".join(place.resources), host=host, port=number
            )
        self.listening = tuple(listening)

    def _tree(self, place: ListenerConfig) -> Resource:
        root: Resource = Unknown()
        add_health(root, lambda: self._serving)
        if "client" in place.resources:
            settings = ClientSettings(
                self.config.server_name, self.config.presence.busy, self.config.limits.client_body
            )
            add_clients(
                root,
                ClientParts(
                    self.hub, self.engine, self.tokens, self.feed, self.changes, self._clock, settings
                ),
            )
        if "federation" in place.resources:
            add_federation(
                root,
                Federation(
                    self.identity,
                    self._gate,
                    self._transactions,
                    self._clock,
                    self._seen_alive,
                    self.config.federation.serve_well_known,
                ),
            )
        if "admin" in place.resources and self.config.admin_token is not None:
            add_admin(
                root,
                AdminParts(
                    self.config.server_name,
                    self.config.admin_token,
                    self.hub,
                    self.engine,
                    self.outbound,
                    self._revoke_tokens,
                    self._clock,
                    self._take_up_new_users,
                ),
            )
        if "metrics" in place.resources:
            add_metrics(root, self.counters, self.hub, self.engine, self.outbound)
        return root

    def _admit(self, place: ListenerConfig) -> Callable[[Any], Any]:
        """Who is asked before a body is read: the gate for transactions, the admin token for large sets."""
        asked: list[Callable[[Any], Any]] = []
        if "federation" in place.resources:
            asked.append(self._gate.admit)
        if "admin" in place.resources and self.config.admin_token is not None:
            asked.append(admission(self.config.admin_token))

        def admit(head: Any) -> Any:
            for ask in asked:
                admitted = ask(head)
                if admitted is not None:
                    return admitted
            return None

        return admit

    def _decisions(self) -> Decisions:
        engine, hub, clock = self.engine, self.hub, self._clock
        return Decisions(
            compose=lambda destination, wanted: hub.read(
                lambda now: engine.compose(destination, wanted, now)
            ),
            rights=engine.rights,
            needs_refresh=lambda destination, user_id: engine.needs_refresh(
                destination, user_id, now_ms(clock)
            ),
            submit=hub.submit,
        )

    # --- while it runs --------------------------------------------------------------------------

    def _perform(self, effect: Outgoing) -> None:
        """Let an effect leave: only enqueues, never waits."""
        if isinstance(effect, TellObservers):
            self.feed.tell(effect)
        elif isinstance(effect, Notice):
            self.feed.notice(effect)
        elif isinstance(effect, InboxFilled):
            self._watch("the inbox", self._resolve_inbox())
        else:
            self.outbound.enqueue(effect)

    def _seen_alive(self, origin: ServerName) -> None:
        """Something authentic came from `origin`: ourselves, maybe (Z-23)."""
        self._self_check.heard(origin)
        if origin != self.config.server_name:
            self.outbound.seen_alive(origin)

    async def _check_ourselves(self) -> None:
        """Send from here on, unless our name leads to somebody else."""
        arrival, answered = await self._self_check.ask(self._client.send)
        if self._stopping is not None:
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
            self._timers["self-check"] = self._clock.callLater(SELF_CHECK_AGAIN_S, self._check_again)
            return
        if arrival is Arrival.NOWHERE:
            _log.warn(
                "{server_name} cannot be reached from here ({answered}): maybe not from elsewhere either",
                server_name=name,
                answered=answered,
            )
        self._held = False
        self.outbound.reload(engine_settings(self.config).servers)

    def _check_again(self) -> None:
        del self._timers["self-check"]
        self._watch("the self-check", self._check_ourselves())

    async def _take_transaction(self, transaction: TransactionReceived) -> None:
        """Into the engine; who asked for a user that it tells of need not wait any longer (decision 7)."""
        await self.hub.submit(transaction)
        for edu in transaction.edus:
            if isinstance(edu, PushReceived):
                self.feed.heard(edu.user_id)

    async def _resolve_inbox(self) -> None:
        """Users whom the command line made meanwhile exist before an invite is looked at (Z-7)."""
        await self._take_up_new_users()
        await self.hub.submit(InboxDue())

    async def _take_up_new_users(self) -> None:
        users = await self._store.new_users()
        if users:
            await self.hub.submit(*(UserAdded(user_id) for user_id in users))

    async def _look_around(self) -> None:
        """Another process, the command line, may have changed tokens and users."""
        if await self._store.tokens_changed():
            self.tokens.forget()
        await self._take_up_new_users()

    async def _write_behind(self) -> None:
        """Presence that changed, and presence nobody may see any more (decision 22)."""
        while records := self.engine.take_dirty(WRITE_BEHIND_BATCH):
            await self._store.save_presence(records, now_ms(self._clock))
        while forgotten := self.engine.take_forgotten(WRITE_BEHIND_BATCH):
            await self._store.forget_presence(forgotten)

    async def _revoke_tokens(self, user_id: UserID) -> None:
        await self._store.revoke_tokens(user_id, None, all_devices=True)
        self.tokens.forget_user(user_id)

    def _every(self, name: str, period_s: float, work: Callable[[], Work]) -> None:
        """Do `work` every `period_s`, counted from its end; it ends with the daemon."""

        def later(_: object = None) -> None:
            if self._stopping is None and not self._failed:
                self._timers[name] = self._clock.callLater(period_s, begin)

        def begin() -> None:
            del self._timers[name]
            self._watch(name, work()).addCallback(later)

        later()

    def _watch(self, name: str, work: Work) -> Deferred[None]:
        """Nothing fails unheard: what goes wrong in the background stops the daemon."""
        running = ensureDeferred(work)

        def failed(failure: Failure) -> None:
            if self._stopping is None:
                _log.failure("{work} failed", failure, work=name)
                self._fatal(failure)

        running.addErrback(failed)
        return running

    def _fatal(self, failure: Failure) -> None:
        if not self._failed:
            self._failed = True
            self._serving = False
            self._fatal_heard(failure)

    def reload(self, config: Config) -> list[str]:
        """Take over what may change while running; answers the keys that need a restart."""
        old, self.config = self.config, config
        settings = engine_settings(config)
        self._origins.reload(settings.servers)
        self._origin_limits.reload(config.limits)
        self.changes.reload(config.limits)
        for site in self._sites:
            site.reload(config.limits)
        for listener in self._listeners:
            if listener.certificates is not None:
                listener.certificates.reload()
        self.outbound.reload(
            NOBODY if self._held else settings.servers
        )  # before the engine hears, so that what waits is kept
        self._watch("the reload", self._settings_changed(SettingsChanged(settings)))
        return sorted(_needing_restart(old, config))

    async def _settings_changed(self, event: SettingsChanged) -> None:
        await self.hub.submit(event)

    def idle(self) -> bool:
        """Whether nothing is in flight or due now."""
        return self.hub.idle() and self.outbound.idle()

    # --- the end --------------------------------------------------------------------------------

    def stop(self) -> Deferred[None]:
        """Stop cleanly: the last words leave, what must survive is written. Asked twice, stops once."""
        if self._stopping is None:
            self._stopping = Deferred()
            ensureDeferred(self._stop()).addBoth(self._stopping.callback)
        waiting: Deferred[None] = Deferred()

        def tell(result: Any) -> Any:
            waiting.callback(result)
            return result

        self._stopping.addBoth(tell)
        return waiting

    async def _stop(self) -> None:
        self._serving = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        closing: list[Deferred[Any]] = [maybeDeferred(li.port.stopListening) for li in self._listeners]
        await DeferredList(closing, consumeErrors=True)
        if not hasattr(self, "hub"):
            await self._close_store()
            return
        if hasattr(self, "outbound"):
            await self._stop_running()
        self.hub.stop()
        if not self._failed:
            try:
                await self._write_behind()
            except StoreError as error:
                _log.error("presence could not be written: {error}", error=error)
        await self._close_store()

    async def _stop_running(self) -> None:
        if not self._failed:
            if self.config.presence.offline_on_stop:
                await self.hub.submit(Stopping())
            self.feed.close()
            await self.changes.stopService()
            if hasattr(self, "_transactions"):
                await self._transactions.stop()
            if self.config.presence.offline_on_stop:
                await self._flush()
        await DeferredList([site.close() for site in self._sites], consumeErrors=True)
        await self.outbound.stopService()
        await self._homeserver_pool.closeCachedConnections()
        if hasattr(self, "keyring"):
            await self.keyring.stop()

    async def _flush(self) -> None:
        """Let the last words leave, for a moment at most."""
        until_s = self._clock.seconds() + FLUSH_S
        while not self.outbound.idle() and self._clock.seconds() < until_s:
            await _moment(self._clock)

    async def _close_store(self) -> None:
        try:
            await self._store.close()
        except StoreError as error:
            _log.error("the database could not be closed: {error}", error=error)


def _needing_restart(old: Config, new: Config) -> set[str]:
    """Top-level keys whose change a reload cannot follow."""
    names = (
        "server_name",
        "signing_key_path",
        "old_signing_keys",
        "listeners",
        "database_path",
        "presence",
        "auth_mode",
        "homeserver_url",
        "appservice_registration",
        "admin_token",
    )
    changed = {name for name in names if getattr(old, name) != getattr(new, name)}
    lists_aside = replace(old.federation, allow=new.federation.allow, deny=new.federation.deny)
    if lists_aside != new.federation:
        changed.add("federation")
    return changed


def _moment(clock: Clock) -> Deferred[None]:
    moment: Deferred[None] = Deferred()
    clock.callLater(FLUSH_STEP_S, moment.callback, None)
    return moment
