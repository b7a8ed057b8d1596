import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fedpresence.clients.work import Work, until
from tests.asynchronous import as_deferred


def test_whoever_waits_hears_of_the_first_that_is_done() -> None:
    """A poll waits for the homeserver and for news at once."""
    clock, slow, quick = Clock(), Deferred[int](), Deferred[int]()
    works = Work(slow), Work(quick)
    waiting = as_deferred(until(*works, clock=clock, timeout_s=9))
    assert not waiting.called

    quick.callback(7)

    assert waiting.called
    assert (works[0].done, works[1].done, works[1].result()) == (False, True, 7)
    assert clock.getDelayedCalls() == []


def test_waiting_has_an_end_and_leaves_the_work_alone() -> None:
    """Several may wait, each as long as it likes."""
    clock, slow = Clock(), Deferred[int]()
    work = Work(slow)
    waiting = as_deferred(until(work, clock=clock, timeout_s=9))

    clock.advance(9)
    slow.callback(1)

    assert waiting.called
    assert work.result() == 1


def test_who_gives_up_waiting_is_not_told() -> None:
    """A client that hangs up; the work may be others' too."""
    clock, slow = Clock(), Deferred[int]()
    work = Work(slow)
    waiting = as_deferred(until(work, clock=clock, timeout_s=9))
    waiting.addErrback(lambda _: None)

    waiting.cancel()
    slow.callback(1)

    assert clock.getDelayedCalls() == []
    assert work.result() == 1


def test_a_failure_is_kept_for_who_asks() -> None:
    """And is heard of by nobody else."""
    failing = Deferred[int]()
    work = Work(failing)
    failing.errback(Failure(ValueError("no")))

    with pytest.raises(ValueError, match="no"):
        work.result()


def test_what_is_done_cannot_be_cancelled() -> None:
    """Its result stays."""
    work = Work(Deferred[int]())
    work.cancel()
    done: Deferred[int] = Deferred()
    done.callback(3)
    other = Work(done)
    other.cancel()

    assert work.done
    assert other.result() == 3
