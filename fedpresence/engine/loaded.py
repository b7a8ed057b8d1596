"""The rows that a start found, packed end to end in the order in which they were stored.

Always true:
- a row that was loaded has its place for the whole run: it changes there, and is all zero once it is gone;
- a user has one number, whichever side of a pair they are on: their place among the users.

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


class Loaded:
    """Rows of one kind, each found from its owner and the other user; `numbers` leads back to `users`.

    `packed` is all of them, `size` bytes each, to be read and changed at the places answered here. The first
    byte of a row is zero where it is gone, and not while it is there.
    """

    def __init__(self, users: Sequence[UserID], numbers: dict[UserID, int], size: int) -> None:
        self.packed = bytearray()
        self._size = size
        self._users = users
        self._numbers = numbers
        self._owners, self._others = array("I"), array("I")  # row by row
        self._begins = array("I", bytes(_ITEM * len(users)))  # by the owner's number: which rows are theirs
        self._ends = array("I", bytes(_ITEM * len(users)))

    def append(self, owners: Sequence[int], others: Sequence[int], rows: Iterable[bytes]) -> None:
        """More rows, all sorted by the numbers of owner and other user, as those before them were.

        ValueError where an owner's rows are apart: those between would be taken for the owner's too.
        """
        end = len(self._owners)
        for owner, same in groupby(owners):
            begin = end
            end += len(list(same))
            if not self._ends[owner]:
                self._begins[owner] = begin
            elif self._ends[owner] != begin:
                raise ValueError("rows of one user are apart")
            self._ends[owner] = end
        self._owners.extend(array("I", owners))
        self._others.extend(array("I", others))
        self.packed += b"".join(rows)
        assert len(self._owners) == len(self._others) == len(self.packed) // self._size

    def place(self, owner: UserID, other: UserID) -> int:
        """Where in `packed` the row is, or was; `NOWHERE` where none was loaded."""
        begin, end = self._rows_of(owner)
        if begin < end and (number := self._numbers.get(other)) is not None:
            row = bisect_left(self._others, number, begin, end)
            if row < end and self._others[row] == number:
                return row * self._size
        return NOWHERE

    def of(self, owner: UserID) -> Iterator[tuple[UserID, int]]:
        """The other user and the first byte of each row that is there."""
        begin, end = self._rows_of(owner)
        size, users = self._size, self._users
        codes = self.packed[begin * size : end * size : size]
        return (
            (users[other], code) for other, code in zip(self._others[begin:end], codes, strict=True) if code
        )

    def all(self, owner: UserID | None = None) -> Iterator[tuple[UserID, UserID, int]]:
        """The owner, the other user and the place of each row that is there: one owner's, or everybody's."""
        begin, end = (0, len(self._owners)) if owner is None else self._rows_of(owner)
        users = self._users
        for row in range(begin, end):
            if self.packed[row * self._size]:
                yield users[self._owners[row]], users[self._others[row]], row * self._size

    def owners(self) -> Iterator[UserID]:
        """Every user with a row, be it gone meanwhile."""
        return (user for user, end in zip(self._users, self._ends, strict=True) if end)

    def users(self) -> set[UserID]:
        """Every user of a row, on whichever side, be it gone meanwhile."""
        return {self._users[number] for number in {*self._owners, *self._others}}

    def by_other(self) -> "ByOther":
        """The same rows, found from the other user; made once all are appended."""
        return ByOther(self.packed, self._size, self._users, self._numbers, self._owners, self._others)

    def _rows_of(self, owner: UserID) -> tuple[int, int]:
        number = self._numbers.get(owner)
        return (0, 0) if number is None else (self._begins[number], self._ends[number])


class ByOther:
    """Loaded rows, found from the user whom their owners have them about."""

    def __init__(
        self,
        packed: bytearray,
        size: int,
        users: Sequence[UserID],
        numbers: dict[UserID, int],
        owners: "array[int]",
        others: "array[int]",
    ) -> None:
        self._packed = packed
        self._size = size
        self._users = users
        self._numbers = numbers
        self._owners = owners
        counts = Counter(others)
        self._begins = array("I", accumulate((counts[number] for number in range(len(users))), initial=0))
        self._rows = array("I", bytes(_ITEM * len(others)))
        ends = self._begins.tolist()
        for row, other in enumerate(others):
            end = ends[other]
            self._rows[end] = row
            ends[other] = end + 1

    def of(self, other: UserID) -> Iterator[tuple[UserID, int]]:
        """The owner and the place of each row about this user that is there."""
        number = self._numbers.get(other)
        if number is None:
            return
        users, owners, packed, size = self._users, self._owners, self._packed, self._size
        for row in self._rows[self._begins[number] : self._begins[number + 1]]:
            if packed[row * size]:
                yield users[owners[row]], row * size

    def with_codes(self, other: UserID, codes: Sequence[int]) -> list[UserID]:
        """The owners of the rows about this user that begin with one of these bytes."""
        number = self._numbers.get(other)
        if number is None:
            return []
        rows = self._rows[self._begins[number] : self._begins[number + 1]]
        if not rows:
            return []
        users, owners, packed, size = self._users, self._owners, self._packed, self._size
        return [users[owners[row]] for row in rows if packed[row * size] in codes]

    def codes_about(self, other: UserID) -> int:
        """The first bytes of the rows about this user, each as a bit of that number."""
        number = self._numbers.get(other)
        if number is None:
            return 0
        packed, size, bits = self._packed, self._size, 0
        for row in self._rows[self._begins[number] : self._begins[number + 1]]:
            bits |= 1 << packed[row * size]
        return bits

    def users(self) -> Iterator[UserID]:
        """Every user whom a row is about, be it gone meanwhile."""
        begins = self._begins
        return (
            user for user, begin, end in zip(self._users, begins, begins[1:], strict=False) if begin < end
        )
