"""One server alone: an engine that commits what it decides, and a clock that meets every deadline.

Always true: events are told at the side's own time, inboxes are resolved at once, and rows are read from
what was *stored*, so that a change which was not committed is a change that did not happen.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from fedpresence.engine.effects import Durable, Effect, InboxFilled, Notice, SendEdu, SendPush
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import (
    EdusDelivered,
    Event,
    InboxDue,
    ListChanged,
    ReceivedEdu,
    Started,
    TimePassed,
    UserAdded,
)
from fedpresence.engine.outgoing import Composed, Edu, ListEdu, PresenceEdu, Wanted
from fedpresence.engine.settings import EngineSettings
from fedpresence.engine.subscription import EduKind, ObservedRow, ObserverRow, OwedEdu
from fedpresence.ids import ServerName, UserID, server_of
from fedpresence.storage.memory import MemoryStore
from fedpresence.testing.builders import ALICE, CAROL, HERE, NOW_MS, THERE, a_transaction
from tests.asynchronous import result_of

E = TypeVar("E")


class Side:
    """`here.test` with Alice and Carol; `settings` are those of `EngineSettings`."""

    def __init__(self, users: tuple[UserID, ...] = (ALICE, CAROL), **settings: Any) -> None:
        self.settings = EngineSettings(HERE, **settings)
        self.store = MemoryStore()
        self.now_ms = NOW_MS
        self.owed: dict[OwedEdu, None] = {}  # in order
        self.engine = Engine(self.settings, self.now_ms)
        self.do(Started(), *(UserAdded(user_id) for user_id in users))

    # --- what happens ---

    def do(self, *events: Event) -> tuple[Effect, ...]:
        """Events at this moment: decided, committed, and their inbox resolved."""
        all_effects: list[Effect] = []
        for event in events:
            effects = self.engine.receive(event, self.now_ms)
            durable = [effect for effect in effects if isinstance(effect, Durable)]
            result_of(self.store.commit(durable, self.now_ms))
            self.owed.update((effect.edu, None) for effect in effects if isinstance(effect, SendEdu))
            all_effects.extend(effects)
            if any(isinstance(effect, InboxFilled) for effect in effects):
                all_effects.extend(self.do(InboxDue()))
        return tuple(all_effects)

    def change(self, user_id: UserID, **lists: tuple[UserID, ...]) -> tuple[Effect, ...]:
        """A user's `POST .../presence/list`."""
        return self.do(ListChanged(user_id, **lists))

    def hear(self, *edus: ReceivedEdu, origin: ServerName = THERE) -> tuple[Effect, ...]:
        """A transaction of another server."""
        return self.do(a_transaction(*edus, origin=origin, origin_server_ts=self.now_ms))

    def wait(self, ms: int) -> tuple[Effect, ...]:
        """Time passes through every deadline; all that it led to."""
        end_ms = self.now_ms + ms
        effects: list[Effect] = []
        again = 0  # a herd is more than one turn
        while (deadline_ms := self.engine.next_deadline_ms()) is not None and deadline_ms <= end_ms:
            again = again + 1 if deadline_ms <= self.now_ms else 0
            assert again < 10, "a deadline that never ends"
            self.now_ms = max(self.now_ms, deadline_ms)
            effects.extend(self.do(TimePassed()))
        self.now_ms = end_ms
        return tuple(effects)

    def sends(self, *users: UserID, destination: ServerName = THERE) -> Composed:
        """Bytes are made of all that is owed and of pushes of `users`; no answer has come yet."""
        owed = tuple(edu for edu in self.owed if _destination(edu) == destination)
        return self.engine.compose(destination, Wanted(users=users, owed=owed), self.now_ms)

    def sends_and_is_heard(self, *users: UserID, destination: ServerName = THERE) -> tuple[Edu, ...]:
        """The same, and the other server took it; what it took, in order."""
        composed = self.sends(*users, destination=destination)
        self.do(EdusDelivered(destination, composed.owed))
        for edu in (*composed.owed, *composed.stale_owed):
            del self.owed[edu]
        pushes = (PresenceEdu(push=composed.pushes),) if composed.pushes else ()
        return (*composed.before, *pushes)

    def restart(self, *, crashed: bool = False, **settings: Any) -> tuple[Effect, ...]:
        """A new run on what is stored."""
        if settings:
            self.settings = EngineSettings(HERE, **settings)
        self.owed = {}
        if not crashed:
            result_of(self.store.save_presence(self.engine.take_dirty(1000), self.now_ms))
        self.store = self.store.reopened()
        self.engine = Engine(self.settings, self.now_ms)
        self.engine.load(result_of(self.store.load()), self.now_ms)
        return self.do(Started())

    # --- what is stored ---

    def observer_row(self, observer: UserID, observed: UserID) -> ObserverRow | None:
        """The observer's half."""
        rows = result_of(self.store.load()).pairs.observer_rows()
        return next((row for row in rows if (row.observer, row.observed) == (observer, observed)), None)

    def observed_row(self, observed: UserID, observer: UserID) -> ObservedRow | None:
        """The observed user's half."""
        rows = result_of(self.store.load()).pairs.observed_rows()
        return next((row for row in rows if (row.observer, row.observed) == (observer, observed)), None)


def of_type(effects: tuple[Effect, ...], kind: type[E]) -> list[E]:
    """The effects of one kind, in order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def pushed(effects: Iterable[object]) -> list[tuple[ServerName, UserID]]:
    """Who is due news of whom."""
    pushes = [effect for effect in effects if isinstance(effect, SendPush)]
    return [(destination, push.user_id) for push in pushes for destination in push.destinations]


def sent(effects: tuple[Effect, ...]) -> list[EduKind]:
    """Which list EDUs were given to the queue, in order."""
    return [effect.edu.kind for effect in of_type(effects, SendEdu)]


def told(effects: tuple[Effect, ...]) -> list[tuple[UserID, EduKind, str | None]]:
    """Which notices reach whom."""
    return [(notice.user_id, notice.kind, notice.reason) for notice in of_type(effects, Notice)]


def kinds(edus: tuple[Edu, ...]) -> list[EduKind | str]:
    """The EDUs of a transaction in one word each; a push says whose state it is."""
    words: list[EduKind | str] = []
    for edu in edus:
        if isinstance(edu, ListEdu):
            words.append(edu.kind)
        else:
            words.extend(f"{push.user_id} {push.state.value}" for push in edu.push)
            words.extend(f"poll {user_id}" for user_id in edu.poll)
            words.extend(f"unpoll {user_id}" for user_id in edu.unpoll)
    return words


def _destination(edu: OwedEdu) -> ServerName:
    return server_of(edu.observed) if server_of(edu.observer) == HERE else server_of(edu.observer)
