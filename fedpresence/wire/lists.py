"""Presence lists as clients change and see them.

Always true: a change is decoded whole or not at all, so nothing of a request with one bad part is
done; within a change an ID stands once. Pending entries show nothing of the observed user.

Source: P:10, S:8; the limits are those of P:10.1.
"""

from collections.abc import Iterable
from typing import Protocol

from fedpresence.engine.effects import Notice
from fedpresence.engine.events import ListChanged
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.subscription import EduKind, ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID, parse_user_id
from fedpresence.wire.status import encode_historic_event

MAX_IDS = 100  # of one request (P:10.1)

_KEYS = ("invite", "accept", "deny", "revoke", "drop")  # the order of work (S:8)
_HIDDEN = View(PresenceState.OFFLINE)
_FROM_OBSERVER = frozenset({EduKind.INVITE, EduKind.DROP})


class Listed(Protocol):
    """An entry of a presence list, as the engine tells it."""

    @property
    def user_id(self) -> UserID:
        """The observed user."""

    @property
    def stage(self) -> ObserverStage:
        """PENDING or ACCEPTED."""

    @property
    def since_ms(self) -> int:
        """When it came to this stage."""

    @property
    def unreachable(self) -> bool:
        """Whether delivery was given up for now (S:O-16)."""

    @property
    def view(self) -> View:
        """What the observer may see of an accepted entry."""


class Since(Protocol):
    """A user and since when: an open invite, or an observer."""

    @property
    def user_id(self) -> UserID:
        """The other user of the pair."""

    @property
    def since_ms(self) -> int:
        """Since when."""


def decode_list_change(user_id: UserID, body: object) -> ListChanged:
    """The body of `POST .../presence/list/{user_id}`; BadRequest where any part of it is wrong.

    Empty strings and the user's own ID are skipped; keys nobody knows are ignored.
    """
    if not isinstance(body, dict):
        raise BadRequest("M_BAD_JSON", "The body must be a JSON object")
    texts = {key: _texts(key, body[key]) for key in _KEYS if key in body}
    if sum(map(len, texts.values())) > MAX_IDS:
        raise BadRequest("M_TOO_LARGE", f"A request may name at most {MAX_IDS} user IDs")
    parts: dict[str, tuple[UserID, ...]] = {}
    seen: set[UserID] = set()
    for key, named in texts.items():
        users = dict.fromkeys(parse_user_id(text) for text in named)
        if not seen.isdisjoint(users):
            raise BadRequest("M_INVALID_PARAM", "A user ID may stand under one key only")
        seen.update(users)
        parts[key] = tuple(other for other in users if other != user_id)
    return ListChanged(user_id, **parts)


def encode_list(entries: Iterable[Listed], *, busy: bool) -> list[dict[str, object]]:
    """The answer of `GET .../presence/list`: the spec's events, and what old clients read (P:10.2)."""
    return [_encode_entry(entry, busy) for entry in entries]


def encode_subscriptions(
    entries: Iterable[Listed], invites: Iterable[Since], observers: Iterable[Since]
) -> dict[str, object]:
    """The answer of `GET /_fedpresence/client/v1/subscriptions/{userId}` (contract.md, "Client API")."""
    return {
        "list": [
            {"user_id": entry.user_id, "state": entry.stage.value, "since_ts": entry.since_ms}
            for entry in entries
        ],
        "invites": [{"user_id": pair.user_id, "since_ts": pair.since_ms} for pair in invites],
        "observers": [{"user_id": pair.user_id, "since_ts": pair.since_ms} for pair in observers],
    }


def encode_notice(notice: Notice) -> dict[str, object]:
    """A notice as a to-device event; its sender is who caused it (S:8)."""
    content: dict[str, object] = {"observer_user": notice.observer, "observed_user": notice.observed}
    if notice.reason is not None:
        content["reason"] = notice.reason
    sender = notice.observer if notice.kind in _FROM_OBSERVER else notice.observed
    return {"type": notice.kind.value, "sender": sender, "content": content}


def _texts(key: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise BadRequest("M_BAD_JSON", f"{key} must be an array of user IDs")
    if not all(isinstance(text, str) for text in value):
        raise BadRequest("M_INVALID_PARAM", f"Bad {key} value.")  # the historic words
    return [text for text in value if text]


def _encode_entry(entry: Listed, busy: bool) -> dict[str, object]:
    accepted = entry.stage is ObserverStage.ACCEPTED
    event = encode_historic_event(entry.user_id, entry.view if accepted else _HIDDEN, busy=busy)
    content = event["content"]
    assert isinstance(content, dict)
    content["org.fedpresence.subscription"] = entry.stage.value
    if entry.unreachable:
        content["org.fedpresence.reason"] = "unreachable"
    return {**event, "accepted": accepted, "presence": content["presence"], "user_id": entry.user_id}
