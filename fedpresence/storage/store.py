"""The Store: what survives a restart. One protocol, kept by SQLite and by memory alike.

Always true:
- what a Deferred has fired for is on the disk, power cut or not, whole or not at all;
- writes happen in the order in which they were asked for, and so do the answers;
- a token is kept as its SHA-256 alone, and a deactivated user has none.

Source: decisions 16, 19 and 22; Z-6, Z-7, Z-21, Z-22.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from twisted.internet.defer import Deferred

from fedpresence.engine.effects import Durable, SaveAnswer, SaveInbox
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.rooms import StoredRoom
from fedpresence.ids import DeviceID, ServerName, UserID

MAX_SERVER_KEYS = 10_000  # servers whose keys are kept; any peer can own any number of names (Z-4)


@dataclass(slots=True)
class Stored:
    """All that a start begins with. Rows come as iterables and are read once; `pairs` is given away.

    `newest_origin_ts` is per origin the newest `origin_server_ts` of a transaction, as it was saved: the
    reader clamps it (Z-6). Moments are as stored: the reader clamps them to now (Z-21).
    """

    users: Iterable[tuple[UserID, bool]] = ()  # (user, deactivated)
    hidden: Iterable[tuple[UserID, DeviceID | None]] = ()
    pairs: Pairs = field(default_factory=Pairs)
    rooms: Iterable[StoredRoom] = ()
    answers: Iterable[SaveAnswer] = ()  # oldest first
    inbox: Iterable[SaveInbox] = ()  # by entry_id
    presence: Iterable[PresenceRecord] = ()
    newest_origin_ts: dict[ServerName, int] = field(default_factory=dict)
    saved_at_ms: int = 0  # of the last `commit` or `save_presence`; 0: never


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Whose access token it is."""

    user_id: UserID
    device_id: DeviceID | None


class ScanKind(Enum):
    """What a row of the scan says."""

    BEGUN = "begun"  # where the scan begins is known, and stands in the other rows
    USER = "user"  # whose rooms are still to be asked for
    ROOM = "room"  # whose members are still to be asked for
    LARGE = "large"  # a room that is too large to count


@dataclass(frozen=True, slots=True)
class ScanRow:
    """One row of what is to be asked of the homeserver beside us; `members` of a large room alone."""

    kind: ScanKind
    name: str = ""
    members: int = 0


class Store(Protocol):
    """Every method raises StoreError, as the Deferred's failure, when the disk says no."""

    def load(self) -> Deferred[Stored]:
        """Everything stored, as of one moment."""

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """All of `effects` or none, on disk when the Deferred fires; of one row the last word wins.

        A user saved as deactivated loses tokens and presence in the same transaction.
        """

    def save_presence(self, records: Sequence[PresenceRecord], now_ms: int) -> Deferred[None]:
        """Write presence behind."""

    def forget_presence(self, user_ids: Sequence[UserID]) -> Deferred[None]:
        """Presence of users that nobody here may observe any more."""

    def touched(self) -> bool:
        """Whether anybody, us included, may have written since this was asked last; cheap, and at once.

        True is a "perhaps", False is certain. StoreError where what is written would not be found again.
        """

    def new_users(self) -> Deferred[list[UserID]]:
        """Users made since `load` or the last call, by `add_token` in whatever process.

        Those that this store was told of by `commit` are not among them.
        """

    def tokens_changed(self) -> Deferred[bool]:
        """Whether another process wrote to the database since this was asked last.

        The first time: since the store was first used. True is a "perhaps": any write counts, not those
        to tokens alone.
        """

    def add_token(self, token: str, owner: TokenOwner, now_ms: int) -> Deferred[bool]:
        """Keep a token (hashed) and make its user exist.

        False, and nothing is kept, where the user is deactivated: that is for good.
        """

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        """Whose token this is; None for an unknown one."""

    def list_tokens(self, user_id: UserID | None) -> Deferred[list[tuple[UserID, DeviceID | None, int]]]:
        """(user, device, created_ms) of every token, or of one user's, oldest first; never the tokens."""

    def revoke_tokens(
        self, user_id: UserID, device_id: DeviceID | None, *, all_devices: bool
    ) -> Deferred[list[DeviceID | None]]:
        """Forget tokens of one device, or of all; answers each device whose tokens went, once."""

    def hidden_without_token(self) -> Deferred[list[tuple[UserID, DeviceID | None]]]:
        """Devices declared offline that have no token."""

    def load_keys(self) -> Deferred[list[tuple[ServerName, bytes, int]]]:
        """Other servers' verified key objects: (server, canonical JSON, fetched_ms), newest first."""

    def save_keys(self, server_name: ServerName, key_object: bytes, fetched_ms: int) -> Deferred[None]:
        """Keep another server's verified key object; the newest replaces the old.

        Beyond `MAX_SERVER_KEYS` servers the one fetched longest ago goes.
        """

    def load_scan(self) -> Deferred[list[ScanRow]]:
        """Where the scan of the homeserver's rooms stands."""

    def save_scan(self, saved: Sequence[ScanRow], gone: Sequence[ScanRow]) -> Deferred[None]:
        """Forget `gone`, whatever their `members`, and keep `saved`, replacing rows of the same name."""

    def close(self) -> Deferred[None]:
        """Checkpoint, close, release the lock. Again: nothing. Afterwards everything else is a StoreError."""


def token_hash(token: str) -> bytes:
    """What is kept of a token. Whatever text came, this does not raise."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
