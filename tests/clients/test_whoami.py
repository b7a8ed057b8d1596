# mypy: allow-untyped-calls
import json
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request

from fedpresence.clients.requests import Credentials, Refused
from fedpresence.clients.whoami import MAX_ASKED, PATIENCE_S, TIMEOUT_S, HomeserverTokens
from fedpresence.errors import BadRequest
from fedpresence.ids import DeviceID, ServerName, UserID
from fedpresence.storage.store import TokenOwner
from tests.asynchronous import failure_of, result_of

HERE = ServerName("here.test")
ALICE = UserID("@alice:here.test")


class Homeserver(Resource):
    """Answers as told, and remembers what it was asked."""

    isLeaf = True

    def __init__(self, answers: dict[str, tuple[int, object]]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[tuple[str, str]] = []
        self.queries: list[str] = []

    def render_GET(self, request: Request) -> bytes:
        path = request.path.decode()
        token = (request.getHeader("Authorization") or "").removeprefix("Bearer ")
        self.queries.append(request.uri.decode().partition("?")[2])
        self.asked.append((path.split("/")[3], token))
        unrecognized: tuple[int, object] = (404, {"errcode": "M_UNRECOGNIZED"})
        status, body = self.answers.get(path.split("/")[3], unrecognized)
        request.setResponseCode(status)
        return body if isinstance(body, bytes) else json.dumps(body).encode()


def tokens(homeserver: Homeserver) -> HomeserverTokens:
    http: Any = StubTreq(homeserver)
    return HomeserverTokens(HERE, "http://homeserver.test/", http, Clock())


def test_the_homeserver_says_whose_token_it_is() -> None:
    """Beside a homeserver every login method works, because only the homeserver judges."""
    homeserver = Homeserver({"v3": (200, {"user_id": ALICE, "device_id": "PHONE"})})

    owner = result_of(tokens(homeserver).find_token("secret"))

    assert owner == TokenOwner(ALICE, DeviceID("PHONE"))
    assert homeserver.asked == [("v3", "secret")]


def test_a_token_without_a_device_is_one() -> None:
    """Tokens of application services have none."""
    homeserver = Homeserver({"v3": (200, {"user_id": ALICE})})

    assert result_of(tokens(homeserver).find_token("secret")) == TokenOwner(ALICE, None)


def test_a_token_the_homeserver_does_not_know_is_unknown() -> None:
    """A logout ends it here too."""
    homeserver = Homeserver({"v3": (401, {"errcode": "M_UNKNOWN_TOKEN"})})

    assert result_of(tokens(homeserver).find_token("secret")) == Refused("M_UNKNOWN_TOKEN", soft_logout=False)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"errcode": "M_UNKNOWN_TOKEN", "soft_logout": True}, Refused("M_UNKNOWN_TOKEN", soft_logout=True)),
        ({"errcode": "M_USER_LOCKED", "soft_logout": True}, Refused("M_USER_LOCKED", soft_logout=True)),
        ({"errcode": "M_MISSING_TOKEN"}, Refused("M_UNKNOWN_TOKEN", soft_logout=False)),
        ("no object", Refused("M_UNKNOWN_TOKEN", soft_logout=False)),
    ],
)
def test_a_token_is_refused_in_the_homeservers_words(body: object, refused: Refused) -> None:
    """Who is told of an end for good throws away the keys of all messages; one that expired is renewed."""
    homeserver = Homeserver({"v3": (401, body)})

    assert result_of(tokens(homeserver).find_token("secret")) == refused


def test_an_old_homeserver_is_asked_under_its_old_path() -> None:
    """Some know `r0` alone."""
    homeserver = Homeserver({"r0": (200, {"user_id": ALICE})})

    assert result_of(tokens(homeserver).find_token("secret")) == TokenOwner(ALICE, None)
    assert [version for version, _ in homeserver.asked] == ["v3", "r0"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {}),
        (502, b"<html>"),
        (403, {"errcode": "M_FORBIDDEN"}),
        (200, {"user_id": "no user"}),
        (200, b"not json"),
        (200, {"user_id": "@alice:there.test"}),
        (404, {"errcode": "M_UNRECOGNIZED"}),
        (302, {}),
    ],
)
def test_where_the_homeserver_has_no_good_answer_it_is_503(status: int, body: object) -> None:
    """A homeserver that is down must not look like a logout to every client."""
    error = failure_of(tokens(Homeserver({"v3": (status, body)})).find_token("secret"), BadRequest)

    assert (error.status, error.errcode) == (503, "M_UNKNOWN")


def test_a_homeserver_that_is_away_is_told_of_once_and_so_is_its_return() -> None:
    """Every client asks again and again meanwhile: a line for each would bury all others."""
    homeserver = Homeserver({"v3": (502, b"<html>")})
    asking = tokens(homeserver)

    with capturedLogs() as events:
        for number in range(3):
            failure_of(asking.find_token(f"token {number}"), BadRequest)
        homeserver.answers["v3"] = (401, {"errcode": "M_UNKNOWN_TOKEN"})
        for number in range(3):
            result_of(asking.find_token(f"token {number}"))

    said = [formatEvent(event) for event in events if event["log_level"] is not LogLevel.debug]
    assert said == ["the homeserver answered 502 to whoami", "the homeserver answers whoami again"]


def test_a_busy_homeserver_is_busy_here() -> None:
    """The client is told when to come again."""
    homeserver = Homeserver({"v3": (429, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 2500})})

    error = failure_of(tokens(homeserver).find_token("secret"), BadRequest)

    assert (error.status, error.retry_after_ms) == (429, 2500)


def test_a_homeserver_that_never_answers_is_503_after_a_while() -> None:
    """Every wait has an end."""
    from twisted.internet.defer import Deferred

    class Silent:
        def get(self, url: str, **kwargs: object) -> Deferred[Any]:
            return Deferred()

    clock = Clock()
    finding = HomeserverTokens(HERE, "http://homeserver.test", Silent(), clock).find_token("secret")
    clock.advance(11)

    assert failure_of(finding, BadRequest).status == 503


def test_an_application_service_is_asked_about_as_whom_it_acts() -> None:
    """H:3: the same token is everybody it may be; the device is named since v1.17."""
    homeserver = Homeserver({"v3": (200, {"user_id": ALICE, "device_id": "PHONE"})})

    owner = result_of(tokens(homeserver).find(Credentials("secret", ALICE, "PHONE")))

    assert owner == TokenOwner(ALICE, DeviceID("PHONE"))
    assert homeserver.queries == ["user_id=%40alice%3Ahere.test&device_id=PHONE"]


def test_who_may_not_act_as_a_user_is_nobody() -> None:
    """H:4: a 403 is the answer to that alone."""
    homeserver = Homeserver({"v3": (403, {"errcode": "M_FORBIDDEN"})})

    assert result_of(tokens(homeserver).find(Credentials("secret", ALICE))) is None
    failure_of(tokens(homeserver).find(Credentials("secret")), BadRequest)


def test_only_so_many_are_asked_at_a_time() -> None:
    """Z-28: after a restart of ours all clients come at once; the rest waits its turn."""
    asked: list[Deferred[Any]] = []

    class Slow:
        def get(self, url: str, **kwargs: Any) -> "Deferred[Any]":
            asked.append(Deferred())
            return asked[-1]

    finder = HomeserverTokens(HERE, "http://homeserver.test", Slow(), Clock())
    finding = [finder.find_token(f"t{number}") for number in range(MAX_ASKED + 1)]
    before = len(asked)
    asked[0].errback(Failure(OSError()))
    failure_of(finding[0], BadRequest)

    assert (before, len(asked)) == (MAX_ASKED, MAX_ASKED + 1)


def test_who_waits_behind_others_for_too_long_is_503() -> None:
    """A homeserver that takes its time for fifty keeps nobody else waiting for ever."""

    class Trickling:
        """Answers each look-up at its very last moment."""

        def get(self, url: str, **kwargs: Any) -> "Deferred[Any]":
            answer: Deferred[Any] = Deferred()
            clock.callLater(TIMEOUT_S - 1, answer.errback, Failure(OSError()))
            return answer

    clock = Clock()
    finder = HomeserverTokens(HERE, "http://homeserver.test", Trickling(), clock)
    finding = [finder.find_token(f"t{number}") for number in range(5 * MAX_ASKED)]
    clock.pump([1.0] * (int(PATIENCE_S) + 1))

    assert {failure_of(each, BadRequest).status for each in finding} == {503}
