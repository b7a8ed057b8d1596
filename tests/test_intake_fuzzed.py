"""Streams of requests, whole or bent out of shape, in any pieces.

However a stream is cut into pieces, it gets the same answers. Whatever comes, nothing is raised into the
reactor, nothing is logged as our mistake, and once the connection has ended nothing of it is left: no bytes
in the budget, no timer, no connection that counts.
"""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.resource import Resource

from fedpresence.admission import Admitted, BodyBudget, RequestHead
from fedpresence.config import LimitsConfig
from fedpresence.errors import BadRequest
from fedpresence.incoming import IncomingBody
from fedpresence.intake import body_of
from fedpresence.request import Request
from fedpresence.site import BoundedSite
from fedpresence.web import JsonResource
from tests.http_wire import Client, request

MAX_BODY = 60
PATHS = ("/", "/later", "/guarded", "/guarded/later", "/stream", "/guarded/stream", "/stream/later")
UPGRADE = ("Connection: Upgrade", "Upgrade: h2c")


class Anywhere(JsonResource):
    """The same at every path."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Itself."""
        return self


class World:
    """A site whose admissions and answers wait until they are told to go on."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.budget = BodyBudget(1_000)
        self.waiting: list[Deferred[None]] = []
        tree = Anywhere(dict.fromkeys(("GET", "PUT", "POST", "DELETE"), self._answer))
        limits = LimitsConfig(client_body=MAX_BODY, connections=10)
        self.site = BoundedSite(tree, limits, self.clock, self.budget, self._admit)

    def go_on(self) -> None:
        """Until nobody waits for anything but more bytes."""
        while self.waiting:
            self.waiting.pop(0).callback(None)

    def _later(self) -> "Deferred[None]":
        waiting: Deferred[None] = Deferred(self.waiting.remove)
        self.waiting.append(waiting)
        return waiting

    def _admit(self, head: RequestHead) -> Any:
        if head.uri.startswith(b"/refused"):
            raise BadRequest("M_FORBIDDEN", "No", status=403)
        admitted = Admitted(MAX_BODY, streams=b"stream" in head.uri and head.content_length != 0)
        return ensureDeferred(self._decide(admitted)) if head.uri.startswith(b"/guarded") else admitted

    async def _decide(self, admitted: Admitted) -> Admitted:
        await self._later()
        return admitted

    async def _answer(self, request: Request) -> object:
        body = body_of(request)
        if b"later" in request.uri:
            await self._later()
        if isinstance(body, IncomingBody):
            whole = await body.collect(lambda _: True)
            assert whole is not None
            body = whole
        return {"said": f"{request.method.decode()} {request.uri.decode()} {body.decode('latin-1')}"}


@dataclass(frozen=True)
class Asked:
    """One good request, and what must be answered to it."""

    data: bytes
    said: str


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """With a body or without, in chunks or not."""
    method = draw(st.sampled_from(("GET", "PUT", "POST", "DELETE")))
    path = draw(st.sampled_from(PATHS)) + draw(st.sampled_from(("", "/%41?b=c", "?" + "x" * 50)))
    fields = list(draw(st.sampled_from(((), UPGRADE, ("X-A: b", "X-A:"), ("Expect: 100-continue",)))))
    pieces = draw(st.lists(st.binary(min_size=1, max_size=12), max_size=4))
    body = b"".join(pieces)
    said = f"{method} {path} {body.decode('latin-1')}"
    match draw(st.sampled_from(("length", "chunks", "none"))):
        case "length":
            return Asked(request(method, path, body, *fields), said)
        case "chunks":
            extension, trailer = draw(
                st.sampled_from(((b"", b""), (b";a=b", b"T: x\r\n"), (b"", b"T: y\r\nU:\r\n")))
            )
            chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces)
            framed = b"%b0\r\n%b\r\n" % (chunks, trailer)
            return Asked(request(method, path, framed, *fields, "Transfer-Encoding: chunked"), said)
    return Asked(request(method, path, None, *fields), f"{method} {path} ")


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces, some as small as can be."""
    if draw(st.booleans()):
        size = draw(st.integers(1, 40))
        return [data[at : at + size] for at in range(0, len(data), size)]
    places = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=12))})
    return [data[begin:end] for begin, end in pairwise(places)]


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """A stream of requests with a few places changed."""
    parts = draw(st.lists(asked(), min_size=1, max_size=4))
    data = b"".join(each.data for each in parts)
    pieces = st.one_of(
        st.binary(max_size=3),
        st.sampled_from(
            (
                b"\r\n",
                b"\r\n\r\n",
                b"0\r\n\r\n",
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Connection: close\r\n",
                b"Connection: Upgrade\r\nUpgrade: x\r\n",
                b" HTTP/1.0\r\n",
                b"GET /refused HTTP/1.1\r\n\r\n",
                b"x" * 100,
                b"CONNECT h:1 HTTP/1.1\r\n\r\n",
                b"HEAD / HTTP/1.1\r\n\r\n",
            )
        ),
    )
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(pieces) + data[at + draw(st.integers(0, 4)) :]
    return data


@contextmanager
def no_mistake_of_ours() -> Iterator[None]:
    """Nothing is logged with a traceback."""
    events: list[LogEvent] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [event["log_failure"] for event in events if "log_failure" in event] == []


def is_clean(world: World) -> bool:
    """Whether nothing is left of any connection."""
    return (world.site.connections, world.budget.used, world.clock.getDelayedCalls()) == (0, 0, [])


@settings(deadline=None)
@given(st.data())
def test_however_it_is_cut_a_stream_of_requests_gets_its_answers(data: st.DataObject) -> None:
    """What is one packet here may be a hundred there."""
    stream = data.draw(st.lists(asked(), min_size=1, max_size=6))
    pieces = data.draw(cut(b"".join(each.data for each in stream)))
    is_patient, reads_late = data.draw(st.booleans()), data.draw(st.booleans())
    world = World()
    client = Client(world.site)

    with no_mistake_of_ours():
        for piece in pieces:
            client.send(piece)
            if is_patient:
                world.go_on()
            if reads_late:
                client.channel.pauseProducing()
        client.channel.resumeProducing()
        world.go_on()
        answers = [answer for answer in client.answers() if answer.status != 100]
        assert [answer.json["said"] for answer in answers] == [each.said for each in stream]
        assert not client.closed and not client.paused
        client.leave()
    assert is_clean(world)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_comes_is_answered_or_not_and_leaves_nothing_behind(data: st.DataObject) -> None:
    """Every state can be left at every byte: by nonsense, by the clock, by whoever goes."""
    pieces = data.draw(bent().flatmap(cut))
    world = World()
    client = Client(world.site)

    with no_mistake_of_ours():
        for piece in pieces:
            client.send(piece)
            match data.draw(st.integers(0, 8)):
                case 0:
                    world.go_on()
                case 2:
                    client.channel.pauseProducing()
                case 3:
                    client.channel.resumeProducing()
                case 1:
                    world.clock.advance(data.draw(st.sampled_from((0.5, 3.0, 61.0))))
        if data.draw(st.booleans()):
            world.site.close()
        if data.draw(st.booleans()):
            world.go_on()
        assert b"HTTP/1.1 5" not in client.transport.value()
        client.leave()
        world.go_on()
        gc.collect(0)
    assert is_clean(world)
