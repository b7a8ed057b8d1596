"""The store for tests: the same contract in dicts, with every Deferred already fired.

Always true: the data outlives the store, as a file does: `reopened` is a restart (or, beside one that
goes on, another process), `snapshot` a backup.
"""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed

from fedpresence.engine.effects import Durable, SaveAnswer, SaveInbox, SaveRoom
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.rooms import StoredRoom
from fedpresence.engine.subscription import ObservedRow, ObserverRow
from fedpresence.errors import StoreError
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID
from fedpresence.storage.changes import Changes, Pair
from fedpresence.storage.store import MAX_SERVER_KEYS, ScanKind, ScanRow, Stored, TokenOwner, token_hash

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Data:
    """What a database file would hold."""

    users: dict[UserID, bool] = field(default_factory=dict)
    hidden: set[tuple[UserID, DeviceID | None]] = field(default_factory=set)
    observer_rows: dict[Pair, ObserverRow] = field(default_factory=dict)
    observed_rows: dict[Pair, ObservedRow] = field(default_factory=dict)
    rooms: dict[RoomID, SaveRoom] = field(default_factory=dict)
    members: dict[RoomID, dict[UserID, tuple[()]]] = field(default_factory=dict)
    answers: dict[tuple[ServerName, str], SaveAnswer] = field(default_factory=dict)
    newest_origin_ts: dict[ServerName, int] = field(default_factory=dict)
    inbox: dict[int, SaveInbox] = field(default_factory=dict)
    presence: dict[UserID, PresenceRecord] = field(default_factory=dict)
    tokens: dict[bytes, tuple[TokenOwner, int]] = field(default_factory=dict)
    keys: dict[ServerName, tuple[bytes, int]] = field(default_factory=dict)
    scan: dict[tuple[ScanKind, str], ScanRow] = field(default_factory=dict)
    saved_at_ms: int = 0
    writes: int = 0


class MemoryStore:
    """The Store protocol in memory.

    With `fail_after` the commit of that number (1 is the first) raises StoreError and changes nothing;
    those after it work again.
    """

    def __init__(self, *, fail_after: int | None = None, max_server_keys: int = MAX_SERVER_KEYS) -> None:
        self.commits = 0  # that were tried
        self._data = _Data()
        self._fail_after = fail_after
        self._max_server_keys = max_server_keys
        self._closed = False
        self._known_users: set[UserID] = set()
        self._own_writes = 0
        self._seen_writes: int | None = None  # of anybody, as far as `touched` has told
        self._foreign_writes = 0  # of other stores, as far as tokens_changed has told

    def reopened(self, *, fail_after: int | None = None) -> "MemoryStore":
        """A store on the same data: what a restart finds, or another process."""
        store = MemoryStore(fail_after=fail_after, max_server_keys=self._max_server_keys)
        store._data = self._data
        store._foreign_writes = self._data.writes
        return store

    def snapshot(self) -> "MemoryStore":
        """A store on a copy of the data: a backup, which later commits do not change."""
        store = MemoryStore(max_server_keys=self._max_server_keys)
        store._data = copy.deepcopy(self._data)
        store._foreign_writes = store._data.writes
        return store

    def load(self) -> Deferred[Stored]:
        """See Store."""
        if self._closed:
            return _closed()
        data = self._data
        self._known_users = set(data.users)
        return succeed(
            Stored(
                users=list(data.users.items()),
                hidden=list(data.hidden),
                pairs=Pairs(data.observer_rows.values(), data.observed_rows.values()),
                rooms=[
                    StoredRoom(
                        r.room_id,
                        r.join_rule,
                        r.counts,
                        tuple(data.members.get(r.room_id, ())),
                        r.from_homeserver,
                    )
                    for r in data.rooms.values()
                ],
                answers=sorted(data.answers.values(), key=lambda answer: answer.at_ms),
                inbox=sorted(data.inbox.values(), key=lambda entry: entry.entry_id),
                presence=list(data.presence.values()),
                newest_origin_ts=dict(data.newest_origin_ts),
                saved_at_ms=data.saved_at_ms,
            )
        )

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """See Store."""
        if self._closed:
            return _closed()
        self.commits += 1
        if self.commits == self._fail_after:
            return fail(StoreError(f"commit {self.commits} fails, as it was told to"))
        changes, data = Changes.of(effects), self._data
        _apply(data.observer_rows, changes.observer_rows)
        _apply(data.observed_rows, changes.observed_rows)
        _apply(data.answers, changes.answers)
        _apply(data.inbox, changes.inbox)
        _apply(data.rooms, changes.rooms)
        for room_id in changes.emptied:
            data.members.pop(room_id, None)
        for room_id, members in changes.members.items():
            here = data.members.setdefault(room_id, {})
            _apply(here, {user_id: () if joined else None for user_id, joined in members.items()})
        data.users.update(changes.users)
        self._known_users.update(changes.users)
        for user_id in changes.lost_tokens:
            data.presence.pop(user_id, None)
            self._forget_tokens(user_id, None, all_devices=True)
        data.presence.update(changes.presence)
        for key, hidden in changes.hidden.items():
            (data.hidden.add if hidden else data.hidden.discard)(key)
        for origin, newest_ts in changes.newest_origin_ts.items():
            data.newest_origin_ts[origin] = max(newest_ts, data.newest_origin_ts.get(origin, newest_ts))
        data.saved_at_ms = now_ms
        return self._wrote(None)

    def save_presence(self, records: Sequence[PresenceRecord], now_ms: int) -> Deferred[None]:
        """See Store."""
        if self._closed:
            return _closed()
        self._data.presence.update((record.user_id, record) for record in records)
        self._data.saved_at_ms = now_ms
        return self._wrote(None)

    def forget_presence(self, user_ids: Sequence[UserID]) -> Deferred[None]:
        """See Store."""
        if self._closed:
            return _closed()
        for user_id in user_ids:
            self._data.presence.pop(user_id, None)
        return self._wrote(None)

    def touched(self) -> bool:
        """See Store."""
        before, self._seen_writes = self._seen_writes, self._data.writes
        return before != self._data.writes

    def new_users(self) -> Deferred[list[UserID]]:
        """See Store."""
        if self._closed:
            return _closed()
        users = self._data.users
        new = [user_id for user_id, gone in users.items() if not gone and user_id not in self._known_users]
        self._known_users.update(users)
        return succeed(new)

    def tokens_changed(self) -> Deferred[bool]:
        """See Store."""
        if self._closed:
            return _closed()
        foreign = self._data.writes - self._own_writes
        changed, self._foreign_writes = foreign != self._foreign_writes, foreign
        return succeed(changed)

    def add_token(self, token: str, owner: TokenOwner, now_ms: int) -> Deferred[bool]:
        """See Store."""
        if self._closed:
            return _closed()
        if self._data.users.setdefault(owner.user_id, False):
            return succeed(False)
        self._data.tokens[token_hash(token)] = (owner, now_ms)
        return self._wrote(True)

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        """See Store."""
        if self._closed:
            return _closed()
        found = self._data.tokens.get(token_hash(token))
        return succeed(found and found[0])

    def list_tokens(self, user_id: UserID | None) -> Deferred[list[tuple[UserID, DeviceID | None, int]]]:
        """See Store."""
        if self._closed:
            return _closed()
        tokens = [
            (owner.user_id, owner.device_id, created_ms)
            for owner, created_ms in self._data.tokens.values()
            if user_id in (None, owner.user_id)
        ]
        return succeed(sorted(tokens, key=lambda token: (token[2], token[0], token[1] or "")))

    def revoke_tokens(
        self, user_id: UserID, device_id: DeviceID | None, *, all_devices: bool
    ) -> Deferred[list[DeviceID | None]]:
        """See Store."""
        if self._closed:
            return _closed()
        return self._wrote(self._forget_tokens(user_id, device_id, all_devices=all_devices))

    def hidden_without_token(self) -> Deferred[list[tuple[UserID, DeviceID | None]]]:
        """See Store."""
        if self._closed:
            return _closed()
        owners = {(owner.user_id, owner.device_id) for owner, _ in self._data.tokens.values()}
        return succeed(list(self._data.hidden - owners))

    def load_keys(self) -> Deferred[list[tuple[ServerName, bytes, int]]]:
        """See Store."""
        if self._closed:
            return _closed()
        rows = [(name, key_object, fetched_ms) for name, (key_object, fetched_ms) in self._data.keys.items()]
        return succeed(sorted(rows, key=lambda row: (-row[2], row[0])))

    def save_keys(self, server_name: ServerName, key_object: bytes, fetched_ms: int) -> Deferred[None]:
        """See Store."""
        if self._closed:
            return _closed()
        keys = self._data.keys
        keys[server_name] = (key_object, fetched_ms)
        while len(keys) > self._max_server_keys:
            del keys[min(keys, key=lambda name: keys[name][1])]
        return self._wrote(None)

    def load_scan(self) -> Deferred[list[ScanRow]]:
        """See Store."""
        return _closed() if self._closed else succeed(list(self._data.scan.values()))

    def save_scan(self, saved: Sequence[ScanRow], gone: Sequence[ScanRow]) -> Deferred[None]:
        """See Store."""
        if self._closed:
            return _closed()
        for row in gone:
            self._data.scan.pop((row.kind, row.name), None)
        self._data.scan.update({(row.kind, row.name): row for row in saved})
        return self._wrote(None)

    def close(self) -> Deferred[None]:
        """See Store."""
        self._closed = True
        return succeed(None)

    def _forget_tokens(
        self, user_id: UserID, device_id: DeviceID | None, *, all_devices: bool
    ) -> list[DeviceID | None]:
        gone = {
            kept: owner.device_id
            for kept, (owner, _) in self._data.tokens.items()
            if owner.user_id == user_id and (all_devices or owner.device_id == device_id)
        }
        for kept in gone:
            del self._data.tokens[kept]
        return sorted(set(gone.values()), key=lambda device: (device is not None, device))

    def _wrote(self, result: T) -> Deferred[T]:
        self._data.writes += 1
        self._own_writes += 1
        return succeed(result)


def _apply(table: dict[K, V], changes: dict[K, V | None]) -> None:
    for key, row in changes.items():
        if row is None:
            table.pop(key, None)
        else:
            table[key] = row


def _closed() -> Deferred[T]:
    return fail(StoreError("the store is closed"))
