import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.outgoing import Composed, Edu, ListEdu, PresenceEdu, Push
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.wire.json import encode_canonical
from fedpresence.wire.transactions import Packed, ReceivedTransaction, decode_transaction, pack
from tests.wire.strategies import HERE, THERE, json_values, odd_edus, pushes, user_ids

NOW_MS = 1_456_225_982_000
ALICE = UserID("@alice:here.test")
BOB = UserID("@bob:there.test")
TYPING = {"edu_type": "m.typing", "content": {}}


def body(**keys: object) -> dict[str, object]:
    """A transaction of there.test, empty unless `keys` say otherwise."""
    return {"origin": "there.test", "origin_server_ts": NOW_MS, "pdus": [], "edus": []} | keys


def refusal(value: object) -> tuple[int, str]:
    """The status and errcode that a body is refused with."""
    with pytest.raises(BadRequest) as caught:
        decode_transaction(value, THERE)
    return caught.value.status, caught.value.errcode


def composed(
    before: tuple[Edu, ...] = (),
    pushes: tuple[Push, ...] = (),
    polls: tuple[UserID, ...] = (),
    unpolls: tuple[UserID, ...] = (),
    owed: tuple[OwedEdu, ...] = (),
) -> Composed:
    """What may go now; only what packing reads."""
    return Composed(before, pushes, {}, polls, unpolls, owed, (), 1)


def content_of(packed: Packed) -> Any:
    """What the body says; it is canonical."""
    content = json.loads(packed.body)
    assert encode_canonical(content) == packed.body
    return content


def edus_of(packed: Packed) -> list[Any]:
    """The EDUs in the content."""
    edus = content_of(packed)["edus"]
    assert packed.edu_count == len(edus)
    assert isinstance(edus, list)
    return edus


def push(n: int, status_msg: str | None = None) -> Push:
    """User `n`, online."""
    return Push(UserID(f"@user{n}:here.test"), PresenceState.ONLINE, n, status_msg, False)


def deny(n: int, *, final_push: bool = False) -> tuple[tuple[Edu, ...], OwedEdu]:
    """Alice's deny for observer `n`, as it stands before, and as it is owed."""
    observer = UserID(f"@observer{n}:there.test")
    last = PresenceEdu(push=(Push(ALICE, PresenceState.OFFLINE, 0),))
    edu = ListEdu(EduKind.DENY, observer, ALICE)
    owed = OwedEdu(EduKind.DENY, observer, ALICE, generation=n, since_ms=0, final_push=final_push)
    return ((last, edu) if final_push else (edu,)), owed


# --- receiving -------------------------------------------------------------------------------


def test_a_transaction_is_what_we_understand_of_it_and_counts() -> None:
    """The rest of a federation's traffic passes through here too (F:7.4)."""
    edus = [TYPING, {"edu_type": "m.presence", "content": {"push": [], "poll": [ALICE]}}, 5]

    received = decode_transaction(body(pdus=[{}, {}], edus=edus, previous_ids=1, pdu_failures=[]), THERE)

    assert isinstance(received, ReceivedTransaction)
    assert received.origin_server_ts == NOW_MS
    assert (received.pdu_count, received.edu_count) == (2, 3)
    assert [type(edu).__name__ for edu in received.edus] == ["PollReceived"]
    assert [skipped.reason for skipped in received.skipped] == ["unknown", "malformed"]


def test_edus_and_the_origin_may_be_missing() -> None:
    """`edus` is optional; who sent it is known from the signature."""
    value = body()
    del value["edus"], value["origin"]

    assert decode_transaction(value, THERE).edu_count == 0


def test_a_body_that_names_another_origin_is_forbidden() -> None:
    """Synapse 0.10 believed the body: anybody could speak for anybody (E:7.1)."""
    assert refusal(body(origin="here.test")) == (403, "M_FORBIDDEN")
    assert refusal(body(origin="There.test")) == (403, "M_FORBIDDEN")
    assert refusal(body(origin=None)) == (403, "M_FORBIDDEN")


def test_fifty_pdus_and_a_hundred_edus_are_taken_and_no_more() -> None:
    """The limits of the specification, both sides (F:7.1)."""
    assert decode_transaction(body(pdus=[{}] * 50, edus=[TYPING] * 100), THERE).edu_count == 100

    assert refusal(body(pdus=[{}] * 51)) == (400, "M_BAD_JSON")
    assert refusal(body(edus=[TYPING] * 101)) == (400, "M_BAD_JSON")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {},
        body(pdus=None),
        body(pdus={}),
        body(edus=None),
        body(edus={"edu_type": "m.presence"}),
        body(origin_server_ts=None),
        body(origin_server_ts="1"),
        body(origin_server_ts=1.0),
        body(origin_server_ts=True),
        body(origin_server_ts=2**53),
        body(origin_server_ts=-(2**53)),
    ],
)
def test_a_wrong_envelope_is_refused_as_a_whole(value: object) -> None:
    """There is nothing in it that could be answered with a 200 (F:7.1)."""
    assert refusal(value) == (400, "M_BAD_JSON")


@pytest.mark.parametrize("ts", [0, -1, 2**53 - 1])
def test_an_odd_time_is_no_reason_to_refuse(ts: int) -> None:
    """No source has a rule for clock skew; what is old is skipped later (Z-6)."""
    assert decode_transaction(body(origin_server_ts=ts), THERE).origin_server_ts == ts


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "origin": st.just("there.test") | json_values(leaves=3),
            "origin_server_ts": st.just(NOW_MS) | json_values(leaves=3),
            "pdus": st.just([]) | json_values(leaves=3),
            "edus": st.lists(odd_edus, max_size=4) | json_values(leaves=3),
        },
    )
    | json_values(leaves=5)
)
def test_whatever_the_body_only_bad_request_is_raised(value: object) -> None:
    """A peer's mistake is not our error."""
    try:
        decode_transaction(value, THERE)
    except BadRequest as error:
        assert error.status in (400, 403)


# --- sending ---------------------------------------------------------------------------------


def test_a_transaction_has_the_four_keys_of_the_specification() -> None:
    """`pdus` is required even where there are none (F:7.1)."""
    packed = pack(composed(pushes=(push(1),)), HERE, NOW_MS)

    assert content_of(packed) == {
        "origin": "here.test",
        "origin_server_ts": NOW_MS,
        "pdus": [],
        "edus": [
            {
                "edu_type": "m.presence",
                "content": {
                    "push": [
                        {
                            "user_id": "@user1:here.test",
                            "presence": "online",
                            "last_active_ago": 1,
                            "currently_active": False,
                        }
                    ]
                },
            }
        ],
    }
    assert packed.users == (UserID("@user1:here.test"),)


def test_nothing_to_say_makes_no_edu() -> None:
    """An m.presence that carries nothing is traffic for nothing (decision 11)."""
    for nothing in (composed(), composed(before=(PresenceEdu(),))):
        packed = pack(nothing, HERE, NOW_MS)

        assert edus_of(packed) == []
        assert (packed.users, packed.owed, packed.polls, packed.unpolls) == ((), (), (), ())


def test_what_is_owed_goes_first_then_unpolls_and_polls_then_pushes() -> None:
    """An accept before its push, an unpoll beside its drop (F:X-5, S:O-23)."""
    accept = ListEdu(EduKind.ACCEPT, BOB, ALICE)
    drop_once = ListEdu(EduKind.DROP, ALICE, BOB)
    owed = OwedEdu(EduKind.ACCEPT, BOB, ALICE, 3, 0)

    packed = pack(
        composed((drop_once, accept), (push(1),), polls=(BOB,), unpolls=(BOB,), owed=(owed,)), HERE, NOW_MS
    )

    assert [(edu["edu_type"], sorted(edu["content"])) for edu in edus_of(packed)] == [
        ("org.fedpresence.presence_drop", ["observed_user", "observer_user"]),
        ("m.presence_accept", ["observed_user", "observer_user"]),
        ("m.presence", ["push", "unpoll"]),
        ("m.presence", ["poll", "push"]),
        ("m.presence", ["push"]),
    ]
    assert packed.owed == (owed,)
    assert packed.polls == packed.unpolls == (BOB,)


@pytest.mark.parametrize(("number", "sizes"), [(50, [50]), (51, [50, 1]), (100, [50, 50])])
def test_an_edu_has_at_most_fifty_pushes(number: int, sizes: list[int]) -> None:
    """What Synapse sends, and what peers are used to (E:P-7)."""
    packed = pack(composed(pushes=tuple(push(n) for n in range(number))), HERE, NOW_MS)

    assert [len(edu["content"]["push"]) for edu in edus_of(packed)] == sizes
    assert list(packed.users) == [f"@user{n}:here.test" for n in range(number)]


def test_a_transaction_has_at_most_ninety_nine_edus() -> None:
    """Who did not fit waits, and is not said to be in it (decision 11)."""
    packed = pack(composed(pushes=tuple(push(n) for n in range(99 * 50 + 1))), HERE, NOW_MS)

    assert len(edus_of(packed)) == 99
    assert len(packed.users) == 99 * 50


def test_an_edu_stays_below_64_kibibytes_to_the_byte() -> None:
    """Proxies refuse larger ones; nothing is gained by staying far below."""
    frame = len(encode_canonical({"content": {"push": []}, "edu_type": "m.presence"}))
    empty = (
        len(encode_canonical(edus_of(pack(composed(pushes=(push(1, "x"),)), HERE, NOW_MS))[0])) - 1 - frame
    )
    room = 65_535 - frame - 15 * (empty + 4096 + 1) - 1 - empty
    fifteen = tuple(push(1, "x" * 4096) for _ in range(15))

    fits = edus_of(pack(composed(pushes=(*fifteen, push(1, "x" * room))), HERE, NOW_MS))
    splits = edus_of(pack(composed(pushes=(*fifteen, push(1, "x" * (room + 1)))), HERE, NOW_MS))

    assert 1200 < room < 4096
    assert [len(encode_canonical(edu)) for edu in fits] == [65_534]
    assert [len(edu["content"]["push"]) for edu in splits] == [15, 1]


def test_what_is_owed_is_cut_at_ninety_nine_and_no_push_overtakes_the_rest() -> None:
    """A push must not arrive before its accept, which waits for the next transaction."""
    denies = [deny(n) for n in range(100)]
    before = tuple(edu for edus, _ in denies for edu in edus)
    owed = tuple(o for _, o in denies)

    whole = pack(composed(before[:98], (push(1),), owed=owed[:98]), HERE, NOW_MS)
    full = pack(composed(before[:99], (push(1),), owed=owed[:99]), HERE, NOW_MS)
    cut = pack(composed(before, (push(1),), owed=owed), HERE, NOW_MS)

    assert (len(edus_of(whole)), whole.owed, whole.users) == (99, owed[:98], (push(1).user_id,))
    assert (len(edus_of(full)), full.owed, full.users) == (99, owed[:99], ())
    assert (len(edus_of(cut)), cut.owed, cut.users) == (99, owed[:99], ())


def test_a_final_push_is_never_torn_from_its_deny() -> None:
    """Alone it would say offline of somebody who goes on sharing (E:P-11)."""
    denies = [deny(n, final_push=True) for n in range(60)]
    before = tuple(edu for edus, _ in denies for edu in edus)
    owed = tuple(o for _, o in denies)

    packed = pack(composed(before, (push(1),), owed=owed), HERE, NOW_MS)

    assert len(edus_of(packed)) == 98
    assert edus_of(packed)[-1]["edu_type"] == "m.presence_deny"
    assert packed.owed == owed[:49]
    assert packed.users == ()


def test_polls_keep_a_place_beside_much_that_is_owed() -> None:
    """An unpoll belongs to a drop: it must not wait for a quieter day (S:O-23)."""
    denies = [deny(n) for n in range(99)]
    before = tuple(edu for edus, _ in denies for edu in edus)
    ids = tuple(UserID(f"@user{n}:there.test") for n in range(101))

    packed = pack(composed(before, polls=ids, unpolls=(BOB,), owed=tuple(o for _, o in denies)), HERE, NOW_MS)

    assert len(edus_of(packed)) == 99
    assert len(packed.owed) == 96
    assert [len(edu["content"].get("poll", [])) for edu in edus_of(packed)[-3:]] == [0, 100, 1]
    assert (packed.polls, packed.unpolls) == (ids, (BOB,))


def test_more_polls_than_fit_are_not_said_to_be_in_it() -> None:
    """Whoever asked is told the truth about what was sent."""
    ids = tuple(UserID(f"@user{n}:there.test") for n in range(4_001))

    packed = pack(composed(polls=ids), HERE, NOW_MS)

    assert len(edus_of(packed)) == 40
    assert packed.polls == ids[:4_000]


@given(
    st.lists(pushes(HERE), max_size=120, unique_by=lambda p: p.user_id),
    st.lists(user_ids(THERE), max_size=5, unique=True),
    st.lists(st.booleans(), max_size=110),
)
def test_whatever_is_composed_the_limits_hold_and_what_is_claimed_is_there(
    some_pushes: list[Push], polls: list[UserID], finals: list[bool]
) -> None:
    """The queue forgets exactly what the transaction carries."""
    denies = [deny(n, final_push=final) for n, final in enumerate(finals)]
    before = tuple(edu for edus, _ in denies for edu in edus)

    packed = pack(
        composed(before, tuple(some_pushes), tuple(polls), owed=tuple(o for _, o in denies)), HERE, NOW_MS
    )

    edus = edus_of(packed)
    assert len(edus) <= 99
    assert all(len(encode_canonical(edu)) < 65_536 for edu in edus)
    assert all(len(edu["content"].get("push", [])) <= 50 for edu in edus)
    pushed = [item["user_id"] for edu in edus for item in edu["content"].get("push", [])]
    assert [user for user in pushed if user != ALICE] == [user for user in packed.users if user != ALICE]
    assert [e["content"]["observer_user"] for e in edus if e["edu_type"] == "m.presence_deny"] == [
        o.observer for o in packed.owed
    ]


@pytest.mark.parametrize("character", ["x", "\x01", "é", "😀", '"'])
def test_pushes_of_every_alphabet_stay_below_the_limit(character: str) -> None:
    """A control character is six bytes, an emoji four: the estimate must cover both."""
    many = tuple(push(n, character * length) for n, length in enumerate(list(range(1, 340, 3)) + [1024] * 40))

    edus = edus_of(pack(composed(pushes=many), HERE, NOW_MS))

    assert sum(len(edu["content"]["push"]) for edu in edus) == len(many)
    assert all(len(encode_canonical(edu)) < 65_536 for edu in edus)
