import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from fedpresence.admission import Admitted, RequestHead
from fedpresence.engine.events import Activity, ListChanged, RoomMembersSet, UserDeactivated
from fedpresence.errors import BadRequest
from fedpresence.fields import Fields
from fedpresence.hub import Hub
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID
from fedpresence.ops.admin import MAX_BODY_BYTES, MAX_MEMBERS, AdminParts, add_admin, admission
from fedpresence.web import Unknown
from tests.asynchronous import result_of
from tests.ops.fakes import ALICE, BOB, CAROL, NOW_MS, THERE, FakeDestinations, FakeEngine, NoStore

HERE = ServerName("here.test")
TOKEN = "a-token-of-the-tests"


@dataclass
class Admin:
    """The admin API over fakes, and what it did."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    destinations: FakeDestinations = field(default_factory=FakeDestinations)
    revoked: list[UserID] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    made_elsewhere: set[UserID] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clock.advance(NOW_MS / 1000)
        hub = Hub(self.engine, NoStore(), self.clock, lambda _: None, lambda _: None)

        async def revoke(user_id: UserID) -> None:
            self.revoked.append(user_id)

        async def take_up_new_users() -> None:
            self.engine.users |= self.made_elsewhere

        root = Unknown()
        parts = AdminParts(
            HERE, TOKEN, hub, self.engine, self.destinations, revoke, self.clock, take_up_new_users
        )
        add_admin(root, parts)
        self._http: Any = StubTreq(root)

    def ask(
        self, method: str, path: str, body: object = None, *, authorization: str | None = f"Bearer {TOKEN}"
    ) -> tuple[int, Any]:
        """Status and JSON of one request below the API's prefix."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = Headers({} if authorization is None else {"Authorization": [authorization]})
        asking = self._http.request(
            method, f"http://admin.test/_fedpresence/admin/v1{path}", data=data, headers=headers
        )
        self._http.flush()
        response = result_of(asking)
        return response.code, result_of(response.json())


def of(user_id: str) -> str:
    """The path of a user."""
    return "/users/" + quote(user_id, safe="")


def test_status_is_the_daemon_at_a_glance() -> None:
    """`fedpresence status` and operators' scripts read exactly this."""
    admin = Admin()
    admin.clock.advance(90)

    code, status = admin.ask("GET", "/status")

    assert code == 200
    assert status["server_name"] == HERE
    assert status["uptime_ms"] == 90_000
    assert status["users"] == {"online": 1, "unavailable": 2, "offline": 3, "busy": 0, "remote": 4}
    assert status["subscriptions"] == {"pending": 5, "accepted": 6, "requested": 7, "granted": 8}
    assert status["destinations"]["failing"] == 1
    assert status["destinations"]["pending_users"] == 2
    assert status["version"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status"),
        ("GET", "/destinations"),
        ("GET", "/destinations/there.test"),
        ("POST", "/destinations/there.test/retry"),
        ("GET", of(ALICE)),
        ("DELETE", of(ALICE)),
        ("POST", of(ALICE) + "/list"),
        ("PUT", "/rooms/!room:here.test/members"),
        ("POST", "/activity"),
    ],
)
def test_nothing_is_done_without_the_token(method: str, path: str) -> None:
    """Whoever reaches the port is not yet the operator."""
    admin = Admin()

    assert admin.ask(method, path, {}, authorization=None)[0] == 401
    assert admin.ask(method, path, {}, authorization="Bearer wrong")[0] == 403
    assert admin.ask(method, path, {}, authorization=f"Basic {TOKEN}")[0] == 403
    assert admin.ask(method, path, {}, authorization=f"Bearer {TOKEN}x")[0] == 403
    assert (admin.engine.events, admin.revoked, admin.destinations.retried) == ([], [], [])


def test_destinations_are_described_one_or_all() -> None:
    """An operator asks why somebody's presence does not arrive."""
    admin = Admin()

    every = admin.ask("GET", "/destinations")
    one = admin.ask("GET", "/destinations/there.test")

    assert every == one
    assert every[1] == {
        "destinations": {
            "there.test": {
                "state": "failing",
                "pending_users": 2,
                "owed": 1,
                "failing_since_ts": 100,
                "next_try_ts": 200,
                "last_success_ts": None,
                "last_error": "connection refused",
            }
        }
    }
    assert admin.ask("GET", "/destinations/nobody.test")[0] == 404
    assert admin.ask("GET", "/destinations/bad%20name")[0] == 400


def test_a_retry_wakes_the_destination() -> None:
    """After mending a firewall nobody wants to wait out a back-off."""
    admin = Admin()

    answer = admin.ask("POST", "/destinations/there.test/retry")

    assert answer == (200, {})
    assert admin.destinations.retried == [THERE]
    assert admin.ask("POST", "/destinations/nobody.test/retry")[0] == 404


def test_a_user_is_shown_with_devices_and_subscriptions() -> None:
    """The answer to "why does Bob see me?"."""
    code, user = Admin().ask("GET", of(ALICE))

    assert code == 200
    assert (user["user_id"], user["presence"], user["currently_active"]) == (ALICE, "online", True)
    assert (user["last_active_ts"], user["status_msg"]) == (NOW_MS - 5, "hello")
    device = {"device_id": "PHONE", "presence": "online", "last_contact_ts": NOW_MS - 1}
    assert device.items() <= user["devices"][0].items()
    entry = {"user_id": BOB, "state": "accepted", "since_ts": 10, "confirmed_ts": 20}
    assert entry.items() <= user["list"][0].items()
    assert user["invites"] == [{"user_id": CAROL, "since_ts": 30}]
    assert user["observers"] == [{"user_id": BOB, "since_ts": 40, "confirmed_ts": 50, "muted": True}]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_user_is_not_found(method: str) -> None:
    """A typing error must not look like a success."""
    admin = Admin()

    code, error = admin.ask(method, of("@nobody:here.test"))

    assert (code, error["errcode"]) == (404, "M_NOT_FOUND")
    assert admin.ask(method, of("nobody"))[0] == 400
    assert (admin.engine.events, admin.revoked) == ([], [])


def test_a_list_is_changed_as_by_its_user() -> None:
    """Same body and errors as the client's own request."""
    admin = Admin()

    answer = admin.ask("POST", of(ALICE) + "/list", {"invite": [BOB], "drop": [CAROL]})

    assert answer == (200, {})
    assert admin.engine.events == [ListChanged(ALICE, invite=(BOB,), drop=(CAROL,))]
    assert admin.ask("POST", of(ALICE) + "/list", {"invite": ["bob"]})[0] == 400
    assert admin.ask("POST", of("@nobody:here.test") + "/list", {"invite": [BOB]})[0] == 404
    assert len(admin.engine.events) == 1


def test_a_list_of_another_servers_user_is_refused_as_to_clients() -> None:
    """The errors are the client's own: whoever handles one of the two APIs handles both."""
    admin = Admin()

    code, error = admin.ask("POST", of(BOB) + "/list", {"invite": [ALICE]})

    assert (code, error["errcode"]) == (400, "M_INVALID_PARAM")
    assert admin.engine.events == []


def test_a_user_made_a_moment_ago_by_the_command_line_is_known() -> None:
    """`fedpresence token add` followed by `fedpresence subscriptions` is one line of a script."""
    dave = UserID("@dave:here.test")
    admin = Admin(made_elsewhere={dave})

    answer = admin.ask("POST", of(dave) + "/list", {"invite": [BOB]})

    assert answer == (200, {})
    assert admin.engine.events == [ListChanged(dave, invite=(BOB,))]


def test_a_refusal_by_the_engine_reaches_the_operator() -> None:
    """A full list is an answer, not a failure of the daemon."""
    admin = Admin()
    admin.engine.refuse = BadRequest("M_LIMIT_EXCEEDED", "The list is full")

    code, error = admin.ask("POST", of(ALICE) + "/list", {"invite": [BOB]})

    assert (code, error["errcode"]) == (400, "M_LIMIT_EXCEEDED")


def test_a_deactivation_takes_the_tokens_and_ends_the_user() -> None:
    """Somebody who left must not come back with an old phone."""
    admin = Admin()

    answer = admin.ask("DELETE", of(ALICE))

    assert answer == (200, {})
    assert admin.revoked == [ALICE]
    assert admin.engine.events == [UserDeactivated(ALICE)]


def test_a_room_is_told_whole() -> None:
    """The set replaces what was known, so nothing can drift."""
    admin = Admin()
    path = f"/rooms/{quote('!room:here.test', safe='')}/members"

    answer = admin.ask("PUT", path, {"members": [ALICE, BOB, ALICE]})
    forgotten = admin.ask("PUT", path, {"members": []})

    assert (answer, forgotten) == ((200, {}), (200, {}))
    room = RoomID("!room:here.test")
    assert admin.engine.events == [
        RoomMembersSet(room, frozenset((ALICE, BOB))),
        RoomMembersSet(room, frozenset()),
    ]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rooms/!r:here.test/members", {"members": ["bob"]}, 400),
        ("/rooms/!r:here.test/members", {"members": [5]}, 400),
        ("/rooms/!r:here.test/members", {"members": "@bob:there.test"}, 400),
        ("/rooms/!r:here.test/members", [], 400),
        ("/rooms/!r:here.test/members", b"{", 400),
        ("/rooms/room/members", {"members": []}, 400),
        ("/rooms/!r:here.test/members", {"members": [BOB] * (MAX_MEMBERS + 1)}, 413),
    ],
)
def test_a_wrong_set_of_members_is_refused_whole(path: str, body: object, status: int) -> None:
    """Half a room would take presence away from the other half."""
    admin = Admin()

    code, error = admin.ask("PUT", path, body)

    assert (code, admin.engine.events) == (status, [])
    assert error["errcode"].startswith("M_")


def test_activity_counts_for_users_who_exist() -> None:
    """A bridge reports everybody it saw; strangers among them are skipped, not fatal."""
    admin = Admin()
    events = [
        {"user_id": ALICE},
        {"user_id": ALICE, "device_id": "PHONE", "ts": 5},
        {"user_id": "@nobody:here.test"},
    ]

    answer = admin.ask("POST", "/activity", {"events": events})
    nothing = admin.ask("POST", "/activity", {"events": []})

    assert answer == (200, {"taken": 2, "unknown_users": 1})
    assert nothing == (200, {"taken": 0, "unknown_users": 0})
    assert admin.engine.events == [Activity(ALICE), Activity(ALICE, DeviceID("PHONE"), 5)]


@pytest.mark.parametrize(
    "event",
    [
        {"user_id": BOB},
        {"user_id": "alice"},
        {},
        "@alice:here.test",
        {"user_id": ALICE, "ts": "now"},
        {"user_id": ALICE, "ts": True},
        {"user_id": ALICE, "ts": -1},
        {"user_id": ALICE, "ts": 1.5},
        {"user_id": ALICE, "device_id": 5},
        {"user_id": ALICE, "device_id": ""},
    ],
)
def test_a_wrong_event_refuses_the_whole_report(event: object) -> None:
    """The sender has a bug and should hear of it; remote users' activity is not ours to tell."""
    admin = Admin()

    code, _ = admin.ask("POST", "/activity", {"events": [{"user_id": ALICE}, event]})

    assert (code, admin.engine.events) == (400, [])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/users", 405),
        ("GET", "/users/", 404),
        ("GET", of(ALICE) + "/list", 405),
        ("GET", "/rooms/!r:here.test", 404),
        ("GET", "/users/%ff", 404),
        ("POST", "/status", 405),
    ],
)
def test_what_is_not_served_is_told_as_everywhere(method: str, path: str, status: int) -> None:
    """404 and 405 with `M_UNRECOGNIZED`, never a page of HTML."""
    code, error = Admin().ask(method, path)

    assert code == status
    assert error["errcode"].startswith("M_")


def test_only_the_token_lets_a_large_body_in() -> None:
    """A room of 10,000 members is beyond what a client may send (Z-1: judged before it is read)."""
    admit = admission(TOKEN)

    def asked(uri: bytes, authorization: str) -> object:
        headers = Fields()
        headers.addRawHeader(b"Authorization", authorization.encode())
        return admit(RequestHead(b"PUT", uri, headers, 1_000_000, None))

    members = b"/_fedpresence/admin/v1/rooms/!r:here.test/members"
    admitted = asked(members, f"Bearer {TOKEN}")

    assert isinstance(admitted, Deferred)
    assert result_of(admitted) == Admitted(MAX_BODY_BYTES)
    assert asked(members, "Bearer wrong") is None
    assert asked(b"/_matrix/client/versions", f"Bearer {TOKEN}") is None
