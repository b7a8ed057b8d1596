"""What of the presence section a sync asks for, and filters that are kept in their own ID.

Always true: a filter ID that we gave out means the same after a restart, because it *is* the filter;
an ID that is not ours filters nothing, for old clients carry IDs of other servers along.

Source: Matrix client-server API, "Filtering" (EventFilter); P:13.
"""

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache

from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.wire.json import decode_json

NO_FILTER_ID = "0"  # what stands for a filter that filters nothing here
MAX_ID_CHARACTERS = 4096  # a request line has 16384 bytes, and the ID is not alone in it
_MAX_FILTER_BYTES = 65_536  # unpacked: no more than any client's body
_ROUND_TRIP_CHARACTERS = 1024  # longer filters keep only the part that we obey
# Nearly all that clients send are shorter. Longer ones are read again each time: each can hold thousands of
# words, and a thousand of them, all of one user, took 300 MB.
_REMEMBERED_CHARACTERS = 512
_PREFIX = "f"  # no ID may begin with a brace


@dataclass(frozen=True, slots=True)
class PresenceFilter:
    """The `presence` part of a filter. `limit` None: as many as there are; `silent`: none at all."""

    limit: int | None = None
    silent: bool = False
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()

    def admits(self, user_id: UserID) -> bool:
        """Whether events of this user are wanted; a `not_` wins."""
        if self.silent or user_id in self.not_senders:
            return False
        return self.senders is None or user_id in self.senders


EVERYTHING = PresenceFilter()


def decode_filter(body: object) -> PresenceFilter:
    """The presence part of a filter; BadRequest (`M_BAD_JSON`) where it has the wrong types."""
    if not isinstance(body, dict):
        raise BadRequest("M_BAD_JSON", "A filter must be a JSON object")
    part = body.get("presence", {})
    if not isinstance(part, dict):
        raise BadRequest("M_BAD_JSON", "filter.presence must be a JSON object")
    limit = part.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise BadRequest("M_BAD_JSON", "filter.presence.limit must be an integer")
    types, not_types = _words(part, "types"), _words(part, "not_types") or frozenset()
    unwanted = types is not None and not _matches(types)
    return PresenceFilter(
        limit=limit,
        silent=unwanted or _matches(not_types) or (limit is not None and limit <= 0),
        senders=_words(part, "senders"),
        not_senders=_words(part, "not_senders") or frozenset(),
    )


def encode_filter_id(body: object) -> str:
    """An ID that holds the filter; BadRequest where it is no filter or does not fit an ID."""
    decode_filter(body)
    assert isinstance(body, dict)
    kept = _pack(body)
    if len(kept) > _ROUND_TRIP_CHARACTERS:
        kept = _pack({"presence": body["presence"]}) if body.get("presence") else NO_FILTER_ID
    if len(kept) > MAX_ID_CHARACTERS:
        raise BadRequest("M_TOO_LARGE", "The presence part of the filter is too long")
    return kept


def decode_filter_id(filter_id: str) -> dict[str, object]:
    """The filter that an ID holds; an empty one where the ID is not ours."""
    if not filter_id.startswith(_PREFIX) or len(filter_id) > MAX_ID_CHARACTERS:
        return {}
    text = filter_id[len(_PREFIX) :]
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(packed, _MAX_FILTER_BYTES)
        body = decode_json(data) if unpacking.eof else {}
    except (binascii.Error, ValueError, zlib.error, BadRequest):
        return {}
    return body if isinstance(body, dict) else {}


def filter_of(parameter: str) -> PresenceFilter:
    """The parameter `filter` of a sync: an ID, or inline JSON where it begins with a brace."""
    return _remembered(parameter) if len(parameter) <= _REMEMBERED_CHARACTERS else _filter_of(parameter)


def _filter_of(parameter: str) -> PresenceFilter:
    if parameter.startswith("{"):
        return decode_filter(decode_json(parameter.encode("utf-8")))
    try:
        return decode_filter(decode_filter_id(parameter))
    except BadRequest:
        return EVERYTHING


_remembered = lru_cache(maxsize=1000)(_filter_of)


def _pack(body: dict[str, object]) -> str:
    if not body:
        return NO_FILTER_ID
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return _PREFIX + base64.urlsafe_b64encode(zlib.compress(data)).decode("ascii").rstrip("=")


def _words(part: dict[str, object], key: str) -> frozenset[str] | None:
    words = part.get(key)
    if words is None:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadRequest("M_BAD_JSON", f"filter.presence.{key} must be an array of strings")
    return frozenset(words)


def _matches(patterns: frozenset[str]) -> bool:
    """Whether `m.presence` is one of these types; `*` stands for any characters, and nothing else does."""
    return any(_is_presence(pattern) for pattern in patterns)


def _is_presence(pattern: str) -> bool:
    first, *others = pattern.split("*")
    if not others:
        return pattern == "m.presence"
    if not "m.presence".startswith(first):
        return False
    at = len(first)
    for part in others[:-1]:
        at = "m.presence".find(part, at)
        if at < 0:
            return False
        at += len(part)
    return "m.presence"[at:].endswith(others[-1])
