"""What can happen: every event the engine is told.

Always true: identifiers in an event have been parsed; an event from another server carries the
*authenticated* origin, and the engine checks every user in it against that origin (edus.md 8).
"""

from dataclasses import dataclass
from typing import NamedTuple

from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import EngineSettings
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID

# --- our users -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserAdded:
    """A local user exists now: a token was issued, or the homeserver says so. Idempotent."""

    user_id: UserID


@dataclass(frozen=True, slots=True)
class UserDeactivated:
    """A local user is gone: grants end (S:T-27), lists are dropped (S:O-36)."""

    user_id: UserID


@dataclass(frozen=True, slots=True)
class DeviceRemoved:
    """The last token of a device went: the device counts no more, declared offline or not (P:D-8)."""

    user_id: UserID
    device_id: DeviceID | None


class PresenceSet(NamedTuple):
    """`PUT .../presence/{userId}/status` by a device; `status_msg` None or empty clears it (P:S-1)."""

    user_id: UserID
    device_id: DeviceID | None
    state: PresenceState
    status_msg: str | None


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A `/sync` began; `set_presence` None means that the parameter was absent (P:I-7).

    A stream with `set_presence=offline` is never told: it has no effect on presence (P:O-4).
    """

    user_id: UserID
    device_id: DeviceID | None
    set_presence: PresenceState | None


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A `/sync` that was told as opened has ended."""

    user_id: UserID
    device_id: DeviceID | None


@dataclass(frozen=True, slots=True)
class Activity:
    """A pro-active event of a user (P:3), at `at_ms` (None: now; never in the future)."""

    user_id: UserID
    device_id: DeviceID | None = None
    at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ListChanged:
    """A user's `POST .../presence/list`: done in this order, all of it or, on BadRequest, nothing."""

    user_id: UserID
    invite: tuple[UserID, ...] = ()
    accept: tuple[UserID, ...] = ()
    deny: tuple[UserID, ...] = ()
    revoke: tuple[UserID, ...] = ()
    drop: tuple[UserID, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusWanted:
    """A local user asked for the state of `observed` (E:Q-8 c): worth a poll where our copy is old."""

    observer: UserID
    observed: UserID


@dataclass(frozen=True, slots=True)
class RoomMembersSet:
    """Who is joined to a room now: the whole set; an empty one forgets the room.

    What a homeserver says of its rooms (`from_homeserver`) is in doubt after the next start, until it is
    told again (Z-11).
    """

    room_id: RoomID
    members: frozenset[UserID]
    from_homeserver: bool = False


@dataclass(frozen=True, slots=True)
class RoomMemberChanged:
    """One user is joined to a room now, or is not. Idempotent: profiles change by joins too.

    When the last of our users leaves, the room is forgotten: nobody tells us what happens in it from
    then on. So when one of ours is the first to join, tell the whole set (`RoomMembersSet`).
    """

    room_id: RoomID
    user_id: UserID
    joined: bool


@dataclass(frozen=True, slots=True)
class RoomJoinRuleChanged:
    """Who may join a room, in the words of `m.room.join_rules`; None: not known. Idempotent.

    It may be told before any member; it is forgotten with the room.
    """

    room_id: RoomID
    join_rule: str | None


# --- other servers ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListEduReceived:
    """An invite, accept, deny or drop, not yet checked against its origin."""

    kind: EduKind
    origin: ServerName
    observer: UserID
    observed: UserID


class PushReceived(NamedTuple):
    """One push item. `last_active_ago` None: the key was missing or unusable (E:R-4).

    A tuple, because tens of thousands come in a second and it is made in half the time.
    """

    user_id: UserID
    state: PresenceState
    last_active_ago: int | None
    status_msg: str | None
    currently_active: bool


@dataclass(frozen=True, slots=True)
class PushesReceived:
    """The push items of one `m.presence`, each user once."""

    origin: ServerName
    pushes: tuple[PushReceived, ...]


@dataclass(frozen=True, slots=True)
class PollReceived:
    """The origin wants the state of these users (E:3)."""

    origin: ServerName
    user_ids: tuple[UserID, ...]


@dataclass(frozen=True, slots=True)
class UnpollReceived:
    """The origin wants no more pushes for these users on the ground of lists (E:Q-5)."""

    origin: ServerName
    user_ids: tuple[UserID, ...]


ReceivedEdu = ListEduReceived | PushesReceived | PollReceived | UnpollReceived


@dataclass(frozen=True, slots=True)
class TransactionReceived:
    """A verified transaction with the parts of it that we understand, in order.

    List EDUs are stored before it is answered and resolved after (Z-7): by the `InboxDue` that the
    effect `InboxFilled` asks for. A repeated `txn_id` of an origin changes nothing (F:R-1).
    """

    origin: ServerName
    txn_id: str
    origin_server_ts: int
    edus: tuple[ReceivedEdu, ...]


@dataclass(frozen=True, slots=True)
class InboxDue:
    """Stored EDUs wait to be resolved."""


# --- how sending went ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EdusDelivered:
    """The destination took these with a 2xx."""

    destination: ServerName
    edus: tuple[OwedEdu, ...]


@dataclass(frozen=True, slots=True)
class DestinationAlive:
    """The destination is heard of for the first time after an outage."""

    destination: ServerName


# --- the rest --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of a run: what a restart has to do again (S:O-18, O-27, T-28)."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """A clean stop: the last words. With `presence.offline_on_stop` everybody is told offline (E:P-10)."""

    offline: bool = True


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """A reload changed what the engine may decide on: server lists and policies (Z-9)."""

    settings: EngineSettings


@dataclass(frozen=True, slots=True)
class TimePassed:
    """A deadline may have come. Telling it early does nothing."""


Event = (
    UserAdded
    | UserDeactivated
    | DeviceRemoved
    | PresenceSet
    | StreamOpened
    | StreamClosed
    | Activity
    | ListChanged
    | StatusWanted
    | RoomMembersSet
    | RoomMemberChanged
    | RoomJoinRuleChanged
    | TransactionReceived
    | InboxDue
    | EdusDelivered
    | DestinationAlive
    | Started
    | Stopping
    | SettingsChanged
    | TimePassed
)
