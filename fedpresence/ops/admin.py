"""The admin API: what an operator, or a homeserver's bridge, asks of the running daemon.

Always true: nothing is answered or done without the bearer token, which is compared in constant time; a
body is checked whole before any of it is done; what a request may carry is bounded.

Source: contract.md, "Admin API".
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.web.resource import Resource

from fedpresence import __version__
from fedpresence.admission import Admit, Admitted, RequestHead
from fedpresence.clock import Clock, now_ms
from fedpresence.engine.events import Activity, Event, RoomMembersSet, UserDeactivated
from fedpresence.engine.queries import Counts, UserDetail
from fedpresence.errors import BadRequest
from fedpresence.hub import Hub
from fedpresence.ids import (
    MAX_ID_BYTES,
    DeviceID,
    ServerName,
    UserID,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    server_of,
)
from fedpresence.ops.destinations import Destinations, encode_destination, summary
from fedpresence.request import Request
from fedpresence.web import Handler, JsonResource, Named, Unknown, carried_through, mount, node
from fedpresence.wire.json import decode_json
from fedpresence.wire.lists import decode_list_change

PREFIX = b"/_fedpresence/admin/"
MAX_BODY_BYTES = 4_194_304  # 10,000 members with the longest IDs there are
MAX_MEMBERS = 10_000  # of one room: far beyond the size from which it counts (Z-19)
MAX_EVENTS = 10_000  # of one report of activity: ten turns of the hub


class AdminViews(Protocol):
    """The engine, as far as the operator asks it."""

    def counts(self) -> Counts:
        """Everything, counted."""

    def unwanted(self) -> Mapping[ServerName, int]:
        """Pushes of users whom nobody here may see, by origin; a bounded number of names."""

    def user_exists(self, user_id: UserID) -> bool:
        """Whether this is a local user."""

    def user_detail(self, user_id: UserID, now_ms: int) -> UserDetail | None:
        """A user with their list; None for somebody we know nothing of."""


class ScanProgress(Protocol):
    """How far we are in learning who is in which room of the homeserver beside us."""

    @property
    def state(self) -> str:
        """`scanning`, `waiting` (for the homeserver) or `following` (what it tells)."""

    @property
    def users_to_ask(self) -> int:
        """Whose rooms are not known yet."""

    @property
    def rooms_to_ask(self) -> int:
        """Whose members are not known yet."""

    @property
    def users_asked(self) -> int:
        """Since the start."""

    @property
    def rooms_asked(self) -> int:
        """Since the start."""


class Scanning(Protocol):
    """Who learns it."""

    def progress(self) -> ScanProgress:
        """How far it is."""

    async def begin_again(self) -> None:
        """Ask for everything once more."""


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the admin API works with.

    `revoke_tokens` forgets every access token of a user, wherever tokens are kept or remembered;
    `take_up_new_users` tells the engine of users whom the command line made a moment ago.
    """

    server_name: ServerName
    token: str
    hub: Hub
    engine: AdminViews
    destinations: Destinations
    revoke_tokens: Callable[[UserID], Awaitable[object]]
    clock: Clock
    take_up_new_users: Callable[[], Awaitable[object]] | None = None
    scan: Scanning | None = None


def add_admin(root: Resource, parts: AdminParts) -> None:
    """Serve the admin API below `root`; the uptime counts from now."""
    admin = _Admin(parts)
    base = node(root, b"_fedpresence", b"admin", b"v1")

    def serve(parent: Resource, name: bytes, **methods: Handler) -> Resource:
        child = JsonResource({method: admin.authorized(handler) for method, handler in methods.items()})
        mount(parent, name, child)
        return child

    def destination(name: str) -> Resource:
        child = JsonResource({"GET": admin.authorized(lambda _: admin.destination(name))})
        serve(child, b"retry", POST=lambda _: admin.retry(name))
        return child

    def user(name: str) -> Resource:
        child = JsonResource(
            {
                "GET": admin.authorized(lambda _: admin.user(name)),
                "DELETE": admin.authorized(lambda _: admin.deactivate(name)),
            }
        )
        serve(child, b"list", POST=lambda request: admin.change_list(name, request))
        return child

    def room(name: str) -> Resource:
        child = Unknown()
        serve(child, b"members", PUT=lambda request: admin.set_members(name, request))
        return child

    serve(base, b"status", GET=admin.status)
    serve(base, b"scan", POST=admin.begin_scan)
    serve(base, b"activity", POST=admin.activity)
    mount(base, b"destinations", Named({"GET": admin.authorized(admin.destinations)}, destination))
    mount(base, b"users", Named({}, user))
    mount(base, b"rooms", Named({}, room))


def admission(token: str) -> Admit:
    """Lets whoever has the token send more than a client may; everybody else meets the plain limit."""

    def admit(head: RequestHead) -> Deferred[Admitted] | None:
        if head.uri.startswith(PREFIX) and _is_token(head.headers.getRawHeaders(b"Authorization"), token):
            return succeed(Admitted(MAX_BODY_BYTES))
        return None

    return admit


class _Admin:
    """The handlers: each takes a request, or the name in its path, and answers JSON."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._started_ms = now_ms(parts.clock)

    def authorized(self, handler: Handler) -> Handler:
        """`handler`, for whoever has the token."""

        async def checked(request: Request) -> object:
            given = request.requestHeaders.getRawHeaders(b"Authorization") or []
            if not given:
                raise BadRequest("M_MISSING_TOKEN", "The admin API needs its bearer token", status=401)
            if not _is_token(given, self._parts.token):
                raise BadRequest("M_FORBIDDEN", "Not the token of the admin API", status=403)
            return await handler(request)

        return checked

    async def status(self, request: Request) -> object:
        counts = await self._parts.hub.read(lambda _: self._parts.engine.counts())
        scan = self._parts.scan
        beside = {} if scan is None else {"scan": _encode_scan(scan.progress())}
        return {
            **beside,
            "server_name": self._parts.server_name,
            "version": __version__,
            "uptime_ms": now_ms(self._parts.clock) - self._started_ms,
            "users": {
                "online": counts.online,
                "unavailable": counts.unavailable,
                "offline": counts.offline,
                "busy": counts.busy,
                "remote": counts.remote,
            },
            "subscriptions": subscriptions(counts),
            "rooms": counts.rooms,
            "rooms_doubted": counts.rooms_doubted,
            "destinations": summary(self._parts.destinations.describe(None).values()),
        }

    async def begin_scan(self, request: Request) -> object:
        if self._parts.scan is None:
            raise BadRequest("M_NOT_FOUND", "There is no homeserver beside us", status=404)
        await carried_through(self._parts.scan.begin_again())
        return {}

    async def destinations(self, request: Request) -> object:
        statuses = self._parts.destinations.describe(None)
        return {"destinations": {server: encode_destination(status) for server, status in statuses.items()}}

    async def destination(self, name: str) -> object:
        server = parse_server_name(name)
        status = self._parts.destinations.describe(server).get(server)
        if status is None:
            raise _no_destination(server)
        return {"destinations": {server: encode_destination(status)}}

    async def retry(self, name: str) -> object:
        server = parse_server_name(name)
        if not self._parts.destinations.retry(server):
            raise _no_destination(server)
        return {}

    async def user(self, name: str) -> object:
        user_id = parse_user_id(name)
        if server_of(user_id) == self._parts.server_name:
            await self._existing(name)
        return await self._parts.hub.read(lambda now: self._user(user_id, now))

    async def change_list(self, name: str, request: Request) -> object:
        if server_of(parse_user_id(name)) != self._parts.server_name:  # as to clients (P:10.1)
            raise BadRequest("M_INVALID_PARAM", f"{name} is not a user of this server")
        user_id = await self._existing(name)
        await self._parts.hub.submit(decode_list_change(user_id, _body(request)))
        return {}

    async def deactivate(self, name: str) -> object:
        await carried_through(self._deactivate(await self._existing(name)))
        return {}

    async def _deactivate(self, user_id: UserID) -> None:
        await self._parts.revoke_tokens(user_id)  # first: no request of theirs comes after
        await self._parts.hub.submit(UserDeactivated(user_id))

    async def set_members(self, name: str, request: Request) -> object:
        room_id = parse_room_id(name)
        members = _list(_body(request), "members", MAX_MEMBERS)
        users = frozenset(parse_user_id(member) for member in members)
        await self._parts.hub.submit(RoomMembersSet(room_id, users))
        return {}

    async def activity(self, request: Request) -> object:
        events = [self._activity(event) for event in _list(_body(request), "events", MAX_EVENTS)]
        engine = self._parts.engine
        known: list[Event] = await self._parts.hub.read(
            lambda _: [event for event in events if engine.user_exists(event.user_id)]
        )
        if known:
            await self._parts.hub.submit(*known)
        return {"taken": len(known), "unknown_users": len(events) - len(known)}

    def _user(self, user_id: UserID, now: int) -> object:
        detail = self._parts.engine.user_detail(user_id, now)
        if detail is None:
            raise _no_user(user_id)
        return _encode_user(detail)

    async def _existing(self, name: str) -> UserID:
        user_id = parse_user_id(name)
        if await self._exists(user_id):
            return user_id
        if self._parts.take_up_new_users is not None:
            await self._parts.take_up_new_users()  # `token add` may just have made them
            if await self._exists(user_id):
                return user_id
        raise _no_user(user_id)

    async def _exists(self, user_id: UserID) -> bool:
        return await self._parts.hub.read(lambda _: self._parts.engine.user_exists(user_id))

    def _activity(self, event: object) -> Activity:
        if not isinstance(event, dict):
            raise BadRequest("M_BAD_JSON", "An event is an object with user_id")
        user_id = parse_user_id(event.get("user_id"))
        if server_of(user_id) != self._parts.server_name:
            raise BadRequest("M_INVALID_PARAM", f"{user_id} is not a user of this server")
        device_id, ts = event.get("device_id"), event.get("ts")
        if device_id is not None and not (isinstance(device_id, str) and 0 < len(device_id) <= MAX_ID_BYTES):
            raise BadRequest("M_INVALID_PARAM", "device_id is 1 to 255 characters of text")
        if ts is not None and (not isinstance(ts, int) or isinstance(ts, bool) or not 0 <= ts < 2**53):
            raise BadRequest("M_INVALID_PARAM", "ts is Unix time in milliseconds")
        return Activity(user_id, None if device_id is None else DeviceID(device_id), ts)


def subscriptions(counts: Counts) -> dict[str, int]:
    """Pairs by stage: our users' lists, then what others ask and were granted."""
    return {
        "pending": counts.list_pending,
        "accepted": counts.list_accepted,
        "requested": counts.requests,
        "granted": counts.grants,
    }


def _encode_scan(progress: ScanProgress) -> dict[str, object]:
    return {
        "state": progress.state,
        "users_to_ask": progress.users_to_ask,
        "rooms_to_ask": progress.rooms_to_ask,
        "users_asked": progress.users_asked,
        "rooms_asked": progress.rooms_asked,
    }


def _encode_user(detail: UserDetail) -> dict[str, object]:
    return {
        "user_id": detail.user_id,
        "presence": detail.view.state.value,
        "currently_active": detail.view.currently_active,
        "last_active_ts": _ts(detail.last_active_ms),
        "status_msg": detail.view.status_msg,
        "heard_ts": _ts(detail.heard_ms),
        "stale": detail.stale,
        "devices": [
            {
                "device_id": device.device_id,
                "presence": device.state.value,
                "last_contact_ts": _ts(device.last_contact_ms),
                "streams": device.streams,
                "hidden": device.hidden,
            }
            for device in detail.devices
        ],
        "list": [
            {
                "user_id": entry.user_id,
                "state": entry.stage.value,
                "since_ts": entry.since_ms,
                "confirmed_ts": _ts(entry.confirmed_ms),
                "unreachable": entry.unreachable,
            }
            for entry in detail.list
        ],
        "invites": [{"user_id": pair.user_id, "since_ts": pair.since_ms} for pair in detail.invites],
        "observers": [
            {
                "user_id": observer.user_id,
                "since_ts": observer.since_ms,
                "confirmed_ts": _ts(observer.confirmed_ms),
                "muted": observer.muted,
            }
            for observer in detail.observers
        ],
    }


def _is_token(given: Sequence[bytes], token: str) -> bool:
    """Whether exactly one Authorization header stands there, and it is ours."""
    if len(given) != 1:
        return False
    scheme, _, credentials = given[0].strip().partition(b" ")
    # Compared also where the scheme is wrong, so that time tells nothing.
    right = hmac.compare_digest(credentials.strip(), token.encode("ascii"))
    return right and scheme.lower() == b"bearer"


def _body(request: Request) -> object:
    content = request.content
    return decode_json(content.read() if content is not None else b"")


def _list(body: object, name: str, most: int) -> list[object]:
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise BadRequest("M_BAD_JSON", f"The body must be an object with the array {name}")
    if len(found) > most:
        raise BadRequest("M_TOO_LARGE", f"{name} may hold at most {most}", status=413)
    return found


def _ts(moment_ms: int | None) -> int | None:
    """A moment for JSON: 0 is never."""
    return moment_ms or None


def _no_user(user_id: UserID) -> BadRequest:
    return BadRequest("M_NOT_FOUND", f"Nothing is known of {user_id}", status=404)


def _no_destination(server: ServerName) -> BadRequest:
    return BadRequest("M_NOT_FOUND", f"Nothing was ever sent to {server}", status=404)
