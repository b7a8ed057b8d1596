"""What comes in other pieces, in another order or in another shape than usual."""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence.admission import Admitted, BodyBudget, RequestHead
from fedpresence.config import LimitsConfig
from fedpresence.incoming import IncomingBody
from fedpresence.intake import ABORT_S, MAX_WAITING, PIECE_TIMEOUT_S, REQUEST_TIMEOUT_S, body_of
from fedpresence.site import BoundedSite
from fedpresence.web import write_json
from tests.http_wire import Client, request

IDLE_S = 120.0


class Told(Resource):
    """Says what it was asked; `/later` and `/stream` only when told to go on."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.waiting: list[Any] = []
        self.gone: list[str] = []

    def render(self, request: Any) -> int:
        """Its method, its path, and its body where that is kept."""
        body = body_of(request)
        text = "streams" if isinstance(body, IncomingBody) else body.decode()
        self.seen.append(f"{request.method.decode()} {request.uri.decode()} {text}")
        request.notifyFinish().addErrback(lambda _: self.gone.append(request.uri.decode()))
        if request.uri.startswith((b"/later", b"/stream")):
            self.waiting.append(request)
        else:
            write_json(request, {"said": self.seen[-1]})
        return NOT_DONE_YET

    def go_on(self) -> None:
        """Answer whoever has waited longest."""
        write_json(self.waiting.pop(0), {"said": "later"})


class Listener:
    """A site with somebody behind it who tells, and a clock that tests move."""

    def __init__(self, budget: int = 10_000) -> None:
        self.clock = Clock()
        self.told = Told()
        self.budget = BodyBudget(budget)
        self.decision: Deferred[Admitted] = Deferred()
        self.on_admit: Callable[[], None] = lambda: None
        limits = LimitsConfig(client_body=1000, connections=100, idle_connection_ms=int(IDLE_S * 1000))
        self.site = BoundedSite(self.told, limits, self.clock, self.budget, self._admit)

    def _admit(self, head: RequestHead) -> Awaitable[Admitted] | Admitted | None:
        self.on_admit()
        if head.uri.startswith(b"/stream"):
            return Admitted(500, streams=True)
        return self.decision if head.uri.startswith(b"/guarded") else None

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left of any connection."""
        return (self.site.connections, self.budget.used, self.clock.getDelayedCalls()) == (0, 0, [])


def test_a_body_behind_an_upgrade_is_a_body_and_no_request() -> None:
    """Some clients offer h2c with every request; a proxy in front counts the body as one: smuggling."""
    inner = request("GET", "/inner")
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    upgrade = ("Connection: Upgrade", "Upgrade: h2c")
    for data in (
        request("POST", "/", inner, *upgrade),
        request("POST", "/", chunked, *upgrade, "Transfer-Encoding: chunked"),
        request("CONNECT", "h:1", inner),
    ):
        for size in (1, 7, len(data)):
            listener = Listener()
            client = Client(listener.site)

            for start in range(0, len(data), size):
                client.send(data[start : start + size])
            client.send(request("GET", "/after"))

            assert len(listener.told.seen) == 2
            assert listener.told.seen[0].endswith(inner.decode())
            assert listener.told.seen[1] == "GET /after "
            client.leave()
            assert listener.is_clean


def test_an_upgrade_without_a_body_is_a_request_like_others() -> None:
    """We speak HTTP/1.1 alone, and say so by not agreeing."""
    client = Client(Listener().site)

    client.send(request("GET", "/a", None, "Connection: Upgrade", "Upgrade: h2c") + request("GET", "/b"))

    assert [answer.json["said"] for answer in client.answers()] == ["GET /a ", "GET /b "]


def test_behind_an_answer_that_ends_the_connection_nothing_is_answered() -> None:
    """Neither what may not come there, nor what can be no request."""
    for first in (
        request("GET", "/a", None, "Connection: close"),
        request("GET", "/a").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("GET", "/a", None, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ):
        for second in (request("GET", "/b"), b"rubbish\r\n\r\n"):
            listener = Listener()
            client = Client(listener.site)

            client.send(first + second)
            client.send(second)

            assert client.answer.json == {"said": "GET /a "}
            assert client.answer.headers["connection"] == "close"
            assert client.closed
            client.leave()
            assert listener.is_clean


def test_many_requests_behind_one_that_waits_are_answered_in_their_order() -> None:
    """Each answer brings about the next: that must not go deeper and deeper."""
    listener = Listener()
    client = Client(listener.site)
    rest = [request("GET", f"/{n}") for n in range(MAX_WAITING - 1)]

    client.send(request("GET", "/later") + b"".join(rest))
    client.send(request("GET", "/last"))
    listener.told.go_on()

    said = [answer.json["said"] for answer in client.answers()]
    assert said == ["later", *(f"GET /{n} " for n in range(MAX_WAITING - 1)), "GET /last "]


def test_requests_beyond_a_number_are_not_kept() -> None:
    """A read of the connection holds thousands, each fifty times as large once it was parsed."""
    listener = Listener()
    client = Client(listener.site)

    client.send(request("GET", "/later") + request("GET", "/") * 1000)
    listener.told.go_on()

    answers = client.answers()
    assert len(answers) == MAX_WAITING
    assert [answer.headers.get("connection") for answer in answers[-2:]] == [None, "close"]
    assert client.closed


def test_a_request_that_waits_for_its_answer_is_not_too_slow() -> None:
    """The next one has begun to come, in the same packet: its time runs when it is its turn."""
    for before, behind in ((b"", b"GET /ha"), (request("GET", "/later"), b"GET /ha"), (b"", b"\r\n")):
        listener = Listener()
        client = Client(listener.site)
        client.send(before)
        client.send(request("GET", "/later") + behind)
        if before:
            listener.told.go_on()

        listener.clock.advance(REQUEST_TIMEOUT_S + 1)
        open_while_waiting = not client.closed
        listener.told.go_on()
        assert open_while_waiting and not client.closed

        if behind.strip():
            listener.clock.advance(REQUEST_TIMEOUT_S)
            assert client.closed


def test_a_body_that_has_begun_behind_another_request_has_its_deadline() -> None:
    """What it holds of the budget must not be held for as long as a connection may idle."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("GET", "/later") + request("POST", "/", b"x" * 100)[:-1])

    listener.told.go_on()
    assert listener.budget.used == 99
    listener.clock.advance(REQUEST_TIMEOUT_S)

    assert client.closed


def test_the_end_of_a_chunked_body_is_not_the_beginning_of_a_request() -> None:
    """It comes in a packet of its own, and the connection is idle then."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("POST", "/", b"1\r\nx\r\n", "Transfer-Encoding: chunked"))

    client.send(b"0\r\n\r\n")
    listener.clock.advance(IDLE_S - 1)
    assert not client.closed

    listener.clock.advance(1)
    assert client.closed


def test_a_body_that_streams_and_came_early_may_be_answered_unread() -> None:
    """The connection goes on, and may idle no longer than others."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("GET", "/later") + request("PUT", "/stream", b"x" * 20))

    listener.told.go_on()
    listener.told.go_on()
    client.send(request("GET", "/"))
    assert [answer.status for answer in client.answers()] == [200] * 3
    listener.clock.advance(IDLE_S)
    assert client.closed


def test_a_head_that_nobody_understands_never_becomes_part_of_another() -> None:
    """What follows it is not looked at."""
    for head in (
        request("GET", "/a", None, *(f"X-{n}: 1" for n in range(501))),
        request("GET", "/a", None, "Transfer-Encoding: gzip, chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("GET", "/a", None, "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("GET", "/a").replace(b"HTTP/1.1", b"HTTP/0.9"),
        request("GET", "/a").replace(b"HTTP/1.1", b"HTTP/2.0"),
    ):
        listener = Listener()
        client = Client(listener.site)

        client.send(head + request("GET", "/b"))

        assert client.answer.status == 400
        assert listener.told.seen == []


def test_a_length_of_thousands_of_zeros_is_malformed_and_no_bug_of_ours(events: list[LogEvent]) -> None:
    """Python refuses to read such a number."""
    client = Client(Listener().site)

    client.send(request("POST", "/", b"hello"[:0], "Content-Length: " + "0" * 5000 + "5")[:-23] + b"\r\n\r\n")

    assert client.answer.status == 400
    assert [event for event in events if "log_failure" in event] == []


def test_a_method_that_nobody_knows_is_told_from_what_is_no_request() -> None:
    """Only where it begins what came: behind a request it is rather what did not fit its length."""
    for data, statuses in (
        (request("BREW", "/"), [405]),
        (request("put", "/"), [405]),
        (request("GET", "/") + b'"}', [200, 400]),
        (b"{} /", [400]),
        (b"\x16\x03\x01", [400]),
    ):
        client = Client(Listener().site)

        client.send(data)

        assert [answer.status for answer in client.answers()] == statuses


def test_what_never_ends_is_cut_off() -> None:
    """Parsers keep a field until its line ends: of no part may come more than it needs."""
    chunked = request("POST", "/", b"", "Transfer-Encoding: chunked")
    for begin, more in (
        (b"GET /", b"x"),
        (b"GET / HTTP/1.1\r\n", b"x"),
        (b"GET / HTTP/1.1\r\nX: ", b"x"),
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
        (chunked + b"1;", b"x"),
        (chunked + b"1\r\nx\r\n0\r\n", b"x"),
        (chunked + b"1\r\nx\r\n0\r\nX: ", b"x"),
        (chunked + b"1\r\nx\r\n0\r\n", b"X: y\r\n"),
        (b"", b"\r\n"),
    ):
        listener = Listener()
        client = Client(listener.site)
        client.send(begin)
        sent = 0
        while not client.answers():
            client.send(more * (1024 // len(more)))
            sent += 1024

        assert client.answer.status == 400
        assert sent <= (2 if begin == b"GET /" else 1) * 16_384 + 1024, begin
        assert listener.told.seen == []
        client.leave()
        assert listener.is_clean


def test_a_bug_of_the_admission_is_a_500() -> None:
    """No connection is lost without a word."""
    listener = Listener()

    def fail() -> None:
        raise ValueError("secret")

    listener.on_admit = fail
    client = Client(listener.site)
    client.send(request("POST", "/", b"x"))

    assert client.answer.status == 500
    assert b"secret" not in client.answer.body
    client.leave()
    assert listener.is_clean


def test_whatever_else_goes_wrong_while_we_parse_is_logged_and_ends_the_connection(
    events: list[LogEvent],
) -> None:
    """The parser tells that a call of ours failed, and not how."""

    class Unheard(BaseException):
        pass

    listener = Listener()

    def fail() -> None:
        raise Unheard

    listener.on_admit = fail
    client = Client(listener.site)
    client.send(request("POST", "/", b"x") + request("GET", "/"))
    client.send(request("GET", "/"))

    assert client.closed
    assert client.answers() == []
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [Unheard]
    client.leave()
    assert listener.is_clean


def test_a_client_that_does_not_read_gets_no_more_answers_made() -> None:
    """Each may be far larger than what asked for it: only what is read makes room for the next."""
    listener = Listener()
    client = Client(listener.site)
    client.channel.pauseProducing()

    client.send(request("GET", "/1") + request("GET", "/2"))
    client.send(request("GET", "/3"))
    before = list(listener.told.seen)
    client.channel.resumeProducing()

    assert before == []
    assert [answer.json["said"] for answer in client.answers()] == ["GET /1 ", "GET /2 ", "GET /3 "]
    assert not client.paused


def test_answers_leave_at_once_and_clients_that_are_gone_are_noticed() -> None:
    """The second piece of an answer else waits until the first is acknowledged, which takes 40 ms."""

    class Tcp(StringTransport):
        def __init__(self) -> None:
            super().__init__()
            self.settings: dict[str, bool] = {}

        def setTcpKeepAlive(self, enabled: bool) -> None:
            self.settings["keep alive"] = enabled

        def setTcpNoDelay(self, enabled: bool) -> None:
            self.settings["no delay"] = enabled

    transport = Tcp()
    channel: Any = Listener().site.buildProtocol(None)
    channel.makeConnection(transport)

    assert transport.settings == {"keep alive": True, "no delay": True}


def test_a_connection_that_closes_is_read_from() -> None:
    """Over TLS the other side's word is awaited: who does not listen hears it never."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("GET", "/later", None, "Connection: close"))
    client.channel.pauseProducing()
    before = client.paused

    listener.told.go_on()

    assert client.closed
    assert before and not client.paused


def test_when_all_connections_have_ended_nothing_is_left_of_them() -> None:
    """Who waits for that closes the store next."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("GET", "/later"))
    left: list[object] = []
    done = listener.site.close()
    done.addCallback(lambda _: left.extend((listener.told.gone, listener.clock.getDelayedCalls())))

    client.leave()

    assert left == [["/later"], []]


def test_the_last_answer_may_be_read_for_as_long_as_others() -> None:
    """A proxy that speaks HTTP/1.0 reads at its client's pace."""
    listener = Listener()
    client = Client(listener.site)
    aborted: list[float] = []
    transport: Any = client.transport
    transport.abortConnection = lambda: aborted.append(listener.clock.seconds())

    client.send(request("GET", "/", None, "Connection: close"))
    listener.clock.advance(IDLE_S - 1)
    before = list(aborted)
    listener.clock.advance(1)

    assert client.closed
    assert (before, aborted) == ([], [IDLE_S])
    assert ABORT_S < IDLE_S


def test_a_body_that_is_taken_again_when_its_client_has_gone_leaves_no_timer() -> None:
    """Whoever takes it need not know yet."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("PUT", "/stream", b"x" * 20)[:-10])
    (body,) = (each.incoming for each in listener.told.waiting)

    body.pauseProducing()
    client.leave()
    body.resumeProducing()

    assert listener.is_clean
    assert listener.told.gone == ["/stream"]


def test_an_answer_to_half_a_body_says_that_the_connection_ends() -> None:
    """The rest of it is not read, and the next request would get a reset."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("PUT", "/stream", b"x" * 20)[:-10])

    listener.told.go_on()

    assert client.answer.headers["connection"] == "close"
    client.send(b"x" * 10)
    assert client.closed


def test_a_stop_tells_who_is_still_answered() -> None:
    """So that nobody sends the next request into a closed connection."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("GET", "/later"))

    listener.site.close()
    listener.told.go_on()

    assert client.answer.headers["connection"] == "close"
    assert client.closed


def test_a_body_that_streams_has_a_deadline_for_each_piece_that_stands_still_while_it_is_held() -> None:
    """Its taker's slowness is not the client's."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("PUT", "/stream", b"x" * 20)[:-10])
    (body,) = (each.incoming for each in listener.told.waiting)
    listener.clock.advance(10 * PIECE_TIMEOUT_S)
    held = client.paused and not client.closed

    collected = body.collect(lambda _: True)
    client.send(b"x")
    listener.clock.advance(PIECE_TIMEOUT_S - 1)
    before = client.closed
    listener.clock.advance(1)

    assert held and not before and client.closed
    client.leave()
    collected.addErrback(lambda _: None)
    assert listener.is_clean


@pytest.mark.parametrize("keeps", (True, False))
def test_connections_that_ended_are_freed(*, keeps: bool) -> None:
    """At once where possible: what waits for a collection of garbage is memory all the same."""
    listener = Listener()
    client = Client(listener.site)
    for data in (request("POST", "/", b"x"), request("GET", "/later"), request("GET", "/")):
        client.send(data)
    if not keeps:
        listener.told.go_on()
    client.leave()
    listener.told.waiting.clear()
    channel = weakref.ref(client.channel)
    del client
    gc.collect()

    assert channel() is None
    assert listener.is_clean


@pytest.fixture
def events() -> Any:
    """What is logged."""
    found: list[LogEvent] = []
    observer: Any = found.append
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)
