"""One directed path between two servers, that can be broken: a TLS reverse proxy on a port of its own.

Always true:
- whoever connects finds what it would find at the destination itself: no port where it does not listen,
  its certificate, its answers; and it is told apart from other servers by its address, `source`;
- what is on its way when the path goes down, or when the destination ceases to listen, is lost;
- a request that is delayed arrives even if its sender has given up meanwhile;
- of a transaction that got no answer the wire log says why;
- all waiting is by the rig's clock, and only where a fault says so.

Source: contract.md, "Test rig".
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast
from urllib.parse import unquote

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http import RESPONSES
from twisted.web.http_headers import Headers

from fedpresence.clock import Clock, now_ms
from fedpresence.errors import BadRequest, reason_of
from fedpresence.ids import ServerName, split_server_name
from fedpresence.listening import BACKLOG, Certificates
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.outbound.tls_connection import authenticated
from fedpresence.testing.rig.faults import NO_FAULTS, Fate, Faults
from fedpresence.testing.rig.relay import Answer, Asked, Front, Message, Upstream
from fedpresence.testing.rig.wirelog import UNKNOWN, WireLog
from fedpresence.wire.signing import parse_x_matrix

_log = Logger()

SEND_PATH = b"/_matrix/federation/v1/send/"
LOOPBACK = "127.0.0.1"
RETRY_AFTER_MS = 1_000  # of a 429 that is made up
GARBAGE_BYTES = 64

_SENDER_LEFT = "its sender left"
_WAS_SHUT = "the path was shut"
_UNANSWERED = (ResponseNeverReceived, ResponseFailed)  # the connection ended behind the request

Target = Callable[[], tuple[str, int] | None]
"""Where the destination listens now; None where it does not."""


@dataclass(frozen=True, slots=True)
class LinkTls:
    """What a path shows, and what it trusts.

    `certificate` is the files of the private key and the chain that it shows in the destination's stead.
    `ca_file` has the authorities that vouch for the destination itself; None: the system's.
    """

    certificate: tuple[Path, Path]
    ca_file: Path | None


@dataclass(frozen=True, slots=True)
class _Passing:
    """One request on its way. `number` is its place in the wire log, None where it is no transaction."""

    asked: Asked
    origin: ServerName
    faults: Faults
    fate: Fate
    number: int | None


@dataclass(frozen=True, slots=True)
class _Held:
    """A transaction that was overtaken."""

    message: Message
    number: int | None


class _Path(ABC):
    """What links and doors have in common: a port that is open or shut, and requests on their way."""

    def __init__(
        self,
        destination: ServerName,
        port: int,
        reactor: Any,
        clock: Clock,
        random: Random,
        tls: LinkTls,
        target: Target,
        wire: WireLog,
        source: str | None,
    ) -> None:
        self.destination = destination
        self.port = port
        self._reactor = reactor
        self._clock = clock
        self._random = random
        self._target = target
        self._wire = wire
        self._source = source
        self._shown = Certificates(*tls.certificate)
        self._tls_name, _ = split_server_name(destination)
        self._trust = TlsPolicy(ca_file=tls.ca_file)
        self._front = Front(self._receive, self._dial, clock, self._changed)
        self._under_way: set[Deferred[None]] = set()
        self._held: dict[ServerName, _Held] = {}
        self._is_started = False
        self._listening: Any = None
        self._closing: Deferred[Any] | None = None
        self._waiting: list[Deferred[None]] = []

    async def start(self) -> None:
        """Listen, if the destination does. CannotListenError where the port is taken."""
        self._is_started = True
        self.refresh()
        await self.settled()

    async def stop(self) -> None:
        """Close the port and all connections; returns once they are gone."""
        self._is_started = False
        self.refresh()
        await self.settled()

    def refresh(self) -> None:
        """Open or shut the port: the destination may have begun or ceased to listen."""
        if self._is_started and not self._is_down() and self._target() is not None:
            if self._listening is None and self._closing is None:
                self._listening = self._reactor.listenSSL(
                    self.port, self._front, self._shown, backlog=BACKLOG, interface=LOOPBACK
                )
        else:
            self._shut()
        self._changed()

    async def settled(self) -> None:
        """Wait until the port is as it should be: to close one takes the reactor a moment.

        And where it is shut, until every connection is gone.
        """
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        self._changed()
        await waiting

    # --- what links and doors do differently -----------------------------------------------------

    @abstractmethod
    def _is_down(self) -> bool:
        """Whether the port is shut, whatever the destination does."""

    @abstractmethod
    def _origin_of(self, asked: Asked) -> ServerName:
        """Who sends a request."""

    @abstractmethod
    def _faults_of(self, origin: ServerName) -> Faults:
        """What is wrong with the path for whom."""

    # --- the port --------------------------------------------------------------------------------

    def _shut(self) -> None:
        if self._listening is not None:
            self._closing = maybeDeferred(self._listening.stopListening)
            self._listening = None
            self._closing.addBoth(self._closed)
        self._held.clear()
        for passing in list(self._under_way):
            passing.cancel()
        self._front.abort()

    def _closed(self, result: object) -> None:
        self._closing = None
        if isinstance(result, Failure):
            _log.failure("closing port {port} failed", result, port=self.port)
        self.refresh()

    def _changed(self) -> None:
        """Tell whoever waits for the port, or for the end of all connections."""
        if self._closing is None and (self._listening is not None or self._front.is_empty):
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    async def _dial(self, factory: Any) -> Any:
        target = self._target()
        if target is None:
            raise ConnectionError(f"{self.destination} does not listen")
        host, port = target
        kind: Any = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
        endpoint = kind(self._reactor, host, port, timeout=None)
        return await authenticated(endpoint, self._trust.session_with(self._tls_name), factory)

    # --- a request -------------------------------------------------------------------------------

    def _receive(self, asked: Asked) -> None:
        origin = self._origin_of(asked)
        faults = self._faults_of(origin)
        if faults.down:
            asked.connection.abort()
            return
        message = asked.message
        txn_id = _txn_id_of(message)
        number = None
        if txn_id is not None:
            number = self._wire.record(origin, self.destination, txn_id, message.body, now_ms(self._clock))
        source = self._source or asked.connection.peer_host
        message.headers.addRawHeader(b"X-Forwarded-For", source.encode())
        fate = faults.fate(self._random, is_transaction=number is not None)
        passing = _Passing(asked, origin, faults, fate, number)
        running = ensureDeferred(self._pass(passing))
        if not running.called:
            self._under_way.add(running)
        running.addBoth(self._passed, running, passing)

    def _passed(self, result: object, running: Deferred[None], passing: _Passing) -> None:
        self._under_way.discard(running)
        if isinstance(result, Failure):
            reason = self._why(result, passing.asked)
            self._note(passing.number, f"failed: {reason}")
            _log.debug("{destination} gave no answer: {reason}", destination=self.destination, reason=reason)
            if not passing.asked.has_gone:
                passing.asked.connection.abort()  # as the sender would see it

    def _why(self, failure: Failure, asked: Asked) -> str:
        if failure.value is None or self._listening is None:  # all that was on its way is cancelled
            return _WAS_SHUT
        if asked.has_gone and failure.check(*_UNANSWERED):
            return _SENDER_LEFT
        return reason_of(failure.value)

    async def _pass(self, passing: _Passing) -> None:
        faults = passing.faults
        if faults.hang:
            self._note(passing.number, "taken, never answered")
            return
        if passing.fate.is_lost:
            self._note(passing.number, "request lost")
            return
        if faults.latency_ms:
            self._note(passing.number, f"delayed by {faults.latency_ms} ms")
            await self._wait(faults.latency_ms)
        if faults.answers_itself(is_transaction=passing.number is not None):
            await self._answer_instead(passing)
        elif passing.fate.is_held and passing.origin not in self._held:
            self._held[passing.origin] = _Held(passing.asked.message, passing.number)
            self._note(passing.number, "held back")
        else:
            await self._forward(passing)

    async def _forward(self, passing: _Passing) -> None:
        asked = passing.asked
        upstream = asked.connection.upstream
        answer = await upstream.exchange(asked.message)
        if passing.fate.is_doubled and not upstream.was_left:
            await self._forward_again(passing, upstream)
        if passing.number is not None and not upstream.was_left:
            await self._deliver_late(passing.origin, upstream)
        if passing.fate.answer_is_lost:
            self._note(passing.number, f"answer lost ({answer.status})")
        else:
            await self._answer(passing, answer)

    async def _forward_again(self, passing: _Passing, upstream: Upstream) -> None:
        message = passing.asked.message
        txn_id = _txn_id_of(message)
        number = None
        if txn_id is not None:
            number = self._wire.record(
                passing.origin,
                self.destination,
                txn_id,
                message.body,
                now_ms(self._clock),
                duplicate=True,
            )
        await self._forward_aside(message, number, upstream)

    async def _deliver_late(self, origin: ServerName, upstream: Upstream) -> None:
        held = self._held.pop(origin, None)
        if held is not None:
            self._note(held.number, "delivered late")
            await self._forward_aside(held.message, held.number, upstream)

    async def _forward_aside(self, message: Message, number: int | None, upstream: Upstream) -> None:
        """Forward what nobody waits for: that it fails is no reason to withhold another's answer."""
        try:
            answer = await upstream.exchange(message)
        except CancelledError:
            raise
        except Exception as error:
            self._note(number, f"not received: {type(error).__name__}")
        else:
            self._note(number, f"received with {answer.status}")

    # --- answers ---------------------------------------------------------------------------------

    async def _answer_instead(self, passing: _Passing) -> None:
        faults = passing.faults
        if faults.status is None:
            self._note(passing.number, "answered with garbage")
            asked = passing.asked
            if not asked.has_gone:
                # The first byte cannot begin an HTTP answer; the last ones have it looked at.
                asked.connection.send(b"\x80" + self._random.randbytes(GARBAGE_BYTES) + b"\r\n\r\n")
                asked.connection.end()
            return
        self._note(passing.number, "answered on the way")
        body = self._random.randbytes(GARBAGE_BYTES) if faults.garbage else _body_for(faults.status)
        phrase = RESPONSES.get(faults.status, b"Unknown Status")
        headers = Headers({b"Content-Type": [b"application/json"]})
        await self._answer(passing, Answer(faults.status, phrase, headers, body))

    async def _answer(self, passing: _Passing, answer: Answer) -> None:
        asked = passing.asked
        if passing.faults.trickle_ms:
            asked.connection.persistent = False
            for byte in asked.encoded(answer):
                await self._wait(passing.faults.trickle_ms)
                if asked.has_gone:
                    break
                asked.connection.send(bytes((byte,)))
        if asked.has_gone:
            self._note(passing.number, f"failed: {_SENDER_LEFT}")
            return
        if passing.faults.trickle_ms:
            asked.connection.end()
        else:
            asked.answer(answer)
        if passing.number is not None:
            self._wire.answered(passing.number, answer.status, now_ms(self._clock))

    def _wait(self, delay_ms: int) -> Deferred[None]:
        return deferLater(cast(IReactorTime, self._clock), delay_ms / 1000)

    def _note(self, number: int | None, note: str) -> None:
        if number is not None:
            self._wire.note(number, note)


class Link(_Path):
    """The path from one server to another.

    `target` says where the destination listens; `source` is the address that `origin` has for it.
    """

    def __init__(
        self,
        origin: ServerName,
        destination: ServerName,
        port: int,
        reactor: Any,
        clock: Clock,
        random: Random,
        tls: LinkTls,
        target: Target,
        wire: WireLog,
        *,
        source: str | None = None,
    ) -> None:
        super().__init__(destination, port, reactor, clock, random, tls, target, wire, source)
        self.origin = origin
        self._faults = NO_FAULTS

    @property
    def faults(self) -> Faults:
        """What is wrong with the path. Setting it takes effect at once, for what comes from then on."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self.refresh()

    def _is_down(self) -> bool:
        return self._faults.down

    def _origin_of(self, asked: Asked) -> ServerName:
        return self.origin

    def _faults_of(self, origin: ServerName) -> Faults:
        return self._faults


class Door(_Path):
    """The public entrance of one server, for everybody who has no link to it.

    Who comes is known by what the request claims. The port cannot be shut for one of them: where the path
    is down for it, its connection is reset as soon as it asks for something.
    """

    def __init__(
        self,
        destination: ServerName,
        port: int,
        reactor: Any,
        clock: Clock,
        random: Random,
        tls: LinkTls,
        target: Target,
        wire: WireLog,
        faults_of: Callable[[ServerName], Faults],
        *,
        source: str | None = None,
    ) -> None:
        super().__init__(destination, port, reactor, clock, random, tls, target, wire, source)
        self._faults_of_origin = faults_of

    def _is_down(self) -> bool:
        return False

    def _origin_of(self, asked: Asked) -> ServerName:
        for header in asked.requestHeaders.getRawHeaders(b"Authorization", []):
            try:
                return parse_x_matrix(header).origin
            except BadRequest:
                continue
        return UNKNOWN

    def _faults_of(self, origin: ServerName) -> Faults:
        return NO_FAULTS if origin == UNKNOWN else self._faults_of_origin(origin)


def _txn_id_of(message: Message) -> str | None:
    """The transaction ID of a `PUT /send/{txnId}`; None where the request is another."""
    if message.method != b"PUT" or not message.uri.startswith(SEND_PATH):
        return None
    segment = message.uri[len(SEND_PATH) :].partition(b"?")[0].removesuffix(b"/")
    return unquote(segment.decode("latin-1")) if segment and b"/" not in segment else None


def _body_for(status: int) -> bytes:
    if status < 300:
        return b'{"pdus":{}}'
    body: dict[str, object] = {"errcode": "M_UNKNOWN", "error": "A fault of the rig"}
    if status == 429:
        body = {
            "errcode": "M_LIMIT_EXCEEDED",
            "error": "A fault of the rig",
            "retry_after_ms": RETRY_AFTER_MS,
        }
    return json.dumps(body).encode()
