"""What the operator decides and the engine obeys. All lengths are whole milliseconds."""

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from fedpresence.ids import RoomID, ServerName

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
        if self.allow is None and not self.deny:  # as nearly everywhere
            return True
        return _permits(self.allow, self.deny, server_name, re.IGNORECASE)

    @property
    def permit_all(self) -> bool:
        """Whether no server is refused."""
        return self.allow is None and not self.deny


UNKNOWN_JOIN_RULE = "unknown"  # in the operator's list: the rooms whose rule nobody told us
JOIN_RULES = ("invite", "knock", "restricted", "knock_restricted", "public", "private", UNKNOWN_JOIN_RULE)


@dataclass(frozen=True, slots=True)
class RoomPolicy:
    """Which rooms are an interest, and `servers`: with whom they are. Lists ask nothing of this.

    `allow` and `deny` are room IDs or globs, `join_rules` the rules a room may have; None means all. Once
    join rules are named, a room whose rule was never told (as the admin API never does) counts only where
    "unknown" is named too.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    join_rules: tuple[str, ...] | None = None
    servers: ServerLists = field(default_factory=ServerLists)

    def admits(self, room_id: RoomID, join_rule: str | None) -> bool:
        """Whether the room may count, its size left aside."""
        rules = self.join_rules
        if rules is not None and (UNKNOWN_JOIN_RULE if join_rule is None else join_rule) not in rules:
            return False
        return _permits(self.allow, self.deny, room_id, re.NOFLAG)


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
    room_policy: RoomPolicy = field(default_factory=RoomPolicy)
    news_burst: int = 600  # changes of one user told to other servers without any pause (Z-18)
    servers: ServerLists = field(default_factory=ServerLists)


def _permits(allow: tuple[str, ...] | None, deny: tuple[str, ...], name: str, flags: re.RegexFlag) -> bool:
    """A deny wins over an allow; no list of those allowed allows all."""
    if deny and any(_glob(pattern, flags).match(name) for pattern in deny):
        return False
    return allow is None or any(_glob(pattern, flags).match(name) for pattern in allow)


@lru_cache(maxsize=10_000)
def _glob(pattern: str, flags: re.RegexFlag) -> re.Pattern[str]:
    """A glob as a regular expression: `*` and `?` only, the whole name; server names in any case."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts) + r"\Z", flags | re.DOTALL)
