"""The running daemon, asked through its admin API.

Always true: every request has a timeout; the token goes to the address that the configuration or the
operator names and nowhere else (no redirect is followed).

Source: contract.md, "Admin API".
"""

import errno
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.web.client import Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from fedpresence.config import Config
from fedpresence.config_endpoints import parse_endpoint, reachable
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import UserID
from fedpresence.urls import as_written

CONNECT_TIMEOUT_S = 10.0  # to our own machine, usually
TIMEOUT_S = 30.0  # a deactivation of somebody with long lists takes seconds, not minutes
UNIX = "unix:"  # and the path of a socket, which has no URL
PREFIX = "/_fedpresence/admin/v1"
HOW_TO_SWITCH_ON = (
    "Switch it on: set admin.token (or admin.token_path), serve the resource admin on a listener, for "
    'example {endpoint: "tcp:8009:interface=127.0.0.1", resources: [admin]}, and restart the daemon.'
)


def admin_url(config: Config, ports: Sequence[int] = ()) -> str | None:
    """Where the daemon of this configuration serves its admin API; None where that cannot be known.

    It is known for a Unix socket, for plain `tcp` with a fixed port, and with any where `ports` has that of
    each listener; for anything else the operator gives a URL.
    """
    for index, listener in enumerate(config.listeners):
        endpoint = parse_endpoint(listener.endpoint)
        if "admin" not in listener.resources:
            continue
        if endpoint.kind == "unix":
            return f"{UNIX}{endpoint.positional[0]}"
        if endpoint.kind not in ("tcp", "tcp4", "tcp6"):
            continue
        if port := ports[index] if ports else int(endpoint.port or 0):
            return f"http://{reachable(endpoint.interface)}:{port}"
    return None


class NotRunning(DeliveryFailed):
    """Nothing listens where the daemon's admin API should be."""


@implementer(IAgentEndpointFactory)
class _Socket:
    """Leads every request to one Unix socket, whatever its URL says."""

    def __init__(self, reactor: Any, path: str) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, path, timeout=CONNECT_TIMEOUT_S)

    def endpointForURI(self, uri: object) -> UNIXClientEndpoint:
        """The socket."""
        return self._endpoint


class AdminClient:
    """The admin API of one daemon; every failure is a DeliveryFailed that says what to do.

    `address` is as `admin_url` answers it.
    """

    def __init__(self, http: HTTPClient, address: str, token: str) -> None:
        self._http = http
        self._address = address.rstrip("/")
        self._base_url = "http://localhost" if address.startswith(UNIX) else self._address
        self._token = token

    @classmethod
    def at(cls, address: str, token: str, reactor: Any) -> "AdminClient":
        """One that connects by itself."""
        agent: Any = Agent  # Twisted gives it no types
        if address.startswith(UNIX):
            made = agent.usingEndpointFactory(reactor, _Socket(reactor, address.removeprefix(UNIX)))
        else:
            made = agent(reactor, connectTimeout=CONNECT_TIMEOUT_S)
        return cls(HTTPClient(made), address, token)

    async def status(self) -> dict[str, Any]:
        """The daemon at a glance."""
        return await self._request("GET", "/status")

    async def destinations(self) -> dict[str, Any]:
        """Every destination and its queue."""
        return await self._request("GET", "/destinations")

    async def user(self, user_id: UserID) -> dict[str, Any]:
        """A user's presence, list, invites and observers."""
        return await self._request("GET", f"/users/{_segment(user_id)}")

    async def change_list(self, user_id: UserID, change: dict[str, list[str]]) -> None:
        """As the client's `POST .../presence/list/{userId}`."""
        await self._request("POST", f"/users/{_segment(user_id)}/list", change)

    async def deactivate(self, user_id: UserID) -> None:
        """End the account."""
        await self._request("DELETE", f"/users/{_segment(user_id)}")

    async def _request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        headers = Headers({"Authorization": [f"Bearer {self._token}"], "Content-Type": ["application/json"]})
        try:
            response = await self._http.request(
                method,
                as_written(self._base_url + PREFIX + path),
                headers=headers,
                data=None if body is None else json.dumps(body).encode(),
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
            data = await response.content()
        except CancelledError:
            raise
        except Exception as error:  # Twisted's, treq's and OpenSSL's failures share no class
            if _is_nobody_there(error):
                raise NotRunning(self._address, "nothing listens there. Does the daemon run?") from error
            raise DeliveryFailed(self._address, str(error) or type(error).__name__) from error
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise DeliveryFailed(
                self._address, f"answered {response.code} and no JSON.", status=response.code
            )
        if response.code != 200:
            raise DeliveryFailed(
                self._address,
                str(answer.get("error", "refused")),
                status=response.code,
                errcode=str(answer.get("errcode")),
            )
        return answer


def _is_nobody_there(error: Exception) -> bool:
    is_missing = isinstance(error, ConnectError) and error.osError == errno.ENOENT  # a Unix socket
    return is_missing or isinstance(error, ConnectionRefusedError)


def _segment(text: str) -> str:
    return quote(text, safe="@:")
