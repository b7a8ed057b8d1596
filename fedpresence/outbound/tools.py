"""What all senders share, and what they ask of others.

Always true: what leaves together is made as of one moment, and no age in it is behind by more than that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred

from fedpresence.clock import Clock
from fedpresence.counters import Counters
from fedpresence.engine.events import Event
from fedpresence.engine.outgoing import Composed, Wanted
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.budget import TokenBucket
from fedpresence.outbound.status import TransactionSeen

if TYPE_CHECKING:
    from fedpresence.outbound.sender import DestinationSender


class OpenLink(Protocol):
    """A connection for one transaction."""

    def send_transaction(self, txn_id: str, body: bytes) -> Deferred[int]:
        """The 2xx status; DeliveryFailed otherwise. `body` is canonical JSON."""

    def give_back(self) -> None:
        """There is nothing to send after all."""


class Opens(Protocol):
    """The client, as far as a sender knows it."""

    def kept(self, destination: ServerName) -> OpenLink | None:
        """A connection that stands; None where one must be opened."""

    async def open(self, destination: ServerName) -> OpenLink:
        """A connection; DeliveryFailed otherwise."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What sending asks of the engine, through the hub, and what it tells it.

    `settling` fires once all that was decided is committed, and is None where it is: only then `compose` may
    be asked. It answers at once, by the rights of now and with the ages of a moment; so do the other two.
    """

    settling: Callable[[], Deferred[None] | None]
    compose: Callable[[ServerName, Wanted, int], Composed]
    rights: Callable[[ServerName], int]
    needs_refresh: Callable[[ServerName, UserID], bool]
    submit: Callable[[Event], Deferred[None]]


@dataclass(frozen=True, slots=True)
class Tools:
    """What all senders share."""

    origin: ServerName
    clock: Clock
    client: Opens
    decisions: Decisions
    next_txn_id: Callable[[], str]
    random: Random
    counters: Counters
    on_transaction: Callable[[TransactionSeen], None] | None
    wake_at: Callable[["DestinationSender", int], None]
    line_up: Callable[["DestinationSender", int], None]
    tries: TokenBucket  # at those that fail: in turn with the others
