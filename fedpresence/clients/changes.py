"""Presence changes of our users on their way to the hub: more than enough of them are merged.

Always true:
- the last change of every device counts, however many came before it;
- a declared offline, and its end, are committed before their 200: they never wait for the throttle (P:D-8);
- changes of one user reach the hub in the order in which they came.

Source: contract.md, `limits.client_changes`; P:9.1 (429).
"""

from collections import OrderedDict
from dataclasses import dataclass

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clients.throttle import Throttle
from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.config import LimitsConfig
from fedpresence.engine.events import PresenceSet
from fedpresence.engine.presence import OFFLINE
from fedpresence.errors import BadRequest
from fedpresence.hub import Hub
from fedpresence.ids import DeviceID, UserID

_log = Logger()

MAX_HIDING = 10_000  # devices whose declared offline is remembered: a miss costs one submission more

_Device = tuple[UserID, DeviceID | None]


@dataclass(slots=True)
class _Hiding:
    """The last change of a device that the hub was given: it declared itself offline."""

    committed: bool = False


class PresenceChanges(Service):
    """Gives `PUT .../status` to the hub, no more often than the limits say."""

    def __init__(self, hub: Hub, clock: Clock, limits: LimitsConfig) -> None:
        self._hub = hub
        self._clock = clock
        merged, refused = limits.client_changes, limits.client_changes_refused
        self._merging: Throttle[UserID] = Throttle(merged.per_second, merged.burst)
        self._refusing: Throttle[UserID] = Throttle(refused.per_second, refused.burst)
        self._pending: dict[UserID, dict[DeviceID | None, PresenceSet]] = {}
        self._timers: dict[UserID, Timer] = {}
        self._hiding: OrderedDict[_Device, _Hiding] = OrderedDict()
        self._stopped = False

    def reload(self, limits: LimitsConfig) -> None:
        """Obey other limits from now on."""
        self._merging.change(limits.client_changes.per_second, limits.client_changes.burst)
        self._refusing.change(limits.client_changes_refused.per_second, limits.client_changes_refused.burst)

    def admit(self, user_id: UserID) -> None:
        """Count a request of this user; BadRequest 429 where there are far too many."""
        wait_ms = self._refusing.take(user_id, now_ms(self._clock))
        if wait_ms:
            raise BadRequest("M_LIMIT_EXCEEDED", "Too many requests", status=429, retry_after_ms=wait_ms)

    def change(self, event: PresenceSet) -> Deferred[None]:
        """Fires when the change is committed or, where it is one too many, kept for a moment."""
        user_id, now = event.user_id, now_ms(self._clock)
        pending = self._pending.get(user_id)
        if self._stopped or (pending is None and not self._merging.take(user_id, now)):
            return self._submit(event)
        if (event.state is OFFLINE) is not self._is_hidden(event):
            self._merging.take(user_id, now, on_credit=True)
            earlier = self._take_pending(user_id)
            earlier.pop(event.device_id, None)
            return self._submit(*earlier.values(), event)
        if pending is None:
            pending = self._pending[user_id] = {}
            self._set_timer(user_id)
        pending.pop(event.device_id, None)  # the newest stands last: the message is the user's
        pending[event.device_id] = event
        return succeed(None)

    def stopService(self) -> Deferred[object]:
        """Give the hub what was kept; nothing is kept from now on."""
        self._stopped = True
        Service.stopService(self)
        kept = [self._take_pending(user_id) for user_id in list(self._pending)]
        done = [self._submit(*changes.values()) for changes in kept]
        return DeferredList(done, consumeErrors=True).addCallback(lambda _: None)

    def _submit(self, *events: PresenceSet) -> Deferred[None]:
        hiding = []
        for event in events:
            device = (event.user_id, event.device_id)
            self._hiding.pop(device, None)
            if event.state is OFFLINE:
                self._hiding[device] = last = _Hiding()
                hiding.append(last)
                if len(self._hiding) > MAX_HIDING:
                    self._hiding.popitem(last=False)
        submitted = self._hub.submit(*events)
        if hiding:
            submitted.addCallback(_note_committed, hiding)
        return submitted

    def _is_hidden(self, event: PresenceSet) -> bool:
        """Whether the device's declared offline is on disk already."""
        hiding = self._hiding.get((event.user_id, event.device_id))
        return hiding is not None and hiding.committed

    def _take_pending(self, user_id: UserID) -> dict[DeviceID | None, PresenceSet]:
        timer = self._timers.pop(user_id, None)
        if timer is not None:
            timer.cancel()
        return self._pending.pop(user_id, {})

    def _set_timer(self, user_id: UserID) -> None:
        wait_ms = self._merging.take(user_id, now_ms(self._clock))
        self._timers[user_id] = self._clock.callLater(wait_ms / 1000, self._release, user_id)

    def _release(self, user_id: UserID) -> None:
        del self._timers[user_id]
        wait_ms = self._merging.take(user_id, now_ms(self._clock))
        if wait_ms:
            self._timers[user_id] = self._clock.callLater(wait_ms / 1000, self._release, user_id)
            return
        self._submit(*self._pending.pop(user_id).values()).addErrback(_log_failure)


def _note_committed(_: None, hiding: list[_Hiding]) -> None:
    for each in hiding:
        each.committed = True


def _log_failure(failure: Failure) -> None:
    _log.failure("a merged presence change was lost", failure)
