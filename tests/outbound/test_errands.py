"""The rest is asked through the queue, in test_queue_edus.py."""

from fedpresence.engine.outgoing import ListEdu
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import UserID
from fedpresence.outbound.errands import MAX_ONCE, NO_ERRANDS, Errands

NOW_MS = 1_700_000_000_000
ALICE, BOB = UserID("@alice:here.test"), UserID("@bob:there.test")


def edu(generation: int) -> OwedEdu:
    return OwedEdu(EduKind.INVITE, ALICE, BOB, generation, NOW_MS)


def test_of_a_pair_one_edu_leaves_at_a_time_and_a_drop_before_what_is_owed() -> None:
    """Receivers apply a transaction in order, but two words about one pair cross too easily (decision 10)."""
    errands = Errands()
    errands.add_edu(edu(1))
    errands.add_edu(edu(2))
    assert errands.owed_to_take(NOW_MS, ()) == (edu(1),)

    errands.add_drop((ALICE, BOB))
    drops, polls, unpolls = errands.take_once()

    assert (drops, polls, unpolls) == ((ListEdu(EduKind.DROP, ALICE, BOB),), (), ())
    assert errands.owed_to_take(NOW_MS, drops) == ()
    assert errands.take_once() == ((), (), ())


def test_what_is_owed_waits_until_delivered_and_what_is_set_aside_until_the_wake() -> None:
    """A refusal that will not change must not be tried for ever, nor forgotten."""
    errands = Errands()
    errands.add_edu(edu(1))
    assert (errands.owed_ready_ms() or 0) <= NOW_MS

    errands.set_aside([edu(1)])
    assert (errands.owed_ready_ms(), errands.has_besides_polls(), errands.empty()) == (None, False, False)
    errands.wake()
    assert errands.has_besides_polls()

    errands.delivered([edu(1)])
    assert errands.empty()


def test_there_is_room_for_so_many_and_whoever_asks_hears_that_there_is_none() -> None:
    """Memory is bounded; what does not fit is asked for again by its row, or not at all."""
    errands = Errands()
    for number in range(MAX_ONCE):
        assert errands.add_drop((ALICE, UserID(f"@{number}:there.test")))

    assert not errands.add_drop((ALICE, BOB))


def test_no_errands_stay_none() -> None:
    """All destinations share it: what one wrote would be another's."""
    NO_ERRANDS.wake()
    NO_ERRANDS.delivered([edu(1)])
    NO_ERRANDS.set_aside([edu(1)])
    assert NO_ERRANDS.take_once() == ((), (), ())

    assert NO_ERRANDS.empty()
    assert not NO_ERRANDS.has_besides_polls()
