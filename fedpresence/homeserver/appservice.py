"""What the homeserver tells us: its side of the application service API.

Always true:
- nothing is taken without the `hs_token`, compared in constant time, from the header or the old query;
- a transaction is answered 200 only when all of it that must survive is on disk, and a repeated one at once;
- an error would hold up everything that comes after, so what we cannot understand is counted, not refused.

The last transactions are remembered in memory alone. After a restart one may be taken twice, and that changes
nothing: joined is joined, activity has its moment, what is old is no activity, and the homeserver sends none
after it before we have answered.

Source: H:2.2, 2.3, 2.6, 2.7.
"""

import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import DeferredLock, succeed
from twisted.logger import Logger
from twisted.web.resource import Resource

from fedpresence.admission import Admit, Admitted, RequestHead
from fedpresence.clock import Clock, now_ms
from fedpresence.counters import Counters
from fedpresence.engine.events import UserAdded
from fedpresence.errors import BadRequest
from fedpresence.fields import Fields
from fedpresence.homeserver.happenings import Happenings
from fedpresence.homeserver.registration import Registration
from fedpresence.homeserver.scan import Known, Scan
from fedpresence.ids import ServerName
from fedpresence.request import Request
from fedpresence.web import Handler, JsonResource, Named, carried_through, mount, node

_log = Logger()

# Synapse sends at most 100 events of 64 KiB with as much of previous content, and 100 ephemeral items.
MAX_BODY_BYTES = 33_554_432
MAX_REMEMBERED = 16  # transactions; the homeserver repeats only the last
PREFIX = (b"_matrix", b"app", b"v1")
ROOTS = (b"/_matrix/app/", b"/transactions/")  # where a large body may come


class AppService:
    """Takes transactions, one after the other."""

    def __init__(
        self,
        server_name: ServerName,
        registration: Registration,
        scan: Scan,
        engine: Known,
        submit: Callable[..., Awaitable[None]],
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._hs_token = registration.hs_token.encode("ascii")
        self._scan = scan
        self._engine = engine
        self._submit = submit
        self._clock = clock
        self._counters = counters
        self._happenings = Happenings(server_name, registration.bot(server_name), now_ms(clock))
        self._turn = DeferredLock()
        self._taken: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def check(self, headers: Fields, query: bytes) -> None:
        """BadRequest 401 or 403 where whoever asks is not the homeserver."""
        given = headers.getRawHeaders(b"Authorization") or []
        tokens = [_bearer(value) for value in given]
        tokens += parse_qs(query, max_num_fields=100).get(b"access_token", []) if query else []
        if not tokens:
            raise BadRequest("M_MISSING_TOKEN", "The homeserver's token is needed here", status=401)
        right = [hmac.compare_digest(token, self._hs_token) for token in tokens]
        if not all(right):
            raise BadRequest("M_FORBIDDEN", "Not the homeserver's token", status=403)

    def is_authentic(self, headers: Fields, query: bytes) -> bool:
        """Whether it is the homeserver that asks."""
        try:
            self.check(headers, query)
        except (BadRequest, ValueError):
            return False
        return True

    async def take(self, txn_id: str, data: bytes) -> None:
        """Take one transaction; returns when it is committed."""
        key = (txn_id, hashlib.sha256(data).digest())  # a homeserver set up anew counts from one again
        await self._turn.acquire()
        try:
            if key in self._taken:
                self._counters.count("appservice_transactions", outcome="repeated")
                return
            await self._take(data)
            self._taken[key] = None
            if len(self._taken) > MAX_REMEMBERED:
                self._taken.popitem(last=False)
        finally:
            self._turn.release()

    async def _take(self, data: bytes) -> None:
        try:
            body = _decode(data)
        except BadRequest:
            self._counters.count("appservice_transactions", outcome="bad")
            _log.error("the homeserver sent a transaction that is no JSON object, and will repeat it")
            raise
        except RecursionError:
            # Refused, it would come again for ever. What it said of rooms is asked for instead.
            self._counters.count("appservice_transactions", outcome="unread")
            _log.error("a transaction of the homeserver is nested too deeply: asking for all rooms again")
            await self._scan.begin_again()
            return
        happened = self._happenings.read(body, now_ms(self._clock))
        await self._scan.expect(happened)
        events = [
            *(UserAdded(user_id) for user_id in happened.people if not self._engine.knows_user(user_id)),
            *self._scan.passed(happened),  # who leaves hears nothing of what follows
            *happened.activities(),
        ]
        if events:
            await self._submit(*events)
        self._scan.go_on()
        self._counters.count("appservice_transactions", outcome="ok")
        for kind in happened.counted.elements():
            self._counters.count("appservice_items", kind=kind)
        if happened.skipped:
            for _ in range(happened.skipped):
                self._counters.count("appservice_items", kind="skipped")
            _log.warn(
                "{count} items of a transaction of the homeserver made no sense", count=happened.skipped
            )


def add_appservice(root: Resource, service: AppService) -> None:
    """Serve the homeserver below `root`, under today's paths and those from before they had a prefix."""
    resources = _Resources(service)
    base = node(root, *PREFIX)
    for parent in (base, root):
        mount(parent, b"transactions", Named({}, resources.transaction))
        for name in (b"users", b"rooms", b"thirdparty"):
            mount(parent, name, resources.nothing())
    mount(base, b"ping", JsonResource({"POST": resources.authorized(resources.ping)}))
    mount(node(root, b"_matrix", b"app", b"unstable"), b"thirdparty", resources.nothing())


def admission(service: AppService) -> Admit:
    """Lets the homeserver send more than a client may; everybody else meets the plain limit."""

    def admit(head: RequestHead) -> Awaitable[Admitted] | None:
        _, _, query = head.uri.partition(b"?")
        if head.uri.startswith(ROOTS) and service.is_authentic(head.headers, query):
            return succeed(Admitted(MAX_BODY_BYTES))
        return None

    return admit


class _Resources:
    """The handlers."""

    def __init__(self, service: AppService) -> None:
        self._service = service

    def authorized(self, handler: Handler) -> Handler:
        """`handler`, for the homeserver alone."""

        async def checked(request: Request) -> object:
            try:
                self._service.check(request.requestHeaders, request.uri.partition(b"?")[2])
            except ValueError as error:
                raise BadRequest("M_FORBIDDEN", "Not a query that we read", status=403) from error
            return await handler(request)

        return checked

    def transaction(self, txn_id: str) -> Resource:
        """One transaction's path."""

        async def take(request: Request) -> object:
            content = request.content
            await carried_through(self._service.take(txn_id, content.read() if content is not None else b""))
            return {}

        return JsonResource({"PUT": self.authorized(take)})

    async def ping(self, request: Request) -> object:
        """The homeserver tries whether we are there."""
        return {}

    def nothing(self) -> Resource:
        """No user, alias or bridged network is made on demand."""

        async def not_found(request: Request) -> object:
            raise BadRequest("M_NOT_FOUND", "Nothing is made on demand here", status=404)

        return _Whole({"GET": self.authorized(not_found)})


class _Whole(JsonResource):
    """A path and all below it."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Itself."""
        return self


def _bearer(value: bytes) -> bytes:
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _decode(data: bytes) -> Mapping[str, Any]:
    """The body's JSON object, however many values it holds: the homeserver has bounded each of its events."""
    try:
        body = json.loads(data, parse_int=_integer)
    except ValueError as error:
        raise BadRequest("M_NOT_JSON", "Not JSON") from error
    if not isinstance(body, dict):
        raise BadRequest("M_BAD_JSON", "The body must be an object")
    return body


def _integer(digits: str) -> int | None:
    """None for what is longer than Python reads: such a number is no moment."""
    return int(digits) if len(digits) < 100 else None
