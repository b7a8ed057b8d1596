"""Requests through to the homeserver, and its answers back, as they are.

Always true:
- method, path with query, body and all headers but those of the connection itself reach the homeserver
  byte for byte; so do its status, headers and body the client;
- a body is never in memory as a whole, neither way: whoever takes it slowly slows the other side alone;
- a client that goes away ends its request at the homeserver, an answer that breaks off breaks off for the
  client too;
- a request is repeated only where a kept connection had been closed meanwhile, and once, and only where
  HTTP permits it: never a POST, never a body that has been let go.

`X-Forwarded-For` is added to what a proxy of ours wrote, and replaces what anybody else claims. By
`X-Fedpresence` we know a request that comes back to us: the homeserver's address is in truth our own.

Source: H:6.2, H:6.5; Z-25; RFC 9110, 7.6 (what belongs to a connection) and 9.2.2 (what may be repeated).
"""

# mypy: allow-untyped-calls
# (Twisted's HTTP classes have no type hints.)

import ipaddress
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from weakref import WeakSet

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionLost
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers, InvalidHeaderName
from twisted.web.iweb import UNKNOWN_LENGTH
from twisted.web.resource import Resource, getChildForRequest
from twisted.web.server import NOT_DONE_YET

from fedpresence.admission import Admitted, RequestHead
from fedpresence.clock import Clock, within
from fedpresence.errors import BadRequest
from fedpresence.homeserver.exchange import Delivery, Patience, ReadWhole, SentRequest, Through, is_gone
from fedpresence.incoming import IncomingBody
from fedpresence.intake import body_of
from fedpresence.request import Request
from fedpresence.web import CORS_HEADERS, write_error
from fedpresence.wire.json import decode_json

_log = Logger()

CONNECT_TIMEOUT_S = 5.0  # it is near
KEPT_CONNECTIONS = 100  # idle ones
KEEP_S = 20.0  # idle; below what homeservers keep, so that hardly a request meets a closing connection
OF_THE_CONNECTION = (
    b"Connection",
    b"Content-Length",
    b"Expect",
    b"Keep-Alive",
    b"Proxy-Connection",
    b"TE",
    b"Trailer",
    b"Transfer-Encoding",
    b"Upgrade",
)
FOR_BROWSERS = (
    b"/_matrix/client/",
    b"/_matrix/media/",
    b"/_fedpresence/client/",
    b"/_synapse/client/",
    b"/.well-known/matrix/client",
)
PASSED_BY = b"X-Fedpresence"
MAX_ERROR_BYTES = 65_536  # of an answer that is read to see what it means
UNBOUNDED = 1 << 62  # bytes; the homeserver has a limit of its own, and it costs us nothing

_UNHEARD = (RequestTransmissionFailed, ResponseNeverReceived)  # not a byte of an answer came

STREAMED = Admitted(UNBOUNDED, streams=True)


@dataclass(frozen=True, slots=True)
class Relayed:
    """What the homeserver answered. `headers` are without those of the connection; the body is not read yet.

    Whoever gets one either gives it back (`Relay.give_back`) or reads it (`Relay.read`).
    """

    status: int
    headers: Headers
    response: Any


class Relay:
    """The way to the homeserver at `base_url`; `pool` holds its connections."""

    def __init__(self, reactor: Any, base_url: str, clock: Clock, pool: HTTPConnectionPool) -> None:
        parts = urlsplit(base_url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._plain: Any = HostnameEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT_S)
        self._tls_name = host if secure else None
        self.renew_trust()
        self._path = parts.path.rstrip("/").encode("ascii")
        self._host = parts.netloc.encode("ascii")
        self._clock = clock
        self._pool: Any = pool
        self._key = ("homeserver", base_url)
        self._used: WeakSet[Any] = WeakSet()  # connections that have carried a request already
        self._under_way: set[Deferred[Any]] = set()
        self._mark = secrets.token_hex(8).encode("ascii")
        self._is_told_of_circle = False

    def renew_trust(self) -> None:
        """Read the system's certificate authorities: for new connections, those that stand go on."""
        name, plain = self._tls_name, self._plain
        self._endpoint: Any = plain if name is None else wrapClientTLS(optionsForClientTLS(name), plain)

    async def stop(self) -> None:
        """End what waits for an answer, and close what is kept."""
        for asked in list(self._under_way):
            asked.cancel()
        await self._pool.closeCachedConnections()

    async def forward(
        self,
        request: Request,
        *,
        body: bytes | IncomingBody | None = None,
        extra_headers: Iterable[tuple[bytes, bytes]] = (),
        uri: bytes | None = None,
    ) -> Relayed:
        """What the homeserver answers to `request`, with this body (None: without one).

        `extra_headers` replace the client's of the same name; `uri` replaces the request line's.
        BadRequest 502 `M_UNKNOWN` where the homeserver is not there, 504 where it does not answer in time;
        what `body` fails with. Cancelled, it ends the request there.
        """
        if self._mark in request.requestHeaders.getRawHeaders(PASSED_BY, ()):
            raise self._in_a_circle()
        uri = uri or request.uri
        sent = SentRequest(request.method, self._head(request, uri, extra_headers), body)
        while True:
            connection = await self._connection()
            kept = connection in self._used
            self._used.add(connection)
            patience = Patience(connection.request(sent), body, self._clock)
            self._under_way.add(patience.asked)
            try:
                response = await patience.asked
            except (CancelledError, Exception) as error:
                if patience.is_over:
                    raise BadRequest(
                        "M_UNKNOWN", "The homeserver did not answer in time", status=504
                    ) from error
                if _is_cancelled(error):
                    raise CancelledError() from error
                if sent.broken is not None:  # by the client
                    raise sent.broken from None
                if kept and sent.may_repeat and isinstance(error, _UNHEARD):
                    continue  # the next one is new, or kept too: it ends with the kept ones
                raise _unavailable(type(error).__name__) from error
            finally:
                self._under_way.discard(patience.asked)
                patience.end()
            return Relayed(response.code, response.headers, response)

    async def give_back(self, request: Request, relayed: Relayed, through: Through | None = None) -> bool:
        """Answer `request` as the homeserver did, the body by way of `through`; whether all was written.

        Returns when it is, or when it broke off, or when the client is gone.
        """
        response = relayed.response
        if is_gone(request):
            self.drop(relayed)
            return False
        _begin_answer(request, relayed)
        known = through is None and response.length is not UNKNOWN_LENGTH
        if known and not _has_no_body(request, relayed.status):
            request.setHeader(b"Content-Length", b"%d" % response.length)
        incoming = body_of(request) if relayed.status >= 400 else None
        if isinstance(incoming, IncomingBody) and not incoming.complete:
            request.setHeader(b"Connection", b"close")
        done: Deferred[bool] = Deferred()
        delivery = Delivery(request, done, self._clock, through)
        request.notifyFinish().addErrback(lambda _: delivery.give_up())
        response.deliverBody(delivery)
        whole = await done
        if is_gone(request):
            return False
        if whole:
            if through is not None:
                request.write(through.finish())
            request.finish()
        else:
            _abort(request)
        return whole

    def drop(self, relayed: Relayed) -> None:
        """Neither give back nor read an answer."""
        relayed.response._transport.loseConnection()

    async def read(self, relayed: Relayed, limit: int) -> bytes | None:
        """The whole body of an answer; None where it is longer than `limit` bytes or breaks off."""
        done: Deferred[bytes | None] = Deferred()
        relayed.response.deliverBody(ReadWhole(limit, done, self._clock))
        return await done

    def give_back_whole(self, request: Request, relayed: Relayed, body: bytes) -> None:
        """Answer `request` as the homeserver did, with the body that was read."""
        if is_gone(request):
            return
        _begin_answer(request, relayed)
        if not _has_no_body(request, relayed.status):
            request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()

    async def pass_through(self, request: Request) -> None:
        """Ask the homeserver and give its answer back, both ways as it comes; errors are answered too."""
        body = body_of(request)
        try:
            relayed = await self.forward(request, body=body)
        except BadRequest as error:
            refuse(request, error)
            return
        await self.give_back(request, relayed)

    async def is_unserved(self, relayed: Relayed) -> tuple[bool, bytes]:
        """Whether the homeserver has nothing of the kind, and the body that was read to know it.

        That is a 404 that says so, or that no Matrix server wrote.
        """
        body = await self.read(relayed, MAX_ERROR_BYTES) or b""
        try:
            error = decode_json(body)
        except BadRequest:
            error = None
        errcode = error.get("errcode") if isinstance(error, dict) else None
        return relayed.status == 404 and errcode in (None, "M_UNRECOGNIZED"), body

    def _in_a_circle(self) -> BadRequest:
        if not self._is_told_of_circle:
            self._is_told_of_circle = True
            _log.error(
                "homeserver.url leads back to us, by way of a proxy: name the homeserver's own address there"
            )
        return BadRequest("M_UNKNOWN", "The homeserver cannot be reached", status=502)

    async def _connection(self) -> Any:
        try:
            while True:
                connecting: Deferred[Any] = self._pool.getConnection(self._key, self._endpoint)
                connection = await within(connecting, CONNECT_TIMEOUT_S, self._clock)
                if not connection.transport.disconnecting:  # an answer that was given up at its very end
                    return connection
        except CancelledError:
            raise
        except Exception as error:
            raise _unavailable(type(error).__name__) from error

    def _head(self, request: Request, uri: bytes, extra: Iterable[tuple[bytes, bytes]]) -> bytes:
        headers = Headers(dict(request.requestHeaders.getAllRawHeaders()))
        for value in headers.getRawHeaders(b"Connection") or ():
            for name in value.split(b","):
                with suppress(InvalidHeaderName):
                    headers.removeHeader(name.strip())
        for name in OF_THE_CONNECTION:
            headers.removeHeader(name)
        if not headers.hasHeader(b"Host"):  # HTTP/1.0
            headers.setRawHeaders(b"Host", [self._host])
        _set_forwarded(request, headers)
        headers.addRawHeader(PASSED_BY, self._mark)
        for name, value in extra:
            headers.setRawHeaders(name, [value])
        lines = [b"%b %b%b HTTP/1.1" % (request.method, self._path, uri)]
        for name, values in headers.getAllRawHeaders():
            lines += [b"%b: %b" % (name, value) for value in values]
        return b"\r\n".join([*lines, b""])


class PassThrough(Resource):
    """Whatever lies here and below is the homeserver's, but for children that were put here."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def getChild(self, path: bytes, request: Request) -> Resource:
        """The homeserver knows what is below."""
        return self

    def render(self, request: Request) -> int:
        """Pass it through; always answers later."""
        if _leads_elsewhere(request.path):
            refuse(request, BadRequest("M_UNRECOGNIZED", "Unrecognized request", status=404))
            return NOT_DONE_YET
        return answered(request, self.relay.pass_through(request))


class OrAlone(PassThrough):
    """As PassThrough; a GET that the homeserver does not serve is answered as if there were none.

    `alone` is the root of the tree that answers then.
    """

    def __init__(self, relay: Relay, alone: Resource) -> None:
        super().__init__(relay)
        self._alone = alone

    def render(self, request: Request) -> int:
        """Ask there, and then here."""
        if request.method != b"GET" or _leads_elsewhere(request.path):
            return super().render(request)
        return answered(request, self._ask(request))

    async def _ask(self, request: Request) -> None:
        try:
            relayed = await self.relay.forward(request)
        except BadRequest as error:
            refuse(request, error)
            return
        if relayed.status != 404:
            await self.relay.give_back(request, relayed)
            return
        unserved, body = await self.relay.is_unserved(relayed)
        if unserved:
            answer_alone(request, self._alone, b"")
        else:
            self.relay.give_back_whole(request, relayed, body)


def answer_alone(request: Request, root: Resource, body: bytes) -> None:
    """Answer `request`, whose whole body this is, from the tree below `root`."""
    if is_gone(request):
        return
    request.content = BytesIO(body)
    request.prepath = []
    request.postpath = [unquote_to_bytes(segment) for segment in request.path[1:].split(b"/")]
    request.render(getChildForRequest(root, request))


def answered(request: Request, work: Any, *, to_its_end: bool = False) -> int:
    """Run what answers `request` later; a bug is a 502 and logged.

    It ends when the client goes away, unless it must come `to_its_end`.
    """

    def failed(failure: Failure) -> None:
        if failure.check(CancelledError, ConnectionLost) and is_gone(request):
            return
        _log.failure("passing {method} {path} on failed", failure, method=request.method, path=request.path)
        if not is_gone(request) and not request.startedWriting:
            refuse(request, BadRequest("M_UNKNOWN", "Internal server error", status=502))
        elif not is_gone(request):
            _abort(request)

    running = ensureDeferred(work)
    if not to_its_end:
        request.notifyFinish().addErrback(lambda _: running.cancel())
    running.addErrback(failed)
    return NOT_DONE_YET


def refuse(request: Request, error: BadRequest) -> None:
    """Our own word instead of the homeserver's; a web page may read it too (P:9.3)."""
    if request.uri.startswith(FOR_BROWSERS):
        for name, value in CORS_HEADERS:
            request.setHeader(name, value)
    incoming = body_of(request)
    if isinstance(incoming, IncomingBody) and not incoming.complete:
        request.setHeader(b"Connection", b"close")
    write_error(request, error)


def streams(prefixes: tuple[bytes, ...]) -> Any:
    """The admission of whatever is passed through: bodies of these paths stream."""

    def admit(head: RequestHead) -> Admitted | None:
        return STREAMED if head.content_length != 0 and head.uri.startswith(prefixes) else None

    return admit


def _set_forwarded(request: Request, headers: Headers) -> None:
    """Who asks, for the homeserver's own limits; only a proxy of ours is believed about others."""
    peer = getattr(request.getClientAddress(), "host", None)
    known = headers.getRawHeaders(b"X-Forwarded-For") or []
    is_proxy = _is_near(peer)
    if isinstance(peer, str):
        entries = [*(known if is_proxy else ()), peer.encode("ascii", "replace")]
        headers.setRawHeaders(b"X-Forwarded-For", [b", ".join(entries)])
    if not is_proxy or not headers.hasHeader(b"X-Forwarded-Proto"):
        headers.setRawHeaders(b"X-Forwarded-Proto", [b"https" if request.isSecure() else b"http"])


def _is_near(peer: object) -> bool:
    """Whether a connection comes from where a reverse proxy stands: this machine or its network."""
    if not isinstance(peer, str):
        return True  # a Unix socket
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_private)


def _leads_elsewhere(path: bytes) -> bool:
    """Whether a proxy before the homeserver might resolve it to what is not to be passed (`/_synapse/admin`).

    We and homeservers take a path as it stands, and no client sends such a one.
    """
    if b".." not in path and b"/." not in path and b"%" not in path and b"\\" not in path:
        return False
    segments = unquote_to_bytes(path).replace(b"\\", b"/").split(b"/")
    return b"." in segments or b".." in segments


def _begin_answer(request: Request, relayed: Relayed) -> None:
    request.setResponseCode(relayed.status, relayed.response.phrase)
    for name in (b"Server", b"Date"):
        request.responseHeaders.removeHeader(name)
    for name, values in relayed.headers.getAllRawHeaders():
        request.responseHeaders.setRawHeaders(name, list(values))


def _has_no_body(request: Request, status: int) -> bool:
    return request.method == b"HEAD" or status in (204, 304) or status < 200


def _abort(request: Request) -> None:
    """Break the answer off, so that the client does not take it for a whole one."""
    request.abort()


def _is_cancelled(error: Any) -> bool:
    return isinstance(error, CancelledError) or any(
        failure.check(CancelledError) for failure in getattr(error, "reasons", ())
    )


def _unavailable(reason: str) -> BadRequest:
    _log.debug("the homeserver cannot be reached: {reason}", reason=reason)
    return BadRequest("M_UNKNOWN", "The homeserver cannot be reached", status=502)


def build_pool(reactor: Any) -> HTTPConnectionPool:
    """The connections to the homeserver: as many as there are requests, some of them kept."""
    pool: Any = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = KEPT_CONNECTIONS
    pool.cachedConnectionTimeout = KEEP_S
    pool.retryAutomatically = False  # what may be repeated is decided here
    result: HTTPConnectionPool = pool
    return result
