"""The mirror tap: a copy of every `/sync`'s head, from the proxy in front of the homeserver (form A).

Always true:
- it is answered at once and with nothing, whatever it is: the client's own request never waits for us (Z-28);
- only a good token counts, and whose it is was asked in the background; of tokens that are not known yet so
  many are asked about at a time, the rest is passed over until their next poll;
- nobody sees the end of a poll, so it counts until its `timeout` and `LINGER_MS` more, or until the next poll
  of the device: a device that polls is connected without a gap (H:6.3);
- memory is bounded; whoever is forgotten counts as gone.

Source: H:6.3, Z-28.
"""

from collections import OrderedDict
from dataclasses import dataclass

from twisted.internet.defer import ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from fedpresence.clients.requests import Credentials, credentials, parameter
from fedpresence.clients.stream import MAX_TIMEOUT_MS
from fedpresence.clients.tokens import Tokens
from fedpresence.clock import Clock, Timer
from fedpresence.engine.events import Event, StreamClosed, StreamOpened
from fedpresence.engine.presence import PresenceState
from fedpresence.errors import BadRequest, FedpresenceError
from fedpresence.hub import Hub
from fedpresence.request import Request
from fedpresence.storage.store import TokenOwner
from fedpresence.web import JsonResource, mount, node
from fedpresence.wire.status import decode_set_presence

_log = Logger()

LINGER_MS = 30_000  # H:6.3: for the answer on its way, and the next poll
MAX_ASKED = 50  # polls at a time whose owner is being asked for
MAX_CONNECTED = 100_000  # devices

_MAX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class _Tapped:
    """One poll as it was seen."""

    asked: Credentials
    set_presence: PresenceState | None
    timeout_ms: int


class SyncTap:
    """Who polls the homeserver, as far as a copy of the request says."""

    def __init__(self, hub: Hub, tokens: Tokens, clock: Clock) -> None:
        self._hub = hub
        self._tokens = tokens
        self._clock = clock
        self._asking = 0
        self._connected: OrderedDict[TokenOwner, Timer] = OrderedDict()  # longest quiet first
        self._closed = False

    def __len__(self) -> int:
        """How many devices count as connected."""
        return len(self._connected)

    async def tap(self, request: Request) -> dict[str, object]:
        """Take note of a poll; answers nothing, at once."""
        try:
            tapped = _tapped(request)
        except BadRequest:
            return {}  # the homeserver says what is wrong with it
        if self._asking < MAX_ASKED and not self._closed:
            self._asking += 1
            ensureDeferred(self._count(tapped)).addErrback(_unheard).addBoth(self._counted)
        return {}

    def close(self) -> None:
        """The run ends: nobody is counted any more, and nobody told as gone."""
        self._closed = True
        for timer in self._connected.values():
            timer.cancel()
        self._connected.clear()

    async def _count(self, tapped: _Tapped) -> None:
        owner = await self._tokens.owner_of(tapped.asked)
        if self._closed:
            return
        events: list[Event] = []
        before = self._connected.pop(owner, None)
        if tapped.set_presence is not PresenceState.OFFLINE:
            events.append(StreamOpened(owner.user_id, owner.device_id, tapped.set_presence))
            lasts_s = (tapped.timeout_ms + LINGER_MS) / 1000
            self._connected[owner] = self._clock.callLater(lasts_s, self._gone, owner)
        if before is not None:
            before.cancel()
            events.append(StreamClosed(owner.user_id, owner.device_id))
        if len(self._connected) > MAX_CONNECTED:
            longest, timer = self._connected.popitem(last=False)
            timer.cancel()
            events.append(StreamClosed(longest.user_id, longest.device_id))
        if events:
            self._hub.submit(*events).addErrback(_unheard)

    def _counted(self, _: object) -> None:
        self._asking -= 1

    def _gone(self, owner: TokenOwner) -> None:
        del self._connected[owner]
        self._hub.submit(StreamClosed(owner.user_id, owner.device_id)).addErrback(_unheard)


def add_tap(root: Resource, tap: SyncTap) -> None:
    """Hang the tap under `root`."""
    mount(node(root, b"_fedpresence"), b"sync_tap", JsonResource({"GET": tap.tap, "POST": tap.tap}))


def _tapped(request: Request) -> _Tapped:
    set_presence = parameter(request, b"set_presence")
    timeout = parameter(request, b"timeout") or "0"
    is_number = timeout.isascii() and timeout.isdigit() and len(timeout) <= _MAX_DIGITS
    return _Tapped(
        credentials(request),
        None if set_presence is None else decode_set_presence(set_presence),
        min(int(timeout), MAX_TIMEOUT_MS) if is_number else 0,
    )


def _unheard(failure: Failure) -> None:
    """A token that is unknown, a homeserver that is away, a daemon that stops: the next poll tells."""
    failure.trap(FedpresenceError)
