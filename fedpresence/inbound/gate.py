"""May the body of this transaction be read? Decided by the head alone.

Always true: the steps are those of Z-1, in its order: `X-Matrix` parsed, destination, server lists, size,
and a verify key at hand or fetched now; nothing of the body is read before all of them are passed.

Source: Z-1, Z-2, Z-4.
"""

from collections.abc import Awaitable
from urllib.parse import unquote_to_bytes

from fedpresence.admission import Admitted, BodyBudget, Claimant, RequestHead, busy, too_large
from fedpresence.clock import Clock, now_ms
from fedpresence.counters import Counters
from fedpresence.errors import BadRequest
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import Claim, Credentials, OriginCheck

SEND = [b"_matrix", b"federation", b"v1", b"send"]
OUTCOMES = {401: "not_authentic", 403: "forbidden", 413: "too_large", 429: "limited", 500: "failed"}


class Gate:
    """Admits transactions by their head; `admit` is for a BoundedSite."""

    def __init__(
        self,
        origins: OriginCheck,
        limits: OriginLimits,
        budget: BodyBudget,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self.origins = origins
        self._limits = limits
        self._budget = budget
        self._clock = clock
        self._counters = counters

    def admit(self, head: RequestHead) -> Awaitable[Admitted] | Admitted | None:
        """The admission of a transaction; None for every other request, whose body stays small.

        At once where the keys are at hand, as they nearly always are. BadRequest where it is refused by its
        head alone.
        """
        if head.method != b"PUT" or not is_send(head.uri):
            return None
        try:
            claim, claimant = self._claim(head)
        except BadRequest as error:
            self.refused(error)
            raise
        at_hand = self.origins.credentials_at_hand(claim)
        if at_hand is not None:
            return self._admitted(at_hand, claimant)
        return self._admit_transaction(claim, head.source, claimant)

    async def credentials(self, head: RequestHead) -> Credentials:
        """The keys that can prove who sent `head`; BadRequest where the transaction is refused."""
        claim, _ = self._claim(head)
        return await self.origins.credentials(claim, head.source)

    def _claim(self, head: RequestHead) -> tuple[Claim, Claimant]:
        """What the head says, and who its body counts against."""
        claim = self.origins.claim(head.headers.getRawHeaders(b"Authorization") or ())
        claimant = Claimant(claim.origin, head.source)
        size = head.content_length or 0
        if size > self._limits.max_body:
            raise too_large()
        if not self._budget.fits(claimant, size):
            raise busy()
        self._limits.expect_bytes(claim.origin, size, now_ms(self._clock))
        return claim, claimant

    def refused(self, error: BadRequest) -> None:
        """Count a transaction that was refused."""
        self._counters.count("inbound_transactions", outcome=OUTCOMES.get(error.status, "bad"))

    def taken(self) -> None:
        """Count a transaction that was taken, or known already."""
        self._counters.count("inbound_transactions", outcome="ok")

    async def _admit_transaction(self, claim: Claim, source: str, claimant: Claimant) -> Admitted:
        try:
            credentials = await self.origins.credentials(claim, source)
        except BadRequest as error:
            self.refused(error)
            raise
        return self._admitted(credentials, claimant)

    def _admitted(self, credentials: Credentials, claimant: Claimant) -> Admitted:
        return Admitted(self._limits.max_body, claimant, credentials)


def is_send(uri: bytes) -> bool:
    """Whether a request line's URI is `/send/{txnId}`, as the resource tree reads it."""
    path, _, _ = uri.partition(b"?")
    segments = path[1:].split(b"/")
    if b"%" in path:
        segments = [unquote_to_bytes(segment) for segment in segments]
    if segments[:4] != SEND or not 5 <= len(segments) <= 6:
        return False
    return bool(segments[4]) and not any(segments[5:])
