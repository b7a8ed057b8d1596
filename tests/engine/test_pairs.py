"""Rows go in and come out the same, however they are packed and from whichever side they are asked for."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

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


@given(steps)
def test_what_is_kept_is_what_was_put_last(steps: list[object]) -> None:
    """Both halves of two users of ours are one object: neither may touch the other."""
    pairs = Pairs()
    mine: dict[tuple[UserID, UserID], ObserverRow] = {}
    theirs: dict[tuple[UserID, UserID], ObservedRow] = {}

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


@given(st.lists(observer_rows, max_size=9), st.lists(observed_rows, max_size=9))
def test_no_moment_that_was_loaded_is_in_the_future(
    mine: list[ObserverRow], theirs: list[ObservedRow]
) -> None:
    """Z-21: a clock that stood ahead yesterday must not hold rows for years."""
    pairs = Pairs(mine, theirs)

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


def _agree(
    pairs: Pairs,
    mine: dict[tuple[UserID, UserID], ObserverRow],
    theirs: dict[tuple[UserID, UserID], ObservedRow],
) -> None:
    accepted, granted = ObserverStage.ACCEPTED, ObservedStage.GRANTED
    assert {(row.observer, row.observed): row for row in pairs.observer_rows()} == mine
    assert {(row.observer, row.observed): row for row in pairs.observed_rows()} == theirs
    for stage in ObserverStage:
        assert pairs.stages[stage] == sum(row.stage is stage for row in mine.values())
    for a in USERS:
        assert set(pairs.listed(a)) == {observed for observer, observed in mine if observer == a}
        assert set(pairs.watching(a, accepted)) == {
            row.observer for row in mine.values() if row.observed == a and row.stage is accepted
        }
        assert set(pairs.entitled(a)) == {
            row.observer
            for row in theirs.values()
            if row.observed == a and row.stage is granted and not row.muted
        }
        assert pairs.blocked_by(a) == sum(row.observed == a and row.blocked for row in theirs.values())
        assert set(pairs.granted_by_room_of(a)) == {
            row.observer for row in theirs.values() if row.observed == a and row.by_room
        }
        for b in USERS:
            assert pairs.observer_row(a, b) == mine.get((a, b))
            assert pairs.observed_row(b, a) == theirs.get((a, b))
