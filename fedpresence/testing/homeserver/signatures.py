"""Signatures as another homeserver makes and checks them: `signedjson` alone, none of our own code.

Always true: what is verified here, an implementation that shares nothing with ours would verify; a check
of a key goes back to what its server published.

Source: Matrix server-server API, Request Authentication and Retrieving server keys; F:4, F:6.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from signedjson.key import (
    decode_verify_key_bytes,
    encode_verify_key_base64,
    generate_signing_key,
    get_verify_key,
)
from signedjson.sign import SignatureVerifyException, sign_json, verify_signed_json
from signedjson.types import SigningKey, VerifyKey
from unpaddedbase64 import decode_base64

from fedpresence.ids import KeyID, ServerName
from fedpresence.testing.homeserver.edus import Json

DAY_MS = 86_400_000
NO_BODY = object()
"""The content of a request that has none: JSON's null is a content."""

_PARAMETER = re.compile(
    r"""[ \t]*(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+)[ \t]*=[ \t]*
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]*))[ \t]*(?:,|$)""",
    re.VERBOSE,
)


class NotVerified(Exception):
    """Why a request is not believed."""


@dataclass(frozen=True, slots=True)
class RetiredKey:
    """A key that signs no more, and since when."""

    key: str
    expired_ts: int


class OwnKeys:
    """A server's signing key and those it had before."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name
        self._count = 1
        self.signing_key: SigningKey = generate_signing_key("f1")
        self.retired: dict[KeyID, RetiredKey] = {}

    @property
    def key_id(self) -> KeyID:
        """Of the key that signs."""
        return KeyID(f"{self.signing_key.alg}:{self.signing_key.version}")

    @property
    def verify_key(self) -> str:
        """Its public half, in unpadded Base64."""
        encoded: str = encode_verify_key_base64(get_verify_key(self.signing_key))
        return encoded

    def rotate(self, now_ms: int) -> KeyID:
        """A new key signs; the old one is published as old. The new one's ID."""
        self.retired[self.key_id] = RetiredKey(self.verify_key, now_ms)
        self._count += 1
        self.signing_key = generate_signing_key(f"f{self._count}")
        return self.key_id

    def key_object(self, now_ms: int, changes: Mapping[str, object]) -> Json:
        """What `GET /_matrix/key/v2/server` answers, with `changes` made before it is signed."""
        published: Json = {
            "server_name": self._server_name,
            "verify_keys": {self.key_id: {"key": self.verify_key}},
            "old_verify_keys": {
                key_id: {"key": old.key, "expired_ts": old.expired_ts} for key_id, old in self.retired.items()
            },
            "valid_until_ts": now_ms + DAY_MS,
        }
        signed: Json = sign_json(published | dict(changes), self._server_name, self.signing_key)
        return signed

    def sign(self, method: str, uri: str, origin: str, destination: str, content: object) -> str:
        """The signature of a request; `content` NO_BODY where it has no body."""
        request = request_object(method, uri, origin, destination, content)
        signature: str = sign_json(request, origin, self.signing_key)["signatures"][origin][self.key_id]
        return signature


class TheirKeys:
    """Other servers' verify keys: asked for once, and again for an unknown key ID or when they expire.

    `fetch` gives a server's key object, parsed; NotVerified where it cannot.
    """

    def __init__(self, fetch: Callable[[ServerName], Awaitable[object]], now_ms: Callable[[], int]) -> None:
        self._fetch = fetch
        self._now_ms = now_ms
        self._known: dict[ServerName, tuple[int, dict[str, VerifyKey]]] = {}

    async def verify_key(self, server_name: ServerName, key_id: str) -> VerifyKey:
        """The key; NotVerified where the server does not publish it, or not any more."""
        valid_until_ms, keys = self._known.get(server_name, (0, {}))
        if key_id not in keys or valid_until_ms < self._now_ms():
            valid_until_ms, keys = _published(await self._fetch(server_name), server_name)
            self._known[server_name] = (valid_until_ms, keys)
        if key_id not in keys:
            raise NotVerified(f"{server_name} does not publish the key {key_id}")
        if valid_until_ms < self._now_ms():
            raise NotVerified(f"the keys of {server_name} have expired")
        return keys[key_id]

    def forget(self) -> None:
        """Ask everybody again."""
        self._known.clear()


def request_object(method: str, uri: str, origin: str, destination: str, content: object) -> Json:
    """What is signed of a request (F:6.1)."""
    request: Json = {"method": method, "uri": uri, "origin": origin, "destination": destination}
    if content is not NO_BODY:
        request["content"] = content
    return request


def x_matrix(origin: str, destination: str, key_id: str, sig: str) -> str:
    """The `Authorization` header.

    >>> x_matrix("a.test", "b.test", "ed25519:1", "abc")
    'X-Matrix origin="a.test",destination="b.test",key="ed25519:1",sig="abc"'
    """
    return f'X-Matrix origin="{origin}",destination="{destination}",key="{key_id}",sig="{sig}"'


def parse_x_matrix(header: str) -> dict[str, str]:
    """The header's parameters by their lower-case names; NotVerified where it cannot be read.

    >>> parse_x_matrix('X-Matrix  Origin=a.test, key="ed25519:1" ,sig="x"')
    {'origin': 'a.test', 'key': 'ed25519:1', 'sig': 'x'}
    """
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "x-matrix":
        raise NotVerified("its Authorization is not X-Matrix")
    parameters: dict[str, str] = {}
    rest = rest.strip(" \t")
    place = 0
    while place < len(rest):
        match = _PARAMETER.match(rest, place)
        if match is None:
            raise NotVerified("its X-Matrix header cannot be read")
        place = match.end()
        value = match["bare"] if match["quoted"] is None else re.sub(r"\\(.)", r"\1", match["quoted"])
        name = match["name"].lower()
        if name in parameters:
            raise NotVerified(f"its X-Matrix header has {name} twice")
        parameters[name] = value
    missing = [name for name in ("origin", "key", "sig") if not parameters.get(name)]
    if missing:
        raise NotVerified(f"its X-Matrix header has no {missing[0]}")
    return parameters


def verify_request(
    parameters: Mapping[str, str], verify_key: VerifyKey, method: str, uri: str, us: str, content: object
) -> None:
    """NotVerified where the signature is not that of this request to `us`."""
    origin = parameters["origin"]
    signed = request_object(method, uri, origin, us, content)
    signed["signatures"] = {origin: {parameters["key"]: parameters["sig"]}}
    try:
        verify_signed_json(signed, origin, verify_key)
    except (SignatureVerifyException, ValueError) as error:
        raise NotVerified("its signature is wrong") from error


def parse_json(body: bytes) -> object:
    """The body; NotVerified where it is no JSON."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotVerified("its body is not JSON") from error
    return value


def _published(obj: object, server_name: str) -> tuple[int, dict[str, VerifyKey]]:
    """Until when a key object holds, and its keys; NotVerified where it is no good (F:K-1)."""
    if not isinstance(obj, dict):
        raise NotVerified(f"what {server_name} publishes is no key object")
    try:
        keys: dict[str, VerifyKey] = {
            key_id: decode_verify_key_bytes(key_id, decode_base64(published["key"]))
            for key_id, published in obj["verify_keys"].items()
            if key_id.startswith("ed25519:")
        }
        valid_until_ms = int(obj["valid_until_ts"])
        signed_by = obj["signatures"][server_name]
        for key_id in [key_id for key_id in keys if key_id in signed_by]:
            verify_signed_json(obj, server_name, keys[key_id])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotVerified(f"what {server_name} publishes is no key object") from error
    except SignatureVerifyException as error:
        raise NotVerified(f"{server_name} did not sign its own keys") from error
    if obj["server_name"] != server_name or not any(key_id in signed_by for key_id in keys):
        raise NotVerified(f"{server_name} did not sign its own keys")
    return valid_until_ms, keys
