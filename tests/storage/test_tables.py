import sqlite3
from itertools import product

from fedpresence.engine.effects import Durable, SaveObservedRow, SaveObserverRow
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.ids import UserID
from fedpresence.storage.changes import Changes
from fedpresence.storage.migrations import migrate, newest_schema
from fedpresence.storage.tables import read_stored, write_changes

NOW_MS = 1_700_000_000_000


def observer_rows() -> list[ObserverRow]:
    """One of each kind that can be told apart, each about another user; several of one observer."""
    kinds = product(ObserverStage, (0, NOW_MS + 7), (0, 3), (False, True))
    rows = []
    for number, (stage, check_ms, generation, owes) in enumerate(kinds):
        observer, observed = UserID(f"@a{number % 5}:here.test"), UserID(f"@b{number}:here.test")
        owed = (OwedEdu(EduKind.DROP, observer, observed, generation, NOW_MS),) if owes else ()
        moments = (NOW_MS + number, NOW_MS - number, NOW_MS + 2 * number, NOW_MS - 2 * number)
        rows.append(ObserverRow(observer, observed, stage, *moments, check_ms, generation, owed))
    return rows


def observed_rows() -> list[ObservedRow]:
    """The same of the other table; of some pairs there are both halves."""
    flag = (False, True)
    kinds = product(ObservedStage, flag, flag, flag, (0, 2), (0, 3), flag)
    rows = []
    for number, (stage, muted, blocked, by_room, denials, generation, owes) in enumerate(kinds):
        observer, observed = UserID(f"@a{number % 5}:here.test"), UserID(f"@b{number}:here.test")
        owed = (OwedEdu(EduKind.ACCEPT, observer, observed, generation, NOW_MS),) if owes else ()
        moments = (NOW_MS + number, NOW_MS - number)
        flags = (muted, blocked, by_room)
        rows.append(
            ObservedRow(
                observer, observed, stage, *moments, *flags, denials, generation, owed, NOW_MS - 2 * number
            )
        )
    return rows


def stored(mine: list[ObserverRow], theirs: list[ObservedRow]) -> Pairs:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, newest_schema())
    saved: list[Durable] = [*map(SaveObserverRow, mine), *map(SaveObservedRow, theirs)]
    write_changes(connection.cursor(), Changes.of(saved))
    return read_stored(connection.cursor()).pairs


def test_rows_of_every_kind_are_read_as_they_were_written() -> None:
    """Most rows are read a short way: a row that is not like most must not be taken for one."""
    mine, theirs = observer_rows(), observed_rows()

    pairs, expected = stored(mine, theirs), Pairs(mine, theirs)

    assert set(pairs.observer_rows()) == set(mine)
    assert set(pairs.observed_rows()) == set(theirs)
    assert pairs.stages == expected.stages
    assert set(pairs.restless) == set(expected.restless)
    names = [name for row in pairs.observer_rows() for name in (row.observer, row.observed)]
    names += [name for half in pairs.observed_rows() for name in (half.observer, half.observed)]
    assert len(set(map(id, names))) == len(set(names)), "one object for each user"


def test_the_newest_moment_is_found_in_whatever_column_it_stands() -> None:
    """A moment of the future would hold a deadline back for as long (Z-21): one is enough to look."""
    alice, bob = UserID("@alice:here.test"), UserID("@bob:here.test")
    moments = [[NOW_MS + (place == late) for place in range(4)] for late in range(4)]

    for created, changed, invite, confirmed in moments:
        row = ObserverRow(alice, bob, ObserverStage.ACCEPTED, created, changed, invite, confirmed)
        assert stored([row], []).newest_ms == NOW_MS + 1
    for created, changed, confirmed, _ in moments[:3]:
        granted = ObservedRow(alice, bob, ObservedStage.GRANTED, created, changed, confirmed_ms=confirmed)
        assert stored([], [granted]).newest_ms == NOW_MS + 1
