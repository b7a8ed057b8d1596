from typing import Any

import pytest

from fedpresence.engine.effects import SaveRoom, SendPush, TellObservers, Urgency
from fedpresence.engine.events import RoomMembersSet, SettingsChanged
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.rooms import should_count
from fedpresence.engine.settings import EngineSettings, InvitePolicy
from fedpresence.engine.subscription import EduKind, ObservedStage
from fedpresence.ids import RoomID, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HERE,
    THERE,
    a_push,
    a_put,
    an_invite,
)
from tests.engine.shared_rooms import ERIN, OTHER, OTHER_ROOM, ROOM, a_side, may_hear
from tests.engine.side import Side, kinds, of_type, pushed


def members(*users: UserID, room_id: RoomID = ROOM) -> RoomMembersSet:
    """Who is in a room now."""
    return RoomMembersSet(room_id, frozenset(users))


# --- a room begins ------------------------------------------------------------------------------------


def test_who_comes_to_share_a_room_is_introduced() -> None:
    """E:P-9: the state is sent at once, not with its next change."""
    side = a_side()

    effects = side.do(members(ALICE, BOB, ERIN))

    assert pushed(effects) == [(OTHER, ALICE), (THERE, ALICE)]
    assert {effect.urgency for effect in of_type(effects, SendPush)} == {Urgency.ASKED}
    assert may_hear(side)


def test_a_second_member_of_a_server_is_no_news_to_it() -> None:
    """It knows already."""
    side = a_side()
    side.do(members(ALICE, BOB))

    assert pushed(side.do(members(ALICE, BOB, DAVE))) == []


def test_a_newcomer_of_ours_is_introduced_to_all() -> None:
    """The others are known there."""
    side = a_side()
    side.do(members(CAROL, BOB, ERIN))

    assert pushed(side.do(members(CAROL, BOB, ERIN, ALICE))) == [(OTHER, ALICE), (THERE, ALICE)]


def test_a_room_is_stored_before_anything_leaves() -> None:
    """After a crash the right is still there (Z-11: rooms given by the admin API count at once)."""
    side = a_side()
    assert type(side.do(members(ALICE, BOB))[0]) is SaveRoom

    side.restart()

    assert may_hear(side)


def test_the_same_members_again_are_nothing() -> None:
    """Whoever tells of rooms tells again at every start."""
    side = a_side()
    side.do(members(ALICE, BOB))

    assert side.do(members(ALICE, BOB)) == ()


# --- a room ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [(ALICE,), (BOB,), ()])
def test_a_right_ends_with_the_room(left: tuple[UserID, ...]) -> None:
    """Whoever left, or if the room went: the counter moves, and nothing more is said."""
    side = a_side()
    side.do(members(ALICE, BOB))
    rights = side.engine.rights(THERE)

    side.do(members(*left))

    assert not may_hear(side)
    assert side.engine.rights(THERE) == rights + 1


def test_another_room_is_another_ground() -> None:
    """The right remains, and so do the bytes."""
    side = a_side()
    side.do(members(ALICE, BOB), members(ALICE, DAVE, room_id=OTHER_ROOM))
    rights = side.engine.rights(THERE)

    side.do(members(ALICE))

    assert may_hear(side)
    assert side.engine.rights(THERE) == rights


def test_a_grant_outlives_the_room() -> None:
    """The user's own word."""
    side = a_side()
    side.do(members(ALICE, BOB))
    side.hear(an_invite())
    side.change(ALICE, accept=(BOB,))
    rights = side.engine.rights(THERE)

    side.do(members(ALICE))

    assert may_hear(side)
    assert side.engine.rights(THERE) == rights


def test_who_leaves_is_seen_no_more() -> None:
    """Shown offline once, and then forgotten (decision 19)."""
    side = a_side()
    side.do(members(ALICE, BOB))
    side.hear(a_push())

    effects = side.do(members(ALICE))

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,), gone=True)]
    assert side.engine.view(ALICE, BOB, side.now_ms) is None
    assert side.engine.user_detail(BOB, side.now_ms) is None


def test_our_own_users_cease_to_see_each_other_too() -> None:
    """The rule is one for all."""
    side = a_side()
    side.do(members(ALICE, CAROL))

    effects = side.do(members(ALICE))

    assert set(of_type(effects, TellObservers)) == {
        TellObservers(ALICE, (CAROL,), gone=True),
        TellObservers(CAROL, (ALICE,), gone=True),
    }


# --- grants that rest on a room (Z-10) ----------------------------------------------------------------


def a_grant_by_room() -> Side:
    """Alice and Bob share a room, and the policy let him in for it."""
    side = a_side(invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)
    side.do(members(ALICE, BOB))
    side.hear(an_invite())
    side.sends_and_is_heard()
    return side


def granted(side: Side, observer: UserID = BOB) -> bool:
    """Whether the grant stands."""
    row = side.observed_row(ALICE, observer)
    return row is not None and row.stage is ObservedStage.GRANTED


@pytest.mark.parametrize("left", [(ALICE, DAVE), (BOB,), ()])
def test_a_grant_by_room_ends_when_the_two_share_none(left: tuple[UserID, ...]) -> None:
    """His server may still share one: the grant was to him."""
    side = a_grant_by_room()

    side.do(members(*left))

    assert not granted(side)
    assert EduKind.DENY in kinds(side.sends_and_is_heard())


def test_a_grant_by_room_ends_as_the_room_becomes_too_large() -> None:
    """The same predicate as pushing asks."""
    side = a_side(invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM, max_room_members=3)
    side.do(members(ALICE, BOB))
    side.hear(an_invite())
    assert granted(side)

    side.do(members(ALICE, BOB, CAROL, DAVE))

    assert not granted(side)


@pytest.mark.parametrize("setting", [{"share_presence_in_rooms": False}, {"max_room_members": 1}])
@pytest.mark.parametrize("how", ["a reload", "a restart"])
def test_a_grant_by_room_ends_as_rooms_cease_to_count(setting: dict[str, Any], how: str) -> None:
    """Whether the settings change under it or while it sleeps."""
    side = a_grant_by_room()
    rights = side.engine.rights(THERE)

    if how == "a reload":
        side.do(SettingsChanged(EngineSettings(HERE, **setting)))
        assert side.engine.rights(THERE) > rights
    else:
        side.restart(**setting)

    assert not granted(side)
    assert not may_hear(side)
    assert EduKind.DENY in kinds(side.sends_and_is_heard())


def test_the_users_word_makes_a_grant_by_room_her_own() -> None:
    """T-22 by herself: it no longer rests on the room."""
    side = a_grant_by_room()
    side.change(ALICE, accept=(BOB,))

    side.do(members(ALICE))

    assert granted(side)


def test_a_grant_of_her_own_does_not_come_to_rest_on_a_room() -> None:
    """A repeated invite meets a policy that would have granted it."""
    side = a_side()
    side.hear(an_invite())
    side.change(ALICE, accept=(BOB,))
    side.do(members(ALICE, BOB))
    side.do(SettingsChanged(EngineSettings(HERE, invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)))

    side.hear(an_invite())
    side.do(members(ALICE))

    assert granted(side)


def test_a_grant_by_room_of_one_of_ours_ends_too() -> None:
    """S:6: the other row hears of it in the same turn."""
    side = a_side(invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)
    side.do(members(ALICE, CAROL))
    side.change(CAROL, invite=(ALICE,))
    assert granted(side, CAROL)

    side.do(members(ALICE))

    assert not granted(side, CAROL)
    assert side.engine.view(CAROL, ALICE, side.now_ms) is None


# --- size (Z-19) --------------------------------------------------------------------------------------


def test_the_size_of_a_room_has_hysteresis() -> None:
    """Toggling a 500-member room at its limit must not flood anybody."""
    settings = EngineSettings(HERE, max_room_members=500)

    def counts(before: bool, *sizes: int) -> list[bool]:
        return [should_count(ROOM, None, before, size, settings) for size in sizes]

    assert counts(True, 500, 550, 551) == [True, True, False]
    assert counts(False, 550, 500, 499, 0) == [False, False, True, False]


def test_a_room_that_grew_keeps_its_place_over_a_restart() -> None:
    """Whether it counts is stored with it."""
    side = a_side(max_room_members=10)
    users = tuple(UserID(f"@{number}:there.test") for number in range(8))
    side.do(members(ALICE, *users))
    side.do(members(ALICE, *users, BOB, DAVE))
    assert may_hear(side)

    side.restart()

    assert may_hear(side)


def test_a_room_too_large_is_no_ground_from_the_beginning() -> None:
    """Nothing is sent for it, and nobody sees anybody."""
    side = a_side(max_room_members=2)

    effects = side.do(members(ALICE, BOB))

    assert (pushed(effects), of_type(effects, TellObservers)) == ([], [])
    assert not may_hear(side)
    assert side.engine.view(ALICE, BOB, side.now_ms) is None


def test_switching_rooms_off_ends_every_right_they_gave() -> None:
    """At the reload, not at the next change."""
    side = a_side()
    side.do(members(ALICE, BOB))
    rights = side.engine.rights(THERE)

    side.do(SettingsChanged(EngineSettings(HERE, share_presence_in_rooms=False)))

    assert side.engine.rights(THERE) == rights + 1
    assert not may_hear(side)


def test_a_room_of_strangers_is_nobodys_business() -> None:
    """Rooms of a homeserver may have no user of ours left."""
    side = a_side()

    effects = side.do(members(BOB, ERIN))

    assert (pushed(effects), of_type(effects, TellObservers)) == ([], [])


def test_a_long_absent_user_is_not_announced_to_newcomers() -> None:
    """P:11: offline, silent and away for a week is nobody's news."""
    side = Side()

    assert pushed(side.do(members(ALICE, BOB))) == []
    side.do(a_put(PresenceState.OFFLINE, "on holiday", user_id=CAROL))
    assert pushed(side.do(members(CAROL, BOB, room_id=OTHER_ROOM))) == [(THERE, CAROL)]
