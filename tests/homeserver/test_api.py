# mypy: allow-untyped-calls
import json
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.resource import Resource
from twisted.web.server import Request

from fedpresence.errors import HomeserverRefused, HomeserverUnavailable
from fedpresence.homeserver import api as api_module
from fedpresence.homeserver.api import HomeserverApi
from fedpresence.ids import RoomID
from tests.asynchronous import failure_of, result_of
from tests.homeserver.world import ALICE, BOB, BOT, REGISTRATION, ROOM


class Homeserver(Resource):
    """Answers every path alike, and remembers what it was asked."""

    isLeaf = True

    def __init__(self, status: int, body: object) -> None:
        super().__init__()
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.asked: list[tuple[str, str, str | None]] = []

    def render(self, request: Request) -> bytes:
        request.setResponseCode(self.status)
        request.setHeader("Date", "Tue, 14 Nov 2023 22:13:20 GMT")
        uri, token = request.uri.decode(), request.getHeader("Authorization")
        self.asked.append((request.method.decode(), uri, token))
        return self.body


def api(homeserver: Homeserver) -> HomeserverApi:
    http: Any = StubTreq(homeserver)
    return HomeserverApi("http://homeserver.test/", REGISTRATION, http, Clock())


def test_a_users_rooms_are_asked_for_in_their_name() -> None:
    """H:3: the token in the header, the user in the query, encoded."""
    homeserver = Homeserver(200, {"joined_rooms": [ROOM, 5, "#alias:here.test"]})

    assert result_of(api(homeserver).joined_rooms(ALICE)) == (ROOM,)
    assert homeserver.asked == [
        (
            "GET",
            "/_matrix/client/v3/joined_rooms?user_id=%40alice%3Ahere.test",
            f"Bearer {REGISTRATION.as_token}",
        )
    ]


def test_members_are_the_keys_that_are_user_ids() -> None:
    """A room may hold names from before the grammar."""
    homeserver = Homeserver(200, {"joined": {ALICE: {}, BOB: {"display_name": None}, "bob": {}}})

    assert result_of(api(homeserver).joined_members(RoomID("!a/b:here.test"))) == (ALICE, BOB)
    assert homeserver.asked[0][1] == "/_matrix/client/v3/rooms/%21a%2Fb%3Ahere.test/joined_members"


@pytest.mark.parametrize(
    ("status", "body", "exists"),
    [(200, {}, True), (404, {"errcode": "M_NOT_FOUND"}, False)],
)
def test_a_profile_says_whether_a_user_exists(status: int, body: object, exists: bool) -> None:
    """H:1."""
    assert result_of(api(Homeserver(status, body)).user_exists(ALICE)) is exists


@pytest.mark.parametrize(
    ("status", "body", "wait_ms"),
    [
        (502, b"<html>", None),
        (503, {}, None),
        (429, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 2500}, 2500),
        (401, {"errcode": "M_UNKNOWN_TOKEN"}, None),
    ],
)
def test_what_may_be_better_later_is_told_so(status: int, body: object, wait_ms: int | None) -> None:
    """401 too: the homeserver may not have been restarted with our registration yet."""
    error = failure_of(api(Homeserver(status, body)).joined_rooms(), HomeserverUnavailable)

    assert error.retry_after_ms == wait_ms
    assert REGISTRATION.as_token not in str(error)


@pytest.mark.parametrize(
    ("status", "body", "errcode"),
    [(403, {"errcode": "M_FORBIDDEN"}, "M_FORBIDDEN"), (500, {}, None), (200, b"[]", None), (302, {}, None)],
)
def test_what_is_a_no_is_told_so(status: int, body: object, errcode: str | None) -> None:
    """Asking again would change nothing."""
    error = failure_of(api(Homeserver(status, body)).joined_rooms(), HomeserverRefused)

    assert (error.status, error.errcode) == (status, errcode)


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer has a bound."""
    monkeypatch.setattr(api_module, "MAX_ANSWER_BYTES", 1000)

    error = failure_of(api(Homeserver(200, {"x": "x" * 2000})).joined_rooms(), HomeserverRefused)

    assert error.errcode == "M_TOO_LARGE"


def test_a_homeserver_that_never_answers_is_unavailable_after_a_while() -> None:
    """Every wait has an end."""

    class Silent:
        def request(self, method: str, url: str, **kwargs: object) -> Deferred[Any]:
            return Deferred()

    clock = Clock()
    asking = Deferred.fromCoroutine(HomeserverApi("http://x", REGISTRATION, Silent(), clock).joined_rooms())
    clock.advance(61)

    failure_of(asking, HomeserverUnavailable)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"/_fedpresence/client/v1/subscriptions/me": (401, "M_MISSING_TOKEN")}, True),
        ({}, False),
        (
            dict.fromkeys(
                ("/_fedpresence/client/v1/subscriptions/me", "/_fedpresence/client/v1/me"),
                (401, "M_MISSING_TOKEN"),
            ),
            False,
        ),
    ],
)
def test_fedpresence_is_known_by_what_it_alone_asks_a_token_for(
    answers: dict[str, tuple[int, str]], expected: bool
) -> None:
    """The address of the homeserver is ours by mistake; somebody who asks for tokens everywhere is not us."""

    class Answering(Homeserver):
        def render(self, request: Request) -> bytes:
            status, errcode = answers.get(request.path.decode(), (404, "M_UNRECOGNIZED"))
            request.setResponseCode(status)
            return json.dumps({"errcode": errcode}).encode()

    assert result_of(api(Answering(200, {})).is_ourselves()) is expected


def test_a_certificate_that_is_no_good_is_said_to_be() -> None:
    """Twisted wraps what happened: an operator wants what is in it."""

    class Broken:
        def request(self, method: str, url: str, **kwargs: Any) -> Deferred[Any]:
            return fail(ResponseNeverReceived([Failure(ValueError("certificate verify failed"))]))

    asking = HomeserverApi("https://homeserver.test", None, Broken(), Clock())

    assert "certificate verify failed" in failure_of(asking.versions(), HomeserverUnavailable).reason


def test_a_bot_that_is_there_already_is_fine() -> None:
    """It is registered at each first scan."""
    homeserver = Homeserver(400, {"errcode": "M_USER_IN_USE"})

    result_of(api(homeserver).register_bot())
    assert homeserver.asked[0][:2] == ("POST", "/_matrix/client/v3/register")


def test_the_start_up_checks_have_their_questions() -> None:
    """H:9: who we are, whether we are reached, what time it is there."""
    assert result_of(api(Homeserver(200, {"user_id": BOT})).whoami()) == BOT
    assert result_of(api(Homeserver(200, {"duration_ms": 12})).ping()) == 12
    assert result_of(api(Homeserver(200, {"presence": "offline"})).presence_of(BOT)) == "offline"
    assert result_of(api(Homeserver(200, {"join_rule": "public"})).join_rule(ROOM)) == "public"
    homeserver = Homeserver(200, {"versions": ["v1.11"]})
    answered = result_of(api(homeserver).versions())
    assert (answered.body["versions"], answered.date_ms) == (["v1.11"], 1_700_000_000_000)
    assert homeserver.asked[0][2] is None
    error = failure_of(api(Homeserver(502, {"errcode": "M_CONNECTION_FAILED"})).ping(), HomeserverRefused)
    assert error.errcode == "M_CONNECTION_FAILED"
