from typing import Any

from fedpresence.engine.events import Activity, RoomJoinRuleChanged, RoomMemberChanged
from fedpresence.homeserver.happenings import BACKLOG_MS, MAX_TYPING_ROOMS, Happened, Happenings
from fedpresence.ids import RoomID, ServerName, UserID

HERE = ServerName("here.test")
ALICE, CAROL = UserID("@alice:here.test"), UserID("@carol:here.test")
BOB = UserID("@bob:there.test")
BOT = UserID("@fedpresence:here.test")
ROOM = RoomID("!room:here.test")
NOW_MS = 1_700_000_000_000


def happenings() -> Happenings:
    return Happenings(HERE, BOT)


def event(sender: str = ALICE, ago_ms: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "event_id": "$e",
        "room_id": ROOM,
        "type": "m.room.message",
        "sender": sender,
        "origin_server_ts": NOW_MS - ago_ms,
        "content": {"body": "hi"},
        **more,
    }


def member(user_id: str, membership: object, sender: str | None = None, ago_ms: int = 0) -> dict[str, Any]:
    content = {"membership": membership}
    return event(sender or user_id, ago_ms, type="m.room.member", state_key=user_id, content=content)


def typing(*user_ids: str) -> dict[str, Any]:
    return {"type": "m.typing", "room_id": ROOM, "content": {"user_ids": list(user_ids)}}


def receipt(user_id: str, ts: object, kind: str = "m.read") -> dict[str, Any]:
    return {"type": "m.receipt", "room_id": ROOM, "content": {"$e": {kind: {user_id: {"ts": ts}}}}}


def read(*events: object, ephemeral: object = (), by: Happenings | None = None) -> Happened:
    return (by or happenings()).read({"events": list(events), "ephemeral": ephemeral}, NOW_MS)


def test_who_sends_is_active_at_that_moment_and_never_in_the_future() -> None:
    """H:2.4; a clock that is ahead must not keep anybody online for longer."""
    happened = read(event(ago_ms=2000), event(CAROL, ago_ms=-60_000), event(BOB))

    assert list(happened.activities()) == [
        Activity(ALICE, None, NOW_MS - 2000),
        Activity(CAROL, None, NOW_MS),
    ]
    assert list(happened.people) == [ALICE, CAROL]


def test_a_backlog_shows_nobody_online() -> None:
    """After an outage of an hour its messages all come at once."""
    old = read(event(ago_ms=BACKLOG_MS + 1), ephemeral=[receipt(ALICE, NOW_MS - BACKLOG_MS - 1)])

    assert (old.active, list(old.people)) == ({}, [ALICE])
    assert list(read(event(ago_ms=BACKLOG_MS)).active) == [ALICE]


def test_of_many_events_of_a_user_the_newest_moment_counts() -> None:
    """A hundred messages are one turn of one record."""
    assert read(event(ago_ms=5), event(ago_ms=1), event(ago_ms=9)).active == {ALICE: NOW_MS - 1}


def test_only_a_join_is_a_membership_and_whoever_makes_somebody_leave_acted() -> None:
    """H:2.4: a ban by Alice ends Bob's right, and shows Alice at work."""
    happened = read(
        member(BOB, "join"), member(BOB, "ban", sender=ALICE), member(CAROL, "invite", sender=ALICE)
    )

    assert happened.changes == [
        RoomMemberChanged(ROOM, BOB, joined=True),
        RoomMemberChanged(ROOM, BOB, joined=False),
        RoomMemberChanged(ROOM, CAROL, joined=False),
    ]
    assert list(happened.active) == [ALICE]
    assert list(happened.people) == [ALICE]  # an invite does not prove that Carol exists


def test_a_join_of_ours_names_the_room_and_proves_the_user() -> None:
    """Of a room with somebody new of ours, everybody else has to be asked for."""
    happened = read(member(ALICE, "join"), member(BOB, "join"))

    assert list(happened.joined) == [ROOM]
    assert list(happened.people) == [ALICE]


def test_a_membership_type_without_a_state_key_is_a_message() -> None:
    """State is told by the key's presence, not by the type: anybody may send anything."""
    happened = read(event(type="m.room.member", content={"membership": "join"}))

    assert happened.changes == []


def test_a_join_rule_is_told() -> None:
    """Policies may ask whether anybody could walk in."""
    rule = event(type="m.room.join_rules", state_key="", content={"join_rule": "public"})
    broken = event(type="m.room.join_rules", state_key="", content={})
    elsewhere = event(type="m.room.join_rules", state_key="x", content={"join_rule": "public"})

    assert read(rule, broken, elsewhere).changes == [
        RoomJoinRuleChanged(ROOM, "public"),
        RoomJoinRuleChanged(ROOM, None),
    ]


def test_our_own_bot_is_nobody() -> None:
    """It may be invited into rooms; it must not count as somebody of ours in them."""
    happened = read(event(BOT), member(BOT, "join"), ephemeral=[receipt(BOT, NOW_MS)])

    assert (happened.changes, happened.active, happened.people) == ([], {}, {})


def test_what_makes_no_sense_spoils_nothing_else() -> None:
    """An error would hold up everything that comes after."""
    happened = read(
        None,
        [],
        {},
        event(sender="nobody"),
        event(room_id=5),
        event(content="text"),
        event(origin_server_ts="now"),
        event(origin_server_ts=True),
        member(BOB, ["join"]),
        member("nobody", "join", sender=ALICE),
        member(BOB, "join"),
        event(CAROL),
        ephemeral=[
            3,
            {"type": "m.typing"},
            {"type": "m.typing", "room_id": ROOM, "content": {"user_ids": 5}},
            {
                "type": "m.receipt",
                "room_id": ROOM,
                "content": {"$e": {"m.read": {"x": {}, ALICE: 5}}, "$f": 1},
            },
            {"type": "de.sorunome.msc2409.to_device"},
            typing(3, ALICE),  # type: ignore[arg-type]  # that is the point
        ],
    )

    assert happened.changes == [RoomMemberChanged(ROOM, BOB, joined=True)]
    assert list(happened.active) == [CAROL, ALICE]
    assert happened.skipped == 16


def test_a_body_without_lists_is_nothing() -> None:
    """An empty transaction has no `ephemeral`; an old homeserver never has."""
    by = happenings()

    for body in ({}, {"events": None}, {"events": {}, "ephemeral": 1}):
        assert by.read(body, NOW_MS) == Happened(is_old=True)


def test_a_receipt_is_active_at_its_own_moment() -> None:
    """H:2.5: private ones too; they come late together with others."""
    happened = read(ephemeral=[receipt(ALICE, NOW_MS - 7, "m.read.private"), receipt(BOB, NOW_MS)])

    assert happened.active == {ALICE: NOW_MS - 7}


def test_who_newly_types_is_active_and_who_goes_on_is_not() -> None:
    """The list is whole each time: only the difference is something that somebody did."""
    by = happenings()
    first = read(event(CAROL), ephemeral=[typing(ALICE, BOB)], by=by)
    again = read(ephemeral=[typing(ALICE)], by=by)
    read(ephemeral=[typing()], by=by)
    anew = read(ephemeral=[typing(ALICE)], by=by)

    assert first.active == {CAROL: NOW_MS, ALICE: NOW_MS}
    assert (again.active, anew.active) == ({}, {ALICE: NOW_MS})


def test_typing_has_no_moment_and_counts_only_while_we_are_up_to_date() -> None:
    """What was typed during an outage comes hours later, and nothing in it says so."""
    by = happenings()
    at_first = read(ephemeral=[typing(ALICE)], by=by)
    backlog = read(event(CAROL, ago_ms=3_600_000), ephemeral=[typing(ALICE, CAROL)], by=by)

    assert (at_first.active, backlog.active) == ({}, {})
    assert list(at_first.people) == [ALICE]


def test_the_old_key_is_read_where_the_new_one_is_missing() -> None:
    """H:2.5: both may come, with the same content."""
    old = {"events": [], "de.sorunome.msc2409.ephemeral": [receipt(ALICE, NOW_MS)]}

    assert happenings().read(old, NOW_MS).active == {ALICE: NOW_MS}
    assert happenings().read({**old, "ephemeral": []}, NOW_MS).active == {}


def test_a_repeated_transaction_changes_nothing_that_the_first_did_not() -> None:
    """After a restart the last one may come again."""
    body = {"events": [event(ago_ms=3), member(BOB, "join")], "ephemeral": [typing(CAROL)]}
    first, second = happenings().read(body, NOW_MS), happenings().read(body, NOW_MS + 1000)

    assert second.changes == first.changes
    assert second.active[ALICE] == first.active[ALICE]


def test_what_is_remembered_of_typing_is_bounded() -> None:
    """A homeserver with a bug must not grow us."""
    by = happenings()
    for number in range(MAX_TYPING_ROOMS + 5):
        by.read({"ephemeral": [{**typing(ALICE), "room_id": f"!{number}:here.test"}]}, NOW_MS)

    assert len(by._typing) == MAX_TYPING_ROOMS


def test_the_stream_is_old_until_one_of_ours_has_done_something_since_the_start() -> None:
    """What others say of the time is theirs to choose, and a moment before the start may stand behind it."""
    by = Happenings(HERE, BOT, started_ms=NOW_MS)

    def read(sender: UserID, at_ms: int) -> bool:
        return by.read({"events": [event(sender, NOW_MS - at_ms)]}, NOW_MS).is_old

    assert read(ALICE, NOW_MS - 1)
    assert read(BOB, NOW_MS + 1_000)
    assert read(ALICE, NOW_MS)  # what stood before it in the same transaction is old
    assert not read(BOB, NOW_MS - 1_000)
