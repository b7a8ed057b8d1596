"""A user's presence as clients say it and see it.

Always true: no key of what we make is null; `last_active_ago` is a whole number of at least 0;
`currently_active` stands beside `online` only; busy is shown as `unavailable` where it is switched off.

Source: P:1, P:9.1, P:9.2, P:12 and P:13.
"""

from typing import NamedTuple

from fedpresence.engine.presence import PresenceState, View
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID

MAX_STATUS_MSG_BYTES = 4096  # of UTF-8 (P:S-7)

_SYNC_STATES = {
    state.value: state for state in (PresenceState.ONLINE, PresenceState.UNAVAILABLE, PresenceState.OFFLINE)
}
_WITH_BUSY = {**_SYNC_STATES, PresenceState.BUSY.value: PresenceState.BUSY}


class Status(NamedTuple):
    """What a client declares about its user; `status_msg` None clears the message."""

    state: PresenceState
    status_msg: str | None


def decode_status(body: object, *, busy: bool) -> Status:
    """The body of `PUT .../status` by the table of P:9.1; BadRequest where it breaks it.

    Keys nobody knows are ignored. `busy` says whether that state is switched on.
    """
    if not isinstance(body, dict):
        raise BadRequest("M_BAD_JSON", "The body must be a JSON object")
    presence = body.get("presence")
    if not isinstance(presence, str):
        raise BadRequest("M_BAD_JSON", "presence must be a string")
    state = (_WITH_BUSY if busy else _SYNC_STATES).get(presence)
    if state is None:
        raise BadRequest("M_INVALID_PARAM", "Invalid presence state")
    status_msg = body.get("status_msg")
    if status_msg is None:
        return Status(state, None)
    if not isinstance(status_msg, str):
        raise BadRequest("M_INVALID_PARAM", "status_msg must be a string")
    if len(status_msg.encode("utf-8")) > MAX_STATUS_MSG_BYTES:
        raise BadRequest("M_INVALID_PARAM", f"status_msg is longer than {MAX_STATUS_MSG_BYTES} bytes")
    return Status(state, status_msg or None)


def decode_set_presence(text: str) -> PresenceState:
    """The parameter `set_presence` of a sync; busy is refused there whatever the switch (P:13)."""
    state = _SYNC_STATES.get(text)
    if state is None:
        raise BadRequest("M_INVALID_PARAM", "set_presence must be online, unavailable or offline")
    return state


def encode_status(view: View, *, busy: bool) -> dict[str, object]:
    """The answer of `GET .../status` (P:9.2): no age for somebody who was never active."""
    state = view.state
    if state is PresenceState.BUSY and not busy:
        state = PresenceState.UNAVAILABLE
    status: dict[str, object] = {"presence": state.value}
    if view.last_active_ago is not None:
        status["last_active_ago"] = view.last_active_ago
    if view.status_msg:
        status["status_msg"] = view.status_msg
    if state is PresenceState.ONLINE:
        status["currently_active"] = view.currently_active
    return status


def encode_event(user_id: UserID, view: View, *, never_ago_ms: int, busy: bool) -> dict[str, object]:
    """`m.presence` in the current form, for `/sync`: the age is always there.

    `never_ago_ms` is the age of somebody who was never active (E:P-3).
    """
    content = encode_status(view, busy=busy)
    content.setdefault("last_active_ago", never_ago_ms)
    return {"type": "m.presence", "sender": user_id, "content": content}


def encode_historic_event(user_id: UserID, view: View, *, busy: bool) -> dict[str, object]:
    """`m.presence` in the form of `/events`, `/initialSync` and the presence list (P:12)."""
    return {"type": "m.presence", "content": {"user_id": user_id, **encode_status(view, busy=busy)}}
