# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from fedpresence.admission import BodyBudget
from fedpresence.config import LimitsConfig, Rate
from fedpresence.engine.events import TransactionReceived
from fedpresence.engine.settings import ServerLists
from fedpresence.errors import StoreError
from fedpresence.homeserver.fronting import SAMPLE_MS
from fedpresence.homeserver.relay import Relay, build_pool
from fedpresence.homeserver.send import COLLECT_TIMEOUT_S, Fronting, add_front
from fedpresence.ids import ServerName
from fedpresence.inbound.gate import Gate
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import OriginCheck
from fedpresence.inbound.resource import Federation, add_federation
from fedpresence.inbound.transactions import Transactions
from fedpresence.site import BoundedSite
from fedpresence.web import Unknown
from tests.homeserver.played import Caller, PlayedHomeserver, an_answer, call, until
from tests.in_reactor import in_reactor
from tests.inbound.servers import HERE, THERE, Ring, a_transaction, an_identity, an_invite
from tests.inbound.test_resource import Tally, a_send

OK = b'{"pdus":{"$a":{}}}'  # so that the homeserver's own word can be told from ours
OURS = b'{"pdus":{}}'
PUSH = {
    "edu_type": "m.presence",
    "content": {"push": [{"user_id": "@carol:there.test", "presence": "online"}]},
}
TYPING = {"edu_type": "m.typing", "content": {"room_id": "!r:here.test", "user_id": "@carol:there.test"}}
LIST = {"edu_type": "m.device_list_update", "content": {"user_id": "@carol:there.test"}}


class Front:
    """A federation listener of ours before a played homeserver."""

    def __init__(
        self, reactor: Any, limits: LimitsConfig, servers: ServerLists, well_known: str | None
    ) -> None:
        self.reactor = reactor
        self.homeserver = PlayedHomeserver(reactor)
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
        self.pool: Any = build_pool(reactor)
        self.alone = Unknown()
        add_federation(
            self.alone,
            Federation(
                self.ring.identity, self.gate, self.transactions, clock, self.authentic.append, well_known
            ),
        )
        self.root = Unknown()
        self._origins, self._origin_limits, self._well_known = origins, origin_limits, well_known

    async def start(self) -> None:
        """Both listen."""
        await self.homeserver.start()
        self.relay = Relay(self.reactor, self.homeserver.url, self.reactor, self.pool)
        fronting = Fronting(
            self.relay,
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
        self.site = BoundedSite(self.root, self.limits, self.reactor, self.budget, admit)
        self.listening = self.reactor.listenTCP(0, self.site, interface="127.0.0.1")

    async def stop(self) -> None:
        """Nothing is left, and nothing is held."""
        await self.listening.stopListening()
        closing = self.site.close()
        await self.relay.stop()
        await self.homeserver.stop()
        await closing
        assert self.budget.used == 0

    def _submit(self, event: TransactionReceived) -> Deferred[None]:
        self.received.append(event)
        return self.taking()

    async def call(self, data: bytes) -> Caller:
        """A server sends bytes."""
        caller: Caller = await call(self.reactor, self.listening.getHost().port, data)
        return caller

    async def ask(self, data: bytes) -> Caller:
        """A server sends bytes, and has its answer."""
        caller = await self.call(data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        await self.until(lambda: caller.lost)
        return caller

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it."""
        await until(self.reactor, condition)

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

    async def play(reactor: Any) -> None:
        front = Front(reactor, limits or LimitsConfig(), servers or ServerLists(), well_known)
        await front.start()
        try:
            await story(front)
        finally:
            await front.stop()

    in_reactor(play)


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


# --- what reaches the homeserver ----------------------------------------------------------------


def test_a_mixed_transaction_reaches_both() -> None:
    """Device lists to the homeserver, byte for byte; presence to us, after its 200."""

    async def story(front: Front) -> None:
        data = front.send("1", PUSH, LIST, an_invite(), pdus=[{"type": "m.room.message"}])
        server = await front.ask(data)

        assert (server.status, server.body) == (200, OK)
        (seen,) = front.homeserver.seen
        assert seen.line == b"PUT /_matrix/federation/v1/send/1 HTTP/1.1"
        assert seen.body == body_of(data)
        assert seen.values(b"Authorization")[0].startswith(b"X-Matrix ")
        (event,) = front.received
        assert (event.origin, event.txn_id, len(event.edus)) == (THERE, "1", 2)
        assert front.authentic == [THERE]
        assert front.outcomes() == {"taken": 1}

    with_front(story)


def test_a_transaction_without_presence_costs_us_no_commit() -> None:
    """Nearly all traffic of rooms is that."""

    async def story(front: Front) -> None:
        await front.ask(front.send("1", TYPING, pdus=[{}]))
        await front.ask(front.send("2"))

        assert front.received == []
        assert front.authentic == [THERE, THERE]
        assert len(front.homeserver.seen) == 2
        assert front.outcomes() == {"forwarded": 2}

    with_front(story)


@pytest.mark.parametrize(
    "answer",
    [
        an_answer(b'{"errcode":"M_FORBIDDEN","error":"ACL"}', b"403 Forbidden"),
        an_answer(b'{"errcode":"M_UNKNOWN","error":"Too many concurrent transactions"}', b"429 Too Many"),
        an_answer(b'{"errcode":"M_NOT_FOUND"}', b"404 Not Found"),
        an_answer(b"oops", b"500 Internal Server Error"),
    ],
)
def test_what_the_homeserver_refuses_we_take_nothing_of(answer: bytes) -> None:
    """Z-26: its server lists and blocks are the operator's word. And the origin reads its answer."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: answer
        for number, data in enumerate([front.send("1", PUSH), front.send("2", PUSH, LIST)], 1):
            server = await front.ask(data)
            assert server.status == int(answer.split()[1])
            assert server.body == body_of(answer)
            assert len(front.homeserver.seen) == number
        assert front.received == []

    with_front(story)


def test_a_homeserver_that_is_down_is_a_502_and_nothing_is_taken() -> None:
    """The origin keeps all of it and comes again, as it would without us; then both take it."""

    async def story(front: Front) -> None:
        await front.sampled()
        await front.homeserver.stop()
        data = front.send("1", PUSH, LIST)
        server = await front.ask(data)
        assert (server.status, front.received) == (502, [])

        alone = await front.ask(front.send("2", PUSH))
        assert (alone.status, front.received) == (502, [])  # its last sample was not taken

        await front.homeserver.start()
        server = await front.ask(data)
        assert server.status == 200
        assert [event.txn_id for event in front.received] == ["1"]
        assert [seen.body for seen in front.homeserver.seen] == [body_of(data)]

    with_front(story)


def test_doubts_of_ours_are_no_reason_to_withhold_anything() -> None:
    """Z-25: whatever we think of it, the homeserver judges; and we take nothing."""

    async def story(front: Front) -> None:
        stranger = an_identity(ServerName("stranger.test"))  # publishes no keys
        good = front.send("1", PUSH, LIST)
        doubtful = [
            a_send(stranger, "1", a_transaction(stranger.server_name, PUSH)),
            good.replace(b"sig=", b"sag="),
            good.replace(b"X-Matrix", b"Bearer"),
            good.replace(b'"m.typing"', b'"m.tupping"').replace(b"online", b"onlyne"),
            good.replace(b"Authorization: ", b"X-Nothing: "),
            front.send("2", *[PUSH] * 101),
            front.send("3", PUSH, origin="elsewhere.test"),
            front.send("4", PUSH, origin_server_ts="now"),
            front.send("x" * 300, PUSH),
            good.replace(body_of(good), b"\xff" * len(body_of(good))),
            good.replace(body_of(good), b"[" * len(body_of(good))),
            front.send("%ff", PUSH),
        ]
        for data in doubtful:
            front.homeserver.seen.clear()
            server = await front.ask(data)
            assert (server.status, server.body) == (200, OK)
            assert front.homeserver.seen[0].body == body_of(data)
        assert front.received == []

    with_front(story)


def test_a_denied_server_talks_to_the_homeserver_as_before() -> None:
    """`federation.deny` is about presence: rooms go on."""

    async def story(front: Front) -> None:
        server = await front.ask(front.send("1", PUSH))

        assert (server.body, len(front.homeserver.seen)) == (OK, 1)
        assert front.received == []
        assert front.ring.network.asked == []

    with_front(story, servers=ServerLists(deny=("there.test",)))


def test_only_the_size_limit_is_enforced() -> None:
    """413, as the homeserver would; announced or not."""

    async def story(front: Front) -> None:
        big = front.send("1", PUSH, padding="x" * 70_000)
        announced = await front.ask(big)
        head, _, body = big.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])
        unannounced = await front.ask(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

        assert (announced.status, unannounced.status) == (413, 413)
        assert front.homeserver.seen == []

    with_front(story, LimitsConfig(transaction_body=65_536))


def test_a_chunked_transaction_is_looked_at_like_any_other() -> None:
    """Its length is not said, that is all."""

    async def story(front: Front) -> None:
        head, _, body = front.send("1", PUSH, LIST).partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])
        server = await front.ask(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

        assert (server.status, len(front.received)) == (200, 1)
        assert front.homeserver.seen[0].body == body

    with_front(story)


def test_where_the_budget_is_used_up_transactions_stream_by() -> None:
    """Our memory is bounded, and the homeserver waits for nothing (Z-2, Z-25)."""

    async def story(front: Front) -> None:
        data = front.send("1", PUSH, LIST, padding="x" * 500_000)
        server = await front.ask(data)

        assert (server.status, server.body) == (200, OK)
        assert front.homeserver.seen[0].body == body_of(data)
        assert front.received == []
        assert front.outcomes() == {"unseen": 1}

    with_front(story, LimitsConfig(bodies_in_flight=400_000))


def test_what_comes_unproven_leaves_room_for_everybody_else() -> None:
    """Whoever claims names could else keep our users' and the homeserver's own requests out (Z-2)."""

    async def story(front: Front) -> None:
        assert front.budget.take(None, 250_000)
        await front.ask(front.send("1", PUSH, padding="x" * 60_000))
        front.budget.give_back(None, 250_000)
        await front.ask(front.send("2", PUSH, padding="x" * 60_000))

        assert len(front.homeserver.seen) == 2
        assert [event.txn_id for event in front.received] == ["2"]

    with_front(story, LimitsConfig(bodies_in_flight=600_000))


def test_a_body_that_trickles_is_passed_on_without_a_look() -> None:
    """Nobody holds our memory with a body that never ends; a slow origin is served all the same."""

    async def story(front: Front) -> None:
        data = front.send("1", PUSH, padding="x" * 5_000).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        server = await front.call(data[:-10])
        await front.until(lambda: front.budget.used > 0)
        front.ring.clock.advance(COLLECT_TIMEOUT_S)
        await front.until(lambda: bool(front.homeserver.connections))

        assert front.budget.used == 0
        server.send(data[-10:])
        await front.until(lambda: server.lost)
        assert (server.status, server.body) == (200, OK)
        assert front.homeserver.seen[0].body == body_of(data)
        assert (front.received, front.outcomes()) == ([], {"unseen": 1})

    with_front(story)


def test_our_rate_limits_are_ours_alone() -> None:
    """An origin that sends too much presence gets no 429 of ours: its messages are in there too."""

    async def story(front: Front) -> None:
        for number in range(5):
            server = await front.ask(front.send(str(number), PUSH, LIST))
            assert (server.status, server.body) == (200, OK)
        assert len(front.homeserver.seen) == 5
        assert len(front.received) < 5

    with_front(story, LimitsConfig(origin_bytes=Rate(1, 500)))


@pytest.mark.parametrize("error", [StoreError("disk full"), ZeroDivisionError()])
def test_a_failure_of_ours_is_not_the_origins_to_see(error: Exception) -> None:
    """Z-25: the homeserver has taken it; alone or not, its answer counts."""

    async def story(front: Front) -> None:
        await front.sampled()

        def fail() -> Deferred[None]:
            failed: Deferred[None] = Deferred()
            failed.errback(error)
            return failed

        front.taking = fail
        for number, data in enumerate([front.send("1", PUSH, LIST), front.send("2", PUSH)], 1):
            server = await front.ask(data)
            assert (server.status, server.body) == (200, OK)
            assert len(front.homeserver.seen) == number

    with_front(story)


def test_a_key_fetch_delays_no_transaction() -> None:
    """It is forwarded at once and answered; the presence in it is taken when the key is here."""

    async def story(front: Front) -> None:
        front.ring.network.slow = True
        server = await front.ask(front.send("1", PUSH, LIST))
        assert (server.status, front.received) == (200, [])
        assert front.budget.used > 0  # the body is kept meanwhile, and counted

        (pending,) = front.ring.network.pending
        front.ring.network.answer(THERE).addCallback(pending.callback)
        await front.until(lambda: len(front.received) == 1)
        await front.until(lambda: front.budget.used == 0)

    with_front(story)


def test_a_commit_that_takes_long_delays_no_answer() -> None:
    """The disk is busy: the origin's next transaction must not wait for it."""

    async def story(front: Front) -> None:
        commit: Deferred[None] = Deferred()
        front.taking = lambda: commit
        server = await front.call(front.send("1", an_invite(), LIST))
        await front.until(lambda: len(front.received) == 1)
        assert server.received == b""  # for a moment: a 200 after the commit is worth more

        front.ring.passes(250)
        await front.until(lambda: server.received.endswith(OK))
        commit.callback(None)
        server.leave()
        await front.until(lambda: front.outcomes() == {"taken": 1})

    with_front(story)


def test_pushes_delay_no_answer_at_all() -> None:
    """A push is written behind anyhow: the next message of the origin must not wait for our disk."""

    async def story(front: Front) -> None:
        commit: Deferred[None] = Deferred()
        front.taking = lambda: commit
        mixed = await front.ask(front.send("1", PUSH, LIST))
        alone = await front.ask(front.send("2", PUSH))
        assert (mixed.body, alone.body) == (OK, OURS)

        commit.callback(None)
        await front.until(lambda: front.outcomes() == {"taken": 1, "answered": 1})

    with_front(story)


def test_an_origin_that_does_not_wait_changes_nothing() -> None:
    """It hears no answer and sends again; the homeserver and we know the transaction by its id."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: None
        server = await front.call(front.send("1", PUSH, LIST))
        await front.until(lambda: len(front.homeserver.seen) == 1)
        server.leave()
        await front.until(lambda: front.site.connections == 0)
        front.homeserver.connections[0].write(an_answer(OK))

        await front.until(lambda: len(front.received) == 1)

    with_front(story)


# --- what we answer alone -----------------------------------------------------------------------


def test_presence_alone_is_answered_here_once_the_homeserver_took_a_sample() -> None:
    """H:6.2, step 5: this is the work taken off it."""

    async def story(front: Front) -> None:
        first = await front.ask(front.send("1", PUSH))
        second = await front.ask(front.send("2", PUSH, an_invite()))

        assert (first.body, second.body) == (OK, OURS)
        assert len(front.homeserver.seen) == 1
        assert [event.txn_id for event in front.received] == ["1", "2"]
        assert front.outcomes() == {"taken": 1, "answered": 1}

        front.ring.passes(SAMPLE_MS)
        third = await front.ask(front.send("3", PUSH))
        assert (third.body, len(front.homeserver.seen)) == (OK, 2)

    with_front(story)


def test_what_is_answered_here_is_committed_first() -> None:
    """F:R-7: nobody else has it."""

    async def story(front: Front) -> None:
        await front.sampled()
        commit: Deferred[None] = Deferred()
        front.taking = lambda: commit
        server = await front.call(front.send("1", an_invite()))
        await front.until(lambda: len(front.received) == 1)
        front.ring.passes(1000)
        assert server.received == b""

        commit.callback(None)
        await front.until(lambda: server.received.endswith(OURS))
        assert front.homeserver.seen == []

    with_front(story)


def test_nobody_unproven_is_answered_here() -> None:
    """A forged name must not make us say 200 for the homeserver."""

    async def story(front: Front) -> None:
        await front.sampled()
        forger = an_identity(THERE, "1")
        front.homeserver.answers = lambda _: an_answer(b'{"errcode":"M_UNAUTHORIZED"}', b"401 Unauthorized")
        server = await front.ask(a_send(forger, "1", a_transaction(THERE, PUSH)))

        assert (server.status, len(front.homeserver.seen), front.received) == (401, 1, [])
        front.homeserver.answers = lambda _: an_answer(OK)
        assert (await front.ask(front.send("2", PUSH))).body == OURS  # nor does a forgery take a sample back

    with_front(story)


def test_our_own_transaction_is_recognised_and_goes_no_further() -> None:
    """Z-23: it came back to this process, and the homeserver has no use for it."""

    async def story(front: Front) -> None:
        server = await front.ask(a_send(front.ring.identity, "fpself1", a_transaction(HERE)))

        assert (server.status, front.authentic, front.homeserver.seen) == (403, [HERE], [])

    with_front(story)


# --- a homeserver without federation ------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"errcode":"M_UNRECOGNIZED","error":"no"}', b"<html>not here</html>"])
def test_where_the_homeserver_has_no_federation_we_answer_as_if_alone(body: bytes) -> None:
    """A server that knows tokens and nothing else takes no transactions; and has no keys to show."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: an_answer(body, b"404 Not Found")
        server = await front.ask(front.send("1", PUSH))
        forged = await front.ask(front.send("2", PUSH).replace(b"online", b"onlyne"))
        keys = await front.ask(b"GET /_matrix/key/v2/server HTTP/1.1\r\nHost: x\r\n\r\n")
        other = await front.ask(b"GET /_matrix/federation/v1/event/x HTTP/1.1\r\nHost: x\r\n\r\n")

        assert (server.status, server.body) == (200, OURS)
        assert len(front.received) == 1
        assert forged.status == 401
        assert json.loads(keys.body)["server_name"] == HERE
        assert (other.status, other.body) == (404, body)

    with_front(story)


@pytest.mark.parametrize("body", [b'{"errcode":"M_UNRECOGNIZED","error":"no"}', b"404 page not found"])
@pytest.mark.parametrize(
    "more", [{"pdus": [{"type": "m.room.message"}]}, {"edus": [PUSH, LIST]}, {"org.new.section": 1}]
)
def test_what_is_the_homeservers_is_never_answered_for_it(body: bytes, more: dict[str, Any]) -> None:
    """A proxy speaks for one that restarts, or a listener has no federation: all would be lost."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: an_answer(body, b"404 Not Found")
        server = await front.ask(front.send("1", PUSH, **more))

        assert (server.status, server.body) == (404, body)
        assert front.received == []

    with_front(story)


# --- everything else ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"GET /_matrix/key/v2/server",
        b"POST /_matrix/key/v2/query",
        b"GET /_matrix/federation/v1/version",
        b"GET /_matrix/federation/v1/make_join/!r%3Ahere.test/@u:there.test?ver=11",
        b"PUT /_matrix/federation/v2/send_join/!r/$x",
        b"PUT /_matrix/federation/v1/send/",
        b"PUT /_matrix/federation/v1/send/a/b",
        b"GET /_matrix/federation/v1/send/1",
        b"GET /_matrix/media/v3/download/here.test/x",
        b"GET /.well-known/matrix/server",
    ],
)
def test_everything_else_of_federation_is_the_homeservers(line: bytes) -> None:
    """And it is asked with the very bytes."""

    async def story(front: Front) -> None:
        server = await front.ask(line + b" HTTP/1.1\r\nHost: here.test\r\nContent-Length: 2\r\n\r\n{}")

        assert (server.status, server.body) == (200, OK)
        assert front.homeserver.seen[0].line == line + b" HTTP/1.1"

    with_front(story)


def test_what_is_not_federations_is_not_passed() -> None:
    """A port for other servers must not open the admin API of the homeserver."""

    async def story(front: Front) -> None:
        for path in (b"/", b"/_synapse/admin/v1/x", b"/_matrix/client/v3/sync", b"/_matrix/app/v1/ping"):
            server = await front.ask(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert server.status == 404
        assert front.homeserver.seen == []

    with_front(story)


def test_the_well_known_file_is_ours_where_it_is_configured() -> None:
    """`federation.serve_well_known`; the client's stays the homeserver's."""

    async def story(front: Front) -> None:
        ours = await front.ask(b"GET /.well-known/matrix/server HTTP/1.1\r\nHost: x\r\n\r\n")
        theirs = await front.ask(b"GET /.well-known/matrix/client HTTP/1.1\r\nHost: x\r\n\r\n")

        assert json.loads(ours.body) == {"m.server": "matrix.here.test:443"}
        assert theirs.body == OK

    with_front(story, well_known="matrix.here.test:443")


def test_a_slow_homeserver_slows_nobody_who_is_answered_here() -> None:
    """Thirty transactions wait there; presence goes on."""

    async def story(front: Front) -> None:
        await front.sampled()
        front.homeserver.answers = lambda _: None
        waiting = [await front.call(front.send(f"slow{n}", LIST)) for n in range(30)]
        await front.until(lambda: len(front.homeserver.seen) == 30)
        server = await front.ask(front.send("quick", PUSH))
        for each in waiting:
            each.leave()

        assert server.body == OURS

    with_front(story)


SPOILT = st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=3))
EDUS = st.lists(st.sampled_from([PUSH, TYPING, LIST, an_invite(), {}, None, 7]), max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(EDUS, st.booleans(), st.none() | SPOILT), min_size=1, max_size=6))
def test_whatever_is_sent_the_homeserver_has_it_or_it_was_presence_alone(
    sent: list[tuple[list[object], bool, tuple[int, bytes] | None]],
) -> None:
    """The one thing that must never happen is that something else is lost."""

    async def story(front: Front) -> None:
        await front.sampled()
        for number, (edus, with_pdu, spoilt) in enumerate(sent):
            front.homeserver.seen.clear()
            data = front.send(f"t{number}", *edus, pdus=[{"a": 1}] if with_pdu else [])
            head, _, body = data.partition(b"\r\n\r\n")
            if spoilt is not None:
                at = spoilt[0] % len(body)
                body = body[:at] + spoilt[1] + body[at + len(spoilt[1]) :]
                body = body[: len(data) - len(head) - 4].ljust(len(data) - len(head) - 4)
            server = await front.ask(head + b"\r\n\r\n" + body)
            assert server.status == 200
            kinds = {edu.get("edu_type") for edu in edus if isinstance(edu, dict)}
            if server.body == OURS:
                assert json.loads(body) == json.loads(body_of(data))
                assert not with_pdu and edus and kinds <= {"m.presence", "m.presence_invite"}
                assert front.homeserver.seen == []
            else:
                (seen,) = front.homeserver.seen
                assert seen.body == body

    with_front(story)
