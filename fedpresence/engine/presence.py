"""One user: devices merged, idle and offline by time, and whether a change is worth telling.

Always true:
- a user's state is that of the best device that is not declared offline (P:6);
- what a device does while it is declared offline is published in nothing, then or later (P:D-8, D-9);
- the published last active time never goes back;
- while `currently_active` is true, a move of the last active time alone is never told (P:A-2).

Source: presence.md sections 2 to 8; Matrix client-server API, Presence.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from fedpresence.engine.settings import EngineSettings
from fedpresence.ids import DeviceID, UserID


class PresenceState(Enum):
    """The states on the wire (P:1)."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is slow, and this is everywhere

    ONLINE = "online"
    UNAVAILABLE = "unavailable"
    OFFLINE = "offline"
    BUSY = "org.matrix.msc3026.busy"


ONLINE, UNAVAILABLE, OFFLINE, BUSY = (
    PresenceState.ONLINE,
    PresenceState.UNAVAILABLE,
    PresenceState.OFFLINE,
    PresenceState.BUSY,
)

RESTORED = DeviceID("\0")  # the pseudo-device of P:M-4; no token can have this device ID

NEWS_INTERVAL_MS = 15_000  # between two changes of a user who has flapped for minutes (Z-18)

_PRIORITY = {BUSY: 4, ONLINE: 3, UNAVAILABLE: 2, OFFLINE: 1}  # P:6


class Published(NamedTuple):
    """What a user publishes at one moment; moments are absolute, ages are made as it leaves (P:M-2).

    `last_active_ms` 0 means never. A tuple: one is made for each activity and each push, in half the time.
    """

    state: PresenceState
    last_active_ms: int = 0
    status_msg: str | None = None
    currently_active: bool = False


NOTHING = Published(OFFLINE)  # a user without a record (P:M-1)


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

    `heard_ms` is when a remote user was last heard of. For a local user it is 0, or when they declared
    themselves offline, as long as their observers may not have been told.
    """

    user_id: UserID
    state: PresenceState
    last_active_ms: int
    status_msg: str | None
    currently_active: bool
    heard_ms: int


def view_of(published: Published, now_ms: int) -> View:
    """`published` as it looks at `now_ms`: ages are made here (P:M-2, M-3)."""
    ago = max(0, now_ms - published.last_active_ms) if published.last_active_ms else None
    active = published.currently_active and published.state is ONLINE
    return View(published.state, ago, published.status_msg, active)


# --- is it worth telling? --------------------------------------------------------------------


class Reason(Enum):
    """Why an update is told: the labels of P:8.1."""

    STATUS_MSG = "status_msg_change"
    STATE = "state_change"
    CURRENTLY_ACTIVE = "current_active_change"
    LAST_ACTIVE_ONLINE = "last_active_change_online"
    LAST_ACTIVE_NOT_ONLINE = "last_active_change_not_online"


REASONS = (  # P:8.1, by the number of the row: why it tells, if it does; there is no row 0
    None,
    None,
    Reason.STATUS_MSG,
    Reason.STATE,
    Reason.CURRENTLY_ACTIVE,
    Reason.LAST_ACTIVE_ONLINE,
    None,
    Reason.LAST_ACTIVE_NOT_ONLINE,
    None,
)


def deciding_row(old: Published, new: Published, granularity_ms: int) -> int:
    """The row of P:8.1 that decides: the first one that holds; 8 where none does."""
    if old == new:
        return 1
    if old.status_msg != new.status_msg:
        return 2
    if old.state is not new.state:
        return 3
    has_moved = abs(new.last_active_ms - old.last_active_ms) > granularity_ms
    if old.state is not ONLINE:
        return 7 if has_moved else 8
    if old.currently_active != new.currently_active:
        return 4
    return 5 if has_moved and not new.currently_active else 6


def worth_telling(old: Published, new: Published, granularity_ms: int) -> Reason | None:
    """Why observers must hear of the step from `old` to `new`; None where they must not."""
    return REASONS[deciding_row(old, new, granularity_ms)]


# --- a local user ----------------------------------------------------------------------------


@dataclass(slots=True)
class Device:
    """One device; it is never OFFLINE unless `hidden`: a device that times out is forgotten (P:D-1)."""

    state: PresenceState
    last_active_ms: int = 0
    last_sync_ms: int = 0  # end of its last stream
    last_put_ms: int = 0
    streams: int = 0  # open now
    hidden: bool = False  # declared offline by a PUT
    set_presence: PresenceState | None = None  # last explicit value of a stream (P:I-7)
    set_presence_ms: int = 0  # since when it is that
    shown_since_ms: int = 0  # what is reported of a hidden time later counts no more (P:D-9)
    hold_until_ms: int = 0  # after a restart: no timers before (P:M-4)
    guessed: bool = False  # made by activity alone, until a device speaks for itself (P:D-7)

    @property
    def last_contact_ms(self) -> int:
        """What O-1 counts from."""
        return max(self.last_sync_ms, self.last_put_ms, self.last_active_ms)

    def gone_ms(self, settings: EngineSettings) -> int:
        """When it is taken for gone, if no stream of it is open."""
        is_busy = self.state is BUSY
        patience_ms = settings.busy_online_timeout_ms if is_busy else settings.sync_online_timeout_ms
        return max(self.last_contact_ms + patience_ms + 1, self.hold_until_ms)

    @property
    def last_word_ms(self) -> int:
        """Since when the client's own word holds: an event from before, told late, does not undo it."""
        said_ms = self.set_presence_ms if self.set_presence is UNAVAILABLE else 0
        return max(self.last_put_ms, said_ms)


@dataclass(slots=True)
class LocalUser:
    """A local user's record. Methods take what happened; `settle` then says what it amounts to."""

    since_ms: int  # when the record was made (E:P-3)
    last_active_ms: int = 0
    status_msg: str | None = None
    published: Published = NOTHING
    devices: dict[DeviceID | None, Device] = field(default_factory=dict)
    before_restart: Device | None = None  # what a device that comes back in time goes on with (P:M-4)
    told: Published | None = None  # what other servers were told last, while newer news is held back
    news_full_ms: int = 0  # when all of `news_burst` is there again

    @classmethod
    def restored(
        cls, record: PresenceRecord, now_ms: int, settings: EngineSettings, *, is_gone: bool = False
    ) -> "LocalUser":
        """What was stored, as one pseudo-device that clients have half a minute to replace (P:M-4).

        A PUT replaces it at once: a user who hides is not shown online on the ground of a guess. With
        `is_gone` we were away for so long that nobody takes them for here any more: then they are offline
        until a client is back, which goes on where it was, and nobody need be told of who stays away.
        """
        user = cls(since_ms=now_ms, last_active_ms=min(record.last_active_ms, now_ms))
        user.status_msg = record.status_msg
        active = record.currently_active and record.state is ONLINE
        user.published = Published(record.state, user.last_active_ms, record.status_msg, active)
        if record.state is not OFFLINE:
            device = Device(
                record.state,
                last_active_ms=user.last_active_ms,
                last_sync_ms=now_ms,
                hold_until_ms=now_ms + settings.sync_online_timeout_ms,
            )
            user.before_restart = replace(device)
            if is_gone:
                user.published = Published(OFFLINE, user.last_active_ms, record.status_msg)
            else:
                user.devices[RESTORED] = device
        return user

    def record(self, user_id: UserID, untold_since_ms: int = 0) -> PresenceRecord:
        """As it is written."""
        p = self.published
        return PresenceRecord(
            user_id, p.state, p.last_active_ms, p.status_msg, p.currently_active, untold_since_ms
        )

    def hide(self, device_id: DeviceID | None) -> None:
        """A device that had declared itself offline before the restart (P:D-8)."""
        self.devices[device_id] = Device(OFFLINE, hidden=True)

    def put(
        self, device_id: DeviceID | None, state: PresenceState, status_msg: str | None, now_ms: int
    ) -> None:
        """A `PUT .../status`: the device's own word (P:D-2, S-1, I-3)."""
        self.status_msg = status_msg or None
        self.devices.pop(RESTORED, None)
        self._end_guess()
        device = self.devices.get(device_id) or self._new_device(state, now_ms)
        self.devices[device_id] = device
        if device.hidden:
            device.shown_since_ms = now_ms
        device.state = state
        device.hidden = state is OFFLINE
        device.last_put_ms = now_ms
        device.hold_until_ms = 0
        if state is ONLINE or state is BUSY:
            self._bump(device, now_ms)

    def stream_opened(
        self, device_id: DeviceID | None, set_presence: PresenceState | None, now_ms: int
    ) -> None:
        """A stream began: the device is connected, implicitly offline no more, and may declare (P:I-7)."""
        guess = self._end_guess()
        device = self.devices.get(device_id)
        if device is None:
            device = guess or self._adopted(now_ms)
            if device is None:
                device = self._new_device(UNAVAILABLE if set_presence is UNAVAILABLE else ONLINE, now_ms)
                if device.state is ONLINE:
                    self._bump(device, now_ms)
            elif set_presence is UNAVAILABLE and device.state is ONLINE:
                device.state = UNAVAILABLE
            self.devices[device_id] = device
        elif not device.hidden:
            said_before = device.set_presence
            # Clients repeat their word on every sync. Who is online after `unavailable` did something
            # since, and a repetition does not undo that.
            if set_presence is UNAVAILABLE and said_before is not UNAVAILABLE and device.state is ONLINE:
                device.state = UNAVAILABLE
            elif set_presence is ONLINE and said_before is UNAVAILABLE and device.state is UNAVAILABLE:
                device.state = ONLINE
                self._bump(device, now_ms)
        device.streams += 1
        if set_presence is not None:
            if device.set_presence is not set_presence:
                device.set_presence_ms = now_ms
            device.set_presence = set_presence

    def stream_closed(self, device_id: DeviceID | None, now_ms: int) -> None:
        """A stream ended; the device has its half minute from here."""
        device = self.devices.get(device_id)
        if device is not None and device.streams:
            device.streams -= 1
            device.last_sync_ms = now_ms

    def active(self, device_id: DeviceID | None, at_ms: int, now_ms: int) -> None:
        """A pro-active event (P:3); `at_ms` is not later than `now_ms`. No device: P:D-7."""
        if device_id is None or (device := self.devices.get(device_id)) is None:
            device = self._most_recent() if device_id is None else None
            if device is None:
                if device_id is None and self.devices:
                    return  # every device is declared offline: published in nothing
                device = self._adopted(now_ms) or Device(ONLINE)
                device.guessed = device_id is None
                self.devices[device_id] = device
        if device.hidden or at_ms < max(device.last_active_ms, device.shown_since_ms):
            return
        if device.state is UNAVAILABLE and at_ms >= device.last_word_ms:
            device.state = ONLINE  # P:I-4
        self._bump(device, at_ms)

    def stays_active(
        self, device_id: DeviceID | None, at_ms: int, now_ms: int, settings: EngineSettings
    ) -> bool:
        """Take an event of somebody who is currently active and stays so: nearly all activity there is.

        False, and nothing is done, where it may be more than that. What `active` and `settle` would do is
        done but for the timers of other devices, which show in nothing while this one is active: their
        deadline, which can only have moved later, finds them.
        """
        published, ago_ms = self.published, now_ms - at_ms
        if device_id is None or not published.currently_active or self.told is not None:
            return False
        if ago_ms >= settings.last_active_granularity_ms or ago_ms > settings.idle_timeout_ms:
            return False
        device = self.devices.get(device_id)
        if device is None or device.state is not ONLINE or device.hidden or device.hold_until_ms:
            return False
        if at_ms < published.last_active_ms or at_ms < device.shown_since_ms:
            return False
        device.last_active_ms = self.last_active_ms = at_ms
        self.published = Published(ONLINE, at_ms, published.status_msg, True)
        return True

    def remove_device(self, device_id: DeviceID | None) -> None:
        """The device's token is gone."""
        self.devices.pop(device_id, None)

    def settle(self, now_ms: int, settings: EngineSettings) -> Reason | None:
        """Expire what time has ended, merge the devices and keep the result.

        The reason why observers must hear of it; None where they must not.
        """
        best, best_active = OFFLINE, -1
        gone: list[DeviceID | None] = []
        for device_id, device in self.devices.items():
            if device.hidden:
                continue
            if now_ms >= device.hold_until_ms:
                if device.state is ONLINE and now_ms - device.last_active_ms > settings.idle_timeout_ms:
                    device.state = UNAVAILABLE  # P:T-2, strict by I-2
                if not device.streams and now_ms >= device.gone_ms(settings):
                    gone.append(device_id)  # P:T-3, O-1
                    continue
            rank = (_PRIORITY[device.state], device.last_active_ms)
            if rank > (_PRIORITY[best], best_active):
                best, best_active = device.state, device.last_active_ms
        for device_id in gone:
            del self.devices[device_id]
        active = best is ONLINE and now_ms - self.last_active_ms < settings.last_active_granularity_ms
        old = self.published
        new = Published(best, self.last_active_ms, self.status_msg, active)
        if new == old:
            return None
        self.published = new
        return worth_telling(old, new, settings.last_active_granularity_ms)

    def may_tell(
        self, before: Published, reason: Reason | None, now_ms: int, settings: EngineSettings
    ) -> bool:
        """Whether other servers are to be told of the step from `before` now, or of what was held back.

        A user who flaps for minutes is told of less often (Z-18); the last word always is, unless it is the
        one before.
        """
        if reason is None and self.told is None:
            return False
        if now_ms < self._news_ready_ms(settings):
            self.told = before if self.told is None else self.told
            return False
        told, self.told = self.told, None
        if told is not None:
            reason = worth_telling(told, self.published, settings.last_active_granularity_ms)
        if reason is None:
            return False
        self.news_full_ms = max(self.news_full_ms, now_ms) + NEWS_INTERVAL_MS
        return True

    def _news_ready_ms(self, settings: EngineSettings) -> int:
        return self.news_full_ms - (settings.news_burst - 1) * NEWS_INTERVAL_MS

    def next_deadline_ms(self, settings: EngineSettings) -> int | None:
        """When time alone changes something (P:8.2 U-1 to U-4, U-6); None: never (P:O-5)."""
        moments: list[int] = []
        held_ms = 0
        for device in self.devices.values():
            if device.hidden:
                continue
            held_ms = max(held_ms, device.hold_until_ms)
            if device.state is ONLINE:
                idle_ms = device.last_active_ms + settings.idle_timeout_ms + 1
                moments.append(max(idle_ms, device.hold_until_ms))
            if not device.streams:
                moments.append(device.gone_ms(settings))
        if self.published.currently_active:
            moments.append(max(self.last_active_ms + settings.last_active_granularity_ms, held_ms))
        if self.told is not None:
            moments.append(self._news_ready_ms(settings))
        return min(moments, default=None)

    def _bump(self, device: Device, at_ms: int) -> None:
        device.last_active_ms = max(device.last_active_ms, at_ms)
        device.hold_until_ms = 0
        self.last_active_ms = max(self.last_active_ms, at_ms)

    def _new_device(self, state: PresenceState, now_ms: int) -> Device:
        """A device that was not there before; what others did in hiding is never laid at its door."""
        is_hiding = any(device.hidden for device in self.devices.values())
        return Device(state, shown_since_ms=now_ms if is_hiding else 0)

    def _adopted(self, now_ms: int) -> Device | None:
        """The state from before a restart, for a device that comes back in time."""
        before = self.before_restart
        if before is None or before.hold_until_ms <= now_ms:
            return None
        return replace(self.devices.get(RESTORED, before))

    def _end_guess(self) -> Device | None:
        """The pseudo-device of activity alone; it was the one that comes now, which says itself how it is.

        It stands alone (P:D-7): beside it, whoever declares themselves offline would be seen all the same.
        """
        guess = self.devices.get(None)
        if guess is None or not guess.guessed:
            return None
        del self.devices[None]
        guess.guessed = False
        return guess

    def _most_recent(self) -> Device | None:
        visible = [device for device in self.devices.values() if not device.hidden]
        return max(visible, key=lambda d: (d.streams > 0, d.last_contact_ms), default=None)
