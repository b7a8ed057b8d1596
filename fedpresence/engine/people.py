"""Our users: what their devices do, and whom it concerns.

Source: presence.md sections 3 to 8 and 11.
"""

from collections.abc import Iterable

from fedpresence.engine.effects import SaveHidden, SavePresence, SaveUser, SendPush, TellObservers, Urgency
from fedpresence.engine.events import Activity, PresenceSet, StreamClosed, StreamOpened
from fedpresence.engine.presence import OFFLINE, LocalUser, PresenceRecord
from fedpresence.engine.settings import DAY_MS
from fedpresence.engine.world import Turn, World
from fedpresence.ids import DeviceID, ServerName, UserID

LONG_AWAY_MS = 7 * DAY_MS  # offline, silent and away that long: not announced to new room-mates (P:11)


class People:
    """Acts on local users' records, and announces what is worth telling."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._untold: list[UserID] = []  # who hid, and a crash came before anybody surely heard of it

    def add(self, turn: Turn, user_id: UserID) -> bool:
        """The user exists now; whether that is new."""
        world = self._world
        if not world.is_local(user_id) or user_id in world.users or user_id in world.deactivated:
            return False
        world.users.add(user_id)
        turn.add(SaveUser(user_id, deactivated=False))
        return True

    def deactivate(self, turn: Turn, user_id: UserID) -> None:
        """The user is gone; whoever still has a right is told offline."""
        world = self._world
        world.users.discard(user_id)
        world.deactivated.add(user_id)
        turn.add(SaveUser(user_id, deactivated=True))
        user = world.locals.get(user_id)
        if user is None:
            return
        for device_id, device in list(user.devices.items()):
            if device.hidden:
                turn.add(SaveHidden(user_id, device_id, hidden=False))
        user.devices.clear()
        user.status_msg = None
        user.news_full_ms = 0
        self._settle(turn, user_id, user, Urgency.CHANGE)

    def set_presence(self, turn: Turn, event: PresenceSet) -> None:
        """A PUT: the device's own word; nothing where the user is deactivated."""
        if event.user_id in self._world.deactivated:
            return
        user = self._world.local(event.user_id)
        device = user.devices.get(event.device_id)
        was_hidden = device is not None and device.hidden
        user.put(event.device_id, event.state, event.status_msg, turn.now_ms)
        hidden = event.state is OFFLINE
        if hidden != was_hidden:
            turn.add(SaveHidden(event.user_id, event.device_id, hidden))
        self._settle(turn, event.user_id, user, Urgency.CHANGE, hid=hidden and not was_hidden)

    def stream_opened(self, turn: Turn, event: StreamOpened) -> None:
        """A device holds a stream open; nothing where the user is deactivated."""
        if event.user_id in self._world.deactivated:
            return
        user = self._world.local(event.user_id)
        user.stream_opened(event.device_id, event.set_presence, turn.now_ms)
        self._settle(turn, event.user_id, user, Urgency.CHANGE)

    def stream_closed(self, turn: Turn, event: StreamClosed) -> None:
        """A device's stream ended."""
        user = self._world.locals.get(event.user_id)
        if user is not None:
            user.stream_closed(event.device_id, turn.now_ms)
            self._settle(turn, event.user_id, user, Urgency.CHANGE)

    def active(self, turn: Turn, event: Activity) -> None:
        """A pro-active event; nothing where the user does not exist."""
        world, user_id, now_ms = self._world, event.user_id, turn.now_ms
        if user_id not in world.users:
            return
        user = world.local(user_id)
        at_ms = now_ms if event.at_ms is None else min(event.at_ms, now_ms)
        if user.stays_active(event.device_id, at_ms, now_ms, world.settings):
            world.dirty[user_id] = None
            world.deadlines.ask_again(user_id)
            return
        user.active(event.device_id, at_ms, now_ms)
        self._settle(turn, user_id, user, Urgency.CHANGE)

    def remove_device(self, turn: Turn, user_id: UserID, device_id: DeviceID | None) -> None:
        """A device's token is gone (P:D-8)."""
        user = self._world.locals.get(user_id)
        if user is None or device_id not in user.devices:
            return
        if user.devices[device_id].hidden:
            turn.add(SaveHidden(user_id, device_id, hidden=False))
        user.remove_device(device_id)
        self._settle(turn, user_id, user, Urgency.CHANGE)

    def time_passed(self, turn: Turn, user_id: UserID) -> None:
        """The user's moment has come."""
        user = self._world.locals.get(user_id)
        if user is not None:
            self._settle(turn, user_id, user, Urgency.TIMER)

    def stopping(self, turn: Turn, *, offline: bool) -> None:
        """A clean stop: with `offline` it says so (E:P-10), else that everybody is still there.

        Other servers wait for a whole timeout from here on before they take anybody for gone.
        """
        world = self._world
        for user_id, user in list(world.locals.items()):
            for device_id in [d for d, device in user.devices.items() if offline and not device.hidden]:
                user.remove_device(device_id)
            held, user.news_full_ms = user.told is not None, 0  # no last word waits for its turn
            self._settle(turn, user_id, user, Urgency.CHANGE)
            if not offline and not held and user.published.state is not OFFLINE:
                self._tell(turn, user_id, Urgency.REFRESH)

    def restore(self, record: PresenceRecord, now_ms: int, stopped_ms: int) -> None:
        """What was written behind; called once, before any event."""
        world = self._world
        is_gone = now_ms - stopped_ms > world.settings.remote_timeout_ms
        user = LocalUser.restored(record, now_ms, world.settings, is_gone=is_gone)
        if user.published.state is not record.state:
            world.dirty[record.user_id] = None
        world.locals[record.user_id] = user
        world.states[user.published.state] += 1
        world.deadlines.set(record.user_id, user.next_deadline_ms(world.settings))
        if record.heard_ms:
            self._untold.append(record.user_id)

    def started(self, turn: Turn) -> None:
        """Tell who watches somebody that hid in the last moments of the run before (P:D-8)."""
        for user_id in self._untold:
            self._world.dirty[user_id] = None  # written behind, it counts as told
            self._note_missed(user_id)
            self._tell(turn, user_id, Urgency.CHANGE)
        self._untold.clear()

    def introduce(self, turn: Turn, user_id: UserID, servers: Iterable[ServerName]) -> None:
        """Servers newly share a room with the user: send the state, unless it is nobody's news (P:11)."""
        published = self._world.published(user_id, turn.now_ms)
        if (
            published.state is OFFLINE
            and not published.status_msg
            and turn.now_ms - published.last_active_ms > LONG_AWAY_MS
        ):
            return
        if told := tuple(servers):
            turn.add(SendPush(told, user_id, Urgency.ASKED))

    def _tell(self, turn: Turn, user_id: UserID, urgency: Urgency) -> None:
        """Every server with a right to the user is due news."""
        if servers := self._world.destinations_of(user_id):
            turn.add(SendPush(tuple(servers), user_id, urgency))

    def owed_after_doubt(self, user_id: UserID, now_ms: int) -> Urgency | None:
        """What a server is due of the user once a room is in doubt no more (Z-11); None: nothing.

        What changed meanwhile is news. What did not is told again in its time, as after any start.
        """
        if user_id in self._world.missed:
            return Urgency.ASKED
        return None if self._world.published(user_id, now_ms).state is OFFLINE else Urgency.AGAIN

    def _note_missed(self, user_id: UserID) -> None:
        """Servers in rooms that are in doubt are not told this, and another start must know it too."""
        if self._world.rooms.doubted:
            self._world.missed[user_id] = self._world.dirty[user_id] = None

    def _settle(
        self, turn: Turn, user_id: UserID, user: LocalUser, urgency: Urgency, *, hid: bool = False
    ) -> None:
        world = self._world
        before = user.published
        reason = user.settle(turn.now_ms, world.settings)
        is_news = user.may_tell(before, reason, turn.now_ms, world.settings)
        world.deadlines.set(user_id, user.next_deadline_ms(world.settings))
        if user.published is not before:
            world.dirty[user_id] = None
            if user.published.state is not before.state:
                world.states[before.state] -= 1
                world.states[user.published.state] += 1
        if hid and user.published.state is OFFLINE and user_id in world.dirty:
            turn.add(SavePresence(user.record(user_id, untold_since_ms=turn.now_ms)))
        if is_news:
            self._note_missed(user_id)
            self._tell(turn, user_id, urgency)
        if reason is not None:
            turn.add(TellObservers(user_id, world.local_observers_of(user_id)))
