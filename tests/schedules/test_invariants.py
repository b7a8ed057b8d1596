"""The judges themselves: a check that never complains proves nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fedpresence.engine.effects import (
    ForgetObservedRow,
    SaveHidden,
    SaveObservedRow,
    SaveObserverRow,
    SaveRoomMembers,
)
from fedpresence.engine.rooms import StoredRoom
from fedpresence.engine.settings import InvitePolicy
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.ids import ServerName, UserID
from fedpresence.storage.store import Stored
from fedpresence.testing.rig.wirelog import Recorded
from tests.schedules.invariants import WireWatch, disagreements
from tests.schedules.kept import Ledger
from tests.schedules.schedule import ROOMS, A, B

ALICE, BOB = UserID("@alice:a.test"), UserID("@bob:b.test")
NOW_MS = 1_800_000_000_000

GRANTED = ObservedRow(ALICE, BOB, ObservedStage.GRANTED, NOW_MS, NOW_MS)
ACCEPTED = ObserverRow(ALICE, BOB, ObserverStage.ACCEPTED, NOW_MS, NOW_MS)
DENY = OwedEdu(EduKind.DENY, ALICE, BOB, 2, NOW_MS, final_push=True)
DENIED = ObservedRow(ALICE, BOB, ObservedStage.DENIED, NOW_MS, NOW_MS, generation=2, owed=(DENY,))

DENY_EDU = {
    "edu_type": "m.presence_deny",
    "content": {"observer_user": ALICE, "observed_user": BOB},
}


class World:
    """Two ledgers, a wire, and a clock. Bob was active four seconds ago."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.complaints: list[str] = []
        names = (A, B)
        self.ledgers = {name: Ledger(name, lambda: self.now_ms, self.complaints.append) for name in names}
        for ledger in self.ledgers.values():
            ledger.loaded(Stored())
        self.wire = WireWatch(self.ledgers, self, self.complaints.append)

    def time_at(self, server_name: ServerName) -> int:
        """No clock is wrong here."""
        return self.now_ms

    def last_active_ms(self, user_id: UserID) -> int:
        """As Bob's server has it."""
        return NOW_MS - 4_000

    def commit(self, name: ServerName, *effects: Any) -> None:
        """A server's commit."""
        self.ledgers[name].asked(effects)
        self.ledgers[name].committed(effects)

    def send(self, *edus: object, txn_id: str = "t1", made_ms: int | None = None) -> str:
        """From Bob's server to Alice's; what is complained of."""
        made_ms = self.now_ms if made_ms is None else made_ms
        body = {"origin": B, "origin_server_ts": made_ms, "pdus": [], "edus": edus}
        self.wire.sent(Recorded(B, A, txn_id, self.now_ms, json.dumps(body).encode()))
        return "; ".join(self.complaints)


@pytest.fixture
def world() -> World:
    """A new one."""
    return World()


def push(ago: object = 4_000, *, presence: str = "online", **more: object) -> dict[str, Any]:
    """Presence of Bob."""
    item = {"user_id": BOB, "presence": presence, "last_active_ago": ago, **more}
    return {"edu_type": "m.presence", "content": {"push": [item]}}


def test_presence_with_a_grant_or_a_room_is_no_leak(world: World) -> None:
    """The two grounds."""
    world.commit(B, SaveObservedRow(GRANTED))
    assert not world.send(push())
    world.commit(B, ForgetObservedRow(ALICE, BOB), SaveRoomMembers(ROOMS[0], (ALICE, BOB), ()))
    world.now_ms += 1
    assert not world.send(push(4_001), txn_id="t2")


@pytest.mark.parametrize(
    "row",
    [
        None,
        ObservedRow(ALICE, BOB, ObservedStage.GRANTED, NOW_MS, NOW_MS, muted=True),
        ObservedRow(ALICE, BOB, ObservedStage.REQUESTED, NOW_MS, NOW_MS),
    ],
)
def test_presence_without_either_is_a_leak(world: World, row: ObservedRow | None) -> None:
    """The safety invariant."""
    if row is not None:
        world.commit(B, SaveObservedRow(row))

    assert "LEAK" in world.send(push())


def test_presence_by_a_homeservers_room_is_a_leak_until_it_is_told_again(world: World) -> None:
    """Z-11."""
    room = StoredRoom(ROOMS[0], None, True, (ALICE, BOB), from_homeserver=True)
    world.ledgers[B].data_replaced()
    world.ledgers[B].loaded(Stored(rooms=[room]))
    assert "LEAK" in world.send(push())
    world.complaints.clear()

    world.ledgers[B].told(ROOMS[0])

    assert not world.send(push(), txn_id="t2")


def test_a_grant_that_rests_on_a_room_is_no_ground_of_its_own(world: World) -> None:
    """Z-10: what it gives, the room gives."""
    world.commit(B, SaveObservedRow(replace(GRANTED, by_room=True)))

    assert "LEAK" in world.send(push())


def test_a_right_that_ended_in_this_millisecond_may_still_be_in_bytes_on_their_way(world: World) -> None:
    """From the sender to the path bytes take no time of the rig's; a millisecond later they are a leak."""
    world.commit(B, SaveObservedRow(GRANTED))
    world.commit(B, ForgetObservedRow(ALICE, BOB))
    assert not world.send(push())
    world.now_ms += 1
    assert "LEAK" in world.send(push(4_001), txn_id="t2")


def test_older_bytes_are_a_leak_although_the_right_began_again(world: World) -> None:
    """They must be made anew, under a new ID."""
    world.commit(B, SaveObservedRow(GRANTED))
    world.now_ms += 1_000
    world.commit(B, ForgetObservedRow(ALICE, BOB))
    world.now_ms += 1_000
    world.commit(B, SaveObservedRow(GRANTED))

    assert "older bytes" in world.send(push(), made_ms=NOW_MS)


def test_the_final_push_is_no_leak_before_its_deny_alone(world: World) -> None:
    """P-11: offline and nothing else."""
    world.commit(B, SaveObservedRow(DENIED))
    assert not world.send(push(0, presence="offline"), DENY_EDU)
    assert "LEAK" in world.send(push(0, presence="offline"), txn_id="t2")


@pytest.mark.parametrize("more", [{"status_msg": "bye"}, {"currently_active": False}])
def test_a_final_push_that_says_more_is_a_leak(world: World, more: dict[str, object]) -> None:
    """No message, no age."""
    world.commit(B, SaveObservedRow(DENIED))

    assert "LEAK" in world.send(push(0, presence="offline", **more), DENY_EDU)


@pytest.mark.parametrize("ago", [-1, 4_000.0, True, None, 3_999])
def test_an_age_is_whole_and_right(world: World, ago: object) -> None:
    """E:P-3."""
    world.commit(B, SaveObservedRow(GRANTED))

    assert world.send(push(ago))


def test_a_transaction_says_something_and_nothing_twice(world: World) -> None:
    """Decisions 10 and 11."""
    world.commit(B, SaveObservedRow(GRANTED))
    assert "0 EDUs" in world.send()
    assert "carries nothing" in world.send({"edu_type": "m.presence", "content": {"push": []}}, txn_id="t2")
    assert "a user stands twice" in world.send(push(), push(), txn_id="t3")


def test_a_list_edu_is_the_next_that_is_owed(world: World) -> None:
    """Decision 16: what leaves is what the row owes, in order."""
    world.commit(B, SaveObservedRow(DENIED))
    world.now_ms += 1
    assert not world.send(DENY_EDU)
    accept = {**DENY_EDU, "edu_type": "m.presence_accept"}
    assert "not the next" in world.send(accept, txn_id="t2")


def test_a_list_edu_that_was_overtaken_by_its_sender_is_found(world: World) -> None:
    """Older bytes must not follow newer ones of the pair."""
    world.commit(B, SaveObservedRow(DENIED))
    world.now_ms += 1_000
    assert not world.send(DENY_EDU)
    assert "made before another" in world.send(DENY_EDU, txn_id="t2", made_ms=NOW_MS)


def test_a_start_that_finds_less_than_was_kept_is_found(world: World) -> None:
    """Nothing that was answered is forgotten."""
    world.commit(B, SaveHidden(BOB, None, True))

    world.ledgers[B].loaded(Stored())

    assert "forgot something" in world.complaints[0]


def test_the_one_commit_that_was_cut_short_may_be_there_or_not() -> None:
    """A crash comes before the disk's word or after it."""
    for hidden in ((), ((BOB, None),)):
        world = World()
        world.ledgers[B].asked((SaveHidden(BOB, None, True),))
        world.ledgers[B].loaded(Stored(hidden=hidden))
        assert not world.complaints


def test_a_wipe_may_forget(world: World) -> None:
    """The operator's own doing."""
    world.commit(B, SaveHidden(BOB, None, True))
    world.ledgers[B].data_replaced()

    world.ledgers[B].loaded(Stored())

    assert not world.complaints


@pytest.mark.parametrize(
    ("theirs", "agrees"),
    [
        (GRANTED, True),
        (ObservedRow(ALICE, BOB, ObservedStage.GRANTED, NOW_MS, NOW_MS, muted=True), False),
        (ObservedRow(ALICE, BOB, ObservedStage.REQUESTED, NOW_MS, NOW_MS), False),
        (DENIED, False),
        (None, False),
    ],
)
def test_an_accept_agrees_with_a_grant_alone(world: World, theirs: ObservedRow | None, agrees: bool) -> None:
    """S:5: never (accepted, anything but granted)."""
    world.commit(A, SaveObserverRow(ACCEPTED))
    if theirs is not None:
        world.commit(B, SaveObservedRow(theirs))

    complaints = list(
        disagreements(
            [(ALICE, BOB)], world.ledgers, InvitePolicy.ASK, is_told=True, users=frozenset({ALICE, BOB})
        )
    )

    assert (complaints == []) is agrees
