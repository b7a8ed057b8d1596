import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.effects import Notice
from fedpresence.engine.events import ListChanged
from fedpresence.engine.subscription import EduKind
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.wire.lists import decode_list_change, encode_notice

ALICE = UserID("@alice:here.test")
BOB = UserID("@bob:there.test")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.sampled_from([ALICE, BOB]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["invite", "drop", "accept", "deny", "revoke", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_body_is_a_change_or_a_bad_request(body: object) -> None:
    """The body comes from anybody; what is left of it is whole and names nobody twice."""
    try:
        change = decode_list_change(ALICE, body)
    except BadRequest as error:
        assert error.status == 400
    else:
        named = [*change.invite, *change.accept, *change.deny, *change.revoke, *change.drop]
        assert len(named) == len(set(named))
        assert ALICE not in named


def test_every_key_has_its_place() -> None:
    """S:8."""
    keys = ("invite", "accept", "deny", "revoke", "drop")
    users = {key: UserID(f"@{key}:there.test") for key in keys}

    change = decode_list_change(ALICE, {key: [user] for key, user in users.items()})

    assert change == ListChanged(ALICE, **{key: (user,) for key, user in users.items()})


@pytest.mark.parametrize(
    ("kind", "sender"),
    [
        (EduKind.INVITE, BOB),
        (EduKind.DROP, BOB),
        (EduKind.ACCEPT, ALICE),
        (EduKind.DENY, ALICE),
    ],
)
def test_a_notice_is_sent_by_who_caused_it(kind: EduKind, sender: UserID) -> None:
    """S:8: here Bob observes Alice."""
    notice = Notice(ALICE, kind, observer=BOB, observed=ALICE)

    assert encode_notice(notice) == {
        "type": kind.value,
        "sender": sender,
        "content": {"observer_user": BOB, "observed_user": ALICE},
    }
