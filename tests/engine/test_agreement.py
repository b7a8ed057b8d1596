import os
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fedpresence.engine.events import ListChanged, ListEduReceived, StreamOpened, TransactionReceived
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, InvitePolicy, ServerLists
from fedpresence.engine.subscription import EduKind, ObservedStage, ObserverStage
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.testing.builders import ALICE, BOB, CAROL, DAVE, HERE, THERE, a_put
from tests.engine.two_servers import TwoServers

PAIRS = ((ALICE, BOB), (CAROL, BOB), (BOB, ALICE))
USERS = {HERE: (ALICE, CAROL), THERE: (BOB, DAVE)}
ROOM = RoomID("!room:here.test")
QUIET_MS = 9 * DAY_MS  # S:5

_N, _P, _A, _D = ObserverStage.NONE, ObserverStage.PENDING, ObserverStage.ACCEPTED, ObserverStage.DENIED
_n, _r, _g, _d = (
    ObservedStage.NONE,
    ObservedStage.REQUESTED,
    ObservedStage.GRANTED,
    ObservedStage.DENIED,
)
AGREED = {(_N, _n), (_P, _r), (_A, _g), (_D, _d), (_N, _d), (_D, _n)}

pairs = st.sampled_from(PAIRS)
observed_users = st.sampled_from((ALICE, BOB))
server_names = st.sampled_from((HERE, THERE))


Stages = tuple[ObserverStage, ObservedStage]


# --- subscriptions.md 5, row by row: Alice at here.test, Bob at there.test --------------------------


def a_world(*, granted: bool = False, requested: bool = False) -> TwoServers:
    """Bob is online; Alice has asked to observe him, or may, or neither."""
    world = TwoServers(USERS)
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
    world = TwoServers(USERS)
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
    here.store = type(here.store)()
    here.start()

    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))
    mine, theirs, row = world.stages(ALICE, BOB)
    assert row is not None
    assert (mine, theirs, row.muted) == (_N, _g, True)

    world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))
    assert (stages(world), seen(world)) == ((_A, _g), PresenceState.UNAVAILABLE)


def test_an_observed_users_server_that_lost_its_database_asks_the_user_again() -> None:
    """O-25 meets T-1; the list tells the truth after a day (O-25a)."""
    world = a_world(granted=True)
    there = world.servers[THERE]
    there.store = type(there.store)()
    there.start()

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
    here.store = type(here.store)()
    here.start()
    here.queue.next_try_ms = world.now_ms + HOUR_MS
    world.tell(BOB, a_put(PresenceState.UNAVAILABLE, user_id=BOB, device_id=None))
    assert here.queue.unpolls == [BOB]

    here.queue.next_try_ms = 0
    world.tell(ALICE, ListChanged(ALICE, invite=(BOB,)))

    mine, theirs, row = world.stages(ALICE, BOB)
    assert row is not None
    assert (mine, theirs, row.muted) == (_A, _g, False)


# --- and everything together ------------------------------------------------------------------------


class TwoServersAndALink(RuleBasedStateMachine):
    """Whatever is lost, doubled, late or forgotten: in the end both servers tell the same story."""

    def __init__(self) -> None:
        super().__init__()
        self.world = TwoServers(USERS)

    @initialize(granted=st.sets(pairs), online=st.sets(observed_users))
    def some_may_see_others(self, granted: set[tuple[UserID, UserID]], online: set[UserID]) -> None:
        """Most of what can go wrong begins with a grant."""
        for pair in sorted(granted):
            self.a_grant_is_made(pair)
        for user_id in sorted(online):
            self.change_state(user_id, True)

    # --- what users do ---

    @rule(pair=pairs)
    def the_observer_invites(self, pair: tuple[UserID, UserID]) -> None:
        """O-1, O-12, O-24, O-29, O-30."""
        self.world.tell(pair[0], ListChanged(pair[0], invite=(pair[1],)))

    @rule(pair=pairs)
    def the_observer_drops(self, pair: tuple[UserID, UserID]) -> None:
        """O-5, O-13, O-23, O-33."""
        self.world.tell(pair[0], ListChanged(pair[0], drop=(pair[1],)))

    @rule(pair=pairs)
    def the_observer_drops_and_invites_at_once(self, pair: tuple[UserID, UserID]) -> None:
        """S:5, "drop, then new invite at once"."""
        self.world.server_of(pair[0]).submit(ListChanged(pair[0], drop=(pair[1],)))
        self.world.tell(pair[0], ListChanged(pair[0], invite=(pair[1],)))

    @rule(pair=pairs)
    def the_observed_accepts(self, pair: tuple[UserID, UserID]) -> None:
        """T-6, T-10, T-22, T-33."""
        self.world.tell(pair[1], ListChanged(pair[1], accept=(pair[0],)))

    @rule(pair=pairs)
    def a_grant_is_made(self, pair: tuple[UserID, UserID]) -> None:
        """The whole way, so that examples reach grants often."""
        self.world.tell(pair[0], ListChanged(pair[0], invite=(pair[1],)))
        self.world.tell(pair[1], ListChanged(pair[1], accept=(pair[0],)))

    @rule(pair=pairs)
    def the_observed_denies(self, pair: tuple[UserID, UserID]) -> None:
        """T-7, T-7a, T-11, T-34."""
        self.world.tell(pair[1], ListChanged(pair[1], deny=(pair[0],)))

    @rule(pair=pairs)
    def the_observed_revokes(self, pair: tuple[UserID, UserID]) -> None:
        """T-7, T-8c."""
        self.world.tell(pair[1], ListChanged(pair[1], revoke=(pair[0],)))

    @rule(user_id=observed_users, online=st.booleans())
    def somebody_changes_state(self, user_id: UserID, online: bool) -> None:
        """There is presence to leak, and pushes that cross everything else."""
        self.change_state(user_id, online)

    @rule(members=st.sampled_from(((), (ALICE, BOB), (CAROL, BOB), (ALICE, CAROL), (ALICE, DAVE))))
    def a_room_has_these_members(self, members: tuple[UserID, ...]) -> None:
        """The other ground: it begins and ends beside the grants."""
        self.world.set_room(ROOM, frozenset(members))

    # --- what operators do ---

    @rule(name=server_names, policy=st.sampled_from(InvitePolicy))
    def a_policy_changes(self, name: ServerName, policy: InvitePolicy) -> None:
        """S:7."""
        server = self.world.servers[name]
        self.world.change_settings(name, replace(server.settings, invite_policy=policy))

    @rule(name=server_names, denied=st.booleans())
    def a_server_list_changes(self, name: ServerName, denied: bool) -> None:
        """Z-9: grants sleep and wake."""
        server = self.world.servers[name]
        lists = ServerLists(deny=(server.other,) if denied else ())
        self.world.change_settings(name, replace(server.settings, servers=lists))

    # --- what time and machines do ---

    @rule(
        ms=st.sampled_from(
            (
                *(1, 1_000, 11_000, MINUTE_MS, 11 * MINUTE_MS, 31 * MINUTE_MS),
                *(HOUR_MS, 2 * HOUR_MS, 25 * HOUR_MS, 4 * DAY_MS, 8 * DAY_MS, 31 * DAY_MS, 181 * DAY_MS),
            )
        )
    )
    def time_passes(self, ms: int) -> None:
        """Every deadline on the way is met in order."""
        self.world.advance(ms)

    @rule(name=server_names, mode=st.sampled_from(("up", "up", "lost", "deaf", "forgetful", "slow")))
    def a_link_changes(self, name: ServerName, mode: str) -> None:
        """Requests are lost, answers are lost, a peer says 200 and forgets."""
        link = self.world.links[name]
        link.mode = mode
        self.world.servers[name].queue.next_try_ms = 0
        self.world.settle()

    @rule(user_id=observed_users, mode=st.sampled_from(("lost", "deaf", "slow", "slow")))
    def news_goes_astray(self, user_id: UserID, mode: str) -> None:
        """A push has left and nobody knows whether it arrived, or when: what ends its right comes next."""
        link = self.world.links[server_of(user_id)]
        before, link.mode = link.mode, mode
        self.world.servers[server_of(user_id)].queue.next_try_ms = 0
        self.change_state(user_id, False)
        self.change_state(user_id, True)
        link.mode = before

    @rule(name=server_names)
    def what_is_in_flight_lands(self, name: ServerName) -> None:
        """A slow transaction arrives while the link stays slow."""
        self.world.links[name].land()
        self.world.settle()

    @precondition(lambda self: any(link.seen for link in self.world.links.values()))
    @rule(data=st.data())
    def an_old_transaction_arrives(self, data: st.DataObject) -> None:
        """Twice, late, or out of order."""
        link = data.draw(st.sampled_from([link for link in self.world.links.values() if link.seen]))
        back = data.draw(st.integers(1, min(len(link.seen), 6)))
        link.deliver(link.seen[-back])
        self.world.settle()

    @rule(name=server_names)
    def a_server_restarts(self, name: ServerName) -> None:
        """O-18, O-27, T-28."""
        self.world.servers[name].stop_and_start()
        self.world.settle()

    @rule(name=server_names)
    def a_server_will_crash(self, name: ServerName) -> None:
        """Behind its next commit, before anything leaves."""
        self.world.servers[name].crashes_at_next_turn = True

    @rule(name=server_names)
    def a_backup_is_made(self, name: ServerName) -> None:
        """To be restored later, or never."""
        server = self.world.servers[name]
        server.backup = server.store.snapshot()

    @rule(name=server_names)
    def a_backup_is_restored(self, name: ServerName) -> None:
        """Z-24."""
        server = self.world.servers[name]
        server.store = server.backup.snapshot()
        server.start()
        self.world.settle()

    @rule(name=server_names)
    def a_database_is_lost(self, name: ServerName) -> None:
        """S:5: O's server, or T's."""
        server = self.world.servers[name]
        server.store = type(server.store)()
        server.start()
        self.world.settle()

    # --- what must be true ---

    def change_state(self, user_id: UserID, online: bool) -> None:
        """Online with a stream that stays open, or declared offline."""
        state = PresenceState.ONLINE if online else PresenceState.OFFLINE
        if online:
            self.world.tell(user_id, StreamOpened(user_id, None, None))
        self.world.tell(user_id, a_put(state, "at work" if online else None, user_id=user_id, device_id=None))

    def teardown(self) -> None:
        """Both servers agree once quiet (S:5, the liveness invariant)."""
        self.world.heal()
        self.world.advance(QUIET_MS)
        for user_id in (ALICE, BOB):
            self.change_state(user_id, False)
            self.change_state(user_id, True)
        self.world.advance(MINUTE_MS)
        for pair in PAIRS:
            self.both_servers_agree(*pair)
        for observer, observed in PAIRS:
            if self.world.stages(observer, observed)[1] is _r:
                self.world.tell(observed, ListChanged(observed, accept=(observer,)))
                assert self.world.stages(observer, observed)[:2] != (_P, _r), "an answer is heard"
        self.world.advance(2 * HOUR_MS)  # "nobody here wants them" is said once in an hour (Z-12)
        for user_id in (ALICE, BOB):
            self.change_state(user_id, False)
        self.world.advance(MINUTE_MS)
        for pair in PAIRS:
            self.both_servers_agree(*pair)

    def both_servers_agree(self, observer: UserID, observed: UserID) -> None:
        """The pair is in one of the states that S:5 lists."""
        mine, theirs, row = self.world.stages(observer, observed)
        muted = row is not None and row.muted
        blocked = row is not None and row.blocked
        # What a lost database held cannot be told; it does no harm where its server sees the user anyway.
        no_note = self.world.server_of(observer).observer_row(observer, observed) is None
        tolerated = (
            (mine, theirs) == (_N, _g) and no_note and self.is_watched_otherwise(observer, observed)
        ) or (
            ((mine, theirs) == (_P, _d) and blocked)
            or (mine, theirs) in ((_D, _r), (_N, _r))
            or (mine in (_N, _D) and theirs is _g and muted)  # until the observed user revokes
        )
        agreed = (mine, theirs) in AGREED and not muted
        assert agreed or tolerated, (observer, observed, mine, theirs, row)

    def is_watched_otherwise(self, observer: UserID, observed: UserID) -> bool:
        """Whether the observer's server has another reason to take pushes of the observed user."""
        server = self.world.server_of(observer)
        return any(observed in members and len(members) > 1 for members in server.rooms.values()) or any(
            row.observed == observed and row.observer != observer and row.stage in (_P, _A)
            for row in server.stored().pairs.observer_rows()
        )


TestTwoServersAndALink = TwoServersAndALink.TestCase
TestTwoServersAndALink.settings = settings(
    max_examples=int(os.environ.get("FEDPRESENCE_EXAMPLES", "400")),
    stateful_step_count=30,
    deadline=None,
    derandomize="FEDPRESENCE_EXAMPLES" not in os.environ,
)
