import pytest

from fedpresence.engine.effects import SaveObservedRow, Urgency
from fedpresence.engine.events import DestinationAlive, RoomMembersSet, SettingsChanged, UserDeactivated
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, HOUR_MS, EngineSettings, InvitePolicy
from fedpresence.engine.subscription import ObservedStage
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    DAVE,
    HERE,
    THERE,
    a_drop,
    a_poll,
    a_put,
    an_invite,
    an_unpoll,
)
from tests.engine.observed_pairs import (
    ACCEPT,
    DENY,
    DROP,
    OFFLINE,
    ONLINE,
    ROOM,
    a_grant,
    a_request,
    an_online_alice,
    pushed,
    row_of,
    stage,
)
from tests.engine.side import kinds, of_type, sent, told


def test_t_20_a_change_goes_once_to_each_server() -> None:
    """Two observers on a server are one push."""
    side = a_grant()
    side.hear(an_invite(observer=DAVE))
    side.change(ALICE, accept=(DAVE,))

    effects = side.do(a_put(PresenceState.UNAVAILABLE))

    assert pushed(effects) == [(ALICE, Urgency.CHANGE)]


def test_t_21_an_unchanged_state_needs_a_refresh_while_it_is_not_offline() -> None:
    """Peers take a silent user for offline after 30 minutes. The queue asks; the engine answers."""
    side = a_grant()
    assert side.engine.needs_refresh(THERE, ALICE, side.now_ms)

    side.do(a_put(PresenceState.OFFLINE))
    assert not side.engine.needs_refresh(THERE, ALICE, side.now_ms)

    side.do(a_put(PresenceState.ONLINE))
    side.change(ALICE, revoke=(BOB,))
    assert not side.engine.needs_refresh(THERE, ALICE, side.now_ms)


@pytest.mark.parametrize("policy", [InvitePolicy.ASK, InvitePolicy.ACCEPT, InvitePolicy.DENY])
def test_t_9_a_granted_observer_who_asks_is_told_again(policy: InvitePolicy) -> None:
    """A lost accept, or a check: the server answers by itself, whatever the policy for new ones."""
    side = a_grant()
    side.do(SettingsChanged(EngineSettings(HERE, invite_policy=policy)))

    effects = side.hear(an_invite())

    assert (stage(side), told(effects)) == (ObservedStage.GRANTED, [])
    assert pushed(effects) == [(ALICE, Urgency.ASKED)]
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]


def test_t_9_an_invite_ends_a_mute() -> None:
    """Somebody on that server wants to see her again (E:Q-5)."""
    side = a_grant()
    side.hear(an_unpoll())

    side.hear(an_invite())

    assert not row_of(side).muted
    assert kinds(side.sends_and_is_heard(ALICE)) == [ACCEPT, ONLINE]


@pytest.mark.parametrize("word", ["deny", "revoke"])
def test_t_7_a_revocation_says_offline_and_then_deny(word: str) -> None:
    """Exactly and at once; the last push says offline and nothing else (E:P-11)."""
    side = a_grant()
    rights = side.engine.rights(THERE)

    effects = side.change(ALICE, **{word: (BOB,)})

    assert stage(side) is ObservedStage.DENIED
    assert side.engine.rights(THERE) == rights + 1
    assert sent(effects) == [DENY]
    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE, DENY]
    assert side.engine.observers_of(ALICE) == ()


def test_t_7_who_is_offline_already_sends_no_last_push() -> None:
    """There is nothing to take back."""
    side = a_grant()
    side.do(a_put(PresenceState.OFFLINE))

    side.change(ALICE, revoke=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]


@pytest.mark.parametrize("ground", ["another grant", "a room"])
def test_t_7_no_last_push_where_the_server_may_still_hear(ground: str) -> None:
    """It would show her offline to those who may see her."""
    side = a_grant()
    if ground == "a room":
        side.do(RoomMembersSet(ROOM, frozenset({ALICE, DAVE})))
    else:
        side.hear(an_invite(observer=DAVE))
        side.change(ALICE, accept=(DAVE,))
        side.sends_and_is_heard()

    side.change(ALICE, revoke=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY, ONLINE]


def test_t_22_accepting_twice_is_accepting_once() -> None:
    """Clients repeat themselves."""
    side = a_grant()

    assert side.change(ALICE, accept=(BOB,)) == ()


def test_t_12_a_drop_ends_the_grant() -> None:
    """XMPP 3.3: the state goes and the user is told. Coming back means asking again."""
    side = a_grant()
    rights = side.engine.rights(THERE)

    effects = side.hear(a_drop())

    assert side.observed_row(ALICE, BOB) is None
    assert side.engine.rights(THERE) == rights + 1
    assert told(effects) == [(ALICE, DROP, None)]
    assert kinds(side.sends_and_is_heard(ALICE)) == []
    side.hear(an_invite())
    assert stage(side) is ObservedStage.REQUESTED


def test_t_12_an_accept_that_is_still_owed_goes_with_the_grant() -> None:
    """Delivered later, it would answer a newer invite that nobody has accepted."""
    side = a_request()
    side.change(ALICE, accept=(BOB,))

    side.hear(a_drop())
    assert side.observed_row(ALICE, BOB) is None
    side.hear(an_invite())

    assert (row_of(side).stage, row_of(side).owed) == (ObservedStage.REQUESTED, ())
    assert kinds(side.sends_and_is_heard(ALICE)) == []


def test_t_23_a_poll_is_answered_and_unmutes() -> None:
    """The other server wants pushes again."""
    side = a_grant()
    side.hear(an_unpoll())

    effects = side.hear(a_poll())

    assert (ALICE, Urgency.ASKED) in pushed(effects)
    assert not row_of(side).muted
    assert kinds(side.sends_and_is_heard(ALICE)) == [ONLINE]


def test_t_23_a_poll_that_changes_nothing_is_not_written_down() -> None:
    """Polls come by the thousand; the disk need not hear of them."""
    side = a_grant()

    assert of_type(side.hear(a_poll()), SaveObservedRow) == []


def test_t_24_an_unpoll_mutes_and_the_grant_stays() -> None:
    """That server wants no pushes on this ground; the user's word stands (E:Q-5)."""
    side = a_grant()
    rights = side.engine.rights(THERE)

    side.hear(an_unpoll())

    assert (row_of(side).stage, row_of(side).muted) == (ObservedStage.GRANTED, True)
    assert side.engine.rights(THERE) == rights + 1
    assert pushed(side.do(a_put(PresenceState.UNAVAILABLE))) == []
    assert side.sends_and_is_heard(ALICE) == ()


def test_t_24_a_room_is_heard_through_a_mute() -> None:
    """Lists alone are muted."""
    side = a_grant()
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))

    side.hear(an_unpoll())

    assert pushed(side.do(a_put(PresenceState.UNAVAILABLE))) == [(ALICE, Urgency.CHANGE)]


def test_t_24_a_muted_grant_is_revoked_without_a_last_push() -> None:
    """They asked for no pushes."""
    side = a_grant()
    side.hear(an_unpoll())

    side.change(ALICE, revoke=(BOB,))

    assert kinds(side.sends_and_is_heard(ALICE)) == [DENY]


def test_t_25_while_a_server_is_away_only_the_newest_counts() -> None:
    """The engine gives user IDs; the state is taken when bytes are made (decision 9)."""
    side = a_grant()
    side.do(a_put(PresenceState.UNAVAILABLE), a_put(PresenceState.ONLINE), a_put(PresenceState.OFFLINE))

    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE]


def test_t_26_an_outage_ends_no_grant() -> None:
    """However long: when the server is seen alive it may hear of her again."""
    side = a_grant()
    side.wait(60 * DAY_MS)

    side.do(DestinationAlive(THERE))

    assert stage(side) is ObservedStage.GRANTED
    assert kinds(side.sends_and_is_heard(ALICE))


def test_t_27_a_deactivated_user_ends_her_grants() -> None:
    """Those who watched her see her go."""
    side = a_grant()

    side.do(UserDeactivated(ALICE))

    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE, DENY]
    assert side.observed_row(ALICE, BOB) is None


def test_t_27a_a_grant_by_a_room_ends_with_the_room() -> None:
    """Z-10: join, invite, leave must not make a permanent grant."""
    side = an_online_alice(InvitePolicy.ACCEPT_SHARED_ROOM)
    side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))
    side.hear(an_invite())
    assert stage(side) is ObservedStage.GRANTED
    side.sends_and_is_heard()

    side.do(RoomMembersSet(ROOM, frozenset({ALICE})))

    assert stage(side) is ObservedStage.NONE
    assert kinds(side.sends_and_is_heard(ALICE)) == [OFFLINE, DENY]
    assert side.observed_row(ALICE, BOB) is None


def test_t_28_after_a_restart_who_is_not_offline_is_told_again() -> None:
    """The other side would take her for offline soon."""
    side = a_grant()

    side.restart()

    assert list(side.engine.boot_users()) == [(THERE, ALICE)]


def test_t_29_a_refused_list_edu_is_owed_on() -> None:
    """Pushes wait for the next change; an accept must arrive (S:3.5)."""
    side = a_request()
    side.change(ALICE, accept=(BOB,))
    side.sends()

    effects = side.wait(25 * HOUR_MS)

    assert sent(effects) == [ACCEPT, ACCEPT, ACCEPT]
    assert all(urgency is Urgency.TIMER for _, urgency in pushed(effects)), "her own changes alone"
