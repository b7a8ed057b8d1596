"""subscriptions.md 5, row by row: Alice at here.test, Bob at there.test."""

from dataclasses import replace

import pytest

from fedpresence.engine.events import ListChanged, ListEduReceived, StreamOpened, TransactionReceived
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, InvitePolicy
from fedpresence.engine.subscription import EduKind, ObservedStage, ObserverStage
from fedpresence.ids import UserID, server_of
from fedpresence.testing.builders import ALICE, BOB, HERE, THERE, a_put
from tests.engine.agreement import AGREED
from tests.engine.two_servers import TwoServers

_N, _P, _A, _D = ObserverStage.NONE, ObserverStage.PENDING, ObserverStage.ACCEPTED, ObserverStage.DENIED
_n, _r, _g, _d = (
    ObservedStage.NONE,
    ObservedStage.REQUESTED,
    ObservedStage.GRANTED,
    ObservedStage.DENIED,
)

Stages = tuple[ObserverStage, ObservedStage]


def a_world(*, granted: bool = False, requested: bool = False) -> TwoServers:
    """Bob is online; Alice has asked to observe him, or may, or neither."""
    world = TwoServers()
    world.tell(BOB, StreamOpened(BOB, None, None))
    if requested or granted:
        world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))
    if granted:
        world.tell(BOB, ListChanged(BOB, accept=(ALICE,)))
    return world


def stages(world: TwoServers) -> Stages:
    """Both halves of Alice and Bob."""
    return world.stages(ALICE, BOB)[:2]


def seen(world: TwoServers) -> PresenceState | None:
    """What Alice sees of Bob; None: nothing."""
    view = world.servers[HERE].engine.view(ALICE, BOB, world.now_ms)
    return None if view is None else view.state


def lose(world: TwoServers, sender: UserID, event: ListChanged) -> None:
    """An event whose EDU the other server answers with 200 and forgets."""
    link = world.links[server_of(sender)]
    link.mode = "forgetful"
    world.tell(sender, event)
    link.mode = "up"


def test_nothing_lost_is_the_whole_story() -> None:
    """S:9, the worked example."""
    world = a_world(requested=True)
    assert stages(world) == (_P, _r)
    world.tell(BOB, ListChanged(BOB, accept=(ALICE,)))
    assert (stages(world), seen(world)) == ((_A, _g), PresenceState.ONLINE)
    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))
    assert seen(world) is PresenceState.UNAVAILABLE
    world.tell(BOB, ListChanged(BOB, revoke=(ALICE,)))
    assert (stages(world), seen(world)) == ((_D, _d), None)
    world.tell(ALICE, ListChanged(ALICE, drop=(BOB,)))
    assert stages(world) == (_D, _d)


def test_a_lost_invite_is_sent_again() -> None:
    """O-15."""
    world = a_world()
    lose(world, ALICE, ListChanged(ALICE, invite=(BOB,)))
    assert stages(world) == (_P, _n)

    world.advance(HOUR_MS)

    assert stages(world) == (_P, _r)


def test_a_lost_accept_is_asked_for() -> None:
    """O-15 meets T-9."""
    world = a_world(requested=True)
    lose(world, BOB, ListChanged(BOB, accept=(ALICE,)))
    assert stages(world) == (_P, _g)

    world.advance(HOUR_MS)

    assert (stages(world), seen(world)) == ((_A, _g), PresenceState.UNAVAILABLE)  # idle by now


def test_a_lost_deny_of_a_request_is_asked_for() -> None:
    """O-15 meets T-31."""
    world = a_world(requested=True)
    lose(world, BOB, ListChanged(BOB, deny=(ALICE,)))
    assert stages(world) == (_P, _d)

    world.advance(HOUR_MS)

    assert stages(world) == (_D, _d)


def test_a_lost_revocation_shows_offline_and_is_found_out() -> None:
    """No pushes come, so nothing leaks; polls go unanswered, and the check brings the truth."""
    world = a_world(granted=True)
    lose(world, BOB, ListChanged(BOB, revoke=(ALICE,)))
    assert stages(world) == (_A, _d)

    world.advance(31 * MINUTE_MS)
    assert seen(world) is PresenceState.OFFLINE
    world.advance(9 * DAY_MS)

    assert stages(world) in AGREED


def test_a_lost_drop_is_repeated_when_the_user_is_pushed() -> None:
    """The note of the drop answers the next push (Z-12)."""
    world = a_world(granted=True)
    lose(world, ALICE, ListChanged(ALICE, drop=(BOB,)))
    assert (stages(world), seen(world)) == ((_N, _g), None)

    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))

    assert stages(world) == (_N, _n)


def test_a_lost_push_is_mended_by_the_next() -> None:
    """Presence is a state, not a story."""
    world = a_world(granted=True)
    world.links[THERE].mode = "forgetful"
    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))
    world.links[THERE].mode = "up"
    assert seen(world) is PresenceState.ONLINE

    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, "tea", user_id=BOB, device_id=None))

    assert seen(world) is PresenceState.UNAVAILABLE


@pytest.mark.parametrize("granted", [False, True])
def test_an_invite_that_comes_twice_is_one_request(granted: bool) -> None:
    """T-13, T-9."""
    world = a_world(requested=True, granted=granted)
    before = stages(world)
    notices = len(world.servers[THERE].notices)
    invite = world.links[HERE].seen[0]

    world.links[HERE].deliver(invite)  # the same transaction
    world.links[HERE].deliver(replace(invite, txn_id="again"))  # and in another
    world.settle()

    assert stages(world) == before
    assert len(world.servers[THERE].notices) == notices


def test_an_accept_that_comes_twice_is_one_accept() -> None:
    """O-21."""
    world = a_world(granted=True)
    accept = world.links[THERE].seen[0]

    world.links[THERE].deliver(replace(accept, txn_id="again"))
    world.settle()

    assert stages(world) == (_A, _g)
    assert len(world.servers[HERE].notices) == 1


def test_an_accept_may_come_before_the_200_of_its_invite() -> None:
    """Old servers accept at once (E:C-3); the invite is then no longer owed."""
    world = TwoServers()
    world.change_settings(THERE, EngineSettings(THERE, invite_policy=InvitePolicy.ACCEPT))
    world.links[HERE].mode = "deaf"

    world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))

    assert stages(world) == (_A, _g)
    row = world.servers[HERE].observer_row(ALICE, BOB)
    assert row is not None
    assert row.owed == ()


def test_a_push_may_come_before_its_accept() -> None:
    """O-14: peers run the EDUs of a transaction concurrently."""
    world = a_world(requested=True)
    world.links[THERE].mode = "slow"
    world.tell(BOB, ListChanged(BOB, accept=(ALICE,)))
    (both,) = world.links[THERE].seen

    world.links[THERE].deliver(replace(both, txn_id="reversed", edus=both.edus[::-1]))

    assert (stages(world), seen(world)) == ((_A, _g), PresenceState.ONLINE)


def test_a_deny_that_overtakes_its_accept_ends_in_nothing() -> None:
    """A broken peer: the late accept is answered with a drop (O-31, T-12)."""
    world = a_world(requested=True)
    world.links[THERE].mode = "forgetful"
    world.tell(BOB, ListChanged(BOB, accept=(ALICE,)))
    world.links[THERE].mode = "up"
    accept = world.links[THERE].seen[0]
    here = world.servers[HERE]
    here.submit(
        TransactionReceived(THERE, "deny", world.now_ms, (ListEduReceived(EduKind.DENY, THERE, ALICE, BOB),))
    )
    assert stages(world) == (_D, _g)

    world.links[THERE].deliver(replace(accept, txn_id="late"))
    world.settle()

    assert stages(world) == (_D, _n)


def test_a_drop_and_an_accept_may_cross() -> None:
    """Both end at none."""
    world = a_world(requested=True)
    for link in world.links.values():
        link.mode = "slow"
    world.tell(BOB, ListChanged(BOB, accept=(ALICE,)))
    world.tell(ALICE, ListChanged(ALICE, drop=(BOB,)))

    for link in world.links.values():
        link.mode = "up"
    world.settle()

    assert stages(world) == (_N, _n)


def test_a_drop_and_a_new_invite_at_once_is_a_new_request() -> None:
    """A drop ends the grant: the observed user must accept again."""
    world = a_world(granted=True)
    here = world.servers[HERE]
    here.submit(ListChanged(ALICE, drop=(BOB,)))

    world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))

    assert stages(world) == (_P, _r)


def test_a_deny_and_a_drop_may_cross() -> None:
    """Harmless."""
    world = a_world(requested=True)
    for link in world.links.values():
        link.mode = "slow"
    world.tell(BOB, ListChanged(BOB, deny=(ALICE,)))
    world.tell(ALICE, ListChanged(ALICE, drop=(BOB,)))

    for link in world.links.values():
        link.mode = "up"
    world.settle()

    assert stages(world) == (_N, _d)


def test_a_server_that_lost_its_database_says_so_to_whom_it_cannot_place() -> None:
    """Its unpoll mutes (T-24); the grant stays until Bob revokes it or Alice asks again (T-9)."""
    world = a_world(granted=True)
    here = world.servers[HERE]
    here.lose_database()

    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))
    mine, theirs, row = world.stages(ALICE, BOB)
    assert row is not None
    assert (mine, theirs, row.muted) == (_N, _g, True)

    world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))
    assert (stages(world), seen(world)) == ((_A, _g), PresenceState.UNAVAILABLE)


def test_an_observed_users_server_that_lost_its_database_asks_the_user_again() -> None:
    """O-25 meets T-1; the list tells the truth after a day (O-25a)."""
    world = a_world(granted=True)
    world.servers[THERE].lose_database()

    world.advance(9 * DAY_MS)

    assert stages(world) == (_P, _r)
    world.tell(BOB, ListChanged(BOB, accept=(ALICE,)))
    assert stages(world) == (_A, _g)


def test_both_sides_say_when_the_other_last_confirmed() -> None:
    """The operator sees at a glance which half has not been spoken of for too long, restarts or not."""
    world = a_world(granted=True)
    here, there = world.servers[HERE], world.servers[THERE]
    begun_ms = world.now_ms

    def confirmed() -> list[int]:
        (entry,) = here.engine.presence_list(ALICE, world.now_ms)
        (observer,) = there.engine.observers_of(BOB)
        return [(ms - begun_ms) // DAY_MS for ms in (entry.confirmed_ms, observer.confirmed_ms)]

    assert confirmed() == [0, 0]
    world.advance(9 * DAY_MS)
    assert confirmed() == [7, 7]
    for server in (here, there):
        server.stop_and_start()
    assert confirmed() == [7, 7]
    world.links[HERE].mode = "lost"
    world.advance(6 * DAY_MS)
    assert confirmed() == [7, 7]


def test_a_clock_that_jumps_does_not_part_them() -> None:
    """Timers alone: both halves are still there, and agree within days."""
    world = a_world(granted=True)
    world.now_ms += 20 * DAY_MS
    for server in world.servers.values():
        server.now_ms = world.now_ms
        server.stop_and_start()

    world.advance(9 * DAY_MS)

    assert stages(world) == (_A, _g)


def test_an_unpoll_made_before_somebody_asked_does_not_leave_after() -> None:
    """Otherwise it mutes the grant that the invite beside it has just renewed (Z-16)."""
    world = a_world(granted=True)
    here = world.servers[HERE]
    here.lose_database()
    here.queue.next_try_ms = world.now_ms + HOUR_MS
    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))
    assert here.queue.unpolls == [BOB]

    here.queue.next_try_ms = 0
    world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))

    mine, theirs, row = world.stages(ALICE, BOB)
    assert row is not None
    assert (mine, theirs, row.muted) == (_A, _g, False)
