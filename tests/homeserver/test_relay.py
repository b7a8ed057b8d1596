import gzip
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.web.http_headers import Headers

from fedpresence.homeserver.relay import PassThrough, Relay, _leads_elsewhere, answered, build_pool
from tests.homeserver.played import an_answer
from tests.homeserver.relay_front import Front, a_request, with_front


def test_a_request_reaches_the_homeserver_as_it_came() -> None:
    """The signature covers path, query and body, and each `Authorization` header holds one (H:6.2)."""

    async def story(front: Front) -> None:
        uri = b"/_matrix/federation//v1/send/%41%2f%zz;p?a=%20+b&&c#d"
        signatures = [b'X-Matrix origin="a",key="ed25519:1",sig="x"', b'X-Matrix origin="a",sig="y"']
        headers = [b"Authorization: " + value for value in signatures]
        body = b'{"\\u0061" : 1.0,\r\n "b":\xff}'
        client = await front.ask(
            a_request(b"PUT", uri, *headers, b"Content-Type: Application/JSON", b"x-odd: \xff\t", body=body)
        )

        (seen,) = front.homeserver.seen
        assert client.status == 200
        assert seen.line == b"PUT " + uri + b" HTTP/1.1"
        assert seen.values(b"Authorization") == signatures
        assert seen.values(b"Content-Type") == [b"Application/JSON"]
        assert seen.values(b"Host") == [b"here.test"]
        assert seen.values(b"x-odd") == [b"\xff"]
        assert seen.values(b"Content-Length") == [b"%d" % len(body)]
        assert seen.body == body

    with_front(story)


def test_an_answer_reaches_the_client_as_it_came() -> None:
    """Status and its words, repeated headers, a body that is compressed: nothing is ours."""

    async def story(front: Front) -> None:
        body = gzip.compress(b'{"next_batch": "s1"}')
        front.homeserver.answers = lambda _: an_answer(
            body,
            b"418 I'm a teapot",
            b"Content-Encoding: gzip",
            b"Set-Cookie: a=1",
            b"Set-Cookie: b=2",
            b"Server: Synapse/1",
        )
        client = await front.ask(a_request(b"GET", b"/_matrix/x", b"Accept-Encoding: gzip"))

        assert client.head.startswith(b"HTTP/1.1 418 I'm a teapot\r\n")
        assert client.head.count(b"Set-Cookie: ") == 2
        assert b"Content-Encoding: gzip" in client.head
        assert b"Server: Synapse/1" in client.head
        assert b"Date:" not in client.head
        assert client.body == body
        assert front.homeserver.seen[0].values(b"Accept-Encoding") == [b"gzip"]

    with_front(story)


def test_what_belongs_to_a_connection_stays_there() -> None:
    """RFC 9110, 7.6.1: these say nothing to the next one, and some would break the framing."""

    async def story(front: Front) -> None:
        headers = [b"TE: trailers", b"Upgrade: h2c", b"Keep-Alive: 5", b"X-Mine: 1", b"X-Kept: 2"]
        data = a_request(b"GET", b"/_matrix/x", *headers).replace(
            b"Connection: close", b"Connection: close, X-Mine"
        )
        data = data.replace(b"close, X-Mine", b"X-Mine, Keep-Alive")
        client = await front.call(data)
        await front.until(lambda: client.body == b"{}")

        (seen,) = front.homeserver.seen
        for name in (b"TE", b"Upgrade", b"Keep-Alive", b"X-Mine", b"Connection"):
            assert seen.values(name) == []
        assert seen.values(b"X-Kept") == [b"2"]

    with_front(story)


def test_the_homeserver_learns_who_asks() -> None:
    """Its rate limits go by address: what the proxy before us wrote stays, and we add whom we see."""

    async def story(front: Front) -> None:
        await front.ask(
            a_request(b"GET", b"/_matrix/x", b"X-Forwarded-For: 192.0.2.7", b"X-Forwarded-Proto: https")
        )

        (seen,) = front.homeserver.seen
        assert seen.values(b"X-Forwarded-For") == [b"192.0.2.7, 127.0.0.1"]
        assert seen.values(b"X-Forwarded-Proto") == [b"https"]

    with_front(story)


@pytest.mark.parametrize(
    ("peer", "claimed", "told"),
    [
        ("8.8.8.8", None, b"8.8.8.8"),
        ("8.8.8.8", b"192.0.2.7", b"8.8.8.8"),  # whoever claims that is no proxy of ours
        ("2001:4860::1", b"192.0.2.7", b"2001:4860::1"),
        ("10.1.2.3", b"192.0.2.7", b"192.0.2.7, 10.1.2.3"),
        ("::ffff:10.1.2.3", b"192.0.2.7, 10.9.9.9", b"192.0.2.7, 10.9.9.9, ::ffff:10.1.2.3"),
        (None, b"192.0.2.7", b"192.0.2.7"),  # a Unix socket
    ],
)
def test_only_a_proxy_of_ours_is_believed_about_others(
    peer: str | None, claimed: bytes | None, told: bytes
) -> None:
    """Synapse takes the first entry for the client's own address, and limits by it."""
    request: Any = SimpleNamespace(
        method=b"GET",
        uri=b"/",
        requestHeaders=Headers({b"X-Forwarded-Proto": [b"gopher"]}),
        getClientAddress=lambda: SimpleNamespace(host=peer) if peer else object(),
        isSecure=lambda: True,
    )
    if claimed is not None:
        request.requestHeaders.setRawHeaders(b"X-Forwarded-For", [claimed])
    relay = Relay(MemoryReactorClock(), "http://127.0.0.1:8008/base", Clock(), build_pool(None))

    head = relay._head(request, b"/", ())

    assert b"\r\nX-Forwarded-For: " + told + b"\r\n" in head
    is_proxy = peer is None or "10.1.2.3" in peer
    assert (b"X-Forwarded-Proto: gopher" in head) == is_proxy
    assert head.startswith(b"GET /base/ HTTP/1.1\r\n") and b"\r\nHost: 127.0.0.1:8008\r\n" in head


def test_requests_in_a_row_are_answered_in_a_row() -> None:
    """Bodies that stream end where they end: what is behind is the next request."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda seen: an_answer(seen.body)
        requests = [a_request(b"PUT", b"/_matrix/x", body=b"body %d" % n) for n in range(5)]
        client = await front.ask(
            b"".join(each.replace(b"close", b"keep-alive") for each in requests[:-1]) + requests[-1]
        )

        assert [seen.body for seen in front.homeserver.seen] == [b"body %d" % n for n in range(5)]
        places = [client.received.index(b"body %d" % n) for n in range(5)]
        assert places == sorted(places)

    with_front(story)


def test_a_chunked_body_and_a_chunked_answer_go_through() -> None:
    """Their length is not known before their end."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        )
        client = await front.ask(
            a_request(b"POST", b"/_matrix/x", b"Transfer-Encoding: chunked")
            + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        )

        assert front.homeserver.seen[0].body == b"hello world"
        assert b"Transfer-Encoding: chunked" in client.head
        assert client.body == b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"

    with_front(story)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_an_answer_without_a_body_has_none(status: bytes) -> None:
    """And the next request on the same connection is answered."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n"
        two = a_request().replace(b"close", b"keep-alive") + a_request()
        client = await front.ask(two)

        assert client.received.count(b"HTTP/1.1 " + status) == 2
        assert b"Content-Type" not in client.received and b"chunked" not in client.received
        assert client.body.endswith(b"\r\n\r\n")

    with_front(story)


def test_head_and_options_go_through() -> None:
    """Web pages ask with OPTIONS first: the homeserver's word counts."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda seen: (
            b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX-A: b\r\n\r\n"
            if seen.line.startswith(b"HEAD")
            else an_answer(b"", b"204 No Content", b"Access-Control-Allow-Origin: *")
        )
        head = await front.ask(a_request(b"HEAD"))
        options = await front.ask(a_request(b"OPTIONS"))

        assert (head.status, head.body, options.status) == (200, b"", 204)
        assert b"X-A: b" in head.head
        assert b"Content-Length: 7" in head.head  # how long a GET's would be: media players ask
        assert b"Access-Control-Allow-Origin: *" in options.head

    with_front(story)


def test_words_between_are_not_the_answer() -> None:
    """A `103 Early Hints`, or a `100 Continue` that nobody asked for."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + an_answer(b"[1]")
        )
        client = await front.ask(a_request())

        assert (client.status, client.body) == (200, b"[1]")

    with_front(story)


def test_a_client_that_waits_for_a_continue_gets_one() -> None:
    """And the homeserver is not asked for it once more."""

    async def story(front: Front) -> None:
        head, _, _ = a_request(b"PUT", b"/_matrix/x", b"Expect: 100-continue", body=b"hello").rpartition(
            b"hello"
        )
        client = await front.call(head)
        await front.until(lambda: client.received == b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(b"hello")
        await front.until(lambda: client.lost)

        (seen,) = front.homeserver.seen
        assert (seen.body, seen.values(b"Expect")) == (b"hello", [])
        assert client.received.endswith(b"{}")

    with_front(story)


@pytest.mark.parametrize("value", [b"keep-alive, ", b"a b", b'"x"', b"close;q=1", b","])
def test_a_connection_header_that_makes_no_sense_costs_no_request(value: bytes) -> None:
    """It names nothing that could be left out."""

    async def story(front: Front) -> None:
        client = await front.call(b"GET /_matrix/x HTTP/1.0\r\nHost: x\r\nConnection: %b\r\n\r\n" % value)
        await front.until(lambda: client.lost)

        assert client.status == 200
        assert front.homeserver.seen[0].values(b"Connection") == []

    with_front(story)


@pytest.mark.parametrize(
    "path",
    [
        b"/_matrix/../_synapse/admin/v1/x",
        b"/_matrix/%2e%2E/_synapse/admin/v1/x",
        b"/_matrix/client/..%2f..%2F_synapse/admin",
        b"/_matrix/client/..\\..\\_synapse/admin",
        b"/_matrix/x/..",
        b"/_matrix/./x",
    ],
)
def test_no_path_leads_out_of_what_is_passed_through(path: bytes) -> None:
    """A proxy before the homeserver would resolve it, to what is for the operator alone."""

    async def story(front: Front) -> None:
        client = await front.ask(a_request(b"GET", path))
        fine = await front.ask(a_request(b"GET", b"/_matrix/..x/...?a=../.."))

        assert (client.status, fine.status) == (404, 200)
        assert [seen.line for seen in front.homeserver.seen] == [b"GET /_matrix/..x/...?a=../.. HTTP/1.1"]

    with_front(story)


def test_an_answer_can_be_looked_at_before_it_is_given_back() -> None:
    """What `/send` and `/sync` need: status, headers, a body to a limit, and a request with changes."""

    async def story(front: Front) -> None:
        found: list[object] = []

        class Looking(PassThrough):
            def render(self, request: Any) -> int:
                async def look() -> None:
                    relayed = await front.relay.forward(
                        request, extra_headers=[(b"Accept-Encoding", b"identity")], uri=b"/other"
                    )
                    found.extend([relayed.status, await front.relay.read(relayed, 5)])
                    relayed = await front.relay.forward(request, body=b"mine")
                    found.append(await front.relay.read(relayed, 1))
                    await front.relay.give_back(request, await front.relay.forward(request))

                return answered(request, look())

        front.site.resource = Looking(front.relay)
        front.homeserver.answers = lambda seen: an_answer(b"%d" % (10_000 + len(seen.body)))
        client = await front.ask(a_request(b"GET", b"/_matrix/x", b"Accept-Encoding: gzip"))

        assert found == [200, b"10000", None]
        assert client.body == b"10000"
        first, second, _ = front.homeserver.seen
        assert first.line == b"GET /other HTTP/1.1"
        assert first.values(b"Accept-Encoding") == [b"identity"]
        assert second.body == b"mine"

    with_front(story)


TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABC-_", min_size=1, max_size=12).map(
    lambda s: b"x-t-" + s.encode()
)
VALUE = st.binary(max_size=30).map(lambda data: bytes(c for c in data if c >= 32 and c != 127).strip(b" \t"))
PATH = (
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
    .map(str.encode)
    .filter(lambda path: not _leads_elsewhere(b"/" + path.partition(b"?")[0]))
)


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"PATCH"]),
            PATH,
            st.lists(st.tuples(TOKEN, VALUE), max_size=5),
            st.binary(max_size=3000),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_comes_the_homeserver_gets_exactly_that(
    requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes, bool]],
) -> None:
    """Bytes of paths, headers and bodies are nobody's business here."""

    async def story(front: Front) -> None:
        for method, path, headers, body, chunked in requests:
            lines = [name + b": " + value for name, value in headers]
            uri = b"/_matrix/" + path
            if chunked:
                data = a_request(method, uri, *lines, b"Transfer-Encoding: chunked")
                data += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
            else:
                data = a_request(method, uri, *lines, body=body)
            client = await front.ask(data)
            assert client.status == 200
            seen = front.homeserver.seen[-1]
            assert seen.line == method + b" " + uri + b" HTTP/1.1"
            assert seen.body == body
            for name in {name.lower() for name, _ in headers}:
                assert seen.values(name) == [value for other, value in headers if other.lower() == name]
        assert len(front.homeserver.seen) == len(requests)

    with_front(story)
