import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

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
from fedpresence.engine.presence import PresenceRecord, PresenceState
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow, ObserverStage
from fedpresence.ids import RoomID
from fedpresence.storage.memory import MemoryStore
from fedpresence.storage.store import Stored
from fedpresence.testing.builders import ALICE, BOB, CAROL, HERE, NOW_MS, PHONE, THERE
from tests.asynchronous import result_of
from tests.storage.worlds import OnDisk

ROOM = RoomID("!room:here.test")

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
