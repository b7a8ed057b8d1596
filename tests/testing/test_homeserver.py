import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from signedjson.key import decode_verify_key_base64, generate_signing_key
from twisted.internet.defer import TimeoutError as DeferredTimeout

from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName
from fedpresence.testing.homeserver import (
    FORGERIES,
    KEY_PATH,
    SEND_PATH,
    Answered,
    FakeAnswer,
    FakeHomeserver,
    Forgery,
    ReceivedRequest,
    Script,
    decode_answer,
    decode_order,
    decode_script,
    encode_answer,
    encode_answered,
    encode_received,
)
from fedpresence.wire.json import encode_canonical
from fedpresence.wire.signing import Identity, parse_x_matrix, verify_key_object, verify_request
from tests.asynchronous import as_deferred, failure_of, result_of
from tests.testing.loopback import START_S, Town

A, B = ServerName("a.test"), ServerName("b.test")
EDU = FakeHomeserver.invite("@alice:a.test", "@bob:b.test")


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


@pytest.fixture
def a(town: Town) -> FakeHomeserver:
    return town.homeserver(A)


@pytest.fixture
def b(town: Town) -> FakeHomeserver:
    return town.homeserver(B)


def ask(town: Town, a: FakeHomeserver) -> Answered:
    """What `b.test` answers to a transaction."""
    return town.loopback.result(a.send(B, [EDU]))


# --- from one to the other --------------------------------------------------------------------------


def test_a_transaction_is_sent_verified_and_recorded(
    town: Town, a: FakeHomeserver, b: FakeHomeserver
) -> None:
    """The one thing every test begins with."""
    answered = town.loopback.result(a.send(B, [EDU], txn_id="one/1"))

    assert (answered.status, answered.body) == (200, {"pdus": {}})
    (received,) = b.transactions
    assert received.uri == SEND_PATH + "one%2F1"
    assert (received.origin, received.txn_id, received.verified) == (A, "one/1", True)
    assert received.received_ms == START_S * 1000
    assert received.content == {
        "origin": A,
        "origin_server_ts": START_S * 1000,
        "pdus": [],
        "edus": [EDU],
    }
    assert b.edus == received.edus == [EDU]


@pytest.mark.parametrize("forge", get_args(Forgery))
def test_every_forgery_is_seen_through(
    town: Town, a: FakeHomeserver, b: FakeHomeserver, forge: Forgery
) -> None:
    """What is forged must be wrong: otherwise a receiver's 401 proves nothing."""
    answered = town.loopback.result(a.send(B, [EDU], forge=forge))

    assert answered.status == 401
    received = [each for each in b.received if each.txn_id is not None]
    assert [each.verified for each in received] == [False]
    assert received[0].reason
    assert b.transactions == []


def test_an_unknown_forgery_is_no_honest_transaction(
    town: Town, a: FakeHomeserver, b: FakeHomeserver
) -> None:
    """A misspelt word would otherwise prove that forgeries are accepted."""
    sending = a.send(B, [EDU], forge=cast(Any, "signatures"))

    assert "'signatures' is none of signature, key_id" in str(failure_of(as_deferred(sending), ValueError))
    assert b.received == []


def test_another_name_can_be_claimed(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """A forger says who they would like to be."""
    town.homeserver("c.test")

    answered = town.loopback.result(a.send(B, [EDU], forge="origin", claim=ServerName("c.test")))

    assert answered.status == 401
    received = next(each for each in b.received if each.txn_id is not None)
    assert (received.origin, received.reason) == ("c.test", "its signature is wrong")


def test_keys_are_fetched_once_and_again_for_an_unknown_id(
    town: Town, a: FakeHomeserver, b: FakeHomeserver
) -> None:
    """F:K-4: a rotated key is believed at once, a known one costs nothing."""
    assert ask(town, a).status == ask(town, a).status == 200
    assert [each.uri for each in a.received] == [KEY_PATH]

    old = a.key_id
    assert a.rotate_key() != old
    assert ask(town, a).status == 200
    assert [each.uri for each in a.received] == [KEY_PATH] * 2
    assert str(a.key_object()["old_verify_keys"]).startswith(f"{{'{old}':")

    town.loopback.skip(2 * 86_400_000)
    assert ask(town, a).status == 200
    assert len(a.received) == 3


def test_keys_that_are_lies_are_not_believed(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """F:K-1: a key object must be about its server, signed by it, and still valid."""
    lies: list[object] = [
        a.key_object(server_name=B),
        a.key_object(verify_keys={}),
        a.key_object() | {"signatures": {}},
        a.key_object(valid_until_ts=1),
        {},
        None,
        [],
    ]
    for lie in lies:
        a.answer_next(FakeAnswer(body=b"null" if lie is None else lie), path=KEY_PATH)
        assert ask(town, a).status == 401
    assert ask(town, a).status == 200


def test_who_does_not_know_the_certificate_does_not_talk(
    town: Town, a: FakeHomeserver, b: FakeHomeserver
) -> None:
    """A request must not reach somebody else at the same address."""
    town.servers["c.test"] = b

    answered = town.loopback.result(a.send(ServerName("c.test"), [EDU]))

    assert answered.status is None
    assert "no answer" in answered.reason
    assert b.received == []


def test_nobody_there_is_no_answer_and_no_such_server_is_an_error(
    town: Town, a: FakeHomeserver, b: FakeHomeserver
) -> None:
    """A server that is down is news; a name nobody knows is a mistake in the test."""
    town.loopback.result(b.stop())

    assert ask(town, a).status is None
    failure_of(a.send(ServerName("nowhere.test"), [EDU]), LookupError)
    failure_of(a.send(B), ValueError)

    town.loopback.result(b.start(b.port))
    assert ask(town, a).status == 200


def test_any_request_can_be_signed(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """Federation is more than transactions."""
    uri = "/_matrix/federation/v1/query/profile?user_id=%40bob%3Ab.test"

    assert town.loopback.result(a.request(B, "GET", uri)).status == 404
    assert town.loopback.result(a.request(B, "GET", "/_matrix/federation/v1/version")).status == 200

    assert [(each.uri, each.verified, each.content) for each in b.received] == [
        (uri, True, None),
        ("/_matrix/federation/v1/version", True, None),
    ]


# --- answers ----------------------------------------------------------------------------------------


def test_answers_come_as_told_and_then_as_usual(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """First what was told for the next ones, then what was told for all, then what is right."""
    b.answer_next(FakeAnswer(503), FakeAnswer(200, b"not JSON", {"X-Told": "yes"}))
    b.always(lambda received: FakeAnswer(429, {"seen": received.txn_id}))

    assert ask(town, a).status == 503
    answered = ask(town, a)
    assert (answered.body, answered.headers["x-told"]) == ("not JSON", "yes")
    assert town.loopback.result(a.send(B, [], txn_id="t")).body == {"seen": "t"}

    b.always(None)
    assert ask(town, a).status == 200


def test_a_script_replaces_what_was_told_for_its_path(
    town: Town, a: FakeHomeserver, b: FakeHomeserver
) -> None:
    """Over the control API the answers are set as a whole."""
    b.answer_next(FakeAnswer(500))
    b.follow(Script(next=(FakeAnswer(502),), always=FakeAnswer(403)))

    assert [ask(town, a).status for _ in range(3)] == [502, 403, 403]
    b.follow(Script())
    assert ask(town, a).status == 200


def test_a_hanging_answer_is_a_timeout(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """A peer that takes a transaction and falls silent."""
    b.answer_next(FakeAnswer(hang=True))
    asked = as_deferred(a.send(B, [EDU], timeout_s=0.5))

    town.loopback.advance(499)
    assert not asked.called
    town.loopback.advance(1)

    assert result_of(asked) == Answered(None, reason="no answer within 0.5 s")
    assert len(b.transactions) == 1


def test_a_delay_is_the_clocks(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """With a virtual clock a slow peer costs no real time."""
    b.answer_next(FakeAnswer(delay_ms=100))
    asked = as_deferred(a.send(B, [EDU]))

    town.loopback.advance(99)
    assert not asked.called
    town.loopback.advance(1)
    assert result_of(asked).status == 200


def test_a_trickle_takes_its_time_for_each_byte(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """The whole answer is there in the end, and only then."""
    answer = FakeAnswer(trickle_ms=2)
    b.answer_next(answer)
    asked = as_deferred(a.send(B, [EDU]))

    town.loopback.advance(2 * (len(answer.encoded()) - 2))
    assert not asked.called
    town.loopback.advance(4)
    assert result_of(asked).body == {"pdus": {}}


def test_garbage_and_closing_are_no_answer(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """What is not HTTP has no status; neither has silence."""
    b.answer_next(FakeAnswer(raw=b"\x00\xffgarbage\r\n\r\n"), FakeAnswer(close=True))

    assert ask(town, a).status is None
    assert ask(town, a).status is None
    assert ask(town, a).status == 200


def test_a_body_that_breaks_off_keeps_its_status(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """The status came; that the rest did not is told beside it."""
    b.answer_next(FakeAnswer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"))

    answered = ask(town, a)

    assert answered.status == 200
    assert "broke off" in answered.reason


def test_a_script_that_fails_is_a_500(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """A bug in a test's own function must not hang the test."""

    def broken(received: ReceivedRequest) -> FakeAnswer:
        raise RuntimeError(received.uri)

    b.answer_next(broken)

    assert ask(town, a).status == 500


def test_stopping_ends_what_is_under_way(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """A rig that is closed leaves no timer and no connection behind."""
    b.answer_next(FakeAnswer(hang=True), FakeAnswer(delay_ms=10_000))
    asked = [as_deferred(a.send(B, [EDU])) for _ in range(2)]
    town.loopback.flush()

    town.loopback.result(a.stop())
    town.loopback.result(b.stop())

    assert [result_of(each).status for each in asked] == [None, None]
    assert town.loopback.clock.next_due_ms() is None


def test_a_request_can_be_awaited(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """On the real clock a test waits for what happens, not for a time."""

    def is_transaction(received: ReceivedRequest) -> bool:
        return received.txn_id == "t"

    waiting = as_deferred(b.until(is_transaction))
    town.loopback.result(a.send(B, [EDU], txn_id="t"))
    found = result_of(waiting)
    assert found.edus == [EDU]
    assert result_of(b.until(is_transaction)) is found

    waiting = as_deferred(b.until(lambda received: False, timeout_s=1))
    town.loopback.skip(1_000)
    failure_of(waiting, DeferredTimeout)


# --- another implementation than ours ---------------------------------------------------------------


def test_we_believe_what_it_signs(a: FakeHomeserver) -> None:
    """Its keys and its requests pass fedpresence's own checks."""
    keys = verify_key_object(a.key_object(), A)
    content = a.transaction([EDU])
    header = a._authorization(B, "PUT", "/x", content, None, None)

    auth = parse_x_matrix(header.encode())
    verify_request(
        auth, keys.verify_keys[auth.key_id], method="PUT", uri="/x", destination=B, content=content
    )

    assert auth.origin == A
    assert decode_verify_key_base64("ed25519", "f1", a.verify_key) == keys.verify_keys[a.key_id]


def test_it_believes_what_we_sign(town: Town, b: FakeHomeserver) -> None:
    """A request signed by fedpresence is verified, with the keys that fedpresence publishes."""
    ours = Identity(A, [generate_signing_key("1")], {})
    stand_in = town.homeserver(A)
    stand_in.always(FakeAnswer(body=ours.key_object(START_S * 1000)), path=KEY_PATH)
    content = {"origin": A, "origin_server_ts": 1, "pdus": [], "edus": []}
    uri = SEND_PATH + "1"
    headers = {"Authorization": ours.authorization("PUT", uri, B, content)}

    answered = town.loopback.result(
        stand_in._asking.ask(B, "PUT", uri, headers, encode_canonical(content), 10.0)
    )

    assert answered.status == 200
    assert [each.verified for each in b.received] == [True]


def test_importing_it_imports_none_of_our_wire_code() -> None:
    """It checks us only as long as it shares nothing with us."""
    program = "import sys, fedpresence.testing.homeserver; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    shared = [
        name
        for name in out.split()
        if name.startswith(("fedpresence.wire", "fedpresence.inbound", "fedpresence.outbound", "hypothesis"))
        or name == "twisted.internet.reactor"
    ]
    assert shared == []


# --- as JSON ----------------------------------------------------------------------------------------


def test_answers_survive_json() -> None:
    """What a test in another language says is what is answered."""
    answers = [
        FakeAnswer(),
        FakeAnswer(500, {"errcode": "M_UNKNOWN"}, {"Retry-After": "5"}, delay_ms=3),
        FakeAnswer(200, b"\xff", trickle_ms=7),
        FakeAnswer(raw=b"\x00"),
        FakeAnswer(hang=True),
        FakeAnswer(close=True),
    ]

    assert [decode_answer(encode_answer(answer)) for answer in answers] == answers
    assert decode_answer({"body": None}).encoded_body() == b"null"
    assert decode_answer({"body_text": "<html>"}).encoded_body() == b"<html>"


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("an answer", []),
        ("statsu", {"statsu": 200}),
        ("status", {"status": True}),
        ("status", {"status": 199}),
        ("status", {"status": 600}),
        ("delay_ms", {"delay_ms": -1}),
        ("trickle_ms", {"trickle_ms": 1.5}),
        ("hang", {"hang": 1}),
        ("hang", {"hang": True, "close": True}),
        ("headers", {"headers": {"A": 1}}),
        ("headers", {"headers": {"A": "1\r\nB: 2"}}),
        ("headers", {"headers": {"": "1"}}),
        ("body_text", {"body": {}, "body_text": ""}),
        ("raw_base64", {"raw_base64": "*"}),
        ("raw", {"raw": "\ud800"}),
    ],
)
def test_a_wrong_answer_is_refused_by_its_key(key: str, answer: object) -> None:
    """Whoever writes a test in another language sees what to mend."""
    with pytest.raises(BadRequest) as refused:
        decode_answer(answer)

    assert refused.value.message.startswith(f"{key}: ")
    assert (refused.value.errcode, refused.value.status) == ("M_BAD_JSON", 400)


def test_scripts_are_read_as_a_whole() -> None:
    """A mistake in the second answer is found there."""
    script = decode_script({"next": [{}, {"status": 500}], "always": {"hang": True}, "path": KEY_PATH})
    assert script == Script((FakeAnswer(), FakeAnswer(500)), FakeAnswer(hang=True), KEY_PATH)
    assert decode_script({"always": None}) == Script()

    for key, wrong in (
        ("next[1].status", {"next": [{}, {"status": 0}]}),
        ("next[1]", {"next": [{}, 503]}),
        ("always.hang", {"always": {"hang": 0}}),
        ("path", {"path": "x"}),
        ("next", {"next": {}}),
    ):
        with pytest.raises(BadRequest) as refused:
            decode_script(wrong)
        assert refused.value.message.startswith(f"{key}: ")


def test_orders_are_read_and_obeyed(town: Town, a: FakeHomeserver, b: FakeHomeserver) -> None:
    """What the control API takes is what is sent."""
    order = decode_order({"to": B, "edus": [EDU], "txn_id": "t"})
    assert town.loopback.result(a.obey(order)).status == 200
    assert b.transactions[0].txn_id == "t"

    order = decode_order({"to": B, "content": ["anything"], "forge": "origin", "claim": "c.test"})
    assert encode_answered(town.loopback.result(a.obey(order)))["status"] == 401
    assert encode_received(b.received[-1]) == {
        "method": "PUT",
        "uri": b.received[-1].uri,
        "origin": "c.test",
        "txn_id": b.received[-1].txn_id,
        "content": ["anything"],
        "verified": False,
        "reason": "nobody knows where c.test is",
        "received_ms": START_S * 1000,
    }


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("an order", None),
        ("to", {"edus": []}),
        ("to", {"to": "a b", "edus": []}),
        ("edus", {"to": "a.test"}),
        ("edus", {"to": "a.test", "edus": [], "content": {}}),
        ("edus", {"to": "a.test", "edus": None}),
        ("edus", {"to": "a.test", "edus": ["\ud800"]}),
        ("content", {"to": "a.test", "content": {"a": float("nan")}}),
        ("txn_id", {"to": "a.test", "edus": [], "txn_id": ""}),
        ("txn_id", {"to": "a.test", "edus": [], "txn_id": 1}),
        ("forge", {"to": "a.test", "edus": [], "forge": "luck"}),
        ("claim", {"to": "a.test", "edus": [], "claim": "b.test"}),
        ("when", {"to": "a.test", "edus": [], "when": 1}),
    ],
)
def test_a_wrong_order_is_refused_by_its_key(key: str, order: object) -> None:
    """Whoever writes a test in another language sees what to mend."""
    with pytest.raises(BadRequest) as refused:
        decode_order(order)

    assert refused.value.message.startswith(f"{key}: ")


def test_every_edu_type_has_its_words() -> None:
    """Tests read like the wire."""
    pair = {"observed_user": "@b:b.test", "observer_user": "@a:a.test"}
    for make, edu_type in (
        (FakeHomeserver.invite, "m.presence_invite"),
        (FakeHomeserver.accept, "m.presence_accept"),
        (FakeHomeserver.deny, "m.presence_deny"),
        (FakeHomeserver.drop, "org.fedpresence.presence_drop"),
    ):
        assert make("@a:a.test", "@b:b.test") == {"edu_type": edu_type, "content": pair}
    assert FakeHomeserver.poll("@b:b.test")["content"] == {"push": [], "poll": ["@b:b.test"]}
    assert FakeHomeserver.unpoll("@b:b.test")["content"] == {"push": [], "unpoll": ["@b:b.test"]}
    assert FakeHomeserver.push("@a:a.test", "offline", 5)["content"] == {
        "push": [{"user_id": "@a:a.test", "presence": "offline", "last_active_ago": 5}]
    }
    assert get_args(Forgery) == FORGERIES


@pytest.mark.parametrize("module", ["edus", "answers", "orders", "received", "signatures"])
def test_the_examples_run(module: str) -> None:
    """An example that is wrong is worse than none."""
    result = doctest.testmod(importlib.import_module(f"fedpresence.testing.homeserver.{module}"))

    assert (result.failed, result.attempted > 0) == (0, True)
