from typing import Any

from tests.homeserver.played import an_answer
from tests.homeserver.relay_front import Front, a_request, with_front

MEGABYTE = 1_048_576


def test_fifty_megabytes_go_up_and_are_never_here() -> None:
    """Media are larger than any budget of ours; a slow homeserver slows the client, not our memory."""

    async def story(front: Front) -> None:
        size = 50 * MEGABYTE
        client = await front.call(a_request(b"POST", b"/_matrix/media", b"Content-Length: %d" % size))
        await front.until(lambda: bool(front.homeserver.connections))
        front.homeserver.counting = True
        (conversation,) = front.homeserver.connections
        upstream: Any = conversation.transport
        upstream.pauseProducing()
        writing: Any = client.transport
        for _ in range(50):
            writing.write(b"x" * MEGABYTE)
        channel = next(iter(front.site._channels))
        await front.until(lambda: "body" in channel._holds)
        waiting = _unread(writing)
        upstream.resumeProducing()
        await front.until(lambda: front.homeserver.counted >= size)
        conversation.write(an_answer())
        await front.until(lambda: client.lost)

        assert waiting > size - 20 * MEGABYTE  # the rest is in the kernel's buffers
        assert client.received.endswith(b"{}")
        assert front.budget.used == 0

    with_front(story)


def test_an_upload_whose_end_was_held_up_holds_up_nothing_after_it() -> None:
    """The last piece filled the way to the homeserver: the connection goes on all the same."""

    async def story(front: Front) -> None:
        head = b"POST /_matrix/media HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"
        client = await front.call(head)
        await front.until(lambda: bool(front.homeserver.connections))
        (conversation,) = front.homeserver.connections
        upstream: Any = conversation.transport
        upstream.pauseProducing()
        channel = next(iter(front.site._channels))
        network: Any = channel.transport
        network.bufferSize = 1_000_000  # so that the rest of the body comes in one piece
        client.send(b"x" * 200_000)
        await front.until(lambda: channel._requests[0].is_complete)
        upstream.resumeProducing()
        await front.until(lambda: b"{}" in client.received)

        assert not channel._holds
        client.leave()

    with_front(story)


def test_an_upload_behind_an_offer_to_upgrade_goes_up_as_it_is() -> None:
    """Java's client offers HTTP/2 with each request, bodies and all; the homeserver never hears of it."""

    async def story(front: Front) -> None:
        upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAA")
        body = a_request(b"GET", b"/_matrix/inner")
        client = await front.ask(a_request(b"POST", b"/_matrix/x", *upgrade, body=body))

        assert client.status == 200
        (seen,) = front.homeserver.seen
        assert seen.body == body
        assert b"h2c" not in seen.head

    with_front(story)


def test_a_clean_stop_lets_an_upload_come_to_its_end() -> None:
    """The homeserver has most of it already."""

    async def story(front: Front) -> None:
        client = await front.call(a_request(b"PUT", b"/_matrix/x", b"Content-Length: 10") + b"first")
        await front.until(lambda: bool(front.homeserver.connections))
        closing = front.site.close()
        client.send(b"-last")
        await closing
        await front.until(lambda: client.lost)

        assert front.homeserver.seen[0].body == b"first-last"
        assert client.received.endswith(b"{}")

    with_front(story)


def test_fifty_megabytes_come_down_at_the_pace_of_the_client() -> None:
    """An initial sync over a bad line must not pile up here."""

    async def story(front: Front) -> None:
        size = 50 * MEGABYTE
        front.homeserver.answers = lambda _: None
        client = await front.call(a_request())
        client.keeps = False
        await front.until(lambda: bool(front.homeserver.seen))
        reading: Any = client.transport
        reading.pauseProducing()
        (conversation,) = front.homeserver.connections
        conversation.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(50):
            conversation.write(b"x" * MEGABYTE)
        channel = next(iter(front.site._channels))
        await front.until(lambda: "full" in channel._holds)
        waiting = _unread(conversation.transport)
        reading.resumeProducing()
        await front.until(lambda: client.lost)

        assert waiting > size - 20 * MEGABYTE
        assert client.count > size

    with_front(story)


def test_a_client_that_goes_away_ends_its_request_at_the_homeserver() -> None:
    """A long poll of a phone that changed its network would be held for half a minute."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: None
        client = await front.call(a_request())
        await front.until(lambda: bool(front.homeserver.seen))
        client.leave()
        await front.until(lambda: front.homeserver.connections[0].lost)

    with_front(story)


def test_an_upload_that_breaks_off_breaks_off_at_the_homeserver() -> None:
    """Half a file must not look like a whole one."""

    async def story(front: Front) -> None:
        for framing in (b"Content-Length: 100", b"Transfer-Encoding: chunked"):
            client = await front.call(a_request(b"POST", b"/_matrix/x", framing) + b"5\r\nhello\r\n")
            await front.until(lambda: any(not each.lost for each in front.homeserver.connections))
            client.leave()
            await front.until(lambda: all(each.lost for each in front.homeserver.connections))
        assert front.homeserver.seen == []

    with_front(story)


def test_an_upload_that_stops_being_http_breaks_off_at_the_homeserver() -> None:
    """Where it ends nobody can say: the client is told, and the homeserver never takes it for whole."""

    async def story(front: Front) -> None:
        for later in (b"zz\r\n", b"5\r\nhelloo\r\n", b"0\r\nX: " + b"x" * 40_000):
            chunked = a_request(b"POST", b"/_matrix/x", b"Transfer-Encoding: chunked")
            client = await front.call(chunked + b"5\r\nhello\r\n")
            await front.until(lambda: any(not each.lost for each in front.homeserver.connections))
            client.send(later)
            await front.lost(client)
            await front.until(lambda: all(each.lost for each in front.homeserver.connections))
            assert client.status == 400
            assert b"Connection: close" in client.head
        assert front.homeserver.seen == []

    with_front(story)


def test_an_answer_that_breaks_off_breaks_off_for_the_client() -> None:
    """Half a JSON text with a proper end would be a wrong answer."""

    async def story(front: Front) -> None:
        front.homeserver.hangs_up_after_answering = True
        whole = an_answer(b"x" * 100)
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        for data in (whole[:-50], chunked):
            front.homeserver.answers = lambda _, data=data: data  # type: ignore[misc]
            client = await front.ask(a_request())
            assert not client.received.endswith((b"x" * 100, b"0\r\n\r\n"))

    with_front(story)


def _unread(transport: Any) -> int:
    """Bytes that wait in a transport's own buffer."""
    waiting: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return waiting
