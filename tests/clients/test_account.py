import pytest

from tests.clients.world import ALICE, CAROL, World

PREFIXES = ["/_matrix/client/api/v1", "/_matrix/client/r0", "/_matrix/client/v3", "/_matrix/client/unstable"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("versions", {"versions", "unstable_features"}),
        ("account/whoami", {"user_id", "device_id", "is_guest"}),
        ("capabilities", {"capabilities"}),
        ("pushrules/", {"global"}),
        ("pushrules", {"global"}),
        ("joined_rooms", {"joined_rooms"}),
        ("login", {"flows"}),
        ("voip/turnServer", set()),
        ("org.matrix.msc4143/rtc/transports", {"rtc_transports"}),
        (f"presence/{ALICE}/status", {"presence"}),
        (f"user/{ALICE}/filter/0", set()),
        ("initialSync", {"end", "presence", "rooms", "receipts", "account_data"}),
    ],
)
def test_every_prefix_answers_what_stock_clients_ask(prefix: str, path: str, keys: set[str]) -> None:
    """clients.md: current clients use v3, old ones r0; without these they never get to sync."""
    answer = World().answer("GET", f"{prefix}/{path}")

    assert answer.status == 200
    assert set(answer.body) == keys
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_list_is_served_under_every_prefix(prefix: str) -> None:
    """P:10: old clients know it under r0 alone."""
    answer = World().answer("GET", f"{prefix}/presence/list/{ALICE}")

    assert (answer.status, answer.body) == (200, [])


def test_versions_need_no_token_and_name_the_busy_flag() -> None:
    """MSC3026: a client looks for the flag before it offers the state."""
    on, off = World(busy=True), World()

    flags = [world.answer("GET", "/_matrix/client/versions", token=None).body for world in (on, off)]

    assert [flag["unstable_features"]["org.matrix.msc3026.busy_presence"] for flag in flags] == [True, False]
    assert "v1.11" in flags[0]["versions"]


def test_whoami_tells_the_user_and_the_device() -> None:
    """clients.md: one SDK does nothing at all without it; a key is never null."""
    world = World()

    assert world.answer("GET", "account/whoami").body == {
        "user_id": ALICE,
        "device_id": "PHONE",
        "is_guest": False,
    }
    assert "device_id" not in world.answer("GET", "account/whoami", token="carol").body


@pytest.mark.parametrize(
    ("path", "errcode"),
    [
        (f"user/{ALICE}/account_data/m.direct", "M_NOT_FOUND"),
        (f"profile/{ALICE}", "M_NOT_FOUND"),
        ("/_matrix/client/unstable/org.matrix.msc2965/auth_metadata", "M_UNRECOGNIZED"),
        ("nothing", "M_UNRECOGNIZED"),
        ("presence", "M_UNRECOGNIZED"),
        ("presence//status", "M_UNRECOGNIZED"),
        (f"presence/{ALICE}/status/more", "M_UNRECOGNIZED"),
        (f"presence/{ALICE}", "M_UNRECOGNIZED"),
        ("presence/list", "M_UNRECOGNIZED"),
        ("/_matrix/client/r1/sync", "M_UNRECOGNIZED"),
        ("/_matrix/client", "M_UNRECOGNIZED"),
        ("/_fedpresence/client/v1/nothing", "M_UNRECOGNIZED"),
    ],
)
def test_what_is_not_there_is_a_matrix_error(path: str, errcode: str) -> None:
    """clients.md: unknown paths must be JSON errors, and browsers must be able to read them."""
    answer = World().answer("GET", path)

    assert (answer.status, answer.errcode) == (404, errcode)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "sync"), ("DELETE", f"presence/{ALICE}/status"), ("PUT", f"presence/list/{ALICE}")],
)
def test_a_wrong_method_is_told(method: str, path: str) -> None:
    """405 `M_UNRECOGNIZED`: the client-server API's common error."""
    answer = World().answer(method, path)

    assert (answer.status, answer.errcode) == (405, "M_UNRECOGNIZED")


@pytest.mark.parametrize("path", ["sync", f"presence/{ALICE}/status", f"presence/list/{ALICE}", "nothing"])
def test_a_browser_may_ask_first(path: str) -> None:
    """P:9.3: OPTIONS is answered without a token and does nothing."""
    world = World()

    answer = world.answer("OPTIONS", path, token=None)

    assert answer.status == 200
    assert answer.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "X-Requested-With, Content-Type, Authorization"
    assert world.engine.events == []


def test_errors_carry_the_cors_headers_too() -> None:
    """P:9.3: otherwise a web client cannot even read that its token is unknown."""
    answer = World().answer("GET", "sync", token="wrong")

    assert (answer.status, answer.errcode) == (401, "M_UNKNOWN_TOKEN")
    assert answer.headers["access-control-allow-origin"] == "*"


def test_head_is_a_get_without_a_body() -> None:
    """HTTP: the same status and headers."""
    answer = World().answer("HEAD", "account/whoami")

    assert (answer.status, answer.body) == (200, None)


def test_a_filter_comes_back_by_its_id_after_a_restart_too() -> None:
    """The ID is the filter: nothing has to be kept, and js-sdk compares what comes back."""
    world = World()
    definition = {"room": {"timeline": {"limit": 1}}, "presence": {"not_types": ["m.presence"]}}

    posted = world.answer("POST", f"user/{ALICE}/filter", body=definition)
    world.restart("run2")

    got = world.answer("GET", f"user/{ALICE}/filter/{posted.body['filter_id']}")
    assert got.body == definition


@pytest.mark.parametrize(
    ("user", "body", "status"),
    [(ALICE, {}, 200), (CAROL, {}, 403), (ALICE, [], 400), (ALICE, {"presence": {"senders": 1}}, 400)],
)
def test_a_filter_is_checked(user: str, body: object, status: int) -> None:
    """A filter that cannot be obeyed is refused when it is made, not at every sync."""
    assert World().answer("POST", f"user/{user}/filter", body=body).status == status
