"""May the body of a request be read, and how much of it is in memory.

Always true: bodies that are kept share one byte budget; whoever claims to be one origin has at most a quarter
of it at one address, and one address half of it (Z-2).

Source: Z-1, Z-2.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from fedpresence.errors import BadRequest
from fedpresence.fields import Fields
from fedpresence.ids import ServerName
from fedpresence.sources import source_of

ORIGIN_SHARE = 4  # one origin at one address has at most a quarter of the budget: Z-2
SOURCE_SHARE = 2  # and one address half of it, whoever it claims to be
BUSY_RETRY_MS = 5_000  # when a full budget has probably moved on


class RequestHead(NamedTuple):
    """A request as far as it is known before its body. `content_length` is None for a chunked body.

    `uri` is exactly what stood in the request line; `address` is that of the peer.
    """

    method: bytes
    uri: bytes
    headers: Fields
    content_length: int | None
    address: object

    @property
    def source(self) -> str:
        """Whom the request counts against (Z-4)."""
        return source_of(self.address, self.headers)


class Claimant(NamedTuple):
    """Who a body counts against: the server that it claims to be from, and where it came from.

    The claim alone would not do: anybody can make it, and use up what is the honest server's.
    """

    origin: ServerName
    source: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """This body may be read: up to `limit` bytes, out of its claimant's share of the budget.

    `grounds` is whatever the admission found out, for the resource that answers. `streams`: the resource is
    asked at once, and takes the body while it comes (`body_of`); it counts in no budget here.
    """

    limit: int
    claimant: Claimant | None = None
    grounds: object = None
    streams: bool = False


Admit = Callable[[RequestHead], Awaitable[Admitted] | Admitted | None]
"""Asked once per request; None leaves the plain limit, a BadRequest (raised or awaited) refuses."""


class BodyBudget:
    """How many bytes of bodies are in memory, in all, by claimant and by source (pure)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._by_claimant: Counter[Claimant] = Counter()
        self._by_source: Counter[str] = Counter()

    @property
    def used(self) -> int:
        """Bytes taken and not given back."""
        return self._used

    def fits(self, claimant: Claimant | None, size: int) -> bool:
        """Whether `size` more bytes could be taken now."""
        if self._used + size > self.total:
            return False
        if claimant is None:
            return True
        if self._by_source[claimant.source] + size > self.total // SOURCE_SHARE:
            return False
        return self._by_claimant[claimant] + size <= self.total // ORIGIN_SHARE

    def take(self, claimant: Claimant | None, size: int) -> bool:
        """Take `size` bytes; False, and nothing taken, where they do not fit."""
        if not self.fits(claimant, size):
            return False
        self._used += size
        if claimant is not None:
            self._by_claimant[claimant] += size
            self._by_source[claimant.source] += size
        return True

    def give_back(self, claimant: Claimant | None, size: int) -> None:
        """The other side of `take`."""
        self._used -= size
        if claimant is not None:
            self._by_claimant[claimant] -= size
            if self._by_claimant[claimant] <= 0:
                del self._by_claimant[claimant]
            self._by_source[claimant.source] -= size
            if self._by_source[claimant.source] <= 0:
                del self._by_source[claimant.source]


def too_large() -> BadRequest:
    """The refusal of a body beyond its limit."""
    return BadRequest("M_TOO_LARGE", "The request body is too large", status=413)


def busy() -> BadRequest:
    """The refusal of a body that would be welcome later."""
    return BadRequest(
        "M_LIMIT_EXCEEDED", "Too much is being received", status=429, retry_after_ms=BUSY_RETRY_MS
    )
