"""What each server has committed, seen from beside its store: the ground on which everything is judged.

Always true:
- only what the store said is on the disk counts as kept;
- a start finds all that was kept, and of the one commit that a crash cut short either all or nothing.

Source: decisions 16 and 22; subscriptions.md 5 (safety invariant); Z-7.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, cast

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
    SaveRoom,
    SaveRoomMembers,
)
from fedpresence.engine.events import ListEduReceived
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID, server_of
from fedpresence.storage.store import Store, Stored

Pair = tuple[UserID, UserID]  # observer, observed
Right = tuple[UserID, ServerName]  # this user's presence, to that server


@dataclass
class Kept:
    """What is on one server's disk, presence left aside."""

    observer_rows: dict[Pair, ObserverRow] = field(default_factory=dict)
    observed_rows: dict[Pair, ObservedRow] = field(default_factory=dict)
    rooms: dict[RoomID, frozenset[UserID]] = field(default_factory=dict)
    of_homeserver: set[RoomID] = field(default_factory=set)
    hidden: set[tuple[UserID, DeviceID | None]] = field(default_factory=set)
    answers: set[tuple[ServerName, str]] = field(default_factory=set)
    inbox: dict[int, tuple[ListEduReceived, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Stored) -> "Kept":
        """What a start found; the rows of `stored` must be lists."""
        return cls(
            {(row.observer, row.observed): row for row in stored.pairs.observer_rows()},
            {(row.observer, row.observed): row for row in stored.pairs.observed_rows()},
            {room.room_id: frozenset(room.members) for room in stored.rooms if room.members},
            {room.room_id for room in stored.rooms if room.from_homeserver},
            set(stored.hidden),
            {(answer.origin, answer.txn_id) for answer in stored.answers},
            {entry.entry_id: entry.edus for entry in stored.inbox},
        )

    def apply(self, effects: Sequence[Durable]) -> None:
        """A commit."""
        for effect in effects:
            match effect:
                case SaveObserverRow(row=mine):
                    self.observer_rows[mine.observer, mine.observed] = mine
                case ForgetObserverRow(observer=observer, observed=observed):
                    self.observer_rows.pop((observer, observed), None)
                case SaveObservedRow(row=theirs):
                    self.observed_rows[theirs.observer, theirs.observed] = theirs
                case ForgetObservedRow(observer=observer, observed=observed):
                    self.observed_rows.pop((observer, observed), None)
                case SaveRoomMembers(room_id=room_id, joined=joined, left=left):
                    self.rooms[room_id] = self.rooms.get(room_id, frozenset()).difference(left).union(joined)
                case SaveRoom(room_id=room_id, from_homeserver=from_homeserver):
                    (self.of_homeserver.add if from_homeserver else self.of_homeserver.discard)(room_id)
                case ForgetRoom(room_id=room_id):
                    self.rooms.pop(room_id, None)
                    self.of_homeserver.discard(room_id)
                case SaveHidden(user_id=user_id, device_id=device_id, hidden=hidden):
                    (self.hidden.add if hidden else self.hidden.discard)((user_id, device_id))
                case SaveAnswer(origin=origin, txn_id=txn_id):
                    self.answers.add((origin, txn_id))
                case ForgetAnswer(origin=origin, txn_id=txn_id):
                    self.answers.discard((origin, txn_id))
                case SaveInbox(entry_id=entry_id, edus=edus):
                    self.inbox[entry_id] = edus
                case ForgetInbox(entry_id=entry_id):
                    self.inbox.pop(entry_id, None)

    def rights(self, our_name: ServerName, doubted: Set[RoomID] = frozenset()) -> set[Right]:
        """Who of ours may be told about to which server: the safety invariant's two grounds.

        Rooms in doubt are none (Z-11), and a grant that rests on a room is none of its own.
        """
        rights = {
            (observed, server_of(observer))
            for (observer, observed), row in self.observed_rows.items()
            if row.stage is ObservedStage.GRANTED and not row.muted and not row.by_room
        }
        for members in (members for room_id, members in self.rooms.items() if room_id not in doubted):
            servers = {server_of(member) for member in members}
            rights.update((m, server) for m in members if server_of(m) == our_name for server in servers)
        return {(user_id, server) for user_id, server in rights if server != our_name}

    def share_a_room(self, one: UserID, other: UserID) -> bool:
        """Whether two users are in a room together."""
        return any(one in members and other in members for members in self.rooms.values())


class Ledger:
    """One server's commits, as they happen. `complain` hears of what was forgotten."""

    def __init__(self, name: ServerName, now_ms: Callable[[], int], complain: Callable[[str], None]) -> None:
        self.name = name
        self.kept = Kept()
        self.right_ended_ms: dict[Right, int] = {}
        self.row_changed_ms: dict[tuple[Pair, bool], int] = {}  # True: the observer's half
        self.row_changes: Counter[tuple[Pair, bool]] = Counter()
        self.doubted: set[RoomID] = set()  # a homeserver's rooms, not told again since the start
        self._now_ms = now_ms
        self._complain = complain
        self._unclear: list[Sequence[Durable]] = []  # asked for, not yet said to be done
        self._may_lose = True  # nothing is known yet

    def data_replaced(self) -> None:
        """The operator wiped or restored: the next start may find anything."""
        self._may_lose = True

    def loaded(self, stored: Stored) -> Stored:
        """A start."""
        stored = replace(
            stored,
            rooms=list(stored.rooms),
            hidden=list(stored.hidden),
            answers=list(stored.answers),
            inbox=list(stored.inbox),
        )
        found = Kept.of(stored)
        if not self._may_lose and not any(found == possible for possible in self._possible()):
            self._complain(f"{self.name} forgot something: {_difference(self.kept, found)}")
        self._may_lose = False
        self._unclear.clear()
        self._become(found, found.of_homeserver)
        return stored

    def told(self, room_id: RoomID) -> None:
        """A room's members are about to be told."""
        self.doubted.discard(room_id)

    def asked(self, effects: Sequence[Durable]) -> None:
        """A commit was asked for."""
        self._unclear.append(effects)

    def committed(self, effects: Sequence[Durable]) -> None:
        """It is done: the oldest that was asked for."""
        self._unclear.remove(effects)
        after = copy_of(self.kept)
        after.apply(effects)
        for effect in effects:
            match effect:
                case SaveObserverRow(row=mine):
                    self._row_changed((mine.observer, mine.observed), True)
                case ForgetObserverRow(observer=observer, observed=observed):
                    self._row_changed((observer, observed), True)
                case SaveObservedRow(row=theirs):
                    self._row_changed((theirs.observer, theirs.observed), False)
                case ForgetObservedRow(observer=observer, observed=observed):
                    self._row_changed((observer, observed), False)
        self._become(after, self.doubted)

    def may_tell(self, right: Right) -> bool:
        """Whether the right stands, or ended in this very millisecond: bytes take no time to the path."""
        stands = right in self.kept.rights(self.name, self.doubted)
        return stands or self.right_ended_ms.get(right) == self._now_ms()

    def changed_now(self, pair: Pair, observers: bool) -> bool:
        """Whether that half changed in this very millisecond."""
        return self.row_changed_ms.get((pair, observers)) == self._now_ms()

    def _possible(self) -> Iterator[Kept]:
        possible = copy_of(self.kept)
        yield possible
        for effects in self._unclear:
            possible.apply(effects)
            yield possible

    def _row_changed(self, pair: Pair, observers: bool) -> None:
        self.row_changed_ms[pair, observers] = self._now_ms()
        self.row_changes[pair, observers] += 1

    def _become(self, kept: Kept, doubted: Set[RoomID]) -> None:
        for right in self.kept.rights(self.name, self.doubted) - kept.rights(self.name, doubted):
            self.right_ended_ms[right] = self._now_ms()
        self.kept, self.doubted = kept, set(doubted)


class WatchedStore:
    """A store whose commits and loads a ledger hears of."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    def as_store(self) -> Store:
        """Itself, which has whatever a Store has."""
        return cast(Store, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def load(self) -> Deferred[Stored]:
        """As the store's."""
        return self._store.load().addCallback(self._ledger.loaded)

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """As the store's; the ledger hears of it before whoever asked."""
        self._ledger.asked(effects)
        return self._store.commit(effects, now_ms).addCallback(lambda _: self._ledger.committed(effects))


def copy_of(kept: Kept) -> Kept:
    """A copy whose tables are its own; what is in them never changes."""
    return Kept(
        dict(kept.observer_rows),
        dict(kept.observed_rows),
        dict(kept.rooms),
        set(kept.of_homeserver),
        set(kept.hidden),
        set(kept.answers),
        dict(kept.inbox),
    )


def _difference(before: Kept, after: Kept) -> str:
    words = []
    for name in Kept.__dataclass_fields__:
        was, found = getattr(before, name), getattr(after, name)
        if was == found:
            continue
        if isinstance(was, set):
            words.append(f"{name}: gone {was - found}, new {found - was}")
        else:
            keys = [key for key in {*was, *found} if was.get(key) != found.get(key)]
            words.extend(f"{name}[{key}]: {was.get(key)} became {found.get(key)}" for key in keys)
    return "; ".join(words)
