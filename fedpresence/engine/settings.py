"""What the operator decides and the engine obeys. All lengths are whole milliseconds."""

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from fedpresence.ids import ServerName

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


class InvitePolicy(Enum):
    """What a presence invite meets (S:7)."""

    ASK = "ask"
    ACCEPT = "accept"
    DENY = "deny"
    ACCEPT_SHARED_ROOM = "accept_shared_room"
    ACCEPT_LOCAL = "accept_local"


@dataclass(frozen=True, slots=True)
class ServerLists:
    """Server names or globs (`*`, `?`) presence may be exchanged with; a deny wins over an allow.

    `allow` None means all.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def permit(self, server_name: ServerName) -> bool:
        """Whether presence may be exchanged with `server_name`."""
        if self.deny and any(_glob(pattern).match(server_name) for pattern in self.deny):
            return False
        return self.allow is None or any(_glob(pattern).match(server_name) for pattern in self.allow)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine's share of the configuration; defaults are those of P:8.4 and the contract."""

    server_name: ServerName
    idle_timeout_ms: int = 5 * MINUTE_MS
    last_active_granularity_ms: int = MINUTE_MS
    sync_online_timeout_ms: int = 30_000
    remote_timeout_ms: int = 30 * MINUTE_MS
    refresh_interval_ms: int = 25 * MINUTE_MS
    busy_online_timeout_ms: int = HOUR_MS
    invite_policy: InvitePolicy = InvitePolicy.ASK
    max_entries: int = 1000
    share_presence_in_rooms: bool = True
    max_room_members: int = 500
    news_burst: int = 600  # changes of one user told to other servers without any pause (Z-18)
    servers: ServerLists = field(default_factory=ServerLists)


@lru_cache(maxsize=10_000)
def _glob(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: `*` and `?` only, the whole name, any case."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts) + r"\Z", re.IGNORECASE)
