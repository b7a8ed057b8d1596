import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from fedpresence.engine.effects import (
    Durable,
    ForgetAnswer,
    ForgetInbox,
    ForgetObservedRow,
    ForgetObserverRow,
    ForgetRoom,
    SaveAnswer,
    SaveHidden,
    SaveInbox,
    SaveObservedRow,
    SaveObserverRow,
    SavePresence,
    SaveRoom,
    SaveRoomMembers,
    SaveUser,
)
from fedpresence.engine.events import ListEduReceived
from fedpresence.engine.presence import PresenceRecord, PresenceState
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.errors import StoreError
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID
from fedpresence.storage.memory import MemoryStore
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import Store, Stored, TokenOwner
from tests.asynchronous import result_of
from tests.storage.threads import ThreadReactor

NOW_MS = 1_700_000_000_000
ALICE = UserID("@alice:here.test")
BOB = UserID("@bob:there.test")
CAROL = UserID("@carol:here.test")
HERE = ServerName("here.test")
THERE = ServerName("there.test")
PHONE = DeviceID("PHONE")
ROOM = RoomID("!room:here.test")


T = TypeVar("T")


class World(ABC):
    """A store, others on the same data, and how to wait for their answers."""

    store: Store

    @abstractmethod
    def wait(self, deferred: Deferred[T]) -> T:
        """The Deferred's result, or its error raised."""

    @abstractmethod
    def another_process(self) -> Store:
        """A second store on the same data."""

    @abstractmethod
    def restart(self) -> None:
        """Close the store and open it again."""

    @abstractmethod
    def close(self) -> None:
        """Close whatever is open."""


class InMemory(World):
    """MemoryStore, whose Deferreds have always fired."""

    def __init__(self) -> None:
        self._memory = self.store = MemoryStore(max_server_keys=3)

    def wait(self, deferred: Deferred[T]) -> T:
        """See World."""
        return result_of(deferred)

    def another_process(self) -> Store:
        """See World."""
        return self._memory.reopened()

    def restart(self) -> None:
        """See World."""
        self.close()
        self._memory = self.store = self._memory.reopened()

    def close(self) -> None:
        """See World."""
        self.wait(self.store.close())


class OnDisk(World):
    """SQLiteStore with its real thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reactor = ThreadReactor()
        self._others: list[Store] = []
        self.store = self._open()

    def _open(self, *, exclusive: bool = True) -> Store:
        return SQLiteStore.open(self._path, self._reactor, exclusive, max_server_keys=3)

    def wait(self, deferred: Deferred[T]) -> T:
        """See World."""
        return self._reactor.wait(deferred)

    def another_process(self) -> Store:
        """See World."""
        self._others.append(self._open(exclusive=False))
        return self._others[-1]

    def restart(self) -> None:
        """See World."""
        self.close()
        self.store = self._open()

    def close(self) -> None:
        """See World."""
        for store in [*self._others, self.store]:
            self.wait(store.close())


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made: World = InMemory() if request.param == "memory" else OnDisk(tmp_path / "fedpresence.db")
    yield made
    made.close()


def commit(world: World, *effects: Durable, now_ms: int = NOW_MS) -> None:
    world.wait(world.store.commit(effects, now_ms))


def stored(world: World) -> Stored:
    """What a restart finds."""
    world.restart()
    return world.wait(world.store.load())


def owed(kind: EduKind, generation: int, *, unpoll: bool = False, final_push: bool = False) -> OwedEdu:
    return OwedEdu(kind, ALICE, BOB, generation, NOW_MS, unpoll=unpoll, final_push=final_push)


def observer_row(stage: ObserverStage = ObserverStage.PENDING, **fields: Any) -> ObserverRow:
    return ObserverRow(ALICE, BOB, stage, NOW_MS, NOW_MS + 1, **fields)


def observed_row(stage: ObservedStage = ObservedStage.REQUESTED, **fields: Any) -> ObservedRow:
    return ObservedRow(BOB, ALICE, stage, NOW_MS, NOW_MS + 1, **fields)


def a_record(user_id: UserID = BOB, **fields: Any) -> PresenceRecord:
    values: dict[str, Any] = {
        "state": PresenceState.ONLINE,
        "last_active_ms": NOW_MS,
        "status_msg": "at sea \N{SAILBOAT}",
        "currently_active": True,
        "heard_ms": NOW_MS,
    }
    return PresenceRecord(user_id, **(values | fields))


# --- rows ------------------------------------------------------------------------------------


def test_a_new_store_is_empty(world: World) -> None:
    """The first start of all begins with nothing, not with an error."""
    found = world.wait(world.store.load())

    assert [*found.users, *found.pairs.observer_rows(), *found.pairs.observed_rows(), *found.rooms] == []
    assert [*found.hidden, *found.answers, *found.inbox, *found.presence] == []
    assert (found.newest_origin_ts, found.saved_at_ms) == ({}, 0)


def test_an_observer_row_survives_whole_with_the_edus_it_owes(world: World) -> None:
    """What is owed is part of the row (decision 16): losing it would leave the pair half-open."""
    row = observer_row(
        ObserverStage.NONE,
        invite_ms=NOW_MS + 2,
        confirmed_ms=NOW_MS + 3,
        check_ms=NOW_MS + 4,
        generation=7,
        owed=(owed(EduKind.INVITE, 6), owed(EduKind.DROP, 7, unpoll=True)),
    )

    commit(world, SaveObserverRow(row))

    assert list(stored(world).pairs.observer_rows()) == [row]


def test_an_observed_row_survives_whole_with_the_edus_it_owes(world: World) -> None:
    """A revoke that is not delivered yet must go on being tried after a restart."""
    row = ObservedRow(
        observer=ALICE,
        observed=BOB,
        stage=ObservedStage.DENIED,
        created_ms=NOW_MS,
        changed_ms=NOW_MS + 1,
        muted=True,
        blocked=True,
        by_room=True,
        denials=2,
        generation=5,
        owed=(owed(EduKind.DENY, 5, final_push=True),),
        confirmed_ms=NOW_MS + 2,
    )

    commit(world, SaveObservedRow(row))

    assert list(stored(world).pairs.observed_rows()) == [row]


def test_every_stage_and_flag_reads_back_as_it_was_written(world: World) -> None:
    """Two columns exchanged would grant what was only muted."""
    observers = [observer_row(stage) for stage in ObserverStage]
    flags: list[dict[str, Any]] = [{"muted": True}, {"blocked": True}, {"by_room": True}]
    observed = [
        *(observed_row(stage) for stage in ObservedStage),
        *(observed_row(**flag) for flag in flags),
    ]

    for row in observers:
        commit(world, SaveObserverRow(row))
        assert list(stored(world).pairs.observer_rows()) == [row]
    for other in observed:
        commit(world, SaveObservedRow(other))
        assert list(stored(world).pairs.observed_rows()) == [other]


def test_the_two_halves_and_the_two_directions_of_a_pair_are_apart(world: World) -> None:
    """Alice observing Bob says nothing about Bob observing Alice (S:2)."""
    there = observer_row()
    back = ObserverRow(BOB, ALICE, ObserverStage.ACCEPTED, NOW_MS, NOW_MS)
    commit(world, SaveObserverRow(there), SaveObserverRow(back), SaveObservedRow(observed_row()))

    commit(world, ForgetObserverRow(ALICE, BOB), ForgetObservedRow(ALICE, BOB))

    found = stored(world)
    assert list(found.pairs.observer_rows()) == [back]
    assert list(found.pairs.observed_rows()) == [observed_row()]


def test_of_one_row_the_last_word_in_a_turn_wins(world: World) -> None:
    """Events that share a turn may save a row, forget it and save it again."""
    commit(
        world,
        SaveObserverRow(observer_row(ObserverStage.ACCEPTED)),
        ForgetObserverRow(ALICE, BOB),
        SaveObserverRow(observer_row(ObserverStage.DENIED)),
        SaveObservedRow(observed_row()),
        ForgetObservedRow(BOB, ALICE),
        SaveInbox(1, ()),
        ForgetInbox(1),
        SaveHidden(ALICE, None, True),
        SaveHidden(ALICE, None, False),
        SaveAnswer(THERE, "t1", NOW_MS, NOW_MS),
        ForgetAnswer(THERE, "t1"),
    )

    found = stored(world)
    assert list(found.pairs.observer_rows()) == [observer_row(ObserverStage.DENIED)]
    assert [*found.pairs.observed_rows(), *found.inbox, *found.hidden, *found.answers] == []


def test_forgetting_what_is_not_there_changes_nothing(world: World) -> None:
    """The engine may say twice that a row is gone."""
    commit(
        world,
        ForgetObserverRow(ALICE, BOB),
        ForgetObservedRow(ALICE, BOB),
        ForgetAnswer(THERE, "t1"),
        ForgetInbox(1),
        SaveHidden(ALICE, PHONE, False),
        ForgetRoom(ROOM),
    )

    assert list(stored(world).pairs.observer_rows()) == []


def test_hidden_devices_are_told_apart_and_a_missing_device_is_one(world: World) -> None:
    """A declared offline survives a restart (P:D-8); a token without device must not unhide another."""
    empty = DeviceID("")
    commit(world, *(SaveHidden(ALICE, device, True) for device in (None, PHONE, empty)))
    commit(world, SaveHidden(ALICE, None, True), SaveHidden(ALICE, empty, False))

    assert sorted(stored(world).hidden, key=str) == [(ALICE, PHONE), (ALICE, None)]


def test_a_room_changes_member_by_member(world: World) -> None:
    """Who has left may see nothing more, and a join is one row however large the room is."""
    commit(world, SaveRoom(ROOM, None, True), SaveRoomMembers(ROOM, (ALICE, BOB), ()))
    commit(world, SaveRoomMembers(ROOM, (CAROL,), (ALICE,)), SaveRoomMembers(ROOM, (BOB,), ()))

    assert rooms_in(world) == {ROOM: (None, True, {BOB, CAROL})}


def test_a_rule_changes_without_its_members(world: World) -> None:
    """The rows of a room of thousands are not touched by what is said about the room."""
    commit(world, SaveRoom(ROOM, "public", False), SaveRoomMembers(ROOM, (ALICE,), ()))
    commit(world, SaveRoom(ROOM, "invite", True))

    assert rooms_in(world) == {ROOM: ("invite", True, {ALICE})}


def test_it_is_kept_who_told_of_a_room(world: World) -> None:
    """A homeserver's is in doubt after a start (Z-11)."""
    commit(world, SaveRoom(ROOM, None, True, from_homeserver=True))
    assert [room.from_homeserver for room in stored(world).rooms] == [True]

    commit(world, SaveRoom(ROOM, None, True))
    assert [room.from_homeserver for room in stored(world).rooms] == [False]


def test_a_room_without_members_is_kept_for_its_rule(world: World) -> None:
    """The rule may be told before the first member."""
    commit(world, SaveRoom(ROOM, "invite", False))

    assert rooms_in(world) == {ROOM: ("invite", False, set())}


def test_a_room_is_forgotten_with_its_members(world: World) -> None:
    """A room that comes back, be it in the same turn, begins with those who are told then."""
    commit(world, SaveRoom(ROOM, None, True), SaveRoomMembers(ROOM, (ALICE, BOB), ()))
    commit(world, ForgetRoom(ROOM))
    assert rooms_in(world) == {}

    commit(world, SaveRoom(ROOM, "knock", True), SaveRoomMembers(ROOM, (ALICE,), ()))
    commit(
        world,
        SaveRoomMembers(ROOM, (BOB,), ()),
        ForgetRoom(ROOM),
        SaveRoom(ROOM, None, False),
        SaveRoomMembers(ROOM, (CAROL,), ()),
    )

    assert rooms_in(world) == {ROOM: (None, False, {CAROL})}


def rooms_in(world: World) -> dict[RoomID, tuple[str | None, bool, set[UserID]]]:
    """Join rule, whether it counts, and members of each room."""
    return {r.room_id: (r.join_rule, r.counts, set(r.members)) for r in stored(world).rooms}


def test_answers_come_oldest_first_and_are_forgotten_one_by_one(world: World) -> None:
    """A repeated transaction must change nothing, a restart in between or not (F:R-1)."""
    late, early = SaveAnswer(THERE, "t1", NOW_MS + 5, 17), SaveAnswer(THERE, "t2", NOW_MS, 18)
    other = SaveAnswer(HERE, "t1", NOW_MS + 1, 19)
    commit(world, late, early, other)
    assert list(stored(world).answers) == [early, other, late]

    commit(world, ForgetAnswer(THERE, "t1"))

    assert list(stored(world).answers) == [early, other]


def test_the_newest_time_of_an_origin_never_goes_back(world: World) -> None:
    """The guard against replays must outlive the answers themselves (Z-6)."""
    commit(world, SaveAnswer(THERE, "t1", NOW_MS, 500), SaveAnswer(THERE, "t2", NOW_MS, 400))
    commit(world, SaveAnswer(THERE, "t3", NOW_MS, 300), ForgetAnswer(THERE, "t1"))
    commit(world, SaveAnswer(HERE, "t4", NOW_MS, 900), ForgetAnswer(HERE, "t4"))

    assert stored(world).newest_origin_ts == {THERE: 500, HERE: 900}


def test_the_inbox_keeps_its_order(world: World) -> None:
    """A drop must not overtake the invite before it (Z-7)."""
    edus = tuple(ListEduReceived(kind, THERE, BOB, ALICE) for kind in EduKind)
    second, first = SaveInbox(12, edus[::-1]), SaveInbox(3, edus)
    commit(world, second)
    commit(world, first, SaveInbox(7, edus[:1]))

    commit(world, ForgetInbox(7))

    assert list(stored(world).inbox) == [first, second]


def test_presence_is_replaced_kept_and_forgotten_per_user(world: World) -> None:
    """A restart begins with what was known (P:M-4) and with nobody whom it must not know (decision 19)."""
    world.wait(world.store.save_presence([a_record(), a_record(CAROL)], NOW_MS))
    newer = a_record(state=PresenceState.BUSY, status_msg=None, currently_active=False, heard_ms=0)
    world.wait(world.store.save_presence([newer], NOW_MS))
    world.wait(world.store.forget_presence([CAROL, ALICE]))

    assert list(stored(world).presence) == [newer]


def test_the_moment_of_the_last_write_is_kept(world: World) -> None:
    """Without it a jump of the clock between stop and start could not be seen (Z-21)."""
    commit(world, SaveUser(ALICE, False), now_ms=NOW_MS)
    assert stored(world).saved_at_ms == NOW_MS

    world.wait(world.store.save_presence([], NOW_MS + 9))
    assert stored(world).saved_at_ms == NOW_MS + 9


# --- users and tokens ------------------------------------------------------------------------


def test_a_token_makes_its_user_and_finds_its_owner(world: World) -> None:
    """A user exists once a token was issued (contract, "Client API")."""
    owner = TokenOwner(ALICE, PHONE)

    kept = world.wait(world.store.add_token("secret", owner, NOW_MS))

    found = stored(world)
    assert kept
    assert list(found.users) == [(ALICE, False)]
    assert world.wait(world.store.find_token("secret")) == owner
    assert world.wait(world.store.find_token("secre")) is None
    assert world.wait(world.store.find_token("\udcff")) is None


def test_tokens_are_listed_oldest_first_and_per_user(world: World) -> None:
    """The operator decides by this list what to revoke."""
    add = world.store.add_token
    world.wait(add("t1", TokenOwner(ALICE, PHONE), NOW_MS + 1))
    world.wait(add("t2", TokenOwner(CAROL, None), NOW_MS))

    assert world.wait(world.store.list_tokens(None)) == [(CAROL, None, NOW_MS), (ALICE, PHONE, NOW_MS + 1)]
    assert world.wait(world.store.list_tokens(ALICE)) == [(ALICE, PHONE, NOW_MS + 1)]
    assert world.wait(world.store.list_tokens(BOB)) == []


@pytest.mark.parametrize(
    ("device", "all_devices", "gone", "left"),
    [
        (PHONE, False, [PHONE], ["t3", "t4"]),
        (None, False, [None], ["t1", "t2", "t4"]),
        (None, True, [None, PHONE], ["t4"]),
        (DeviceID("OTHER"), False, [], ["t1", "t2", "t3", "t4"]),
    ],
)
def test_revoking_takes_all_tokens_of_the_device_and_no_others(
    world: World, device: DeviceID | None, all_devices: bool, gone: list[DeviceID | None], left: list[str]
) -> None:
    """A token that survives its revocation is an open door."""
    owners = {"t1": (ALICE, PHONE), "t2": (ALICE, PHONE), "t3": (ALICE, None), "t4": (CAROL, PHONE)}
    for token, (user_id, device_id) in owners.items():
        world.wait(world.store.add_token(token, TokenOwner(user_id, device_id), NOW_MS))

    answer = world.wait(world.store.revoke_tokens(ALICE, device, all_devices=all_devices))

    assert answer == gone
    world.restart()
    assert [t for t in owners if world.wait(world.store.find_token(t))] == left


def test_a_deactivated_user_has_no_tokens_and_no_presence_and_gets_none(world: World) -> None:
    """Deactivation is for good, and holds the moment it is committed."""
    world.wait(world.store.add_token("secret", TokenOwner(ALICE, PHONE), NOW_MS))
    world.wait(world.store.save_presence([a_record(ALICE)], NOW_MS))

    commit(world, SaveUser(ALICE, True))
    kept = world.wait(world.store.add_token("again", TokenOwner(ALICE, PHONE), NOW_MS))

    found = stored(world)
    assert not kept
    assert list(found.users) == [(ALICE, True)]
    assert list(found.presence) == []
    assert world.wait(world.store.list_tokens(None)) == []


def test_a_users_order_is_that_of_their_making(world: World) -> None:
    """A change to a user must not make them look new."""
    commit(world, SaveUser(ALICE, False), SaveUser(CAROL, False))
    commit(world, SaveUser(ALICE, True))

    assert list(stored(world).users) == [(ALICE, True), (CAROL, False)]


# --- what another process does ---------------------------------------------------------------


def test_users_made_beside_us_are_told_once(world: World) -> None:
    """`token add` makes a user whom the running daemon must know at once."""
    commit(world, SaveUser(ALICE, False))
    world.wait(world.store.load())
    command = world.another_process()
    assert world.wait(world.store.new_users()) == []

    world.wait(command.add_token("t1", TokenOwner(CAROL, None), NOW_MS))
    world.wait(command.add_token("t2", TokenOwner(ALICE, None), NOW_MS))
    commit(world, SaveUser(UserID("@dan:here.test"), False))

    assert world.wait(world.store.new_users()) == [CAROL]
    assert world.wait(world.store.new_users()) == []


def test_a_user_made_by_our_own_token_is_told_too(world: World) -> None:
    """Whoever issues tokens in the daemon's own process need not know of the engine."""
    world.wait(world.store.load())

    world.wait(world.store.add_token("t1", TokenOwner(CAROL, None), NOW_MS))

    assert world.wait(world.store.new_users()) == [CAROL]
    assert world.wait(world.store.new_users()) == []


def test_changes_beside_us_are_told_once_and_our_own_never(world: World) -> None:
    """A cache of tokens is thrown away when somebody else wrote, not at every commit of ours."""
    command = world.another_process()
    world.wait(world.store.add_token("t1", TokenOwner(ALICE, None), NOW_MS))
    commit(world, SaveUser(CAROL, False))
    assert not world.wait(world.store.tokens_changed())

    world.wait(command.revoke_tokens(ALICE, None, all_devices=True))

    assert world.wait(world.store.tokens_changed())
    assert not world.wait(world.store.tokens_changed())
    assert world.wait(world.store.find_token("t1")) is None


def test_asking_for_new_users_does_not_hide_changed_tokens(world: World) -> None:
    """Both watch the same sign; each must see it for itself."""
    command = world.another_process()
    world.wait(world.store.tokens_changed())

    world.wait(command.add_token("t1", TokenOwner(CAROL, None), NOW_MS))

    assert world.wait(world.store.new_users()) == [CAROL]
    assert world.wait(world.store.tokens_changed())


def test_whoever_writes_is_noticed(world: World) -> None:
    """An idle daemon asks nothing else, twice a second: no commit may slip through."""
    command = world.another_process()
    world.wait(world.store.add_token("t1", TokenOwner(ALICE, None), NOW_MS))
    world.store.touched()

    world.wait(command.revoke_tokens(ALICE, None, all_devices=True))

    assert world.store.touched()


# --- other servers' keys ---------------------------------------------------------------------


def test_keys_are_replaced_and_come_newest_first(world: World) -> None:
    """A restart should not have to fetch every key again."""
    world.wait(world.store.save_keys(THERE, b"{old}", 1))
    world.wait(world.store.save_keys(HERE, b"{here}", 2))
    world.wait(world.store.save_keys(THERE, b"{new}", 3))

    world.restart()
    assert world.wait(world.store.load_keys()) == [(THERE, b"{new}", 3), (HERE, b"{here}", 2)]


def test_of_too_many_servers_the_one_fetched_longest_ago_goes(world: World) -> None:
    """Whoever owns a wildcard owns any number of names (Z-4)."""
    for fetched_ms, name in enumerate("abcd"):
        world.wait(world.store.save_keys(ServerName(f"{name}.test"), b"{}", fetched_ms))

    names = [name for name, _, _ in world.wait(world.store.load_keys())]
    assert names == ["d.test", "c.test", "b.test"]


# --- the end ---------------------------------------------------------------------------------


def test_a_closed_store_answers_with_an_error_and_closes_again_quietly(world: World) -> None:
    """A stop may be asked for twice; a write after it must not seem to have worked."""
    world.wait(world.store.close())
    world.wait(world.store.close())

    store = world.store
    asked: list[Callable[[], Deferred[Any]]] = [
        store.load,
        lambda: store.commit([SaveUser(ALICE, False)], NOW_MS),
        lambda: store.save_presence([], NOW_MS),
        lambda: store.forget_presence([]),
        store.new_users,
        store.tokens_changed,
        lambda: store.add_token("t", TokenOwner(ALICE, None), NOW_MS),
        lambda: store.find_token("t"),
        lambda: store.list_tokens(None),
        lambda: store.revoke_tokens(ALICE, None, all_devices=True),
        store.load_keys,
        lambda: store.save_keys(THERE, b"{}", 1),
    ]
    for ask in asked:
        with pytest.raises(StoreError):
            world.wait(ask())


# --- both stores, one meaning ----------------------------------------------------------------

_USERS = st.sampled_from([ALICE, BOB, CAROL])
_ROOMS = st.sampled_from([ROOM, RoomID("!b:x.test")])
_SOME = st.lists(_USERS, max_size=2, unique=True)
_EFFECTS: st.SearchStrategy[Durable] = st.one_of(
    st.builds(SaveUser, _USERS, st.booleans()),
    st.builds(SaveHidden, _USERS, st.sampled_from([None, PHONE]), st.booleans()),
    st.builds(
        SavePresence,
        st.builds(
            PresenceRecord,
            _USERS,
            st.sampled_from(PresenceState),
            st.integers(0, 9),
            st.sampled_from([None, "Tea"]),
            st.booleans(),
            st.integers(0, 9),
        ),
    ),
    st.builds(
        SaveObserverRow,
        st.builds(ObserverRow, _USERS, _USERS, st.sampled_from(ObserverStage), st.just(1), st.integers(0, 9)),
    ),
    st.builds(ForgetObserverRow, _USERS, _USERS),
    st.builds(
        SaveObservedRow,
        st.builds(ObservedRow, _USERS, _USERS, st.sampled_from(ObservedStage), st.just(1), st.integers(0, 9)),
    ),
    st.builds(ForgetObservedRow, _USERS, _USERS),
    st.builds(SaveRoom, _ROOMS, st.sampled_from([None, "invite"]), st.booleans()),
    st.builds(ForgetRoom, _ROOMS),
    st.builds(
        SaveAnswer,
        st.sampled_from([HERE, THERE]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    st.builds(ForgetAnswer, st.sampled_from([HERE, THERE]), st.sampled_from(["a", "b"])),
    st.builds(SaveInbox, st.integers(1, 3), st.just(())),
    st.builds(ForgetInbox, st.integers(1, 3)),
)
_MEMBERS: st.SearchStrategy[list[Durable]] = st.builds(
    lambda room_id, some, number: [
        SaveRoom(room_id, None, True),  # members are of a room that is saved
        SaveRoomMembers(room_id, tuple(some[:number]), tuple(some[number:])),
    ],
    _ROOMS,
    _SOME,
    st.integers(0, 2),
)


def _joined(parts: list[list[Durable]]) -> list[Durable]:
    return [effect for part in parts for effect in part]


_TURN: st.SearchStrategy[list[Durable]] = st.lists(
    st.builds(lambda effect: [effect], _EFFECTS) | _MEMBERS, max_size=12
).map(_joined)


def _comparable(found: Stored) -> list[object]:
    tables = (
        found.users,
        found.hidden,
        found.pairs.observer_rows(),
        found.pairs.observed_rows(),
        found.rooms,
        found.answers,
        found.inbox,
        found.presence,
    )
    return [
        *(sorted(map(repr, table)) for table in tables[:4]),
        sorted((r.room_id, str(r.join_rule), r.counts, sorted(r.members)) for r in found.rooms),
        *(sorted(map(repr, table)) for table in tables[5:]),
        found.newest_origin_ts,
        found.saved_at_ms,
    ]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(_TURN, max_size=5))
def test_memory_and_sqlite_hold_the_same_after_any_turns(turns: list[list[Durable]]) -> None:
    """Tests run against memory; what they show must hold on the disk."""
    memory = MemoryStore()
    with tempfile.TemporaryDirectory() as folder:
        disk = OnDisk(Path(folder) / "fedpresence.db")
        for moment, turn in enumerate(turns):
            result_of(memory.commit(turn, moment))
            disk.wait(disk.store.commit(turn, moment))

        on_disk = disk.wait(disk.store.load())
        disk.close()

    assert _comparable(on_disk) == _comparable(result_of(memory.load()))


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(_TURN, max_size=5))
def test_a_turn_leaves_what_its_effects_one_by_one_would(turns: list[list[Durable]]) -> None:
    """Sharing a commit is for speed; it must not change what is stored."""
    together, apart = MemoryStore(), MemoryStore()

    for turn in turns:
        result_of(together.commit(turn, NOW_MS))
        for effect in turn:
            result_of(apart.commit([effect], NOW_MS))
        if not turn:
            result_of(apart.commit([], NOW_MS))

    assert _comparable(result_of(together.load())) == _comparable(result_of(apart.load()))
