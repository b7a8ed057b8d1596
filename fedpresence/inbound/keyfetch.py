"""Another server's keys, as it says itself or as a notary says that it said.

Always true: what comes out was signed by the server itself with one of the keys it names (F:K-1), and by
the notary too where one was asked; an answer is at most 64 KiB and 64 keys (Z-4).

Source: server-server API, "Retrieving server keys" (F:4.1, F:4.3).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from signedjson.sign import SignatureVerifyException, verify_signed_json
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.defer import ensureDeferred

from fedpresence.clock import Clock, within
from fedpresence.errors import DeliveryFailed, NotAuthentic
from fedpresence.ids import ServerName
from fedpresence.wire.json import decode_json, encode_canonical
from fedpresence.wire.signing import ServerKeys, verify_key_object

Fetch = Callable[[ServerName, str], Awaitable[bytes]]
"""An unsigned HTTPS GET of a path through discovery; the body of a 200, else DeliveryFailed."""

MAX_ANSWER_BYTES = 65_536  # Z-4
FETCH_TIMEOUT_S = 10.0  # one question to one server


@dataclass(frozen=True, slots=True)
class Fetched:
    """Keys with their proof: `key_object` is what was signed, canonical; None where it cannot be kept."""

    keys: ServerKeys
    key_object: bytes | None


class KeyFetcher:
    """Asks servers and notaries for keys. It decides nothing: when and how often is the key ring's."""

    def __init__(self, fetch: Fetch, clock: Clock, notaries: Sequence[ServerName] = ()) -> None:
        self._fetch = fetch
        self._clock = clock
        self.notaries = tuple(notaries)

    async def from_server(self, server_name: ServerName) -> Fetched:
        """The server's own answer; DeliveryFailed or BadRequest where there is no believable one."""
        answer = await self._get(server_name, "/_matrix/key/v2/server")
        return _checked(answer, server_name)

    async def from_notary(
        self, server_name: ServerName, notary: ServerKeys, minimum_valid_until_ts: int
    ) -> Fetched:
        """What `notary` has of the server; DeliveryFailed or BadRequest where that is nothing believable."""
        path = (
            f"/_matrix/key/v2/query/{quote(server_name, safe='')}"
            f"?minimum_valid_until_ts={minimum_valid_until_ts}"
        )
        answer = await self._get(notary.server_name, path)
        found = answer.get("server_keys") if isinstance(answer, dict) else None
        best: Fetched | None = None
        for entry in found if isinstance(found, list) else ():
            try:
                _check_notary(entry, notary)
                fetched = _checked(entry, server_name)
            except NotAuthentic:
                continue
            if best is None or fetched.keys.valid_until_ts > best.keys.valid_until_ts:
                best = fetched
        if best is None:
            raise NotAuthentic(f"{notary.server_name} vouches for no keys of {server_name}")
        return best

    async def _get(self, server_name: ServerName, path: str) -> object:
        asked = ensureDeferred(_awaited(self._fetch(server_name, path)))
        within(asked, FETCH_TIMEOUT_S, self._clock)
        try:
            data = await asked
        except DeferredTimeout:
            raise DeliveryFailed(server_name, "no answer in time") from None
        if len(data) > MAX_ANSWER_BYTES:
            raise DeliveryFailed(server_name, "the answer is too long")
        return decode_json(data)


async def _awaited(answer: Awaitable[bytes]) -> bytes:
    return await answer


def _checked(obj: object, server_name: ServerName) -> Fetched:
    keys = verify_key_object(obj, server_name)
    try:
        key_object = encode_canonical(obj)
    except ValueError:
        key_object = None  # floats in keys that we do not read: good for now, fetched again after a restart
    return Fetched(keys, key_object)


def _check_notary(obj: object, notary: ServerKeys) -> None:
    """Return where one of the notary's keys signed `obj`; NotAuthentic otherwise."""
    if not isinstance(obj, dict):
        raise NotAuthentic("The notary's answer is no list of key objects")
    signatures = obj.get("signatures")
    given = signatures.get(notary.server_name) if isinstance(signatures, dict) else None
    for key_id, verify_key in notary.verify_keys.items():
        if isinstance(given, dict) and isinstance(given.get(key_id), str):
            try:
                verify_signed_json(obj, notary.server_name, verify_key)
            except (SignatureVerifyException, ValueError, RecursionError):
                continue
            return
    raise NotAuthentic("The notary did not sign its answer")
