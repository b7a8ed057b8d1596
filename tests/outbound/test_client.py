import gzip
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from fedpresence.config import FederationConfig
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.outbound.client import Client
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.wire.json import encode_canonical
from tests.asynchronous import as_deferred, failure_of, result_of
from tests.outbound.network import PUBLIC, PUBLIC_2, START_S, Authority, Network, Recorder

T = TypeVar("T")
THERE = ServerName("there.test:8448")
CONTENT = {"origin": "here.test", "origin_server_ts": 1, "pdus": [], "edus": []}


def done(network: Network, awaitable: Awaitable[T]) -> "Deferred[T]":
    """Started, and carried as far as it goes."""
    deferred = as_deferred(awaitable)
    network.flush()
    return deferred


def put(network: Network, client: Client, txn_id: str = "fp1") -> "Deferred[Any]":
    async def send() -> int:
        link = await client.open(THERE)
        return await link.send_transaction(txn_id, encode_canonical(CONTENT))

    return done(network, send())


def taken(request: Any) -> bytes:
    return b'{"pdus":{}}'


def a_server(network: Network, answer: Any = taken) -> Recorder:
    """A server `there.test:8448`."""
    server = Recorder(answer)
    network.names["there.test"] = [PUBLIC]
    network.host(PUBLIC, 8448, server, "there.test")
    return server


def test_a_transaction_arrives_signed_over_its_very_uri_and_bytes(network: Network) -> None:
    """A signature over anything else is refused by every server."""
    server = a_server(network)

    status = result_of(put(network, network.client()))

    method, uri, headers, body = server.requests[0]
    assert status == 200
    assert (method, uri) == (b"PUT", b"/_matrix/federation/v1/send/fp1")
    assert body == b'{"edus":[],"origin":"here.test","origin_server_ts":1,"pdus":[]}'
    signed = f"signed PUT /_matrix/federation/v1/send/fp1 there.test:8448 {body.decode()}"
    assert headers.getRawHeaders("Authorization") == [signed]
    assert headers.getRawHeaders("Host") == ["there.test:8448"]
    assert headers.getRawHeaders("Content-Type") == ["application/json"]
    assert not headers.hasHeader("Accept-Encoding")


def test_the_second_transaction_takes_the_connection_of_the_first(network: Network) -> None:
    """A TLS handshake costs more than all the rest of a transaction."""
    server = a_server(network)
    client = network.client()

    result_of(put(network, client, "fp1"))
    result_of(put(network, client, "fp2"))

    assert len(server.requests) == 2
    assert network.dialled == [(PUBLIC, 8448)]


def test_sni_is_the_name_of_the_certificate(network: Network) -> None:
    """Many servers share an address, and show the certificate that SNI asks for (F:5.2)."""
    a_server(network)

    result_of(put(network, network.client()))

    assert network.sni == [b"there.test"]


def test_a_server_with_the_certificate_of_another_is_told_nothing(network: Network) -> None:
    """Whoever takes over an address must not receive presence (F:5.2)."""
    server = Recorder(taken)
    network.names["there.test"] = [PUBLIC]
    network.host(PUBLIC, 8448, server, "elsewhere.test")

    error = failure_of(put(network, network.client()), DeliveryFailed)

    assert not error.heard
    assert server.requests == []


def test_a_certificate_of_an_unknown_authority_is_told_nothing(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Anybody can make a certificate for any name."""
    server = a_server(network)
    stranger = Authority(tmp_path_factory.mktemp("stranger"))

    error = failure_of(put(network, network.client(tls=TlsPolicy(ca_file=stranger.ca_file))), DeliveryFailed)

    assert not error.heard
    assert server.requests == []


def test_an_ip_name_is_verified_by_its_ip_and_sends_no_sni(network: Network) -> None:
    """An IP literal is a server name like any other, and SNI has no form for it (F:5.2)."""
    server = Recorder(taken)
    network.host(PUBLIC, 8448, server, PUBLIC)
    network.host(PUBLIC_2, 8448, server, PUBLIC)
    client = network.client()

    good = done(network, client.send(ServerName(PUBLIC), "PUT", "/_matrix/x", {}))
    bad = done(network, client.send(ServerName(PUBLIC_2), "PUT", "/_matrix/x", {}))

    assert result_of(good)[0] == 200
    assert not failure_of(bad, DeliveryFailed).heard
    assert network.sni[0] is None
    assert len(server.requests) == 1


def test_without_verification_any_certificate_will_do_and_sni_stays(network: Network) -> None:
    """`verify_certificates: false` is for tests; servers behind one address still need SNI."""
    server = Recorder(taken)
    network.names["there.test"] = [PUBLIC]
    network.host(PUBLIC, 8448, server, "elsewhere.test")

    assert result_of(put(network, network.client(tls=TlsPolicy(verify=False)))) == 200
    assert network.sni == [b"there.test"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
)
def test_a_name_that_resolves_into_a_blocked_network_is_never_dialled(network: Network, address: str) -> None:
    """A name on the internet may point at our own loopback (Z-5)."""
    network.names["there.test"] = [address]

    error = failure_of(put(network, network.client()), DeliveryFailed)

    assert "blocked" in error.reason
    assert network.dialled == []


def test_the_next_address_is_tried_where_one_refuses(network: Network) -> None:
    """A dead IPv6 address must not cut a server off."""
    a_server(network)
    network.names["there.test"] = ["2606:2800:21f:cb07::1", PUBLIC]

    assert result_of(put(network, network.client())) == 200
    assert network.dialled == [("2606:2800:21f:cb07::1", 8448), (PUBLIC, 8448)]


def test_a_fixed_address_may_be_anywhere_and_keeps_the_name(network: Network) -> None:
    """`federation.resolve` is the operator's own word: loopback too, with the name's certificate."""
    server = Recorder(taken)
    network.host("127.0.0.1", 9999, server, "there.test")
    client = network.client(resolve={THERE: ("127.0.0.1", 9999)})

    assert result_of(put(network, client)) == 200
    assert network.sni == [b"there.test"]
    assert server.requests[0][2].getRawHeaders("Host") == ["there.test:8448"]


def test_a_refused_connection_was_not_heard(network: Network) -> None:
    """What surely did not arrive is rebuilt, not repeated (F:X-3)."""
    network.names["there.test"] = [PUBLIC]

    error = failure_of(put(network, network.client()), DeliveryFailed)

    assert (error.heard, error.status) == (False, None)


def test_silence_after_sending_may_have_been_heard(network: Network) -> None:
    """A timeout says nothing about what the server did (F:X-3, F:X-6)."""
    a_server(network, lambda request: NOT_DONE_YET)

    sending = put(network, network.client())
    network.clock.advance(61)

    error = failure_of(sending, DeliveryFailed)
    assert (error.heard, error.status) == (True, None)


class _HangUp(Protocol):
    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.loseConnection()


def test_a_connection_lost_after_sending_may_have_been_heard(network: Network) -> None:
    """The server may have crashed before or after it took the transaction."""
    network.names["there.test"] = [PUBLIC]
    certificate = network.authority.certificate_for("there.test")
    network.listen(PUBLIC, 8448, Factory.forProtocol(_HangUp), certificate)

    error = failure_of(put(network, network.client()), DeliveryFailed)

    assert (error.heard, error.status) == (True, None)


def test_a_connection_that_the_other_end_closed_first_can_be_aborted(network: Network) -> None:
    """Whoever aborts cannot know who was quicker."""
    a_server(network)
    link = result_of(done(network, network.client().open(THERE)))
    tls: Any = link._connection.transport
    tls.connectionLost(Failure(ConnectionLost()))

    link._connection.abort()


def an_error(status: int, body: bytes, **headers: str) -> Any:
    def answer(request: Any) -> bytes:
        request.setResponseCode(status)
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-"), value)
        return body

    return answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (an_error(500, b""), (500, None, None)),
        (an_error(502, b"<html>"), (502, None, None)),
        (an_error(429, b'{"errcode":"M_LIMIT","retry_after_ms":1500}'), (429, "M_LIMIT", 1500)),
        (an_error(429, b'{"errcode":"M_UNKNOWN"}', Retry_After="7"), (429, "M_UNKNOWN", 7000)),
        (an_error(503, b"", Retry_After="Tue, 14 Nov 2023 22:13:50 GMT"), (503, None, 30_000)),
        (an_error(503, b"", Retry_After="soon"), (503, None, None)),
        (an_error(403, b'{"errcode":[],"retry_after_ms":true}'), (403, None, None)),
        (an_error(302, b"", Location="https://elsewhere.test/"), (302, None, None)),
    ],
)
def test_a_refusal_says_what_and_for_how_long(network: Network, answer: Any, expected: Any) -> None:
    """The sender waits, splits or sets aside by these three; a redirect is not followed (F:X-7, F:X-9)."""
    assert network.clock.seconds() == START_S == 1_700_000_000
    a_server(network, answer)

    error = failure_of(put(network, network.client()), DeliveryFailed)

    assert (error.status, error.errcode, error.retry_after_ms) == expected
    assert error.heard


def test_an_endless_answer_is_read_to_the_cap_and_its_status_counts(network: Network) -> None:
    """An answer must not fill our memory, and a 200 stays a 200 (Z-5)."""

    def endless(request: Any) -> Any:
        for _ in range(100):
            request.write(b"x" * 1000)
        return NOT_DONE_YET

    a_server(network, endless)

    assert result_of(put(network, network.client())) == 200


@pytest.mark.parametrize("status", [200, 429, 403])
def test_the_status_of_an_encoded_answer_counts_and_its_body_is_not_read(
    network: Network, status: int
) -> None:
    """Without `Accept-Encoding` any is allowed (RFC 9110): who took a transaction must not get it again.

    Unpacked it is not: a few bytes may be gigabytes (Z-5).
    """
    packed = gzip.compress(b'{"errcode":"M_PACKED","retry_after_ms":1500}')
    a_server(network, an_error(status, packed, Content_Encoding="gzip", Retry_After="7"))

    answer = put(network, network.client())

    if status == 200:
        assert result_of(answer) == 200
    else:
        error = failure_of(answer, DeliveryFailed)
        assert (error.status, error.errcode, error.retry_after_ms) == (status, None, 7000)


def test_encoded_keys_are_refused(network: Network) -> None:
    """A few bytes may unpack to gigabytes; we never ask for them (Z-5)."""
    a_server(network, an_error(200, b"\x1f\x8b", Content_Encoding="gzip"))

    keys = done(network, network.client().get_unsigned(THERE, "/_matrix/key/v2/server"))

    failure_of(keys, DeliveryFailed)


def test_keys_are_fetched_unsigned_and_without_asking_for_compression(network: Network) -> None:
    """Key requests have no authentication (F:4); treq would ask for gzip by itself (Z-5)."""
    server = a_server(network, lambda request: b"{}")

    body = result_of(done(network, network.client().get_unsigned(THERE, "/_matrix/key/v2/server")))

    method, uri, headers, _ = server.requests[0]
    assert (body, method, uri) == (b"{}", b"GET", b"/_matrix/key/v2/server")
    assert headers.getRawHeaders("Host") == ["there.test:8448"]
    assert not headers.hasHeader("Authorization")
    assert not headers.hasHeader("Accept-Encoding")


def test_a_connection_for_keys_is_closed_after_the_answer(network: Network) -> None:
    """Strangers make us ask as many servers as they like, and few twice: none may hold a connection."""
    server = a_server(network, lambda request: b"{}")
    client = network.client()

    for _ in range(2):
        result_of(done(network, client.get_unsigned(THERE, "/_matrix/key/v2/server")))

    assert network.dialled == [(PUBLIC, 8448)] * 2
    assert [headers.getRawHeaders("Connection") for _, _, headers, _ in server.requests] == [["close"]] * 2
    assert client.kept_connections == 0


class _NeverParts(Protocol):
    """Answers, and does not take part in ending TLS."""

    answer = b""

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport._flushReceiveBIO = lambda: None
        transport.write(self.answer)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"no HTTP\r\n\r\n"],
)
def test_nobody_who_is_asked_for_keys_can_hold_our_connection(network: Network, answer: bytes) -> None:
    """Strangers choose whom we ask: a server that never closes would cost us a socket each time."""
    network.names["there.test"] = [PUBLIC]
    factory = Factory.forProtocol(type("_Server", (_NeverParts,), {"answer": answer}))
    network.listen(PUBLIC, 8448, factory, network.authority.certificate_for("there.test"))

    fetching = done(network, network.client().get_unsigned(THERE, "/_matrix/key/v2/server"))

    fetching.addErrback(lambda failure: failure.trap(DeliveryFailed))
    assert fetching.called
    assert [pump.clientIO.disconnected for pump in network.pumps] == [True]


def test_a_name_that_would_slip_a_line_into_the_request_sends_nothing(network: Network) -> None:
    """Nor does the connection stay open."""
    server = a_server(network)

    sending = done(network, network.client().send(THERE, "PUT", "/_matrix/x HTTP/1.1\r\nA: b", {}))

    failure_of(sending, ValueError)
    network.flush()
    assert server.requests == []
    assert not network.clock.getDelayedCalls()


def test_an_old_server_gets_its_trailing_slash_and_is_remembered(network: Network) -> None:
    """Synapse up to 0.99.2 knows only the path with the slash (F:7.1)."""

    def old(request: Any) -> bytes:
        if request.uri.endswith(b"/"):
            return b"{}"
        request.setResponseCode(404)
        return b'{"errcode":"M_UNRECOGNIZED"}'

    server = a_server(network, old)
    client = network.client()

    refused = failure_of(put(network, client, "fp1"), DeliveryFailed)
    result_of(put(network, client, "fp2"))

    assert (refused.status, refused.heard) == (None, False), "made anew, not repeated"
    assert [uri[-4:] for _, uri, _, _ in server.requests] == [b"/fp1", b"fp2/"]
    assert b"/fp2/ " in server.requests[1][2].getRawHeaders(b"Authorization")[0]


def test_a_server_that_knows_neither_form_is_not_taken_for_an_old_one(network: Network) -> None:
    """A proxy that answers 404 to everything must not be asked twice for ever (F:7.1)."""

    def strange(request: Any) -> bytes:
        request.setResponseCode(404)
        return b'{"errcode":"M_UNRECOGNIZED"}'

    server = a_server(network, strange)
    client = network.client()

    failures = [failure_of(put(network, client, f"fp{n}"), DeliveryFailed) for n in (1, 2, 3)]

    assert [failure.status for failure in failures] == [None, 404, None]
    assert [uri[-4:] for _, uri, _, _ in server.requests] == [b"/fp1", b"fp2/", b"/fp3"]


def test_no_more_connections_are_opened_than_the_budget_allows(network: Network) -> None:
    """After an outage of ours thousands of destinations are due at once (decision 15)."""
    client = network.client(per_second=2)
    for number in range(4):
        name = ServerName(f"{number}.test:8448")
        network.names[f"{number}.test"] = [PUBLIC]
        done(network, client.open(name)).addErrback(lambda _: None)

    assert len(network.dialled) == 2
    network.clock.advance(1.1)
    network.flush()
    assert len(network.dialled) == 4


def test_a_closed_client_keeps_no_connection(network: Network) -> None:
    """A clean stop leaves nothing open."""
    a_server(network)
    client = network.client()
    result_of(put(network, client))

    result_of(done(network, client.close()))
    result_of(put(network, client))

    assert network.dialled == [(PUBLIC, 8448)] * 2


def test_a_server_without_a_connection_is_not_remembered(network: Network) -> None:
    """Strangers make us fetch keys under as many names as they like: none may stay in memory for ever."""
    a_server(network)
    client = network.client()
    result_of(put(network, client))
    assert client.kept_connections == 1

    network.clock.advance(FederationConfig().keep_connections_ms / 1000 + 1)
    network.flush()

    assert client.kept_connections == 0


def test_a_connection_that_was_not_used_serves_again_and_ages_on(network: Network) -> None:
    """The other side closes it by its own clock, which counts from the last request."""
    a_server(network)
    client = network.client()
    keep_s = FederationConfig().keep_connections_ms / 1000
    result_of(put(network, client))
    network.clock.advance(keep_s - 1)

    result_of(done(network, client.open(THERE))).give_back()

    assert client.kept_connections == 1
    result_of(done(network, client.open(THERE))).give_back()
    assert network.dialled == [(PUBLIC, 8448)]
    network.clock.advance(2)
    assert client.kept_connections == 0


def test_headers_that_are_no_text_are_an_answer_like_any_other(network: Network) -> None:
    """Twisted's decoding raises: a peer could fill our log with tracebacks, one for each of our tries."""

    def odd(request: Any) -> bytes:
        request.setResponseCode(503)
        for name in (b"Retry-After", b"Content-Encoding"):
            request.responseHeaders.setRawHeaders(name, [b"" if name[0:1] == b"C" else b"\xff\xb2"])
        return b"{}"

    a_server(network, odd)

    failure = failure_of(put(network, network.client()), DeliveryFailed)

    assert (failure.status, failure.retry_after_ms) == (503, None)
