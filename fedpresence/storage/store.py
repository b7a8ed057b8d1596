"""The Store: what survives a restart. One protocol, kept by SQLite and by memory alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import Deferred

from fedpresence.engine.effects import Durable, SaveAnswer, SaveInbox, SaveRoom
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.subscription import ObservedRow, ObserverRow
from fedpresence.ids import DeviceID, ServerName, UserID


@dataclass(slots=True)
class Stored:
    """All that a start begins with. Rows come as iterables and are read once.

    `newest_origin_ts` is per origin the newest `origin_server_ts` of a transaction (Z-6).
    """

    users: Iterable[tuple[UserID, bool]] = ()  # (user, deactivated)
    hidden: Iterable[tuple[UserID, DeviceID | None]] = ()
    observer_rows: Iterable[ObserverRow] = ()
    observed_rows: Iterable[ObservedRow] = ()
    rooms: Iterable[SaveRoom] = ()
    answers: Iterable[SaveAnswer] = ()  # oldest first
    inbox: Iterable[SaveInbox] = ()  # by entry_id
    presence: Iterable[PresenceRecord] = ()
    newest_origin_ts: dict[ServerName, int] = field(default_factory=dict)
    saved_at_ms: int = 0  # the last moment the database was written; 0: never


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Whose access token it is."""

    user_id: UserID
    device_id: DeviceID | None


class Store(Protocol):
    """Every method raises StoreError, as the Deferred's failure, when the disk says no."""

    def load(self) -> Deferred[Stored]:
        """Everything stored, migrated to this version's schema first."""

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """All of `effects` or none, on disk when the Deferred fires."""

    def save_presence(self, records: Sequence[PresenceRecord], now_ms: int) -> Deferred[None]:
        """Write presence behind."""

    def forget_presence(self, user_ids: Sequence[UserID]) -> Deferred[None]:
        """Presence of users that nobody here may observe any more."""

    def new_users(self) -> Deferred[list[UserID]]:
        """Users that another process (the command line) made since `load` or the last call; cheap when none."""

    def tokens_changed(self) -> Deferred[bool]:
        """Whether another process changed the database since the last call; cheap."""

    def add_token(self, token: str, owner: TokenOwner, now_ms: int) -> Deferred[None]:
        """Keep a token (hashed, SHA-256) and make its user exist; a user deactivated stays so: StoreError-free refusal is the caller's."""

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        """Whose token this is; None for an unknown one."""

    def list_tokens(self, user_id: UserID | None) -> Deferred[list[tuple[UserID, DeviceID | None, int]]]:
        """(user, device, created_ms) of every token, or of one user's; never the tokens."""

    def revoke_tokens(
        self, user_id: UserID, device_id: DeviceID | None, *, all_devices: bool
    ) -> Deferred[list[DeviceID | None]]:
        """Forget tokens of one device, or of all; answers the devices whose tokens went."""

    def load_keys(self) -> Deferred[list[tuple[ServerName, bytes, int]]]:
        """Other servers' verified key objects: (server, canonical JSON, fetched_ms)."""

    def save_keys(self, server_name: ServerName, key_object: bytes, fetched_ms: int) -> Deferred[None]:
        """Keep another server's verified key object; the newest replaces the old."""

    def close(self) -> Deferred[None]:
        """Checkpoint, close, release the lock."""
