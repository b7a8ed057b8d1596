from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.events import (
    ListEduReceived,
    PollReceived,
    PushesReceived,
    PushReceived,
    ReceivedEdu,
    UnpollReceived,
)
from fedpresence.engine.outgoing import ListEdu, PresenceEdu, Push
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import EduKind
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, UserID, is_compliant, parse_user_id, server_of
from fedpresence.wire.edus import (
    MAX_AGO_MS,
    MAX_POLLED,
    MAX_STATUS_BYTES,
    Skipped,
    decode_edus,
    encode_edu,
    encode_push,
)
from fedpresence.wire.json import decode_json, encode_canonical
from tests.engine.servers import as_received
from tests.wire.strategies import HERE, THERE, json_values, list_edus, odd_edus, presence_edus

ALICE = UserID("@alice:here.test")
BOB = UserID("@bob:there.test")


def presence_edu(**content: object) -> dict[str, object]:
    """An `m.presence` with these keys."""
    return {"edu_type": "m.presence", "content": content}


def decode(*edus: object, origin: ServerName = THERE) -> tuple[list[ReceivedEdu], list[Skipped]]:
    """What comes of these EDUs of `origin`."""
    received, skipped = decode_edus(list(edus), origin)
    return list(received), list(skipped)


def pushes_of(received: list[ReceivedEdu]) -> list[PushReceived]:
    """All push items, in order."""
    return [push for edu in received if isinstance(edu, PushesReceived) for push in edu.pushes]


def decode_item(**keys: object) -> PushReceived:
    """The push of bob's item with these keys, online unless they say otherwise."""
    item: dict[str, object] = {"user_id": BOB, "presence": "online"}
    received, skipped = decode(presence_edu(push=[item | keys]))
    assert skipped == []
    [edu] = received
    assert isinstance(edu, PushesReceived)
    [push] = edu.pushes
    return push


def test_the_push_of_the_specification_is_read() -> None:
    """The one EDU that every homeserver sends (E:2.1)."""
    edu = decode_json(
        b'{"edu_type": "m.presence", "content": {"push": ['
        b'{"user_id": "@john:matrix.org", "presence": "online", "last_active_ago": 5000,'
        b' "currently_active": true, "status_msg": "Making cupcakes"},'
        b'{"user_id": "@mary:matrix.org", "presence": "offline", "last_active_ago": 86400000}]}}'
    )
    origin = ServerName("matrix.org")

    received, skipped = decode(edu, origin=origin)

    assert skipped == []
    john = PushReceived(UserID("@john:matrix.org"), PresenceState.ONLINE, 5000, "Making cupcakes", True)
    mary = PushReceived(UserID("@mary:matrix.org"), PresenceState.OFFLINE, 86_400_000, None, False)
    assert received == [PushesReceived(origin, (john, mary))]


def test_the_historic_polls_are_read() -> None:
    """Synapse up to 0.13 sent them, without a push (E:3)."""
    received, skipped = decode(
        presence_edu(push=[], poll=["@alice:elsewhere.org"]), presence_edu(unpoll=["@bob:elsewhere.org"])
    )

    assert skipped == []
    assert received == [
        PollReceived(THERE, (UserID("@alice:elsewhere.org"),)),
        UnpollReceived(THERE, (UserID("@bob:elsewhere.org"),)),
    ]


@pytest.mark.parametrize(
    ("kind", "observer", "observed"),
    [
        (EduKind.INVITE, BOB, ALICE),
        (EduKind.DROP, BOB, ALICE),
        (EduKind.ACCEPT, ALICE, BOB),
        (EduKind.DENY, ALICE, BOB),
    ],
)
def test_a_list_edu_counts_only_from_the_side_that_may_say_it(
    kind: EduKind, observer: UserID, observed: UserID
) -> None:
    """An invite and a drop are the observer's word, an accept and a deny the observed user's (E:8)."""
    edu = {
        "edu_type": kind.value,
        "content": {"observer_user": observer, "observed_user": observed, "origin": "x"},
        "origin": "ignored.test",
        "destination": "ignored.test",
    }

    assert decode(edu) == ([ListEduReceived(kind, THERE, observer, observed)], [])
    assert decode(edu, origin=HERE) == ([], [Skipped(kind.value, "origin")])


@pytest.mark.parametrize("kind", EduKind)
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"observer_user": BOB},
        {"observer_user": BOB, "observed_user": None},
        {"observer_user": [BOB], "observed_user": ALICE},
        {"observer_user": "bob:there.test", "observed_user": "@x"},
        {"observer_user": "@b b:there.test", "observed_user": "@b b:there.test"},
    ],
)
def test_a_list_edu_needs_two_users(kind: EduKind, content: dict[str, object]) -> None:
    """A malformed EDU is skipped and named, nothing more (F:R-3)."""
    assert decode({"edu_type": kind.value, "content": content}) == ([], [Skipped(kind.value, "user")])


@pytest.mark.parametrize(
    ("edu", "skipped"),
    [
        (None, Skipped("", "malformed")),
        ([], Skipped("", "malformed")),
        ({}, Skipped("", "malformed")),
        ({"edu_type": 1, "content": {}}, Skipped("", "malformed")),
        ({"edu_type": ["m.presence"], "content": {}}, Skipped("", "malformed")),
        ({"edu_type": "m.presence"}, Skipped("m.presence", "malformed")),
        ({"edu_type": "m.presence", "content": []}, Skipped("m.presence", "malformed")),
        ({"edu_type": "m.presence_deny", "content": "x"}, Skipped("m.presence_deny", "malformed")),
        (presence_edu(push=None), Skipped("m.presence", "malformed")),
        (presence_edu(push={}), Skipped("m.presence", "malformed")),
        (presence_edu(poll="@alice:here.test"), Skipped("m.presence", "malformed")),
        (presence_edu(push=[None]), Skipped("m.presence", "malformed")),
        ({"edu_type": "m.typing", "content": {}}, Skipped("m.typing", "unknown")),
        ({"edu_type": "m.receipt"}, Skipped("m.receipt", "unknown")),
        ({"edu_type": "x" * 5000, "content": {}}, Skipped("x" * 100, "unknown")),
    ],
)
def test_what_is_malformed_or_unknown_is_skipped_and_the_rest_is_honoured(
    edu: object, skipped: Skipped
) -> None:
    """Current Synapse fails the whole transaction here, and its sender repeats it for ever (F:R-3, R-5)."""
    good = presence_edu(push=[{"user_id": BOB, "presence": "online"}])

    received, skips = decode(good, edu, good)

    assert len(received) == 2
    assert skips == [skipped]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("online", "malformed"),
        ({"presence": "online"}, "user"),
        ({"user_id": "bob", "presence": "online"}, "user"),
        ({"user_id": "@bob", "presence": "online"}, "user"),
        ({"user_id": ALICE, "presence": "online"}, "origin"),
        ({"user_id": "@bob:there.test:8448", "presence": "online"}, "origin"),
        ({"user_id": "@bob:THERE.test", "presence": "online"}, "origin"),
        ({"user_id": "@:there.test", "presence": "online"}, "user"),
        ({"user_id": "@böb:there.test", "presence": "online"}, "user"),
        ({"user_id": "@b\u202eob:there.test", "presence": "online"}, "user"),
        ({"user_id": BOB}, "state"),
        ({"user_id": BOB, "presence": None}, "state"),
        ({"user_id": BOB, "presence": 2}, "state"),
        ({"user_id": BOB, "presence": ["online"]}, "state"),
        ({"user_id": BOB, "presence": "busy"}, "state"),
        ({"user_id": BOB, "presence": "hidden"}, "state"),
        ({"user_id": BOB, "presence": "Online"}, "state"),
    ],
)
def test_a_bad_push_item_is_skipped_and_its_neighbours_are_honoured(item: object, reason: str) -> None:
    """Only a user's own server says anything of them, and only what we understand (E:R-1 to R-3, F:1.2)."""
    carol = {"user_id": "@carol:there.test", "presence": "offline"}
    dave = {"user_id": "@dave:there.test", "presence": "unavailable"}

    received, skipped = decode(presence_edu(push=[carol, item, dave]))

    assert [push.user_id for push in pushes_of(received)] == ["@carol:there.test", "@dave:there.test"]
    assert skipped == [Skipped("m.presence", reason)]


@given(
    st.from_regex(r"@?[a-z:é\x00 ]{0,3}:?(there\.test|here\.test|there\.test:1|)", fullmatch=True)
    | st.text(max_size=20)
    | st.integers(200, 300).map(lambda size: "@" + size * "a" + ":there.test")
)
def test_a_server_pushes_its_own_users_that_clients_may_be_shown_and_no_others(text: str) -> None:
    """The quick look at a user ID sees what the rules of the appendices see one by one (F:1.2)."""
    try:
        user_id = parse_user_id(text)
        allowed = server_of(user_id) == THERE and is_compliant(user_id)
    except BadRequest:
        allowed = False

    received, _ = decode(presence_edu(push=[{"user_id": text, "presence": "online"}]))

    assert bool(received) == allowed


@pytest.mark.parametrize(
    ("presence", "state"),
    [
        ("online", PresenceState.ONLINE),
        ("unavailable", PresenceState.UNAVAILABLE),
        ("offline", PresenceState.OFFLINE),
        ("free_for_chat", PresenceState.ONLINE),
        ("org.matrix.msc3026.busy", PresenceState.BUSY),
    ],
)
def test_states_of_all_eras_are_understood(presence: str, state: PresenceState) -> None:
    """Synapse 0.10 still says free_for_chat, today's may say busy (P:1)."""
    push = decode_item(presence=presence, currently_active=True)

    assert push.state is state
    assert push.currently_active is (state is PresenceState.ONLINE)


@pytest.mark.parametrize(
    ("value", "ago"),
    [
        (0, 0),
        (5000, 5000),
        (-1, 0),
        (-(10**30), 0),
        (MAX_AGO_MS, MAX_AGO_MS),
        (MAX_AGO_MS + 1, MAX_AGO_MS),
        (10**4000, MAX_AGO_MS),
        (True, None),
        (1.0, None),
        (1e300, None),
        ("5000", None),
        (None, None),
        ([], None),
    ],
)
def test_an_odd_last_active_ago_costs_the_field_and_not_the_push(value: object, ago: int | None) -> None:
    """Synapse answers 500 here; the state of the user is good all the same (E:R-4, Z-3)."""
    assert decode_item(last_active_ago=value).last_active_ago == ago


def test_a_missing_last_active_ago_is_missing() -> None:
    """Synapse leaves it out for a user who was never active."""
    assert decode_item().last_active_ago is None


@pytest.mark.parametrize("value", [False, None, 1, "true", [True]])
def test_only_true_is_currently_active(value: object) -> None:
    """Anything else would keep a user active until the next push (P:A-4)."""
    assert decode_item(currently_active=value).currently_active is False


@pytest.mark.parametrize("value", ["", None, 5, ["x"], "\0"])
def test_a_status_that_says_nothing_is_no_status(value: object) -> None:
    """An empty or odd message clears the stored one, as a missing one does (P:S-5, S-6)."""
    assert decode_item(status_msg=value).status_msg is None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("x" * MAX_STATUS_BYTES, "x" * MAX_STATUS_BYTES),
        ("x" * (MAX_STATUS_BYTES + 1), "x" * MAX_STATUS_BYTES),
        ("é" * 2048, "é" * 2048),
        ("x" + "é" * 2048, "x" + "é" * 2047),
        ("😀" * 1024, "😀" * 1024),
        ("xx" + "😀" * 1024, "xx" + "😀" * 1023),
        ("at\0lunch", "atlunch"),
    ],
)
def test_a_long_status_is_cut_between_characters(sent: str, kept: str) -> None:
    """4096 bytes are enough for a word on what one is doing (P:S-7)."""
    assert decode_item(status_msg=sent).status_msg == kept


def test_keys_that_we_do_not_know_are_nobodys_business() -> None:
    """Profile keys of 2015 and the proposals of 2026 pass by (P:12, F:8)."""
    assert decode_item(displayname="Bob", avatar_url=7, mtime_age=None, stream_id={}) == decode_item()


def test_of_two_items_for_one_user_the_last_counts() -> None:
    """A user has one state (E:R-9)."""
    carol = "@carol:there.test"
    push = [
        {"user_id": BOB, "presence": "offline"},
        {"user_id": carol, "presence": "online"},
        {"user_id": BOB, "presence": "online"},
        {"user_id": BOB, "presence": "no such thing"},
    ]

    received, _ = decode(presence_edu(push=push))

    assert [(push.user_id, push.state) for push in pushes_of(received)] == [
        (carol, PresenceState.ONLINE),
        (BOB, PresenceState.ONLINE),
    ]


def test_in_one_edu_pushes_come_first_then_the_poll_then_the_unpoll() -> None:
    """Synapse 0.10 did it so; who is polled and unpolled at once is not wanted."""
    item = {"user_id": BOB, "presence": "online"}

    received, _ = decode(presence_edu(unpoll=[ALICE], poll=[ALICE], push=[item]))

    assert [type(event) for event in received] == [PushesReceived, PollReceived, UnpollReceived]


@pytest.mark.parametrize("key", ["poll", "unpoll"])
def test_a_hundred_users_are_polled_at_once_and_no_more(key: str) -> None:
    """One EDU must not ask for the state of everybody (E:Q-1)."""
    ids = [f"@user{n}:here.test" for n in range(MAX_POLLED + 1)]

    [just_fits], nothing = decode(presence_edu(**{key: ids[:MAX_POLLED]}))
    [too_many], skipped = decode(presence_edu(**{key: ids}))

    assert isinstance(just_fits, PollReceived | UnpollReceived)
    assert just_fits.user_ids == tuple(ids[:MAX_POLLED])
    assert too_many == just_fits
    assert (nothing, skipped) == ([], [Skipped("m.presence", "too many")])


def test_five_thousand_users_a_transaction_are_looked_at_and_no_more() -> None:
    """No server sends more; to look at a hundred thousand would keep everybody else waiting (Z-4)."""
    full = presence_edu(push=[{"user_id": f"@u{n}:there.test", "presence": "online"} for n in range(4_999)])
    two = presence_edu(push=[{"user_id": f"@v{n}:there.test", "presence": "online"} for n in range(2)])
    invite = {"edu_type": "m.presence_invite", "content": {"observer_user": BOB, "observed_user": ALICE}}

    received, skipped = decode(full, two, invite, two, presence_edu(poll=[ALICE]), presence_edu(poll=[ALICE]))

    assert [type(edu) for edu in received] == [PushesReceived, ListEduReceived, PollReceived]
    assert len(pushes_of(received)) == 4_999
    assert skipped == [Skipped("m.presence", "too many")] * 3


def test_what_is_no_user_is_not_polled_and_nobody_twice() -> None:
    """A poll of nobody is no poll."""
    received, skipped = decode(
        presence_edu(poll=[ALICE, 5, None, "alice", {}, ALICE], unpoll=["", ["@alice:here.test"]])
    )

    assert received == [PollReceived(THERE, (ALICE,))]
    assert skipped == [Skipped("m.presence", "user")] * 6


@pytest.mark.parametrize(
    ("push", "item"),
    [
        (
            Push(ALICE, PresenceState.ONLINE, 5000, "Fika ☕", True),
            {
                "presence": "online",
                "last_active_ago": 5000,
                "currently_active": True,
                "status_msg": "Fika ☕",
            },
        ),
        (
            Push(ALICE, PresenceState.ONLINE, 60_000),
            {"presence": "online", "last_active_ago": 60_000, "currently_active": False},
        ),
        (
            Push(ALICE, PresenceState.UNAVAILABLE, 300_001, None, True),
            {"presence": "unavailable", "last_active_ago": 300_001},
        ),
        (
            Push(ALICE, PresenceState.OFFLINE, -5, "", True),
            {"presence": "offline", "last_active_ago": 0},
        ),
        (
            Push(ALICE, PresenceState.BUSY, 2**60, "\0", True),
            {"presence": "org.matrix.msc3026.busy", "last_active_ago": 2**53 - 1},
        ),
    ],
)
def test_a_push_says_just_what_strict_readers_want(push: Push, item: dict[str, object]) -> None:
    """A missing or negative age costs the EDU at Ruma's, a wrong type the transaction (E:P-3, P-4)."""
    assert encode_push(push) == encode_canonical({"user_id": ALICE} | item)


def test_a_presence_edu_always_has_a_push() -> None:
    """Schemas of 2018 require it, even beside a poll (E:Q-10)."""
    assert encode_edu(PresenceEdu(poll=(BOB,))) == encode_canonical(presence_edu(push=[], poll=[BOB]))
    assert encode_edu(PresenceEdu(unpoll=(BOB,))) == encode_canonical(presence_edu(push=[], unpoll=[BOB]))


@pytest.mark.parametrize(
    ("kind", "edu_type"),
    [
        (EduKind.INVITE, "m.presence_invite"),
        (EduKind.ACCEPT, "m.presence_accept"),
        (EduKind.DENY, "m.presence_deny"),
        (EduKind.DROP, "org.fedpresence.presence_drop"),
    ],
)
def test_a_list_edu_has_exactly_two_users(kind: EduKind, edu_type: str) -> None:
    """The schema of 2018, and nothing of our own in it (decision 2)."""
    wanted = {"edu_type": edu_type, "content": {"observed_user": BOB, "observer_user": ALICE}}

    assert encode_edu(ListEdu(kind, observer=ALICE, observed=BOB)) == encode_canonical(wanted)


@given(presence_edus(HERE, THERE))
def test_decoding_undoes_encoding_of_presence(edu: PresenceEdu) -> None:
    """Two servers of ours agree on every word, and the engine's tests, which have no wire, with both."""
    decoded = decode_json(encode_edu(edu))
    received, skipped = decode(decoded, origin=HERE)

    assert (received, skipped) == (as_received(edu, HERE), [])
    assert encode_edu(edu) == encode_canonical(decoded)  # what is signed is what others make of it


@given(list_edus(HERE, THERE))
def test_decoding_undoes_encoding_of_list_edus(edu: ListEdu) -> None:
    """What one side's rows owe is what the other side's rows learn."""
    decoded = decode_json(encode_edu(edu))
    received, skipped = decode(decoded, origin=HERE)

    assert (received, skipped) == (as_received(edu, HERE), [])


@given(st.lists(odd_edus | json_values(leaves=5), max_size=5))
def test_whatever_stands_in_a_transaction_nothing_is_raised(edus: list[Any]) -> None:
    """One EDU of a peer's must never cost another its due, nor become a 500 (F:R-3)."""
    received, _ = decode(*edus)

    for push in pushes_of(received):
        assert push.user_id.endswith(":there.test")
        assert push.last_active_ago is None or 0 <= push.last_active_ago <= MAX_AGO_MS
        assert len((push.status_msg or "").encode()) <= MAX_STATUS_BYTES
