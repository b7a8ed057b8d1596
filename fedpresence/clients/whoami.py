"""Access tokens that the homeserver beside us knows (`auth.mode: homeserver`).

Always true: the homeserver's word decides; where it does not answer nobody is let in and nobody's token
is called unknown: that is a 503.

Source: H:4; contract, `auth`.
"""

import json
from typing import Any, NoReturn, Protocol
from urllib.parse import urlencode

from treq import content
from twisted.internet.defer import Deferred, DeferredSemaphore, TimeoutError, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clients.requests import Credentials, Refused
from fedpresence.clock import Clock, within
from fedpresence.errors import BadRequest, reason_of
from fedpresence.ids import DeviceID, ServerName, parse_user_id, server_of
from fedpresence.storage.store import TokenOwner
from fedpresence.urls import as_written

_log = Logger()

TIMEOUT_S = 10.0  # a client waits for this
PATIENCE_S = 30.0  # with those who are asked about before
UNKNOWN_FOR_MS = 10_000  # H:4
MAX_ASKED = 50  # at a time (Z-28); the others wait, for after a restart of ours all clients come at once
PATHS = ("/_matrix/client/v3/account/whoami", "/_matrix/client/r0/account/whoami")  # old ones know r0 alone


class Getter(Protocol):
    """treq's HTTPClient, as far as it is used here."""

    def get(self, url: Any, **kwargs: Any) -> Deferred[Any]:
        """One GET."""


class HomeserverTokens:
    """Asks `whoami`; to be wrapped in what remembers answers and asks once at a time."""

    def __init__(self, server_name: ServerName, base_url: str, http: Getter, clock: Clock) -> None:
        self._server_name = server_name
        self._base_url = base_url.rstrip("/")
        self._http = http
        self._clock = clock
        self._asking = DeferredSemaphore(MAX_ASKED)
        self._is_well = True  # as far as was said: whether the homeserver gives good answers

    def find_token(self, token: str) -> Deferred[TokenOwner | Refused | None]:
        """Whose token this is; Refused for one that the homeserver does not know, BadRequest 503 or 429."""
        return self.find(Credentials(token))

    def find(self, asked: Credentials) -> Deferred[TokenOwner | Refused | None]:
        """As `find_token`, of an application service as the user that it acts as."""
        asking = self._asking.run(lambda: ensureDeferred(self._find(asked)))
        return within(asking, PATIENCE_S, self._clock).addErrback(_took_too_long)

    async def _find(self, asked: Credentials) -> TokenOwner | Refused | None:
        for path in PATHS:
            status, body = await self._ask(path, asked)
            if status == 404 and body.get("errcode") == "M_UNRECOGNIZED":
                continue
            if status in (200, 401, 403):
                self._tell(None)
            if status == 200:
                return self._owner(body)
            if status == 401:
                return _refused(body)
            if status == 403 and _acting_as(asked):  # it may not act as that user
                return None
            if status == 429:
                wait_ms = body.get("retry_after_ms")
                raise BadRequest(
                    "M_LIMIT_EXCEEDED",
                    "The homeserver is busy",
                    status=429,
                    retry_after_ms=wait_ms if type(wait_ms) is int and wait_ms >= 0 else 1000,
                )
            self._tell(f"the homeserver answered {status} to whoami")
            break
        raise _unavailable()

    async def _ask(self, path: str, asked: Credentials) -> tuple[int, dict[str, Any]]:
        asking = self._http.get(
            as_written(self._base_url + path + _acting_as(asked)),
            headers={"Authorization": f"Bearer {asked.token}"},
            allow_redirects=False,
        )
        within(asking, TIMEOUT_S, self._clock)
        try:
            response = await asking
            reading: Deferred[bytes] = content(response)
            within(reading, TIMEOUT_S, self._clock)
            text = await reading
        except Exception as error:
            self._tell(f"the homeserver does not answer whoami: {reason_of(error)}")
            raise _unavailable() from error
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = {}
        return response.code, body if isinstance(body, dict) else {}

    def _tell(self, trouble: str | None) -> None:
        """Say once what is wrong, and when it is over: meanwhile every client asks again and again."""
        if trouble is None and not self._is_well:
            _log.info("the homeserver answers whoami again")
        elif trouble is not None and self._is_well:
            _log.warn("{trouble}", trouble=trouble)
        elif trouble is not None:
            _log.debug("{trouble}", trouble=trouble)
        self._is_well = trouble is None

    def _owner(self, body: dict[str, Any]) -> TokenOwner:
        device_id = body.get("device_id")
        try:
            user_id = parse_user_id(body.get("user_id"))
        except BadRequest as error:
            raise _unavailable() from error
        if server_of(user_id) != self._server_name:
            _log.error(
                "the homeserver at homeserver.url is not {server_name}'s: it knows {user_id}",
                server_name=self._server_name,
                user_id=user_id,
            )
            raise _unavailable()
        return TokenOwner(user_id, DeviceID(device_id) if isinstance(device_id, str) else None)


def _acting_as(asked: Credentials) -> str:
    """The query of an application service that acts as a user; `device_id` is there since v1.17 (H:3)."""
    named = {"user_id": asked.user_id, "device_id": asked.device_id}
    query = urlencode({name: value for name, value in named.items() if value})
    return f"?{query}" if query else ""


def _refused(body: dict[str, Any]) -> Refused:
    """A refusal as the homeserver worded it: expired, locked or unknown are not the same to a client."""
    errcode = body.get("errcode")
    if not isinstance(errcode, str) or errcode == "M_MISSING_TOKEN":  # there was one
        errcode = "M_UNKNOWN_TOKEN"
    return Refused(errcode, soft_logout=body.get("soft_logout") is True)


def _took_too_long(failure: Failure) -> NoReturn:
    failure.trap(TimeoutError)
    raise _unavailable()


def _unavailable() -> BadRequest:
    return BadRequest("M_UNKNOWN", "The homeserver cannot be asked now", status=503)
