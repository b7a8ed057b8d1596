import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from fedpresence.engine.settings import ServerLists
from fedpresence.homeserver.fronting import SAMPLE_MS
from fedpresence.ids import ServerName
from tests.homeserver.played import an_answer
from tests.homeserver.send_front import LIST, OK, OURS, PUSH, TYPING, Front, body_of, in_chunks, with_front
from tests.inbound.servers import HERE, THERE, a_send, a_transaction, an_identity, an_invite

# --- what reaches the homeserver ------------------------------------------------------------------


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


def test_a_chunked_transaction_is_looked_at_like_any_other() -> None:
    """Its length is not said, that is all."""

    async def story(front: Front) -> None:
        data = front.send("1", PUSH, LIST)
        server = await front.ask(in_chunks(data))

        assert (server.status, len(front.received)) == (200, 1)
        assert front.homeserver.seen[0].body == body_of(data)

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


# --- what we answer alone -------------------------------------------------------------------------


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
