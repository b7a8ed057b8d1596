from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fedpresence.engine.effects import Durable, Effect, Outgoing, SaveAnswer, SaveUser, SendPoll
from fedpresence.engine.events import Event, TimePassed, TransactionReceived, UserAdded
from fedpresence.errors import BadRequest, StoreError
from fedpresence.hub import MAX_TURN_EVENTS, MAX_UNHURRIED, Hub
from fedpresence.ids import ServerName, UserID
from tests.asynchronous import failure_of, result_of

THERE = ServerName("there.test")


def user(name: str) -> UserID:
    return UserID(f"@{name}:here.test")


def a_transaction(txn_id: str) -> TransactionReceived:
    return TransactionReceived(THERE, txn_id, 0, ())


def an_answer(txn_id: str) -> SaveAnswer:
    return SaveAnswer(THERE, txn_id, 0, 0)


class Saving:
    """An engine that saves every user and transaction it hears of, and then polls; refuses @refused."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.deadline_ms: int | None = None

    def receive(self, event: Event, now_ms: int) -> Sequence[Effect]:
        self.heard.append(event)
        if isinstance(event, TimePassed):
            self.deadline_ms = None
            return (SendPoll(THERE, user(f"at{now_ms}")),)
        if isinstance(event, TransactionReceived):
            return (an_answer(event.txn_id), SendPoll(THERE, user(event.txn_id)))
        assert isinstance(event, UserAdded)
        if event.user_id == user("refused"):
            raise BadRequest("M_FORBIDDEN", "No", status=403)
        if event.user_id == user("bug"):
            raise ZeroDivisionError
        return (SaveUser(event.user_id, deactivated=False), SendPoll(THERE, event.user_id))

    def wake_ms(self) -> int | None:
        return self.deadline_ms


class SlowDisk:
    """Commits when it is told to."""

    def __init__(self) -> None:
        self.commits: list[tuple[Durable, ...]] = []
        self.waiting: list[Deferred[None]] = []

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        self.commits.append(tuple(effects))
        done: Deferred[None] = Deferred()
        self.waiting.append(done)
        return done

    def written(self) -> None:
        self.waiting.pop(0).callback(None)


class Fixture:
    """A hub with everything around it."""

    def __init__(self) -> None:
        self.engine = Saving()
        self.disk = SlowDisk()
        self.clock = Clock()
        self.performed: list[Outgoing] = []
        self.fatal: list[Failure] = []
        self.hub = Hub(self.engine, self.disk, self.clock, self.performed.append, self.fatal.append)

    def polled(self) -> list[UserID]:
        return [effect.user_id for effect in self.performed if isinstance(effect, SendPoll)]


def test_nothing_leaves_before_it_is_on_disk() -> None:
    """Nobody may hear of a change that a crash could undo."""
    at = Fixture()
    done = at.hub.submit(UserAdded(user("a")))

    assert (at.performed, done.called) == ([], False)

    at.disk.written()
    assert (at.polled(), done.called) == ([user("a")], True)


def test_events_that_come_while_the_disk_writes_share_the_next_commit() -> None:
    """A sync of the disk costs milliseconds: a hundred changes must not wait for a hundred of them."""
    at = Fixture()
    for name in "abcd":
        at.hub.submit(UserAdded(user(name)))

    at.disk.written()
    at.disk.written()

    assert [len(commit) for commit in at.disk.commits] == [1, 3]
    assert at.polled() == [user(name) for name in "abcd"]


def test_a_turn_is_bounded() -> None:
    """A flood must not make one turn that blocks everybody for seconds."""
    at = Fixture()
    for number in range(MAX_TURN_EVENTS + 2):
        at.hub.submit(UserAdded(user(str(number))))

    at.disk.written()
    at.disk.written()

    assert [len(commit) for commit in at.disk.commits] == [1, MAX_TURN_EVENTS, 1]


def test_a_refusal_reaches_its_submitter_alone() -> None:
    """One user's full list is nobody else's error."""
    at = Fixture()
    first = at.hub.submit(UserAdded(user("a")))
    refused = at.hub.submit(UserAdded(user("refused")))
    last = at.hub.submit(UserAdded(user("b")))

    at.disk.written()
    at.disk.written()

    assert failure_of(refused, BadRequest).status == 403
    assert (result_of(first), result_of(last)) == (None, None)
    assert at.polled() == [user("a"), user("b")]


def test_several_events_are_submitted_in_order() -> None:
    """The Deferred is the last one's: by then all are done."""
    at = Fixture()
    done = at.hub.submit(UserAdded(user("a")), UserAdded(user("b")))

    at.disk.written()

    assert done.called
    assert at.polled() == [user("a"), user("b")]


def test_a_reader_waits_for_what_is_being_written() -> None:
    """An answer from memory that the disk then refuses would be a lie."""
    at = Fixture()
    at.clock.advance(5)
    at.hub.submit(UserAdded(user("a")))
    answer = at.hub.read(lambda now_ms: (now_ms, len(at.engine.heard)))

    assert not answer.called

    at.disk.written()
    assert result_of(answer) == (5000, 1)


def test_a_reader_may_read_again() -> None:
    """An answer made of two reads must not wait for somebody else's turn."""
    at = Fixture()
    at.hub.submit(UserAdded(user("a")))
    second: list[Deferred[int]] = []
    first = at.hub.read(lambda now_ms: second.append(at.hub.read(lambda now_ms: now_ms)))

    at.disk.written()

    assert first.called
    assert result_of(second[0]) == 0


def test_who_wants_to_read_hears_from_when_on_they_may() -> None:
    """Nothing need be waited for where nothing is being written."""
    at = Fixture()
    assert at.hub.settling() is None
    at.hub.submit(UserAdded(user("a")))

    settling = at.hub.settling()

    assert settling is not None
    assert not settling.called
    at.disk.written()
    assert settling.called
    assert at.hub.settling() is None


def test_a_disk_that_fails_ends_everything() -> None:
    """Memory is ahead of the disk from that moment on: no later answer could be trusted."""
    at = Fixture()
    doomed = at.hub.submit(UserAdded(user("a")))
    behind = at.hub.submit(UserAdded(user("b")))
    reading = at.hub.read(lambda now_ms: now_ms)

    at.disk.waiting.pop(0).errback(StoreError("the disk is full"))

    for waiting in (doomed, behind, reading, at.hub.submit(UserAdded(user("c")))):
        failure_of(waiting, StoreError)
    assert [str(failure.value) for failure in at.fatal] == ["the disk is full"]
    assert at.performed == []


def test_a_bug_in_a_turn_ends_everything() -> None:
    """Half of a turn in memory is as bad as a failed commit."""
    at = Fixture()

    failure_of(at.hub.submit(UserAdded(user("bug"))), StoreError)

    assert at.fatal[0].check(ZeroDivisionError)


def test_time_passes_exactly_when_the_engine_asked() -> None:
    """A poll every second would be wrong by a second, and cost a million users."""
    at = Fixture()
    at.engine.deadline_ms = 60_001
    at.hub.submit(UserAdded(user("a")))
    at.disk.written()

    at.clock.advance(60)
    assert at.polled() == [user("a")]

    at.clock.advance(0.001)
    assert at.polled() == [user("a"), user("at60001")]
    assert at.clock.getDelayedCalls() == []


def test_a_deadline_that_is_put_off_costs_one_look_and_no_turn() -> None:
    """Each change puts one off: moving the timer each time would cost more than looking once in vain."""
    at = Fixture()
    at.engine.deadline_ms = 1_000
    at.hub.submit(UserAdded(user("a")))
    at.disk.written()
    (timer,) = at.clock.getDelayedCalls()

    at.engine.deadline_ms = 5_000
    at.hub.submit(UserAdded(user("b")))
    at.disk.written()
    assert at.clock.getDelayedCalls() == [timer]
    at.clock.advance(1)
    assert at.polled() == [user("a"), user("b")]

    at.clock.advance(4)
    assert at.polled() == [user("a"), user("b"), user("at5000")]


def test_a_stopped_hub_sets_no_timers() -> None:
    """A clean stop leaves nothing in the reactor."""
    at = Fixture()
    at.engine.deadline_ms = 1000
    at.hub.submit(UserAdded(user("a")))
    at.disk.written()

    at.hub.stop()

    assert at.clock.getDelayedCalls() == []


def test_what_needs_no_disk_is_done_at_once() -> None:
    """Presence changes all the time, and is worth nothing tomorrow (decision 22)."""
    at = Fixture()

    done = at.hub.submit(TimePassed())

    assert result_of(done) == result_of(succeed(None))
    assert at.disk.commits == []
    assert at.polled() == [user("at0")]


def test_a_bug_in_what_performs_or_commits_ends_the_daemon_and_not_the_turn_alone() -> None:
    """A turn that never ends would leave every later request without an answer, and nobody told why."""

    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    performs, commits = Fixture(), Fixture()
    performs.hub._perform = broken
    commits.hub._store = SimpleNamespace(commit=broken)

    answers = [performs.hub.submit(TimePassed()), commits.hub.submit(UserAdded(user("a")))]

    for at, answer in zip((performs, commits), answers, strict=True):
        failure_of(answer, StoreError)
        assert [failure.type for failure in at.fatal] == [ZeroDivisionError]


def test_an_answer_alone_waits_for_the_next_commit() -> None:
    """A disk's turn for every transaction of presence would cost more than all the rest of it."""
    world = Fixture()

    done = world.hub.submit(a_transaction("t1"))

    assert done.called
    assert world.performed == [SendPoll(THERE, user("t1"))]
    assert world.disk.commits == []

    world.hub.submit(UserAdded(user("alice")))

    (commit,) = world.disk.commits
    assert commit == (an_answer("t1"), SaveUser(user("alice"), deactivated=False))


def test_answers_are_written_behind() -> None:
    """A restart finds what came before the last writing, whether or not a commit took it along."""
    world = Fixture()
    world.hub.submit(a_transaction("t1"))
    assert world.hub.has_unwritten()

    done = world.hub.write_behind()
    assert world.disk.commits == [(an_answer("t1"),)]
    world.disk.written()

    assert done.called
    assert not world.hub.has_unwritten()
    assert world.hub.write_behind().called
    assert len(world.disk.commits) == 1


def test_what_waits_for_a_commit_is_bounded() -> None:
    """A thousand answers are worth a commit of their own."""
    world = Fixture()

    for number in range(MAX_UNHURRIED):
        world.hub.submit(a_transaction(f"t{number}"))
    assert world.disk.commits == []
    world.hub.submit(a_transaction("last"))

    (commit,) = world.disk.commits
    assert len(commit) == MAX_UNHURRIED + 1
    assert not world.hub.has_unwritten()
