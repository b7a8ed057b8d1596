"""PLACEHOLDER: the values; the record follows."""

from dataclasses import dataclass
from enum import Enum

from fedpresence.ids import UserID


class PresenceState(Enum):
    """The states on the wire (P:1)."""

    ONLINE = "online"
    UNAVAILABLE = "unavailable"
    OFFLINE = "offline"
    BUSY = "org.matrix.msc3026.busy"


@dataclass(frozen=True, slots=True)
class Published:
    """What a user publishes at one moment; moments are absolute, ages are made as it leaves (P:M-2).

    `last_active_ms` 0 means never.
    """

    state: PresenceState
    last_active_ms: int = 0
    status_msg: str | None = None
    currently_active: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """A user's presence as somebody may see it now: `last_active_ago` in ms, None when never active."""

    state: PresenceState
    last_active_ago: int | None = None
    status_msg: str | None = None
    currently_active: bool = False


@dataclass(frozen=True, slots=True)
class PresenceRecord:
    """A user's presence as it is written behind: what a restart begins with (P:M-4).

    `heard_ms` is when a remote user was last heard of; 0 for a local user.
    """

    user_id: UserID
    state: PresenceState
    last_active_ms: int
    status_msg: str | None
    currently_active: bool
    heard_ms: int
