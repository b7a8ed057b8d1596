"""Other servers' verify keys: at hand, or fetched now where that is allowed.

Always true:
- a key that is handed out was proven by its server and holds at this moment (F:K-1 to F:K-3);
- at most one fetch per server is in flight, and everybody who needs it waits for the same one;
- our own keys are never fetched (F:K-6);
- what was fetched survives a restart, with the moment of its fetch.

Source: F:4.2; Z-4. The numbers are in `keycache.py`, the questions in `keyfetch.py`.
"""

from random import Random
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger

from fedpresence.clock import Clock, now_ms, within
from fedpresence.counters import Counters
from fedpresence.errors import BadRequest, DeliveryFailed, NotAuthentic, StoreError
from fedpresence.ids import KeyID, ServerName
from fedpresence.inbound.keycache import MAX_SERVERS, FetchPolicy, KeyCache, KeySet, Want
from fedpresence.inbound.keyfetch import Fetched, KeyFetcher
from fedpresence.inbound.shared import Shared
from fedpresence.wire.json import decode_json
from fedpresence.wire.signing import Identity, ServerKeys, VerifyKey, verify_key_object

_log = Logger()

MAX_WAITING = 100  # requests that wait for one server's keys; more get 429
MAX_PER_ADDRESS = 5  # fetches in flight for one address: its silent servers must not hold all twenty (Z-4)
ALL_SOURCES_TIMEOUT_S = 30.0  # notaries and the server together


class KeyStore(Protocol):
    """The store, as far as the key ring knows it."""

    def load_keys(self) -> Deferred[list[tuple[ServerName, bytes, int]]]:
        """(server, key object, fetched_ms) of all that was kept."""

    def save_keys(self, server_name: ServerName, key_object: bytes, fetched_ms: int) -> Deferred[None]:
        """Keep one, instead of an older one."""


class KeyRing:
    """Verify keys by server and key ID."""

    def __init__(
        self,
        identity: Identity,
        fetcher: KeyFetcher,
        store: KeyStore,
        clock: Clock,
        random: Random,
        counters: Counters,
    ) -> None:
        self._identity = identity
        self._fetcher = fetcher
        self._store = store
        self._clock = clock
        self._counters = counters
        self._cache = KeyCache()
        self._policy = FetchPolicy(random)
        self._in_flight: dict[ServerName, Shared[KeySet]] = {}
        self._asked_by: dict[ServerName, str | None] = {}  # of those in flight
        self._stopped = False

    async def load(self) -> None:
        """Take back what an earlier run fetched. What no longer proves itself is left out."""
        now = now_ms(self._clock)
        rows = sorted(await self._store.load_keys(), key=lambda row: row[2])
        for server_name, key_object, fetched_ms in rows[-MAX_SERVERS:]:
            try:
                keys = verify_key_object(decode_json(key_object), server_name)
            except BadRequest:
                continue
            key_set = KeySet(keys, min(fetched_ms, now))  # Z-21: no stored moment lies ahead
            if key_set.holds(now):
                self._cache.put(key_set)

    def key_at_hand(self, server_name: ServerName, key_id: KeyID) -> VerifyKey | None:
        """The same key as `verify_key`'s, where nothing is to be fetched or fetched anew."""
        now = now_ms(self._clock)
        at_hand = self._cache.get(server_name, now)
        if at_hand is None or now >= at_hand.refresh_at_ms:
            return None
        return at_hand.keys.verify_keys.get(key_id)

    async def verify_key(
        self, server_name: ServerName, key_id: KeyID, source: str | None = None
    ) -> VerifyKey:
        """The key `key_id` of `server_name`, valid now.

        NotAuthentic where there is none or it cannot be had; BadRequest 429 where too many keys are being
        fetched, counted by `source`, the address of whoever needs it.
        """
        if server_name == self._identity.server_name:
            return _key_of(self._identity.verify_keys, server_name, key_id)
        now = now_ms(self._clock)
        at_hand = self._cache.get(server_name, now)
        if at_hand is not None and key_id in at_hand.keys.verify_keys:
            if now >= at_hand.refresh_at_ms:
                self._refresh(server_name, key_id, source)
            return at_hand.keys.verify_keys[key_id]
        want = Want.KEYS if at_hand is None else Want.UNKNOWN_KEY
        fresh = await self._fetch(server_name, key_id, want, source).wait()
        if key_id not in fresh.keys.verify_keys:
            self._policy.missed(server_name, now_ms(self._clock))
        return _key_of(fresh.keys.verify_keys, server_name, key_id)

    def stop(self) -> Deferred[None]:
        """End all fetches and begin no more; fires when they have ended."""
        self._stopped = True
        running = list(self._in_flight.values())
        ended = DeferredList([shared.wait() for shared in running], consumeErrors=True)
        for shared in running:
            shared.cancel()
        return ended.addCallback(lambda _: None)

    def _refresh(self, server_name: ServerName, key_id: KeyID, source: str | None) -> None:
        """In the background, while the old keys still hold; not where that would cost somebody a limit."""
        if server_name in self._in_flight:
            return
        try:
            self._fetch(server_name, key_id, Want.REFRESH, source)
        except BadRequest:
            return

    def _fetch(
        self, server_name: ServerName, key_id: KeyID, want: Want, source: str | None
    ) -> Shared[KeySet]:
        running = self._in_flight.get(server_name)
        if running is not None:
            if running.waiting >= MAX_WAITING:
                raise BadRequest(
                    "M_LIMIT_EXCEEDED", "Too many wait for these keys", status=429, retry_after_ms=1_000
                )
            return running
        if self._stopped:
            raise NotAuthentic("Stopping: no keys are fetched any more")
        if source is not None and list(self._asked_by.values()).count(source) >= MAX_PER_ADDRESS:
            self._counters.count("key_fetches", outcome="refused")
            raise BadRequest(
                "M_LIMIT_EXCEEDED", "Too many keys are being fetched", status=429, retry_after_ms=1_000
            )
        try:
            self._policy.begin(server_name, want, source, len(self._in_flight), now_ms(self._clock))
        except BadRequest:
            self._counters.count("key_fetches", outcome="refused")
            raise
        work = ensureDeferred(self._from_anywhere(server_name, key_id))
        within(work, ALL_SOURCES_TIMEOUT_S, self._clock)
        shared = Shared(ensureDeferred(self._keep(server_name, work)))
        if not shared.done:
            self._in_flight[server_name] = shared
            self._asked_by[server_name] = source
        return shared

    async def _keep(self, server_name: ServerName, work: "Deferred[Fetched]") -> KeySet:
        """The outcome of one fetch, remembered; NotAuthentic where it was none."""
        try:
            fetched = await work
        except CancelledError:
            raise
        except (DeliveryFailed, BadRequest, DeferredTimeout) as error:
            self._policy.failed(server_name, now_ms(self._clock))
            self._counters.count("key_fetches", outcome="failed")
            _log.debug("no keys of {origin}: {reason}", origin=server_name, reason=_reason(error))
            raise NotAuthentic(f"The keys of {server_name} cannot be fetched") from None
        except Exception:
            self._policy.failed(server_name, now_ms(self._clock))
            self._counters.count("key_fetches", outcome="failed")
            _log.failure("fetching the keys of {origin} failed", origin=server_name)
            raise NotAuthentic(f"The keys of {server_name} cannot be fetched") from None
        finally:
            self._in_flight.pop(server_name, None)
            self._asked_by.pop(server_name, None)
        now = now_ms(self._clock)
        self._policy.succeeded(server_name)
        self._counters.count("key_fetches", outcome="ok")
        key_set = KeySet(fetched.keys, now)
        self._cache.put(key_set)
        if fetched.key_object is not None:
            saved = self._store.save_keys(server_name, fetched.key_object, now)
            saved.addErrback(lambda failure: _not_saved(server_name, failure.trap(StoreError)))
        return key_set

    async def _from_anywhere(self, server_name: ServerName, key_id: KeyID) -> Fetched:
        """Notaries first, where there are any, then the server itself (F:K-5)."""
        now = now_ms(self._clock)
        at_hand = self._cache.get(server_name, now)
        newest_ts = at_hand.keys.valid_until_ts if at_hand is not None else 0
        if server_name not in self._fetcher.notaries:
            for notary in self._fetcher.notaries:
                try:
                    notary_keys = await self._keys_of_notary(notary)
                    fetched = await self._fetcher.from_notary(server_name, notary_keys, now)
                except (DeliveryFailed, BadRequest):
                    continue
                if fetched.keys.valid_until_ts < newest_ts:
                    continue  # an older copy would bring back a key that was withdrawn since
                if key_id in fetched.keys.verify_keys and KeySet(fetched.keys, now).holds(now):
                    return fetched
        fetched = await self._fetcher.from_server(server_name)
        if not KeySet(fetched.keys, now).holds(now):
            raise NotAuthentic(f"The keys of {server_name} have expired")
        return fetched

    async def _keys_of_notary(self, notary: ServerName) -> ServerKeys:
        """A notary's keys come from itself: known beforehand, as the specification wants (F:4.3)."""
        if notary == self._identity.server_name:
            raise NotAuthentic("We are no notary for ourselves")
        at_hand = self._cache.get(notary, now_ms(self._clock))
        if at_hand is not None:
            return at_hand.keys
        fresh = await self._fetch(notary, KeyID(""), Want.KEYS, None).wait()
        return fresh.keys


def _key_of(keys: dict[KeyID, VerifyKey], server_name: ServerName, key_id: KeyID) -> VerifyKey:
    found = keys.get(key_id)
    if found is None:
        raise NotAuthentic(f"{server_name} has no such key")
    return found


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, DeliveryFailed) else str(error) or type(error).__name__


def _not_saved(server_name: ServerName, _error: object) -> None:
    _log.warn("the keys of {origin} were not stored: the database failed", origin=server_name)
