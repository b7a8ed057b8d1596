import os
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedpresence.engine.engine import Engine
from fedpresence.engine.events import ListChanged
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.engine.subscription import ObservedStage, ObserverStage
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.testing.builders import ALICE, BOB, CAROL, HERE, THERE
from tests.engine.agreement import ASKED, QUIET_MS, WATCHES, assert_both_servers_agree
from tests.engine.servers import Link, Servers

ELSEWHERE = ServerName("elsewhere.test")
ERIN = UserID("@erin:elsewhere.test")
USERS = {HERE: (ALICE, CAROL), THERE: (BOB,), ELSEWHERE: (ERIN,)}
EVERYBODY = (ALICE, BOB, CAROL, ERIN)
PAIRS = ((ALICE, BOB), (CAROL, BOB), (ERIN, BOB), (BOB, ALICE), (ERIN, ALICE), (ALICE, ERIN))
OBSERVED = (ALICE, BOB, ERIN)
ROOM = RoomID("!room:here.test")
REQUEST_LIFE_MS = 180 * DAY_MS  # S:O-17

Pair = tuple[UserID, UserID]  # observer, observed

pairs = st.sampled_from(PAIRS)
names = st.sampled_from((HERE, THERE, ELSEWHERE))
links = st.sampled_from([(a, b) for a in USERS for b in USERS if a != b])


@dataclass
class Words:
    """What one server was told by its own users and answered with 200: their last word about each pair."""

    asked: dict[Pair, tuple[bool, int]] = field(default_factory=dict)  # the observer wants it; since when
    granted: dict[Pair, bool] = field(default_factory=dict)  # the observed user lets them

    def copy(self) -> "Words":
        """As a backup keeps it."""
        return Words(dict(self.asked), dict(self.granted))


class ThreeServers(RuleBasedStateMachine):
    """Whatever the links and the machines do: no word that was answered is forgotten, and all end agreed.

    That presence leaves by a right alone is asserted whenever bytes are made (`servers.py`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = Servers(USERS)
        self.words = {name: Words() for name in USERS}
        self.backups = {name: Words() for name in USERS}

    @initialize(granted=st.sets(pairs), online=st.sets(st.sampled_from(OBSERVED)))
    def some_may_see_others(self, granted: set[Pair], online: set[UserID]) -> None:
        """Most of what can go wrong begins with a grant."""
        for pair in sorted(granted):
            self.a_grant_is_made(pair)
        for user_id in sorted(online):
            self.world.change_state(user_id, True)

    # --- what users do ---

    @rule(pair=pairs)
    def the_observer_invites(self, pair: Pair) -> None:
        """O-1, O-12, O-24, O-29, O-30."""
        if self.says(pair[0], ListChanged(pair[0], invite=(pair[1],))):
            self.words[server_of(pair[0])].asked[pair] = (True, self.world.now_ms)
        self.world.settle()

    @rule(pair=pairs)
    def the_observer_drops(self, pair: Pair) -> None:
        """O-5, O-13, O-23, O-33."""
        if self.says(pair[0], ListChanged(pair[0], drop=(pair[1],))):
            self.words[server_of(pair[0])].asked[pair] = (False, self.world.now_ms)
        self.world.settle()

    @rule(pair=pairs)
    def the_observed_accepts(self, pair: Pair) -> None:
        """T-6, T-10, T-22, T-33."""
        if self.says(pair[1], ListChanged(pair[1], accept=(pair[0],))):
            self.words[server_of(pair[1])].granted[pair] = True
        self.world.settle()

    @rule(pair=pairs)
    def a_grant_is_made(self, pair: Pair) -> None:
        """The whole way, so that examples reach grants often."""
        self.the_observer_invites(pair)
        self.the_observed_accepts(pair)

    @rule(pair=pairs, revoke=st.booleans())
    def the_observed_takes_it_back(self, pair: Pair, revoke: bool) -> None:
        """T-7, T-7a, T-8c, T-11, T-34."""
        observed, observer = pair[1], (pair[0],)
        change = ListChanged(observed, revoke=observer) if revoke else ListChanged(observed, deny=observer)
        if self.says(observed, change):
            self.words[server_of(observed)].granted[pair] = False
        self.world.settle()

    @rule(user_id=st.sampled_from(OBSERVED), online=st.booleans())
    def somebody_changes_state(self, user_id: UserID, online: bool) -> None:
        """There is presence to leak, and pushes that cross everything else."""
        self.world.change_state(user_id, online)

    @rule(members=st.sampled_from(((), (ALICE, BOB), (BOB, ERIN), (ALICE, CAROL), (ALICE, BOB, ERIN))))
    def a_room_has_these_members(self, members: tuple[UserID, ...]) -> None:
        """The other ground: it begins and ends beside the grants, for one server or for two."""
        self.world.set_room(ROOM, frozenset(members))

    # --- what time and machines do ---

    @rule(
        ms=st.sampled_from(
            (1, 11_000, MINUTE_MS, 11 * MINUTE_MS, 31 * MINUTE_MS, 2 * HOUR_MS, 25 * HOUR_MS, 8 * DAY_MS)
        )
    )
    def time_passes(self, ms: int) -> None:
        """Every deadline on the way is met in order."""
        self.world.advance(ms)

    @rule(ends=links, mode=st.sampled_from(("up", "lost", "deaf", "forgetful", "slow", "late", "double")))
    def a_link_changes(self, ends: tuple[ServerName, ServerName], mode: str) -> None:
        """One direction between two servers; the others go on."""
        link = self.world.all_links[ends]
        link.mode = mode
        link.queue.next_try_ms = 0
        self.world.settle()

    @rule(name=names, mode=st.sampled_from(("up", "lost", "slow")))
    def a_server_is_cut_off(self, name: ServerName, mode: str) -> None:
        """A partition: both ways, from everybody."""
        for (sender, receiver), link in self.world.all_links.items():
            if name in (sender, receiver):
                link.mode = mode
                link.queue.next_try_ms = 0
        self.world.settle()

    @rule(user_id=st.sampled_from(OBSERVED), mode=st.sampled_from(("lost", "deaf", "slow", "late")))
    def news_goes_astray(self, user_id: UserID, mode: str) -> None:
        """A push has left and nobody knows whether it arrived, or when: what ends its right comes next."""
        home = server_of(user_id)
        leaving = [link for (sender, _), link in self.world.all_links.items() if sender == home]
        before = [link.mode for link in leaving]
        for link in leaving:
            link.mode, link.queue.next_try_ms = mode, 0
        self.world.change_state(user_id, False)
        self.world.change_state(user_id, True)
        for link, mode_before in zip(leaving, before, strict=True):
            link.mode = mode_before

    @rule(ends=links)
    def what_is_in_flight_lands(self, ends: tuple[ServerName, ServerName]) -> None:
        """A slow transaction arrives while the link stays slow; a late one after what came behind it."""
        self.world.all_links[ends].land()
        self.world.all_links[ends].land_late()
        self.world.settle()

    @precondition(lambda self: any(link.seen for link in self.world.all_links.values()))
    @rule(data=st.data())
    def an_old_transaction_arrives(self, data: st.DataObject) -> None:
        """Twice, late, or out of order."""
        used: list[Link] = [link for link in self.world.all_links.values() if link.seen]
        link = data.draw(st.sampled_from(used))
        back = data.draw(st.integers(1, min(len(link.seen), 6)))
        link.deliver(link.seen[-back])
        self.world.settle()

    @rule(name=names)
    def a_server_restarts(self, name: ServerName) -> None:
        """O-18, O-27, T-28."""
        self.world.servers[name].stop_and_start()
        self.world.settle()

    @rule(name=names)
    def a_server_will_crash(self, name: ServerName) -> None:
        """Behind its next commit, before anything leaves."""
        self.world.servers[name].crashes_at_next_turn = True

    @rule(name=names)
    def a_backup_is_made(self, name: ServerName) -> None:
        """To be restored later, or never."""
        self.world.servers[name].back_up()
        self.backups[name] = self.words[name].copy()

    @rule(name=names)
    def a_backup_is_restored(self, name: ServerName) -> None:
        """Z-24."""
        self.world.servers[name].restore()
        self.words[name] = self.backups[name].copy()
        self.world.settle()

    @rule(name=names)
    def a_database_is_lost(self, name: ServerName) -> None:
        """S:5: O's server, or T's."""
        self.world.servers[name].lose_database()
        self.words[name] = Words()
        self.world.settle()

    # --- what is always true ---

    @invariant()
    def nobody_sees_whom_they_were_not_let(self) -> None:
        """A grant is the observed user's last word: neither faults nor the other side can make one."""
        for pair in PAIRS:
            _, theirs, _ = self.world.stages(*pair)
            if theirs is ObservedStage.GRANTED:
                assert self.words[server_of(pair[1])].granted.get(pair), f"{pair} was never granted"

    @invariant()
    def no_answered_word_of_an_observer_is_forgotten(self) -> None:
        """Asked for is on the list, or declined; dropped is off it: whatever crashed, and when."""
        for pair in PAIRS:
            mine, _, _ = self.world.stages(*pair)
            wants, since_ms = self.words[server_of(pair[0])].asked.get(pair, (False, 0))
            if not wants:
                assert mine in (ObserverStage.NONE, ObserverStage.DENIED), (
                    f"{pair} is on a list that it was dropped from"
                )
            elif self.world.now_ms < since_ms + REQUEST_LIFE_MS:
                tombstone_over = self.world.now_ms >= since_ms + 30 * DAY_MS  # S:O-34
                assert mine is not ObserverStage.NONE or tombstone_over, f"{pair} was asked for"

    @invariant()
    def a_restart_would_know_everything(self) -> None:
        """What the engine would answer its users is on disk: memory is never ahead of it."""
        for server in self.world.servers.values():
            again = Engine(server.settings, server.now_ms)
            again.load(server.stored(), server.now_ms)
            for user_id in server.users:
                mine = [(e.user_id, e.stage, e.since_ms) for e in server.engine.presence_list(user_id, 0)]
                kept = [(e.user_id, e.stage, e.since_ms) for e in again.presence_list(user_id, 0)]
                assert mine == kept
                assert server.engine.invites_of(user_id) == again.invites_of(user_id)
                assert server.engine.observers_of(user_id) == again.observers_of(user_id)

    # --- in the end ---

    def teardown(self) -> None:
        """All servers agree once quiet (S:5, the liveness invariant), and see what is."""
        for link in self.world.all_links.values():
            link.land_late()
        self.world.heal()
        self.world.advance(QUIET_MS)
        for user_id in OBSERVED:
            self.world.change_state(user_id, False)
            self.world.change_state(user_id, True)
        self.world.advance(MINUTE_MS)
        for pair in PAIRS:
            assert_both_servers_agree(self.world, *pair)
            self.they_see_the_truth(*pair)
        for pair in PAIRS:
            if self.world.stages(*pair)[1] is ObservedStage.REQUESTED:
                self.the_observed_accepts(pair)
                assert self.world.stages(*pair)[:2] != ASKED, "an answer is heard"
        self.world.advance(2 * HOUR_MS)  # "nobody here wants them" is said once in an hour (Z-12)
        for user_id in OBSERVED:
            self.world.change_state(user_id, False)
        self.world.advance(MINUTE_MS)
        for pair in PAIRS:
            assert_both_servers_agree(self.world, *pair)
            self.they_see_the_truth(*pair)

    def they_see_the_truth(self, observer: UserID, observed: UserID) -> None:
        """Who may see somebody sees what that somebody's own server would say."""
        if self.world.stages(observer, observed)[:2] != WATCHES:
            return
        now_ms = self.world.now_ms
        seen = self.world.server_of(observer).engine.view(observer, observed, now_ms)
        true = self.world.server_of(observed).engine.view(observed, observed, now_ms)
        assert seen is not None and true is not None
        assert (seen.state, seen.status_msg) == (true.state, true.status_msg), (observer, observed)

    # --- how ---

    def says(self, user_id: UserID, change: ListChanged) -> bool:
        """A user's change; whether it was answered with 200, or would have been but for a crash."""
        return self.world.server_of(user_id).submit(change)


TestThreeServers = ThreeServers.TestCase
TestThreeServers.settings = settings(
    max_examples=int(os.environ.get("FEDPRESENCE_EXAMPLES", "120")),
    stateful_step_count=30,
    deadline=None,
    derandomize="FEDPRESENCE_EXAMPLES" not in os.environ,
)
