"""The client API as a tree of paths, the same under every prefix.

Always true: every answer, errors too, is JSON with the CORS headers; a path nobody knows is 404 and
a method nobody knows 405, both `M_UNRECOGNIZED`.

Source: P:9, P:9.3; clients.md; contract.md, "Client API"; H:6.1 beside a homeserver.
"""

import re
from collections.abc import Callable
from typing import cast

from twisted.web.resource import Resource

from fedpresence.clients.account import Account
from fedpresence.clients.behind import Relay
from fedpresence.clients.filled import FilledSync
from fedpresence.clients.lists import PresenceList
from fedpresence.clients.parts import ClientParts
from fedpresence.clients.presence import PresenceStatus
from fedpresence.clients.sync import Sync
from fedpresence.errors import BadRequest
from fedpresence.request import Request
from fedpresence.web import Handler, JsonResource, Unknown, mount, node

PREFIXES = ((b"api", b"v1"), (b"r0",), (b"v3",), (b"unstable",))  # P:9
SYNC_PREFIXES = ((b"r0",), (b"v3",))  # P:13
SLIDING_SYNCS = (b"org.matrix.simplified_msc3575", b"org.matrix.msc3575")  # without presence, yet they wait
PASSED_THROUGH = (
    (b"_matrix", b"client"),
    (b"_matrix", b"media"),
    (b"_matrix", b"static"),
    (b"_synapse", b"client"),
    (b".well-known", b"matrix", b"client"),
)  # what a homeserver shows to clients; `/_synapse/admin` is for the operator's own network
OWN_PATHS = re.compile(rb"/_matrix/client/(?:api/v1|r0|v3|unstable)/presence/")  # H:6.1
_Routes = dict[bytes, dict[str, Handler]]
_ANY = b"*"  # in a route: whatever stands there; the handler reads it from the request


class _Branch(JsonResource):
    """A place in the tree that may have a child for every name. Its own methods are those of its path."""

    def __init__(self) -> None:
        self.methods: dict[str, Handler] = {}
        self.any_child: _Branch | None = None
        super().__init__(self.methods, cors=True)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """The child that stands for every name; 404 where there is none or the name is empty."""
        if self.any_child is not None and path:
            return self.any_child
        return Unknown(cors=True)

    def refusal(self) -> BadRequest:
        """404 where this is only on the way to other paths."""
        return super().refusal() if self.methods else Unknown().refusal()


def add_clients(root: Resource, parts: ClientParts) -> None:
    """Hang the whole client API under `root`."""
    matrix = node(root, b"_matrix", b"client", cors=True)
    api = _tree(_routes(parts))
    for *folders, last in PREFIXES:
        mount(node(matrix, *folders, cors=True), last, api)
    mount(matrix, b"versions", api.children[b"versions"])
    _add_own(root, parts)


def add_clients_beside(
    root: Resource, parts: ClientParts, relay: Relay, pass_through: Callable[[], Resource]
) -> None:
    """As `add_clients`, in front of a homeserver: presence is ours, its `/sync` filled, the rest its own.

    `pass_through` makes a resource for what is passed through but for the children that it is given.
    """
    ours, filled = _tree(_routes(parts)), FilledSync(parts, relay)
    _add_own(root, parts)
    for *folders, last in PASSED_THROUGH:
        mount(node(root, *folders), last, pass_through())
    for prefix in PREFIXES:
        place = _through(root, b"_matrix", b"client", *prefix, make=pass_through)
        mount(place, b"presence", ours.children[b"presence"])
        if prefix in SYNC_PREFIXES:
            mount(place, b"sync", _Waiting({"GET": filled.sync}, pass_through()))
    for path in SLIDING_SYNCS:
        place = _through(root, b"_matrix", b"client", b"unstable", path, make=pass_through)
        mount(place, b"sync", _Waiting({"POST": filled.connected}, pass_through()))


class _Waiting(JsonResource):
    """A path where some methods wait for news; the others are the homeserver's, OPTIONS too."""

    def __init__(self, methods: dict[str, Handler], rest: Resource) -> None:
        super().__init__(methods, cors=True)
        self._own = frozenset(method.encode("ascii") for method in methods)
        self._rest = rest

    def getChild(self, path: bytes, request: Request) -> Resource:
        """The homeserver's."""
        return self._rest

    def render(self, request: Request) -> int | bytes:
        """Ours, or the homeserver's."""
        return super().render(request) if request.method in self._own else self._rest.render(request)


def _through(root: Resource, *path: bytes, make: Callable[[], Resource]) -> Resource:
    """The resource at `path`; what is missing on the way passes through."""
    place = root
    for name in path:
        if name not in place.children:
            mount(place, name, make())
        place = cast(Resource, place.children[name])
    return place


def _add_own(root: Resource, parts: ClientParts) -> None:
    own = node(root, b"_fedpresence", b"client", b"v1", cors=True)
    subscriptions: _Routes = {b"subscriptions/*": {"GET": PresenceList(parts).subscriptions}}
    mount(own, b"subscriptions", _tree(subscriptions).children[b"subscriptions"])


def _routes(parts: ClientParts) -> _Routes:
    status, lists, stream, account = PresenceStatus(parts), PresenceList(parts), Sync(parts), Account(parts)
    return {
        b"versions": {"GET": account.versions},
        b"presence/*/status": {"GET": status.get, "PUT": status.put},
        b"presence/list/*": {"GET": lists.get, "POST": lists.post},
        b"sync": {"GET": stream.sync},
        b"events": {"GET": stream.events},
        b"initialSync": {"GET": stream.initial_sync},
        b"account/whoami": {"GET": account.whoami},
        b"capabilities": {"GET": account.capabilities},
        b"pushrules": {"GET": account.push_rules},
        b"pushrules/": {"GET": account.push_rules},
        b"joined_rooms": {"GET": account.joined_rooms},
        b"login": {"GET": account.login_flows},
        b"voip/turnServer": {"GET": account.turn_server},
        b"org.matrix.msc4143/rtc/transports": {"GET": account.rtc_transports},
        b"user/*/filter": {"POST": account.add_filter},
        b"user/*/filter/*": {"GET": account.filter},
        b"user/*/account_data/*": {"GET": account.account_data},
        b"profile/*": {"GET": account.profile},
        b"profile/*/*": {"GET": account.profile},
    }


def _tree(routes: _Routes) -> _Branch:
    top = _Branch()
    for path, methods in routes.items():
        place = top
        for name in path.split(b"/"):
            place = _below(place, name)
        place.methods.update(methods)
    return top


def _below(place: _Branch, name: bytes) -> _Branch:
    if name == _ANY:
        place.any_child = place.any_child or _Branch()
        return place.any_child
    child = place.children.get(name)
    if not isinstance(child, _Branch):
        child = _Branch()
        mount(place, name, child)
    return child
