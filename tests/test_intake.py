from collections.abc import Awaitable
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fedpresence.admission import Admitted, BodyBudget, Claimant, RequestHead
from fedpresence.config import LimitsConfig
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName
from fedpresence.intake import LINGER_BYTES, LINGER_S, REQUEST_TIMEOUT_S
from fedpresence.site import CLOSE_S, BoundedSite
from tests.asynchronous import result_of
from tests.http_wire import Client, Echo, request

THERE = ServerName("there.test")
AT_HOME, CLAIMED = Claimant(THERE, "192.0.2.1"), Claimant(THERE, "192.0.2.2")
LIMITS = LimitsConfig(client_body=100, connections=3)


class Listener:
    """A site with an echo behind it and a clock that tests move."""

    def __init__(self, limits: LimitsConfig = LIMITS, budget: int = 10_000) -> None:
        self.clock = Clock()
        self.echo = Echo()
        self.budget = BodyBudget(budget)
        self.heads: list[RequestHead] = []
        self.decision: Awaitable[Admitted] | None = None
        self.site = BoundedSite(self.echo, limits, self.clock, self.budget, self._admit)

    def _admit(self, head: RequestHead) -> Awaitable[Admitted] | None:
        self.heads.append(head)
        if head.uri == b"/refused":
            raise BadRequest("M_FORBIDDEN", "No", status=403)
        return self.decision if head.uri.startswith(b"/guarded") else None

    def undecided(self) -> "Deferred[Admitted]":
        """From now on `/guarded` waits for this."""
        decision: Deferred[Admitted] = Deferred()
        self.decision = decision
        return decision


def test_a_body_up_to_the_limit_is_taken() -> None:
    """The good side of the limit."""
    listener = Listener()
    client = Client(listener.site)

    client.send(request("POST", "/", b"x" * 100))

    assert client.answer.json == {"size": 100}
    assert not client.closed
    assert listener.budget.used == 0


def test_a_body_announced_beyond_the_limit_is_refused_by_its_head() -> None:
    """Not a byte of it is waited for: the announcement is enough."""
    listener = Listener()
    client = Client(listener.site)

    client.send(request("POST", "/", b"x" * 101)[:-101])

    assert (client.answer.status, client.answer.json["errcode"]) == (413, "M_TOO_LARGE")
    assert client.answer.headers["connection"] == "close"
    assert listener.echo.seen == []


def test_an_early_refusal_of_a_client_may_be_read_by_a_web_page() -> None:
    """P:9.3: without the CORS headers a browser hides the 413 and shows a network failure."""
    for path in ("/_matrix/client/v3/presence/@ann:here.test/status", "/_fedpresence/client/v1/x"):
        client = Client(Listener().site)

        client.send(request("PUT", path, b"x" * 101))

        assert client.answer.status == 413
        assert client.answer.headers["access-control-allow-origin"] == "*"


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_long() -> None:
    """Who does not say how long a body is must not get around the limit."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("POST", "/", b"", "Transfer-Encoding: chunked"))

    client.send(b"64\r\n" + b"x" * 100 + b"\r\n")
    before = client.answers()
    client.send(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")

    assert before == []
    assert client.answer.status == 413
    assert listener.echo.seen == []
    assert listener.budget.used == 0


def test_a_chunked_body_within_the_limit_is_taken() -> None:
    """The good side of the limit, for chunks."""
    client = Client(Listener().site)

    client.send(request("POST", "/", b"", "Transfer-Encoding: chunked"))
    client.send(b"64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n")

    assert client.answer.json == {"size": 100}


def test_a_body_on_a_get_is_bounded_too() -> None:
    """No method is harmless: the bytes come all the same."""
    client = Client(Listener().site)

    client.send(request("GET", "/", b"x" * 101))

    assert client.answer.status == 413


def test_an_early_refusal_lingers_so_that_its_answer_arrives() -> None:
    """Closing with unread bytes resets the connection: the other side would see an outage, not a 413."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("POST", "/", b"x" * 200)[:-150])

    client.send(b"x" * 149)
    still_open = not client.closed
    client.send(b"x")

    assert still_open
    assert client.closed


def test_lingering_ends_by_time_and_by_bytes() -> None:
    """Courtesy has a bound."""
    listener = Listener()
    slow, eager = Client(listener.site), Client(listener.site)
    for client in (slow, eager):
        client.send(request("POST", "/", None, "Content-Length: 99999999"))

    eager.send(b"x" * LINGER_BYTES)
    listener.clock.advance(LINGER_S - 0.1)
    early = slow.closed
    listener.clock.advance(0.1)

    assert eager.closed
    assert not early
    assert slow.closed


def test_nothing_behind_a_refused_request_is_parsed() -> None:
    """The bytes of a refused body could be requests: request smuggling."""
    listener = Listener()
    client = Client(listener.site)

    client.send(request("POST", "/refused", b"x") + request("GET", "/"))
    client.send(request("GET", "/"))

    assert client.answer.status == 403
    assert listener.echo.seen == []


def test_requests_in_one_packet_are_answered_in_order() -> None:
    """HTTP pipelining works, bodies and all."""
    client = Client(Listener().site)

    client.send(request("POST", "/", b"1") + request("GET", "/") + request("POST", "/", b"333"))

    assert [answer.json["size"] for answer in client.answers()] == [1, 0, 3]


def test_while_a_decision_is_awaited_nothing_is_read() -> None:
    """Z-1: the body of an unauthenticated transaction stays where it is, in the sender's memory."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"x" * 500)[:-500])
    was_paused = client.paused
    client.send(b"x" * 500 + request("GET", "/after"))
    seen_before = list(listener.echo.seen)

    decision.callback(Admitted(500, AT_HOME))

    assert was_paused
    assert not client.paused
    assert seen_before == []
    assert [answer.json["size"] for answer in client.answers()] == [500, 0]


def test_a_decision_also_holds_up_a_request_without_a_body() -> None:
    """An empty body is complete with its head, and must wait all the same."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"") + request("GET", "/"))
    before = client.answers()

    decision.callback(Admitted(0))

    assert before == []
    assert len(client.answers()) == 2


def test_a_refusal_after_a_pause_is_an_answer_and_the_end() -> None:
    """Z-1: what was not admitted is never looked at."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"x" * 50))

    decision.errback(BadRequest("M_UNAUTHORIZED", "No", status=401))

    assert (client.answer.status, client.answer.json["errcode"]) == (401, "M_UNAUTHORIZED")
    assert client.closed
    assert listener.echo.seen == []


def test_an_error_of_our_own_while_deciding_is_a_500_without_details() -> None:
    """Our bug must not hang a connection nor show itself."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"x" * 50))

    decision.errback(ValueError("secret"))

    assert client.answer.status == 500
    assert b"secret" not in client.answer.body


def test_a_client_that_leaves_ends_the_decision_about_it() -> None:
    """Nobody waits for a key on behalf of a closed connection."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"x" * 50))

    client.leave()

    assert decision.called
    assert listener.site.connections == 0


def test_an_admitted_body_is_bounded_by_its_own_limit() -> None:
    """The limit that the admission gave, announced or in chunks."""
    for body, header in ((b"x" * 501, ()), (b"1f5\r\n" + b"x" * 501, ("Transfer-Encoding: chunked",))):
        listener = Listener()
        decision = listener.undecided()
        client = Client(listener.site)
        client.send(request("PUT", "/guarded", body, *header))

        decision.callback(Admitted(500, AT_HOME))

        assert client.answer.status == 413
        assert listener.budget.used == 0


def test_one_origin_has_a_quarter_of_the_budget() -> None:
    """Z-2: one server must not be able to fill the memory for all, nor who claims to be it, for itself."""
    listener = Listener(replace(LIMITS, connections=4), budget=4_000)
    first, second, elsewhere, other = (Client(listener.site) for _ in range(4))

    claims = [(first, 900, AT_HOME), (second, 102, AT_HOME), (elsewhere, 900, CLAIMED), (other, 900, None)]
    for client, size, claimant in claims:
        decision = listener.undecided()
        client.send(request("PUT", "/guarded", b"x" * size)[:-1])
        decision.callback(Admitted(5_000, claimant))

    assert first.answers() == []
    assert (second.answer.status, second.answer.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert "retry-after" in second.answer.headers
    assert elsewhere.answers() == other.answers() == []
    assert listener.budget.used == 3 * 899


def test_one_address_has_half_of_the_budget_whoever_it_claims_to_be() -> None:
    """Z-2: a claim costs nothing."""
    budget = BodyBudget(4_000)
    claimed = [Claimant(ServerName(f"{number}.test"), "192.0.2.2") for number in range(3)]

    taken = [budget.take(claimant, 1_000) for claimant in claimed]

    assert taken == [True, True, False]
    assert budget.fits(AT_HOME, 1_000)
    budget.give_back(claimed[0], 1_000)
    assert budget.take(claimed[2], 1_000)


def test_bodies_that_outgrow_the_budget_together_are_refused() -> None:
    """Z-2: announcements that fit one by one may not fit together."""
    listener = Listener(LimitsConfig(client_body=700), budget=1_000)
    one, two = Client(listener.site), Client(listener.site)
    for client in (one, two):
        client.send(request("POST", "/", b"x" * 600)[:-600])

    one.send(b"x" * 599)
    two.send(b"x" * 500)
    one.send(b"x")

    assert two.answer.status == 429
    assert one.answer.json == {"size": 600}
    assert listener.budget.used == 0


def test_the_bytes_of_a_lost_connection_are_free_again() -> None:
    """Otherwise a thousand broken uploads would end the service."""
    listener = Listener()
    client = Client(listener.site)
    client.send(request("POST", "/", b"x" * 100)[:-1])
    held = listener.budget.used

    client.leave()

    assert held == 99
    assert listener.budget.used == 0


def test_100_continue_is_said_only_after_the_admission() -> None:
    """Z-1: it is an invitation to send the body."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"x" * 5, "Expect: 100-continue")[:-5])
    before = client.answers()

    decision.callback(Admitted(500))
    invited = client.answers()
    client.send(b"x" * 5)

    assert before == []
    assert [answer.status for answer in invited] == [100]
    assert [answer.status for answer in client.answers()] == [100, 200]


def test_100_continue_is_not_said_to_who_is_refused() -> None:
    """The point of asking first."""
    client = Client(Listener().site)

    client.send(request("POST", "/", b"x" * 101, "Expect: 100-continue")[:-101])

    assert client.answer.status == 413


def test_a_trickling_request_has_one_deadline() -> None:
    """A byte every second would hold a connection for ever: slow loris."""
    listener = Listener()
    client = Client(listener.site)
    data = request("POST", "/", b"x" * 100)
    client.send(data[:1])

    for n in range(1, int(REQUEST_TIMEOUT_S)):
        listener.clock.advance(1)
        client.send(data[n : n + 1])
    before = client.closed
    listener.clock.advance(1)

    assert not before
    assert client.closed


def test_the_deadline_stands_still_while_we_decide() -> None:
    """Our own slowness is not the sender's."""
    listener = Listener()
    decision = listener.undecided()
    client = Client(listener.site)
    client.send(request("PUT", "/guarded", b"x" * 5)[:-5])
    listener.clock.advance(REQUEST_TIMEOUT_S - 1)
    decision.callback(Admitted(500))

    listener.clock.advance(REQUEST_TIMEOUT_S - 1)
    before = client.closed
    listener.clock.advance(1)

    assert not before
    assert client.closed


def test_a_connection_may_idle_between_requests_but_not_for_ever() -> None:
    """Keep-alive saves handshakes; abandoned connections cost memory. Each request has its whole time."""
    listener = Listener()
    client = Client(listener.site)
    for _ in range(3):
        client.send(request("GET", "/"))
        listener.clock.advance(REQUEST_TIMEOUT_S - 1)
    before = client.closed

    listener.clock.advance(1)

    assert not before
    assert len(client.answers()) == 3
    assert client.closed


def test_how_long_a_connection_may_idle_is_the_operators_word_and_a_request_has_no_longer() -> None:
    """A proxy in front keeps its connections longer than we would; a slow request is still cut off."""
    listener = Listener(replace(LIMITS, idle_connection_ms=3_600_000))
    idle, slow = Client(listener.site), Client(listener.site)
    for client in (idle, slow):
        client.send(request("GET", "/"))
    listener.clock.advance(3_599)
    open_for_long = not idle.closed and not slow.closed

    slow.send(b"GET / HT")
    listener.clock.advance(1)
    assert open_for_long and idle.closed and not slow.closed

    listener.clock.advance(REQUEST_TIMEOUT_S)
    assert slow.closed


def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    """The bound on everything that a connection may hold."""
    listener = Listener()
    listener.undecided()
    clients = [Client(listener.site) for _ in range(3)]
    for client in clients:
        client.send(request("GET", "/guarded"))

    refused = Client(listener.site)
    refused.leave()
    clients[0].leave()
    again = Client(listener.site)

    assert refused.closed
    assert not again.closed
    assert listener.site.connections == 3


def test_who_says_nothing_locks_nobody_out() -> None:
    """Connections cost nothing to open: who asks for something goes before those that just stand there."""
    listener = Listener()
    listener.undecided()
    asking, answered, silent = (Client(listener.site) for _ in range(3))
    asking.send(request("GET", "/guarded"))
    answered.send(request("GET", "/"))
    silent.send(b"GET / HTTP/1.1\r\nHo")

    first, second, third = (Client(listener.site) for _ in range(3))
    third.send(request("GET", "/guarded"))
    second.send(request("GET", "/guarded"))
    fourth = Client(listener.site)

    assert [each.closed for each in (answered, silent, first)] == [True, True, True]
    assert [each.closed for each in (asking, second, third)] == [False, False, False]
    assert fourth.closed
    assert listener.site.connections == 3


def test_who_asks_again_and_again_stays_before_who_only_opens() -> None:
    """A proxy's connection is older than those of a flood, and it is the one that is of use."""
    listener = Listener()
    in_use, silent, _ = (Client(listener.site) for _ in range(3))
    in_use.send(request("GET", "/"))

    Client(listener.site)

    assert silent.closed
    assert not in_use.closed


def test_whoever_still_reads_an_answer_is_not_cut_off() -> None:
    """It is written, and stands in the buffers of the connection: as far as we see, that was all."""
    listener = Listener()
    clients = [Client(listener.site) for _ in range(3)]
    for client in clients:
        client.send(request("GET", "/"))
    reading, *_ = clients
    reading.channel.pauseProducing()

    Client(listener.site)
    Client(listener.site)

    assert [client.closed for client in clients] == [False, True, True]


def test_closing_ends_idle_connections_now_and_the_others_with_their_answer() -> None:
    """A clean stop leaves nobody without the answer that it is owed, and nothing open behind it."""
    listener = Listener()
    decision = listener.undecided()
    idle, half, busy = (Client(listener.site) for _ in range(3))
    half.send(request("POST", "/", b"x" * 50)[:-1])
    listener.echo.delay = True
    busy.send(request("GET", "/"))

    done = listener.site.close()
    closed_at_once = [client.closed for client in (idle, half, busy)]
    late = Client(listener.site)
    listener.echo.finish()
    for client in (idle, half, busy):
        client.leave()

    assert closed_at_once == [True, True, False]
    assert busy.closed and busy.answer.status == 200
    assert late.closed
    assert result_of(done) is None
    assert not decision.called
    assert listener.clock.getDelayedCalls() == []


def test_closing_does_not_wait_for_ever() -> None:
    """A long poll, or a client that does not read, must not hold up a stop."""
    listener = Listener()
    listener.echo.delay = True
    busy = Client(listener.site)
    busy.send(request("GET", "/"))

    done = listener.site.close()
    listener.clock.advance(CLOSE_S)
    busy.leave()

    assert busy.closed
    assert result_of(done) is None


def test_hostile_heads_get_a_400_or_silence_and_never_a_500() -> None:
    """Whatever is sent, nothing is raised into the reactor and nothing is counted for ever."""
    for data in (
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        request("POST", "/", None, "Content-Length: " + "9" * 5000),
        request("POST", "/", None, "Content-Length: -1"),
        request("POST", "/", None, "Content-Length: 1", "Content-Length: 2"),
        request("POST", "/", b"", "Transfer-Encoding: gzip, chunked"),
        request("POST", "/", b"zz\r\n", "Transfer-Encoding: chunked"),
        request("POST", "/", None, "Content-Length: 3", "Transfer-Encoding: chunked"),
        request("GET", "/", None, *(f"X-{n}: 1" for n in range(501))),
        request("GET", "/" + "x" * 20_000),
        request("GET", "/", None, "No colon here"),
    ):
        listener = Listener()
        client = Client(listener.site)

        client.send(data)
        client.leave()

        assert all(answer.status == 400 for answer in client.answers()), data[:60]
        assert listener.site.connections == 0


def test_behind_a_malformed_head_nothing_is_parsed_and_nothing_is_kept() -> None:
    """Over TLS a close waits for the peer, and who does not agree could fill our memory meanwhile."""
    for data in (
        request("POST", "/", None, "Content-Length: x"),
        request("GET", "/", None, "X: " + "x" * 20_000),
        request("GET", "/", None, *(f"X-{n}: 1" for n in range(501))),
        request("POST", "/", b"zz\r\n", "Transfer-Encoding: chunked"),
    ):
        listener = Listener()
        client = Client(listener.site)
        client.send(data)

        for _ in range(100):
            client.send(b"a: b\r\n" * 1000)
            client.send(request("POST", "/", b"x"))

        assert (client.answer.status, client.answer.json["errcode"]) == (400, "M_UNKNOWN")
        assert client.take_unparsed() == b""
        assert listener.echo.seen == []
        listener.clock.advance(LINGER_S)
        assert client.closed


def test_who_asks_is_the_peer_or_what_our_own_proxy_says() -> None:
    """Z-4 counts by address: a header from the network must not choose it, a proxy's must."""
    for peer, forwarded, source in (
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("127.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("127.0.0.1", "rubbish", "127.0.0.1"),
        ("127.0.0.1", "\udcff, 198.51.100.1", "198.51.100.1"),  # a byte that is no UTF-8
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
    ):
        listener = Listener()

        Client(listener.site, peer).send(request("GET", "/", None, f"X-Forwarded-For: {forwarded}"))

        assert listener.heads[0].source == source


def test_a_form_is_just_a_body() -> None:
    """Twisted would parse it into memory a second time."""
    client = Client(Listener().site)

    client.send(request("POST", "/", b"a=1", "Content-Type: application/x-www-form-urlencoded"))

    assert client.answer.json == {"size": 3}
