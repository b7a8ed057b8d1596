import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.outbound.discovery import Discovery
from fedpresence.outbound.http11 import Answer
from fedpresence.outbound.route import Route
from fedpresence.outbound.srv import SrvRecord, in_order
from fedpresence.outbound.wellknown import Delegation, judge
from tests.asynchronous import as_deferred, failure_of, result_of
from tests.outbound.network import PUBLIC, PUBLIC_2, Network, Recorder

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
HERE = ServerName("here.test")
FED, OLD = "_matrix-fed._tcp", "_matrix._tcp"


def raw_headers(headers: dict[str, str]) -> dict[bytes, list[bytes]]:
    """As they are in an answer."""
    return {name.replace("_", "-").lower().encode(): [text.encode()] for name, text in headers.items()}


class World:
    """What the internet would say, and what it was asked."""

    def __init__(self, resolve: dict[ServerName, tuple[str, int]] | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(NOW_MS / 1000)
        self.well_known: Any = None
        self.srv: dict[str, list[SrvRecord] | OSError] = {}
        self.asked: list[str] = []
        self.discovery = Discovery(self.clock, self._fetch, self._lookup, resolve or {}, Random(1))

    def delegate(self, to: object, **headers: str) -> None:
        """The well-known says so."""
        raw = raw_headers(headers)
        self.well_known = Answer(200, raw, json.dumps({"m.server": to}).encode())

    def route(self, name: str) -> Route:
        """What discovery answers."""
        return result_of(self.discovery.route(ServerName(name)))

    async def _fetch(self, host: str) -> Answer | None:
        self.asked.append(f"https://{host}")
        if isinstance(self.well_known, Deferred):
            await self.well_known
            return None
        answer: Answer | None = self.well_known
        return answer

    async def _lookup(self, name: str) -> list[SrvRecord]:
        self.asked.append(name)
        records = self.srv.get(name, [])
        if isinstance(records, OSError):
            raise records
        return records


def srv(target: str, port: int = 8443, ttl_s: int = 300) -> list[SrvRecord]:
    return [SrvRecord(10, 5, port, target, ttl_s)]


@pytest.mark.parametrize(
    ("name", "delegated", "records", "expected"),
    [
        # name, m.server, SRV -> address, Host, certificate: the table of F:5, row by row
        ("1.2.3.4", None, {}, ("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),
        ("1.2.3.4:5", None, {}, ("1.2.3.4", 5, "1.2.3.4:5", "1.2.3.4")),
        ("[2001::1]", None, {}, ("2001::1", 8448, "[2001::1]", "2001::1")),
        ("[2001::1]:5", None, {}, ("2001::1", 5, "[2001::1]:5", "2001::1")),
        ("a.test:5", "b.test", {}, ("a.test", 5, "a.test:5", "a.test")),
        ("a.test", "1.2.3.4", {}, ("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),
        ("a.test", "1.2.3.4:5", {}, ("1.2.3.4", 5, "1.2.3.4:5", "1.2.3.4")),
        ("a.test", "b.test:5", {}, ("b.test", 5, "b.test:5", "b.test")),
        ("a.test", "b.test", {f"{FED}.b.test": srv("c.test")}, ("c.test", 8443, "b.test", "b.test")),
        ("a.test", "b.test", {f"{OLD}.b.test": srv("c.test")}, ("c.test", 8443, "b.test", "b.test")),
        ("a.test", "b.test", {}, ("b.test", 8448, "b.test", "b.test")),
        ("a.test", None, {"_matrix-fed._tcp.a.test": srv("c.test")}, ("c.test", 8443, "a.test", "a.test")),
        ("a.test", None, {"_matrix._tcp.a.test": srv("c.test")}, ("c.test", 8443, "a.test", "a.test")),
        ("a.test", None, {}, ("a.test", 8448, "a.test", "a.test")),
    ],
)  # fmt: skip
def test_each_row_of_the_table(
    name: str,
    delegated: str | None,
    records: dict[str, list[SrvRecord] | OSError],
    expected: tuple[str, int, str, str],
) -> None:
    """A wrong row connects to nobody, or trusts the wrong certificate."""
    world = World()
    world.srv = records
    if delegated is not None:
        world.delegate(delegated)

    route = world.route(name)

    assert (*route.addresses[0], route.host_header, route.tls_name) == expected
    assert route.server_name == name


def test_the_new_srv_record_wins_over_the_deprecated_one() -> None:
    """Servers have both during a move."""
    world = World()
    world.srv = {"_matrix-fed._tcp.here.test": srv("new.test"), "_matrix._tcp.here.test": srv("old.test")}
    assert world.route("here.test").addresses == (("new.test", 8443),)


def test_a_fixed_address_is_looked_up_nowhere() -> None:
    """`federation.resolve` is before any discovery, and exempt from blocked networks."""
    world = World(resolve={HERE: ("127.0.0.1", 9)})
    route = world.route("here.test")
    assert route == Route(HERE, (("127.0.0.1", 9),), "here.test", "here.test", trusted=True)
    assert world.asked == []


@pytest.mark.parametrize(
    "said", [None, 1, "", "a b", "b.test:0", "b.test:99999", "https://b.test", "b_c.test"]
)
def test_a_bad_delegation_is_none(said: object) -> None:
    """Anything invalid means step 4; it is no failure of discovery (F:5.1)."""
    world = World()
    world.delegate(said)
    assert world.route("here.test").host_header == "here.test"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"b.test"', b"\xff"])
def test_a_body_that_is_no_object_is_no_delegation(body: bytes) -> None:
    """A captive portal answers 200 to everything."""
    world = World()
    world.well_known = Answer(200, {}, body)
    assert world.route("here.test").host_header == "here.test"


def test_the_well_known_of_the_delegated_name_is_not_followed() -> None:
    """Two servers that delegate to each other would be a loop (F:5.1)."""
    world = World()
    world.delegate("b.test")
    world.route("here.test")
    assert [asked for asked in world.asked if asked.startswith("https")] == ["https://here.test"]


def test_a_server_that_says_no_is_not_guessed_at() -> None:
    """A target of `.` says that there is no such service (RFC 2782)."""
    world = World()
    world.srv = {"_matrix-fed._tcp.here.test": srv("")}
    error = failure_of(world.discovery.route(HERE), DeliveryFailed)
    assert not error.heard


def test_without_a_word_from_dns_the_default_port_is_tried_and_soon_asked_again() -> None:
    """Some machines resolve names but cannot ask for SRV records."""
    world = World()
    world.srv = {
        "_matrix-fed._tcp.here.test": OSError("timed out"),
        "_matrix._tcp.here.test": OSError("timed out"),
    }
    assert world.route("here.test").addresses == (("here.test", 8448),)

    world.srv = {"_matrix-fed._tcp.here.test": srv("c.test")}
    world.clock.advance(61)

    assert world.route("here.test").addresses == (("c.test", 8443),)


def test_a_route_is_remembered_and_srv_expires_without_a_new_well_known() -> None:
    """One transaction must not cost three questions; each answer has its own life."""
    world = World()
    world.delegate("b.test")
    world.srv = {"_matrix-fed._tcp.b.test": srv("c.test", ttl_s=300)}
    world.route("here.test")
    world.route("here.test")
    assert world.asked == ["https://here.test", "_matrix-fed._tcp.b.test"]

    world.clock.advance(301)
    world.route("here.test")

    assert world.asked[2:] == ["_matrix-fed._tcp.b.test"]


def test_a_delegation_is_asked_for_again_before_it_expires_and_nobody_waits() -> None:
    """A slow well-known must not delay a transaction that has a good route (F:5.1)."""
    world = World()
    world.delegate("b.test:5", Cache_Control="max-age=3600")
    world.route("here.test")
    world.clock.advance(3600 * 0.81)
    world.well_known = Deferred()

    assert world.route("here.test").host_header == "b.test:5"
    assert world.asked == ["https://here.test"] * 2


def test_one_look_up_in_flight_serves_all_who_wait_and_one_may_leave() -> None:
    """A hundred transactions for a new destination are one question (Z-5)."""
    world = World()
    hold: Deferred[None] = Deferred()
    world.well_known = hold
    first = as_deferred(world.discovery.route(HERE))
    second = as_deferred(world.discovery.route(HERE))
    first.addErrback(lambda _: None)

    first.cancel()
    world.well_known = None
    hold.callback(None)

    assert result_of(second).host_header == "here.test"
    assert world.asked[0] == "https://here.test"
    assert len([asked for asked in world.asked if asked.startswith("https")]) == 1


def test_discovery_has_one_deadline() -> None:
    """An address that trickles must not hold a destination for minutes (Z-5)."""
    world = World()
    world.well_known = Deferred()
    waiting = as_deferred(world.discovery.route(HERE))
    world.clock.advance(31)
    assert not failure_of(waiting, DeliveryFailed).heard


def test_a_stopped_discovery_fails_whoever_waits() -> None:
    """A clean stop leaves nobody hanging."""
    world = World()
    world.well_known = Deferred()
    waiting = as_deferred(world.discovery.route(HERE))
    result_of(world.discovery.stop())
    failure_of(waiting, DeliveryFailed)


def answer(status: int = 200, body: bytes = b'{"m.server":"b.test"}', **headers: str) -> Answer:
    return Answer(status, raw_headers(headers), body)


@pytest.mark.parametrize(
    ("headers", "life_ms"),
    [
        ({}, 24 * HOUR_MS),
        ({"Cache_Control": "max-age=7200"}, 2 * HOUR_MS),
        ({"Cache_Control": "public, Max-Age=7200"}, 2 * HOUR_MS),
        ({"Cache_Control": "max-age=1"}, 300_000),
        ({"Cache_Control": "max-age=99999999999999999999"}, 48 * HOUR_MS),
        ({"Cache_Control": "no-store"}, 300_000),
        ({"Cache_Control": "max-age=x"}, 24 * HOUR_MS),
        ({"Expires": "Tue, 14 Nov 2023 23:13:20 GMT"}, HOUR_MS),
        ({"Expires": "0"}, 300_000),
        ({"Cache_Control": "max-age=7200", "Expires": "0"}, 2 * HOUR_MS),
    ],
)
def test_a_delegation_lives_as_its_headers_say_within_limits(headers: dict[str, str], life_ms: int) -> None:
    """An operator moves a server by lowering the life time first (F:5.1)."""
    raw = raw_headers(headers)
    delegation = judge(Answer(200, raw, b'{"m.server":"b.test"}'), None, NOW_MS, 0.0)
    assert delegation.delegated == "b.test"
    assert delegation.expires_at_ms - NOW_MS == life_ms
    assert delegation.refresh_at_ms - NOW_MS == int(0.8 * life_ms)


def test_errors_are_remembered_longer_each_time_up_to_an_hour() -> None:
    """Most servers without delegation have nothing at all on port 443 (F:5.1)."""
    lives, before = [], None
    for _ in range(6):
        before = judge(None, before, NOW_MS, 0.0)
        lives.append(before.expires_at_ms - NOW_MS)
    assert lives == [300_000, 600_000, 1_200_000, 2_400_000, 3_600_000, 3_600_000]
    assert judge(answer(404), None, NOW_MS, 0.0).expires_at_ms == NOW_MS + HOUR_MS


def test_a_hiccup_keeps_a_delegation_that_is_still_valid() -> None:
    """A well-known that is down for a minute must not send everybody to port 8448 (F:5.1)."""
    good = judge(answer(Cache_Control="max-age=3600"), None, NOW_MS, 0.0)
    later = judge(answer(503, b""), good, NOW_MS + 3_000_000, 0.0)
    assert later.delegated == "b.test"
    assert later.expires_at_ms == good.expires_at_ms
    gone = judge(answer(404), good, NOW_MS + 3_000_000, 0.0)
    assert gone.delegated is None


def test_an_error_soon_after_a_valid_answer_is_short() -> None:
    """It will probably be back (F:5.1)."""
    good = judge(answer(Cache_Control="max-age=3600"), None, NOW_MS, 0.0)
    later = judge(None, good, good.expires_at_ms + 1, 0.0)
    assert later == Delegation(
        None, later.expires_at_ms, good.expires_at_ms + 1 + 120_000, good.expires_at_ms, 1
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), max_size=30), st.integers())
def test_srv_records_keep_their_priorities(offers: list[tuple[int, int]], seed: int) -> None:
    """Lowest priority number first; none is lost (RFC 2782)."""
    records = [SrvRecord(priority, weight, 1, "c.test") for priority, weight in offers][:16]
    ordered = in_order(records, Random(seed))
    assert [r.priority for r in ordered] == sorted(r.priority for r in records)
    assert len(ordered) == len(records)


def test_srv_weights_share_the_load() -> None:
    """A record of three times the weight gets about three times the traffic (RFC 2782)."""
    records = [SrvRecord(1, 30, 1, "big"), SrvRecord(1, 10, 1, "small")]
    random = Random(1)
    firsts = [in_order(records, random)[0].target for _ in range(1000)]
    assert 700 < firsts.count("big") < 800


def redirect(location: str | bytes) -> Any:
    def answer_request(request: Any) -> bytes:
        request.setResponseCode(302)
        request.setHeader(b"Location", location if isinstance(location, bytes) else location.encode())
        return b""

    return answer_request


def test_a_well_known_is_followed_through_redirects_to_its_server(network: Network) -> None:
    """Big installations serve it from their web site."""
    final = Recorder(lambda request: b'{"m.server":"matrix.here.test:444"}')
    server = Recorder(lambda request: b"{}")
    network.names = {"here.test": [PUBLIC], "www.here.test": [PUBLIC_2], "matrix.here.test": [PUBLIC_2]}
    network.host(PUBLIC, 443, Recorder(redirect("https://www.here.test:8000/wk?x=1")), "here.test")
    network.host(PUBLIC_2, 8000, final, "www.here.test")
    network.host(PUBLIC_2, 444, server, "matrix.here.test")

    sending = as_deferred(network.client().send(HERE, "GET", "/_matrix/x", None))
    network.flush()

    assert result_of(sending)[0] == 200
    assert final.requests[0][1] == b"/wk?x=1"
    assert server.requests[0][2].getRawHeaders("Host") == ["matrix.here.test:444"]


@pytest.mark.parametrize(
    "location",
    [
        "http://www.here.test/",  # not https
        "https://127.1/",  # Z-5: a numeric form of loopback
        "https://10.0.0.1/",
        "https://user@www.here.test/",
        "https://www.here.test:0/",
        "https://[::1/",
        "//",
        b"https://\xff.test/",
    ],
)
def test_a_redirect_to_where_we_must_not_go_ends_there(network: Network, location: str | bytes) -> None:
    """A well-known on the internet must not reach into our network (Z-5)."""
    network.names = {"here.test": [PUBLIC], "127.1": ["127.0.0.1"], "www.here.test": [PUBLIC_2]}
    network.host(PUBLIC, 443, Recorder(redirect(location)), "here.test")

    sending = as_deferred(network.client().send(HERE, "GET", "/_matrix/x", None))
    network.flush()

    failure_of(sending, DeliveryFailed)
    assert set(network.dialled) == {(PUBLIC, 443), (PUBLIC, 8448)}


def test_redirects_end_after_five(network: Network) -> None:
    """Avoid loops (F:5.1)."""
    loop = Recorder(redirect("/.well-known/matrix/server"))
    network.names = {"here.test": [PUBLIC]}
    network.host(PUBLIC, 443, loop, "here.test")

    sending = as_deferred(network.client().send(HERE, "GET", "/_matrix/x", None))
    network.flush()

    failure_of(sending, DeliveryFailed)
    assert len(loop.requests) == 6


def test_an_endless_well_known_is_no_delegation(network: Network) -> None:
    """50 KiB are enough for one name (F:5.1)."""
    network.names = {"here.test": [PUBLIC]}
    huge = b'{"m.server":"b.test:1","x":"' + b"x" * 60_000 + b'"}'
    network.host(PUBLIC, 443, Recorder(lambda request: huge), "here.test")

    sending = as_deferred(network.client().send(HERE, "GET", "/_matrix/x", None))
    network.flush()

    failure_of(sending, DeliveryFailed)
    assert network.dialled[-1] == (PUBLIC, 8448)
