import json
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.web.resource import Resource

from fedpresence.config import Config, ListenerConfig
from fedpresence.errors import BadRequest, DeliveryFailed
from fedpresence.ids import ServerName, UserID
from fedpresence.ops.admin_client import AdminClient, NotRunning, admin_url
from fedpresence.web import JsonResource, mount, node
from tests.asynchronous import failure_of, result_of

ALICE = UserID("@alice:here.test")


class Refused:
    """Nothing listens."""

    def request(self, *args: object, **kwargs: object) -> "Deferred[Any]":
        """Refused."""
        return fail(ConnectionRefusedError())


class Page(Resource):
    """Another program's web page, whatever the path."""

    isLeaf = True

    def render_GET(self, request: object) -> bytes:
        """HTML."""
        return b"<html>"


class Flushed:
    """StubTreq that delivers by itself."""

    def __init__(self, root: Resource) -> None:
        self._http: Any = StubTreq(root)

    def request(self, *args: Any, **kwargs: Any) -> Any:
        """Answered at once."""
        asking = self._http.request(*args, **kwargs)
        self._http.flush()
        return asking


def a_client(http: object) -> AdminClient:
    """A client of the daemon on port 8009."""
    typed: Any = http
    return AdminClient(typed, "http://127.0.0.1:8009/", "secret")


def a_config(tmp_path: Any, *listeners: tuple[str, tuple[str, ...]]) -> Config:
    """A configuration that listens there."""
    return Config(
        tmp_path,
        ServerName("here.test"),
        tmp_path / "key",
        tuple(ListenerConfig(endpoint, resources) for endpoint, resources in listeners),
    )


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("tcp:8009", "http://127.0.0.1:8009"),
        ("tcp:8009:interface=127.0.0.2", "http://127.0.0.2:8009"),
        ("tcp:8009:interface=0.0.0.0", "http://127.0.0.1:8009"),
        (r"tcp:8009:interface=\:\:1", "http://[::1]:8009"),
        (r"tcp6:8009:interface=\:\:", "http://[::1]:8009"),
        ("tcp:port=8009:interface=admin.here.test", "http://admin.here.test:8009"),
        ("tcp:0", None),
        ("ssl:8009", None),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
    ],
)
def test_the_admin_api_is_found_in_the_configuration(tmp_path: Any, endpoint: str, url: str | None) -> None:
    """`fedpresence status -c FILE` needs no address on the machine of the daemon."""
    config = a_config(tmp_path, ("tcp:1", ("client",)), (endpoint, ("admin", "metrics")))

    assert admin_url(config) == url


def test_requests_carry_the_token_and_the_user() -> None:
    """A user ID with a slash must not become another path."""
    seen: list[tuple[bytes, object, object]] = []

    async def note(request: Any) -> object:
        seen.append((request.uri, request.getHeader("Authorization"), json.load(request.content)))
        return {}

    root = Resource()
    mount(
        node(root, b"_fedpresence", b"admin", b"v1", b"users", b"@a/b:here.test"),
        b"list",
        JsonResource({"POST": note}),
    )

    result_of(a_client(Flushed(root)).change_list(UserID("@a/b:here.test"), {"invite": ["@bob:there.test"]}))

    assert seen == [
        (
            b"/_fedpresence/admin/v1/users/@a%2Fb:here.test/list",
            "Bearer secret",
            {"invite": ["@bob:there.test"]},
        )
    ]


def test_a_refusal_keeps_the_words_of_the_daemon() -> None:
    """The operator reads why, not a status code."""

    async def refuse(request: object) -> object:
        raise BadRequest("M_NOT_FOUND", "Nothing is known of @alice:here.test", status=404)

    root = Resource()
    mount(
        node(root, b"_fedpresence", b"admin", b"v1", b"users"), ALICE.encode(), JsonResource({"GET": refuse})
    )

    error = failure_of(a_client(Flushed(root)).user(ALICE), DeliveryFailed)

    assert (error.status, error.errcode) == (404, "M_NOT_FOUND")
    assert "Nothing is known" in str(error)


def test_something_else_on_the_port_is_told() -> None:
    """Another program's page is no answer."""
    page: Resource = Page()  # type: ignore[no-untyped-call]  # Resource's constructor has no types

    error = failure_of(a_client(Flushed(page)).status(), DeliveryFailed)

    assert "no JSON" in str(error)


def test_nobody_on_the_port_is_an_error_of_its_own() -> None:
    """`user deactivate` then works on the database itself."""
    error = failure_of(a_client(Refused()).status(), NotRunning)

    assert "Does the daemon run?" in str(error)
