"""One request and its answer over a connection that stands.

Always true:
- an answer is read to its cap and no further (Z-5);
- once a status came it counts, even if the body is too long or breaks off: the body is then empty;
- an error after the request was begun says that the server may have heard it.

Source: F:X-3, Z-5; decision 26: transactions go straight on Twisted's Agent, the rest through treq.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss, stringToDatetime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from fedpresence.errors import DeliveryFailed
from fedpresence.outbound.connections import Connection, reason_of

USER_AGENT = "fedpresence"
_HTTPClient: Any = HTTPClient  # zope's interfaces mean nothing to mypy


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, its body within the cap."""

    status: int
    headers: Headers
    body: bytes


async def exchange(
    connection: Connection, method: bytes, uri: str, headers: dict[str, str], body: bytes | None, cap: int
) -> Answer:
    """One request and its answer, straight on Twisted's Agent: this is the path of every transaction.

    DeliveryFailed (heard) where no status came. Once there is a status it counts, even if the body is
    too long or breaks off; the body is then empty.
    """
    route = connection.route
    raw = Headers({name: [value] for name, value in headers.items()})
    raw.setRawHeaders("Host", [route.host_header])
    url = f"https://{route.host_header}{uri}".encode("ascii")
    try:
        response = await connection.request(method, url, raw, None if body is None else _Body(body))
    except (CancelledError, DeliveryFailed):
        raise
    except Exception as error:
        raise DeliveryFailed(route.server_name, f"no answer: {reason_of(error)}", heard=True) from error
    return Answer(response.code, response.headers, await read_capped(response, cap, connection.abort))


async def fetch(connection: Connection, uri: str, cap: int) -> Answer:
    """One GET without a signature, through treq (decision 26); a redirect is an answer like any other."""
    route = connection.route
    try:
        response = await _HTTPClient(connection).get(
            f"https://{route.host_header}{uri}",
            headers={"Host": route.host_header, "User-Agent": USER_AGENT},
            allow_redirects=False,
            unbuffered=True,
        )
    except (CancelledError, DeliveryFailed):
        raise
    except Exception as error:
        raise DeliveryFailed(route.server_name, f"no answer: {reason_of(error)}", heard=True) from error
    return Answer(response.code, response.headers, await read_capped(response, cap, connection.abort))


async def read_capped(response: Any, cap: int, abort: Callable[[], None]) -> bytes:
    """The body of an answer; empty where it is longer than `cap` or breaks off."""
    done: Deferred[bytes] = Deferred(lambda _: abort())
    response.deliverBody(_Capped(cap, done, abort))
    return await done


@implementer(IBodyProducer)
class _Body:
    """A body that is at hand: written at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> "Deferred[None]":
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written already."""

    resumeProducing = stopProducing = pauseProducing


class _Capped(Protocol):
    """Collects a body up to a cap; one byte more ends the connection."""

    def __init__(self, cap: int, done: Deferred[bytes], abort: Callable[[], None]) -> None:
        self._left = cap
        self._parts: list[bytes] = []
        self._done: Deferred[bytes] | None = done
        self._abort = abort

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._parts.append(data)
        elif self._done is not None:
            done, self._done = self._done, None
            self._abort()
            if not done.called:
                done.callback(b"")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        done, self._done = self._done, None
        if done is not None and not done.called:
            whole = isinstance(reason.value, (ResponseDone, PotentialDataLoss))
            done.callback(b"".join(self._parts) if whole else b"")


def values_of(headers: Headers, name: bytes) -> list[str]:
    """The values of a header that the other side wrote: Twisted's own decoding raises where they are odd."""
    return [value.decode("latin-1") for value in headers.getRawHeaders(name, [])]


def http_date_ms(value: str | bytes) -> int | None:
    """An HTTP date as Unix time in ms; None where it is none."""
    parse: Any = stringToDatetime
    try:
        return int(parse(value.encode() if isinstance(value, str) else value)) * 1000
    except (ValueError, IndexError, KeyError):
        return None
