"""The rig over HTTP: the requests of the control API, done one at a time.

Always true:
- what changes the rig is done in the order it came, and to its end, even where the asker has gone;
- with the virtual clock that end is when nothing more is due: what is asked next comes after it, every time;
- what only reads is answered at once, in the middle of a long turn of the clock too;
- a body is checked whole before any of it is done; a key that nobody knows is an error that names it.

Source: contract.md, "Test rig".
"""

import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence.admission import BodyBudget
from fedpresence.clients.requests import parameter
from fedpresence.clock import Clock
from fedpresence.config import LimitsConfig
from fedpresence.engine.presence import PresenceState
from fedpresence.errors import BadRequest, ConfigError
from fedpresence.ids import MAX_ID_BYTES, DeviceID, ServerName, UserID, parse_server_name
from fedpresence.request import Request
from fedpresence.site import BoundedSite
from fedpresence.testing.homeserver import (
    Answered,
    FakeHomeserver,
    decode_order,
    decode_script,
    encode_answered,
    encode_received,
)
from fedpresence.testing.homeserver.fields import Fields, complaint
from fedpresence.testing.rig.controlled import Controlled, ControlledServer
from fedpresence.testing.rig.faults import decode_faults
from fedpresence.testing.rig.wirelog import encode
from fedpresence.web import Handler, JsonResource, Named, Unknown, carried_through, mount, write_error
from fedpresence.wire.status import decode_set_presence

_log = Logger()
T = TypeVar("T")

MAX_BODY_BYTES = 67_108_864  # what a scripted homeserver is told to send may be far beyond every limit
MAX_CONNECTIONS = 1_000
MAX_WAITING = 1_000  # operations in line: who sends more does not wait for the answers
MAX_MS = 20 * 365 * 86_400_000  # as long as the rig's certificates live

ADVANCE_NEEDS_VIRTUAL = "advance: the rig runs on the real clock; turning it needs --clock virtual"
NO_ANSWER_YET = "no answer yet: it needs time to pass"


def control_site(rig: Controlled, clock: Clock) -> BoundedSite:
    """What listens at `control_url`; `clock` is the real one, for slow connections."""
    limits = LimitsConfig(
        client_body=MAX_BODY_BYTES, bodies_in_flight=4 * MAX_BODY_BYTES, connections=MAX_CONNECTIONS
    )
    return BoundedSite(control_resource(rig), limits, clock, BodyBudget(limits.bodies_in_flight))


def control_resource(rig: Controlled) -> Resource:
    """The root of the control API."""
    control = _Control(rig)
    root = Unknown()

    def serve(parent: Resource, name: bytes, **methods: Handler) -> Resource:
        child = JsonResource(methods)
        mount(parent, name, child)
        return child

    def server(name: str) -> Resource:
        child = JsonResource({"GET": lambda _: control.server(name)})
        for verb in ("start", "stop", "kill", "backup", "restore", "wipe"):
            serve(child, verb.encode(), POST=control.operation(name, verb))
        serve(child, b"clock", POST=lambda request: control.set_clock(name, request))
        serve(child, b"rotate-key", POST=control.operation(name, "rotate_key"))
        return child

    def link_from(origin: str) -> Resource:
        return Named({}, lambda destination: link(origin, destination))

    def link(origin: str, destination: str) -> Resource:
        return JsonResource({"PUT": lambda request: control.set_faults(origin, destination, request)})

    def user(name: str) -> Resource:
        child = Unknown()
        serve(child, b"stream", PUT=lambda request: control.set_stream(name, request))
        return child

    def homeserver(name: str) -> Resource:
        child = JsonResource({"GET": lambda _: control.homeserver(name)})
        serve(child, b"answers", PUT=lambda request: control.set_answers(name, request))
        serve(
            child,
            b"received",
            GET=lambda _: control.received(name),
            DELETE=lambda request: control.forget_received(name, request),
        )
        serve(child, b"send", POST=lambda request: control.send(name, request))
        serve(child, b"rotate-key", POST=lambda request: control.rotate_key(name, request))
        return child

    serve(root, b"status", GET=control.status)
    serve(root, b"advance", POST=control.advance)
    serve(root, b"settle", POST=control.settle)
    serve(root, b"transactions", GET=control.transactions)
    serve(root, b"external", POST=control.add_external)
    mount(root, b"wire", _Text(control.wire_text))
    mount(root, b"servers", Named({}, server))
    mount(root, b"links", Named({}, link_from))
    mount(root, b"users", Named({}, user))
    mount(root, b"homeservers", Named({"POST": control.add_homeserver}, homeserver))
    return root


class _Text(JsonResource):
    """One page of plain text, for people."""

    def __init__(self, text: Callable[[Request], str]) -> None:
        super().__init__({})
        self._text = text

    def render(self, request: Request) -> int | bytes:
        """The page."""
        if request.method not in (b"GET", b"HEAD"):
            return super().render(request)
        try:
            text = self._text(request)
        except BadRequest as error:
            write_error(request, error)
            return NOT_DONE_YET
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return text.encode("utf-8", "replace")


class _Turns:
    """Operations, done one after the other in the order they came, each to its end.

    Not a DeferredLock: a thousand that wait would be a recursion a thousand deep.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], Awaitable[None]]] = deque()
        self._busy = False

    def take(self, work: Callable[[], Awaitable[T]]) -> Deferred[T]:
        """The outcome of `work`, which is done even where nobody waits for it; BadRequest in a crowd."""
        if len(self._waiting) >= MAX_WAITING:
            raise BadRequest("M_LIMIT_EXCEEDED", "Too many operations wait for their turn", status=429)
        outcome: Deferred[T] = Deferred()

        async def turn() -> None:
            try:
                result = await work()
            except Exception:
                outcome.errback()
            else:
                outcome.callback(result)

        self._waiting.append(turn)
        if not self._busy:
            self._busy = True
            ensureDeferred(self._work())
        return outcome

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._waiting.popleft()()
        finally:
            self._busy = False


class _Control:
    """The handlers: each takes a request, or a name in its path too, and answers JSON."""

    def __init__(self, rig: Controlled) -> None:
        self._rig = rig
        self._turns = _Turns()
        self._became: dict[str, ServerName] = {}  # homeservers, by what they were asked for as

    # --- the rig ---------------------------------------------------------------------------------

    async def status(self, request: Request) -> object:
        rig = self._rig
        return {
            "clock": "virtual" if rig.virtual else "real",
            "now_ms": rig.now_ms,
            "servers": {name: {"running": server.is_running} for name, server in rig.servers.items()},
            "users": list(rig.users),
            "homeservers": list(rig.homeservers),
        }

    async def advance(self, request: Request) -> object:
        fields = _fields(request, "advance", {"ms"})
        ms = _whole(fields, "ms", 0, MAX_MS)
        if not self._rig.virtual:
            raise BadRequest("M_UNKNOWN", ADVANCE_NEEDS_VIRTUAL)
        return {"now_ms": await self._do(lambda: self._rig.advance(ms))}

    async def settle(self, request: Request) -> object:
        _nothing(request, "settle")
        return {"in_flight": await self._do(self._rig.settle)}

    async def transactions(self, request: Request) -> object:
        seen = self._rig.wire.transactions(*self._filter(request))
        return {"transactions": [encode(recorded) for recorded in seen]}

    def wire_text(self, request: Request) -> str:
        """The same for people, a line each."""
        return self._rig.wire.text(*self._filter(request)) + "\n"

    async def add_external(self, request: Request) -> object:
        fields = _fields(request, "an external server", {"server_name", "address", "ca_file"})
        name = _server_name(fields)
        address = fields.text("address")
        if address is None:
            raise complaint("address", "must be there: host:port")
        written = fields.text("ca_file")
        ca_file = None if written is None else Path(written)
        if ca_file is not None and not ca_file.is_file():
            raise complaint("ca_file", f"there is no file {ca_file}")
        await self._do(lambda: self._rig.add_external(name, address, ca_file))
        return {}

    # --- its servers -----------------------------------------------------------------------------

    async def server(self, name: str) -> object:
        return self._state_of(self._server(name))

    def operation(self, name: str, verb: str) -> Handler:
        """A handler that does `verb` to a server, and answers what it is like afterwards."""

        async def handler(request: Request) -> object:
            server = self._server(name)
            _nothing(request, verb)
            operation: Callable[[], Awaitable[object]] = getattr(server, verb)
            await self._do_whole(operation)
            return self._state_of(server)

        return handler

    async def set_clock(self, name: str, request: Request) -> object:
        server = self._server(name)
        fields = _fields(request, "a clock", {"offset_ms"})
        offset_ms = _whole(fields, "offset_ms", -MAX_MS, MAX_MS)
        await self._do_whole(lambda: server.set_clock(offset_ms))
        return self._state_of(server)

    # --- its links and users ---------------------------------------------------------------------

    async def set_faults(self, origin: str, destination: str, request: Request) -> object:
        faults = decode_faults(_body(request))
        here, there = self._name(origin), self._name(destination)

        async def set_faults() -> None:
            try:
                await self._rig.set_faults(here, there, faults)
            except KeyError as error:
                raise _not_found(
                    f"there is no link from {origin} to {destination}: {self._known()}"
                ) from error

        await self._do(set_faults)
        return {}

    async def set_stream(self, name: str, request: Request) -> object:
        user_id = self._user_id(name)
        fields = _fields(request, "a stream", {"open", "device_id", "set_presence"})
        if fields.get("open") is None:
            raise complaint("open", "must be there: true or false")
        is_open = fields.flag("open")
        device = fields.text("device_id")
        if device is not None and not 0 < len(device) <= MAX_ID_BYTES:
            raise complaint("device_id", f"must have 1 to {MAX_ID_BYTES} characters")
        device_id = None if device is None else DeviceID(device)
        state = _presence_state(fields)
        await self._do_whole(
            lambda: self._rig.set_stream(user_id, is_open=is_open, device_id=device_id, set_presence=state)
        )
        return {}

    # --- scripted homeservers --------------------------------------------------------------------

    async def add_homeserver(self, request: Request) -> object:
        name = _server_name(_fields(request, "a homeserver", {"server_name"}))
        homeserver = await self._do(lambda: self._rig.add_homeserver(name))
        self._became[name] = homeserver.server_name
        return _encode_homeserver(homeserver)

    async def homeserver(self, name: str) -> object:
        return _encode_homeserver(self._homeserver(name))

    async def set_answers(self, name: str, request: Request) -> object:
        homeserver = self._homeserver(name)
        script = decode_script(_body(request))
        await self._do_now(lambda: homeserver.follow(script))
        return {}

    async def received(self, name: str) -> object:
        return {"received": [encode_received(each) for each in self._homeserver(name).received]}

    async def forget_received(self, name: str, request: Request) -> object:
        homeserver = self._homeserver(name)
        await self._do_now(homeserver.received.clear)
        return {}

    async def rotate_key(self, name: str, request: Request) -> object:
        homeserver = self._homeserver(name)
        _nothing(request, "rotate-key")
        await self._do_now(homeserver.rotate_key)
        return _encode_homeserver(homeserver)

    async def send(self, name: str, request: Request) -> object:
        """Send in turn, and answer what came back.

        With the virtual clock an answer that needs time to pass is not waited for: whoever asks here is
        usually the one who turns the clock. `status` is null then, and the request goes on.
        """
        homeserver = self._homeserver(name)
        order = decode_order(_body(request))
        order = replace(order, to=ServerName(self._name(order.to)))

        async def begin() -> tuple[Deferred[Answered]]:
            sending = carried_through(homeserver.obey(order))
            if self._rig.virtual:
                await self._rig.settle()
            return (sending,)

        (sending,) = await self._do(begin)
        if self._rig.virtual and not sending.called:
            sending.addErrback(lambda failure: _log.failure("sending from {name} failed", failure, name=name))
            return encode_answered(Answered(None, reason=NO_ANSWER_YET))
        try:
            return encode_answered(await sending)
        except LookupError as error:
            raise _not_found(f"there is no link from {name} to {order.to}: {self._known()}") from error
        except ValueError as error:  # not canonical JSON, for example
            raise BadRequest("M_BAD_JSON", f"the order cannot be sent: {error}") from error

    # --- what they share -------------------------------------------------------------------------

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` when its turn comes, whoever still waits for it."""

        async def in_a_rig_that_runs() -> T:
            try:
                if not self._rig.is_stopping:
                    result = await work()
            except Exception:
                if not self._rig.is_stopping:
                    raise
            if self._rig.is_stopping:
                raise BadRequest("M_UNKNOWN", "The rig is stopping: not done, or not to its end", status=503)
            return result

        try:
            return await self._turns.take(in_a_rig_that_runs)
        except (KeyError, IndexError):
            raise  # a bug of ours; the LookupError below is a refusal
        except (ValueError, LookupError, ConfigError) as error:
            reason = error.args[0] if error.args else error
            raise BadRequest("M_UNKNOWN", str(reason)) from error

    async def _do_whole(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work`, and with the virtual clock what it sets going: news that leaves at once has arrived."""

        async def whole() -> None:
            await work()
            if self._rig.virtual:
                await self._rig.settle()

        await self._do(whole)

    async def _do_now(self, work: Callable[[], T]) -> T:
        """Do `work`, which takes no time, when its turn comes."""

        async def at_once() -> T:
            return work()

        return await self._do(at_once)

    def _server(self, name: str) -> ControlledServer:
        try:
            return self._rig.server(name)
        except KeyError as error:
            raise _not_found(f"{name} is no server of this rig: {self._known()}") from error

    def _homeserver(self, name: str) -> FakeHomeserver:
        found = self._rig.homeservers.get(ServerName(self._name(name)))
        if found is None:
            raise _not_found(f"{name} is no scripted homeserver of this rig: POST /homeservers makes one")
        return found

    def _name(self, name: str) -> str:
        """The server name of whoever was called `name`: an addressable server's is its address."""
        if name in self._became:
            return self._became[name]
        try:
            return self._rig.server(name).name
        except KeyError:
            return name

    def _user_id(self, text: str) -> UserID:
        """The rig's user who is called `text`."""
        localpart, _, server = text.removeprefix("@").partition(":" if text.startswith("@") else "@")
        user_id = UserID(f"@{localpart}:{self._name(server)}")
        if user_id not in self._rig.users:
            raise _not_found(f"{text} is no user of this rig, which has {_listed(self._rig.users)}")
        return user_id

    def _filter(self, request: Request) -> tuple[ServerName | None, ServerName | None]:
        """The servers that `from` and `to` name in the query; 400 for a key that is no filter."""
        for key in request.args or ():
            if key not in (b"from", b"to"):
                name = key.decode("ascii", "replace")
                raise BadRequest("M_INVALID_PARAM", f"{name}: no such filter; known are from and to")
        origin, destination = (
            None if text is None else parse_server_name(self._name(text))
            for text in (parameter(request, b"from"), parameter(request, b"to"))
        )
        return origin, destination

    def _known(self) -> str:
        return f"it has {_listed((*self._rig.servers, *self._rig.homeservers))}"

    def _state_of(self, server: ControlledServer) -> dict[str, object]:
        told: dict[str, object] = self._rig.ready()["servers"][server.name]
        return {"server_name": server.name, "running": server.is_running} | told


def _encode_homeserver(homeserver: FakeHomeserver) -> dict[str, object]:
    return {
        "server_name": homeserver.server_name,
        "key_id": homeserver.key_id,
        "verify_key": homeserver.verify_key,
        "federation_url": f"https://127.0.0.1:{homeserver.port}",
    }


# --- what a request says ---------------------------------------------------------------------


def _body(request: Request) -> object:
    """The body as JSON, whatever it holds; an empty one is `{}`.

    Python's own reader: a scripted homeserver may be told to send what ours would not read.
    """
    data: bytes = request.content.read() if request.content is not None else b""
    if not data.strip():
        return {}
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest("M_NOT_JSON", f"Not JSON: {error}") from None
    return value


def _fields(request: Request, name: str, known: Collection[str]) -> Fields:
    return Fields(_body(request), name, known)


def _nothing(request: Request, name: str) -> None:
    """A body that has nothing to say."""
    _fields(request, name, ())


def _whole(fields: Fields, key: str, lowest: int, highest: int) -> int:
    if fields.get(key) is None:
        raise complaint(key, "must be there, a whole number of milliseconds")
    return fields.number(key, 0, lowest, highest)


def _server_name(fields: Fields) -> ServerName:
    text = fields.text("server_name")
    if text is None:
        raise complaint("server_name", "must be there")
    try:
        return parse_server_name(text)
    except BadRequest as error:
        raise complaint("server_name", error.message) from error


def _presence_state(fields: Fields) -> PresenceState | None:
    text = fields.text("set_presence")
    try:
        return None if text is None else decode_set_presence(text)
    except BadRequest:
        raise complaint("set_presence", "must be online, unavailable or offline, as a client's") from None


def _not_found(message: str) -> BadRequest:
    return BadRequest("M_NOT_FOUND", message, status=404)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
