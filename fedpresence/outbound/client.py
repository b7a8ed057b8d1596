"""Requests to other servers: signed ones, and the few that need no signature.

Always true:
- the signature is over the very URI and content that are sent;
- an error says whether the destination may have heard us (`DeliveryFailed.heard`);
- redirects are not followed (F:X-9); every exchange has one deadline.

Source: F:6, F:7.1, F:X-6, Z-5.
"""

from collections import OrderedDict
from collections.abc import Coroutine
from random import Random
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from fedpresence.clock import Clock, now_ms, within
from fedpresence.config import FederationConfig
from fedpresence.errors import BadRequest, DeliveryFailed
from fedpresence.ids import ServerName, is_ip_literal
from fedpresence.outbound.addresses import BlockedNetworks
from fedpresence.outbound.connections import Connections, Resolve, tcp_dial
from fedpresence.outbound.discovery import Discovery
from fedpresence.outbound.exchange import TIMEOUT_S, fetch, http_date_ms, values_of
from fedpresence.outbound.http11 import Answer, Connection, encode_request
from fedpresence.outbound.srv import system_lookup
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.outbound.wellknown import fetch_well_known
from fedpresence.wire.json import decode_json, encode_canonical

MAX_ANSWER_BYTES = 64 * 1024  # Z-5
SEND_PATH = "/_matrix/federation/v1/send/"
MAX_SLASHED = 1_000  # servers remembered as wanting the old trailing slash

T = TypeVar("T")


class Signer(Protocol):
    """Our identity, as far as a request needs it."""

    def authorization_of(self, method: str, uri: str, destination: ServerName, body: bytes | None) -> str:
        """The `Authorization` header of a request; `body` None means that it has none."""


class Link:
    """An open connection to `destination`, for one request."""

    def __init__(self, client: "Client", destination: ServerName, connection: Connection) -> None:
        self._client = client
        self._destination = destination
        self._connection = connection

    def send_transaction(self, txn_id: str, body: bytes) -> Deferred[int]:
        """`PUT /send/{txn_id}`: the 2xx status, or DeliveryFailed. `body` is canonical JSON.

        Old servers want a slash behind it (F:7.1). Which one does is learnt from its refusal, DeliveryFailed
        (not heard), and remembered.
        """
        slashed = self._destination in self._client.slashed
        uri = f"{SEND_PATH}{txn_id}{'/' if slashed else ''}"
        try:
            answer = self.request("PUT", uri, body)
        except DeliveryFailed as error:
            return fail(error)
        return answer.addCallback(self._status_of, slashed)

    def request(self, method: str, uri: str, body: bytes | None) -> Deferred[Answer]:
        """The answer to a signed request, or DeliveryFailed where no status came.

        It says whether the server may have heard us; it is raised where the request was not begun.
        """
        connection = self._connection
        authorization = self._client.signer.authorization_of(method, uri, self._destination, body)
        try:
            request = encode_request(method, uri, connection.route.host_header, authorization, body)
        except ValueError:
            connection.abort()  # or it would stay open, in nobody's hands
            raise
        return connection.request(request, MAX_ANSWER_BYTES, TIMEOUT_S)

    def give_back(self) -> None:
        """There is nothing to send after all."""
        self._connection.give_back()

    def _status_of(self, answer: Answer, slashed: bool) -> int:
        client, destination = self._client, self._destination
        if _is_taken(answer):
            return answer.status
        error = client.refusal(destination, answer)
        if error.errcode != "M_UNRECOGNIZED" or error.status not in (400, 404):
            raise error
        if slashed:
            client.slashed.pop(destination, None)
            raise error
        client.slashed[destination] = None
        if len(client.slashed) > MAX_SLASHED:
            client.slashed.popitem(last=False)
        # Not these bytes again: a right in them may end before another connection stands (S:5).
        raise DeliveryFailed(destination, "wants the trailing slash of old: next time") from error


class Client:
    """Sends requests through discovery, over kept connections.

    `slashed`: the servers that want a slash behind a transaction's ID.
    """

    def __init__(self, clock: Clock, discovery: Discovery, connections: Connections, signer: Signer) -> None:
        self.signer = signer
        self.slashed: OrderedDict[ServerName, None] = OrderedDict()
        self._clock = clock
        self._discovery = discovery
        self._connections = connections

    def kept(self, destination: ServerName) -> Link | None:
        """The connection that is kept to `destination`; None where there is none."""
        route = self._discovery.known_route(destination)
        connection = None if route is None else self._connections.take(route)
        return None if connection is None else Link(self, destination, connection)

    async def open(self, destination: ServerName) -> Link:
        """A connection to `destination`, authenticated; DeliveryFailed (not heard) otherwise."""
        kept = self.kept(destination)
        if kept is not None:
            return kept
        opening = self._find_and_open(destination)
        return Link(self, destination, await self._within_deadline(destination, opening, heard=False))

    async def send(
        self, destination: ServerName, method: str, uri: str, content: object | None
    ) -> tuple[int, bytes]:
        """One signed request: its 2xx status and body, or DeliveryFailed. `content` None: no body."""
        body = None if content is None else encode_canonical(content)
        link = await self.open(destination)
        answer = await link.request(method, uri, body)
        if not _is_taken(answer):
            raise self.refusal(destination, answer)
        return answer.status, answer.body

    async def get_unsigned(self, server_name: ServerName, path: str) -> bytes:
        """The body of a 200 to an unsigned GET (keys); DeliveryFailed otherwise."""
        answer = await self._within_deadline(server_name, self._find_and_fetch(server_name, path), heard=True)
        if answer.status != 200:
            raise self.refusal(server_name, answer)
        return answer.body

    def refusal(self, server_name: ServerName, answer: Answer) -> DeliveryFailed:
        """What an answer says that is no yes."""
        errcode, retry_after_ms = _matrix_error(answer.body)
        header = values_of(answer.headers, b"retry-after")
        if header:
            from_header = _retry_after_ms(header[0], now_ms(self._clock))
            retry_after_ms = from_header if from_header is not None else retry_after_ms
        return DeliveryFailed(
            server_name,
            f"answered {answer.status}" + (f" {errcode}" if errcode else ""),
            status=answer.status,
            errcode=errcode,
            retry_after_ms=retry_after_ms,
            heard=True,
        )

    @property
    def kept_connections(self) -> int:
        """To how many servers connections are kept."""
        return self._connections.kept

    async def close(self) -> None:
        """Close kept connections, end look-ups."""
        await self._discovery.stop()
        await self._connections.close()

    async def _find_and_open(self, server_name: ServerName) -> Connection:
        return await self._connections.open(await self._discovery.route(server_name))

    async def _find_and_fetch(self, server_name: ServerName, path: str) -> Answer:
        route = await self._discovery.route(server_name)
        return await fetch(self._connections, route, path, MAX_ANSWER_BYTES)

    async def _within_deadline(
        self, server_name: ServerName, running: Coroutine[Deferred[Any], Any, T], *, heard: bool
    ) -> T:
        deferred: Deferred[T] = ensureDeferred(running)
        within(deferred, TIMEOUT_S, self._clock)
        try:
            return await deferred
        except DeferredTimeout as error:
            reason = f"no answer in {TIMEOUT_S:.0f} s" if heard else f"no connection in {TIMEOUT_S:.0f} s"
            raise DeliveryFailed(server_name, reason, heard=heard) from error


def _is_taken(answer: Answer) -> bool:
    """By its status alone: some proxies compress unasked, and what is packed is never read (Z-5)."""
    return 200 <= answer.status < 300


def build_client(
    reactor: Any,
    clock: Clock,
    config: FederationConfig,
    signer: Signer,
    random: Random,
    tls: TlsPolicy,
    *,
    connections_per_second: int = 50,
) -> Client:
    """The client that a daemon uses: the system's resolver, real sockets. It opens nothing by itself."""
    connections = Connections(
        clock,
        system_resolve(reactor),
        tcp_dial(reactor),
        tls,
        BlockedNetworks(config.blocked_networks),
        per_second=connections_per_second,
        keep_s=config.keep_connections_ms / 1000,
    )
    discovery = Discovery(
        clock,
        lambda host: fetch_well_known(connections, host),
        system_lookup(reactor),
        config.resolve,
        random,
    )
    return Client(clock, discovery, connections, signer)


def system_resolve(reactor: Any) -> Resolve:
    """The addresses of a host name, as the system orders them."""

    async def resolve(host: str) -> list[str]:
        if is_ip_literal(host):
            return [host]
        receiver = _Addresses()
        reactor.nameResolver.resolveHostName(receiver, host)
        return await receiver.done

    return resolve


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what the resolver says."""

    def __init__(self) -> None:
        self.done: Deferred[list[str]] = Deferred()
        self._addresses: list[str] = []

    def resolutionBegan(self, resolutionInProgress: object) -> None:
        """Nothing to do yet."""

    def addressResolved(self, address: Any) -> None:
        """One more."""
        if address.host not in self._addresses:
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        """That was all; who asked may have gone."""
        if not self.done.called:
            self.done.callback(self._addresses)


def _matrix_error(body: bytes) -> tuple[str | None, int | None]:
    """`errcode` and `retry_after_ms` of an error object; None for what is not there or no good."""
    try:
        error = decode_json(body)
    except BadRequest:
        return None, None
    if not isinstance(error, dict):
        return None, None
    errcode, retry_after_ms = error.get("errcode"), error.get("retry_after_ms")
    if not (isinstance(errcode, str) and errcode.isascii() and errcode.isprintable()):
        errcode = None
    if not isinstance(retry_after_ms, int) or isinstance(retry_after_ms, bool) or retry_after_ms < 0:
        retry_after_ms = None
    return errcode[:64] if errcode else None, retry_after_ms


def _retry_after_ms(value: str, now_ms: int) -> int | None:
    """`Retry-After`: seconds or an HTTP date; None where it is neither."""
    text = value.strip()
    if text.isdecimal():
        return int(text[:10]) * 1000
    date_ms = http_date_ms(text)
    return max(0, date_ms - now_ms) if date_ms is not None else None
