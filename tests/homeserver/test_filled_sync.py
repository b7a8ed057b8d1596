import gzip
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from twisted.web.resource import Resource

from fedpresence.admission import BodyBudget
from fedpresence.clients.resource import add_clients_beside
from fedpresence.config import LimitsConfig
from fedpresence.engine.events import StreamClosed
from fedpresence.homeserver.relay import PassThrough, Relay
from fedpresence.site import BoundedSite
from tests.clients.world import ALICE, BOB, ONLINE, PHONE, World
from tests.homeserver.listener import Listener, play
from tests.homeserver.played import Caller, an_answer

ROOM = b'{"timeline":{"events":[{"content":{"body":"\\"}{[","n":1.50},"type":"m.room.message"}]}}'


class Beside(Listener):
    """A world's client API, and the homeserver behind it."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.world = World()

    def serve(self, relay: Relay) -> BoundedSite:
        """Our syncs; all else is the homeserver's."""
        root = Resource()
        parts = replace(self.world.parts, clock=self.reactor)
        add_clients_beside(root, parts, relay, lambda: PassThrough(relay))
        return BoundedSite(root, LimitsConfig(), self.reactor, BodyBudget(4096))

    async def sync(self, query: bytes = b"", *headers: bytes, version: bytes = b"1.0") -> Caller:
        """A sync on its way; with HTTP/1.0 the answer is not in chunks."""
        head = [
            b"GET /_matrix/client/v3/sync%b HTTP/%b" % (query, version),
            b"Host: here.test",
            b"Authorization: Bearer alice-phone",
            b"Connection: close",
            *headers,
        ]
        return await self.call(b"\r\n".join([*head, b"", b""]))

    async def answer(self, query: bytes = b"", *headers: bytes) -> Caller:
        """The whole answer to one."""
        caller = await self.sync(query, *headers)
        await self.lost(caller)
        return caller

    @property
    def polls(self) -> int:
        """Requests that reached the homeserver."""
        return len(self.homeserver.seen)


def with_both(story: Callable[[Beside], Awaitable[None]]) -> None:
    """Play a story, and clean up."""
    play(Beside, story)


def test_presence_is_in_an_answer_whose_other_bytes_are_the_homeservers() -> None:
    """Headers too; the length alone is another."""
    rooms = b'"rooms":{"join":{"!r":%b}}' % ROOM

    async def story(beside: Beside) -> None:
        beside.homeserver.answers = lambda _: an_answer(
            b'{"next_batch":"h1",%b}' % rooms, b"200 OK", b"Cache-Control: no-store"
        )
        caller = await beside.answer(b"?timeout=0", b"Accept-Encoding: br")

        assert caller.status == 200
        assert b"Cache-Control: no-store" in caller.head
        assert b"content-length" not in caller.head.lower()
        assert caller.body.startswith(b'{"next_batch":"h1",%b,"presence":' % rooms)
        assert json.loads(caller.body)["presence"]["events"][0]["sender"] == ALICE
        [seen] = beside.homeserver.seen
        assert seen.line == b"GET /_matrix/client/v3/sync?timeout=0 HTTP/1.1"
        assert seen.values(b"Accept-Encoding") == [b"identity"]

    with_both(story)


def test_a_compressed_answer_stays_compressed() -> None:
    """What the homeserver packs for the client reaches it packed."""

    async def story(beside: Beside) -> None:
        packed = gzip.compress(b'{"next_batch":"h1","rooms":%b}' % ROOM)
        beside.homeserver.answers = lambda _: an_answer(packed, b"200 OK", b"Content-Encoding: gzip")
        caller = await beside.answer(b"", b"Accept-Encoding: gzip, deflate, br")

        assert b"Content-Encoding: gzip" in caller.head
        assert json.loads(gzip.decompress(caller.body))["presence"]["events"][0]["sender"] == ALICE
        assert beside.homeserver.seen[0].values(b"Accept-Encoding") == [b"gzip"]

    with_both(story)


@pytest.mark.parametrize(
    ("accepted", "asked_for"),
    [
        (b"br;q=1.0, GZIP;q=0.50", b"gzip"),
        (b"gzip; q=0, identity", b"identity"),
        (b"gzip;q=0.000", b"identity"),
        (b"x-gzip, *", b"identity"),
    ],
)
def test_gzip_is_asked_for_only_where_the_client_takes_it(accepted: bytes, asked_for: bytes) -> None:
    """What comes goes on as it is compressed, so the client must be able to read it."""

    async def story(beside: Beside) -> None:
        beside.homeserver.answers = lambda _: an_answer(b'{"next_batch":"h1"}')
        await beside.answer(b"", b"Accept-Encoding: " + accepted)

        assert beside.homeserver.seen[0].values(b"Accept-Encoding") == [asked_for]

    with_both(story)


def test_megabytes_pass_piece_by_piece() -> None:
    """An initial sync, with presence behind its last room."""
    rooms = b",".join(b'"!r%d":%b' % (n, ROOM) for n in range(60_000))

    async def story(beside: Beside) -> None:
        body = b'{"next_batch":"h1","rooms":{"join":{%b}}}' % rooms
        beside.homeserver.answers = lambda _: an_answer(body)
        caller = await beside.answer()

        assert len(body) > 5_000_000
        assert caller.body[: len(body) - 1] == body[:-1]
        assert caller.body[len(body) - 1 :].startswith(b',"presence":{"events":[')

    with_both(story)


def test_a_poll_that_ends_early_ends_at_the_homeserver_too() -> None:
    """It must not hold thousands of requests that nobody waits for."""

    async def story(beside: Beside) -> None:
        beside.homeserver.answers = lambda _: an_answer(b'{"next_batch":"h1"}')
        await beside.answer()
        quiet = an_answer(b'{"next_batch":"h1","device_one_time_keys_count":{"signed_curve25519":50}}')
        beside.homeserver.answers = lambda seen: quiet if b"timeout=0&" in seen.line else None
        caller = await beside.sync(b"?since=h1&timeout=30000&set_presence=online")
        await beside.until(lambda: beside.polls == 2)
        waits = beside.homeserver.connections[-1]

        beside.world.tell(BOB, ONLINE, ALICE)
        await beside.lost(caller)

        body = json.loads(caller.body)
        assert (body["next_batch"], body["presence"]["events"][0]["sender"]) == ("h1", BOB)
        assert body["device_one_time_keys_count"] == {"signed_curve25519": 50}
        await beside.until(lambda: waits.lost)

    with_both(story)


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    """Neither at the homeserver nor in the engine."""

    async def story(beside: Beside) -> None:
        beside.homeserver.answers = lambda _: None
        caller = await beside.sync(b"?since=h1&timeout=30000&set_presence=online")
        await beside.until(lambda: beside.polls == 1)

        caller.leave()

        await beside.until(lambda: beside.homeserver.connections[0].lost)
        assert beside.world.engine.events[-1] == StreamClosed(ALICE, PHONE)

    with_both(story)


def test_an_answer_that_breaks_off_breaks_off_for_the_client() -> None:
    """It must not take half of an answer, closed by us, for a whole one."""

    async def story(beside: Beside) -> None:
        whole = an_answer(b'{"next_batch":"h1","rooms":%b}' % ROOM)
        beside.homeserver.answers = lambda _: whole[:-20]
        beside.homeserver.hangs_up_after_answering = True
        caller = await beside.sync(version=b"1.1")
        await beside.lost(caller)

        assert b"presence" not in caller.received
        assert not caller.received.endswith(b"0\r\n\r\n")

    with_both(story)


def test_a_homeserver_that_dies_in_a_poll_is_a_502_and_is_found_again() -> None:
    """A restart of the homeserver, as a client sees it."""

    async def story(beside: Beside) -> None:
        beside.homeserver.answers = lambda _: None
        caller = await beside.sync(b"?since=h1&timeout=30000&set_presence=offline")
        await beside.until(lambda: beside.polls == 1)
        await beside.homeserver.stop()
        await beside.lost(caller)
        refused = await beside.answer()
        await beside.homeserver.start()
        beside.homeserver.answers = lambda _: an_answer(b'{"next_batch":"h1"}')

        assert (caller.status, refused.status) == (502, 502)
        assert b"Access-Control-Allow-Origin: *" in refused.head
        assert (await beside.answer()).status == 200

    with_both(story)
