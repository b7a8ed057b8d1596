"""Z-11: after a start nobody's presence leaves by a homeserver's room before its members were read again."""

from typing import Any

import pytest

from fedpresence.engine.effects import Effect, SendPush, TellObservers, Urgency
from fedpresence.engine.events import (
    RoomJoinRuleChanged,
    RoomMemberChanged,
    RoomMembersSet,
    SettingsChanged,
)
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import (
    HOUR_MS,
    MINUTE_MS,
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
    a_poll,
    a_push,
    a_put,
    a_stream,
    an_invite,
)
from tests.engine.shared_rooms import ERIN, OTHER, OTHER_ROOM, ROOM, may_hear
from tests.engine.side import Side, kinds, of_type


def told(*users: UserID, room_id: RoomID = ROOM) -> RoomMembersSet:
    """Who is in a room now, as the homeserver says."""
    return RoomMembersSet(room_id, frozenset(users), from_homeserver=True)


def given(*users: UserID, room_id: RoomID = ROOM) -> RoomMembersSet:
    """The same by the admin API."""
    return RoomMembersSet(room_id, frozenset(users))


def pushes(effects: tuple[Effect, ...]) -> list[tuple[ServerName, UserID, Urgency]]:
    """Who is due news of whom, and how soon."""
    return [(d, e.user_id, e.urgency) for e in of_type(effects, SendPush) for d in e.destinations]


def restarted(*rooms: RoomMembersSet, **settings: Any) -> Side:
    """Alice is online, and we were away for a minute."""
    side = Side(**settings)
    side.do(a_stream(), a_put(), *(rooms or (told(ALICE, BOB),)))
    side.now_ms += MINUTE_MS
    effects = side.restart()
    assert pushes(effects) == []
    return side


# --- while it is in doubt -----------------------------------------------------------------------------


def test_no_server_has_a_right_by_a_room_in_doubt() -> None:
    """Neither what changes, nor what is asked for, nor what is refreshed leaves."""
    side = restarted()

    effects = (
        *side.do(a_put(PresenceState.UNAVAILABLE, "at lunch")),
        *side.hear(a_poll(ALICE)),
        *side.wait(10 * MINUTE_MS),
    )

    assert pushes(effects) == []
    assert not may_hear(side)
    assert not side.engine.needs_refresh(THERE, ALICE, side.now_ms)
    assert list(side.engine.boot_users()) == []
    assert side.engine.counts().rooms_doubted == 1


def test_a_room_given_by_the_admin_api_is_never_in_doubt() -> None:
    """Whoever gave it will say what changes."""
    side = restarted(given(ALICE, BOB))

    assert may_hear(side)
    assert list(side.engine.boot_users()) == [(THERE, ALICE)]


def test_another_ground_is_as_good_as_ever() -> None:
    """A grant, or a room that was given."""
    side = restarted(told(ALICE, BOB, ERIN), given(ALICE, BOB, room_id=OTHER_ROOM))

    assert may_hear(side)
    assert not may_hear(side, OTHER)


def test_doubt_ends_nothing() -> None:
    """Nobody is told that somebody is gone, here or there."""
    side = Side()
    side.do(a_stream(), a_put(), told(ALICE, BOB, CAROL))
    side.hear(a_push())

    effects = (*side.restart(), *side.wait(MINUTE_MS))

    assert not [effect for effect in of_type(effects, TellObservers) if effect.gone]
    assert side.engine.rights(THERE) == 0


def test_our_own_users_and_what_they_see_are_not_concerned() -> None:
    """The rule is about our users' presence at other servers."""
    side = restarted(told(ALICE, BOB, CAROL))

    effects = side.hear(a_push())

    assert of_type(effects, TellObservers) == [TellObservers(BOB, (ALICE, CAROL))]
    assert side.engine.visible_to(CAROL) == {ALICE, BOB, CAROL}
    assert side.do(a_put(status_msg="back")) == (TellObservers(ALICE, (ALICE, CAROL)),)


def test_a_room_that_is_never_told_again_never_counts() -> None:
    """The homeserver was taken away from the configuration: another restart changes nothing."""
    side = restarted()
    side.restart()

    assert not may_hear(side)
    side.do(given(ALICE, BOB))
    side.restart()
    assert may_hear(side)


def test_single_changes_do_not_end_doubt() -> None:
    """Whoever joins is in the room; whether the others still are is not known."""
    side = restarted()

    effects = side.do(
        RoomMemberChanged(ROOM, DAVE, joined=True),
        RoomMemberChanged(ROOM, CAROL, joined=True),
        RoomJoinRuleChanged(ROOM, "invite"),
    )

    assert pushes(effects) == []
    assert not may_hear(side)


# --- when it was read again ---------------------------------------------------------------------------


def test_who_did_not_change_is_told_again_in_their_time() -> None:
    """As after any start (S:T-28): no second storm."""
    side = restarted()

    effects = side.do(told(ALICE, BOB))

    assert pushes(effects) == [(THERE, ALICE, Urgency.AGAIN)]
    assert may_hear(side)
    assert side.engine.counts().rooms_doubted == 0
    assert side.do(told(ALICE, BOB)) == ()


@pytest.mark.parametrize("state", [PresenceState.UNAVAILABLE, PresenceState.OFFLINE])
def test_who_changed_meanwhile_is_news(state: PresenceState) -> None:
    """Also who went offline: the other side believes them there."""
    side = restarted()
    side.do(a_put(state))

    effects = side.do(told(ALICE, BOB))

    assert pushes(effects) == [(THERE, ALICE, Urgency.ASKED)]


def test_who_went_by_time_alone_is_news_too() -> None:
    """Her device did not come back after the start."""
    side = restarted()
    side.wait(10 * MINUTE_MS)
    assert side.engine.counts().online == 0

    assert pushes(side.do(told(ALICE, BOB))) == [(THERE, ALICE, Urgency.ASKED)]


def test_who_was_and_is_offline_is_no_news() -> None:
    """There as here."""
    side = restarted(told(ALICE, CAROL, BOB))

    assert pushes(side.do(told(ALICE, CAROL, BOB))) == [(THERE, ALICE, Urgency.AGAIN)]


def test_who_hid_in_the_last_moments_of_the_run_before_is_news() -> None:
    """P:D-8: nobody surely heard of it."""
    side = Side()
    side.do(a_stream(), a_put(), told(ALICE, BOB), a_put(PresenceState.OFFLINE))
    side.restart(crashed=True)

    assert pushes(side.do(told(ALICE, BOB))) == [(THERE, ALICE, Urgency.ASKED)]


def test_who_went_offline_in_doubt_is_news_after_another_restart() -> None:
    """Nobody was told, so the second start has to know of it; the third has not."""
    side = restarted()
    side.do(a_put(PresenceState.OFFLINE))
    side.restart()
    side.restart()

    assert pushes(side.do(told(ALICE, BOB))) == [(THERE, ALICE, Urgency.ASKED)]
    side.restart()
    assert pushes(side.do(told(ALICE, BOB))) == []


def test_each_server_is_told_once() -> None:
    """However many rooms it shares."""
    side = restarted(told(ALICE, BOB), told(ALICE, DAVE, ERIN, room_id=OTHER_ROOM))
    side.do(told(ALICE, BOB))

    effects = side.do(told(ALICE, DAVE, ERIN, room_id=OTHER_ROOM))

    assert pushes(effects) == [(OTHER, ALICE, Urgency.AGAIN)]


def test_who_was_banned_while_we_were_away_gets_nothing() -> None:
    """And others get presence again."""
    side = restarted(told(ALICE, BOB, ERIN))
    side.do(a_put(PresenceState.UNAVAILABLE))

    effects = side.do(told(ALICE, ERIN))

    assert pushes(effects) == [(OTHER, ALICE, Urgency.ASKED)]
    assert not may_hear(side)
    assert may_hear(side, OTHER)


def test_a_room_that_may_no_longer_be_read_ends() -> None:
    """Our users have left it, or it is gone."""
    side = restarted(told(ALICE, BOB, CAROL))

    effects = side.do(told())

    assert TellObservers(CAROL, (ALICE,), gone=True) in effects
    assert side.engine.room(ROOM) is None
    assert side.engine.counts().rooms_doubted == 0
    assert not may_hear(side)


def test_who_came_meanwhile_is_introduced() -> None:
    """Whether the stream told of them before the room was read again, or only the reading did."""
    side = restarted(told(ALICE, BOB))
    side.do(a_put(user_id=CAROL), RoomMemberChanged(ROOM, CAROL, joined=True))

    effects = side.do(told(ALICE, BOB, CAROL, ERIN))

    asked = Urgency.ASKED
    assert set(pushes(effects)) == {
        (THERE, ALICE, Urgency.AGAIN),
        (THERE, CAROL, asked),
        (OTHER, ALICE, asked),
        (OTHER, CAROL, asked),
    }
    assert len(pushes(effects)) == 4


def test_who_came_and_went_meanwhile_is_nobody() -> None:
    """What was to be said of them is forgotten."""
    side = restarted(told(ALICE, BOB))
    side.do(RoomMemberChanged(ROOM, ERIN, joined=True), RoomMemberChanged(ROOM, ERIN, joined=False))

    assert pushes(side.do(told(ALICE, BOB))) == [(THERE, ALICE, Urgency.AGAIN)]


def test_a_room_keeps_its_place_by_its_size() -> None:
    """Z-19: what counted may have up to 1.1 times as many, what did not must be smaller."""
    crowd = [UserID(f"@{number}:there.test") for number in range(9)]
    grown = restarted(told(ALICE, *crowd[:8]), told(ALICE, *crowd), max_room_members=10)
    new = restarted(told(ALICE, *crowd), max_room_members=10)

    grown.do(told(ALICE, *crowd))
    new.do(told(ALICE, *crowd))

    assert may_hear(grown)
    assert not may_hear(new)


def test_what_missed_begins_with_the_doubt_and_ends_with_it() -> None:
    """A change after the last room was read again is told to all, and no later start tells it once more."""
    side = restarted()
    side.do(told(ALICE, BOB), a_put(PresenceState.UNAVAILABLE))
    side.restart()

    assert pushes(side.do(told(ALICE, BOB))) == [(THERE, ALICE, Urgency.AGAIN)]


def test_a_large_room_is_told_again_in_parts() -> None:
    """A turn must not take too long."""
    ours = [UserID(f"@{number}:here.test") for number in range(200)]
    theirs = [UserID(f"@bob:s{number}.test") for number in range(200)]
    side = Side(users=tuple(ours), max_room_members=1000)
    side.do(*(a_put(user_id=user_id) for user_id in ours), told(*ours, *theirs))
    side.restart()

    at_once = side.do(told(*ours, *theirs))
    later = side.wait(1_000)

    assert MAX_BEGINNINGS <= len(pushes(at_once)) < MAX_BEGINNINGS + 200
    assert len({*pushes(at_once), *pushes(later)}) == len(ours) * len(theirs)


# --- policies -----------------------------------------------------------------------------------------


def test_rooms_that_are_switched_off_do_nothing() -> None:
    """In doubt or not."""
    side = restarted(share_presence_in_rooms=False)

    assert pushes(side.do(told(ALICE, BOB))) == []
    assert not may_hear(side)


def test_a_reload_tells_nobody_by_a_room_in_doubt() -> None:
    """Whom the policy newly lets in hears when the room was read again."""
    side = restarted(share_presence_in_rooms=False)
    closed = EngineSettings(HERE, room_policy=RoomPolicy(servers=ServerLists(deny=("there.test",))))

    effects = (*side.do(SettingsChanged(closed)), *side.do(SettingsChanged(EngineSettings(HERE))))

    assert pushes(effects) == []
    assert pushes(side.do(told(ALICE, BOB))) == [(THERE, ALICE, Urgency.ASKED)]


def a_grant_by_room() -> Side:
    """Alice and Bob share a room, the policy let him in for it, and we were away."""
    side = Side(invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)
    side.do(a_stream(), a_put(), told(ALICE, BOB))
    side.hear(an_invite())
    side.sends_and_is_heard()
    side.restart()
    return side


def granted(side: Side) -> bool:
    """Whether Bob's grant stands."""
    row = side.observed_row(ALICE, BOB)
    return row is not None and row.stage is ObservedStage.GRANTED


def test_a_grant_that_rests_on_a_room_sleeps_while_it_is_in_doubt() -> None:
    """It stands, and gives no right; then it does again."""
    side = a_grant_by_room()
    assert (granted(side), may_hear(side), side.owed) == (True, False, {})
    side.hear(a_poll(ALICE))
    assert not may_hear(side)

    side.do(told(ALICE, BOB))

    assert (granted(side), may_hear(side), side.owed) == (True, True, {})


def test_a_grant_that_rests_on_a_room_ends_where_the_reading_shows_it() -> None:
    """As when he had left before our eyes."""
    side = a_grant_by_room()

    side.do(told(ALICE, DAVE))

    assert not granted(side)
    assert EduKind.DENY in kinds(side.sends_and_is_heard())


def test_a_check_of_a_grant_is_answered_in_doubt() -> None:
    """It still stands: silence would end it on the other side (S:O-25a)."""
    side = a_grant_by_room()

    side.hear(an_invite())

    assert kinds(side.sends_and_is_heard()) == [EduKind.ACCEPT]


def test_an_invite_is_not_granted_by_a_room_in_doubt() -> None:
    """It comes again within the hour (S:3.5), and then it is known whether they meet."""
    side = restarted(invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)
    assert side.hear(an_invite()) and side.observed_row(ALICE, BOB) is None
    side.do(told(ALICE, BOB))
    side.now_ms += HOUR_MS

    side.hear(an_invite())

    assert granted(side)


def test_leaving_one_room_ends_the_right_where_the_other_is_in_doubt() -> None:
    """The grant goes on, because they may still meet there; the right waits."""
    side = a_grant_by_room()
    side.do(told(ALICE, BOB), told(ALICE, BOB, room_id=OTHER_ROOM))
    side.restart()
    side.do(told(ALICE, BOB))
    rights = side.engine.rights(THERE)
    assert may_hear(side)

    side.do(told(ALICE))

    assert (granted(side), may_hear(side)) == (True, False)
    assert side.engine.rights(THERE) > rights
    assert pushes(side.do(told(ALICE, BOB, room_id=OTHER_ROOM))) == [(THERE, ALICE, Urgency.AGAIN)]


# --- what is to be read first -------------------------------------------------------------------------


def test_rooms_are_read_again_where_somebody_waits_first() -> None:
    """Other servers' members, and somebody of ours who is not offline."""
    quiet, alone, large = RoomID("!quiet:here.test"), RoomID("!alone:here.test"), RoomID("!large:here.test")
    crowd = [UserID(f"@{number}:there.test") for number in range(20)]
    side = restarted(
        told(ALICE, *crowd, room_id=large),
        told(ALICE, CAROL, room_id=alone),
        told(CAROL, BOB, room_id=quiet),
        told(ALICE, BOB),
        given(ALICE, BOB, room_id=OTHER_ROOM),
        max_room_members=10,
    )

    assert side.engine.known.doubted() == [ROOM, quiet, large, alone]
    side.do(told(ALICE, BOB))
    assert side.engine.known.doubted() == [quiet, large, alone]
