"""What we ask the homeserver, as the application service that it knows us as.

Always true: every call has a timeout and a bounded answer; it fails with HomeserverUnavailable where later
may be better, and with HomeserverRefused where the answer is no; the token is in a header, never in a URL,
and never logged; no redirect is followed.

Source: H:3, H:2.6, H:7, H:9.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, cast
from urllib.parse import quote, urlencode

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from fedpresence.clock import Clock, within
from fedpresence.counters import Counters, NullCounters
from fedpresence.errors import BadRequest, HomeserverRefused, HomeserverUnavailable, reason_of
from fedpresence.homeserver.registration import Registration
from fedpresence.ids import RoomID, UserID, parse_room_id, parse_user_id
from fedpresence.urls import as_written

TIMEOUT_S = 60.0  # the members of the largest rooms take a homeserver many seconds
MAX_ANSWER_BYTES = 33_554_432  # some 150,000 members with names and avatars
UNAVAILABLE = frozenset((401, 429, 502, 503, 504))  # 401: it was not told of our registration yet
LATER_ERRCODES = frozenset(("M_LIMIT_EXCEEDED",))
CLIENT = "/_matrix/client/v3"


class Http(Protocol):
    """treq's HTTPClient, as far as it is used here."""

    def request(self, method: str, url: Any, **kwargs: Any) -> Deferred[Any]:
        """One request."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer with status 200: its JSON object, and the homeserver's clock where it told it."""

    body: Mapping[str, Any]
    date_ms: int | None


class HomeserverApi:
    """The homeserver's client API with our `as_token`, as our bot or as any user (`acting_as`).

    Without a registration only what needs no token can be asked.
    """

    def __init__(
        self,
        base_url: str,
        registration: Registration | None,
        http: Http,
        clock: Clock,
        counters: Counters | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._registration = registration
        self._http = http
        self._clock = clock
        self._counters = counters or NullCounters()

    # --- rooms and users ------------------------------------------------------------------------

    async def joined_rooms(self, acting_as: UserID | None = None) -> tuple[RoomID, ...]:
        """The rooms of a user, or of our bot."""
        answer = await self._get(f"{CLIENT}/joined_rooms", acting_as)
        found = answer.body.get("joined_rooms")
        return _parsed(found if isinstance(found, list) else (), parse_room_id)

    async def joined_members(self, room_id: RoomID, acting_as: UserID | None = None) -> tuple[UserID, ...]:
        """Who is joined to a room. An application service may ask where any of its users is."""
        answer = await self._get(f"{CLIENT}/rooms/{_segment(room_id)}/joined_members", acting_as)
        found = answer.body.get("joined")
        return _parsed(found if isinstance(found, dict) else (), parse_user_id)

    async def join_rule(self, room_id: RoomID, acting_as: UserID | None = None) -> str | None:
        """The room's `join_rule`; None where it has none that could be read."""
        path = f"{CLIENT}/rooms/{_segment(room_id)}/state/m.room.join_rules/"
        try:
            answer = await self._get(path, acting_as)
        except HomeserverRefused as error:
            if error.status in (403, 404):
                return None
            raise
        rule = answer.body.get("join_rule")
        return rule if isinstance(rule, str) else None

    async def user_exists(self, user_id: UserID) -> bool:
        """Whether a local user exists, by their profile."""
        try:
            await self._get(f"{CLIENT}/profile/{_segment(user_id)}", None)
        except HomeserverRefused as error:
            if error.status == 404 and error.errcode == "M_NOT_FOUND":
                return False
            raise
        return True

    async def local_users(self, start: str, limit: int) -> tuple[tuple[UserID, ...], str | None]:
        """A page of all local users, and where the next begins: Synapse alone, and if we may (403: no)."""
        query = urlencode({"from": start, "limit": limit, "guests": "false", "deactivated": "false"})
        answer = await self._get(f"/_synapse/admin/v2/users?{query}", None)
        found = answer.body.get("users")
        names = [user.get("name") for user in found or () if isinstance(user, dict)]
        following = answer.body.get("next_token")
        return _parsed(names, parse_user_id), str(following) if following is not None else None

    # --- ourselves ------------------------------------------------------------------------------

    async def whoami(self) -> UserID:
        """Who we are to the homeserver: our bot, if it knows our registration."""
        answer = await self._get(f"{CLIENT}/account/whoami", None)
        try:
            return parse_user_id(answer.body.get("user_id"))
        except BadRequest as error:
            raise HomeserverRefused(200) from error

    async def register_bot(self) -> None:
        """Make our bot's account, where there is none."""
        registration = self._known()
        body = {
            "type": "m.login.application_service",
            "username": registration.sender_localpart,
            "inhibit_login": True,
        }
        try:
            await self._request("POST", f"{CLIENT}/register", None, body)
        except HomeserverRefused as error:
            if error.errcode != "M_USER_IN_USE":
                raise

    async def ping(self) -> int:
        """Let the homeserver send us a ping (H:2.6); how many ms it took. HomeserverRefused says why not."""
        path = f"/_matrix/client/v1/appservice/{_segment(self._known().id)}/ping"
        answer = await self._request("POST", path, None, {"transaction_id": "fedpresence"}, pinging=True)
        duration_ms = answer.body.get("duration_ms")
        return duration_ms if isinstance(duration_ms, int) else 0

    async def set_presence(self, user_id: UserID, state: str) -> None:
        """Our bot's, to the homeserver itself: nothing happens where presence is off (H:7)."""
        path = f"{CLIENT}/presence/{_segment(user_id)}/status"
        await self._request("PUT", path, None, {"presence": state})

    async def presence_of(self, user_id: UserID, acting_as: UserID | None = None) -> str | None:
        """The state that the homeserver itself shows of a user: `offline` where its presence is off (H:7)."""
        answer = await self._get(f"{CLIENT}/presence/{_segment(user_id)}/status", acting_as)
        state = answer.body.get("presence")
        return state if isinstance(state, str) else None

    async def versions(self) -> Answered:
        """`/versions`, with the homeserver's clock (H:9); asks no token."""
        return await self._request("GET", "/_matrix/client/versions", None, None, with_token=False)

    async def is_ourselves(self) -> bool:
        """Whether what answers is fedpresence, or a proxy before one: nobody else has this path."""
        ours, nobodys = "/_fedpresence/client/v1/subscriptions/me", "/_fedpresence/client/v1/me"
        return await self._wants_token(ours) and not await self._wants_token(nobodys)

    async def federation_version(self) -> Answered:
        """What other servers are told of it: HomeserverRefused where it serves them nothing; no token."""
        return await self._request("GET", "/_matrix/federation/v1/version", None, None, with_token=False)

    # --- one request ----------------------------------------------------------------------------

    async def _wants_token(self, path: str) -> bool:
        try:
            await self._request("GET", path, None, None, with_token=False)
        except HomeserverUnavailable as error:
            return error.errcode == "M_MISSING_TOKEN"
        except HomeserverRefused:
            return False
        return False

    def _known(self) -> Registration:
        assert self._registration is not None, "asked for only where there is one"
        return self._registration

    async def _get(self, path: str, acting_as: UserID | None) -> Answered:
        return await self._request("GET", path, acting_as, None)

    async def _request(
        self,
        method: str,
        path: str,
        acting_as: UserID | None,
        body: object,
        *,
        with_token: bool = True,
        pinging: bool = False,
    ) -> Answered:
        url = self._base_url + path
        if acting_as is not None:
            url += f"?user_id={quote(acting_as, safe='')}"
        headers = {"Authorization": f"Bearer {self._known().as_token}"} if with_token else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        try:
            asking = self._http.request(
                method, as_written(url), headers=headers, data=data, allow_redirects=False, unbuffered=True
            )
            response = await within(asking, TIMEOUT_S, self._clock)
            text = await within(read_body(response, MAX_ANSWER_BYTES), TIMEOUT_S, self._clock)
        except CancelledError:
            raise
        except HomeserverRefused:
            self._counters.count("homeserver_requests", outcome="refused")
            raise
        except Exception as error:  # Twisted's, treq's and OpenSSL's failures share no class
            self._counters.count("homeserver_requests", outcome="unavailable")
            raise HomeserverUnavailable(reason_of(error)) from error
        answer = _object(text)
        if response.code == 200 and answer is not None:
            self._counters.count("homeserver_requests", outcome="ok")
            return Answered(answer, _date_ms(response.headers.getRawHeaders(b"Date")))
        errcode = answer.get("errcode") if answer is not None else None
        errcode = errcode if isinstance(errcode, str) else None
        if (response.code in UNAVAILABLE and not pinging) or errcode in LATER_ERRCODES:
            self._counters.count("homeserver_requests", outcome="unavailable")
            wait_ms = answer.get("retry_after_ms") if answer is not None else None
            reason = f"it answered {response.code} {errcode or ''}".rstrip()
            if response.code == 401:
                reason += " (does it know our registration file, and was it restarted since?)"
            raise HomeserverUnavailable(
                reason,
                errcode=errcode,
                retry_after_ms=wait_ms if type(wait_ms) is int and wait_ms >= 0 else None,
            )
        self._counters.count("homeserver_requests", outcome="refused")
        raise HomeserverRefused(response.code, errcode)


def read_body(response: Any, limit: int) -> Deferred[bytes]:
    """The body of a response; HomeserverRefused `M_TOO_LARGE` beyond `limit` bytes."""
    done: Deferred[bytes] = Deferred(lambda _: reader.abort())
    reader = _Reader(done, limit, response.code)
    response.deliverBody(reader)
    return done


class _Reader(TwistedProtocol):
    """Keeps what comes, up to a limit."""

    def __init__(self, done: Deferred[bytes], limit: int, status: int) -> None:
        self._done: Deferred[bytes] | None = done
        self._left = limit
        self._status = status
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """More of the body."""
        self._left -= len(data)
        if self._left < 0:
            self.abort()
            self._end(HomeserverRefused(self._status, "M_TOO_LARGE"))
        elif self._done is not None:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of it, or of the connection."""
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end(b"".join(self._parts))
        else:
            self._end(reason.value)

    def abort(self) -> None:
        """Read no further."""
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def _end(self, outcome: Any) -> None:
        done, self._done = self._done, None
        self._parts = []
        if done is None or done.called:
            return
        if isinstance(outcome, bytes):
            done.callback(outcome)
        else:
            done.errback(outcome)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _parsed(found: Any, parse: Any) -> tuple[Any, ...]:
    """Whatever has a valid name; a homeserver may hold some from before the grammar."""
    names = []
    for text in found:
        try:
            names.append(parse(text))
        except BadRequest:
            continue
    return tuple(names)


def _date_ms(values: list[bytes] | None) -> int | None:
    try:
        return int(parsedate_to_datetime(values[0].decode("ascii")).timestamp() * 1000) if values else None
    except (ValueError, TypeError, UnicodeDecodeError):
        return None


def _segment(text: str) -> str:
    return quote(text, safe="")
