import json
from typing import Any

import pytest

from fedpresence.admission import BodyBudget
from fedpresence.config_model import LimitsConfig
from fedpresence.homeserver.appservice import MAX_BODY_BYTES, add_appservice, admission
from fedpresence.site import BoundedSite
from fedpresence.web import Unknown
from tests.homeserver.world import ALICE, BOT, NOW_MS, REGISTRATION, ROOM, Beside, PlayedHomeserver
from tests.http_wire import Answer, Client

TRANSACTION = "/_matrix/app/v1/transactions/1"
BEARER = f"Authorization: Bearer {REGISTRATION.hs_token}\r\n"
MESSAGE = {
    "type": "m.room.message",
    "room_id": ROOM,
    "sender": ALICE,
    "origin_server_ts": NOW_MS,
    "content": {},
}


def served(beside: Beside | None = None) -> tuple[Beside, BoundedSite]:
    beside = beside or Beside(PlayedHomeserver({ROOM: {BOT, ALICE}})).started()
    root = Unknown()
    add_appservice(root, beside.appservice)
    limits = LimitsConfig()
    budget = BodyBudget(limits.bodies_in_flight)
    return beside, BoundedSite(root, limits, beside.clock, budget, admission(beside.appservice))


def ask(site: BoundedSite, method: str, path: str, body: object = None, headers: str = BEARER) -> Answer:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    client = Client(site)
    client.send(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data
    )
    (answer,) = client.answers()
    return answer


@pytest.mark.parametrize("path", [TRANSACTION, "/transactions/1"])
def test_a_transaction_is_taken_and_answered_with_an_empty_object(path: str) -> None:
    """H:2.3; an old homeserver knows the path without its prefix."""
    beside, site = served()

    answer = ask(site, "PUT", path, {"events": [MESSAGE]})

    assert (answer.status, answer.json) == (200, {})
    assert beside.engine.user_exists(ALICE)
    detail = beside.engine.user_detail(ALICE, NOW_MS)
    assert detail is not None and detail.view.state.value == "online"


@pytest.mark.parametrize(
    ("path", "headers", "status", "errcode"),
    [
        (TRANSACTION, "", 401, "M_MISSING_TOKEN"),
        (TRANSACTION, "Authorization: Bearer wrong\r\n", 403, "M_FORBIDDEN"),
        (TRANSACTION, f"Authorization: Basic {REGISTRATION.hs_token}\r\n", 403, "M_FORBIDDEN"),
        (TRANSACTION, BEARER + BEARER.replace("b", "c"), 403, "M_FORBIDDEN"),
        (TRANSACTION + "?access_token=wrong", "", 403, "M_FORBIDDEN"),
        (TRANSACTION + "?access_token=wrong", BEARER, 403, "M_FORBIDDEN"),
        (TRANSACTION + f"?access_token={REGISTRATION.as_token}", "", 403, "M_FORBIDDEN"),
        (TRANSACTION + f"?access_token={REGISTRATION.hs_token}", "", 200, None),
        (TRANSACTION + f"?access_token={REGISTRATION.hs_token}", BEARER, 200, None),
    ],
)
def test_only_the_homeserver_is_heard(path: str, headers: str, status: int, errcode: str | None) -> None:
    """H:2.2: by header, or by the query of old; where both come they must be equal."""
    _, site = served()

    answer = ask(site, "PUT", path, {"events": []}, headers)

    assert (answer.status, answer.json.get("errcode")) == (status, errcode)


@pytest.mark.parametrize(
    ("method", "path", "status", "errcode"),
    [
        ("POST", "/_matrix/app/v1/ping", 200, None),
        ("GET", "/_matrix/app/v1/ping", 405, "M_UNRECOGNIZED"),
        ("GET", TRANSACTION, 405, "M_UNRECOGNIZED"),
        ("GET", "/_matrix/app/v1/users/%40x%3Ahere.test", 404, "M_NOT_FOUND"),
        ("GET", "/_matrix/app/v1/rooms/%23x%3Ahere.test", 404, "M_NOT_FOUND"),
        ("GET", "/_matrix/app/v1/thirdparty/protocol/irc", 404, "M_NOT_FOUND"),
        ("GET", "/users/@x:here.test", 404, "M_NOT_FOUND"),
        ("GET", "/rooms/x", 404, "M_NOT_FOUND"),
        ("GET", "/_matrix/app/unstable/thirdparty/location", 404, "M_NOT_FOUND"),
        ("GET", "/_matrix/app/v1/elsewhere", 404, "M_UNRECOGNIZED"),
    ],
)
def test_every_other_path_has_its_answer(method: str, path: str, status: int, errcode: str | None) -> None:
    """H:2.6 and 2.7: nobody and nothing is made on demand."""
    _, site = served()

    answer = ask(site, method, path)

    assert (answer.status, answer.json.get("errcode")) == (status, errcode)


def test_a_repeated_transaction_is_answered_and_not_taken_again() -> None:
    """The 200 was lost; typing would otherwise count twice."""
    beside, site = served()
    taken: list[object] = []
    read = beside.appservice._happenings.read

    def counted(body: Any, now_ms: int) -> Any:
        taken.append(body)
        return read(body, now_ms)

    beside.appservice._happenings.read = counted  # type: ignore[method-assign]  # to count, only

    for _ in range(2):
        assert ask(site, "PUT", TRANSACTION, {"events": [MESSAGE]}).status == 200
    assert len(taken) == 1

    # A homeserver that was set up anew counts from one again.
    assert ask(site, "PUT", TRANSACTION, {"events": []}).status == 200
    assert len(taken) == 2


@pytest.mark.parametrize("body", [{}, {"events": 5}, {"events": [5, None, {"type": 3}]}, {"x": 10**50}])
def test_whatever_is_an_object_is_taken(body: object) -> None:
    """An error would hold up everything that comes after."""
    _, site = served()

    assert ask(site, "PUT", TRANSACTION, body).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """It was cut on its way: the homeserver repeats it whole."""
    _, site = served()

    assert ask(site, "PUT", TRANSACTION, body).status == 400


def test_a_number_or_nesting_that_cannot_be_read_holds_up_nothing() -> None:
    """Whoever sends such an event to a room here must not stop presence for everybody."""
    beside, site = served()
    beside.homeserver.asked.clear()
    deep = b'{"events": [{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"
    long = b'{"events": [{"content": ' + b"1" * 10_000 + b"}]}"

    assert ask(site, "PUT", TRANSACTION, long).status == 200
    assert ask(site, "PUT", TRANSACTION, deep).status == 200
    beside.settle()

    assert f"members of {ROOM}" in beside.homeserver.asked  # what was in it is asked for instead


def test_the_homeserver_may_send_much_and_nobody_else() -> None:
    """A hundred events are megabytes; whoever else reaches the port has the plain limit."""
    _, site = served()
    big = {"events": [], "padding": "x" * 1_000_000}

    assert ask(site, "PUT", TRANSACTION, big).status == 200
    assert ask(site, "PUT", TRANSACTION, big, headers="").status == 413
    head = f"PUT {TRANSACTION} HTTP/1.1\r\nHost: x\r\n{BEARER}Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    client = Client(site)
    client.send(head.encode())
    assert client.answers()[0].status == 413
