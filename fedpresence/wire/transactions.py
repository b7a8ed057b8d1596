"""The body of `PUT /send/{txnId}`: what another server put in, and what we put in.

Always true:
- what we send has less than 100 EDUs, each with at most 50 pushes and less than 65 536 bytes of canonical
  JSON, and no `m.presence` that carries nothing (decision 11);
- a final push and its deny travel together, and an accept is never overtaken by a push (F:X-5);
- of what we receive, only the envelope can be refused as a whole; an EDU is skipped by itself (F:R-3).

Source: server-server API, `PUT /send/{txnId}` (F:7.1, F:7.2); decisions 9 to 11.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fedpresence.engine.events import ReceivedEdu
from fedpresence.engine.outgoing import Composed, Edu, ListEdu, PresenceEdu, Push
from fedpresence.engine.subscription import OwedEdu
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, UserID
from fedpresence.wire.edus import (
    MAX_POLLED,
    Skipped,
    decode_edus,
    encode_edu,
    encode_presence,
    encode_push,
)
from fedpresence.wire.json import MAX_SAFE_INT, encode_string

MAX_PDUS = 50  # received, per transaction: server-server API
MAX_EDUS = 100  # received, per transaction: server-server API
MAX_EDUS_SENT = 99  # decision 11: under 100, some readers count strictly
MAX_PUSHES = 50  # sent, per EDU: E:P-7
MAX_EDU_BYTES = 65_535  # sent: proxies refuse 65 536
MAX_POLL_EDUS = 40  # at most so many places are kept for polls and unpolls, the rest is for what is owed

_EDU_FRAME = len(encode_presence([]))


@dataclass(frozen=True, slots=True)
class ReceivedTransaction:
    """A transaction whose envelope is right: what we understand of it, in order, and the rest counted."""

    origin_server_ts: int
    edus: tuple[ReceivedEdu, ...]
    skipped: tuple[Skipped, ...]
    pdu_count: int
    edu_count: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A transaction in canonical JSON, and what is really in it; the rest waits for the next one."""

    body: bytes
    edu_count: int = 0
    users: tuple[UserID, ...] = ()
    owed: tuple[OwedEdu, ...] = ()
    polls: tuple[UserID, ...] = ()
    unpolls: tuple[UserID, ...] = ()


def decode_transaction(body: object, origin: ServerName) -> ReceivedTransaction:
    """The transaction that `origin` (authenticated) sent.

    BadRequest: 403 `M_FORBIDDEN` where the body names another origin, 400 `M_BAD_JSON` where it is no
    object, `pdus` is not an array of at most 50, `edus` is there and not an array of at most 100, or
    `origin_server_ts` is not an integer within JSON's safe range. Everything else is ignored.
    """
    if not isinstance(body, dict):
        raise BadRequest("M_BAD_JSON", "A transaction is a JSON object")
    if body.get("origin", origin) != origin:
        raise BadRequest("M_FORBIDDEN", "origin is not the server that signed the request", status=403)
    origin_server_ts = body.get("origin_server_ts")
    if not isinstance(origin_server_ts, int) or isinstance(origin_server_ts, bool):
        raise BadRequest("M_BAD_JSON", "origin_server_ts must be an integer")
    if abs(origin_server_ts) > MAX_SAFE_INT:
        raise BadRequest("M_BAD_JSON", "origin_server_ts is out of range")
    pdus = body.get("pdus")
    if not isinstance(pdus, list) or len(pdus) > MAX_PDUS:
        raise BadRequest("M_BAD_JSON", f"pdus must be an array of at most {MAX_PDUS}")
    edus = body.get("edus", [])
    if not isinstance(edus, list) or len(edus) > MAX_EDUS:
        raise BadRequest("M_BAD_JSON", f"edus must be an array of at most {MAX_EDUS}")
    received, skipped = decode_edus(edus, origin)
    return ReceivedTransaction(origin_server_ts, received, skipped, len(pdus), len(edus))


def pack(composed: Composed, origin: ServerName, now_ms: int) -> Packed:
    """As much of `composed` as one transaction takes: what is owed, unpolls and polls, then pushes.

    Where not all that stands before fits, no push goes either: it might overtake its accept.
    """
    if not (composed.before or composed.polls or composed.unpolls):
        return _pushes_alone.pack(composed.pushes, origin, now_ms)
    asking = list(_poll_edus(composed))[:MAX_POLL_EDUS]
    edus: list[bytes] = []
    owed: list[OwedEdu] = []
    complete = True
    for group, of_group in _groups(composed):
        if len(edus) + len(group) > MAX_EDUS_SENT - len(asking):
            complete = False
            break
        edus.extend(encode_edu(edu) for edu in group)
        owed.extend(of_group)
    edus.extend([encode_edu(edu) for edu in asking])
    users: tuple[UserID, ...] = ()
    if complete and composed.pushes:
        encoded, users = _encode_pushes(composed.pushes, MAX_EDUS_SENT - len(edus))
        edus.extend(encoded)
    return Packed(
        _body(edus, origin, now_ms),
        len(edus),
        users=users,
        owed=tuple(owed),
        polls=tuple([user_id for edu in asking for user_id in edu.poll]),
        unpolls=tuple([user_id for edu in asking for user_id in edu.unpoll]),
    )


def _body(edus: list[bytes], origin: ServerName, now_ms: int) -> bytes:
    """The transaction in canonical JSON."""
    return b'{"edus":[%b],"origin":%b,"origin_server_ts":%d,"pdus":[]}' % (
        b",".join(edus),
        _encode_origin(origin),
        now_ms,
    )


@lru_cache(maxsize=1)
def _encode_origin(origin: ServerName) -> bytes:
    return encode_string(origin)


def _groups(composed: Composed) -> Iterator[tuple[list[Edu], list[OwedEdu]]]:
    """What stands before, in parts that must not be torn: a list EDU with the presence in front of it.

    `composed.owed` is in the order of `before`; a list EDU that is not the next owed one is tried once.
    """
    waiting = iter(composed.owed)
    next_owed = next(waiting, None)
    group: list[Edu] = []
    for edu in composed.before:
        match edu:
            case PresenceEdu():
                if edu != PresenceEdu():
                    group.append(edu)
            case ListEdu():
                of_group: list[OwedEdu] = []
                if next_owed is not None and _is_same(edu, next_owed):
                    of_group.append(next_owed)
                    next_owed = next(waiting, None)
                yield [*group, edu], of_group
                group = []
    if group:
        yield group, []


def _is_same(edu: ListEdu, owed: OwedEdu) -> bool:
    return (edu.kind, edu.observer, edu.observed) == (owed.kind, owed.observer, owed.observed)


def _poll_edus(composed: Composed) -> Iterator[PresenceEdu]:
    for unpoll in _by_size(composed.unpolls):
        yield PresenceEdu(unpoll=unpoll)
    for poll in _by_size(composed.polls):
        yield PresenceEdu(poll=poll)


def _by_size(user_ids: tuple[UserID, ...]) -> Iterator[tuple[UserID, ...]]:
    """Lists that fit an EDU: by the number that receivers take, and by their bytes."""
    part: list[UserID] = []
    free = 0
    for user_id in user_ids:
        needed = 6 * len(user_id) + 3
        if part and (len(part) == MAX_POLLED or needed > free):
            yield tuple(part)
            part = []
        if not part:
            free = MAX_EDU_BYTES - _EDU_FRAME - len(b',"unpoll":[]')
        part.append(user_id)
        free -= needed
    if part:
        yield tuple(part)


class _PushesAlone:
    """The transaction that was made last, of pushes and nothing else: many destinations are told the same.

    The ages are part of what is compared, so no older one is ever said again. Comparing costs next to nothing
    where the engine gives the very same pushes, which a cache of Python's would hash one by one.
    """

    def __init__(self) -> None:
        self._of: tuple[tuple[Push, ...], ServerName, int] | None = None
        self._packed = Packed(b"")

    def pack(self, pushes: tuple[Push, ...], origin: ServerName, now_ms: int) -> Packed:
        """As `pack`."""
        of = (pushes, origin, now_ms)
        if self._of != of:
            edus, users = _encode_pushes(pushes, MAX_EDUS_SENT)
            self._packed = Packed(_body(edus, origin, now_ms), len(edus), users)
            self._of = of
        return self._packed


_pushes_alone = _PushesAlone()


def _encode_pushes(pushes: tuple[Push, ...], max_edus: int) -> tuple[list[bytes], tuple[UserID, ...]]:
    """At most so many whole EDUs, and whom they are about."""
    edus: list[bytes] = []
    items: list[bytes] = []  # of the next one
    users: list[UserID] = []
    free = 0
    for push in pushes:
        item = encode_push(push)
        needed = len(item) + 1  # and the comma
        if items and (len(items) == MAX_PUSHES or needed > free):
            edus.append(encode_presence(items))
            items = []
        if not items:
            if len(edus) >= max_edus:
                break
            free = MAX_EDU_BYTES - _EDU_FRAME
        items.append(item)
        users.append(push.user_id)
        free -= needed
    if items:
        edus.append(encode_presence(items))
    return edus, tuple(users)
