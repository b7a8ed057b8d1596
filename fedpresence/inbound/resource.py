"""What other servers may ask of us over HTTP.

Always true:
- nothing of a transaction is acted on before its signature is good (Z-1);
- the 200 of a transaction comes after the engine took it and what must not be lost is committed (F:R-7);
- keys are given to everybody, everything else of the federation API is a transaction or 404.

Source: F:4.1, F:4.3, F:6.3, F:7.1, F:8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import SEEK_END

from twisted.web.resource import Resource

from fedpresence import __version__
from fedpresence.admission import RequestHead
from fedpresence.clock import Clock, now_ms
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName
from fedpresence.inbound.gate import Gate
from fedpresence.inbound.origin import Credentials
from fedpresence.inbound.transactions import Transactions
from fedpresence.intake import grounds_of
from fedpresence.request import Request
from fedpresence.web import Handler, JsonResource, Unknown, mount, node
from fedpresence.wire.json import decode_json
from fedpresence.wire.signing import Identity

MAX_TXN_ID_BYTES = 255  # ours: the specification has no limit, and we keep them for a day


@dataclass(frozen=True, slots=True)
class Federation:
    """What the federation API is made of.

    `on_authentic` hears of every origin that proved itself, ourselves included (X-8, Z-23).
    """

    identity: Identity
    gate: Gate
    transactions: Transactions
    clock: Clock
    on_authentic: Callable[[ServerName], None]
    well_known: str | None = None


def add_federation(root: Resource, federation: Federation) -> None:
    """Hang the federation API, our keys and, where wanted, `/.well-known` under `root`."""
    v1 = node(root, b"_matrix", b"federation", b"v1")
    mount(v1, b"send", Below(lambda txn_id: Slashed({"PUT": _Send(federation, txn_id).answer}), slash=False))
    mount(v1, b"version", JsonResource({"GET": _version}))
    keys = _Keys(federation.identity, federation.clock)
    key_v2 = node(root, b"_matrix", b"key", b"v2")
    mount(key_v2, b"server", Below(lambda _: JsonResource({"GET": keys.ours}), {"GET": keys.ours}))
    mount(
        key_v2,
        b"query",
        Below(
            lambda name: Below(lambda _: keys.of(name), keys.table(name)), {"POST": keys.asked}, slash=False
        ),
    )
    if federation.well_known is not None:
        delegated = federation.well_known
        mount(node(root, b".well-known", b"matrix"), b"server", JsonResource({"GET": _saying(delegated)}))


class Slashed(JsonResource):
    """A path that is the same with a trailing slash (F:7.1: Synapse up to 0.99.2 sends it)."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Itself for the slash; nothing below."""
        if path == b"" and not request.postpath:
            return self
        return super().getChild(path, request)


class Below(JsonResource):
    """A path that takes one more segment, percent-decoded once; `slash`: that one may be empty."""

    def __init__(
        self,
        below: Callable[[bytes], JsonResource],
        methods: dict[str, Handler] | None = None,
        *,
        slash: bool = True,
    ) -> None:
        super().__init__(methods or {})
        self._known = methods is not None
        self._below = below
        self._slash = slash

    def getChild(self, path: bytes, request: Request) -> Resource:
        """The resource of that segment."""
        return self._below(path) if path or self._slash else Unknown()

    def render(self, request: Request) -> int | bytes:
        """The path itself, where it is one."""
        return super().render(request) if self._known else Unknown().render(request)


class _Send:
    """`PUT /_matrix/federation/v1/send/{txnId}`."""

    def __init__(self, federation: Federation, txn_id: bytes) -> None:
        self._federation = federation
        self._txn_id = txn_id

    async def answer(self, request: Request) -> object:
        """200 once the transaction is taken; every refusal is a BadRequest, counted."""
        gate = self._federation.gate
        credentials = grounds_of(request)
        try:
            if not isinstance(credentials, Credentials):  # a site that does not ask us before the body
                credentials = await gate.credentials(_head_of(request))
            await self._take(request, credentials)
        except BadRequest as error:
            gate.refused(error)
            raise
        return {"pdus": {}}

    async def _take(self, request: Request, credentials: Credentials) -> None:
        federation = self._federation
        uri = _text(request.uri)
        data = request.content.read() if request.content is not None else b""
        body = decode_json(data)
        origin = federation.gate.origins.verify(credentials, method="PUT", uri=uri, content=body, body=data)
        federation.on_authentic(origin)
        if origin == federation.identity.server_name:
            raise BadRequest("M_FORBIDDEN", "This is ourselves", status=403)
        txn_id = _text(self._txn_id)
        if len(self._txn_id) > MAX_TXN_ID_BYTES:
            raise BadRequest("M_INVALID_PARAM", f"txnId is longer than {MAX_TXN_ID_BYTES} bytes")
        await federation.transactions.receive(origin, txn_id, body, len(data))
        federation.gate.taken()


class _Keys:
    """`/_matrix/key/v2`: ours, and as a notary of ourselves alone (F:4.3)."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock

    async def ours(self, _request: Request) -> object:
        """Our key object."""
        return self._identity.key_object(now_ms(self._clock))

    def of(self, name: bytes) -> JsonResource:
        """The old form of the question, with a key ID behind the name."""
        return JsonResource(self.table(name))

    def table(self, name: bytes) -> dict[str, Handler]:
        """What `GET /query/{serverName}` answers."""

        async def answer(_request: Request) -> object:
            return self._list(name == self._identity.server_name.encode("ascii"))

        return {"GET": answer}

    async def asked(self, request: Request) -> object:
        """`POST /query`: our keys if they are asked for; BadRequest 400 where nothing is."""
        body = decode_json(request.content.read() if request.content is not None else b"")
        wanted = body.get("server_keys") if isinstance(body, dict) else None
        if not isinstance(wanted, dict):
            raise BadRequest("M_BAD_JSON", "server_keys must be an object")
        return self._list(self._identity.server_name in wanted)

    def _list(self, ours: bool) -> object:
        # Our signature on it is the origin's and the notary's at once.
        return {"server_keys": [self._identity.key_object(now_ms(self._clock))] if ours else []}


async def _version(_request: Request) -> object:
    return {"server": {"name": "fedpresence", "version": __version__}}


def _saying(delegated: str) -> Handler:
    async def answer(_request: Request) -> object:
        return {"m.server": delegated}

    return answer


def _head_of(request: Request) -> RequestHead:
    """The head of a request whose body is already here: all of it counts as announced."""
    size = 0
    if request.content is not None:
        size = request.content.seek(0, SEEK_END)
        request.content.seek(0)
    return RequestHead(request.method, request.uri, request.requestHeaders, size, request.getClientAddress())


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("M_INVALID_PARAM", "The path is not UTF-8") from None
