"""The rows that a start found, packed end to end in the order in which they were stored.

Always true:
- a row that was loaded has its place for the whole run: it changes there, and is all zero once it is gone;
- a user has one number, whichever side of a pair they are on.

Ten million rows as objects of their own, each in dictionaries of its own, take most of a start and most of
the memory: here a row is its bytes, and two numbers. What comes later is kept in dictionaries, by `pairs.py`.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby

from fedpresence.ids import UserID

NOWHERE = -1
_ITEM = array("I").itemsize


class Numbers(dict[UserID, int]):
    """The number of each user, counted from 0 and given when it is first asked for with `[]`."""

    def __init__(self) -> None:
        self.users: list[UserID] = []  # the way back

    def __missing__(self, user_id: UserID) -> int:
        number = self[user_id] = len(self.users)
        self.users.append(user_id)
        return number


class Loaded:
    """Rows of one kind, each found from its owner and the other user.

    `packed` is all of them, `size` bytes each, to be read and changed at the places answered here. The first
    byte of a row is zero where it is gone, and not while it is there.
    """

    def __init__(self, numbers: Numbers, size: int) -> None:
        self.packed = bytearray()
        self._size = size
        self._numbers = numbers
        self._owners, self._others = array("I"), array("I")  # row by row
        self._begins, self._ends = array("I"), array("I")  # by the owner's number: which rows are theirs

    def append(self, owners: Sequence[UserID], others: Sequence[UserID], rows: Iterable[bytes]) -> None:
        """More rows, all sorted by owner and then by the other user, as those before them were."""
        end = len(self._owners)
        for owner, same in groupby(owners):
            number, begin = self._numbers[owner], end
            end += len(list(same))
            self._owners.extend([number] * (end - begin))
            if number >= len(self._ends):
                _lengthen(self._begins, len(self._numbers))
                _lengthen(self._ends, len(self._numbers))
            if not self._ends[number]:  # else the rows before were this owner's too
                self._begins[number] = begin
            self._ends[number] = end
        self._others.fromlist(list(map(self._numbers.__getitem__, others)))
        self.packed += b"".join(rows)

    def place(self, owner: UserID, other: UserID) -> int:
        """Where in `packed` the row is, or was; `NOWHERE` where none was loaded."""
        begin, end = self._rows_of(owner)
        users, others = self._numbers.users, self._others
        row = bisect_left(others, other, begin, end, key=users.__getitem__)
        return row * self._size if row < end and users[others[row]] == other else NOWHERE

    def of(self, owner: UserID) -> Iterator[tuple[UserID, int]]:
        """The other user and the first byte of each row that is there."""
        begin, end = self._rows_of(owner)
        size, users = self._size, self._numbers.users
        codes = self.packed[begin * size : end * size : size]
        return (
            (users[other], code) for other, code in zip(self._others[begin:end], codes, strict=True) if code
        )

    def all(self, owner: UserID | None = None) -> Iterator[tuple[UserID, UserID, int]]:
        """The owner, the other user and the place of each row that is there: one owner's, or everybody's."""
        begin, end = (0, len(self._owners)) if owner is None else self._rows_of(owner)
        users = self._numbers.users
        for row in range(begin, end):
            if self.packed[row * self._size]:
                yield users[self._owners[row]], users[self._others[row]], row * self._size

    def owners(self) -> Iterator[UserID]:
        """Every user with a row, be it gone meanwhile."""
        return (user for user, end in zip(self._numbers.users, self._ends, strict=False) if end)

    def by_other(self) -> "ByOther":
        """The same rows, found from the other user; made once all are appended."""
        return ByOther(self.packed, self._size, self._numbers, self._owners, self._others)

    def _rows_of(self, owner: UserID) -> tuple[int, int]:
        number = self._numbers.get(owner, len(self._ends))
        return (self._begins[number], self._ends[number]) if number < len(self._ends) else (0, 0)


class ByOther:
    """Loaded rows, found from the user whom their owners have them about."""

    def __init__(
        self, packed: bytearray, size: int, numbers: Numbers, owners: "array[int]", others: "array[int]"
    ) -> None:
        self._packed = packed
        self._size = size
        self._numbers = numbers
        self._owners = owners
        counts = Counter(others)
        self._begins = array("I", accumulate((counts[n] for n in range(len(numbers))), initial=0))
        self._rows = array("I", bytes(_ITEM * len(others)))
        ends = self._begins.tolist()
        for row, other in enumerate(others):
            end = ends[other]
            self._rows[end] = row
            ends[other] = end + 1

    def of(self, other: UserID) -> Iterator[tuple[UserID, int]]:
        """The owner and the place of each row about this user that is there."""
        number = self._numbers.get(other, len(self._begins))
        if number + 1 >= len(self._begins):
            return
        users, owners, packed, size = self._numbers.users, self._owners, self._packed, self._size
        for row in self._rows[self._begins[number] : self._begins[number + 1]]:
            if packed[row * size]:
                yield users[owners[row]], row * size

    def users(self) -> Iterator[UserID]:
        """Every user whom a row is about, be it gone meanwhile."""
        begins = self._begins
        return (
            user
            for user, begin, end in zip(self._numbers.users, begins, begins[1:], strict=False)
            if begin < end
        )


def _lengthen(numbers: "array[int]", length: int) -> None:
    numbers.frombytes(bytes(_ITEM * (length - len(numbers))))
