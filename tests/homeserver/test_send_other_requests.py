import json
from typing import Any

import pytest

from tests.homeserver.played import an_answer
from tests.homeserver.send_front import LIST, OK, OURS, PUSH, Front, with_front
from tests.inbound.servers import HERE

# --- a homeserver without federation --------------------------------------------------------------


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


# --- everything else ------------------------------------------------------------------------------


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
