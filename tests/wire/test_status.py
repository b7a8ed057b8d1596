import pytest

from fedpresence.engine.presence import PresenceState, View
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.wire.status import (
    MAX_STATUS_MSG_BYTES,
    Status,
    decode_set_presence,
    decode_status,
    encode_event,
    encode_historic_event,
    encode_status,
)

BOB = UserID("@bob:there.test")


@pytest.mark.parametrize(("size", "fits"), [(MAX_STATUS_MSG_BYTES, True), (MAX_STATUS_MSG_BYTES + 1, False)])
@pytest.mark.parametrize("character", ["x", "ä", "🙂"])
def test_a_message_is_measured_in_bytes(character: str, size: int, fits: bool) -> None:
    """P:S-7: 4096 bytes of UTF-8, whatever they spell."""
    width = len(character.encode())
    text = "x" * (size % width) + character * (size // width)
    body = {"presence": "online", "status_msg": text}

    if fits:
        assert decode_status(body, busy=False) == Status(PresenceState.ONLINE, text)
    else:
        with pytest.raises(BadRequest):
            decode_status(body, busy=False)


@pytest.mark.parametrize("text", ["", "busy", "org.matrix.msc3026.busy", "Online", "free_for_chat"])
def test_a_sync_declares_three_states_and_no_more(text: str) -> None:
    """P:13: a busy value is refused there."""
    with pytest.raises(BadRequest) as caught:
        decode_set_presence(text)

    assert (caught.value.status, caught.value.errcode) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("state", list(PresenceState))
@pytest.mark.parametrize("busy", [True, False])
def test_currently_active_stands_beside_online_only(state: PresenceState, busy: bool) -> None:
    """P:A-1."""
    status = encode_status(View(state, 5, None, True), busy=busy)

    assert ("currently_active" in status) == (state is PresenceState.ONLINE)
    assert None not in status.values()


def test_both_forms_of_an_event() -> None:
    """P:12: `sender` beside the content, or `user_id` in it; an age always, or where there is one."""
    view = View(PresenceState.OFFLINE)

    assert encode_event(BOB, view, never_ago_ms=9, busy=False) == {
        "type": "m.presence",
        "sender": BOB,
        "content": {"presence": "offline", "last_active_ago": 9},
    }
    assert encode_historic_event(BOB, view, busy=False) == {
        "type": "m.presence",
        "content": {"user_id": BOB, "presence": "offline"},
    }
