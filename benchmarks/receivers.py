"""Every other server, in memory and in virtual time: how it behaves, and what it heard.

It stands where the client stands (`outbound.tools.Opens`); above it everything is the daemon's own.

Always true: a transaction is read when it arrives, as its bytes say it; a connection that is new costs a
turn of the same budget as in `outbound.connections`, and one that idled too long is new.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from random import Random
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from fedpresence.clock import now_ms
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.budget import TokenBucket
from fedpresence.outbound.exchange import TIMEOUT_S
from fedpresence.outbound.tools import OpenLink
from fedpresence.testing.rig.clock import TurnableClock

ROUND_TRIP_S = 0.03
HANDSHAKE_ROUND_TRIPS = 2  # TCP, and TLS 1.3
WORK_S = 0.02  # until a server answers a transaction
KEEP_MS = 55_000  # federation.keep_connections
CONNECTIONS_PER_SECOND = 50  # outbound.client.build_client
RETRANSMIT_S = (0.2, 0.4, 0.8, 1.6, 3.2, 3.8)  # pauses of TCP, until outbound.connections lets it give up
SYN_AGAIN_S = (1.0, 2.0, 4.0, 3.0)  # the system asks again, until outbound.connections gives up after 10 s
TRICKLE_S = 55.0  # just before we give up

T = TypeVar("T")


class Manner(Enum):
    """How a server behaves."""

    THERE = "is there"
    REFUSES = "refuses connections"  # the machine is up, the server is not
    SILENT = "is silent"  # the machine is gone: no connection ever stands
    HANGS = "takes all and never answers"
    TRICKLES = "answers after 55 s"
    ERRS = "answers 500"
    REJECTS = "answers 400 to everything"
    LIMITS = "answers 429, try at once"


@dataclass(frozen=True, slots=True)
class Heard:
    """The last word that a server has of a user."""

    at_ms: int
    state: str
    status_msg: str | None


class Receivers:
    """All destinations. `failing_share` of what is sent goes wrong, in one of several ways."""

    def __init__(self, clock: TurnableClock, random: Random) -> None:
        self.failing_share = 0.0
        self.reads = True  # False: what arrives is only counted, where the time of others is no matter
        self.opened_ms: list[int] = []  # each try
        self.connected_ms: list[int] = []  # each new connection, also the vain ones
        self.received_ms: list[int] = []  # each transaction that arrived
        self.heard: dict[ServerName, dict[UserID, Heard]] = {}
        self.on_heard: Callable[[ServerName, UserID, Heard, Heard | None], None] = _nobody_listens
        self._clock = clock
        self._random = random
        self._manners: dict[ServerName, Manner] = {}
        self._everywhere: Manner | None = None
        self._kept_ms: dict[ServerName, int] = {}
        self._budget = TokenBucket(CONNECTIONS_PER_SECOND, CONNECTIONS_PER_SECOND)

    def behave(self, destination: ServerName, manner: Manner) -> None:
        """One server behaves like this from now on."""
        self._manners[destination] = manner
        self._kept_ms.pop(destination, None)

    def behave_everywhere(self, manner: Manner | None) -> None:
        """Our own line: all servers look like this from here; None: each its own way again."""
        self._everywhere = manner
        self._kept_ms.clear()

    def pairs(self) -> Iterator[tuple[ServerName, UserID, Heard]]:
        """The last word on everybody, everywhere."""
        return chain.from_iterable(
            ((destination, user_id, heard) for user_id, heard in users.items())
            for destination, users in self.heard.items()
        )

    # --- as a client -----------------------------------------------------------------------------

    def kept(self, destination: ServerName) -> None:
        """None: `open` finds those too."""

    async def open(self, destination: ServerName) -> OpenLink:
        """A connection, kept or new."""
        manner = self._manner(destination)
        self.opened_ms.append(now_ms(self._clock))
        if self._random.random() < self.failing_share / 2:
            manner = Manner.REFUSES
        if now_ms(self._clock) - self._kept_ms.get(destination, 0) > KEEP_MS:
            await self._turn()
            self.connected_ms.append(now_ms(self._clock))
            for wait_s in SYN_AGAIN_S:
                if manner is Manner.SILENT:
                    await self._wait(wait_s)
                    manner = self._manner(destination)
            if manner is Manner.SILENT:
                raise DeliveryFailed(destination, "cannot connect: timeout")
            await self._wait(HANDSHAKE_ROUND_TRIPS * ROUND_TRIP_S)
        if manner is Manner.REFUSES:
            raise DeliveryFailed(destination, "cannot connect: refused")
        return _Link(self, destination)

    async def close(self) -> None:
        """Nothing is open."""

    async def take(self, destination: ServerName, body: bytes) -> int:
        """A transaction arrives, or does not."""
        manner = self._manner(destination)
        if self._random.random() < self.failing_share / 2:
            manner = self._random.choice([Manner.ERRS, Manner.HANGS])
        for pause_s in RETRANSMIT_S:
            if manner is Manner.SILENT:  # it became so after the connection stood
                await self._wait(pause_s)
                manner = self._manner(destination)
        match manner:
            case Manner.THERE | Manner.TRICKLES:
                await self._wait(ROUND_TRIP_S / 2 + WORK_S)
                self._read(destination, body)
                await self._wait(ROUND_TRIP_S / 2 + (TRICKLE_S if manner is Manner.TRICKLES else 0))
                self._kept_ms[destination] = now_ms(self._clock)
                return 200
            case Manner.HANGS:
                await self._wait(TIMEOUT_S)
                raise DeliveryFailed(destination, "no answer in 60 s", heard=True)
            case Manner.SILENT | Manner.REFUSES:
                raise DeliveryFailed(destination, "the connection was lost", heard=True)
            case Manner.ERRS:
                await self._refuse(destination, 500)
            case Manner.REJECTS:
                await self._refuse(destination, 400)
            case Manner.LIMITS:
                await self._refuse(destination, 429, retry_after_ms=0)
        raise AssertionError(manner)

    # --- inside ----------------------------------------------------------------------------------

    def _manner(self, destination: ServerName) -> Manner:
        return self._everywhere or self._manners.get(destination, Manner.THERE)

    async def _refuse(self, destination: ServerName, status: int, retry_after_ms: int | None = None) -> None:
        await self._wait(ROUND_TRIP_S)
        self._kept_ms[destination] = now_ms(self._clock)
        raise DeliveryFailed(
            destination, f"answered {status}", status=status, heard=True, retry_after_ms=retry_after_ms
        )

    def _read(self, destination: ServerName, body: bytes) -> None:
        at_ms = now_ms(self._clock)
        self.received_ms.append(at_ms)
        if not self.reads:
            return
        users = self.heard.setdefault(destination, {})
        for edu in json.loads(body)["edus"]:
            for item in edu["content"].get("push", ()):
                user_id = UserID(item["user_id"])
                heard = Heard(at_ms, item["presence"], item.get("status_msg"))
                self.on_heard(destination, user_id, heard, users.get(user_id))
                users[user_id] = heard

    async def _turn(self) -> None:
        now = now_ms(self._clock)
        at_ms = self._budget.reserve(now)
        if at_ms > now:
            await self._wait((at_ms - now) / 1000)

    def _wait(self, seconds: float) -> "Deferred[None]":
        clock: Any = self._clock
        waited: Deferred[None] = deferLater(clock, seconds)
        return waited


class _Link:
    """A connection that stands."""

    def __init__(self, receivers: Receivers, destination: ServerName) -> None:
        self._receivers = receivers
        self._destination = destination

    def send_transaction(self, txn_id: str, body: bytes) -> "Deferred[int]":
        """The status, or DeliveryFailed."""
        return ensureDeferred(self._receivers.take(self._destination, body))

    def give_back(self) -> None:
        """It was not needed."""


def _nobody_listens(destination: ServerName, user_id: UserID, heard: Heard, before: Heard | None) -> None:
    pass


def most_within(moments_ms: list[int], span_ms: int = 1000) -> int:
    """The most moments in any window of that length; they are in order."""
    most = first = 0
    for last, moment in enumerate(moments_ms):
        while moments_ms[first] <= moment - span_ms:
            first += 1
        most = max(most, last - first + 1)
    return most
