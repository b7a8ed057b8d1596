"""Servers that sign for themselves: the other side of every inbound test."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from signedjson.key import generate_signing_key
from signedjson.sign import sign_json
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from fedpresence.counters import NullCounters
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.inbound.keyfetch import KeyFetcher
from fedpresence.inbound.keyring import KeyRing
from fedpresence.wire.json import encode_canonical
from fedpresence.wire.signing import Identity
from tests.http_wire import request

HERE = ServerName("here.test")
THERE = ServerName("there.test")
ELSEWHERE = ServerName("elsewhere.test")
NOTARY = ServerName("notary.test")
NOW_S = 1_700_000_000
NOW_MS = NOW_S * 1000
DAY_MS = 86_400_000
KEY_PATH = "/_matrix/key/v2/server"
SEND = "/_matrix/federation/v1/send/"


def an_identity(server_name: ServerName = THERE, version: str = "1") -> Identity:
    """A server with one fresh key."""
    return Identity(server_name, [generate_signing_key(version)])


def a_key_object(identity: Identity, now_ms: int = NOW_MS, **changes: object) -> dict[str, object]:
    """Its key object; with changes it is signed anew."""
    obj = dict(identity.key_object(now_ms))
    if changes:
        obj |= changes
        del obj["signatures"]
        for key in identity._signing_keys.values():
            obj = sign_json(obj, identity.server_name, key)
    return obj


def vouched(obj: dict[str, object], notary: Identity) -> bytes:
    """What a notary answers about that key object."""
    for key in notary._signing_keys.values():
        obj = sign_json(dict(obj), notary.server_name, key)
    return encode_canonical({"server_keys": [obj]})


@dataclass
class Network:
    """Answers fetches, at once or when told; `asked` is every question in order."""

    answers: dict[ServerName, Callable[[str], bytes]] = field(default_factory=dict)
    asked: list[tuple[ServerName, str]] = field(default_factory=list)
    slow: bool = False
    pending: list[Deferred[bytes]] = field(default_factory=list)

    def publish(self, identity: Identity, **changes: object) -> None:
        """From now on that server answers with its key object."""
        data = encode_canonical(a_key_object(identity, NOW_MS, **changes))
        self.answers[identity.server_name] = lambda _path: data

    def fetch(self, server_name: ServerName, path: str) -> Deferred[bytes]:
        """As outbound provides it."""
        self.asked.append((server_name, path))
        if self.slow:
            later: Deferred[bytes] = Deferred()
            self.pending.append(later)
            return later
        return self.answer(server_name, path)

    def answer(self, server_name: ServerName, path: str = KEY_PATH) -> Deferred[bytes]:
        """The answer of this moment."""
        answer = self.answers.get(server_name)
        if answer is None:
            failed: Deferred[bytes] = Deferred()
            failed.errback(DeliveryFailed(server_name, "connection refused"))
            return failed
        return succeed(answer(path))


@dataclass
class Shelf:
    """A store of keys."""

    rows: dict[ServerName, tuple[bytes, int]] = field(default_factory=dict)

    def load_keys(self) -> Deferred[list[tuple[ServerName, bytes, int]]]:
        """All of them."""
        return succeed([(name, data, at_ms) for name, (data, at_ms) in self.rows.items()])

    def save_keys(self, server_name: ServerName, key_object: bytes, fetched_ms: int) -> Deferred[None]:
        """One more."""
        self.rows[server_name] = (key_object, fetched_ms)
        return succeed(None)


@dataclass
class Tally:
    """Counters that remember."""

    counts: dict[tuple[str, ...], int] = field(default_factory=dict)

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """So many more."""
        key = (name, *labels.values())
        self.counts[key] = self.counts.get(key, 0) + amount


@dataclass
class Ring:
    """A key ring with everything around it within reach."""

    identity: Identity = field(default_factory=lambda: an_identity(HERE))
    network: Network = field(default_factory=Network)
    shelf: Shelf = field(default_factory=Shelf)
    clock: Clock = field(default_factory=Clock)
    notaries: tuple[ServerName, ...] = ()

    def __post_init__(self) -> None:
        """The clock shows a plausible year."""
        if self.clock.seconds() == 0:
            self.clock.advance(NOW_S)
        self.keys = KeyRing(
            self.identity,
            KeyFetcher(self.network.fetch, self.clock, self.notaries),
            self.shelf,
            self.clock,
            Random(1),
            NullCounters(),
        )

    def passes(self, ms: float) -> None:
        """Time passes."""
        self.clock.advance(ms / 1000)


def a_transaction(origin: ServerName = THERE, *edus: object) -> dict[str, object]:
    """The body of a `/send`."""
    return {"origin": origin, "origin_server_ts": NOW_MS, "pdus": [], "edus": list(edus)}


def a_send(
    identity: Identity,
    txn_id: str = "1",
    content: object | None = None,
    change: Callable[[str], str] = lambda header: header,
) -> bytes:
    """A signed transaction as bytes; `change` spoils its Authorization header."""
    content = a_transaction(identity.server_name) if content is None else content
    uri = SEND + txn_id
    header = identity.authorization("PUT", uri, HERE, content)
    body = json.dumps(content).encode()
    return request("PUT", uri, body, "Authorization: " + change(header))


def an_invite(observer: str = "@carol:there.test", observed: str = "@alice:here.test") -> dict[str, object]:
    """An `m.presence_invite`."""
    return {
        "edu_type": "m.presence_invite",
        "content": {"observer_user": observer, "observed_user": observed},
    }


def as_json(data: bytes) -> dict[str, object]:
    """A JSON object."""
    value = json.loads(data)
    assert isinstance(value, dict)
    return value
