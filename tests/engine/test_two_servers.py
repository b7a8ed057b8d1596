import os
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fedpresence.engine.events import ListChanged
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, InvitePolicy, ServerLists
from fedpresence.engine.subscription import ObservedStage
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.testing.builders import ALICE, BOB, CAROL, DAVE, HERE, THERE
from tests.engine.agreement import ASKED, QUIET_MS, assert_both_servers_agree
from tests.engine.two_servers import TwoServers

PAIRS = ((ALICE, BOB), (CAROL, BOB), (BOB, ALICE))
ROOM = RoomID("!room:here.test")

pairs = st.sampled_from(PAIRS)
observed_users = st.sampled_from((ALICE, BOB))
server_names = st.sampled_from((HERE, THERE))


class TwoServersAndALink(RuleBasedStateMachine):
    """Whatever is lost, doubled, late or forgotten: in the end both servers tell the same story."""

    def __init__(self) -> None:
        super().__init__()
        self.world = TwoServers()

    @initialize(granted=st.sets(pairs), online=st.sets(observed_users))
    def some_may_see_others(self, granted: set[tuple[UserID, UserID]], online: set[UserID]) -> None:
        """Most of what can go wrong begins with a grant."""
        for pair in sorted(granted):
            self.a_grant_is_made(pair)
        for user_id in sorted(online):
            self.world.change_state(user_id, True)

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
        self.world.change_state(user_id, online)

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
        self.world.change_state(user_id, False)
        self.world.change_state(user_id, True)
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
        self.world.servers[name].back_up()

    @rule(name=server_names)
    def a_backup_is_restored(self, name: ServerName) -> None:
        """Z-24."""
        self.world.servers[name].restore()
        self.world.settle()

    @rule(name=server_names)
    def a_database_is_lost(self, name: ServerName) -> None:
        """S:5: O's server, or T's."""
        self.world.servers[name].lose_database()
        self.world.settle()

    # --- what must be true ---

    def teardown(self) -> None:
        """Both servers agree once quiet (S:5, the liveness invariant)."""
        self.world.heal()
        self.world.advance(QUIET_MS)
        for user_id in (ALICE, BOB):
            self.world.change_state(user_id, False)
            self.world.change_state(user_id, True)
        self.world.advance(MINUTE_MS)
        for pair in PAIRS:
            assert_both_servers_agree(self.world, *pair)
        for observer, observed in PAIRS:
            if self.world.stages(observer, observed)[1] is ObservedStage.REQUESTED:
                self.world.tell(observed, ListChanged(observed, accept=(observer,)))
                assert self.world.stages(observer, observed)[:2] != ASKED, "an answer is heard"
        self.world.advance(2 * HOUR_MS)  # "nobody here wants them" is said once in an hour (Z-12)
        for user_id in (ALICE, BOB):
            self.world.change_state(user_id, False)
        self.world.advance(MINUTE_MS)
        for pair in PAIRS:
            assert_both_servers_agree(self.world, *pair)


TestTwoServersAndALink = TwoServersAndALink.TestCase
TestTwoServersAndALink.settings = settings(
    max_examples=int(os.environ.get("FEDPRESENCE_EXAMPLES", "400")),
    stateful_step_count=30,
    deadline=None,
    derandomize="FEDPRESENCE_EXAMPLES" not in os.environ,
)
