from twisted.internet.defer import CancelledError, Deferred

from fedpresence.inbound.shared import Shared
from tests.asynchronous import failure_of, result_of


def test_everybody_gets_the_outcome_early_or_late() -> None:
    """A waiter that comes after the end must not wait for ever."""
    work: Deferred[int] = Deferred()
    shared = Shared(work)

    early = shared.wait()
    work.callback(7)

    assert result_of(early) == result_of(shared.wait()) == 7


def test_one_who_gives_up_does_not_take_the_others_along() -> None:
    """A client that closes its connection must not cancel a fetch that others wait for."""
    work: Deferred[int] = Deferred()
    shared = Shared(work)
    leaving, staying = shared.wait(), shared.wait()

    leaving.cancel()
    failure_of(leaving, CancelledError)
    work.callback(7)

    assert result_of(staying) == 7


def test_a_failure_nobody_waits_for_is_quiet() -> None:
    """A background refresh that fails is not an unhandled error."""
    work: Deferred[int] = Deferred()
    shared = Shared(work)

    work.errback(ValueError("no"))

    failure_of(shared.wait(), ValueError)
