"""A listener as Twisted sees it: the factory of its connections, and what they have in common.

Always true: there are never more connections than the limit; those where nothing is asked give way to new
ones, so that nobody is locked out by somebody who says nothing; once closed, it takes no more.
"""

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from twisted.web.resource import Resource
from zope.interface import implementer

from fedpresence.admission import Admit, Admitted, BodyBudget, RequestHead
from fedpresence.clock import Clock, Timer
from fedpresence.config import LimitsConfig
from fedpresence.errors import BadRequest
from fedpresence.intake import BoundedChannel

LOOKS = 100  # for one that may give way, at each new connection
CLOSE_S = 5.0  # what a clean stop waits for answers that are owed


@implementer(IProtocolNegotiationFactory)
class BoundedSite(Factory):
    """A listener's site: its limits, its connections, and who admits requests to it.

    `budget` is shared by all listeners of a daemon.
    """

    noisy = False  # the daemon says itself where it listens

    def __init__(
        self,
        resource: Resource,
        limits: LimitsConfig,
        clock: Clock,
        budget: BodyBudget,
        admit: Admit | None = None,
    ) -> None:
        self.resource = resource
        self.clock = clock
        self.limits = limits
        self.budget = budget
        self.admit = admit
        self.plain = Admitted(limits.client_body)  # who is not asked about may send so much
        self._channels: dict[BoundedChannel, None] = {}  # those unused for longest first
        self._closed: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> BoundedChannel:
        """A connection, which asks us whether it may stay."""
        return BoundedChannel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1 only."""
        return [b"http/1.1", b"http/1.0"]

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._channels)

    def opened(self, channel: BoundedChannel) -> bool:
        """Whether one more connection may stay; it counts if so."""
        if self._closed is not None:
            return False
        while len(self._channels) >= self.limits.connections:
            if not self._make_room():
                return False
        self._channels[channel] = None
        return True

    def answered(self, channel: BoundedChannel) -> None:
        """A connection that stays was used just now: others give way before it."""
        if channel in self._channels:
            del self._channels[channel]
            self._channels[channel] = None

    def gone(self, channel: BoundedChannel) -> None:
        """A connection has ended, whether it counted or not."""
        self._channels.pop(channel, None)
        if self._closed is not None and not self._channels and not self._closed.called:
            self._closed.callback(None)

    def refuse_all_but(self, paths: tuple[bytes, ...]) -> None:
        """From now on a request is a 503, unless its path begins so."""
        admit = self.admit

        def admit_some(head: RequestHead) -> Awaitable[Admitted] | Admitted | None:
            if not head.uri.startswith(paths):
                raise BadRequest("M_UNKNOWN", "Stopping", status=503)
            return None if admit is None else admit(head)

        self.admit = admit_some

    def _make_room(self) -> bool:
        """Give one up where nothing is asked, of those that were used last long ago.

        False where none was found among a few.
        """
        for _ in range(min(LOOKS, len(self._channels))):
            channel = next(iter(self._channels))
            del self._channels[channel]
            if channel.is_unused:
                channel.give_way()
                return True
            self._channels[channel] = None  # in use; the next look begins behind it
        return False

    def close(self) -> Deferred[None]:
        """Take no more connections and end those that are open; called once, after the port is closed.

        Idle ones end now, the others with the answer that they wait for, all of them within 5 s. Fires
        when none is left.
        """
        self._closed = Deferred()
        if not self._channels:
            self._closed.callback(None)
            return self._closed
        abort = self.clock.callLater(CLOSE_S, self._abort)
        for channel in list(self._channels):
            channel.end()
        return self._closed.addBoth(lambda _: _cancel(abort))

    def _abort(self) -> None:
        for channel in list(self._channels):
            channel.abort()

    def reload(self, limits: LimitsConfig) -> None:
        """New limits, for what comes from now on."""
        self.limits = limits
        self.plain = Admitted(limits.client_body)
        self.budget.total = limits.bodies_in_flight


def _cancel(timer: Timer) -> None:
    if timer.active():
        timer.cancel()
