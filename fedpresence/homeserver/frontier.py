"""What is still to be asked of the homeserver, and what its stream said meanwhile (pure).

Always true:
- a room or user stands here once, however often it is found;
- what the stream says of a room's members while they are being asked for, and said in the minute before,
  wins over the answer, which may be older: of a homeserver's processes the one that answers may be behind the
  one that tells;
- a room that the engine does not know is told to it whole or not at all, so it never seems smaller than it
  is (Z-19);
- of a room too large to count only its size is kept, and it is asked for again when as many have left as
  would make it small;
- a question that fails by itself again and again is put off, for up to an hour each time, and does not count
  as waiting; what is found anew meanwhile is asked at once;
- rooms in doubt (Z-11) and what was newly found are asked for in turn, so neither waits for all of the other.

Source: H:3; Z-11, Z-19.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fedpresence.engine.deadlines import Deadlines
from fedpresence.engine.events import RoomJoinRuleChanged, RoomMemberChanged
from fedpresence.ids import RoomID, UserID
from fedpresence.storage.store import ScanKind, ScanRow

MAX_TRIES = 3  # of one question that fails alone, before it is put off
FIRST_PUT_OFF_MS = 60_000
LONGEST_PUT_OFF_MS = 3_600_000
PUT_OFF_JITTER = 0.5  # only ever shorter
NEAR_MISS = 4  # a room up to so many times `max_members` is asked for again at each start
MAX_LATELY = 10_000  # rooms that were asked for and have nobody of ours
LATELY_MS = 3_600_000
SAID_FOR_MS = 60_000  # Synapse's workers follow each other within a second, and soon after Redis was away
MAX_SAID = 10_000  # changes of members that are remembered for so long
ASK_AGAIN_MS = 1_000  # where an answer is behind what was said

Item = UserID | RoomID | None  # None: where the scan begins


@dataclass(slots=True)
class Meanwhile:
    """What the stream said of a room while it was asked for; of its members, in the minute before too."""

    joined: dict[UserID, bool] = field(default_factory=dict)
    is_rule_told: bool = False
    is_doubted: bool = False
    is_outdated: bool = False

    def applied(self, members: Iterable[UserID]) -> frozenset[UserID]:
        """The answer, brought up to date."""
        found = set(members)
        for user_id, joined in self.joined.items():
            (found.add if joined else found.discard)(user_id)
        return frozenset(found)


class Said:
    """Who joined and left which room in the last minute, by the stream's last word of each."""

    def __init__(self) -> None:
        self._rooms: dict[RoomID, dict[UserID, tuple[int, bool]]] = {}
        self._order: deque[tuple[int, RoomID, UserID]] = deque()

    def __len__(self) -> int:
        return len(self._order)

    def change(self, change: RoomMemberChanged, now_ms: int) -> None:
        """It said this now."""
        self._rooms.setdefault(change.room_id, {})[change.user_id] = (now_ms, change.joined)
        self._order.append((now_ms, change.room_id, change.user_id))
        self._forget_old(now_ms)

    def of(self, room_id: RoomID, now_ms: int) -> dict[UserID, bool]:
        """Of one room."""
        self._forget_old(now_ms)
        return {user_id: joined for user_id, (_, joined) in self._rooms.get(room_id, {}).items()}

    def forget(self, room_id: RoomID, user_id: UserID) -> None:
        """It said something else since, which may be over."""
        said = self._rooms.get(room_id, {})
        said.pop(user_id, None)
        if not said:
            self._rooms.pop(room_id, None)

    def _forget_old(self, now_ms: int) -> None:
        while self._order and (len(self._order) > MAX_SAID or now_ms - self._order[0][0] >= SAID_FOR_MS):
            at_ms, room_id, user_id = self._order.popleft()
            said = self._rooms.get(room_id, {}).get(user_id)
            if said is not None and said[0] == at_ms:
                self.forget(room_id, user_id)


class Frontier:
    """Users and rooms to be asked for, those being asked for, and rooms that are too large."""

    def __init__(self, rows: Iterable[ScanRow], max_members: int) -> None:
        self.max_members = max_members
        self._users: dict[UserID, None] = {}
        self._rooms: dict[RoomID, None] = {}
        self._doubted: OrderedDict[RoomID, None] = OrderedDict()
        self._was_doubted = False  # what was taken last
        self._large: dict[RoomID, int] = {}
        self._begun = False
        self._beginning = False
        self._asking_users: set[UserID] = set()
        self._asking: dict[RoomID, Meanwhile] = {}
        self._tries: dict[UserID | RoomID, int] = {}
        self._put_off: Deadlines[UserID | RoomID] = Deadlines()
        self._lately: dict[RoomID, int] = {}
        self._said = Said()
        for row in rows:
            if row.kind is ScanKind.BEGUN:
                self._begun = True
            elif row.kind is ScanKind.USER:
                self._users[UserID(row.name)] = None
            elif row.kind is ScanKind.ROOM:
                self._rooms[RoomID(row.name)] = None
            else:
                self._large[RoomID(row.name)] = row.members
        self.judge_again(max_members, times=NEAR_MISS)

    # --- the questions --------------------------------------------------------------------------

    def take(self, now_ms: int) -> tuple[Item] | None:
        """The next question, which is being asked from here on; None where nothing is left to ask."""
        if not self._begun and not self._beginning:
            self._beginning = True
            return (None,)
        is_new_waiting = bool(self._rooms or self._users)
        self._was_doubted = bool(self._doubted) and not (self._was_doubted and is_new_waiting)
        if self._was_doubted:
            room_id, _ = self._doubted.popitem(last=False)
            self._asking[room_id] = Meanwhile(self._said.of(room_id, now_ms), is_doubted=True)
            return (room_id,)
        if self._rooms:  # first: a room is told of, and its users are new questions
            room_id = next(iter(self._rooms))
            del self._rooms[room_id]
            self._asking[room_id] = Meanwhile(self._said.of(room_id, now_ms))
            return (room_id,)
        if self._users:
            user_id = next(iter(self._users))
            del self._users[user_id]
            self._asking_users.add(user_id)
            return (user_id,)
        return None

    def waiting(self) -> tuple[int, int]:
        """How many users and rooms are not answered for."""
        rooms = len(self._rooms) + len(self._doubted) + len(self._asking)
        return len(self._users) + len(self._asking_users), rooms

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to ask."""
        return self._begun and not any(self.waiting())

    def begun(self) -> None:
        """Where the scan begins is known."""
        self._begun, self._beginning = True, False

    def begin_again(self) -> None:
        """Nothing counts as asked for any more."""
        self._begun = False
        self._lately.clear()

    def meanwhile(self, room_id: RoomID) -> Meanwhile:
        """What the stream has said of a room."""
        return self._asking[room_id]

    def answered(self, item: Item) -> None:
        """The question needs no more asking."""
        self._let_go(item)
        if item is not None:
            self._tries.pop(item, None)
            self._put_off.set(item, None)

    def again(self, item: Item, *, is_last: bool = False) -> None:
        """Ask once more; of the rooms in doubt it is the next, or the last."""
        is_doubted = item in self._asking and self._asking[RoomID(item)].is_doubted
        self._let_go(item)
        if item is None:
            return
        if is_doubted:
            self._doubted[RoomID(item)] = None
            self._doubted.move_to_end(RoomID(item), last=is_last)
        else:
            self._put(item)

    def failed(self, item: Item, now_ms: int, jitter: float) -> int | None:
        """The question has failed by itself: ask once more, or put it off where that was in vain.

        Answers for how many ms it is put off the first time. `jitter` is random in 0..1.
        """
        tries = 0
        if item is not None:
            tries = self._tries[item] = self._tries.get(item, 0) + 1
        if item is None or tries < MAX_TRIES:
            self.again(item, is_last=True)
            return None
        self._let_go(item)
        longest_ms = min(LONGEST_PUT_OFF_MS, FIRST_PUT_OFF_MS * 2 ** min(tries - MAX_TRIES, 10))
        delay_ms = int(longest_ms * (1 - PUT_OFF_JITTER * jitter))
        self._put_off.set(item, now_ms + delay_ms)
        return delay_ms if tries == MAX_TRIES else None

    def put_off(self, room_id: RoomID, until_ms: int) -> None:
        """Ask for the room again, but not before that."""
        self._let_go(room_id)
        self._put_off.set(room_id, until_ms)

    def put_off_until_ms(self) -> int | None:
        """When the first of those that are put off is to be asked; None where there is none."""
        return self._put_off.next_ms()

    def take_up(self, now_ms: int) -> None:
        """Ask those that were put off until now; a room as if in doubt: what is on disk of it stays there."""
        due = self._put_off.pop_due(now_ms)
        self.add(item for item in due if not item.startswith("!"))
        self.doubt(RoomID(item) for item in due if item.startswith("!"))

    def nobody_there(self, room_id: RoomID, now_ms: int) -> None:
        """None of ours is in the room, for all that could be learnt; not asked for again so soon."""
        self._lately[room_id] = now_ms
        if len(self._lately) > MAX_LATELY:
            del self._lately[next(iter(self._lately))]

    def too_large(self, room_id: RoomID, members: int) -> None:
        """The room cannot count."""
        self._large[room_id] = members

    def judge_again(self, max_members: int, times: float = 1.1) -> None:
        """Rooms that may be small by now, or by a new limit, are asked for again."""
        self.max_members = max_members
        for room_id in [room for room, members in self._large.items() if members <= max_members * times]:
            del self._large[room_id]
            self._put(room_id)

    # --- rooms in doubt -------------------------------------------------------------------------

    def doubt(self, rooms: Iterable[RoomID]) -> None:
        """Rooms to be read again, in that order; what is on disk of the question stays there until then."""
        for room_id in rooms:
            self._rooms.pop(room_id, None)
            if not self.is_to_be_asked(room_id):
                self._doubted[room_id] = None

    def ask_once_more(self, room_id: RoomID) -> None:
        """The answer that is on its way may be older than what has just been heard."""
        if room_id in self._asking:
            self._asking[room_id].is_outdated = True

    def hurry(self, room_id: RoomID) -> None:
        """Something happens in the room: if it waits to be read again, it is the next."""
        if room_id in self._doubted:
            self._doubted.move_to_end(room_id, last=False)

    # --- what was found, and what the stream says -----------------------------------------------

    def is_to_be_asked(self, item: UserID | RoomID) -> bool:
        """Whether the question waits or is being asked."""
        return (
            item in self._users
            or item in self._rooms
            or item in self._doubted
            or item in self._asking_users
            or item in self._asking
        )

    def is_kept(self, item: UserID | RoomID) -> bool:
        """Whether the question is on disk: that of a room in doubt is not, and is asked all the same."""
        asking = self._asking.get(RoomID(item))
        return (
            item in self._users
            or item in self._rooms
            or item in self._asking_users
            or (asking is not None and not asking.is_doubted)
        )

    def is_large(self, room_id: RoomID) -> bool:
        """Whether the room is known, and too large."""
        return room_id in self._large

    def was_asked_lately(self, room_id: RoomID, now_ms: int) -> bool:
        """Whether nobody of ours was there a while ago."""
        at_ms = self._lately.get(room_id)
        return at_ms is not None and now_ms - at_ms < LATELY_MS

    def add(self, items: Iterable[UserID | RoomID]) -> None:
        """New questions; those that are asked already stay where they are."""
        for item in items:
            if not self.is_to_be_asked(item):
                self._put(item)

    def passes(self, change: RoomMemberChanged | RoomJoinRuleChanged, now_ms: int, *, is_known: bool) -> bool:
        """Whether the engine is to be told of a change in a room, which it knows or not.

        An unknown room is told whole, once it was asked for; until then its members are nobody's.
        """
        asking = self._asking.get(change.room_id)
        if isinstance(change, RoomJoinRuleChanged):
            if asking is not None:
                asking.is_rule_told = True
            return is_known or asking is not None
        self._said.change(change, now_ms)
        if asking is not None:
            asking.joined[change.user_id] = change.joined
        if not change.joined:
            self._left(change.room_id)
        return is_known

    def forget_said(self, room_id: RoomID, user_id: UserID) -> None:
        """The stream's word about the user is no more to be held against an answer."""
        self._said.forget(room_id, user_id)
        if room_id in self._asking:
            self._asking[room_id].joined.pop(user_id, None)

    def _left(self, room_id: RoomID) -> None:
        members = self._large.get(room_id)
        if members is None:
            return
        self._large[room_id] = members - 1  # an invite that is turned down counts too: it only asks too early
        if members - 1 < self.max_members:
            del self._large[room_id]
            self._put(room_id)

    def _put(self, item: UserID | RoomID) -> None:
        if item.startswith("!"):
            self._rooms[RoomID(item)] = None
        else:
            self._users[UserID(item)] = None

    def _let_go(self, item: Item) -> None:
        if item is None:
            self._beginning = False
        elif item.startswith("!"):
            self._asking.pop(RoomID(item), None)
        else:
            self._asking_users.discard(UserID(item))


def rows_of(items: Iterable[UserID | RoomID]) -> Iterator[ScanRow]:
    """As they are stored."""
    for item in items:
        yield ScanRow(ScanKind.ROOM if item.startswith("!") else ScanKind.USER, item)
