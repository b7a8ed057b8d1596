"""A homeserver that does what it is told: it answers by a script, sends what it is given, and remembers.

Always true:
- nothing of how requests are signed, checked, written and read is shared with fedpresence's own code; what
  it verifies and what it is believed, another implementation would be too;
- it opens sockets on the given reactor alone, and measures every delay by the given clock;
- it has no users and decides nothing: what is not scripted is answered as any homeserver would.

Source: Matrix server-server API; F:4, F:6, F:7.
"""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from canonicaljson import encode_canonical_json
from twisted.internet.defer import Deferred

from fedpresence.clock import Clock, now_ms, within
from fedpresence.errors import BadRequest
from fedpresence.ids import KeyID, ServerName, parse_server_name
from fedpresence.testing.homeserver import edus as edu
from fedpresence.testing.homeserver.answers import FakeAnswer, Script, Scripted
from fedpresence.testing.homeserver.asking import AddressOf, Asking
from fedpresence.testing.homeserver.edus import Json
from fedpresence.testing.homeserver.orders import FORGERIES, Answered, Forgery, SendOrder
from fedpresence.testing.homeserver.received import (
    KEY_PATH,
    SEND_PATH,
    VERSION_PATH,
    ReceivedRequest,
    txn_id_of,
)
from fedpresence.testing.homeserver.serving import FakeSite, Incoming, server_options
from fedpresence.testing.homeserver.signatures import (
    NO_BODY,
    NotVerified,
    OwnKeys,
    TheirKeys,
    parse_json,
    parse_x_matrix,
    verify_request,
    x_matrix,
)

SEND_TIMEOUT_S = 60.0
KEY_TIMEOUT_S = 10.0
MAX_RECEIVED = 10_000  # requests kept; a test that needs more has forgotten to look


class FakeHomeserver:
    """One homeserver; `certificate` is its private key's file and its certificate's.

    `ca_file` has the authorities that others' certificates must come from, `address_of` the IP address and
    port to dial for a server (LookupError: unknown). What was received is in `received`, in the order in
    which it was judged; clear it as you like.
    """

    push = staticmethod(edu.push)
    presence_of = staticmethod(edu.presence_of)
    poll = staticmethod(edu.poll)
    unpoll = staticmethod(edu.unpoll)
    invite = staticmethod(edu.invite)
    accept = staticmethod(edu.accept)
    deny = staticmethod(edu.deny)
    drop = staticmethod(edu.drop)

    def __init__(
        self,
        server_name: ServerName,
        reactor: Any,
        clock: Clock,
        certificate: tuple[Path, Path],
        *,
        ca_file: Path,
        address_of: AddressOf,
    ) -> None:
        self.server_name = server_name
        self.received: list[ReceivedRequest] = []
        self._reactor = reactor
        self._clock = clock
        self._certificate = certificate
        self._keys = OwnKeys(server_name)
        self._asking = Asking(reactor, clock, ca_file, address_of)
        self._their_keys = TheirKeys(self._fetch_keys, self._now_ms)
        self._next: list[tuple[str, Scripted]] = []
        self._always: dict[str, Scripted] = {}
        self._waiting: list[tuple[Callable[[ReceivedRequest], bool], Deferred[ReceivedRequest]]] = []
        self._txn_ids = itertools.count(1)
        self._site = FakeSite(clock, self._judge)
        self._listening: Any = None
        self._port = 0

    # --- its life --------------------------------------------------------------------------------

    async def start(self, port: int = 0) -> None:
        """Listen on a loopback port; 0 is any that is free. Nothing happens where it listens already."""
        if self._listening is None:
            options = server_options(*self._certificate)
            self._listening = self._reactor.listenSSL(port, self._site, options, interface="127.0.0.1")
            self._port = self._listening.getHost().port

    async def stop(self) -> None:
        """Listen no more, end every connection, give up what is under way. It may start again."""
        listening, self._listening = self._listening, None
        self._asking.stop()
        self._site.abort()
        if listening is not None:
            await listening.stopListening()
            self._site.abort()  # who was let in meanwhile

    @property
    def port(self) -> int:
        """Where it listens, or did last."""
        return self._port

    # --- its keys --------------------------------------------------------------------------------

    @property
    def key_id(self) -> KeyID:
        """Of the key that it signs with."""
        return self._keys.key_id

    @property
    def verify_key(self) -> str:
        """The public half of that key, in unpadded Base64."""
        return self._keys.verify_key

    def rotate_key(self) -> KeyID:
        """Sign with a new key from now on; the old one is published as old. The new one's ID."""
        return self._keys.rotate(self._now_ms())

    def key_object(self, **changes: object) -> Json:
        """What it publishes at `KEY_PATH`, with `changes` made before it is signed: for scripted lies."""
        return self._keys.key_object(self._now_ms(), changes)

    def forget_keys(self) -> None:
        """Ask the others for their keys again."""
        self._their_keys.forget()

    # --- its answers -----------------------------------------------------------------------------

    def answer_next(self, *answers: Scripted, path: str = SEND_PATH) -> None:
        """These answers, one each, to the next requests whose URI begins with `path`."""
        self._next.extend((path, answer) for answer in answers)

    def always(self, answer: Scripted | None, path: str = SEND_PATH) -> None:
        """This answer whenever none of `answer_next` is left; None: what a homeserver would answer.

        Of several paths that fit, the longest counts.
        """
        if answer is None:
            self._always.pop(path, None)
        else:
            self._always[path] = answer

    def follow(self, script: Script) -> None:
        """Take a script in the place of what was told for its path before."""
        self._next = [(path, answer) for path, answer in self._next if path != script.path]
        self.answer_next(*script.next, path=script.path)
        self.always(script.always, script.path)

    # --- what it received ------------------------------------------------------------------------

    @property
    def transactions(self) -> list[ReceivedRequest]:
        """The transactions among what was received and verified."""
        return [each for each in self.received if each.txn_id is not None and each.verified]

    @property
    def edus(self) -> list[Json]:
        """The EDUs of all of them, in order."""
        return [edu for transaction in self.transactions for edu in transaction.edus]

    async def until(
        self, matches: Callable[[ReceivedRequest], bool], timeout_s: float = 10.0
    ) -> ReceivedRequest:
        """The first received request that matches, waited for where there is none; Twisted's TimeoutError."""
        for each in self.received:
            if matches(each):
                return each
        found: Deferred[ReceivedRequest] = Deferred()
        waiting = (matches, found)
        self._waiting.append(waiting)
        try:
            return await within(found, timeout_s, self._clock)
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    # --- what it sends ---------------------------------------------------------------------------

    async def send(
        self,
        destination: ServerName,
        edus: Iterable[object] | None = None,
        *,
        content: object = None,
        txn_id: str | None = None,
        forge: Forgery | None = None,
        claim: ServerName | None = None,
        timeout_s: float = SEND_TIMEOUT_S,
    ) -> Answered:
        """One transaction: `edus` in an ordinary envelope, or `content` as its whole body.

        `txn_id` is a new one where it is left out. `forge` makes it wrong in one way (`Forgery`); with
        `origin`, `claim` is who is claimed to have sent it, the destination itself where it is left out.
        ValueError for both or neither of `edus` and `content`, LookupError for an unknown destination.
        """
        if (edus is None) == (content is None):
            raise ValueError("one of edus and content must be given")
        origin = (claim or destination) if forge == "origin" else self.server_name
        if edus is not None:
            content = self.transaction(edus, origin=origin)
        uri = SEND_PATH + quote(txn_id or f"fake{self._now_ms()}-{next(self._txn_ids)}", safe="")
        return await self.request(
            destination, "PUT", uri, content, forge=forge, claim=claim, timeout_s=timeout_s
        )

    async def obey(self, order: SendOrder) -> Answered:
        """Send what an order says."""
        return await self.send(
            order.to,
            order.edus,
            content=order.content,
            txn_id=order.txn_id,
            forge=order.forge,
            claim=order.claim,
        )

    async def request(
        self,
        destination: ServerName,
        method: str,
        uri: str,
        content: object = NO_BODY,
        *,
        forge: Forgery | None = None,
        claim: ServerName | None = None,
        timeout_s: float = SEND_TIMEOUT_S,
    ) -> Answered:
        """Any signed request; `content` NO_BODY has no body. LookupError for an unknown destination."""
        if forge is not None and forge not in FORGERIES:
            raise ValueError(f"forge: {forge!r} is none of {', '.join(FORGERIES)}")
        headers: dict[str, str] = {}
        if forge != "missing":
            headers["Authorization"] = self._authorization(destination, method, uri, content, forge, claim)
        body: bytes | None = None
        if content is not NO_BODY:
            headers["Content-Type"] = "application/json"
            body = encode_canonical_json(_changed(content) if forge == "body" else content)
        return await self._asking.ask(destination, method, uri, headers, body, timeout_s)

    def transaction(self, edus: Iterable[object], **changes: object) -> Json:
        """The ordinary envelope of these EDUs, with `changes`."""
        envelope: Json = {
            "origin": self.server_name,
            "origin_server_ts": self._now_ms(),
            "pdus": [],
            "edus": list(edus),
        }
        return envelope | changes

    def _authorization(
        self,
        destination: ServerName,
        method: str,
        uri: str,
        content: object,
        forge: Forgery | None,
        claim: ServerName | None,
    ) -> str:
        origin = (claim or destination) if forge == "origin" else self.server_name
        named = f"not-{destination}" if forge == "destination" else destination
        signed_uri = f"{uri}#" if forge == "signature" else uri
        key_id = f"{self.key_id}_unpublished" if forge == "key_id" else self.key_id
        return x_matrix(origin, named, key_id, self._keys.sign(method, signed_uri, origin, named, content))

    # --- what it does with a request -------------------------------------------------------------

    async def _judge(self, incoming: Incoming) -> FakeAnswer:
        received = await self._examined(incoming)
        self.received.append(received)
        if len(self.received) > MAX_RECEIVED:
            del self.received[0]
        try:
            return self._scripted(received)
        finally:
            self._tell_waiting(received)

    def _tell_waiting(self, received: ReceivedRequest) -> None:
        for waiting in list(self._waiting):
            matches, found = waiting
            if matches(received):
                self._waiting.remove(waiting)
                found.callback(received)

    async def _examined(self, incoming: Incoming) -> ReceivedRequest:
        received_ms = self._now_ms()
        origin: ServerName | None = None
        content: object = NO_BODY
        reason = ""
        try:
            if incoming.body:
                content = parse_json(incoming.body)
            if not incoming.authorizations:
                raise NotVerified("it has no X-Matrix header")
            for header in incoming.authorizations:
                parameters = parse_x_matrix(header)
                origin = _server_name(parameters["origin"])
                if parameters.get("destination", self.server_name) != self.server_name:
                    raise NotVerified("it was signed for another server")
                key = await self._their_keys.verify_key(origin, parameters["key"])
                verify_request(parameters, key, incoming.method, incoming.uri, self.server_name, content)
        except NotVerified as error:
            reason = str(error)
        return ReceivedRequest(
            method=incoming.method,
            uri=incoming.uri,
            origin=origin,
            txn_id=txn_id_of(incoming.method, incoming.uri),
            content=None if content is NO_BODY else content,
            verified=not reason,
            reason=reason,
            received_ms=received_ms,
        )

    def _scripted(self, received: ReceivedRequest) -> FakeAnswer:
        scripted: Scripted | None = None
        for place, (path, answer) in enumerate(self._next):
            if received.uri.startswith(path):
                del self._next[place]
                scripted = answer
                break
        else:
            fitting = [path for path in self._always if received.uri.startswith(path)]
            if fitting:
                scripted = self._always[max(fitting, key=len)]
        if scripted is None:
            return self._ordinary(received)
        return scripted if isinstance(scripted, FakeAnswer) else scripted(received)

    def _ordinary(self, received: ReceivedRequest) -> FakeAnswer:
        path = received.uri.partition("?")[0]
        if received.method == "GET" and (path == KEY_PATH or path.startswith(f"{KEY_PATH}/")):
            return FakeAnswer(body=self.key_object())
        if received.method == "GET" and path == VERSION_PATH:
            return FakeAnswer(body={"server": {"name": "FakeHomeserver", "version": "1"}})
        if received.txn_id is None:
            return FakeAnswer(404)
        if not received.verified:
            return FakeAnswer(401, {"errcode": "M_UNAUTHORIZED", "error": received.reason})
        return FakeAnswer()

    async def _fetch_keys(self, server_name: ServerName) -> object:
        try:
            answered = await self._asking.ask(server_name, "GET", KEY_PATH, {}, None, KEY_TIMEOUT_S)
        except LookupError as error:
            raise NotVerified(f"nobody knows where {server_name} is") from error
        if answered.status != 200:
            raise NotVerified(f"{server_name} gave no keys: {answered.reason or answered.status}")
        return answered.body

    def _now_ms(self) -> int:
        return now_ms(self._clock)


def _server_name(text: str) -> ServerName:
    try:
        return parse_server_name(text)
    except BadRequest as error:
        raise NotVerified("its origin is no server name") from error


def _changed(content: object) -> object:
    """Another content than what was signed."""
    if isinstance(content, dict):
        return content | {"changed_after_it_was_signed": True}
    return [content]
