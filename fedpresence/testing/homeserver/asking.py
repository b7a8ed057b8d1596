"""The HTTPS client of a fake homeserver: one request, one connection, whatever comes back.

Always true:
- the other server must show a certificate for the host of its name, from the authorities of `ca_file`;
- a request never fails, but ends with an answer or with the reason why there is none.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from fedpresence.clock import Clock, within
from fedpresence.ids import ServerName, split_server_name
from fedpresence.testing.homeserver.orders import Answered

AddressOf = Callable[[ServerName], tuple[str, int]]
_Agent: Any = Agent  # untyped in Twisted, as are the others
_Pool: Any = HTTPConnectionPool
_TLSFactory: Any = TLSMemoryBIOFactory
_END = b"-----END CERTIFICATE-----"


class Asking:
    """Makes requests to other servers, at the addresses that `address_of` gives.

    The addresses are IP literals: a host name would be looked up in a thread.
    """

    def __init__(self, reactor: Any, clock: Clock, ca_file: Path, address_of: AddressOf) -> None:
        self._reactor = reactor
        self._clock = clock
        self._ca_file = ca_file
        self._address_of = address_of
        self._under_way: set[Deferred[Answered]] = set()

    async def ask(
        self,
        server_name: ServerName,
        method: str,
        uri: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
    ) -> Answered:
        """What the server answers. LookupError where `address_of` knows no such server."""
        host, port = self._address_of(server_name)
        endpoint = _Endpoint(self._reactor, host, port, self._options(server_name))
        started_s = self._clock.seconds()
        asking = ensureDeferred(self._exchange(endpoint, server_name, method, uri, headers, body))
        self._under_way.add(asking)
        try:
            answered = await within(asking, timeout_s, self._clock)
        finally:
            self._under_way.discard(asking)
        if answered.status is None and self._clock.seconds() - started_s >= timeout_s:
            return Answered(None, reason=f"no answer within {timeout_s:g} s")
        return answered

    def stop(self) -> None:
        """Wait for no answer any more."""
        for asking in list(self._under_way):
            asking.cancel()

    async def _exchange(
        self,
        endpoint: "_Endpoint",
        server_name: ServerName,
        method: str,
        uri: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Answered:
        pool = _Pool(self._reactor, persistent=False)
        agent = _Agent.usingEndpointFactory(self._reactor, endpoint, pool)
        raw = Headers({name: [value] for name, value in headers.items()})
        raw.setRawHeaders("Host", [server_name])
        url = f"https://{server_name}{uri}".encode("ascii")
        producer = None if body is None else _Body(body)
        try:
            response = await agent.request(method.encode("ascii"), url, raw, producer)
        except CancelledError:
            return Answered(None, reason="no answer: given up")
        except Exception as error:
            return Answered(None, reason=f"no answer: {_reason(error)}")
        answered = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        collected = _Collected(endpoint.abort)
        response.deliverBody(collected)
        data, problem = await collected.whole
        if problem:
            return Answered(response.code, None, answered, f"its body broke off: {problem}")
        return Answered(response.code, _parsed(data), answered)

    def _options(self, server_name: ServerName) -> Any:
        parts = self._ca_file.read_bytes().split(_END)
        authorities = [Certificate.loadPEM(part + _END) for part in parts[:-1]]
        host, _ = split_server_name(server_name)
        return optionsForClientTLS(host, trustRoot=trustRootFromCertificates(authorities))


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Endpoint:
    """TLS to one address; no timer of its own, for the reactor's would not be the clock's."""

    def __init__(self, reactor: Any, host: str, port: int, options: Any) -> None:
        kind: Any = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
        self._tcp = kind(reactor, host, port, timeout=None)
        self._reactor = reactor
        self._options = options
        self._tls: Any = None

    def endpointForURI(self, uri: object) -> "_Endpoint":
        """Itself, whatever the URI."""
        return self

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        """Connect; the request waits in TLS until the server is authenticated."""
        # As endpoints.wrapClientTLS, which would take the global reactor for its clock.
        factory = _TLSFactory(self._options, True, protocolFactory, self._reactor)
        connected: Deferred[Any] = self._tcp.connect(factory)
        return connected.addCallback(self._connected)

    def abort(self) -> None:
        """End the connection that was made."""
        self._tls.transport.abortConnection()

    def _connected(self, tls: Any) -> Any:
        self._tls = tls
        return tls.wrappedProtocol


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


class _Collected(Protocol):
    """A body that arrives; `whole` is what came, with what was wrong about its end."""

    def __init__(self, abort: Callable[[], None]) -> None:
        self._data: list[bytes] = []
        self._abort = abort
        self.whole: Deferred[tuple[bytes, str]] = Deferred(self._given_up)

    def dataReceived(self, data: bytes) -> None:
        self._data.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.whole.called:
            # A body whose length was not said may be whole: nobody can know.
            is_whole = isinstance(reason.value, (ResponseDone, PotentialDataLoss))
            self.whole.callback((b"".join(self._data), "" if is_whole else _reason(reason.value)))

    def _given_up(self, whole: "Deferred[tuple[bytes, str]]") -> None:
        whole.callback((b"", "given up"))
        self._abort()


def _parsed(data: bytes) -> object:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")
    return value


def _reason(error: BaseException | None) -> str:
    reasons = getattr(error, "reasons", None)  # Twisted's ResponseFailed and its kin
    if reasons:
        error = reasons[0].value
    text = str(error).strip()
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
