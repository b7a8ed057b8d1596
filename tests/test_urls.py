from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.client import URI

from fedpresence.urls import as_written


class Agent:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def request(self, method: bytes, uri: bytes, headers: object, body: object) -> Deferred[object]:
        self.asked.append(uri)
        return Deferred()


def test_an_ipv6_address_is_asked_for_like_any_host() -> None:
    """A homeserver or a listener on `::1`, a server that is named by its address."""
    agent = Agent()
    make_client: Any = HTTPClient  # zope's interfaces mean nothing to mypy
    client = make_client(agent)
    path = "/_matrix/client/v3/rooms/%21a%2Fb?user_id=%40alice%3Ahere.test"

    for host in ("[::1]:8008", "127.0.0.1:8008", "here.test"):
        client.get(as_written(f"http://{host}{path}"), headers={})

    assert agent.asked == [
        f"http://{host}{path}".encode() for host in ("[::1]:8008", "127.0.0.1:8008", "here.test")
    ]
    assert URI.fromBytes(agent.asked[0]).host == b"::1"
