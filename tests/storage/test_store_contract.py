from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from fedpresence.engine.effects import (
    ForgetAnswer,
    ForgetInbox,
    ForgetObservedRow,
    ForgetObserverRow,
    ForgetRoom,
    SaveAnswer,
    SaveHidden,
    SaveInbox,
    SaveObservedRow,
    SaveObserverRow,
    SaveRoom,
    SaveRoomMembers,
    SaveUser,
)
from fedpresence.engine.events import ListEduReceived
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.errors import StoreError
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID
from fedpresence.storage.store import TokenOwner
from fedpresence.testing.builders import ALICE, BOB, CAROL, HERE, NOW_MS, PHONE, THERE
from tests.storage.worlds import World, a_record, commit, stored

ROOM = RoomID("!room:here.test")


def owed(kind: EduKind, generation: int, *, unpoll: bool = False, final_push: bool = False) -> OwedEdu:
    return OwedEdu(kind, ALICE, BOB, generation, NOW_MS, unpoll=unpoll, final_push=final_push)


def observer_row(stage: ObserverStage = ObserverStage.PENDING, **fields: Any) -> ObserverRow:
    return ObserverRow(ALICE, BOB, stage, NOW_MS, NOW_MS + 1, **fields)


def observed_row(stage: ObservedStage = ObservedStage.REQUESTED, **fields: Any) -> ObservedRow:
    return ObservedRow(BOB, ALICE, stage, NOW_MS, NOW_MS + 1, **fields)


# --- rows -----------------------------------------------------------------------------------------


def test_a_new_store_is_empty(world: World) -> None:
    """The first start of all begins with nothing, not with an error."""
    found = world.wait(world.store.load())

    assert [*found.users, *found.pairs.observer_rows(), *found.pairs.observed_rows(), *found.rooms] == []
    assert [*found.hidden, *found.answers, *found.inbox, *found.presence] == []
    assert (found.newest_origin_ts, found.saved_at_ms) == ({}, 0)


def test_an_observer_row_survives_whole_with_the_edus_it_owes(world: World) -> None:
    """What is owed is part of the row (decision 16): losing it would leave the pair half-open."""
    row = observer_row(
        ObserverStage.NONE,
        invite_ms=NOW_MS + 2,
        confirmed_ms=NOW_MS + 3,
        check_ms=NOW_MS + 4,
        generation=7,
        owed=(owed(EduKind.INVITE, 6), owed(EduKind.DROP, 7, unpoll=True)),
    )

    commit(world, SaveObserverRow(row))

    assert list(stored(world).pairs.observer_rows()) == [row]


def test_an_observed_row_survives_whole_with_the_edus_it_owes(world: World) -> None:
    """A revoke that is not delivered yet must go on being tried after a restart."""
    row = ObservedRow(
        observer=ALICE,
        observed=BOB,
        stage=ObservedStage.DENIED,
        created_ms=NOW_MS,
        changed_ms=NOW_MS + 1,
        muted=True,
        blocked=True,
        by_room=True,
        denials=2,
        generation=5,
        owed=(owed(EduKind.DENY, 5, final_push=True),),
        confirmed_ms=NOW_MS + 2,
    )

    commit(world, SaveObservedRow(row))

    assert list(stored(world).pairs.observed_rows()) == [row]


def test_every_stage_and_flag_reads_back_as_it_was_written(world: World) -> None:
    """Two columns exchanged would grant what was only muted."""
    observers = [observer_row(stage) for stage in ObserverStage]
    flags: list[dict[str, Any]] = [{"muted": True}, {"blocked": True}, {"by_room": True}]
    observed = [
        *(observed_row(stage) for stage in ObservedStage),
        *(observed_row(**flag) for flag in flags),
    ]

    for row in observers:
        commit(world, SaveObserverRow(row))
        assert list(stored(world).pairs.observer_rows()) == [row]
    for other in observed:
        commit(world, SaveObservedRow(other))
        assert list(stored(world).pairs.observed_rows()) == [other]


def test_the_two_halves_and_the_two_directions_of_a_pair_are_apart(world: World) -> None:
    """Alice observing Bob says nothing about Bob observing Alice (S:2)."""
    there = observer_row()
    back = ObserverRow(BOB, ALICE, ObserverStage.ACCEPTED, NOW_MS, NOW_MS)
    commit(world, SaveObserverRow(there), SaveObserverRow(back), SaveObservedRow(observed_row()))

    commit(world, ForgetObserverRow(ALICE, BOB), ForgetObservedRow(ALICE, BOB))

    found = stored(world)
    assert list(found.pairs.observer_rows()) == [back]
    assert list(found.pairs.observed_rows()) == [observed_row()]


def test_of_one_row_the_last_word_in_a_turn_wins(world: World) -> None:
    """Events that share a turn may save a row, forget it and save it again."""
    commit(
        world,
        SaveObserverRow(observer_row(ObserverStage.ACCEPTED)),
        ForgetObserverRow(ALICE, BOB),
        SaveObserverRow(observer_row(ObserverStage.DENIED)),
        SaveObservedRow(observed_row()),
        ForgetObservedRow(BOB, ALICE),
        SaveInbox(1, ()),
        ForgetInbox(1),
        SaveHidden(ALICE, None, True),
        SaveHidden(ALICE, None, False),
        SaveAnswer(THERE, "t1", NOW_MS, NOW_MS),
        ForgetAnswer(THERE, "t1"),
    )

    found = stored(world)
    assert list(found.pairs.observer_rows()) == [observer_row(ObserverStage.DENIED)]
    assert [*found.pairs.observed_rows(), *found.inbox, *found.hidden, *found.answers] == []


def test_forgetting_what_is_not_there_changes_nothing(world: World) -> None:
    """The engine may say twice that a row is gone."""
    commit(
        world,
        ForgetObserverRow(ALICE, BOB),
        ForgetObservedRow(ALICE, BOB),
        ForgetAnswer(THERE, "t1"),
        ForgetInbox(1),
        SaveHidden(ALICE, PHONE, False),
        ForgetRoom(ROOM),
    )

    assert list(stored(world).pairs.observer_rows()) == []


def test_hidden_devices_are_told_apart_and_a_missing_device_is_one(world: World) -> None:
    """A declared offline survives a restart (P:D-8); a token without device must not unhide another."""
    empty = DeviceID("")
    commit(world, *(SaveHidden(ALICE, device, True) for device in (None, PHONE, empty)))
    commit(world, SaveHidden(ALICE, None, True), SaveHidden(ALICE, empty, False))

    assert sorted(stored(world).hidden, key=str) == [(ALICE, PHONE), (ALICE, None)]


def test_a_room_changes_member_by_member(world: World) -> None:
    """Who has left may see nothing more, and a join is one row however large the room is."""
    commit(world, SaveRoom(ROOM, None, True), SaveRoomMembers(ROOM, (ALICE, BOB), ()))
    commit(world, SaveRoomMembers(ROOM, (CAROL,), (ALICE,)), SaveRoomMembers(ROOM, (BOB,), ()))

    assert rooms_in(world) == {ROOM: (None, True, {BOB, CAROL})}


def test_a_rule_changes_without_its_members(world: World) -> None:
    """The rows of a room of thousands are not touched by what is said about the room."""
    commit(world, SaveRoom(ROOM, "public", False), SaveRoomMembers(ROOM, (ALICE,), ()))
    commit(world, SaveRoom(ROOM, "invite", True))

    assert rooms_in(world) == {ROOM: ("invite", True, {ALICE})}


def test_it_is_kept_who_told_of_a_room(world: World) -> None:
    """A homeserver's is in doubt after a start (Z-11)."""
    commit(world, SaveRoom(ROOM, None, True, from_homeserver=True))
    assert [room.from_homeserver for room in stored(world).rooms] == [True]

    commit(world, SaveRoom(ROOM, None, True))
    assert [room.from_homeserver for room in stored(world).rooms] == [False]


def test_a_room_without_members_is_kept_for_its_rule(world: World) -> None:
    """The rule may be told before the first member."""
    commit(world, SaveRoom(ROOM, "invite", False))

    assert rooms_in(world) == {ROOM: ("invite", False, set())}


def test_a_room_is_forgotten_with_its_members(world: World) -> None:
    """A room that comes back, be it in the same turn, begins with those who are told then."""
    commit(world, SaveRoom(ROOM, None, True), SaveRoomMembers(ROOM, (ALICE, BOB), ()))
    commit(world, ForgetRoom(ROOM))
    assert rooms_in(world) == {}

    commit(world, SaveRoom(ROOM, "knock", True), SaveRoomMembers(ROOM, (ALICE,), ()))
    commit(
        world,
        SaveRoomMembers(ROOM, (BOB,), ()),
        ForgetRoom(ROOM),
        SaveRoom(ROOM, None, False),
        SaveRoomMembers(ROOM, (CAROL,), ()),
    )

    assert rooms_in(world) == {ROOM: (None, False, {CAROL})}


def rooms_in(world: World) -> dict[RoomID, tuple[str | None, bool, set[UserID]]]:
    """Join rule, whether it counts, and members of each room."""
    return {r.room_id: (r.join_rule, r.counts, set(r.members)) for r in stored(world).rooms}


def test_answers_come_oldest_first_and_are_forgotten_one_by_one(world: World) -> None:
    """A repeated transaction must change nothing, a restart in between or not (F:R-1)."""
    late, early = SaveAnswer(THERE, "t1", NOW_MS + 5, 17), SaveAnswer(THERE, "t2", NOW_MS, 18)
    other = SaveAnswer(HERE, "t1", NOW_MS + 1, 19)
    commit(world, late, early, other)
    assert list(stored(world).answers) == [early, other, late]

    commit(world, ForgetAnswer(THERE, "t1"))

    assert list(stored(world).answers) == [early, other]


def test_the_newest_time_of_an_origin_never_goes_back(world: World) -> None:
    """The guard against replays must outlive the answers themselves (Z-6)."""
    commit(world, SaveAnswer(THERE, "t1", NOW_MS, 500), SaveAnswer(THERE, "t2", NOW_MS, 400))
    commit(world, SaveAnswer(THERE, "t3", NOW_MS, 300), ForgetAnswer(THERE, "t1"))
    commit(world, SaveAnswer(HERE, "t4", NOW_MS, 900), ForgetAnswer(HERE, "t4"))

    assert stored(world).newest_origin_ts == {THERE: 500, HERE: 900}


def test_the_inbox_keeps_its_order(world: World) -> None:
    """A drop must not overtake the invite before it (Z-7)."""
    edus = tuple(ListEduReceived(kind, THERE, BOB, ALICE) for kind in EduKind)
    second, first = SaveInbox(12, edus[::-1]), SaveInbox(3, edus)
    commit(world, second)
    commit(world, first, SaveInbox(7, edus[:1]))

    commit(world, ForgetInbox(7))

    assert list(stored(world).inbox) == [first, second]


def test_presence_is_replaced_kept_and_forgotten_per_user(world: World) -> None:
    """A restart begins with what was known (P:M-4) and with nobody whom it must not know (decision 19)."""
    world.wait(world.store.save_presence([a_record(), a_record(CAROL)], NOW_MS))
    newer = a_record(state=PresenceState.BUSY, status_msg=None, currently_active=False, heard_ms=0)
    world.wait(world.store.save_presence([newer], NOW_MS))
    world.wait(world.store.forget_presence([CAROL, ALICE]))

    assert list(stored(world).presence) == [newer]


def test_the_moment_of_the_last_write_is_kept(world: World) -> None:
    """Without it a jump of the clock between stop and start could not be seen (Z-21)."""
    commit(world, SaveUser(ALICE, False), now_ms=NOW_MS)
    assert stored(world).saved_at_ms == NOW_MS

    world.wait(world.store.save_presence([], NOW_MS + 9))
    assert stored(world).saved_at_ms == NOW_MS + 9


# --- other servers' keys --------------------------------------------------------------------------


def test_keys_are_replaced_and_come_newest_first(world: World) -> None:
    """A restart should not have to fetch every key again."""
    world.wait(world.store.save_keys(THERE, b"{old}", 1))
    world.wait(world.store.save_keys(HERE, b"{here}", 2))
    world.wait(world.store.save_keys(THERE, b"{new}", 3))

    world.restart()
    assert world.wait(world.store.load_keys()) == [(THERE, b"{new}", 3), (HERE, b"{here}", 2)]


def test_of_too_many_servers_the_one_fetched_longest_ago_goes(world: World) -> None:
    """Whoever owns a wildcard owns any number of names (Z-4)."""
    for fetched_ms, name in enumerate("abcd"):
        world.wait(world.store.save_keys(ServerName(f"{name}.test"), b"{}", fetched_ms))

    names = [name for name, _, _ in world.wait(world.store.load_keys())]
    assert names == ["d.test", "c.test", "b.test"]


# --- the end --------------------------------------------------------------------------------------


def test_a_closed_store_answers_with_an_error_and_closes_again_quietly(world: World) -> None:
    """A stop may be asked for twice; a write after it must not seem to have worked."""
    world.wait(world.store.close())
    world.wait(world.store.close())

    store = world.store
    asked: list[Callable[[], Deferred[Any]]] = [
        store.load,
        lambda: store.commit([SaveUser(ALICE, False)], NOW_MS),
        lambda: store.save_presence([], NOW_MS),
        lambda: store.forget_presence([]),
        store.new_users,
        store.tokens_changed,
        lambda: store.add_token("t", TokenOwner(ALICE, None), NOW_MS),
        lambda: store.find_token("t"),
        lambda: store.list_tokens(None),
        lambda: store.revoke_tokens(ALICE, None, all_devices=True),
        store.hidden_without_token,
        store.load_keys,
        lambda: store.save_keys(THERE, b"{}", 1),
    ]
    for ask in asked:
        with pytest.raises(StoreError):
            world.wait(ask())
