"""Presence EDUs: decode and encode.

Always true:
- decoding never raises: what breaks a rule is left out, with a reason, and the rest is honoured (F:R-3);
- of an `m.presence`, pushes come first, then the poll, then the unpoll, as Synapse 0.10 did it; of two
  items for one user the last counts (E:R-9);
- what is decoded was said by the server that may say it (E:8): a push by the user's own, an invite or a
  drop by the observer's, an accept or a deny by the observed user's. The engine checks again;
- what is encoded has every key that a strict reader wants and no other: one wrong type costs the whole
  transaction at current Synapse (E:P-8).

Source: server-server API, "Presence" (2018 text for the list EDUs); edus.md; presence.md 1, S-7.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

from fedpresence.engine.events import (
    ListEduReceived,
    PollReceived,
    PushesReceived,
    PushReceived,
    ReceivedEdu,
    UnpollReceived,
)
from fedpresence.engine.outgoing import Edu, ListEdu, PresenceEdu, Push
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import EduKind
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, UserID, is_compliant, is_compliant_of, parse_user_id, server_of
from fedpresence.wire.json import MAX_SAFE_INT, encode_canonical, encode_string

PRESENCE = "m.presence"
MAX_POLLED = 100  # user IDs in the poll, and in the unpoll, of one EDU: E:Q-1
MAX_ITEMS = 5_000  # in all m.presence of a transaction: a hundred EDUs of fifty, the most that anybody sends
MAX_STATUS_BYTES = 4096  # of UTF-8: P:S-7
MAX_AGO_MS = 10 * 365 * 86_400_000  # ten years: E:R-4
MAX_SHOWN_TYPE = 100  # characters of an unknown edu_type that we repeat in a log

_STATES = {state.value: state for state in PresenceState} | {
    "free_for_chat": PresenceState.ONLINE  # until 2016, in servers' EDUs until 2018: P:1
}
_LIST_KINDS = {kind.value: kind for kind in EduKind}
_ASKED_BY_OBSERVER = frozenset({EduKind.INVITE, EduKind.DROP})


@dataclass(frozen=True, slots=True)
class Skipped:
    """An EDU, or one item of an `m.presence`, that is not honoured.

    `reason` is one of a few fixed words: `unknown` (a type we do not know), `malformed`, `user` (not a
    user ID, or one that clients must not be shown), `origin` (not for this server to say), `state` (an
    unknown presence), `too many`. `edu_type` is empty where there is none.
    """

    edu_type: str
    reason: str


def decode_edus(
    edus: list[object], origin: ServerName
) -> tuple[tuple[ReceivedEdu, ...], tuple[Skipped, ...]]:
    """What `origin` says in the `edus` of a transaction, in order, and what of it is skipped."""
    received: list[ReceivedEdu] = []
    skipped: list[Skipped] = []
    free = MAX_ITEMS
    for edu in edus:
        edu_type = edu.get("edu_type") if isinstance(edu, dict) else None
        content = edu.get("content") if isinstance(edu, dict) else None
        if not isinstance(edu_type, str):
            skipped.append(Skipped("", "malformed"))
        elif edu_type != PRESENCE and edu_type not in _LIST_KINDS:
            skipped.append(Skipped(edu_type[:MAX_SHOWN_TYPE], "unknown"))
        elif not isinstance(content, dict):
            skipped.append(Skipped(edu_type, "malformed"))
        elif edu_type == PRESENCE and (size := _size_of(content)) > free:
            skipped.append(Skipped(PRESENCE, "too many"))  # to look at each would keep others waiting
        elif edu_type == PRESENCE:
            free -= size
            _decode_presence(content, origin, received, skipped)
        else:
            decoded = _decode_list_edu(_LIST_KINDS[edu_type], content, origin)
            if isinstance(decoded, Skipped):
                skipped.append(decoded)
            else:
                received.append(decoded)
    return tuple(received), tuple(skipped)


def _size_of(content: dict[str, object]) -> int:
    """How many users an `m.presence` is about."""
    size = 0
    for key in ("push", "poll", "unpoll"):
        value = content.get(key)
        if isinstance(value, list):
            size += len(value)
    return size


def encode_edu(edu: Edu) -> bytes:
    """The EDU as it stands in a transaction, in canonical JSON."""
    match edu:
        case PresenceEdu(push=pushes, poll=poll, unpoll=unpoll):
            return encode_presence([encode_push(push) for push in pushes], poll, unpoll)
        case ListEdu(kind=kind, observer=observer, observed=observed):
            content = {"observed_user": observed, "observer_user": observer}
            return encode_canonical({"edu_type": kind.value, "content": content})
    assert_never(edu)


def encode_presence(
    items: list[bytes], poll: tuple[UserID, ...] = (), unpoll: tuple[UserID, ...] = ()
) -> bytes:
    """An `m.presence` of push items that are encoded already; `push` is always there (E:Q-10)."""
    before = b'"poll":%b,' % encode_canonical(poll) if poll else b""
    after = b',"unpoll":%b' % encode_canonical(unpoll) if unpoll else b""
    return b'{"content":{%b"push":[%b]%b},"edu_type":"m.presence"}' % (before, b",".join(items), after)


def encode_push(push: Push) -> bytes:
    """One push item in canonical JSON.

    `last_active_ago` is always there, a whole number that is not negative (E:P-3); `status_msg` only
    when set, `currently_active` only with `online` (E:P-4), and then always, true or false.
    """
    before, after = _around_age(push.user_id, push.state, push.status_msg, push.currently_active)
    age_ms = push.last_active_ago
    if not 0 <= age_ms <= MAX_SAFE_INT:
        age_ms = min(max(age_ms, 0), MAX_SAFE_INT)
    return b"%b%d%b" % (before, age_ms, after)


@lru_cache(maxsize=10_000)  # the same news goes to many destinations; only its age is always new
def _around_age(
    user_id: UserID, state: PresenceState, status_msg: str | None, currently_active: bool
) -> tuple[bytes, bytes]:
    """What stands before and after the age in a push item, whose keys are in order."""
    active, said = b"", b""
    if state is PresenceState.ONLINE:
        active = b'"currently_active":%b,' % (b"true" if currently_active else b"false")
    if status_msg and (text := _without_nul(status_msg)):
        said = b'"status_msg":%b,' % encode_string(text)
    presence, user = encode_string(state.value), encode_string(user_id)
    before = b'{%b"last_active_ago":' % active
    return before, b',"presence":%b,%b"user_id":%b}' % (presence, said, user)


def _decode_presence(
    content: dict[str, object], origin: ServerName, received: list[ReceivedEdu], skipped: list[Skipped]
) -> None:
    def skip(reason: str) -> None:
        skipped.append(Skipped(PRESENCE, reason))

    pushes: dict[UserID, PushReceived] = {}
    for item in _array(content, "push", skip):
        push = _decode_push(item, origin)
        if isinstance(push, str):
            skip(push)
        else:
            pushes.pop(push.user_id, None)  # the last of a user counts, and stands where it stood
            pushes[push.user_id] = push
    if pushes:
        received.append(PushesReceived(origin, tuple(pushes.values())))
    if "poll" in content and (poll := _user_ids(_array(content, "poll", skip), skip)):
        received.append(PollReceived(origin, poll))
    if "unpoll" in content and (unpoll := _user_ids(_array(content, "unpoll", skip), skip)):
        received.append(UnpollReceived(origin, unpoll))


def _decode_push(item: object, origin: ServerName) -> PushReceived | str:
    """The push, or the reason why not (E:R-1 to R-4)."""
    if not isinstance(item, dict):
        return "malformed"
    get = item.get
    user_id, presence, ago, status_msg = (
        get("user_id"),
        get("presence"),
        get("last_active_ago"),
        get("status_msg"),
    )
    if not isinstance(user_id, str) or not is_compliant_of(user_id, origin):
        return "origin" if _is_of_another(user_id, origin) else "user"  # F:1.2: clients must not be shown it
    state = _STATES.get(presence) if isinstance(presence, str) else None
    if state is None:
        return "state"
    if type(ago) is not int:
        ago = None  # a float where an integer belongs makes the field invalid (Z-3), and true is none
    elif not 0 <= ago <= MAX_AGO_MS:
        ago = 0 if ago < 0 else MAX_AGO_MS
    if status_msg is not None:
        status_msg = _status_msg(status_msg)
    is_active = get("currently_active") is True and state is PresenceState.ONLINE
    return PushReceived(user_id, state, ago, status_msg, is_active)


def _is_of_another(value: object, origin: ServerName) -> bool:
    user_id = _user_id(value)
    return user_id is not None and server_of(user_id) != origin


def _status_msg(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    text = _without_nul(value) if "\0" in value else value
    if len(text) * 4 > MAX_STATUS_BYTES:  # a character is at most 4 bytes: most need no second look
        text = text.encode("utf-8", "replace")[:MAX_STATUS_BYTES].decode("utf-8", "ignore")
    return text or None


def _without_nul(text: str) -> str:
    """Without U+0000: PostgreSQL cannot store it, and a peer's 500 would cost the whole transaction."""
    return text.replace("\0", "")


def _decode_list_edu(
    kind: EduKind, content: dict[str, object], origin: ServerName
) -> ListEduReceived | Skipped:
    observer = _user_id(content.get("observer_user"))
    observed = _user_id(content.get("observed_user"))
    if observer is None or observed is None or not (is_compliant(observer) and is_compliant(observed)):
        return Skipped(kind.value, "user")
    if server_of(observer if kind in _ASKED_BY_OBSERVER else observed) != origin:
        return Skipped(kind.value, "origin")
    return ListEduReceived(kind, origin, observer, observed)


def _array(content: dict[str, object], key: str, skip: Callable[[str], None]) -> list[object]:
    value = content.get(key, [])
    if isinstance(value, list):
        return value
    skip("malformed")
    return []


def _user_ids(values: list[object], skip: Callable[[str], None]) -> tuple[UserID, ...]:
    """The user IDs among the first 100 values, each once."""
    found: dict[UserID, None] = {}
    for value in values[:MAX_POLLED]:
        user_id = _user_id(value)
        if user_id is None:
            skip("user")
        else:
            found[user_id] = None
    if len(values) > MAX_POLLED:
        skip("too many")
    return tuple(found)


def _user_id(value: object) -> UserID | None:
    try:
        return parse_user_id(value)
    except BadRequest:
        return None
