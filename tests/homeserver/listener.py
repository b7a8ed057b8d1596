"""A listener of ours before a homeserver that is played, over real loopback sockets.

Always true: when a story has ended, nothing listens any more and no connection is left.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fedpresence.homeserver.relay import Relay, build_pool
from fedpresence.site import BoundedSite
from tests.homeserver.played import Caller, PlayedHomeserver, call, until
from tests.in_reactor import in_reactor


class Listener(ABC):
    """Both on ports of their own; `serve` says what is answered on ours."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.homeserver = PlayedHomeserver(reactor)

    @abstractmethod
    def serve(self, relay: Relay) -> BoundedSite:
        """What we answer; `relay` leads to the homeserver."""

    async def start(self) -> None:
        """Both listen."""
        await self.homeserver.start()
        self.relay = Relay(self.reactor, self.homeserver.url, self.reactor, build_pool(self.reactor))
        self.site = self.serve(self.relay)
        self.listening = self.reactor.listenTCP(0, self.site, interface="127.0.0.1")

    async def stop(self) -> None:
        """Nothing is left."""
        await self.listening.stopListening()
        closing = self.site.close()
        await self.relay.stop()
        await self.homeserver.stop()
        await closing

    async def call(self, data: bytes) -> Caller:
        """Somebody sends bytes."""
        return await call(self.reactor, self.listening.getHost().port, data)

    async def ask(self, data: bytes) -> Caller:
        """Somebody sends bytes that end the connection, and has the answer."""
        caller = await self.call(data)
        await self.lost(caller)
        return caller

    async def lost(self, caller: Caller) -> None:
        """Wait until a connection has ended."""
        await self.until(lambda: caller.lost)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it."""
        await until(self.reactor, condition)


L = TypeVar("L", bound=Listener)


def play(build: Callable[[Any], L], story: Callable[[L], Awaitable[None]]) -> None:
    """Play a story with what `build(reactor)` makes, and clean up."""

    async def begin(reactor: Any) -> None:
        listener = build(reactor)
        await listener.start()
        try:
            await story(listener)
        finally:
            await listener.stop()

    in_reactor(begin)
