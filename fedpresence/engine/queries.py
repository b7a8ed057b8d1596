"""What the engine answers when it is asked: values, made for one moment."""

from dataclasses import dataclass

from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.subscription import ObserverStage
from fedpresence.ids import DeviceID, UserID


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One entry of a presence list: PENDING or ACCEPTED.

    `confirmed_ms` is the last accept, 0 for none; `unreachable`: the other server has not taken what we
    owe it for a fortnight (S:O-16).
    """

    user_id: UserID
    stage: ObserverStage
    since_ms: int
    confirmed_ms: int
    unreachable: bool
    view: View


@dataclass(frozen=True, slots=True)
class Pair:
    """Somebody, and since when."""

    user_id: UserID
    since_ms: int


@dataclass(frozen=True, slots=True)
class ObserverEntry:
    """Somebody who may watch; `muted` while their server wants no pushes on that ground.

    `confirmed_ms` is their server's last invite, which it repeats weekly; 0 for none that we know of.
    """

    user_id: UserID
    since_ms: int
    muted: bool
    confirmed_ms: int = 0


@dataclass(frozen=True, slots=True)
class DeviceDetail:
    """A device, as the admin API shows it; `hidden`: it declared itself offline."""

    device_id: DeviceID | None
    state: PresenceState
    last_contact_ms: int
    streams: int
    hidden: bool


@dataclass(frozen=True, slots=True)
class UserDetail:
    """A user, as the admin API shows it. For a remote one `heard_ms` and `stale` say why (decision 8)."""

    user_id: UserID
    view: View
    last_active_ms: int
    devices: tuple[DeviceDetail, ...] = ()
    list: tuple[ListEntry, ...] = ()
    invites: tuple[Pair, ...] = ()
    observers: tuple[ObserverEntry, ...] = ()
    heard_ms: int | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class RoomDetail:
    """A room: how many are in it, how many of them are ours, its join rule if told, whether it counts.

    `doubted`: its members are to be read again before other servers have a right by it (Z-11).
    """

    members: int
    ours: int
    join_rule: str | None
    counts: bool
    doubted: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """The engine at a glance; `offline` counts every local user who is not anything else."""

    online: int
    unavailable: int
    offline: int
    busy: int
    remote: int
    list_pending: int
    list_accepted: int
    requests: int
    grants: int
    rooms: int
    rooms_doubted: int = 0
