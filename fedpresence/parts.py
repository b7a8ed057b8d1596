"""The parts of one daemon, introduced to each other: shells know the hub and the engine, not one another.

Always true: building opens nothing and starts nothing; what is here runs in the daemon's reactor.

Source: style.md's layout; decision 21.
"""

import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool

from fedpresence.admission import BodyBudget
from fedpresence.clients.changes import PresenceChanges
from fedpresence.clients.feed import Feed
from fedpresence.clients.tap import SyncTap
from fedpresence.clients.tokens import Tokens
from fedpresence.clients.whoami import UNKNOWN_FOR_MS, HomeserverTokens
from fedpresence.clock import Clock, now_ms
from fedpresence.config import Config, engine_settings
from fedpresence.engine.effects import InboxFilled, Notice, Outgoing, SendPush, TellObservers
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import DeviceRemoved, InboxDue, PushesReceived, TransactionReceived, UserAdded
from fedpresence.engine.settings import ServerLists
from fedpresence.homeserver.api import HomeserverApi
from fedpresence.homeserver.appservice import AppService
from fedpresence.homeserver.checks import Checks, FetchKeys
from fedpresence.homeserver.existence import MAX_AT_ONCE as MAX_STRANGERS
from fedpresence.homeserver.existence import Existence
from fedpresence.homeserver.registration import Registration
from fedpresence.homeserver.relay import Relay, build_pool
from fedpresence.homeserver.scan import Scan
from fedpresence.hub import Hub
from fedpresence.ids import ServerName, UserID
from fedpresence.inbound.gate import Gate
from fedpresence.inbound.keyfetch import KeyFetcher
from fedpresence.inbound.keyring import KeyRing
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import OriginCheck
from fedpresence.inbound.transactions import Transactions
from fedpresence.ops.status import PrometheusCounters
from fedpresence.outbound.client import build_client
from fedpresence.outbound.service import Outbound, OutboundSettings
from fedpresence.outbound.status import TransactionSeen
from fedpresence.outbound.tls import TlsPolicy, check_named_authorities
from fedpresence.outbound.tools import Decisions
from fedpresence.selfcheck import SelfCheck
from fedpresence.storage.store import Store
from fedpresence.wire.signing import Identity, ServerKeys

CONNECT_TIMEOUT_S = 5.0  # to the homeserver, which is near
WRITE_BEHIND_BATCH = 5_000  # users a transaction, so that a commit never waits long behind one

Work = Coroutine[Deferred[Any], Any, None]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a daemon is put into: a reactor for sockets, a clock for time, and who hears of what.

    `background` runs work that nobody waits for, `fatal` hears of what makes going on impossible, `turned`
    of every turn of the hub, and `wire_log` of every transaction that was tried. `patience` is the clock by
    which a client's question waits for another server's answer.
    """

    reactor: Any
    clock: Clock
    patience: Clock
    random: Random
    background: Callable[[str, Work], object]
    fatal: Callable[[Failure], None]
    turned: Callable[[], None]
    wire_log: Callable[[TransactionSeen], None] | None = None


class Parts:
    """Every part, and the few things that they do for each other."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        store: Store,
        engine: Engine,
        around: Surroundings,
        servers: ServerLists,
        registration: Registration | None = None,
    ) -> None:
        clock = around.clock
        self.config = config
        self.identity = identity
        self.store = store
        self.engine = engine
        self.clock = clock
        self._background = around.background
        self.counters = PrometheusCounters()
        self.hub = Hub(engine, store, clock, self._perform, around.fatal, around.turned)
        self.feed = Feed(clock, epoch=secrets.token_hex(4), patience=around.patience)
        self.homeserver_pool: Any = HTTPConnectionPool(around.reactor)
        self.relay = None
        if config.homeserver_url is not None:
            self.relay = Relay(around.reactor, config.homeserver_url, clock, build_pool(around.reactor))
        self._homeserver_http = self._http(around)
        self.tokens = self._tokens()
        self.scan: Scan | None = None
        self.appservice: AppService | None = None
        self._existence: Existence | None = None
        self._api: HomeserverApi | None = None
        if config.homeserver_url is not None:
            self._api = HomeserverApi(
                config.homeserver_url, registration, self._homeserver_http, clock, self.counters
            )
        if registration is not None:
            self._take_part(registration, around)
        self.tap = SyncTap(self.hub, self.tokens, clock)
        self.changes = PresenceChanges(self.hub, clock, config.limits)
        federation = config.federation
        self.tls = tls_policy(config)
        self.client = build_client(around.reactor, clock, federation, identity, around.random, self.tls)
        self.outbound = Outbound(
            clock,
            self.client,
            self._decisions(),
            OutboundSettings(
                server_name=config.server_name,
                batch_window_ms=federation.batch_window_ms,
                refresh_interval_ms=config.presence.refresh_interval_ms,
                max_transactions_per_second=federation.max_transactions_per_second,
                servers=servers,
            ),
            around.random,
            counters=self.counters,
            boot_users=engine.boot_users,
            on_transaction=around.wire_log,
        )
        fetcher = KeyFetcher(self.client.get_unsigned, clock, federation.notaries)
        self.keyring = KeyRing(identity, fetcher, store, clock, around.random, self.counters)
        self.origins = OriginCheck(config.server_name, self.keyring, engine_settings(config).servers)
        self.origin_limits = OriginLimits(config.limits)
        self.budget = BodyBudget(config.limits.bodies_in_flight)
        self.gate = Gate(self.origins, self.origin_limits, self.budget, clock, self.counters)
        self.transactions = Transactions(self._take_transaction, self.origin_limits, clock, self.counters)
        self.self_check = SelfCheck(config.server_name, clock)
        self.checks: Checks | None = None
        if self._api is not None:
            self.checks = Checks(identity, self._api, registration, _keys_by(fetcher), clock)

    def seen_alive(self, origin: ServerName) -> None:
        """Something authentic came from `origin`: ourselves, maybe (Z-23)."""
        self.self_check.heard(origin)
        if origin != self.config.server_name:
            self.outbound.seen_alive(origin)

    async def take_up_new_users(self) -> None:
        """Users whom another process, the command line, has made."""
        await self._add_users(await self.store.new_users())

    @property
    def tokens_are_ours(self) -> bool:
        """Whether the store knows every token; else the homeserver does."""
        return self.config.auth_mode != "homeserver"

    def has_unwritten(self) -> bool:
        """Whether `write_behind` has something to write."""
        return self.engine.has_unwritten() or self.hub.has_unwritten()

    async def take_up_changes(self) -> None:
        """Those of another process, where the store was touched: tokens and users."""
        if await self.store.tokens_changed():
            self.tokens.forget()
            if self.tokens_are_ours and (gone := await self.store.hidden_without_token()):
                await self.hub.submit(*(DeviceRemoved(*device) for device in gone))
        await self.take_up_new_users()

    async def write_behind(self) -> None:
        """Write presence that changed, and forget what nobody may see any more (decision 22)."""
        await self.hub.write_behind()
        while records := self.engine.take_dirty(WRITE_BEHIND_BATCH):
            await self.store.save_presence(records, now_ms(self.clock))
        while forgotten := self.engine.take_forgotten(WRITE_BEHIND_BATCH):
            await self.store.forget_presence(forgotten)

    async def revoke_tokens(self, user_id: UserID) -> None:
        """A user has no tokens any more, here and in the store."""
        await self.store.revoke_tokens(user_id, None, all_devices=True)
        self.tokens.forget_user(user_id)

    def _perform(self, effect: Outgoing) -> None:
        """Let an effect leave: only enqueues, never waits."""
        if isinstance(effect, SendPush):  # most are
            self.outbound.enqueue(effect)
        elif isinstance(effect, TellObservers):
            self.feed.tell(effect)
        elif isinstance(effect, Notice):
            self.feed.notice(effect)
        elif isinstance(effect, InboxFilled):
            self._background("the inbox", self._resolve_inbox())
        else:
            self.outbound.enqueue(effect)

    async def _resolve_inbox(self) -> None:
        """Users made meanwhile, here or on the homeserver, exist before an invite is looked at (Z-7)."""
        await self.take_up_new_users()
        if self._existence is not None:
            strangers = self.engine.known.invited_strangers(MAX_STRANGERS)
            if strangers:
                await self._add_users(await self._existence.existing(strangers))
        await self.hub.submit(InboxDue())

    async def _add_users(self, users: Sequence[UserID]) -> None:
        for user_id in users:
            await self._met(user_id)
        if users:
            await self.hub.submit(*(UserAdded(user_id) for user_id in users))

    async def _met(self, user_id: UserID) -> None:
        """A user is about to exist: in which rooms they are is to be asked for."""
        if self.scan is not None:
            await self.scan.meet(user_id)

    def _take_transaction(self, transaction: TransactionReceived) -> Deferred[None]:
        """Into the engine; who asked for a user that it tells of need not wait any longer (decision 7)."""
        return self.hub.submit(transaction).addCallback(self._answer_who_asked, transaction)

    def _answer_who_asked(self, _: None, transaction: TransactionReceived) -> None:
        if self.feed.somebody_asks:
            for edu in transaction.edus:
                if isinstance(edu, PushesReceived):
                    for push in edu.pushes:
                        self.feed.heard(push.user_id)

    def _decisions(self) -> Decisions:
        engine, hub, clock = self.engine, self.hub, self.clock
        return Decisions(
            settling=hub.settling,
            compose=engine.compose,
            rights=engine.rights,
            needs_refresh=lambda destination, user_id: engine.needs_refresh(
                destination, user_id, now_ms(clock)
            ),
            submit=hub.submit,
        )

    def _http(self, around: Surroundings) -> Any:
        """For what is asked of the homeserver, which is near."""
        agent: Any = Agent
        connecting = agent(around.reactor, connectTimeout=CONNECT_TIMEOUT_S, pool=self.homeserver_pool)
        client: Any = HTTPClient
        return client(connecting)

    def _tokens(self) -> Tokens:
        config = self.config
        if self.tokens_are_ours or config.homeserver_url is None:
            return Tokens(self.store, self.hub, self.engine, self.clock)
        finder = HomeserverTokens(
            config.server_name, config.homeserver_url, self._homeserver_http, self.clock
        )
        return Tokens(
            finder,
            self.hub,
            self.engine,
            self.clock,
            masquerades=finder,
            unknown_for_ms=UNKNOWN_FOR_MS,
            before_adding=self._met,
        )

    def _take_part(self, registration: Registration, around: Surroundings) -> None:
        """Be an application service of the homeserver."""
        config, known, submit, api = self.config, self.engine.known, self.hub.submit, self._api
        assert api is not None, "the configuration was checked"
        self.scan = Scan(
            api,
            self.store,
            known,
            submit,
            registration.bot(config.server_name),
            config.rooms.max_members,
            self.clock,
            around.random,
            around.fatal,
            per_second=config.appservice_scan_rate,
        )
        self.appservice = AppService(
            config.server_name, registration, self.scan, known, submit, self.clock, self.counters
        )
        self._existence = Existence(api, self.clock)


def tls_policy(config: Config) -> TlsPolicy:
    """TLS with other servers; ConfigError where that, or TLS with the homeserver, would trust nobody."""
    check_homeserver_authorities(config)
    return TlsPolicy(verify=config.federation.verify_certificates, ca_file=config.federation.ca_file)


def check_homeserver_authorities(config: Config) -> None:
    """ConfigError where the homeserver could not be trusted: `federation.ca_file` is not for it."""
    if urlsplit(config.homeserver_url or "").scheme == "https":
        check_named_authorities()


def _keys_by(fetcher: KeyFetcher) -> FetchKeys:
    async def fetch(server_name: ServerName) -> ServerKeys:
        return (await fetcher.from_server(server_name)).keys

    return fetch
