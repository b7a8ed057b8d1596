from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedpresence.engine.effects import Effect, TellObservers
from fedpresence.engine.events import (
    Event,
    RoomJoinRuleChanged,
    RoomMemberChanged,
    RoomMembersSet,
    SettingsChanged,
)
from fedpresence.engine.outgoing import Wanted
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.queries import RoomDetail
from fedpresence.engine.settings import HOUR_MS, EngineSettings, InvitePolicy, RoomPolicy, ServerLists
from fedpresence.engine.subscription import ObservedStage
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HERE,
    THERE,
    a_push,
    a_put,
    a_stream,
    an_invite,
)
from tests.engine.shared_rooms import ERIN, OTHER
from tests.engine.side import Side, pushed

OURS, THEIRS = (ALICE, CAROL), (BOB, DAVE, ERIN)
EVERYBODY = (*OURS, *THEIRS)
SERVERS = (THERE, OTHER)
ROOMS = (RoomID("!one:here.test"), RoomID("!two:there.test"), RoomID("!three"))
LIMIT = 4  # a room of four goes on, and does not begin

rooms = st.sampled_from(ROOMS)
users = st.sampled_from(EVERYBODY)
policies = st.builds(
    RoomPolicy,
    st.none() | st.sampled_from([("*:here.test",), ("!t*",), ()]),
    st.sampled_from([(), ("!two:*",)]),
    st.none() | st.sampled_from([("invite",), ("invite", "unknown"), ("public", "unknown")]),
    st.builds(
        ServerLists,
        st.none() | st.sampled_from([("there.test",), ("other.*",)]),
        st.sampled_from([(), ("t*",)]),
    ),
)


@dataclass
class NaiveRoom:
    """A room as one would think of it first."""

    members: set[UserID] = field(default_factory=set)
    join_rule: str | None = None
    counts: bool = False
    from_homeserver: bool = False
    doubted: bool = False


class NaiveRooms:
    """All rooms, and every question answered by looking at all of them."""

    def __init__(self) -> None:
        self.settings = EngineSettings(
            HERE, max_room_members=LIMIT, invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM
        )
        self.rooms: dict[RoomID, NaiveRoom] = {}

    def judge(self, *, may_begin: bool = True, only: RoomID | None = None) -> None:
        """Which rooms count now."""
        policy = self.settings.room_policy
        for room_id, room in self.rooms.items():
            if only not in (None, room_id):
                continue
            size = len(room.members)
            small = size <= LIMIT if room.counts else size < LIMIT and may_begin
            allowed = self.settings.share_presence_in_rooms and policy.admits(room_id, room.join_rule)
            room.counts = size > 0 and small and allowed

    def meet(self, one: UserID, other: UserID) -> bool:
        """Whether the two share a room that counts."""
        names = {server_of(one), server_of(other)} - {HERE}
        return all(self.settings.room_policy.servers.permit(name) for name in names) and any(
            room.counts and {one, other} <= room.members for room in self.rooms.values()
        )

    def sights(self) -> set[tuple[UserID, UserID]]:
        """Every (observer of ours, observed) who meet."""
        return {(o, x) for o in OURS for x in EVERYBODY if o != x and self.meet(o, x)}

    def rights(self) -> set[tuple[ServerName, UserID]]:
        """Every (server, user of ours) whose presence may be told it, by rooms."""
        permit, allowed = self.settings.servers.permit, self.settings.room_policy.servers.permit
        return {
            (server_of(x), o)
            for room in self.rooms.values()
            for o in room.members & set(OURS)
            for x in room.members & set(THEIRS)
            if room.counts and not room.doubted and permit(server_of(x)) and allowed(server_of(x))
        }


class Rooms(RuleBasedStateMachine):
    """Joins, leaves, sets, rules and reloads: what is told is what began and ended, and no more may be."""

    def __init__(self) -> None:
        super().__init__()
        self.naive = NaiveRooms()
        self.side = Side(max_room_members=LIMIT, invite_policy=InvitePolicy.ACCEPT_SHARED_ROOM)
        self.heard: dict[ServerName, PresenceState] = {}  # of Alice
        self._note(self.side.do(a_stream(), a_put()))

    # --- what is told ---

    @rule(room_id=rooms, user_id=users, joined=st.booleans())
    def somebody_joins_or_leaves(self, room_id: RoomID, user_id: UserID, joined: bool) -> None:
        """One change, as a homeserver tells it."""

        def change() -> None:
            room = self.naive.rooms.setdefault(room_id, NaiveRoom(from_homeserver=True))
            if joined == (user_id in room.members):
                self._forget_nothing(room_id)
                return
            was_empty = not room.members
            (room.members.add if joined else room.members.discard)(user_id)
            last_of_ours = not joined and user_id in OURS and not room.members & set(OURS)
            if last_of_ours or not room.members:
                del self.naive.rooms[room_id]
            else:
                self.naive.judge(may_begin=was_empty, only=room_id)

        self._step(RoomMemberChanged(room_id, user_id, joined), change)

    @rule(room_id=rooms, members=st.frozensets(users), from_homeserver=st.booleans())
    def a_whole_set_is_told(self, room_id: RoomID, members: frozenset[UserID], from_homeserver: bool) -> None:
        """As the admin API and a scan tell it."""

        def change() -> None:
            if not members:
                self.naive.rooms.pop(room_id, None)
                return
            room = self.naive.rooms.setdefault(room_id, NaiveRoom())
            room.members, room.from_homeserver, room.doubted = set(members), from_homeserver, False
            self.naive.judge(only=room_id)

        self._step(RoomMembersSet(room_id, members, from_homeserver), change)

    @rule(room_id=rooms)
    def a_room_is_read_again(self, room_id: RoomID) -> None:
        """Nobody has come or gone."""
        room = self.naive.rooms.get(room_id)
        if room is not None and room.members:
            self.a_whole_set_is_told(room_id, frozenset(room.members), room.from_homeserver)

    @rule(room_id=rooms, join_rule=st.sampled_from([None, "invite", "public"]))
    def a_join_rule_is_told(self, room_id: RoomID, join_rule: str | None) -> None:
        """It may be the first that we hear of a room."""

        def change() -> None:
            room = self.naive.rooms.setdefault(room_id, NaiveRoom(from_homeserver=True))
            if room.join_rule != join_rule:
                room.join_rule = join_rule
                self.naive.judge(only=room_id)
            self._forget_nothing(room_id)

        self._step(RoomJoinRuleChanged(room_id, join_rule), change)

    @rule(
        policy=policies, share=st.booleans() | st.just(True), deny=st.sampled_from([(), (), ("other.test",)])
    )
    def the_operator_reloads(self, policy: RoomPolicy, share: bool, deny: tuple[str, ...]) -> None:
        """SIGHUP."""
        new = replace(
            self.naive.settings,
            room_policy=policy,
            share_presence_in_rooms=share,
            servers=ServerLists(deny=deny),
        )

        def change() -> None:
            self.naive.settings = new
            self.naive.judge()

        self._step(SettingsChanged(new), change)

    @rule()
    def an_hour_passes(self) -> None:
        """Rooms that became small count again; everybody here may be idle or offline by then."""
        before = self.naive.sights()
        self.naive.judge()
        effects = self.side.wait(HOUR_MS + 1)
        self._note(effects)
        assert _gone(effects) == set()
        assert before <= self.naive.sights()

    @rule()
    def the_server_restarts(self) -> None:
        """What is stored is enough."""
        for room in self.naive.rooms.values():
            room.doubted = room.from_homeserver
        self.naive.judge()
        new = self.naive.settings
        effects = self.side.restart(
            max_room_members=LIMIT,
            invite_policy=new.invite_policy,
            room_policy=new.room_policy,
            share_presence_in_rooms=new.share_presence_in_rooms,
            servers=new.servers,
        )
        self._note(effects)

    @rule(state=st.sampled_from([PresenceState.ONLINE, PresenceState.UNAVAILABLE, PresenceState.OFFLINE]))
    def alice_says_how_she_is(self, state: PresenceState) -> None:
        """Whoever has no right at the moment is not told, and must not be left with what was before."""
        self._note(self.side.do(a_put(state)))

    @rule(
        state=st.sampled_from([PresenceState.UNAVAILABLE, PresenceState.OFFLINE]),
        joins=st.none() | users,
        rooms=st.permutations(ROOMS),
    )
    def all_is_read_again_after_a_restart(
        self, state: PresenceState, joins: UserID | None, rooms: list[RoomID]
    ) -> None:
        """Alice's state changes meanwhile, and somebody may join the room that is read last."""
        self.the_server_restarts()
        self.alice_says_how_she_is(state)
        if joins is not None and self.naive.rooms.get(rooms[-1]) is not None:
            self.somebody_joins_or_leaves(rooms[-1], joins, joined=True)
        for room_id in rooms:
            self.a_room_is_read_again(room_id)

    @rule(user_id=st.sampled_from(THEIRS))
    def a_push_comes(self, user_id: UserID) -> None:
        """Of somebody who may be seen here, or not."""
        self.side.hear(a_push(user_id=user_id, origin=server_of(user_id)), origin=server_of(user_id))

    @rule()
    def bob_asks_for_alice(self) -> None:
        """The policy lets him in for a room they share, and for nothing else."""
        self._note(self.side.hear(an_invite()))

    # --- what must be so ---

    @invariant()
    def everybody_sees_whom_they_meet(self) -> None:
        """And nobody else, in every way to ask."""
        engine, sights = self.side.engine, self.naive.sights()
        for observer in OURS:
            seen = {x for x in EVERYBODY if (observer, x) in sights} | {observer}
            assert engine.visible_to(observer) == seen
            assert {x for x in EVERYBODY if engine.view(observer, x, self.side.now_ms)} == seen

    @invariant()
    def bytes_are_made_for_rights_alone(self) -> None:
        """A pair whose last room is gone is composed no more; a grant by room never outlives it."""
        rights = self.naive.rights()
        for server in SERVERS:
            composed = self.side.engine.compose(server, Wanted(users=OURS), self.side.now_ms)
            told = {push.user_id for push in composed.pushes}
            assert told == {user_id for name, user_id in rights if name == server}
        row = self.side.observed_row(ALICE, BOB)
        if row is not None and row.stage is ObservedStage.GRANTED:
            assert row.by_room and self.naive.meet(ALICE, BOB)

    @invariant()
    def rooms_are_known_as_they_were_told(self) -> None:
        """Members, rules, and which of them count."""
        engine = self.side.engine
        assert {room_id: engine.room(room_id) for room_id in engine.rooms()} == {
            room_id: RoomDetail(len(r.members), len(r.members & set(OURS)), r.join_rule, r.counts, r.doubted)
            for room_id, r in self.naive.rooms.items()
        }

    @invariant()
    def whoever_has_a_right_has_heard_the_newest(self) -> None:
        """Also what changed while there was none; nothing at all is as good as offline."""
        detail = self.side.engine.user_detail(ALICE, self.side.now_ms)
        assert detail is not None
        for server in {name for name, user_id in self.naive.rights() if user_id == ALICE}:
            assert self.heard.get(server, PresenceState.OFFLINE) is detail.view.state

    def _note(self, effects: tuple[Effect, ...]) -> None:
        """What leaves is the newest."""
        for destination, user_id in pushed(effects):
            composed = self.side.engine.compose(destination, Wanted(users=(user_id,)), self.side.now_ms)
            self.heard.update((destination, p.state) for p in composed.pushes if p.user_id == ALICE)

    def _step(self, event: Event, change: Any) -> None:
        """What begins and ends with the event is told, once, and counted."""
        engine = self.side.engine
        sights, rights = self.naive.sights(), self.naive.rights()
        counters = {server: engine.rights(server) for server in SERVERS}
        heard = {x for x in THEIRS if (detail := engine.user_detail(x, self.side.now_ms)) and detail.heard_ms}
        change()
        effects = self.side.do(event)
        self._note(effects)
        began = self.naive.sights() - sights
        assert _gone(effects) == sights - self.naive.sights()
        assert {(o, x) for o, x in began if x in OURS or x in heard} <= _told(effects)
        gained = {(server, o) for server, o in self.naive.rights() - rights if o == ALICE}
        assert gained - {(server_of(x), o) for o, x in sights} <= {*pushed(effects)}
        for server in {server for server, _ in rights - self.naive.rights()}:
            assert engine.rights(server) > counters[server]

    def _forget_nothing(self, room_id: RoomID) -> None:
        room = self.naive.rooms[room_id]
        if not room.members and room.join_rule is None:
            del self.naive.rooms[room_id]


def _told(effects: tuple[Effect, ...]) -> set[tuple[UserID, UserID]]:
    return {
        (o, e.observed) for e in effects if isinstance(e, TellObservers) and not e.gone for o in e.observers
    }


def _gone(effects: tuple[Effect, ...]) -> set[tuple[UserID, UserID]]:
    return {(o, e.observed) for e in effects if isinstance(e, TellObservers) and e.gone for o in e.observers}


TestRooms = Rooms.TestCase
TestRooms.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
