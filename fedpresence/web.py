"""JSON over HTTP, the way every Matrix server answers: shared by all listeners.

Always true: an answer is JSON with exactly `Content-Type: application/json`; an error has `errcode`
and `error`; a path we do not know is 404, a method we do not know is 405, both `M_UNRECOGNIZED`; our
own fault is a 500 `M_UNKNOWN` with its traceback in the log and nothing of it in the answer.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence.errors import BadRequest, StoreError
from fedpresence.request import Request

_log = Logger()
T = TypeVar("T")

JSON = b"application/json"
_AS_IT_IS = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(separators=(",", ":"))
CORS_HEADERS = (
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"GET, POST, PUT, DELETE, OPTIONS"),
    (b"Access-Control-Allow-Headers", b"X-Requested-With, Content-Type, Authorization"),
)  # P:9.3
CLIENT_PATHS = (b"/_matrix/client/", b"/_fedpresence/client/")  # whose every answer carries them

Handler = Callable[[Request], Awaitable[object]]


def write_json(request: Request, body: object, status: int = 200) -> None:
    """Answer and end `request`; nothing where the client has gone."""
    if request.finished or request._disconnected:
        return
    try:
        data = _AS_IT_IS.encode(body).encode("utf-8") if body != {} else b"{}"
    except UnicodeEncodeError:  # half a surrogate pair: only as an escape can it be said at all
        data = _ESCAPED.encode(body).encode("ascii")
    if status != 200:  # else it is that already
        request.setResponseCode(status)
    request.setHeader(b"Content-Type", JSON)
    request.setHeader(b"Content-Length", b"%d" % len(data))
    request.write(data)
    request.finish()


def write_error(request: Request, error: BadRequest) -> None:
    """Answer with a Matrix error object (F:1.3), and `Retry-After` where there is one."""
    body: dict[str, object] = {"errcode": error.errcode, "error": error.message}
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
        request.setHeader(b"Retry-After", b"%d" % -(-error.retry_after_ms // 1000))
    if error.soft_logout:
        body["soft_logout"] = True
    write_json(request, body, error.status)


def carried_through(work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """The outcome of work that goes on when whoever asked for it has gone."""
    answer: Deferred[T] = Deferred()
    ensureDeferred(work).chainDeferred(answer)  # cancelling the answer ends the waiting alone
    return answer


class JsonResource(Resource):
    """One path: a table of methods to `async` handlers that answer a JSON value or raise BadRequest.

    `cors` answers OPTIONS and puts the CORS headers on everything, errors too. A handler is cancelled
    when its client goes away.
    """

    def __init__(self, methods: dict[str, Handler], *, cors: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's has no hints
        self._methods = methods
        self._cors = cors

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Whatever lies below a known path is unknown."""
        return Unknown(cors=self._cors)

    def refusal(self) -> BadRequest:
        """What a method that is not in the table gets."""
        return BadRequest("M_UNRECOGNIZED", "Unrecognized method", status=405)

    def render(self, request: Request) -> int | bytes:
        """Run the handler of the method; always answers later."""
        if self._cors:
            for name, value in CORS_HEADERS:
                request.setHeader(name, value)
            if request.method == b"OPTIONS":
                write_json(request, {})
                return NOT_DONE_YET
        method = request.method.decode("ascii", "replace")
        handler = self._methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            write_error(request, self.refusal())
            return NOT_DONE_YET
        answering = _answer(request, handler)
        try:
            awaited = answering.send(None)
        except StopIteration:  # most answers wait for nothing, and need nobody who waits
            return NOT_DONE_YET
        running = ensureDeferred(_rest_of(answering, awaited))
        request.notifyFinish().addErrback(lambda _: running.cancel())
        running.addErrback(_log_bug)
        return NOT_DONE_YET


class Unknown(JsonResource):
    """Every path that nobody serves."""

    def __init__(self, *, cors: bool = False) -> None:
        super().__init__({}, cors=cors)

    def refusal(self) -> BadRequest:
        """404, whatever the method."""
        return BadRequest("M_UNRECOGNIZED", "Unrecognized request", status=404)


class Named(JsonResource):
    """A collection: what lies below it is named in the path, and found by `below`."""

    def __init__(self, methods: dict[str, Handler], below: Callable[[str], Resource]) -> None:
        super().__init__(methods)
        self._below = below

    def getChild(self, path: bytes, request: Request) -> Resource:
        """The resource of one member; no member has an empty name."""
        try:
            name = path.decode("utf-8")
        except UnicodeDecodeError:
            return Unknown()
        return self._below(name) if name else Unknown()


def node(root: Resource, *path: bytes, cors: bool = False) -> Resource:
    """The resource at `path` below `root`; what is missing on the way is made, and answers 404 itself.

    Several parts hang their resources under one root (`_matrix`) without knowing each other.
    """
    found = root
    for segment in path:
        below = found.children.get(segment)
        if below is None:
            below = Unknown(cors=cors)
            mount(found, segment, below)
        found = below
    return found


def mount(parent: Resource, segment: bytes, child: Resource) -> None:
    """Put `child` below `parent`."""
    # Twisted asks for an IResource, and mypy cannot see that a Resource provides it.
    parent.putChild(segment, cast(IResource, child))


@coroutine
def _rest_of(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """What `work`, which waits for `awaited`, still does."""
    while True:
        try:
            outcome = yield awaited
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, outcome)
        try:
            awaited = step()
        except StopIteration:
            return


async def _answer(request: Request, handler: Handler) -> None:
    try:
        write_json(request, await handler(request))
    except CancelledError:
        return
    except BadRequest as error:
        write_error(request, error)
    except StoreError:  # the daemon stops, and its last line says why
        write_error(request, BadRequest("M_UNKNOWN", "Internal server error", status=500))
    except Exception:
        _log.failure("answering {method} {path} failed", method=request.method, path=request.path)
        write_error(request, BadRequest("M_UNKNOWN", "Internal server error", status=500))


def _log_bug(failure: Failure) -> None:
    _log.failure("an HTTP handler failed", failure)
