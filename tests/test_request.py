"""The answer of a request, as it is on the wire."""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence.admission import BodyBudget
from fedpresence.config import LimitsConfig
from fedpresence.errors import BadRequest
from fedpresence.request import Request
from fedpresence.site import BoundedSite
from fedpresence.web import JsonResource
from tests.http_wire import Client, request


class Doing(Resource):
    """Answers as it is told to."""

    isLeaf = True

    def __init__(self, answer: Callable[[Request], object]) -> None:
        super().__init__()
        self.answer = answer

    def render(self, request: Any) -> int:
        """Later."""
        self.answer(request)
        return NOT_DONE_YET


def client_of(resource: Resource) -> Client:
    """A connection to a site that serves this."""
    return Client(BoundedSite(resource, LimitsConfig(), Clock(), BodyBudget(10_000)))


def wire(answer: Callable[[Request], object], asked: bytes) -> tuple[list[str], bytes, bool]:
    """The lines of the answer's head but its date, its body as sent, and whether we closed."""
    client = client_of(Doing(answer))
    client.send(asked)
    head, _, body = client.transport.value().partition(b"\r\n\r\n")
    return (
        [line for line in head.decode().split("\r\n") if not line.startswith("Date: ")],
        body,
        client.closed,
    )


def in_pieces(request: Request) -> None:
    """An answer whose length nobody knows."""
    for piece in (b"one", b"", b"two"):
        request.write(piece)
    request.finish()


def test_an_answer_of_unknown_length_comes_in_chunks() -> None:
    """An empty piece is no chunk: that would be the end."""
    lines, body, closed = wire(in_pieces, request("GET", "/"))

    assert lines == ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"]
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert not closed


def test_an_answer_of_unknown_length_ends_with_the_connection_of_an_old_client() -> None:
    """HTTP/1.0 knows no chunks."""
    lines, body, closed = wire(in_pieces, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

    assert lines == ["HTTP/1.1 200 OK", "Connection: close"]
    assert (body, closed) == (b"onetwo", True)


def test_an_answer_to_head_has_no_body() -> None:
    """Its length may be said; what was written would be read as the next answer."""

    def known(request: Request) -> None:
        request.setHeader(b"Content-Length", b"6")
        in_pieces(request)

    assert wire(known, request("HEAD", "/")) == (["HTTP/1.1 200 OK", "Content-Length: 6"], b"", False)
    assert wire(in_pieces, request("HEAD", "/")) == (["HTTP/1.1 200 OK"], b"", False)


def test_an_answer_without_content_has_no_body_and_no_length() -> None:
    """RFC 9110, 8.6."""

    def empty(request: Request) -> None:
        request.setResponseCode(204)
        in_pieces(request)

    assert wire(empty, request("GET", "/")) == (["HTTP/1.1 204 No Content"], b"", False)


def test_an_answer_that_nothing_was_written_to_is_an_empty_one() -> None:
    """The client need not wait for more."""
    lines, body, closed = wire(lambda request: request.finish(), request("GET", "/"))

    assert (lines, body, closed) == (["HTTP/1.1 200 OK", "Content-Length: 0"], b"", False)


def test_no_value_begins_another_field_or_ends_the_head() -> None:
    """What other servers say gets into our answers."""

    def inject(request: Request) -> None:
        request.setResponseCode(200, b"Fine\r\nX-A: b")
        request.setHeader(b"X-B", b"c\r\nX-C: d\r\n\r\nbody")
        request.setHeader(b"X-D", b"e\nf\rg")
        request.responseHeaders.setRawHeaders(b"X-E", [b"h\ni", b"j\r\n\r\nk"])
        request.finish()

    lines, body, _ = wire(inject, request("GET", "/"))

    assert body == b""
    assert lines == [
        "HTTP/1.1 200 Fine X-A: b",
        "X-B: c X-C: d  body",
        "X-D: e f g",
        "X-E: h i",
        "X-E: j  k",
        "Content-Length: 0",
    ]


def test_an_answer_ends_once() -> None:
    """A second end would answer the next request."""
    for again in (lambda request: request.finish(), lambda request: request.write(b"x")):

        def answer(request: Request, again: Callable[[Request], object] = again) -> None:
            request.finish()
            with pytest.raises(RuntimeError):
                again(request)

        assert wire(answer, request("GET", "/"))[1] == b""


def test_the_end_is_told_once_whichever_it_is() -> None:
    """What waits for it frees something."""
    told: list[str] = []
    asked: list[Request] = []
    for leaves in (False, True):
        client = client_of(Doing(asked.append))
        client.send(request("GET", "/"))
        asked[-1].notifyFinish().addCallbacks(lambda _: told.append("end"), lambda _: told.append("gone"))

        if leaves:
            client.leave()
        asked[-1].write(b"x")
        asked[-1].finish()
        if not leaves:
            client.leave()

    assert told == ["end", "gone"]


def test_a_bug_behind_a_whole_answer_leaves_it_whole() -> None:
    """It may be still on its way; and the connection is in step."""

    def answer(request: Request) -> None:
        request.finish()
        raise ValueError

    lines, _, closed = wire(answer, request("GET", "/"))

    assert lines[0] == "HTTP/1.1 200 OK"
    assert not closed


def test_a_bug_in_the_midst_of_an_answer_breaks_it_off() -> None:
    """Nobody must take it for a whole one."""

    def answer(request: Request) -> None:
        request.write(b"x")
        raise ValueError

    _, body, closed = wire(answer, request("GET", "/"))

    assert (body, closed) == (b"1\r\nx\r\n", True)


class Handled:
    """A handler that waits, twice, and what became of it."""

    def __init__(self) -> None:
        self.first: Deferred[str] = Deferred()
        self.second: Deferred[str] = Deferred()
        self.ended: list[BaseException | None] = []
        resource = JsonResource({"GET": self.handle})
        resource.isLeaf = True
        self.client = client_of(resource)
        self.client.send(request("GET", "/"))

    async def handle(self, request: Request) -> object:
        """Both outcomes."""
        try:
            try:
                first = await self.first
            except KeyError as error:
                first = str(error)
            outcome = {"both": first + await self.second}
        except BaseException as error:
            self.ended.append(error)
            raise
        self.ended.append(None)
        return outcome


def test_a_handler_that_waits_is_given_what_it_waits_for() -> None:
    """Values and errors, one after the other."""
    handled = Handled()
    handled.first.errback(KeyError("a"))
    before = handled.client.answers()

    handled.second.callback("b")

    assert before == []
    assert handled.client.answer.json == {"both": "'a'b"}


def test_a_handler_that_waits_and_fails_is_answered() -> None:
    """As one that fails at once."""
    handled = Handled()
    handled.first.callback("a")

    handled.second.errback(BadRequest("M_FORBIDDEN", "No", status=403))

    assert (handled.client.answer.status, handled.client.answer.json["errcode"]) == (403, "M_FORBIDDEN")


def test_a_handler_that_waits_and_answers_no_json_is_a_500_and_no_silence() -> None:
    """As one that answers at once; the client would wait for ever."""
    never: Any = object()
    waiting: Deferred[object] = Deferred()

    async def handle(request: Request) -> object:
        return await waiting

    resource = JsonResource({"GET": handle})
    resource.isLeaf = True
    client = client_of(resource)
    client.send(request("GET", "/"))
    waiting.callback(never)

    assert client.answer.status == 500


def test_a_handler_whose_client_goes_is_cancelled_where_it_waits() -> None:
    """Whatever it waits for, the first or the last."""
    for waits_twice in (False, True):
        handled = Handled()
        if waits_twice:
            handled.first.callback("a")

        handled.client.leave()

        awaited = handled.second if waits_twice else handled.first
        assert awaited.called
        assert [type(error) for error in handled.ended] == [CancelledError]


def test_a_handler_that_has_ended_is_not_cancelled() -> None:
    """Its client goes later."""
    handled = Handled()
    handled.first.callback("a")
    handled.second.callback("b")

    handled.client.leave()

    assert handled.ended == [None]
