import pytest
from twisted.internet.defer import Deferred

from fedpresence.config import LimitsConfig, Rate
from fedpresence.errors import StoreError
from fedpresence.homeserver.send import COLLECT_TIMEOUT_S
from tests.homeserver.played import an_answer
from tests.homeserver.send_front import LIST, OK, OURS, PUSH, Front, body_of, in_chunks, with_front
from tests.inbound.servers import THERE, an_invite

# --- limits ---------------------------------------------------------------------------------------


def test_only_the_size_limit_is_enforced() -> None:
    """413, as the homeserver would; announced or not."""

    async def story(front: Front) -> None:
        big = front.send("1", PUSH, padding="x" * 70_000)
        announced = await front.ask(big)
        unannounced = await front.ask(in_chunks(big))

        assert (announced.status, unannounced.status) == (413, 413)
        assert front.homeserver.seen == []

    with_front(story, LimitsConfig(transaction_body=65_536))


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


# --- waits ----------------------------------------------------------------------------------------


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
