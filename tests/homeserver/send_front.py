"""A federation listener of ours before a played homeserver, and another server's signed transactions."""

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from fedpresence.admission import BodyBudget
from fedpresence.config import LimitsConfig
from fedpresence.engine.events import TransactionReceived
from fedpresence.engine.settings import ServerLists
from fedpresence.homeserver.relay import Relay
from fedpresence.homeserver.send import Fronting, add_front
from fedpresence.ids import ServerName
from fedpresence.inbound.gate import Gate
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import OriginCheck
from fedpresence.inbound.resource import Federation, add_federation
from fedpresence.inbound.transactions import Transactions
from fedpresence.site import BoundedSite
from fedpresence.web import Unknown
from tests.homeserver.listener import Listener, play
from tests.homeserver.played import Caller, an_answer
from tests.inbound.servers import HERE, THERE, Ring, Tally, a_send, a_transaction, an_identity

OK = b'{"pdus":{"$a":{}}}'  # so that the homeserver's own word can be told from ours
OURS = b'{"pdus":{}}'
PUSH = {
    "edu_type": "m.presence",
    "content": {"push": [{"user_id": "@carol:there.test", "presence": "online"}]},
}
TYPING = {"edu_type": "m.typing", "content": {"room_id": "!r:here.test", "user_id": "@carol:there.test"}}
LIST = {"edu_type": "m.device_list_update", "content": {"user_id": "@carol:there.test"}}


class Front(Listener):
    """there.test sends to it; `received` is what the hub would be given, once `taking` lets it."""

    def __init__(
        self, reactor: Any, limits: LimitsConfig, servers: ServerLists, well_known: str | None
    ) -> None:
        super().__init__(reactor)
        self.homeserver.answers = lambda _: an_answer(OK)
        self.limits = limits
        self.ring = Ring()
        self.there = an_identity()
        self.ring.network.publish(self.there)
        self.tally = Tally()
        self.received: list[TransactionReceived] = []
        self.authentic: list[ServerName] = []
        self.taking: Callable[[], Deferred[None]] = lambda: succeed(None)
        self.budget = BodyBudget(limits.bodies_in_flight)
        clock = self.ring.clock
        origin_limits = OriginLimits(limits)
        origins = OriginCheck(HERE, self.ring.keys, servers)
        self.gate = Gate(origins, origin_limits, self.budget, clock, self.tally)
        self.transactions = Transactions(self._submit, origin_limits, clock, self.tally)
        self.alone = Unknown()
        add_federation(
            self.alone,
            Federation(
                self.ring.identity, self.gate, self.transactions, clock, self.authentic.append, well_known
            ),
        )
        self.root = Unknown()
        self._origins, self._origin_limits, self._well_known = origins, origin_limits, well_known

    def serve(self, relay: Relay) -> BoundedSite:
        """What comes for both of us, and the rest of federation."""
        fronting = Fronting(
            relay,
            self._origins,
            self._origin_limits,
            self.budget,
            self.transactions,
            self.ring.clock,
            self.tally,
            self.authentic.append,
            self.alone,
        )
        admit = add_front(self.root, fronting, serves_well_known=self._well_known is not None)
        return BoundedSite(self.root, self.limits, self.reactor, self.budget, admit)

    async def stop(self) -> None:
        """Nothing is left, and nothing is held."""
        await super().stop()
        assert self.budget.used == 0

    def _submit(self, event: TransactionReceived) -> Deferred[None]:
        self.received.append(event)
        return self.taking()

    async def ask(self, data: bytes) -> Caller:
        """A server sends bytes, and has its answer."""
        return await super().ask(data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))

    def send(self, txn_id: str, *edus: object, pdus: list[object] | None = None, **more: object) -> bytes:
        """A signed transaction of there.test."""
        content = a_transaction(THERE, *edus) | {"pdus": pdus or []} | more
        return a_send(self.there, txn_id, content)

    def outcomes(self) -> dict[str, int]:
        """What became of transactions, counted."""
        return {key[1]: n for key, n in self.tally.counts.items() if key[0] == "fronted_transactions"}

    async def sampled(self) -> None:
        """there.test has sent something that the homeserver took."""
        await self.ask(self.send("sample", TYPING))
        self.homeserver.seen.clear()
        self.tally.counts.clear()


def with_front(
    story: Callable[[Front], Awaitable[None]],
    limits: LimitsConfig | None = None,
    servers: ServerLists | None = None,
    well_known: str | None = None,
) -> None:
    """Play a story, and clean up."""

    def build(reactor: Any) -> Front:
        return Front(reactor, limits or LimitsConfig(), servers or ServerLists(), well_known)

    play(build, story)


def body_of(data: bytes) -> bytes:
    """What stands behind the head."""
    return data.partition(b"\r\n\r\n")[2]


def in_chunks(data: bytes) -> bytes:
    """The same request with its body in one chunk: how long it is was not said before."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])
    return chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
