"""What must be done because something happened: values, never callbacks.

`Durable` effects are what the store learns, committed before any `Outgoing` effect of the same turn
leaves. Outgoing effects are lost in a crash, and nothing breaks: they are derived again from rows.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from fedpresence.engine.events import ListEduReceived
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.subscription import EduKind, ObservedRow, ObserverRow, OwedEdu
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID

# --- durable ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveUser:
    """A local user exists, or existed and is deactivated."""

    user_id: UserID
    deactivated: bool


@dataclass(frozen=True, slots=True)
class SaveHidden:
    """A device declared itself offline (`hidden`), or does so no more (P:D-8)."""

    user_id: UserID
    device_id: DeviceID | None
    hidden: bool


@dataclass(frozen=True, slots=True)
class SavePresence:
    """Who declared themselves offline is so on disk too, before the 200 (P:D-8).

    Else a crash would show them again: as what was written behind a moment before.
    """

    record: PresenceRecord


@dataclass(frozen=True, slots=True)
class SaveObserverRow:
    """The observer's half of a pair."""

    row: ObserverRow


@dataclass(frozen=True, slots=True)
class ForgetObserverRow:
    """That half is NONE and owes nothing."""

    observer: UserID
    observed: UserID


@dataclass(frozen=True, slots=True)
class SaveObservedRow:
    """The observed user's half of a pair."""

    row: ObservedRow


@dataclass(frozen=True, slots=True)
class ForgetObservedRow:
    """That half is NONE and owes nothing."""

    observer: UserID
    observed: UserID


@dataclass(frozen=True, slots=True)
class SaveRoom:
    """A room is known: its join rule, as far as it was told, and whether it counts now (Z-19).

    `from_homeserver`: who is in it was told by a homeserver (Z-11).
    """

    room_id: RoomID
    join_rule: str | None
    counts: bool
    from_homeserver: bool = False


@dataclass(frozen=True, slots=True)
class ForgetRoom:
    """The room goes, and all its members with it."""

    room_id: RoomID


@dataclass(frozen=True, slots=True)
class SaveRoomMembers:
    """Who joined a room that is saved, and who left it; all others stay."""

    room_id: RoomID
    joined: tuple[UserID, ...]
    left: tuple[UserID, ...]


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    """A transaction was taken: the same one again changes nothing (F:R-1)."""

    origin: ServerName
    txn_id: str
    at_ms: int
    origin_server_ts: int


@dataclass(frozen=True, slots=True)
class ForgetAnswer:
    """A transaction older than a day, or beyond the thousandth of its origin (Z-6)."""

    origin: ServerName
    txn_id: str


@dataclass(frozen=True, slots=True)
class SaveInbox:
    """List EDUs to be resolved after the 200, in the order of `entry_id` (Z-7)."""

    entry_id: int
    edus: tuple[ListEduReceived, ...]


@dataclass(frozen=True, slots=True)
class ForgetInbox:
    """Resolved."""

    entry_id: int


Durable = (
    SaveUser
    | SaveHidden
    | SavePresence
    | SaveObserverRow
    | ForgetObserverRow
    | SaveObservedRow
    | ForgetObservedRow
    | SaveRoom
    | ForgetRoom
    | SaveRoomMembers
    | SaveAnswer
    | ForgetAnswer
    | SaveInbox
    | ForgetInbox
)

Unhurried = SaveAnswer | ForgetAnswer
"""Durable effects that go with the next commit, or are written behind: alone they are not worth one.

What comes without list EDUs may be taken twice (F:R-1), so a crash may forget that it came; list EDUs are
saved in the turn that takes them, and their answer with them.
"""

# --- outgoing --------------------------------------------------------------------------------


class Urgency(IntEnum):
    """How soon news should leave (decision 12); the smaller number goes first."""

    ASKED = 0  # a poll, a grant or a room that began: owed even where nothing changed
    CHANGE = 1  # a user's own change: now
    TIMER = 2  # idle, no longer active, offline by time: within 2 s where the destination is busy
    REFRESH = 3  # unchanged state, so that the other side does not expire it
    AGAIN = 4  # a state told in the run before: with others, within a fifth of a refresh interval (S:T-28)


class SendPush(NamedTuple):
    """Each of `destinations` is due news of `user_id`: one effect for all, or ten thousand would be made.

    The queue keeps user IDs, not messages; the push is made from the newest state when it leaves,
    because `last_active_ago` counts from that moment.
    """

    destinations: tuple[ServerName, ...]
    user_id: UserID
    urgency: Urgency


@dataclass(frozen=True, slots=True)
class SendEdu:
    """A row owes `destination` this EDU; it is asked for again until an `EdusDelivered` names it."""

    destination: ServerName
    edu: OwedEdu


@dataclass(frozen=True, slots=True)
class UnsendEdus:
    """Whatever waits for `destination` about this pair is owed no more (Z-15)."""

    destination: ServerName
    observer: UserID
    observed: UserID


@dataclass(frozen=True, slots=True)
class SendDropOnce:
    """Tell that the observer does not watch; tried once, not owed (Z-12)."""

    destination: ServerName
    observer: UserID
    observed: UserID


@dataclass(frozen=True, slots=True)
class SendPoll:
    """Ask `destination` for the state of its user; tried once."""

    destination: ServerName
    user_id: UserID


@dataclass(frozen=True, slots=True)
class SendUnpoll:
    """Tell `destination` that nobody here wants its user; tried once (Z-12)."""

    destination: ServerName
    user_id: UserID


class TellObservers(NamedTuple):
    """Local users who may see `observed` are due news of them.

    With `gone` these observers may see them no longer, and are shown `offline` once.
    """

    observed: UserID
    observers: tuple[UserID, ...]
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """A to-device notice for `user_id` (S:8): `reason` only beside a deny."""

    user_id: UserID
    kind: EduKind
    observer: UserID
    observed: UserID
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class InboxFilled:
    """Submit `InboxDue` once this turn is committed."""


Outgoing = (
    SendPush
    | SendEdu
    | UnsendEdus
    | SendDropOnce
    | SendPoll
    | SendUnpoll
    | TellObservers
    | Notice
    | InboxFilled
)

Effect = Durable | Outgoing
