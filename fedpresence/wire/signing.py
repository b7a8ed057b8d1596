"""Signatures over canonical JSON, our identity, and the `X-Matrix` header.

Always true:
- a signature is believed only after it was checked against an ed25519 key of the name that it speaks for;
- what we sign is strictly canonical; what we check is taken as it came, floats too (Z-3);
- no error says anything of a key or a signature.

Source: Matrix appendices, "Signing JSON"; server-server API, "Request Authentication" and "Retrieving
server keys" (F:3, F:4, F:6).
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from nacl.bindings import crypto_sign
from nacl.exceptions import CryptoError
from signedjson.key import decode_verify_key_bytes, encode_verify_key_base64, get_verify_key
from signedjson.types import SigningKey, VerifyKey
from unpaddedbase64 import decode_base64, encode_base64

from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import KeyID, ServerName, parse_key_id, parse_server_name
from fedpresence.wire.json import MAX_SAFE_INT, encode_as_received, encode_canonical, encode_string

__all__ = [
    "Identity",
    "ServerKeys",
    "SigningKey",
    "VerifyKey",
    "XMatrix",
    "parse_x_matrix",
    "verify_key_object",
    "verify_request",
]

VALID_FOR_MS = 24 * 3_600_000  # our key object, as Synapse's; rebuilt at half of it, so never below 1 h
MAX_HEADER_BYTES = 4096  # two server names, a key ID and a signature need less than 1 KiB
MAX_KEYS = 64  # in a key object: Z-4
SIGNATURE_BYTES, SIGNATURE_DIGITS = 64, 86  # of ed25519; in Base64 without its padding

_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}(?:==)?\Z")  # 64 bytes, padded or not
# Behind a comma or a space, so it is a parameter; a quoted string cannot hold it, for it has bare quotes.
_SIGNATURE_PARAMETER = re.compile(r'(?<=[, \t])sig="([A-Za-z0-9+/]{86})"')
_ANY_SIGNATURE = "A" * 86
_PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{43}=?\Z")  # 32 bytes

_SCHEME = re.compile(r"[ \t]*X-Matrix +", re.IGNORECASE)
_COMMAS = re.compile(r"[ \t]*(?:,[ \t]*)*+")
_PARAMETER = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*"
    r'(?:"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e\x80-\xff])*+)"'
    # Or a token, with what old senders leave unquoted: colons, Base64, the brackets of an IPv6 address.
    r"|([!#$%&'*+.^_`|~0-9A-Za-z:/=\[\]-]+))"
    rf"({_COMMAS.pattern})"
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class RetiredKey(Protocol):
    """A key that we signed with once: its public half, and the moment it ended."""

    @property
    def key(self) -> str:
        """Unpadded Base64."""

    @property
    def expired_ts(self) -> int:
        """Unix time in ms."""


class Identity:
    """Who we are to other servers: our server name and the keys that prove it.

    The first key signs requests; all of them sign, and stand in, the key object (F:3.4).
    """

    def __init__(
        self,
        server_name: ServerName,
        signing_keys: Sequence[SigningKey],
        old_keys: Mapping[KeyID, RetiredKey] | None = None,
    ) -> None:
        if not signing_keys:
            raise ValueError("an identity needs a signing key")
        self.server_name = server_name
        self._signing_keys = {_key_id_of(key): key for key in signing_keys}
        self.key_id = _key_id_of(signing_keys[0])
        # As libsodium has it: what PyNaCl and signedjson put around a signature, no request needs.
        self._secret_key = bytes(signing_keys[0]) + bytes(signing_keys[0].verify_key)
        self.verify_keys: dict[KeyID, VerifyKey] = {
            key_id: get_verify_key(key) for key_id, key in self._signing_keys.items()
        }
        self._old_keys: dict[KeyID, RetiredKey] = dict(old_keys or {})
        self._key_object: dict[str, object] = {}
        self._made_ms = 0

    def authorization(self, method: str, uri: str, destination: ServerName, content: object | None) -> str:
        """The `Authorization` header of a request; `content` None means that it has no body.

        `uri` is path and query as in the request line. ValueError where `content` is not canonical.
        """
        body = None if content is None else encode_canonical(content)
        return self.authorization_of(method, uri, destination, body)

    def authorization_of(self, method: str, uri: str, destination: ServerName, body: bytes | None) -> str:
        """As `authorization`, for a body that is canonical JSON already: it is not encoded again."""
        signed = _signed_bytes(method, uri, self.server_name, destination, body)
        signature = b2a_base64(crypto_sign(signed, self._secret_key)[:SIGNATURE_BYTES])
        return (
            f'X-Matrix origin="{self.server_name}",destination="{destination}",'
            f'key="{self.key_id}",sig="{signature[:SIGNATURE_DIGITS].decode("ascii")}"'
        )

    def key_object(self, now_ms: int) -> dict[str, object]:
        """The answer to `GET /_matrix/key/v2/server`, signed by every key (F:4.1).

        The same object for up to 12 hours: callers must not change it.
        """
        if not self._key_object or not 0 <= now_ms - self._made_ms < VALID_FOR_MS // 2:
            self._key_object = self._make_key_object(now_ms + VALID_FOR_MS)
            self._made_ms = now_ms
        return self._key_object

    def _make_key_object(self, valid_until_ts: int) -> dict[str, object]:
        unsigned: dict[str, object] = {
            "server_name": self.server_name,
            "verify_keys": {
                key_id: {"key": encode_verify_key_base64(key)} for key_id, key in self.verify_keys.items()
            },
            "old_verify_keys": {
                key_id: {"key": old.key, "expired_ts": old.expired_ts}
                for key_id, old in self._old_keys.items()
                if key_id not in self.verify_keys
            },
            "valid_until_ts": valid_until_ts,
        }
        message = encode_canonical(unsigned)
        signatures = {
            key_id: encode_base64(key.sign(message).signature) for key_id, key in self._signing_keys.items()
        }
        return {**unsigned, "signatures": {self.server_name: signatures}}


@dataclass(frozen=True, slots=True)
class XMatrix:
    """What an `X-Matrix` header claims; nothing of it is proven yet."""

    origin: ServerName
    destination: ServerName | None
    key_id: KeyID
    signature: str


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The keys a server signs with now, by its own signed word."""

    server_name: ServerName
    verify_keys: dict[KeyID, VerifyKey]
    valid_until_ts: int


def parse_x_matrix(header: bytes) -> XMatrix:
    """The claims of one `Authorization` header (F:6.2).

    NotAuthentic where it is no `X-Matrix` header, too long, or a claim is missing or malformed;
    BadRequest 400 where a parameter stands twice.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise NotAuthentic("The Authorization header is too long")
    text = header.decode("latin-1")
    found = _SIGNATURE_PARAMETER.search(text)
    if found is not None:
        signature = found[1]
        same = _signed_anyhow(text[: found.start(1)], text[found.end(1) :])
        if same is not None:
            return XMatrix(same.origin, same.destination, same.key_id, signature)
    return _parse_x_matrix(text)


@lru_cache(maxsize=2_000)  # one server's headers differ in their signatures alone
def _signed_anyhow(before: str, after: str) -> XMatrix | None:
    """The claims of a header with any signature between these; None where that is not its `sig`.

    All signatures are of the same characters and the same length, so one stands for all of them.
    """
    auth = _parse_x_matrix(before + _ANY_SIGNATURE + after)
    return auth if auth.signature == _ANY_SIGNATURE else None


def _parse_x_matrix(text: str) -> XMatrix:
    parameters = _parameters(text)
    try:
        destination = parameters.get("destination")
        auth = XMatrix(
            origin=parse_server_name(parameters.get("origin")),
            destination=None if destination is None else parse_server_name(destination),
            key_id=parse_key_id(parameters.get("key")),
            signature=parameters.get("sig", ""),
        )
    except BadRequest as error:
        raise NotAuthentic(f"The X-Matrix header is wrong: {error.message}") from error
    if not _SIGNATURE.match(auth.signature):
        raise NotAuthentic("The X-Matrix header has no sig of 64 bytes in Base64")
    return auth


def verify_request(
    auth: XMatrix,
    verify_key: VerifyKey,
    *,
    method: str,
    uri: str,
    destination: ServerName,
    content: object | None,
    body: bytes | None = None,
) -> None:
    """Return only where the request was signed with the key that `auth` names.

    `destination` is our own name; `uri` is the request line's, untouched; `content` is the body as it was
    decoded, None where there was none; `body` is the bytes that `content` was decoded from. NotAuthentic
    otherwise.
    """
    if auth.destination is not None and auth.destination != destination:
        raise NotAuthentic("The request is for another server")
    try:
        is_signed = False
        for form in _forms(content, body):
            signed = _signed_bytes(method, uri, auth.origin, destination, form)
            if _is_signed(signed, auth.signature, verify_key):
                is_signed = True
                break
    except ValueError as error:
        raise NotAuthentic("The request cannot be written as canonical JSON") from error
    if not is_signed:
        raise NotAuthentic("The signature of the request is wrong")


def _forms(content: object | None, body: bytes | None) -> Iterator[bytes | None]:
    """The bytes that may have been signed as `content`.

    First the body as it came: Synapse and we send the canonical JSON that was signed, and then nothing need
    be encoded again. A signature over it speaks for `content` and for nothing else: `body` is one whole JSON
    value, for it was decoded, so no part of it can pass for what `_signed_bytes` puts around it.
    """
    if content is None:
        yield None
        return
    # Keys out of order: not canonical, and a check in vain costs more than the encoding.
    may_be_canonical = isinstance(content, dict) and list(content) == sorted(content)
    if may_be_canonical and body is not None:
        yield body
    canonical = encode_as_received(content)
    if canonical != body or not may_be_canonical:
        yield canonical


def verify_key_object(obj: object, server_name: ServerName) -> ServerKeys:
    """The keys of `server_name`, from its key object (F:K-1); NotAuthentic where it does not prove them.

    Keys of other algorithms and malformed ones are passed over; old keys too, no request is signed with
    them (F:K-3). How long they hold is the caller's to decide: `valid_until_ts` is as it came, at most
    2^53 - 1.
    """
    if not isinstance(obj, dict) or obj.get("server_name") != server_name:
        raise NotAuthentic("The key object is not that of the server")
    verify_keys = obj.get("verify_keys")
    valid_until_ts = obj.get("valid_until_ts")
    if not isinstance(valid_until_ts, int) or isinstance(valid_until_ts, bool):
        raise NotAuthentic("The key object has no valid_until_ts")
    if not isinstance(verify_keys, dict) or len(verify_keys) > MAX_KEYS:
        raise NotAuthentic(f"The key object must have verify_keys, at most {MAX_KEYS}")
    keys = dict(_decode_keys(verify_keys))
    all_signatures = obj.get("signatures")
    signatures = all_signatures.get(server_name) if isinstance(all_signatures, dict) else None
    if not isinstance(signatures, dict):
        raise NotAuthentic("The key object is not signed by its server")
    try:
        signed = encode_as_received({k: v for k, v in obj.items() if k not in ("signatures", "unsigned")})
    except ValueError as error:
        raise NotAuthentic("The key object cannot be written as canonical JSON") from error
    if not any(_is_signed(signed, signatures.get(key_id), key) for key_id, key in keys.items()):
        raise NotAuthentic("The key object is not signed with one of its own keys")
    return ServerKeys(server_name, keys, min(valid_until_ts, MAX_SAFE_INT))


def _signed_bytes(
    method: str, uri: str, origin: ServerName, destination: ServerName, body: bytes | None
) -> bytes:
    """Canonical JSON of the request object (F:6.1): `content` sorts first, `uri` last."""
    content = b"" if body is None else b'"content":%b,' % body
    return b'{%b%b,"uri":%b}' % (content, _named(method, origin, destination), encode_string(uri))


@lru_cache(maxsize=1_000)
def _named(method: str, origin: ServerName, destination: ServerName) -> bytes:
    """What is the same in every request from one server to another."""
    return encode_canonical({"destination": destination, "method": method, "origin": origin})[1:-1]


def _is_signed(message: bytes, signature: object, verify_key: VerifyKey) -> bool:
    if not isinstance(signature, str) or not _SIGNATURE.match(signature):
        return False
    try:
        verify_key.verify(message, a2b_base64(signature[:86] + "=="))
    except CryptoError:
        return False
    return True


def _key_id_of(key: SigningKey) -> KeyID:
    return parse_key_id(f"{key.alg}:{key.version}")


def _decode_keys(verify_keys: dict[str, object]) -> list[tuple[KeyID, VerifyKey]]:
    found = []
    for text, entry in verify_keys.items():
        encoded = entry.get("key") if isinstance(entry, dict) else None
        if not isinstance(encoded, str) or not _PUBLIC_KEY.match(encoded):
            continue
        try:
            key_id = parse_key_id(text)
        except BadRequest:
            continue
        found.append((key_id, decode_verify_key_bytes(key_id, decode_base64(encoded))))
    return found


def _parameters(text: str) -> dict[str, str]:
    """The parameters of an `X-Matrix` header by their lower-case names, unknown ones too (F:6.2)."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise NotAuthentic("The Authorization header is not of the scheme X-Matrix")
    parameters: dict[str, str] = {}
    commas = _COMMAS.match(text, scheme.end())
    position = commas.end() if commas else scheme.end()
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise NotAuthentic("The X-Matrix header cannot be read")
        name, quoted, unquoted, between = parameter.groups()
        key = name.lower()
        if key in parameters:
            raise BadRequest("M_UNAUTHORIZED", "A parameter of the X-Matrix header stands twice")
        if quoted is None:
            parameters[key] = unquoted
        else:
            parameters[key] = _ESCAPE.sub(r"\1", quoted) if "\\" in quoted else quoted
        position = parameter.end()
        if position < len(text) and "," not in between:
            raise NotAuthentic("The X-Matrix header cannot be read")
    return parameters
