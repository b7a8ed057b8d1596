import pytest

from fedpresence.engine.effects import SendDropOnce, SendEdu
from fedpresence.engine.events import (
    EdusDelivered,
    ListChanged,
    RoomMembersSet,
    SettingsChanged,
    Stopping,
    StreamClosed,
    UserDeactivated,
)
from fedpresence.engine.outgoing import ListEdu, PresenceEdu, Push, Wanted
from fedpresence.engine.presence import OFFLINE, ONLINE, PresenceState
from fedpresence.engine.settings import DAY_MS, MINUTE_MS, EngineSettings, InvitePolicy, ServerLists
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HERE,
    PHONE,
    THERE,
    a_deny,
    a_drop,
    a_poll,
    a_push,
    a_put,
    a_stream,
    an_accept,
    an_invite,
    an_unpoll,
)
from tests.engine.side import Side, kinds, of_type, pushed

INVITE, ACCEPT, DENY, DROP = EduKind.INVITE, EduKind.ACCEPT, EduKind.DENY, EduKind.DROP
ROOM = RoomID("!room:here.test")
OTHER = ServerName("other.test")
DENIED = EngineSettings(HERE, servers=ServerLists(deny=("there.test",)))
NOBODY = UserID("@nobody:here.test")


def a_side() -> Side:
    """Alice is online with a message, and nobody may know."""
    side = Side()
    side.do(a_stream(), a_put(ONLINE, "at work"))
    return side


def a_grant(*observers: UserID) -> Side:
    """Alice is online, and these (Bob where nobody is named) may know."""
    side = a_side()
    for observer in observers or (BOB,):
        side.hear(an_invite(observer=observer))
        side.change(ALICE, accept=(observer,))
    side.sends_and_is_heard(ALICE)
    return side


def an_accepted_pair() -> Side:
    """Alice observes Bob."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.sends_and_is_heard()
    side.hear(an_accept(), a_push())
    return side


# --- what a push says ---------------------------------------------------------------------------------


def test_a_push_is_made_of_the_newest_state_as_it_leaves() -> None:
    """Decision 9: `last_active_ago` counts from that moment, not from when it was queued."""
    side = a_grant()
    side.now_ms += 7_000

    composed = side.sends(ALICE)

    assert composed.pushes == (Push(ALICE, ONLINE, 7_000, "at work", True),)
    assert composed.published[ALICE].state is ONLINE


def test_what_is_told_at_one_moment_is_made_once_but_not_across_a_change() -> None:
    """Many destinations share it, and may share nothing that is over: a status, an age, a right."""
    side = a_grant()
    before = side.sends(ALICE)
    assert side.sends(ALICE).pushes is before.pushes
    assert side.sends(ALICE, destination=OTHER).pushes == ()  # it has no right, whoever was told just now

    side.do(a_put(ONLINE, "at lunch"))
    (changed,) = side.sends(ALICE).pushes
    side.now_ms += 1
    (older,) = side.sends(ALICE).pushes

    assert changed.status_msg == "at lunch"
    assert older.last_active_ago == changed.last_active_ago + 1


def test_a_user_who_was_never_active_has_an_age_all_the_same() -> None:
    """E:P-3: some servers drop the whole EDU without it."""
    side = Side()
    side.hear(an_invite(observed=CAROL))
    side.change(CAROL, accept=(BOB,))
    side.now_ms += 5_000

    (push,) = side.sends(CAROL).pushes

    assert (push.state, push.last_active_ago) == (OFFLINE, 5_000)


def test_activity_that_has_ended_is_not_called_current() -> None:
    """The timer may be a moment late; the bytes are not."""
    side = a_grant()
    side.now_ms += MINUTE_MS

    (push,) = side.sends(ALICE).pushes

    assert not push.currently_active


def test_a_declared_offline_user_is_frozen() -> None:
    """Z-8: "appear offline" that shows typing would be no hiding."""
    side = a_grant()
    side.do(a_put(PresenceState.OFFLINE))
    side.now_ms += MINUTE_MS
    side.do(a_put(PresenceState.OFFLINE))
    side.now_ms += MINUTE_MS

    (push,) = side.sends(ALICE).pushes

    assert (push.state, push.last_active_ago) == (OFFLINE, 2 * MINUTE_MS)


# --- by which right -----------------------------------------------------------------------------------


def test_without_a_right_nothing_leaves() -> None:
    """Whatever a queue wants: users it names may have lost every ground since."""
    side = a_side()

    composed = side.engine.compose(THERE, Wanted(users=(ALICE, CAROL, NOBODY, BOB)), side.now_ms)

    assert (composed.pushes, composed.published, composed.before) == ((), {}, ())


def test_a_right_is_a_servers_own() -> None:
    """A grant to `there.test` says nothing to `other.test`."""
    side = a_grant()

    assert side.sends(ALICE).pushes
    assert not side.sends(ALICE, destination=OTHER).pushes


ENDINGS = {
    "revoked": lambda side: side.change(ALICE, revoke=(BOB,)),
    "denied": lambda side: side.change(ALICE, deny=(BOB,)),
    "dropped": lambda side: side.hear(a_drop()),
    "muted": lambda side: side.hear(an_unpoll()),
    "deactivated": lambda side: side.do(UserDeactivated(ALICE)),
    "server denied": lambda side: side.do(SettingsChanged(DENIED)),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_the_counter_moves_as_a_right_ends(how: str) -> None:
    """Bytes made before are never sent again: that is all the queue has to go by."""
    side = a_grant()
    before = side.engine.rights(THERE)
    assert side.sends(ALICE).rights == before

    ENDINGS[how](side)

    assert side.engine.rights(THERE) == before + 1
    composed = side.sends(ALICE)
    assert composed.rights == before + 1
    assert (composed.pushes, composed.published) == ((), {})
    assert side.engine.rights(OTHER) == 0


@pytest.mark.parametrize("how", ["revoked", "denied", "dropped"])
def test_the_counter_rests_while_another_right_remains(how: str) -> None:
    """A queue that restarts for nothing repeats itself for nothing."""
    side = a_grant(BOB, DAVE)
    before = side.engine.rights(THERE)

    ENDINGS[how](side)

    assert side.engine.rights(THERE) == before
    assert side.sends(ALICE).pushes


def test_the_counter_rests_while_nothing_ends() -> None:
    """Grants, requests, polls, changes and our own lists end no right."""
    side = a_grant()
    side.hear(an_unpoll())
    before = side.engine.rights(THERE)

    side.hear(an_unpoll(), a_poll())
    side.hear(an_invite(observer=DAVE))
    side.change(ALICE, accept=(DAVE,), invite=(BOB,))
    side.do(a_put(PresenceState.OFFLINE), SettingsChanged(EngineSettings(HERE)))
    side.wait(DAY_MS)

    assert side.engine.rights(THERE) == before


def test_a_denied_server_gets_nothing_and_its_queue_keeps_what_is_owed() -> None:
    """Z-9: grants sleep. What is owed is neither sent nor stale."""
    side = a_grant()
    side.change(ALICE, revoke=(BOB,))
    side.do(SettingsChanged(DENIED))

    composed = side.sends(ALICE)

    assert (composed.before, composed.pushes, composed.owed, composed.stale_owed) == ((), (), (), ())
    side.do(SettingsChanged(EngineSettings(HERE)))
    assert DENY in kinds(side.sends_and_is_heard())


def test_a_server_allowed_again_is_told_at_once() -> None:
    """Its users were shown offline meanwhile."""
    side = a_grant()
    side.do(SettingsChanged(DENIED))

    effects = side.do(SettingsChanged(EngineSettings(HERE)))

    assert pushed(effects) == [(THERE, ALICE)]


# --- the last push (E:P-11) ---------------------------------------------------------------------------


def test_the_last_push_says_offline_and_nothing_else() -> None:
    """No message and no age: it is the end of a right, not news."""
    side = a_grant()
    side.change(ALICE, revoke=(BOB,))

    composed = side.sends(ALICE)

    assert composed.before == (PresenceEdu(push=(Push(ALICE, OFFLINE, 0),)), ListEdu(DENY, BOB, ALICE))
    assert composed.pushes == ()


def test_the_last_push_is_judged_as_it_leaves() -> None:
    """A room may have begun while the server was away."""
    side = a_grant()
    side.change(ALICE, revoke=(BOB,))

    side.do(RoomMembersSet(ROOM, frozenset({ALICE, DAVE})))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY, f"{ALICE} online"]


def test_two_revocations_are_one_last_push() -> None:
    """Once is enough, and it stands before both."""
    side = a_grant(BOB, DAVE)
    side.change(ALICE, revoke=(BOB, DAVE))

    words = kinds(side.sends_and_is_heard(ALICE))

    assert words == [f"{ALICE} offline", DENY, DENY]


def test_of_two_grants_the_one_that_ends_last_has_the_last_push() -> None:
    """The first denial leaves in a transaction of its own."""
    side = a_grant(BOB, DAVE)
    side.change(ALICE, revoke=(BOB,))
    assert kinds(side.sends_and_is_heard()) == [DENY]

    side.change(ALICE, revoke=(DAVE,))

    assert kinds(side.sends_and_is_heard()) == [f"{ALICE} offline", DENY]


def test_a_denied_request_has_no_last_push() -> None:
    """That server never had a right: it must not even learn that she was online."""
    side = a_side()
    side.hear(an_invite())

    side.change(ALICE, deny=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]


def test_a_repeated_denial_has_no_last_push() -> None:
    """T-31 answers an invite; the right ended long ago."""
    side = a_grant()
    side.change(ALICE, revoke=(BOB,))
    side.sends_and_is_heard()

    side.hear(an_invite())

    assert kinds(side.sends_and_is_heard()) == [DENY]


def test_a_last_push_that_was_not_heard_is_made_again() -> None:
    """It belongs to the denial, which is owed until its 200, over restarts too."""
    side = a_grant()
    side.change(ALICE, revoke=(BOB,))
    side.sends()
    side.restart()

    assert kinds(side.sends_and_is_heard()) == [f"{ALICE} offline", DENY]


# --- what is owed -------------------------------------------------------------------------------------


def test_an_answer_that_was_taken_back_is_stale() -> None:
    """Accept, then revoke, while the server was away: it must never hear the accept."""
    side = a_side()
    side.hear(an_invite())
    side.change(ALICE, accept=(BOB,))
    accept = tuple(side.owed)
    side.change(ALICE, revoke=(BOB,))

    composed = side.engine.compose(THERE, Wanted(owed=accept), side.now_ms)

    assert (composed.before, composed.owed, composed.stale_owed) == ((), (), accept)


def test_what_was_heard_is_stale() -> None:
    """A queue may have been told of it twice."""
    side = a_grant()
    side.hear(an_invite())
    accept = tuple(side.owed)
    side.do(EdusDelivered(THERE, accept))

    assert side.sends().stale_owed == accept


def test_what_is_owed_keeps_its_order() -> None:
    """E:5: the accept first, its push behind it; a drop before the invite that follows."""
    side = an_accepted_pair()
    side.change(ALICE, drop=(BOB,))
    side.do(ListChanged(ALICE, invite=(BOB,)))

    assert kinds(side.sends().before) == [DROP, f"unpoll {BOB}", INVITE]


def test_a_drop_that_was_refused_by_nobody_goes_out_with_its_unpoll_once() -> None:
    """Q-9: together, in one transaction."""
    side = an_accepted_pair()
    side.change(ALICE, drop=(BOB,))

    assert kinds(side.sends_and_is_heard()) == [DROP, f"unpoll {BOB}"]
    assert kinds(side.sends_and_is_heard()) == []


# --- what is tried once -------------------------------------------------------------------------------


def test_a_reminder_is_sent_where_nobody_watches() -> None:
    """Z-12, Z-14."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.sends_and_is_heard()
    side.hear(a_deny())
    (reminder,) = of_type(side.hear(a_push()), SendDropOnce)
    drop = ListEdu(DROP, reminder.observer, reminder.observed)

    assert side.engine.compose(THERE, Wanted(drops=(drop,)), side.now_ms).before == (drop,)


def test_a_reminder_about_nothing_is_not_sent() -> None:
    """The note may have expired in the queue."""
    side = Side()
    drop = ListEdu(DROP, ALICE, BOB)

    assert side.engine.compose(THERE, Wanted(drops=(drop,)), side.now_ms).before == ()


@pytest.mark.parametrize("ground", ["accepted", "pending", "a room"])
def test_an_unpoll_is_not_sent_once_somebody_watches(ground: str) -> None:
    """It would mute what has just begun (Z-16)."""
    side = an_accepted_pair() if ground == "accepted" else Side()
    if ground == "pending":
        side.change(ALICE, invite=(BOB,))
    elif ground == "a room":
        side.do(RoomMembersSet(ROOM, frozenset({CAROL, BOB})))

    composed = side.engine.compose(THERE, Wanted(unpolls=(BOB, DAVE)), side.now_ms)

    assert composed.unpolls == (DAVE,)


def test_a_poll_is_not_sent_once_nobody_watches() -> None:
    """The list may have changed while it waited."""
    side = an_accepted_pair()
    assert side.engine.compose(THERE, Wanted(polls=(BOB, DAVE)), side.now_ms).polls == (BOB,)

    side.change(ALICE, drop=(BOB,))

    assert side.engine.compose(THERE, Wanted(polls=(BOB,)), side.now_ms).polls == ()


# --- restarts and stops -------------------------------------------------------------------------------


def test_rights_are_the_same_after_a_restart() -> None:
    """Grants, mutes and rooms are all there is."""
    side = a_grant(BOB)
    side.hear(an_invite(observer=UserID("@erin:other.test"), origin=OTHER), origin=OTHER)
    side.change(ALICE, accept=(UserID("@erin:other.test"),))
    side.hear(an_unpoll(origin=OTHER), origin=OTHER)

    side.restart()

    assert side.sends(ALICE).pushes
    assert not side.sends(ALICE, destination=OTHER).pushes


def test_a_clean_stop_that_says_so_tells_everybody() -> None:
    """E:P-10."""
    side = a_grant()

    effects = side.do(Stopping())

    assert pushed(effects) == [(THERE, ALICE)]
    assert kinds(side.sends_and_is_heard(ALICE)) == [f"{ALICE} offline"]


def test_a_refresh_is_needed_by_right_alone() -> None:
    """E:P-6 for those who may hear; nothing for the others, or for who is offline."""
    side = a_grant()
    assert side.engine.needs_refresh(THERE, ALICE, side.now_ms)
    assert not side.engine.needs_refresh(OTHER, ALICE, side.now_ms)
    side.do(StreamClosed(ALICE, PHONE))
    side.wait(10 * MINUTE_MS)
    assert not side.engine.needs_refresh(THERE, ALICE, side.now_ms)


def test_a_grant_by_policy_is_composed_like_any_other() -> None:
    """The counter does not move as a right begins."""
    side = Side(invite_policy=InvitePolicy.ACCEPT)

    effects = side.hear(an_invite())

    assert [effect.edu.kind for effect in of_type(effects, SendEdu)] == [ACCEPT]
    assert side.engine.rights(THERE) == 0
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, f"{ALICE} offline"]
