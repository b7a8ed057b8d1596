"""Rows go in and come out the same, however they are packed and from whichever side they are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.pairs import Columns, Pairs
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.ids import UserID

USERS = tuple(UserID(f"@{name}:{server}.test") for name in "ab" for server in ("here", "there"))
LATER_MS = 1_700_000_000_000

users = st.sampled_from(USERS)
moments = st.integers(0, 2 * LATER_MS)
flags = st.booleans()
owed = st.one_of(
    st.just(()),
    st.builds(
        lambda kind, ms: (OwedEdu(kind, USERS[0], USERS[1], 1, ms),), st.sampled_from(EduKind), moments
    ),
)
observer_rows = st.builds(
    ObserverRow,
    users,
    users,
    st.sampled_from(ObserverStage),
    *[moments] * 5,
    st.integers(0, 2**32 - 1),
    owed,
)
observed_rows = st.builds(
    ObservedRow,
    users,
    users,
    st.sampled_from(ObservedStage),
    moments,
    moments,
    flags,
    flags,
    flags,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    owed,
    moments,
)
steps = st.lists(st.one_of(observer_rows, observed_rows, st.tuples(users, users, flags)), max_size=30)


accepted_rows = st.builds(
    ObserverRow, users, users, st.just(ObserverStage.ACCEPTED), *[moments] * 4, generation=st.integers(0, 3)
)
granted_rows = st.builds(
    ObservedRow, users, users, st.just(ObservedStage.GRANTED), moments, moments, confirmed_ms=moments
)


@given(st.lists(accepted_rows, max_size=9), st.lists(granted_rows, max_size=9), steps)
def test_what_is_kept_is_what_was_put_last(
    accepted: list[ObserverRow], granted: list[ObservedRow], steps: list[object]
) -> None:
    """Both halves of two users of ours may be one object, or loaded apart: neither touches the other."""
    mine = {(row.observer, row.observed): row for row in accepted}
    theirs = {(row.observer, row.observed): row for row in granted}
    pairs = loaded(mine.values(), theirs.values())
    _agree(pairs, mine, theirs)

    for step in steps:
        if isinstance(step, ObserverRow):
            mine[step.observer, step.observed] = step
            pairs.put_observer_row(step)
        elif isinstance(step, ObservedRow):
            theirs[step.observer, step.observed] = step
            pairs.put_observed_row(step)
        else:
            assert isinstance(step, tuple)
            observer, observed, observers_side = step
            if observers_side and (observer, observed) in mine:
                del mine[observer, observed]
                pairs.remove_observer_row(observer, observed)
            elif not observers_side and (observer, observed) in theirs:
                del theirs[observer, observed]
                pairs.remove_observed_row(observed, observer)

    _agree(pairs, mine, theirs)


@given(
    st.lists(observer_rows, max_size=9),
    st.lists(observed_rows, max_size=9),
    st.lists(accepted_rows, max_size=9),
    st.lists(granted_rows, max_size=9),
)
def test_no_moment_that_was_loaded_is_in_the_future(
    mine: list[ObserverRow],
    theirs: list[ObservedRow],
    accepted: list[ObserverRow],
    granted: list[ObservedRow],
) -> None:
    """Z-21: a clock that stood ahead yesterday must not hold rows for years."""
    at_rest = {(row.observer, row.observed): row for row in accepted}
    given = {(row.observer, row.observed): row for row in granted}
    pairs = loaded(at_rest.values(), given.values())
    pairs.load(mine, theirs)

    pairs.clamp(LATER_MS)

    kept: list[ObserverRow | ObservedRow] = [*pairs.observer_rows(), *pairs.observed_rows()]
    assert all(max(row.created_ms, row.changed_ms, row.confirmed_ms) <= LATER_MS for row in kept)
    assert all(edu.since_ms <= LATER_MS for row in kept for edu in row.owed)


def test_nothing_is_left_of_a_pair_that_is_gone() -> None:
    """Who subscribes and unsubscribes all day costs no memory."""
    pairs = Pairs()
    row = ObserverRow(USERS[0], USERS[1], ObserverStage.PENDING, 1, 1)
    row = replace(row, owed=(OwedEdu(EduKind.INVITE, USERS[0], USERS[1], 1, 1),))

    pairs.put_observer_row(row)
    pairs.remove_observer_row(USERS[0], USERS[1])

    assert not pairs._by_observer
    assert not pairs._by_observed
    assert not pairs._owed


def test_rows_of_one_user_may_come_in_any_number_of_parts() -> None:
    """The store reads some rows at a time: where it stops has nothing to do with whose rows they are."""
    others = [UserID(f"@user{number}:here.test") for number in range(5)]
    rows = [ObservedRow(other, USERS[0], ObservedStage.GRANTED, 1, at) for at, other in enumerate(others)]
    rows += [ObservedRow(USERS[0], USERS[2], ObservedStage.GRANTED, 2, 2)]
    users = [*USERS, *others]

    for part in range(1, len(rows) + 1):
        pairs = Pairs(users=users)
        pairs.load_granted(granted_columns(users, rows[at : at + part]) for at in range(0, len(rows), part))
        assert list(pairs.observed_rows()) == rows
        assert pairs.entitled(USERS[0]) == others
        assert [pairs.observed_row(row.observed, row.observer) for row in rows] == rows


def test_rows_of_one_user_that_are_apart_are_refused() -> None:
    """Whoever stands between them would share their presence with observers of somebody else."""
    rows = [ObservedRow(USERS[1], USERS[n], ObservedStage.GRANTED, 1, 1) for n in (0, 2, 0)]

    with pytest.raises(ValueError, match="apart"):
        Pairs(users=USERS).load_granted([granted_columns(USERS, rows)])


def test_who_stands_in_no_row_is_told_apart() -> None:
    """The store forgets their names: invented users must not fill the disk."""
    accepted = ObserverRow(USERS[0], USERS[1], ObserverStage.ACCEPTED, 1, 1)
    requested = ObservedRow(USERS[3], USERS[0], ObservedStage.REQUESTED, 1, 1)

    pairs = loaded([accepted], [])
    assert pairs.unpaired() == [USERS[2], USERS[3]]
    pairs.load(observed_rows=[requested])

    assert pairs.unpaired() == [USERS[2]]


def loaded(mine: Iterable[ObserverRow], theirs: Iterable[ObservedRow]) -> Pairs:
    """What a start finds at rest, as the store hands it over."""
    pairs = Pairs(users=USERS)
    place = USERS.index
    granted = sorted(theirs, key=lambda row: (place(row.observed), place(row.observer)))
    accepted = sorted(mine, key=lambda row: (place(row.observer), place(row.observed)))
    pairs.load_granted([granted_columns(USERS, granted)] if granted else [])
    columns = (
        [place(row.observer) for row in accepted],
        [place(row.observed) for row in accepted],
        [row.generation for row in accepted],
        [row.created_ms for row in accepted],
        [row.changed_ms for row in accepted],
        [row.invite_ms for row in accepted],
        [row.confirmed_ms for row in accepted],
    )
    pairs.load_accepted([columns] if accepted else [])
    return pairs


def granted_columns(users: Sequence[UserID], rows: list[ObservedRow]) -> Columns:
    return (
        [users.index(row.observed) for row in rows],
        [users.index(row.observer) for row in rows],
        [row.generation for row in rows],
        [row.created_ms for row in rows],
        [row.changed_ms for row in rows],
        [row.confirmed_ms for row in rows],
    )


def _agree(
    pairs: Pairs,
    mine: dict[tuple[UserID, UserID], ObserverRow],
    theirs: dict[tuple[UserID, UserID], ObservedRow],
) -> None:
    accepted, granted, requested = ObserverStage.ACCEPTED, ObservedStage.GRANTED, ObservedStage.REQUESTED
    assert {(row.observer, row.observed): row for row in pairs.observer_rows()} == mine
    assert {(row.observer, row.observed): row for row in pairs.observed_rows()} == theirs
    for stage in ObserverStage:
        assert pairs.stages[stage] == sum(row.stage is stage for row in mine.values())
    for a in USERS:
        assert set(pairs.listed(a)) == {observed for observer, observed in mine if observer == a}
        assert set(pairs.listed(a, accepted)) == {
            row.observed for row in mine.values() if row.observer == a and row.stage is accepted
        }
        assert set(pairs.watching(a, accepted)) == {
            row.observer for row in mine.values() if row.observed == a and row.stage is accepted
        }
        assert set(pairs.entitled(a)) == {
            row.observer
            for row in theirs.values()
            if row.observed == a and row.stage is granted and not (row.muted or row.by_room)
        }
        assert pairs.blocked_by(a) == sum(row.observed == a and row.blocked for row in theirs.values())
        assert set(pairs.granted_by_room_of(a)) == {
            row.observer for row in theirs.values() if row.observed == a and row.by_room
        }
        assert set(pairs.requested(a)) == {
            row.observer for row in theirs.values() if row.observed == a and row.stage is requested
        }
        for b in USERS:
            assert pairs.observer_row(a, b) == mine.get((a, b))
            assert pairs.observed_row(b, a) == theirs.get((a, b))
    assert {observed for _, observed in [*mine, *theirs]} <= set(pairs.everybody_observed())
