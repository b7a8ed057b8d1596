from typing import Any

import pytest

from fedpresence.engine.effects import ForgetRoom, SaveRoom, SaveRoomMembers, SendPush, TellObservers
from fedpresence.engine.events import (
    PresenceSet,
    RoomJoinRuleChanged,
    RoomMemberChanged,
    RoomMembersSet,
    SettingsChanged,
)
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.queries import RoomDetail
from fedpresence.engine.settings import (
    HOUR_MS,
    EngineSettings,
    InvitePolicy,
    RoomPolicy,
    ServerLists,
)
from fedpresence.engine.sharing import MAX_BEGINNINGS
from fedpresence.engine.subscription import EduKind, ObservedStage
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HERE,
    THERE,
    a_push,
    an_invite,
)
from tests.engine.costs import calls_of
from tests.engine.shared_rooms import ERIN, OTHER, ROOM, a_side, may_hear
from tests.engine.side import Side, kinds, of_type, pushed


def joins(user_id: UserID, room_id: RoomID = ROOM) -> RoomMemberChanged:
    """A homeserver tells of a join."""
    return RoomMemberChanged(room_id, user_id, True)


def leaves(user_id: UserID, room_id: RoomID = ROOM) -> RoomMemberChanged:
    """It tells of a leave or a ban."""
    return RoomMemberChanged(room_id, user_id, False)


def reload(side: Side, **settings: Any) -> tuple[object, ...]:
    """SIGHUP with these settings."""
    side.settings = EngineSettings(HERE, **settings)
    return side.do(SettingsChanged(side.settings))


def counts(side: Side, room_id: RoomID = ROOM) -> bool:
    """Whether the room counts."""
    room = side.engine.room(room_id)
    return room is not None and room.counts


# --- one change at a time -----------------------------------------------------------------------------


def test_a_join_is_one_row_and_introduces_the_two() -> None:
    """A homeserver tells of a join as it happens; presence follows at once."""
    side = a_side()
    side.do(joins(ALICE))

    effects = side.do(joins(BOB))

    assert of_type(effects, SaveRoomMembers) == [SaveRoomMembers(ROOM, (BOB,), ())]
    assert pushed(effects) == [(THERE, ALICE)]
    assert may_hear(side)
    side.restart()
    assert side.engine.room(ROOM) == RoomDetail(2, 1, None, True, doubted=True)


def test_a_leave_ends_what_rested_on_it() -> None:
    """The counter moves, the sight is gone, and the remote user forgotten."""
    side = a_side()
    side.do(joins(ALICE), joins(BOB), joins(ERIN))
    side.hear(a_push())
    rights = side.engine.rights(THERE), side.engine.rights(OTHER)

    effects = side.do(leaves(BOB))

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE,), gone=True)]
    assert (side.engine.rights(THERE), side.engine.rights(OTHER)) == (rights[0] + 1, rights[1])
    assert not may_hear(side) and may_hear(side, OTHER)


@pytest.mark.parametrize("again", [joins(BOB), leaves(DAVE), RoomJoinRuleChanged(ROOM, "invite")])
def test_what_is_told_again_is_nothing(again: Any) -> None:
    """A changed display name is a join as well, and a homeserver repeats its transactions."""
    side = a_side()
    side.do(joins(ALICE), joins(BOB), RoomJoinRuleChanged(ROOM, "invite"))

    assert side.do(again) == ()


def test_the_last_of_ours_takes_the_room_along() -> None:
    """Nobody tells us of a room none of ours is in: what we knew of it would be wrong one day."""
    side = a_side()
    side.do(joins(ALICE), joins(BOB), RoomJoinRuleChanged(ROOM, "invite"))

    effects = side.do(leaves(ALICE))

    assert of_type(effects, ForgetRoom) == [ForgetRoom(ROOM)]
    assert (side.engine.room(ROOM), side.engine.rooms()) == (None, ())
    side.do(joins(ALICE))
    assert not may_hear(side), "Bob may have left since"
    assert side.engine.room(ROOM) == RoomDetail(1, 1, None, True)


def test_a_room_too_large_stops_at_once_and_begins_within_the_hour() -> None:
    """Z-19: whoever has fifty accounts must not be able to toggle a room."""
    side = a_side(max_room_members=10)
    users = [UserID(f"@{number}:there.test") for number in range(10)]
    side.do(joins(ALICE), *map(joins, users))
    assert counts(side)  # 11 are within the hysteresis

    side.do(joins(BOB))
    assert not counts(side)
    side.do(leaves(BOB), *map(leaves, users[:3]))
    assert not counts(side) and not may_hear(side)
    effects = side.wait(HOUR_MS)

    assert counts(side) and may_hear(side)
    assert SaveRoom(ROOM, None, True, from_homeserver=True) in effects


def test_a_whole_set_is_judged_at_once() -> None:
    """The admin API names what is true now."""
    side = a_side(max_room_members=3)
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB, CAROL, DAVE})))
    assert not counts(side)

    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))

    assert counts(side) and may_hear(side)


# --- what it costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [joins(BOB), leaves(DAVE)])
def test_a_room_of_thousands_costs_no_more_than_one_of_three(event: RoomMemberChanged) -> None:
    """A homeserver is in rooms of fifty thousand, and somebody joins or leaves every few seconds."""
    small, large = a_side(max_room_members=1), a_side(max_room_members=1)
    small.do(RoomMembersSet(ROOM, frozenset({ALICE, CAROL, DAVE})))
    crowd = frozenset(UserID(f"@{number}:there.test") for number in range(5_000))
    large.do(RoomMembersSet(ROOM, crowd | {ALICE, CAROL, DAVE}))

    def cost(side: Side) -> int:
        return calls_of(lambda: side.engine.receive(event, side.now_ms))

    assert cost(large) <= cost(small) + 5


def test_a_crowd_is_introduced_over_many_turns() -> None:
    """A room of hundreds of servers must not hold up everybody else; nobody is left out."""
    ours = [UserID(f"@{number}:here.test") for number in range(150)]
    theirs = frozenset(UserID(f"@x:{number}.test") for number in range(100))
    side = Side(tuple(ours), max_room_members=1_000)
    side.do(*(PresenceSet(user_id, None, PresenceState.ONLINE, None) for user_id in ours))

    at_once = pushed(side.do(RoomMembersSet(ROOM, theirs.union(ours))))
    later = pushed(side.wait(100))

    assert len(at_once) <= MAX_BEGINNINGS
    assert {*at_once, *later} == {
        (ServerName(f"{number}.test"), user_id) for user_id in ours for number in range(100)
    }


# --- which rooms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "is_one"),
    [
        (RoomPolicy(), True),
        (RoomPolicy(allow=("!room:*",)), True),
        (RoomPolicy(allow=("!ROOM:*",)), False),  # room IDs are compared as they are
        (RoomPolicy(allow=()), False),
        (RoomPolicy(deny=("*:here.test",)), False),
        (RoomPolicy(allow=("!room:here.test",), deny=("!r?om:*",)), False),
        (RoomPolicy(join_rules=("invite",)), False),  # nobody told
        (RoomPolicy(join_rules=("invite", "unknown")), True),
        (RoomPolicy(servers=ServerLists(deny=("THERE.*",))), False),
        (RoomPolicy(servers=ServerLists(allow=("other.test",))), False),
        (RoomPolicy(servers=ServerLists(allow=("there.test",))), True),
    ],
)
@pytest.mark.parametrize("when", ["before", "reload", "restart"])
def test_a_policy_says_which_rooms_are_an_interest(policy: RoomPolicy, is_one: bool, when: str) -> None:
    """Both directions follow it, whenever it comes."""
    side = a_side(room_policy=policy) if when == "before" else a_side()
    side.do(joins(ALICE), joins(BOB))
    rights = side.engine.rights(THERE)

    if when == "reload":
        reload(side, room_policy=policy)
        assert (side.engine.rights(THERE) > rights) is not is_one
    elif when == "restart":
        side.restart(room_policy=policy)
        assert not may_hear(side)  # in doubt (Z-11)
        side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB}), from_homeserver=True))

    assert may_hear(side) is is_one
    assert (side.engine.view(ALICE, BOB, side.now_ms) is not None) is is_one
    assert (ALICE in side.engine.visible_to(ALICE), BOB in side.engine.visible_to(ALICE)) == (True, is_one)


def test_a_join_rule_counts_as_soon_as_it_is_told() -> None:
    """Who opens a room to the public ends what it was shared for, where the operator wants that."""
    side = a_side(room_policy=RoomPolicy(join_rules=("invite", "knock")))
    side.do(RoomJoinRuleChanged(ROOM, "invite"), joins(ALICE), joins(BOB))
    assert may_hear(side)
    rights = side.engine.rights(THERE)

    effects = side.do(RoomJoinRuleChanged(ROOM, "public"))
    assert TellObservers(BOB, (ALICE,), gone=True) in effects
    assert side.engine.rights(THERE) > rights
    assert not may_hear(side)

    effects = side.do(RoomJoinRuleChanged(ROOM, "knock"))
    assert [effect.user_id for effect in of_type(effects, SendPush)] == [ALICE]
    assert may_hear(side)
    side.restart()
    assert side.engine.room(ROOM) == RoomDetail(2, 1, "knock", True, doubted=True)


def test_a_rule_may_come_before_the_first_member_and_goes_when_it_is_taken_back() -> None:
    """A scan may read the rule first; a room of which nothing is known is no row."""
    side = a_side()
    side.do(RoomJoinRuleChanged(ROOM, "invite"))
    side.restart()
    assert side.engine.room(ROOM) == RoomDetail(0, 0, "invite", False, doubted=True)

    assert side.do(RoomJoinRuleChanged(ROOM, None)) == (ForgetRoom(ROOM),)
    assert side.engine.room(ROOM) is None


# --- which servers ------------------------------------------------------------------------------------


def test_a_server_that_rooms_are_no_interest_with_keeps_what_lists_give() -> None:
    """The policy is about rooms: a user's own word is another ground."""
    side = a_side(room_policy=RoomPolicy(servers=ServerLists(deny=("there.test",))))
    side.do(joins(ALICE), joins(BOB), joins(ERIN), joins(CAROL))
    assert (may_hear(side), may_hear(side, OTHER)) == (False, True)

    side.hear(an_invite())
    side.change(ALICE, accept=(BOB,))

    assert may_hear(side)
    assert side.engine.view(ALICE, CAROL, side.now_ms) is not None


def test_a_server_that_is_let_in_is_introduced_and_one_that_is_not_is_parted() -> None:
    """A reload takes effect at once, in both directions."""
    side = a_side(room_policy=RoomPolicy(servers=ServerLists(deny=("other.test",))))
    side.do(joins(ALICE), joins(BOB), joins(ERIN))
    side.hear(a_push())
    rights = side.engine.rights(THERE), side.engine.rights(OTHER)

    effects = reload(side, room_policy=RoomPolicy(servers=ServerLists(deny=("there.test",))))

    assert TellObservers(BOB, (ALICE,), gone=True) in effects
    assert pushed(effects) == [(OTHER, ALICE)]
    assert (side.engine.rights(THERE), side.engine.rights(OTHER)) == (rights[0] + 1, rights[1])
    assert (may_hear(side), may_hear(side, OTHER)) == (False, True)


def test_a_room_that_stops_parts_those_who_met_by_the_policy_of_before() -> None:
    """One reload may end the room and the server: what is over is judged by what was."""
    side = a_side()
    side.do(joins(ALICE), joins(BOB))
    side.hear(a_push())
    rights = side.engine.rights(THERE)
    denied = ServerLists(deny=("there.test",))

    effects = reload(side, share_presence_in_rooms=False, room_policy=RoomPolicy(servers=denied))

    assert TellObservers(BOB, (ALICE,), gone=True) in effects
    assert side.engine.rights(THERE) > rights
    assert side.engine.user_detail(BOB, side.now_ms) is None


def test_what_goes_on_by_another_room_is_not_told_as_over() -> None:
    """A reload that exchanges one room for another is no news to anybody."""
    other = RoomID("!other:here.test")
    side = a_side(room_policy=RoomPolicy(deny=(other,)))
    side.do(joins(ALICE), joins(BOB), joins(ALICE, other), joins(BOB, other))
    rights = side.engine.rights(THERE)

    effects = reload(side, room_policy=RoomPolicy(deny=(ROOM,)))

    assert not [e for e in effects if isinstance(e, TellObservers) and e.gone]
    assert side.engine.rights(THERE) == rights
    assert may_hear(side)


def test_a_grant_by_room_ends_with_the_policy_for_its_server() -> None:
    """Z-10: the same predicate as pushing."""
    side = a_side(invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)
    side.do(joins(ALICE), joins(BOB))
    side.hear(an_invite())
    side.sends_and_is_heard()
    row = side.observed_row(ALICE, BOB)
    assert row is not None and row.stage is ObservedStage.GRANTED

    reload(side, room_policy=RoomPolicy(servers=ServerLists(allow=("other.test",))))

    row = side.observed_row(ALICE, BOB)
    assert row is None or row.stage is not ObservedStage.GRANTED
    assert EduKind.DENY in kinds(side.sends_and_is_heard())


def test_server_lists_stay_stronger_than_any_room() -> None:
    """`federation.deny` ends everything."""
    policy = RoomPolicy(servers=ServerLists(allow=("there.test",)))
    side = a_side(room_policy=policy, servers=ServerLists(deny=("there.test",)))

    effects = side.do(joins(ALICE), joins(BOB))

    assert of_type(effects, SendPush) == []
    assert not may_hear(side)
