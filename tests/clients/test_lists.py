import pytest

from fedpresence.engine.events import ListChanged
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.subscription import ObserverStage
from fedpresence.errors import BadRequest
from tests.clients.world import ALICE, BOB, CAROL, DAN, IDLE, Entry, Pair, World, list_path

SUBSCRIPTIONS = f"/_fedpresence/client/v1/subscriptions/{ALICE}"


@pytest.mark.parametrize(
    ("body", "change"),
    [
        ({"invite": [BOB]}, ListChanged(ALICE, invite=(BOB,))),
        ({"drop": [BOB]}, ListChanged(ALICE, drop=(BOB,))),
        ({"invite": [BOB], "drop": [DAN]}, ListChanged(ALICE, invite=(BOB,), drop=(DAN,))),
        (
            {"accept": [BOB], "deny": [DAN], "revoke": [CAROL]},
            ListChanged(ALICE, accept=(BOB,), deny=(DAN,), revoke=(CAROL,)),
        ),
        ({"invite": ["", BOB, "", BOB]}, ListChanged(ALICE, invite=(BOB,))),
        ({"invite": [ALICE, BOB]}, ListChanged(ALICE, invite=(BOB,))),
        ({"invite": [BOB], "other": 7}, ListChanged(ALICE, invite=(BOB,))),
    ],
)
def test_a_change_reaches_the_engine_whole(body: object, change: ListChanged) -> None:
    """P:10.1, S:8: one event, so that all of it happens or nothing."""
    world = World()

    answer = world.answer("POST", list_path(ALICE), body=body)

    assert (answer.status, answer.body) == (200, {})
    assert world.engine.events == [change]


@pytest.mark.parametrize("body", [{}, {"invite": []}, {"invite": [ALICE]}, {"invite": [""]}])
def test_nothing_to_do_is_done(body: object) -> None:
    """S:O-2: inviting oneself is harmless."""
    world = World()

    assert world.answer("POST", list_path(ALICE), body=body).status == 200
    assert world.engine.events == []


@pytest.mark.parametrize(
    ("data", "errcode", "message"),
    [
        (b"", "M_NOT_JSON", None),
        (b"nonsense", "M_NOT_JSON", None),
        (b"[]", "M_BAD_JSON", None),
        (b'{"invite": "@bob:there.test"}', "M_BAD_JSON", None),
        (b'{"drop": null}', "M_BAD_JSON", None),
        (b'{"invite": [7]}', "M_INVALID_PARAM", "Bad invite value."),
        (b'{"invite": ["@bob:there.test"], "drop": [null]}', "M_INVALID_PARAM", "Bad drop value."),
        (b'{"invite": ["@bob:there.test", "bob"]}', "M_INVALID_PARAM", None),
        (b'{"invite": ["@bob:there.test"], "drop": ["@bob:there.test"]}', "M_INVALID_PARAM", None),
    ],
)
def test_one_bad_part_undoes_the_request(data: bytes, errcode: str, message: str | None) -> None:
    """P:10.1: nothing of the request is applied."""
    world = World()

    answer = world.answer("POST", list_path(ALICE), data=data)

    assert (answer.status, answer.errcode) == (400, errcode)
    assert message is None or answer.body["error"] == message
    assert world.engine.events == []


@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 400)])
def test_a_request_names_a_hundred_users_at_most(count: int, status: int) -> None:
    """P:10.1: over all keys together."""
    world = World()
    users = [f"@u{n}:there.test" for n in range(count)]

    answer = world.answer("POST", list_path(ALICE), body={"invite": users[:60], "drop": users[60:]})

    assert answer.status == status
    assert status == 200 or answer.errcode == "M_TOO_LARGE"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("user", "status", "errcode"),
    [(CAROL, 403, "M_FORBIDDEN"), (BOB, 400, "M_INVALID_PARAM"), ("bob", 400, "M_INVALID_PARAM")],
)
def test_a_list_is_its_owners(method: str, user: str, status: int, errcode: str) -> None:
    """P:10.1: 403 for one of ours, 400 for a user who is not hosted here."""
    world = World()

    answer = world.answer(method, list_path(user), body={"invite": [DAN]})

    assert (answer.status, answer.errcode) == (status, errcode)
    assert world.engine.events == []


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (BadRequest("M_FORBIDDEN", "The list is full", status=403), {}),
        (BadRequest("M_NOT_FOUND", "No such request", status=404), {}),
        (BadRequest("M_LIMIT_EXCEEDED", "Wait", status=429, retry_after_ms=1_500), {"retry-after": "2"}),
    ],
)
def test_what_the_engine_refuses_is_told(error: BadRequest, headers: dict[str, str]) -> None:
    """S:O-4, S:T-6, S:O-30: a full list, an accept nobody asked for, a tombstone of less than an hour."""
    world = World()

    def refuse(event: object) -> tuple[()]:
        raise error

    world.engine.does[ListChanged] = refuse

    answer = world.answer("POST", list_path(ALICE), body={"invite": [BOB]})

    assert (answer.status, answer.errcode) == (error.status, error.errcode)
    assert headers.items() <= answer.headers.items()


def test_the_list_has_the_form_of_the_spec_and_what_old_clients_read() -> None:
    """P:10.2: events, with `accepted`, `presence` and `user_id` at the top level too."""
    world = World()
    world.engine.lists[ALICE] = [
        Entry(BOB, view=View(PresenceState.ONLINE, 16_874, currently_active=True)),
        Entry(DAN, ObserverStage.PENDING, unreachable=True, view=IDLE),
    ]

    answer = world.answer("GET", list_path(ALICE))

    assert answer.body == [
        {
            "type": "m.presence",
            "content": {
                "user_id": BOB,
                "presence": "online",
                "last_active_ago": 16_874,
                "currently_active": True,
                "org.fedpresence.subscription": "accepted",
            },
            "accepted": True,
            "presence": "online",
            "user_id": BOB,
        },
        {
            "type": "m.presence",
            "content": {
                "user_id": DAN,
                "presence": "offline",
                "org.fedpresence.subscription": "pending",
                "org.fedpresence.reason": "unreachable",
            },
            "accepted": False,
            "presence": "offline",
            "user_id": DAN,
        },
    ]


def test_subscriptions_show_all_three_sides() -> None:
    """contract.md: the list with its stages, open invites, and observers."""
    world = World()
    world.engine.lists[ALICE] = [Entry(BOB, ObserverStage.PENDING)]
    world.engine.invites[ALICE] = [Pair(DAN)]
    world.engine.observers[ALICE] = [Pair(CAROL, 3_000)]

    answer = world.answer("GET", SUBSCRIPTIONS)

    assert answer.body == {
        "list": [{"user_id": BOB, "state": "pending", "since_ts": 1_000}],
        "invites": [{"user_id": DAN, "since_ts": 2_000}],
        "observers": [{"user_id": CAROL, "since_ts": 3_000}],
    }
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(("token", "status"), [("carol", 403), ("wrong", 401), (None, 401)])
def test_subscriptions_are_their_owners(token: str | None, status: int) -> None:
    """Who watches whom is nobody else's business."""
    assert World().answer("GET", SUBSCRIPTIONS, token=token).status == status
