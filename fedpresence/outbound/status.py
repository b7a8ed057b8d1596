"""How sending to a destination goes, as the admin API, the demo and the rig see it.

Source: contract.md, "Admin API" and "Test rig".
"""

from dataclasses import dataclass
from typing import Literal

from fedpresence.ids import ServerName


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One destination; moments are Unix ms, None where there is none."""

    state: Literal["idle", "sending", "waiting", "failing"]
    pending_users: int
    owed: int
    failing_since_ts: int | None
    next_try_ts: int | None
    last_success_ts: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class TransactionSeen:
    """One attempt at a transaction; `status` and `answered_ms` are None where no answer came.

    `body` is canonical JSON.
    """

    destination: ServerName
    txn_id: str
    sent_ms: int
    answered_ms: int | None
    status: int | None
    body: bytes
