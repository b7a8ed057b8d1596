"""May the body of a request be read, and how much of it is in memory.

Always true: bodies that are kept share one byte budget, and one origin has at most a quarter of it (Z-2).

Source: Z-1, Z-2.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from fedpresence.errors import BadRequest
from fedpresence.fields import Fields
from fedpresence.ids import ServerName
from fedpresence.sources import source_of

ORIGIN_SHARE = 4  # one origin has at most a quarter of the budget: Z-2
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


@dataclass(frozen=True, slots=True)
class Admitted:
    """This body may be read: up to `limit` bytes, out of `origin`'s share of the budget (`claimed_share`).

    `grounds` is whatever the admission found out, for the resource that answers. `streams`: the resource is
    asked at once, and takes the body while it comes (`body_of`); it counts in no budget here.
    """

    limit: int
    origin: str | None = None
    grounds: object = None
    streams: bool = False


Admit = Callable[[RequestHead], Awaitable[Admitted] | Admitted | None]
"""Asked once per request; None leaves the plain limit, a BadRequest (raised or awaited) refuses."""


class BodyBudget:
    """How many bytes of bodies are in memory, in all and by origin (pure)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._by_origin: dict[str, int] = {}

    @property
    def used(self) -> int:
        """Bytes taken and not given back."""
        return self._used

    def fits(self, origin: str | None, size: int) -> bool:
        """Whether `size` more bytes could be taken now."""
        if self._used + size > self.total:
            return False
        return origin is None or self._by_origin.get(origin, 0) + size <= self.total // ORIGIN_SHARE

    def take(self, origin: str | None, size: int) -> bool:
        """Take `size` bytes; False, and nothing taken, where they do not fit."""
        if not self.fits(origin, size):
            return False
        self._used += size
        if origin is not None:
            self._by_origin[origin] = self._by_origin.get(origin, 0) + size
        return True

    def give_back(self, origin: str | None, size: int) -> None:
        """The other side of `take`."""
        self._used -= size
        if origin is not None:
            left = self._by_origin.get(origin, 0) - size
            if left > 0:
                self._by_origin[origin] = left
            else:
                self._by_origin.pop(origin, None)


def claimed_share(origin: ServerName, source: str) -> str:
    """The share of the budget for bodies that claim to be `origin`'s and come from `source`."""
    return f"{origin} {source}"


def too_large() -> BadRequest:
    """The refusal of a body beyond its limit."""
    return BadRequest("M_TOO_LARGE", "The request body is too large", status=413)


def busy() -> BadRequest:
    """The refusal of a body that would be welcome later."""
    return BadRequest(
        "M_LIMIT_EXCEEDED", "Too much is being received", status=429, retry_after_ms=BUSY_RETRY_MS
    )
