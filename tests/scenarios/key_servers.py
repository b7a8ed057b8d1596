"""Key servers that cannot be believed, each in its own way.

Always true: each would be believed if one check were missing; what is signed with the key is honest.
"""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from signedjson.key import generate_signing_key

from tests.scenarios.peer import Peer, Reply, verify_keys


def _json(value: object, **reply: Any) -> Reply:
    return Reply([json.dumps(value).encode()], **reply)


def _of_another_name(peer: Peer) -> Reply:
    return _json(peer.key_object(server_name="there.test"))


def _unsigned(peer: Peer) -> Reply:
    return _json({name: value for name, value in peer.key_object().items() if name != "signatures"})


def _signed_by_a_stranger(peer: Peer) -> Reply:
    return _json(peer.key_object(generate_signing_key("x1")))


def _expired(peer: Peer) -> Reply:
    return _json(peer.key_object(valid_until_ts=int(time.time() * 1000) - 1000))


def _retired(peer: Peer) -> Reply:
    other = generate_signing_key("x1")
    own = {
        key_id: entry | {"expired_ts": int(time.time() * 1000) + 10**9}
        for key_id, entry in verify_keys(peer.signing_key).items()
    }
    return _json(peer.key_object(other, verify_keys=verify_keys(other), old_verify_keys=own))


def _too_many(peer: Peer) -> Reply:
    key = verify_keys(peer.signing_key)["ed25519:p1"]
    return _json(peer.key_object(verify_keys={"ed25519:p1": key} | {f"ed25519:k{n}": key for n in range(64)}))


def _unknown_algorithm(peer: Peer) -> Reply:
    key = verify_keys(peer.signing_key)["ed25519:p1"]
    return _json(peer.key_object(verify_keys={"ed448:p1": key, "curve25519:p1": key}))


def _endless(peer: Peer) -> Reply:
    def pieces() -> Iterable[bytes]:
        yield b'{"a":"'
        while not peer.closing.is_set():
            yield b"x" * 65_536

    return Reply(pieces())


def _dripping(peer: Peer) -> Reply:
    return Reply((bytes([byte]) for byte in json.dumps(peer.key_object()).encode()), pause_s=1.0)


KEY_SERVERS: dict[str, Callable[[Peer], Reply | None]] = {
    "garbage.test": lambda peer: Reply([b"<html>\x00\xff</html>"]),
    "deep.test": lambda peer: Reply([b"[" * 60_000]),
    "nan.test": lambda peer: Reply([b'{"valid_until_ts":NaN}']),
    "list.test": lambda peer: _json([peer.key_object()]),
    "othername.test": _of_another_name,
    "unsigned.test": _unsigned,
    "stranger.test": _signed_by_a_stranger,
    "expired.test": _expired,
    "float.test": lambda peer: _json(peer.key_object(valid_until_ts=time.time() * 1000 + 1e9)),
    "text.test": lambda peer: _json(peer.key_object(valid_until_ts="9999999999999")),
    "retired.test": _retired,
    "manykeys.test": _too_many,
    "algorithm.test": _unknown_algorithm,
    "large.test": lambda peer: _json(peer.key_object(padding="x" * 65_536)),
    "endless.test": _endless,
    "error.test": lambda peer: _json(peer.key_object(), status=500),
    "redirect.test": lambda peer: Reply(
        [b""], 302, {"Location": "https://there.test/_matrix/key/v2/server", "Content-Length": "0"}
    ),
    "gzip.test": lambda peer: Reply([b"\x1f\x8b\x08" + bytes(100)], headers={"Content-Encoding": "gzip"}),
    "silent.test": lambda peer: None,
    "drip.test": _dripping,
}
