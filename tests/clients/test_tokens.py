from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from fedpresence.clients import tokens
from fedpresence.clients.requests import Credentials, Refused, access_token
from fedpresence.engine.effects import Effect, SaveUser
from fedpresence.engine.events import UserAdded
from fedpresence.errors import BadRequest, StoreError
from fedpresence.ids import DeviceID, UserID
from fedpresence.request import Request
from fedpresence.storage.store import TokenOwner
from tests.asynchronous import failure_of, result_of
from tests.clients.world import ALICE, CAROL, PHONE, World

WHOAMI = "account/whoami"


@pytest.mark.parametrize(
    "path", [WHOAMI, "sync", f"presence/{ALICE}/status", f"presence/list/{ALICE}", "joined_rooms", "events"]
)
@pytest.mark.parametrize(
    ("token", "errcode"),
    [(None, "M_MISSING_TOKEN"), ("wrong", "M_UNKNOWN_TOKEN"), ("x" * 9000, "M_UNKNOWN_TOKEN")],
)
def test_without_a_good_token_there_is_nothing(path: str, token: str | None, errcode: str) -> None:
    """P:9: 401, on every path that is somebody's."""
    world = World()

    answer = world.answer("GET", path, token=token)

    assert (answer.status, answer.errcode) == (401, errcode)
    assert world.engine.events == []


def test_old_clients_send_the_token_in_the_query() -> None:
    """clients.md: the old SDKs send no header at all."""
    answer = World().answer("GET", WHOAMI, token=None, params={"access_token": "alice-phone"})

    assert answer.body["user_id"] == ALICE


@pytest.mark.parametrize("params", [{}, {"access_token": ""}])
def test_an_empty_token_is_a_missing_one(params: dict[str, str]) -> None:
    """P:9: `M_MISSING_TOKEN`, so that a client does not throw away a good one."""
    answer = World().answer("GET", WHOAMI, token="", params=params)

    assert answer.errcode == "M_MISSING_TOKEN"


def test_a_token_is_looked_up_once() -> None:
    """A busy client must not cost a database read a request."""
    world = World()

    for _ in range(5):
        world.answer("GET", WHOAMI)

    assert world.store.lookups == ["alice-phone"]


def test_a_revoked_token_stops_as_soon_as_the_daemon_hears_of_it() -> None:
    """contract.md: within a second, by `tokens_changed` and `forget`."""
    world = World()
    world.answer("GET", WHOAMI)
    del world.store.tokens["alice-phone"]

    world.tokens.forget()

    assert world.answer("GET", WHOAMI).errcode == "M_UNKNOWN_TOKEN"


def test_a_revoked_token_ends_even_if_nobody_says_so() -> None:
    """The memory of a token has an end of its own."""
    world = World()
    world.answer("GET", WHOAMI)
    del world.store.tokens["alice-phone"]

    world.clock.advance(tokens.KNOWN_FOR_MS / 1000)

    assert world.answer("GET", WHOAMI).status == 401


def test_an_unknown_token_is_not_hammered_but_honoured_as_soon_as_it_is_made() -> None:
    """contract.md: a running daemon honours a new token at once."""
    world = World()
    for _ in range(5):
        world.answer("GET", WHOAMI, token="new")
    looked_up = len(world.store.lookups)
    world.store.tokens["new"] = TokenOwner(ALICE, PHONE)

    world.clock.advance(tokens.UNKNOWN_FOR_MS / 1000)

    assert looked_up == 1
    assert world.answer("GET", WHOAMI, token="new").status == 200


def test_requests_that_come_together_share_a_lookup() -> None:
    """One in flight per token."""
    world = World()
    world.store.slow_lookups = []

    asked = [world.ask("GET", WHOAMI) for _ in range(3)]
    assert all(one.waits for one in asked)
    [(_, found)] = world.store.slow_lookups
    found.callback(TokenOwner(ALICE, PHONE))

    assert [one.answer.status for one in asked] == [200] * 3


def test_a_lookup_older_than_a_revocation_is_not_remembered() -> None:
    """The answer was on its way when the token went."""
    world = World()
    world.store.slow_lookups = []
    asked = world.ask("GET", WHOAMI)
    assert asked.waits
    world.tokens.forget()
    del world.store.tokens["alice-phone"]
    world.store.slow_lookups[0][1].callback(TokenOwner(ALICE, PHONE))
    world.store.slow_lookups = None

    assert asked.answer.status == 200
    assert world.answer("GET", WHOAMI).status == 401


def test_a_failed_lookup_is_our_fault_and_is_tried_again() -> None:
    """A disk that fails once must not lock anybody out."""
    world = World()
    world.store.slow_lookups = []
    asked = [world.ask("GET", WHOAMI) for _ in range(2)]
    assert all(one.waits for one in asked)
    found: Deferred[TokenOwner | None] = world.store.slow_lookups[0][1]
    found.errback(Failure(StoreError("no")))
    world.store.slow_lookups = None

    assert [one.answer.status for one in asked] == [500, 500]
    assert world.answer("GET", WHOAMI).status == 200


def test_a_client_that_hangs_up_does_not_take_the_lookup_from_others() -> None:
    """A shared look-up belongs to nobody in particular."""
    world = World()
    world.store.slow_lookups = []
    first, second = world.ask("GET", WHOAMI), world.ask("GET", WHOAMI)
    assert first.waits
    assert second.waits

    first.hang_up()
    world.store.slow_lookups[0][1].callback(TokenOwner(ALICE, PHONE))

    assert second.answer.status == 200


def test_the_engine_hears_of_a_user_before_the_first_request_is_done() -> None:
    """contract.md: `token add` makes the user exist, in a running daemon too."""
    world = World()
    erin = UserID("@erin:here.test")
    world.store.tokens["erin"] = TokenOwner(erin, None)

    def added(event: UserAdded) -> Sequence[Effect]:
        world.engine.users.add(event.user_id)
        return (SaveUser(event.user_id, False),)

    world.engine.does[UserAdded] = added
    world.store.held = []

    asked = world.ask("GET", WHOAMI, token="erin")
    waited = asked.waits
    world.store.held[0].callback(None)

    assert waited
    assert asked.answer.body["user_id"] == erin
    assert world.engine.events == [UserAdded(erin)]


def test_what_is_remembered_is_bounded() -> None:
    """Invented tokens must not fill the memory."""
    world = World(max_tokens=10)

    for n in range(50):
        world.answer("GET", WHOAMI, token=f"wrong{n}")

    assert len(world.tokens) == 10


def test_lookups_in_flight_are_bounded() -> None:
    """A slow disk must not become a queue without end."""
    world = World(max_lookups=2)
    world.store.slow_lookups = []

    asked = [world.ask("GET", WHOAMI, token=f"wrong{n}") for n in range(3)]

    assert [one.waits for one in asked] == [True, True, False]
    assert (asked[2].answer.status, asked[2].answer.headers["retry-after"]) == (429, "1")


def test_a_token_that_is_no_text_is_an_unknown_one() -> None:
    """A byte that is no UTF-8 is a stranger's typing error, not a bug of ours with its traceback."""
    world = World()
    nobody: Any = None
    request = Request(nobody)
    request.requestHeaders.addRawHeader(b"Authorization", b"Bearer \xff")

    assert access_token(request) == "\ufffd"
    failure_of(world.tokens.owner(request), BadRequest)


def test_without_a_homeserver_nobody_acts_as_somebody_else() -> None:
    """Our own tokens have one owner each, whatever a query says."""
    world = World()

    answer = world.answer("GET", WHOAMI, params={"user_id": "@carol:here.test"})

    assert answer.body["user_id"] == ALICE


class _Masquerades:
    """A homeserver that lets one token act as anybody of its own."""

    def __init__(self) -> None:
        self.busy = False
        self.asked: list[Credentials] = []

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        return self.find(Credentials(token))

    def find(self, asked: Credentials) -> Deferred[TokenOwner | None]:
        self.asked.append(asked)
        if self.busy:
            return fail(BadRequest("M_LIMIT_EXCEEDED", "Slow down", status=429))
        device_id = None if asked.device_id is None else DeviceID(asked.device_id)
        return succeed(TokenOwner(UserID(asked.user_id or ALICE), device_id))


def _beside(homeserver: _Masquerades) -> tuple[World, tokens.Tokens]:
    world = World()
    return world, tokens.Tokens(homeserver, world.hub, world.engine, world.clock, masquerades=homeserver)


def test_whom_a_token_acts_as_is_part_of_what_is_remembered() -> None:
    """Z-28: or an application service's users are mixed."""
    homeserver = _Masquerades()
    _, owners = _beside(homeserver)
    asked = [
        Credentials("as"),
        Credentials("as", CAROL),
        Credentials("as", CAROL, "PHONE"),
        Credentials("as", None, "PHONE"),
    ]

    found = [result_of(owners.owner_of(each)) for each in [*asked, *asked]]

    assert found[:4] == found[4:]
    assert found[:3] == [TokenOwner(ALICE, None), TokenOwner(CAROL, None), TokenOwner(CAROL, PHONE)]
    assert homeserver.asked == asked


def test_a_homeserver_that_is_too_busy_is_taken_at_its_last_word() -> None:
    """H:4, 429: for a while, and never for a token that it did not know."""
    homeserver = _Masquerades()
    world, owners = _beside(homeserver)
    result_of(owners.owner_of(Credentials("as")))
    homeserver.busy = True

    world.clock.advance(tokens.KNOWN_FOR_MS / 1000)
    owner = result_of(owners.owner_of(Credentials("as")))
    world.clock.advance(tokens.STALE_FOR_MS / 1000)

    assert owner == TokenOwner(ALICE, None)
    assert failure_of(owners.owner_of(Credentials("as")), BadRequest).status == 429
    assert failure_of(owners.owner_of(Credentials("new")), BadRequest).status == 429


def test_a_token_is_not_shown() -> None:
    """Whatever prints it."""
    assert "secret" not in repr(Credentials("secret", ALICE))


def test_a_refusal_of_the_homeservers_is_given_and_remembered_in_its_words() -> None:
    """A client that may log in again softly keeps its keys."""

    class Locked:
        asked = 0

        def find_token(self, token: str) -> Deferred[Refused]:
            self.asked += 1
            return succeed(Refused("M_USER_LOCKED", soft_logout=True))

    world, homeserver = World(), Locked()
    owners = tokens.Tokens(homeserver, world.hub, world.engine, world.clock, unknown_for_ms=10_000)

    errors = [failure_of(owners.owner_of(Credentials("t")), BadRequest) for _ in range(2)]

    assert homeserver.asked == 1
    assert [(e.status, e.errcode, e.soft_logout) for e in errors] == [(401, "M_USER_LOCKED", True)] * 2
