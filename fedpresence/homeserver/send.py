"""`/send` in front of the homeserver: it gets every transaction as it came, and we what is presence in it.

Always true:
- nothing but the size limit keeps a transaction from the homeserver: what we doubt, or fail at, is passed
  on, and its answer given back (Z-25);
- presence is taken only of transactions that we verified ourselves and that the homeserver answered with
  200, or that we answered alone (Z-26);
- we answer alone only what is presence and nothing else, and only while the origin's last sample at the
  homeserver got a 200 (H:6.2, step 5);
- no key fetch, no queue and no failure of ours delays the homeserver's transaction; and only what must not
  be lost (list EDUs, not pushes) delays its answer until it is committed, for a moment at most;
- bodies that are looked at share half of the byte budget (Z-2), for nobody was asked who sends them; where
  that is used up, or one takes long to come, they stream by without a look.

A homeserver that has no `/send` at all (federation is off there) takes nothing: then what is presence alone
is answered as if there were none. Whatever else comes gets its 404: it may be a proxy that speaks for a
homeserver that is away, or the wrong listener of one, and what we answered with 200 would be lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.web.resource import Resource

from fedpresence.admission import Admit, Admitted, BodyBudget, Claimant, RequestHead
from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.counters import Counters
from fedpresence.errors import BadRequest, StoreError
from fedpresence.homeserver.fronting import Samples, Share, has_others, must_last, share_of
from fedpresence.homeserver.relay import (
    OrAlone,
    PassThrough,
    Relay,
    Relayed,
    answer_alone,
    answered,
    refuse,
    streams,
)
from fedpresence.ids import ServerName
from fedpresence.inbound.gate import is_send
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import Claim, OriginCheck
from fedpresence.inbound.transactions import Transactions
from fedpresence.incoming import IncomingBody
from fedpresence.intake import body_of
from fedpresence.request import Request
from fedpresence.sources import source_of
from fedpresence.web import mount, node, write_json
from fedpresence.wire.json import decode_json

_log = Logger()

MAX_TXN_ID_BYTES = 255  # as in standalone; longer ones are the homeserver's alone
COMMIT_PATIENCE_S = 0.25  # for list EDUs, which are rare
COLLECT_TIMEOUT_S = 30.0  # a body that trickles must not hold what it has brought so far
PLAIN_BYTES = 65_536  # above it, only what mentions presence is parsed at all: rooms' histories are large
PASSED = (b"/_matrix/federation/", b"/_matrix/key/", b"/_matrix/media/", b"/.well-known/matrix/")


@dataclass(frozen=True, slots=True)
class Fronting:
    """What `/send` in front of a homeserver is made of.

    `on_authentic` hears of every origin that proved itself (X-8, Z-23); `alone` is the root of the tree
    that answers as if there were no homeserver.
    """

    relay: Relay
    origins: OriginCheck
    limits: OriginLimits
    budget: BodyBudget
    transactions: Transactions
    clock: Clock
    counters: Counters
    on_authentic: Callable[[ServerName], None]
    alone: Resource


@dataclass(frozen=True, slots=True)
class Verified:
    """A transaction whose origin is proven. `lasts`: something in it must survive a restart."""

    origin: ServerName
    txn_id: str
    content: object
    size: int
    share: Share
    lasts: bool


def add_front(root: Resource, fronting: Fronting, *, serves_well_known: bool = False) -> Admit:
    """Hang `/send` and everything else of the federation API under `root`; who admits its requests.

    `serves_well_known`: `/.well-known/matrix/server` is answered here and not by the homeserver.
    """
    relay = fronting.relay
    matrix = node(root, b"_matrix")
    federation, v1 = PassThrough(relay), PassThrough(relay)
    mount(matrix, b"federation", federation)
    mount(federation, b"v1", v1)
    mount(v1, b"send", FrontedSend(fronting))
    mount(v1, b"version", OrAlone(relay, fronting.alone))
    mount(matrix, b"key", OrAlone(relay, fronting.alone))
    if b"media" not in matrix.children:  # older servers fetch media where federation is
        mount(matrix, b"media", PassThrough(relay))
    well_known = PassThrough(relay)
    mount(node(root, b".well-known"), b"matrix", well_known)
    if serves_well_known:
        mount(well_known, b"server", node(fronting.alone, b".well-known", b"matrix", b"server"))
    passed = streams(PASSED)

    def admit(head: RequestHead) -> Any:
        if head.method == b"PUT" and is_send(head.uri):
            return Admitted(fronting.limits.max_body, streams=True)
        return passed(head)

    return admit


class FrontedSend(PassThrough):
    """`PUT /_matrix/federation/v1/send/{txnId}`; whatever else lies there is the homeserver's."""

    def __init__(self, fronting: Fronting) -> None:
        super().__init__(fronting.relay)
        self._fronting = fronting
        self._samples = Samples()

    def render(self, request: Request) -> int:
        """Look at it and pass it on; what was begun comes to its end, whether the origin waits or not."""
        if request.method != b"PUT" or not is_send(request.uri):
            return super().render(request)
        return answered(request, self._answer(request), to_its_end=True)

    async def _answer(self, request: Request) -> None:
        claim = self._claim(request)
        if claim is None:
            await self._pass_unseen(request)
            return
        source = source_of(request.getClientAddress(), request.requestHeaders)
        held = _Held(self._fronting.budget, Claimant(claim.origin, source))
        try:
            try:
                data = await _whole_body(request, held, self._fronting.clock)
            except BadRequest as error:  # too large
                refuse(request, error)
                return
            if data is None:
                held.release()
                await self._pass_unseen(request)
            else:
                await self._look_at(request, claim, data)
        finally:
            held.release()

    def _claim(self, request: Request) -> Claim | None:
        """Who says to have sent this; None where we will not look at it."""
        fronting = self._fronting
        try:
            claim = fronting.origins.claim(request.requestHeaders.getRawHeaders(b"Authorization") or ())
            fronting.limits.expect_bytes(claim.origin, 0, now_ms(fronting.clock))
        except BadRequest:
            return None
        return claim

    async def _pass_unseen(self, request: Request) -> None:
        self._count("unseen")
        await self.relay.pass_through(request)

    async def _look_at(self, request: Request, claim: Claim, data: bytes) -> None:
        looked: list[Verified | None] = []
        looking = ensureDeferred(self._verify(request, claim, data)).addCallback(looked.append)
        verified = looked[0] if looked else None
        if verified is not None:
            if verified.origin == self._fronting.origins.server_name:  # Z-23: nobody else's to hear
                refuse(request, BadRequest("M_FORBIDDEN", "This is ourselves", status=403))
                return
            if await self._answered_alone(request, verified):
                return
        try:
            relayed = await self.relay.forward(request, body=data)
        except BadRequest as error:
            refuse(request, error)
            self._count("unanswered")
            await looking
            self._sampled(looked[0], None)
            return
        if relayed.status == 404:
            unserved, body = await self.relay.is_unserved(relayed)
            if unserved and not _is_for_others(data):
                self._count("unserved")
                answer_alone(request, self._fronting.alone, data)
            else:
                self._count("forwarded")
                self.relay.give_back_whole(request, relayed, body)
                await looking
                self._sampled(looked[0], 404)
            return
        await self._give_back(request, relayed, looking, looked)

    async def _give_back(
        self, request: Request, relayed: Relayed, looking: "Deferred[None]", looked: list[Verified | None]
    ) -> None:
        """The homeserver's answer, and what we take of the transaction: before it if that is quick."""
        taking = ensureDeferred(self._take_once_verified(relayed.status, looking, looked))
        if looked and looked[0] is not None and looked[0].lasts:
            await _for_a_moment(taking, COMMIT_PATIENCE_S, self._fronting.clock)
        await self.relay.give_back(request, relayed)
        self._count("taken" if await taking else "forwarded")

    async def _take_once_verified(
        self, status: int, looking: "Deferred[None]", looked: list[Verified | None]
    ) -> bool:
        await looking
        verified = looked[0]
        self._sampled(verified, status)
        if status != 200 or verified is None or verified.share is Share.NONE:
            return False
        return await self._take(verified)

    async def _answered_alone(self, request: Request, verified: Verified) -> bool:
        now = now_ms(self._fronting.clock)
        if verified.share is not Share.ALL or not self._samples.may_answer(verified.origin, now):
            return False
        taking = ensureDeferred(self._take(verified))
        if (verified.lasts or taking.called) and not await taking:
            return False  # the homeserver's word then; what is missed is mended (Z-25)
        self._count("answered")
        write_json(request, {"pdus": {}})
        await taking
        return True

    async def _verify(self, request: Request, claim: Claim, data: bytes) -> Verified | None:
        """The transaction, proven; None where we doubt it, whatever the reason. Never fails."""
        fronting = self._fronting
        if len(data) > PLAIN_BYTES and b"presence" not in data:
            return None
        try:
            credentials = await fronting.origins.credentials(
                claim, source_of(request.getClientAddress(), request.requestHeaders)
            )
            content = decode_json(data)
            uri = request.uri.decode("ascii")
            origin = fronting.origins.verify(credentials, method="PUT", uri=uri, content=content)
            fronting.on_authentic(origin)
            txn_id = unquote_to_bytes(request.path.rstrip(b"/").rpartition(b"/")[2])
            if len(txn_id) > MAX_TXN_ID_BYTES:
                return None
            share, lasts = share_of(content), must_last(content)
            return Verified(origin, txn_id.decode("utf-8"), content, len(data), share, lasts)
        except (BadRequest, UnicodeDecodeError) as error:
            _log.debug("{origin} is not believed: {reason}", origin=claim.origin, reason=str(error))
        except CancelledError:
            _log.debug("{origin} is not believed: stopping", origin=claim.origin)
        except Exception:
            _log.failure("looking at a transaction of {origin} failed", origin=claim.origin)
        return None

    async def _take(self, verified: Verified) -> bool:
        """Whether the presence in it is taken and committed. Never fails."""
        try:
            await self._fronting.transactions.receive(
                verified.origin, verified.txn_id, verified.content, verified.size
            )
        except BadRequest as error:
            _log.debug(
                "presence of {origin} is not taken: {reason}", origin=verified.origin, reason=error.message
            )
            return False
        except (CancelledError, StoreError):  # the daemon stops, and says why itself
            return False
        except Exception:
            _log.failure("taking presence of {origin} failed", origin=verified.origin)
            return False
        return True

    def _sampled(self, verified: Verified | None, status: int | None) -> None:
        if verified is not None:
            self._samples.forwarded(verified.origin, status, now_ms(self._fronting.clock))

    def _count(self, outcome: str) -> None:
        self._fronting.counters.count("fronted_transactions", outcome=outcome)


class _Held:
    """The bytes of one body in the budget."""

    def __init__(self, budget: BodyBudget, claimant: Claimant) -> None:
        self._budget = budget
        self._claimant = claimant
        self._size = 0

    def take(self, size: int) -> bool:
        """Whether so many more may be kept."""
        if self._budget.used + size > self._budget.total // 2:
            return False  # the rest is for those who proved themselves, and for our users
        taken = self._budget.take(self._claimant, size)
        if taken:
            self._size += size
        return taken

    def release(self) -> None:
        """All of them are let go."""
        self._budget.give_back(self._claimant, self._size)
        self._size = 0


async def _whole_body(request: Request, held: _Held, clock: Clock) -> bytes | None:
    """The body, where it fits the budget; None where it must stream by. BadRequest where it is too large."""
    body = body_of(request)
    if not isinstance(body, IncomingBody):
        return body
    timer: Timer = clock.callLater(COLLECT_TIMEOUT_S, body.collect_no_further)
    try:
        return await body.collect(held.take)
    finally:
        if timer.active():
            timer.cancel()


def _is_for_others(data: bytes) -> bool:
    """Whether the body of a transaction holds more than presence, for all that we can read."""
    try:
        return has_others(decode_json(data))
    except BadRequest:
        return True


def _for_a_moment(work: "Deferred[Any]", seconds: float, clock: Clock) -> "Deferred[None]":
    """Fires when `work` has ended, which never fails, or the moment is over, which does not end it."""
    over: Deferred[None] = Deferred()
    timer = clock.callLater(seconds, over.callback, None)

    def done(outcome: Any) -> Any:
        if timer.active():
            timer.cancel()
            over.callback(None)
        return outcome

    work.addCallback(done)
    return over
