import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from fedpresence.engine.presence import PresenceState
from fedpresence.ids import ServerName
from fedpresence.testing.homeserver import Answered, FakeAnswer
from fedpresence.testing.rig.control import control_site
from fedpresence.testing.rig.faults import Faults
from tests.http_wire import Answer, Client, request
from tests.testing.rig.standin import ALICE, HERE, THERE, StandInRig


class Control:
    """The control API of a stand-in."""

    def __init__(self, rig: StandInRig) -> None:
        self.clock = Clock()
        self._site = control_site(rig, self.clock)

    def begin(self, method: str, path: str, body: object = None) -> Client:
        """A request on its way."""
        client = Client(self._site)
        client.send(request(method, path, None if body is None else json.dumps(body).encode()))
        return client

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """A request that is answered at once."""
        return self.begin(method, path, body).answer

    def refused(self, method: str, path: str, body: object = None) -> tuple[int, str, str]:
        """Status, errcode and reason of a request that is not done."""
        answer = self.ask(method, path, body)
        return answer.status, str(answer.json["errcode"]), str(answer.json["error"])


@pytest.fixture
def rig() -> StandInRig:
    """A rig with the virtual clock."""
    return StandInRig()


@pytest.fixture
def control(rig: StandInRig) -> Control:
    """Its control API."""
    return Control(rig)


def test_time_is_turned_and_told(rig: StandInRig, control: Control) -> None:
    """The contract's first request; it may take minutes, and no timeout of ours ends it."""
    waiting = control.begin("POST", "/advance", {"ms": 300_000})
    control.clock.advance(3600)
    unanswered = waiting.answers()
    rig.advancing[0].callback(None)

    assert unanswered == []
    assert waiting.answer.json == {"now_ms": 301_000}


def test_operations_are_done_one_at_a_time_in_the_order_they_came(rig: StandInRig, control: Control) -> None:
    """A link that goes down while time is turned would make a test's outcome a matter of luck."""
    control.begin("POST", "/advance", {"ms": 1})
    down = control.begin("PUT", "/links/here.test/there.test", {"down": True})
    stop = control.begin("POST", "/servers/here.test/stop")
    before = list(rig.done)
    rig.advancing[0].callback(None)

    assert before == [("advance", 1)]
    assert rig.done[1:] == [("faults", HERE, THERE, Faults(down=True)), (HERE, "stop"), ("settle",)]
    assert (down.answer.status, stop.answer.status) == (200, 200)


def test_what_only_reads_is_answered_in_the_middle_of_a_long_turn(rig: StandInRig, control: Control) -> None:
    """Somebody who waits for a month to pass wants to see how far it is."""
    control.begin("POST", "/advance", {"ms": 1})

    assert control.ask("GET", "/status").json["now_ms"] == 1_000
    assert control.ask("GET", "/transactions").json == {"transactions": []}
    assert control.ask("GET", "/servers/here.test").json["running"] is True


def test_who_hangs_up_has_asked_all_the_same(rig: StandInRig, control: Control) -> None:
    """Half an operation would leave a rig that no test can reason about."""
    advancing = control.begin("POST", "/advance", {"ms": 1})
    killing = control.begin("POST", "/servers/here.test/kill")
    advancing.leave()
    killing.leave()
    rig.advancing[0].callback(None)

    assert rig.now_ms == 1_001
    assert rig.done == [("advance", 1), (HERE, "kill"), ("settle",)]
    assert control.ask("POST", "/settle").json == {"in_flight": 0}


def test_a_rig_that_stops_does_nothing_more_and_says_so(rig: StandInRig, control: Control) -> None:
    """A time that was not reached, or a server that starts behind the rig's back, would be a lie."""
    advancing = control.begin("POST", "/advance", {"ms": 1})
    starting = control.begin("POST", "/servers/here.test/start")
    rig.is_stopping = True
    rig.advancing[0].callback(None)

    assert [asked.answer.status for asked in (advancing, starting)] == [503, 503]
    assert rig.done == [("advance", 1)]


def test_the_line_has_an_end(rig: StandInRig, control: Control) -> None:
    """A client in a loop that waits for nothing must not fill the memory."""
    control.begin("POST", "/advance", {"ms": 1})
    waiting = Client(control._site)
    for _ in range(1_000):
        control.begin("POST", "/settle").leave()

    waiting.send(request("POST", "/settle"))
    rig.advancing[0].callback(None)

    assert waiting.answer.status == 429
    assert rig.done == [("advance", 1)] + [("settle",)] * 1_000


def test_only_a_virtual_clock_can_be_turned() -> None:
    """The contract: 400, and the reason says what to start the rig with."""
    status, errcode, reason = Control(StandInRig(virtual=False)).refused("POST", "/advance", {"ms": 1})

    assert (status, errcode) == (400, "M_UNKNOWN")
    assert "--clock virtual" in reason


@pytest.mark.parametrize("verb", ["start", "stop", "kill", "backup", "restore", "wipe", "rotate-key"])
def test_each_thing_that_can_be_done_to_a_server(rig: StandInRig, control: Control, verb: str) -> None:
    """The answer is what the server is like afterwards: a rotated key is a new one."""
    answer = control.ask("POST", f"/servers/here.test/{verb}").json

    assert rig.done[0] == (HERE, verb.replace("-", "_"))
    assert answer["server_name"] == HERE
    assert answer["key_id"] == "ed25519:1"
    assert answer["running"] is (verb not in ("stop", "kill"))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/servers/here.test/start", {}),
        ("POST", "/servers/here.test/clock", {"offset_ms": 1}),
        ("PUT", "/users/alice@here.test/stream", {"open": True}),
    ],
)
def test_what_an_operation_sets_going_has_happened_when_it_is_answered(
    method: str, path: str, body: object
) -> None:
    """Or the next request would race with it: the same test, run twice, would have two wire logs.

    With the real clock a peer may take its time, and whoever wants to wait says so.
    """
    virtual, real = StandInRig(), StandInRig(virtual=False)

    for rig in (virtual, real):
        Control(rig).ask(method, path, body)

    assert virtual.done[1:] == [("settle",)]
    assert len(real.done) == 1


def test_a_restore_without_a_backup_is_refused(rig: StandInRig, control: Control) -> None:
    """Silence would let a test go on with the data that it wanted to be rid of."""
    rig.servers[HERE].without_backup = True

    assert control.refused("POST", "/servers/here.test/restore") == (
        400,
        "M_UNKNOWN",
        "here.test has no backup",
    )


def test_a_server_can_be_called_what_it_was_ordered_as(control: Control) -> None:
    """An addressable server's name is only known once it runs."""
    rig = StandInRig(alias="a.test")
    control = Control(rig)

    control.ask("POST", "/servers/a.test/stop")
    control.ask("PUT", "/links/a.test/there.test", {})
    control.ask("PUT", "/users/@alice:a.test/stream", {"open": False})

    assert rig.done == [
        (HERE, "stop"),
        ("settle",),
        ("faults", HERE, THERE, Faults()),
        ("stream", ALICE, False, None, None),
        ("settle",),
    ]


def test_a_wrong_clock(rig: StandInRig, control: Control) -> None:
    """Behind as well as ahead."""
    control.ask("POST", "/servers/here.test/clock", {"offset_ms": -90_000})

    assert rig.done[0] == (HERE, "set_clock", -90_000)


def test_a_stream_is_opened_as_said(rig: StandInRig, control: Control) -> None:
    """The contract's body, all of it; a percent-encoded user ID is the same user."""
    body = {"open": True, "device_id": "PHONE", "set_presence": "unavailable"}

    answer = control.ask("PUT", "/users/%40alice%3Ahere.test/stream", body)

    assert answer.json == {}
    assert rig.done[0] == ("stream", ALICE, True, "PHONE", PresenceState.UNAVAILABLE)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/servers/x.test/stop", None),
        ("GET", "/servers/x.test", None),
        ("POST", "/servers/x.test/clock", {"offset_ms": 0}),
        ("PUT", "/links/here.test/x.test", {}),
        ("PUT", "/links/x.test/here.test", {"down": True}),
        ("PUT", "/users/@bob:here.test/stream", {"open": True}),
        ("PUT", "/users/nonsense/stream", {"open": True}),
        ("GET", "/homeservers/x.test/received", None),
        ("PUT", "/homeservers/here.test/answers", {}),
        ("POST", "/homeservers/x.test/send", {"to": HERE, "edus": []}),
    ],
)
def test_who_is_not_in_the_rig_is_not_found(
    rig: StandInRig, control: Control, method: str, path: str, body: object
) -> None:
    """A misspelt name must fail the test that has it, not pass it."""
    status, errcode, _ = control.refused(method, path, body)

    assert (status, errcode) == (404, "M_NOT_FOUND")
    assert rig.done == []


@pytest.mark.parametrize(
    ("method", "path", "body", "key"),
    [
        ("POST", "/advance", {}, "ms"),
        ("POST", "/advance", {"ms": -1}, "ms"),
        ("POST", "/advance", {"ms": 1.5}, "ms"),
        ("POST", "/advance", {"ms": True}, "ms"),
        ("POST", "/advance", {"ms": 10**15}, "ms"),
        ("POST", "/advance", {"ms": 1, "minutes": 1}, "minutes"),
        ("POST", "/advance", [], "advance"),
        ("POST", "/settle", {"ms": 1}, "ms"),
        ("PUT", "/links/here.test/there.test", {"latency": 1}, "latency"),
        ("PUT", "/links/here.test/there.test", {"drop_request": 2}, "drop_request"),
        ("PUT", "/users/@alice:here.test/stream", {}, "open"),
        ("PUT", "/users/@alice:here.test/stream", {"open": 1}, "open"),
        ("PUT", "/users/@alice:here.test/stream", {"open": True, "device_id": ""}, "device_id"),
        ("PUT", "/users/@alice:here.test/stream", {"open": True, "set_presence": "gone"}, "set_presence"),
        (  # P:13: no client can say so in a sync
            "PUT",
            "/users/@alice:here.test/stream",
            {"open": True, "set_presence": "org.matrix.msc3026.busy"},
            "set_presence",
        ),
        ("POST", "/servers/here.test/clock", {}, "offset_ms"),
        ("POST", "/servers/here.test/clock", {"offset_ms": "1s"}, "offset_ms"),
        ("POST", "/servers/here.test/stop", {"force": True}, "force"),
        ("POST", "/external", {"server_name": "x y", "address": "127.0.0.1:1"}, "server_name"),
        ("POST", "/external", {"server_name": "x.test"}, "address"),
        (
            "POST",
            "/external",
            {"server_name": "x.test", "address": "127.0.0.1:1", "ca_file": "/nowhere"},
            "ca_file",
        ),
        ("POST", "/homeservers", {}, "server_name"),
    ],
)
def test_a_body_that_is_wrong_is_refused_by_the_key(
    rig: StandInRig, control: Control, method: str, path: str, body: object, key: str
) -> None:
    """Whoever writes the test reads which of its keys is meant, and nothing was done by halves."""
    status, errcode, reason = control.refused(method, path, body)

    assert (status, errcode) == (400, "M_BAD_JSON")
    assert reason.startswith(f"{key}:")
    assert rig.done == []


def test_a_body_that_should_be_empty_is_told_so(control: Control) -> None:
    """A list of known keys that is empty reads like a slip."""
    _, _, reason = control.refused("POST", "/settle", {"timeout": 5})

    assert reason == "timeout: unknown key; settle has none"


def test_what_is_no_json_is_said_to_be_none(control: Control) -> None:
    """A shell script's quoting goes wrong sooner or later."""
    client = Client(control._site)
    client.send(request("POST", "/advance", b"{ms: 1}"))

    assert client.answer.status == 400
    assert client.answer.json["errcode"] == "M_NOT_JSON"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/advance", 405),
        ("POST", "/wire", 405),
        ("POST", "/servers/here.test/explode", 404),
    ],
)
def test_unknown_paths_and_methods_are_answered_as_everywhere(
    control: Control, method: str, path: str, status: int
) -> None:
    """Matrix's own two answers."""
    assert control.refused(method, path)[:2] == (status, "M_UNRECOGNIZED")


def test_transactions_are_told_in_order_and_by_who_sent_them(rig: StandInRig, control: Control) -> None:
    """The contract's fields; `status` null where no answer came."""
    sent = rig.wire.record(HERE, THERE, "1", b'{"edus": []}', 1_000)
    rig.wire.answered(sent, 200, 1_005)
    rig.wire.record(THERE, HERE, "2", b"{}", 1_010)

    def told(query: str) -> list[Any]:
        transactions = control.ask("GET", f"/transactions{query}").json["transactions"]
        assert isinstance(transactions, list)
        return transactions

    assert told("")[0] == {
        "from": HERE,
        "to": THERE,
        "txn_id": "1",
        "sent_ms": 1_000,
        "answered_ms": 1_005,
        "status": 200,
        "body": {"edus": []},
    }
    assert told("")[1]["status"] is None
    assert [each["txn_id"] for each in told("?from=there.test")] == ["2"]
    assert [each["txn_id"] for each in told("?from=here.test&to=there.test")] == ["1"]
    assert told("?from=here.test&to=here.test") == []


@pytest.mark.parametrize("page", ["/transactions", "/wire"])
def test_a_filter_that_is_none_is_refused(control: Control, page: str) -> None:
    """All transactions, for who asked for some, would let a test count the wrong ones."""
    status, errcode, reason = control.refused("GET", f"{page}?origin=here.test&to=there.test")

    assert (status, errcode) == (400, "M_INVALID_PARAM")
    assert reason.startswith("origin: ")


def test_a_transaction_that_is_no_text_is_told_too(rig: StandInRig, control: Control) -> None:
    """Half a surrogate pair is exactly what a test of a broken peer wants to see."""
    rig.wire.record(HERE, THERE, "1", b'{"x": "\\ud800"}', 1_000)

    (transaction,) = json.loads(control.ask("GET", "/transactions").body)["transactions"]

    assert transaction["body"] == {"x": "\ud800"}
    assert control.ask("GET", "/wire").status == 200


def test_the_wire_log_can_be_read(rig: StandInRig, control: Control) -> None:
    """Plain text, for a person with curl in front of a test that fails."""
    rig.wire.record(HERE, THERE, "txn7", b'{"edus": []}', 1_000)

    answer = control.ask("GET", "/wire?to=there.test")
    other_way = control.ask("GET", "/wire?to=here.test")

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"txn7" in answer.body
    assert b"txn7" not in other_way.body


def test_a_server_outside_is_made_known(tmp_path: Path) -> None:
    """With the real clock; its authority's file is looked for before anything is done."""
    rig = StandInRig(virtual=False)
    ca_file = tmp_path / "ca.pem"
    ca_file.touch()
    body = {"server_name": "x.test", "address": "127.0.0.1:8448", "ca_file": str(ca_file)}

    assert Control(rig).ask("POST", "/external", body).json == {}
    assert rig.done == [("external", "x.test", "127.0.0.1:8448", ca_file)]


def test_a_server_outside_does_not_know_a_virtual_clock(control: Control) -> None:
    """The rig's own reason reaches whoever asked."""
    body = {"server_name": "x.test", "address": "127.0.0.1:8448"}

    status, errcode, reason = control.refused("POST", "/external", body)

    assert (status, errcode) == (400, "M_UNKNOWN")
    assert "--clock real" in reason


# --- scripted homeservers ---------------------------------------------------------------------

FAKE = ServerName("fake.test")


def test_a_homeserver_is_made_once(rig: StandInRig, control: Control) -> None:
    """Its keys are told, so that a test can check signatures of its own."""
    made = control.ask("POST", "/homeservers", {"server_name": FAKE}).json
    again = control.refused("POST", "/homeservers", {"server_name": FAKE})

    assert made["server_name"] == FAKE
    assert made["key_id"] == rig.homeservers[FAKE].key_id
    assert made["verify_key"] == rig.homeservers[FAKE].verify_key
    assert again[:2] == (400, "M_UNKNOWN")
    assert control.ask("GET", "/status").json["homeservers"] == [FAKE]


def test_a_homeserver_answers_by_the_script(rig: StandInRig, control: Control) -> None:
    """Both parts of a script get through."""
    control.ask("POST", "/homeservers", {"server_name": FAKE})

    script = {"next": [{"status": 500}], "always": {"hang": True}}
    answer = control.ask("PUT", f"/homeservers/{FAKE}/answers", script)
    wrong = control.refused("PUT", f"/homeservers/{FAKE}/answers", {"next": [{"status": "500"}]})

    assert answer.json == {}
    homeserver = rig.homeservers[FAKE]
    assert [each for _, each in homeserver._next] == [FakeAnswer(500)]
    assert [*homeserver._always.values()] == [FakeAnswer(hang=True)]
    assert wrong[2].startswith("next[0].status:")


def test_a_homeserver_sends_what_it_is_told(rig: StandInRig) -> None:
    """With the real clock the answer is waited for, and nothing else waits meanwhile."""
    rig = StandInRig(virtual=False)
    control = Control(rig)
    control.ask("POST", "/homeservers", {"server_name": FAKE})

    sending = control.begin("POST", f"/homeservers/{FAKE}/send", {"to": HERE, "edus": []})
    meanwhile = control.ask("POST", "/settle").status
    ((order, answered),) = rig.homeservers[FAKE].orders
    answered.callback(Answered(200, {"pdus": {}}))

    assert order.to == HERE
    assert meanwhile == 200
    assert sending.answer.json == {"status": 200, "body": {"pdus": {}}}


def test_an_answer_that_needs_time_to_pass_is_not_waited_for(rig: StandInRig, control: Control) -> None:
    """Whoever asks here turns the clock too: they would wait for each other for ever."""
    control.ask("POST", "/homeservers", {"server_name": FAKE})

    answer = control.ask("POST", f"/homeservers/{FAKE}/send", {"to": HERE, "edus": []})
    ((_, answered),) = rig.homeservers[FAKE].orders
    answered.callback(Answered(200, {}))

    assert answer.json["status"] is None
    assert rig.done == [("settle",)]


@pytest.mark.parametrize(
    ("error", "status"),
    [(LookupError("there.test"), 404), (ValueError("Out of range float"), 400)],
)
def test_what_cannot_be_sent_is_refused(error: Exception, status: int) -> None:
    """A destination that nobody knows, and a body that no signature can be made over."""
    rig = StandInRig(virtual=False)
    control = Control(rig)
    control.ask("POST", "/homeservers", {"server_name": FAKE})

    sending = control.begin("POST", f"/homeservers/{FAKE}/send", {"to": "x.test", "edus": []})
    rig.homeservers[FAKE].orders[0][1].errback(error)

    assert sending.answer.status == status


def test_a_sender_who_hangs_up_does_not_stop_what_is_sent() -> None:
    """The transaction is on the wire already."""
    rig = StandInRig(virtual=False)
    control = Control(rig)
    control.ask("POST", "/homeservers", {"server_name": FAKE})

    control.begin("POST", f"/homeservers/{FAKE}/send", {"to": HERE, "edus": []}).leave()
    ((_, answered),) = rig.homeservers[FAKE].orders
    failures: list[object] = []
    answered.addErrback(lambda failure: failures.append(failure.check(CancelledError)))

    assert not answered.called
    assert failures == []


def test_a_homeserver_changes_its_key(rig: StandInRig, control: Control) -> None:
    """The new one is told at once."""
    before = control.ask("POST", "/homeservers", {"server_name": FAKE}).json["key_id"]

    after = control.ask("POST", f"/homeservers/{FAKE}/rotate-key").json["key_id"]

    assert before != after == rig.homeservers[FAKE].key_id


def test_what_a_homeserver_received_is_told_and_forgotten(rig: StandInRig, control: Control) -> None:
    """A test's second half looks at its own requests alone."""
    control.ask("POST", "/homeservers", {"server_name": FAKE})

    assert control.ask("GET", f"/homeservers/{FAKE}/received").json == {"received": []}
    assert control.ask("DELETE", f"/homeservers/{FAKE}/received").json == {}
