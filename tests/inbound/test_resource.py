import json

import pytest
from twisted.internet.defer import Deferred, succeed

from fedpresence.admission import BodyBudget
from fedpresence.config import LimitsConfig, Rate
from fedpresence.engine.events import ListEduReceived, TransactionReceived
from fedpresence.engine.settings import ServerLists
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import ServerName, UserID
from fedpresence.inbound.gate import Gate
from fedpresence.inbound.limiter import OriginLimits
from fedpresence.inbound.origin import OriginCheck
from fedpresence.inbound.resource import Federation, add_federation
from fedpresence.inbound.transactions import Transactions
from fedpresence.site import BoundedSite
from fedpresence.web import Unknown
from fedpresence.wire.signing import Identity
from tests.asynchronous import result_of
from tests.http_wire import Answer, Client, request
from tests.inbound.servers import (
    ELSEWHERE,
    HERE,
    NOW_MS,
    SEND,
    THERE,
    Ring,
    Tally,
    a_send,
    a_transaction,
    an_identity,
    an_invite,
)

ALICE, CAROL = UserID("@alice:here.test"), UserID("@carol:there.test")


class Here:
    """Our federation listener, with a hub that takes transactions at once or when told."""

    def __init__(
        self,
        limits: LimitsConfig | None = None,
        servers: ServerLists | None = None,
        well_known: str | None = None,
    ) -> None:
        self.ring = Ring()
        self.tally = Tally()
        self.received: list[TransactionReceived] = []
        self.slow = False
        self.pending: list[Deferred[None]] = []
        self.authentic: list[ServerName] = []
        self.budget = BodyBudget(67_108_864)
        limits = limits or LimitsConfig()
        clock = self.ring.clock
        self.origin_limits = OriginLimits(limits)
        origins = OriginCheck(HERE, self.ring.keys, servers or ServerLists())
        self.gate = Gate(origins, self.origin_limits, self.budget, clock, self.tally)
        self.transactions = Transactions(self._submit, self.origin_limits, clock, self.tally)
        self.root = Unknown()
        add_federation(
            self.root,
            Federation(
                self.ring.identity,
                self.gate,
                self.transactions,
                clock,
                self.authentic.append,
                well_known,
            ),
        )
        self.site = BoundedSite(self.root, limits, clock, self.budget, self.gate.admit)

    def _submit(self, event: TransactionReceived) -> Deferred[None]:
        self.received.append(event)
        if not self.slow:
            return succeed(None)
        self.pending.append(Deferred())
        return self.pending[-1]

    def client(self, host: str = "192.0.2.1") -> Client:
        """A new connection."""
        return Client(self.site, host)

    def ask(self, method: str, uri: str, body: bytes | None = None) -> Answer:
        """One request on its own connection."""
        client = self.client()
        client.send(request(method, uri, body))
        return client.answer

    def knows(self, *identities: Identity) -> "Here":
        """These servers publish their keys."""
        for identity in identities:
            self.ring.network.publish(identity)
        return self


def head_of(data: bytes) -> bytes:
    """A request without its body."""
    return data[: data.index(b"\r\n\r\n") + 4]


def answer_to(here: Here, data: bytes) -> Answer:
    client = here.client()
    client.send(data)
    return client.answer


# --- taking transactions -----------------------------------------------------------------------


def test_a_signed_transaction_reaches_the_engine_and_is_answered_after_it() -> None:
    """F:R-7: the 200 says that nothing of it can be lost any more."""
    there = an_identity()
    here = Here().knows(there)
    here.slow = True
    client = here.client()

    client.send(a_send(there, "a%2Fb", a_transaction(THERE, an_invite())))
    before = client.answers()
    here.pending[0].callback(None)

    invite = ListEduReceived(EduKind.INVITE, THERE, CAROL, ALICE)
    assert before == []
    assert here.received == [TransactionReceived(THERE, "a/b", NOW_MS, (invite,))]
    assert (client.answer.status, client.answer.json) == (200, {"pdus": {}})
    assert client.answer.headers["content-type"] == "application/json"
    assert here.authentic == [THERE]
    assert not client.closed


def test_the_trailing_slash_of_old_servers_is_taken() -> None:
    """F:7.1: they know no other form, and they sign it."""
    there = an_identity()
    here = Here().knows(there)

    answer = answer_to(here, a_send(there, "1/"))

    assert answer.status == 200
    assert here.received[0].txn_id == "1"


def test_a_query_string_is_part_of_what_is_signed() -> None:
    """F:6.1: the URI counts as it came."""
    there = an_identity()
    here = Here().knows(there)

    good = answer_to(here, a_send(there, "1?x=%20y"))
    bad = answer_to(here, a_send(there, "2?x=y").replace(b"?x=y", b"?x=z"))

    assert (good.status, bad.status) == (200, 401)


def test_unknown_and_broken_edus_are_skipped_and_counted_by_bounded_names() -> None:
    """F:R-3, F:R-5: one odd EDU must not cost the others; nor may its name become a metric."""
    there = an_identity()
    here = Here().knows(there)
    odd = {"edu_type": "x" * 500, "content": {}}
    content = a_transaction(THERE, odd, an_invite(), 7, {"edu_type": "m.presence_deny", "content": {}})

    answer = answer_to(here, a_send(there, "1", content))

    assert answer.status == 200
    assert len(here.received[0].edus) == 1
    assert (
        here.tally.counts
        == {
            ("inbound_edus", "m.presence_invite", "received"): 1,
            ("inbound_edus", "other", "skipped"): 2,
            ("inbound_edus", "m.presence_deny", "skipped"): 1,
            ("inbound_transactions", "ok"): 1,
        }
        or ("key_fetches", "ok") not in here.tally.counts
    )


def test_a_repeat_while_in_progress_waits_for_the_same_result() -> None:
    """F:R-2: the sender's timeout must not make us do things twice at a time."""
    there = an_identity()
    here = Here().knows(there)
    here.slow = True
    first, again = here.client(), here.client()

    first.send(a_send(there))
    again.send(a_send(there))
    here.pending[0].callback(None)

    assert len(here.received) == 1
    assert (first.answer.status, again.answer.status) == (200, 200)


def test_a_sender_that_leaves_does_not_end_what_it_sent() -> None:
    """Its repetition waits for the outcome; cancelling half-way would leave neither."""
    there = an_identity()
    here = Here().knows(there)
    here.slow = True
    first, again = here.client(), here.client()
    first.send(a_send(there))
    again.send(a_send(there))

    first.leave()
    here.pending[0].callback(None)

    assert again.answer.status == 200
    assert result_of(here.transactions.stop()) is None


def test_transactions_of_one_origin_go_one_at_a_time_and_in_order() -> None:
    """F:7.1: up to five wait, the next is told to come again; other origins are not held up."""
    there, elsewhere = an_identity(), an_identity(ELSEWHERE)
    here = Here().knows(there, elsewhere)
    here.slow = True
    clients = [here.client() for _ in range(7)]
    for n, client in enumerate(clients):
        client.send(a_send(there, str(n)))
    other = here.client()
    other.send(a_send(elsewhere))

    refused = clients[6].answer
    for n in (0, 1, 2, 3, 4, 5, 6):
        here.pending[n].callback(None)

    assert (refused.status, refused.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert "retry-after" in refused.headers
    assert other.answer.status == 200
    assert [event.txn_id for event in here.received if event.origin == THERE] == list("012345")
    assert all(client.answer.status == 200 for client in clients[:6])


def test_a_failed_transaction_is_a_500_and_frees_the_next() -> None:
    """Our fault is said to be ours, without details; the queue does not get stuck on it."""
    there = an_identity()
    here = Here().knows(there)
    here.slow = True
    first, second = here.client(), here.client()
    first.send(a_send(there, "1"))
    second.send(a_send(there, "2"))

    here.pending[0].errback(ValueError("secret"))
    here.pending[1].callback(None)

    assert first.answer.json == {"errcode": "M_UNKNOWN", "error": "Internal server error"}
    assert second.answer.status == 200


def test_a_stop_waits_for_what_is_in_progress_and_takes_no_more() -> None:
    """A clean stop loses no transaction, and refuses in a way that is tried again."""
    there = an_identity()
    here = Here().knows(there)
    here.slow = True
    client = here.client()
    client.send(a_send(there))

    stopped = here.transactions.stop()
    stopped_early = stopped.called
    late = answer_to(here, a_send(there, "2"))
    here.pending[0].callback(None)

    assert not stopped_early
    assert stopped.called
    assert late.status == 503
    assert client.answer.status == 200


# --- the order of Z-1 --------------------------------------------------------------------------


def test_a_refusal_by_the_head_comes_without_a_byte_of_the_body() -> None:
    """Z-1: each of these is answered while the body has not been sent, so it was not waited for."""
    there = an_identity()
    denied = ServerLists(deny=("there.test",))
    small = LimitsConfig(transaction_body=10)
    poor = LimitsConfig(origin_bytes=Rate(1, 1))
    for here, data, status, errcode in (
        (Here(), request("PUT", SEND + "1", b"{}"), 401, "M_UNAUTHORIZED"),
        (Here(), a_send(there, change=lambda h: h.replace("origin=", "nobody=")), 401, "M_UNAUTHORIZED"),
        (Here(), a_send(there, change=lambda h: h + ',sig="x"'), 400, "M_UNAUTHORIZED"),
        (Here(), a_send(there, change=lambda h: h.replace("here.", "x.")), 401, "M_UNAUTHORIZED"),
        (Here(servers=denied), a_send(there), 403, "M_FORBIDDEN"),
        (Here(small), a_send(there), 413, "M_TOO_LARGE"),
        (Here(), a_send(there), 401, "M_UNAUTHORIZED"),
    ):
        client = here.client()
        client.send(head_of(data))

        assert (client.answer.status, client.answer.json["errcode"]) == (status, errcode)
        assert client.answer.headers["connection"] == "close"
        assert here.received == []
    here = Here(poor).knows(there)
    answer_to(here, a_send(there))
    client = here.client()
    client.send(head_of(a_send(there, "2")))
    assert client.answer.status == 429


def test_the_cheaper_check_comes_first() -> None:
    """Z-1, pair by pair: with two things wrong the earlier one is answered, and no key is fetched."""
    there = an_identity()
    denied, small = ServerLists(deny=("there.test",)), LimitsConfig(transaction_body=10)
    wrong_destination = a_send(there, change=lambda h: h.replace("here.", "x."))

    statuses = []
    for here, data in (
        (Here(small, denied), wrong_destination),
        (Here(small, denied), a_send(there)),
        (Here(small), a_send(there)),
    ):
        client = here.client()
        client.send(head_of(data))
        statuses.append(client.answer.status)
        assert here.ring.network.asked == []

    assert statuses == [401, 403, 413]


def test_the_body_stays_unread_until_the_key_is_here() -> None:
    """Z-1: thirteen megabytes of an unknown sender wait in the sender's memory, not in ours."""
    there = an_identity()
    here = Here().knows(there)
    here.ring.network.slow = True
    client = here.client()
    client.send(head_of(a_send(there)))
    paused = client.paused
    here.ring.network.answer(THERE).chainDeferred(here.ring.network.pending[0])
    resumed = not client.paused

    client.send(a_send(there).partition(b"\r\n\r\n")[2])

    assert paused
    assert resumed
    assert client.answer.status == 200


def test_a_large_transaction_is_taken_and_a_large_anything_else_is_not() -> None:
    """Only `/send` may be large, and only for who could be authentic."""
    there = an_identity()
    here = Here().knows(there)
    content = a_transaction() | {"padding": "x" * 1_000_000}

    large = answer_to(here, a_send(there, "1", content))
    other = answer_to(here, head_of(a_send(there, "1", content)).replace(b"/send/1", b"/other"))

    assert large.status == 200
    assert other.status == 413
    assert here.budget.used == 0


def test_a_wrong_signature_is_401_before_the_content_matters() -> None:
    """Z-1: the content of an impostor's transaction is not even looked at."""
    there, impostor = an_identity(), an_identity()
    here = Here().knows(there)

    answer = answer_to(here, a_send(impostor, "1", a_transaction(ELSEWHERE)))

    assert (answer.status, answer.json["errcode"]) == (401, "M_UNAUTHORIZED")
    assert here.received == []
    assert here.authentic == []
    assert here.tally.counts["inbound_transactions", "not_authentic"] == 1


def test_an_impostor_cannot_spend_an_origins_budget() -> None:
    """Only what was proven to come from it is charged to it."""
    there, impostor = an_identity(), an_identity()
    here = Here(LimitsConfig(origin_bytes=Rate(1, 200))).knows(there)

    for _ in range(20):
        answer_to(here, a_send(impostor))

    assert answer_to(here, a_send(there)).status == 200


def test_an_impostor_cannot_fill_an_origins_share() -> None:
    """Z-2: names and key IDs are public; who holds back half a body under them must not lock others out."""
    there, impostor = an_identity(), an_identity()
    here = Here().knows(there)
    assert answer_to(here, a_send(there, "0")).status == 200
    padded = a_transaction(THERE) | {"padding": "x" * (here.budget.total // 8 - 1000)}
    for _ in range(2):
        here.client("198.51.100.1").send(a_send(impostor, content=padded)[:-100])
    assert here.budget.used > here.budget.total // 4 - 10_000

    locked_out = here.client("198.51.100.1")
    locked_out.send(a_send(impostor, content=padded))
    honest = answer_to(here, a_send(there, content=a_transaction(THERE) | {"padding": "x" * 10_000}))

    assert (locked_out.answer.status, honest.status) == (429, 200)


def test_a_path_in_disguise_is_authenticated_all_the_same() -> None:
    """A percent-encoded path reaches the same resource: it must not get around the door."""
    there = an_identity()
    here = Here().knows(there)
    uri = "/%5Fmatrix/federation/v1/s%65nd/1"
    content = a_transaction()
    header = there.authorization("PUT", uri, HERE, content)
    body = json.dumps(content).encode()

    unsigned = here.ask("PUT", uri, body)
    signed = answer_to(here, request("PUT", uri, body, "Authorization: " + header))

    assert unsigned.status == 401
    assert signed.status == 200


def test_a_site_that_does_not_ask_before_the_body_is_safe_too() -> None:
    """The resource authenticates by itself where nobody did."""
    there = an_identity()
    here = Here().knows(there)
    here.site.admit = None

    assert here.ask("PUT", SEND + "1", b"{}").status == 401
    assert answer_to(here, a_send(there)).status == 200


# --- refusals of the content -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "errcode"),
    [
        ([], 400, "M_BAD_JSON"),
        ({}, 400, "M_BAD_JSON"),
        ({"pdus": 3, "origin_server_ts": 1}, 400, "M_BAD_JSON"),
        ({"pdus": [], "edus": [{}] * 101, "origin_server_ts": 1}, 400, "M_BAD_JSON"),
        ({"pdus": [], "origin": "elsewhere.test", "origin_server_ts": 1}, 403, "M_FORBIDDEN"),
    ],
)
def test_a_wrong_envelope_is_refused(content: object, status: int, errcode: str) -> None:
    """F:7.1: signed, and still no transaction."""
    there = an_identity()
    here = Here().knows(there)

    answer = answer_to(here, a_send(there, "1", content))

    assert (answer.status, answer.json["errcode"]) == (status, errcode)
    assert here.received == []


def test_a_body_that_is_no_json_is_refused() -> None:
    """F:7.1, and Z-2: no byte sequence is our fault."""
    there = an_identity()
    here = Here().knows(there)
    header = "Authorization: " + there.authorization("PUT", SEND + "1", HERE, {})

    for body, errcode in (
        (b"", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b"\xff\xfe", "M_NOT_JSON"),
        (b'{"a":1,"a":2}', "M_BAD_JSON"),
        (b"[" * 200 + b"]" * 200, "M_BAD_JSON"),
    ):
        answer = answer_to(here, request("PUT", SEND + "1", body, header))
        assert (answer.status, answer.json["errcode"]) == (400, errcode)


def test_an_origin_that_sends_too_much_is_told_when_to_come_back() -> None:
    """`limits.origin_bytes` and `limits.origin_entries`: 429 with the time to wait."""
    there = an_identity()
    content = a_transaction(THERE, an_invite(), an_invite("@dave:there.test"))
    for limits in (LimitsConfig(origin_entries=Rate(1, 2)), LimitsConfig(origin_bytes=Rate(1, 300))):
        here = Here(limits).knows(there)

        first = answer_to(here, a_send(there, "1", content))
        second = answer_to(here, a_send(there, "2", content))
        here.ring.passes(1_000_000)
        third = answer_to(here, a_send(there, "3", content))

        assert [first.status, second.status, third.status] == [200, 429, 200]
        assert int(second.headers["retry-after"]) >= 1
        assert isinstance(second.json["retry_after_ms"], int)


def test_a_transaction_id_is_bounded() -> None:
    """We keep them for a day: 255 bytes, on both sides of the limit; and they are text."""
    there = an_identity()
    here = Here().knows(there)

    statuses = [
        answer_to(here, a_send(there, txn)).status for txn in ("x" * 255, "x" * 256, "%ff", "%e2%98%95")
    ]

    assert statuses == [200, 400, 400, 200]
    assert here.received[1].txn_id == "☕"


def test_a_request_signed_by_ourselves_is_heard_and_changes_nothing() -> None:
    """Z-23 asks whether what we send to our own name comes back to us; it is no transaction."""
    here = Here()

    answer = answer_to(here, a_send(here.ring.identity))

    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")
    assert here.authentic == [HERE]
    assert here.received == []


# --- everything else ---------------------------------------------------------------------------


def test_our_keys_are_published_with_and_without_the_old_forms() -> None:
    """F:4.1: older servers ask for one key; all get the same signed object."""
    here = Here()

    answers = [
        here.ask("GET", f"/_matrix/key/v2/server{end}").json for end in ("", "/", "/ed25519:1", "/x%2Fy")
    ]

    assert answers[0]["server_name"] == HERE
    assert HERE in answers[0]["signatures"]  # type: ignore[operator]  # JSON
    assert all(answer == answers[0] for answer in answers)


def test_as_a_notary_we_know_ourselves_alone() -> None:
    """F:4.3: others get an empty list, which is not an error."""
    here = Here()
    ours = [here.ask("GET", "/_matrix/key/v2/server").json]
    query = "/_matrix/key/v2/query"

    assert here.ask("GET", f"{query}/here.test").json == {"server_keys": ours}
    assert here.ask("GET", f"{query}/here.test/ed25519:1?minimum_valid_until_ts=1").json == {
        "server_keys": ours
    }
    assert here.ask("GET", f"{query}/there.test").json == {"server_keys": []}
    wanted = json.dumps({"server_keys": {"here.test": {}, "there.test": {}}}).encode()
    assert here.ask("POST", query, wanted).json == {"server_keys": ours}
    assert here.ask("POST", query, b'{"server_keys": {}}').json == {"server_keys": []}
    for body in (b"{}", b"[]", b'{"server_keys": 1}', b"x"):
        assert here.ask("POST", query, body).status == 400


def test_version_and_well_known() -> None:
    """F:8; and F:5.1: delegation is the operator's choice, silence the default."""
    version = Here().ask("GET", "/_matrix/federation/v1/version").json["server"]

    assert isinstance(version, dict) and version["name"] == "fedpresence"
    assert Here(well_known="a.test:443").ask("GET", "/.well-known/matrix/server").json == {
        "m.server": "a.test:443"
    }
    assert Here().ask("GET", "/.well-known/matrix/server").status == 404


def test_unknown_paths_and_methods_have_their_matrix_errors() -> None:
    """F:7.1: 404 and 405, both `M_UNRECOGNIZED`; the senders' fallbacks go by them."""
    here = Here()

    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/_matrix/federation/v1/event/x", 404),
        ("GET", "/_matrix/federation/v1/query/profile?user_id=x", 404),
        ("PUT", "/_matrix/federation/v1/send", 404),
        ("PUT", "/_matrix/federation/v1/send/", 404),
        ("PUT", "/_matrix/federation/v1/send/1/2", 404),
        ("GET", "/_matrix/federation/v1/send/1", 405),
        ("POST", "/_matrix/federation/v1/version", 405),
        ("GET", "/_matrix/key/v2/query", 405),
        ("PUT", "/_matrix/key/v2/server", 405),
        ("GET", "/_matrix/key/v2/other", 404),
    ):
        answer = here.ask(method, path, b"" if method != "GET" else None)
        assert (answer.status, answer.json["errcode"]) == (status, "M_UNRECOGNIZED"), path
