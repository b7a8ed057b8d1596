"""The turn: events in, decided by the engine, committed, and only then performed.

Always true:
- nobody hears of a change that a crash could undo: durable effects are on disk before any effect leaves,
  but for the unhurried ones, which wait for the next commit;
- events that came together share one turn and one commit; effects are performed in order, inside it;
- a reader (`read`) never sees what is not committed yet;
- a failed commit stops the daemon: memory is then ahead of the disk.

Source: decisions 21 and 22.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, get_args

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.engine.effects import Durable, Effect, Outgoing, Unhurried
from fedpresence.engine.events import Event, TimePassed
from fedpresence.errors import FedpresenceError, StoreError

_log = Logger()
T = TypeVar("T")

MAX_TURN_EVENTS = 1000  # so that one turn stays far below a tenth of a second
MAX_UNHURRIED = 1000  # effects that wait for a commit; more are worth one

# Types as sets: `isinstance` would ask each member of the union, for every effect of every turn.
_DURABLE: frozenset[object] = frozenset(get_args(Durable))
_UNHURRIED: frozenset[object] = frozenset(get_args(Unhurried))


class Decider(Protocol):
    """The engine, as far as the hub knows it."""

    def receive(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Decide."""

    def wake_ms(self) -> int | None:
        """When to tell that time has passed."""


class Committer(Protocol):
    """The store, as far as the hub knows it."""

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """All or nothing, on disk when it fires."""


class Hub:
    """Runs events to their end, one turn at a time.

    `perform` only enqueues: it must not wait and must not raise; nor must `turned`, which is called at the
    end of each turn. `fatal` is called once, with the failure, when a commit or the engine fails; every
    later submission fails with StoreError.
    """

    def __init__(
        self,
        engine: Decider,
        store: Committer,
        clock: Clock,
        perform: Callable[[Outgoing], None],
        fatal: Callable[[Failure], None],
        turned: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._clock = clock
        self._perform = perform
        self._fatal = fatal
        self._turned = turned
        self._waiting: list[tuple[Event, Deferred[None]]] = []
        self._readers: list[tuple[Callable[[], None], Deferred[None]]] = []
        self._unhurried: list[Durable] = []  # in no commit yet
        self._in_turn = False
        self._dead = False
        self._stopped = False
        self._timer: Timer | None = None
        self._timer_ms = 0  # when it comes

    def submit(self, *events: Event) -> Deferred[None]:
        """Run `events` in order; fires when the last is committed and performed.

        A BadRequest that the engine raises for one of them is the Deferred's failure; the other events
        are done all the same.
        """
        done: Deferred[None] = Deferred()
        if self._dead:
            done.errback(StoreError("fedpresence is stopping: its database failed"))
            return done
        for event in events[:-1]:
            self._waiting.append((event, _ignored()))
        self._waiting.append((events[-1], done))
        self._run()
        return done

    def read(self, reader: Callable[[int], T]) -> Deferred[T]:
        """What `reader(now_ms)` answers, called at a moment when all that was decided is committed."""
        answer: Deferred[T] = Deferred()
        if self._dead:
            answer.errback(StoreError("fedpresence is stopping: its database failed"))
        elif not self._in_turn:
            self._answer(answer, reader)
        else:
            ready: Deferred[None] = Deferred()
            ready.addErrback(answer.errback)
            self._readers.append((lambda: self._answer(answer, reader), ready))
        return answer

    def _answer(self, answer: Deferred[T], reader: Callable[[int], T]) -> None:
        try:
            value = reader(now_ms(self._clock))
        except Exception as error:
            answer.errback(error)
        else:
            answer.callback(value)

    def settling(self) -> Deferred[None] | None:
        """Fires when all that was decided is committed; None where it is, and may be read at once."""
        return self.read(lambda _: None) if self._in_turn or self._dead else None

    def idle(self) -> bool:
        """Whether nothing waits and no turn runs."""
        return not self._waiting and not self._in_turn

    def has_unwritten(self) -> bool:
        """Whether `write_behind` has something to write."""
        return bool(self._unhurried)

    def write_behind(self) -> Deferred[None]:
        """Commit what no commit has taken along; fires when it is on disk."""
        if self._dead or not self._unhurried:
            return succeed(None)
        unhurried, self._unhurried = self._unhurried, []
        return self._store.commit(unhurried, now_ms(self._clock))

    def stop(self) -> None:
        """Set no more timers."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        while self._waiting and not self._in_turn and not self._dead:
            batch, self._waiting = self._waiting[:MAX_TURN_EVENTS], self._waiting[MAX_TURN_EVENTS:]
            self._turn(batch)
        if not self._in_turn:
            self._set_timer()

    def _turn(self, batch: list[tuple[Event, Deferred[None]]]) -> None:
        self._in_turn = True
        now = now_ms(self._clock)
        durable: list[Any] = []
        outgoing: list[Any] = []
        refused: list[tuple[Deferred[None], FedpresenceError]] = []
        done: list[Deferred[None]] = []
        for event, deferred in batch:
            try:
                for effect in self._engine.receive(event, now):
                    (durable if type(effect) in _DURABLE else outgoing).append(effect)
                done.append(deferred)
            except FedpresenceError as error:
                refused.append((deferred, error))
            except Exception as error:
                self._die(Failure(error), [d for _, d in batch])
                return
        self._unhurried += durable
        try:
            if not durable or self._may_wait(durable):
                self._finish(outgoing, done, refused)
                return
            durable, self._unhurried = self._unhurried, []
            committed = self._store.commit(durable, now)
        except Exception as error:  # or the turn would never end, and nobody would hear of it
            self._die(Failure(error), [d for _, d in batch])
            return
        committed.addCallback(lambda _: self._finish(outgoing, done, refused))
        committed.addCallback(lambda _: self._run())
        committed.addErrback(lambda failure: self._die(failure, [d for _, d in batch]))

    def _may_wait(self, durable: list[Durable]) -> bool:
        """Whether these, with all that wait already, can wait for the next commit."""
        return len(self._unhurried) <= MAX_UNHURRIED and _UNHURRIED.issuperset(map(type, durable))

    def _finish(
        self,
        outgoing: list[Outgoing],
        done: list[Deferred[None]],
        refused: list[tuple[Deferred[None], FedpresenceError]],
    ) -> None:
        for effect in outgoing:
            self._perform(effect)
        while self._readers:  # a reader may read again
            readers, self._readers = self._readers, []
            for call, _ in readers:
                call()
        self._in_turn = False
        if self._turned is not None:
            self._turned()
        for deferred in done:
            deferred.callback(None)
        for deferred, error in refused:
            deferred.errback(error)

    def _die(self, failure: Failure, batch: list[Deferred[None]]) -> None:
        self._dead = True
        self.stop()
        readers, self._readers = self._readers, []
        waiting, self._waiting = self._waiting, []
        error = StoreError("fedpresence is stopping: its database failed")
        for deferred in [*batch, *(d for _, d in waiting), *(d for _, d in readers)]:
            if not deferred.called:
                deferred.errback(error)
        self._fatal(failure)

    def _set_timer(self) -> None:
        """See to it that the timer comes with the next deadline, or before: then for nothing."""
        due_ms = self._engine.wake_ms()
        if due_ms is None or self._stopped:
            return
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_ms = due_ms
        # Whole milliseconds: a fraction too early would be asked again, at once, for ever.
        self._timer = self._clock.callLater(max(0, due_ms - now_ms(self._clock)) / 1000, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        due_ms = self._engine.wake_ms()
        if due_ms is not None and due_ms <= now_ms(self._clock):
            self.submit(TimePassed()).addErrback(_unheard)
        else:
            self._set_timer()


def _ignored() -> Deferred[None]:
    """A Deferred nobody waits for; a refusal in it is the caller's choice not to hear."""
    deferred: Deferred[None] = Deferred()
    deferred.addErrback(_unheard)
    return deferred


def _unheard(failure: Failure) -> None:
    failure.trap(FedpresenceError)
