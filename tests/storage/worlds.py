"""Each store in its world: others on the same data, restarts, and a way to wait for answers."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from fedpresence.engine.effects import Durable
from fedpresence.engine.presence import PresenceRecord, PresenceState
from fedpresence.ids import UserID
from fedpresence.storage.memory import MemoryStore
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import Store, Stored
from fedpresence.testing.builders import BOB, NOW_MS
from tests.asynchronous import result_of
from tests.storage.threads import ThreadReactor

T = TypeVar("T")


class World(ABC):
    """A store, others on the same data, and how to wait for their answers."""

    store: Store

    @abstractmethod
    def wait(self, deferred: Deferred[T]) -> T:
        """The Deferred's result, or its error raised."""

    @abstractmethod
    def another_process(self) -> Store:
        """A second store on the same data."""

    @abstractmethod
    def restart(self) -> None:
        """Close the store and open it again."""

    @abstractmethod
    def close(self) -> None:
        """Close whatever is open."""


class InMemory(World):
    """MemoryStore, whose Deferreds have always fired."""

    def __init__(self) -> None:
        self._memory = self.store = MemoryStore(max_server_keys=3)

    def wait(self, deferred: Deferred[T]) -> T:
        """See World."""
        return result_of(deferred)

    def another_process(self) -> Store:
        """See World."""
        return self._memory.reopened()

    def restart(self) -> None:
        """See World."""
        self.close()
        self._memory = self.store = self._memory.reopened()

    def close(self) -> None:
        """See World."""
        self.wait(self.store.close())


class OnDisk(World):
    """SQLiteStore with its real thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reactor = ThreadReactor()
        self._others: list[Store] = []
        self.store = self._open()

    def _open(self, *, exclusive: bool = True) -> Store:
        return SQLiteStore.open(self._path, self._reactor, exclusive, max_server_keys=3)

    def wait(self, deferred: Deferred[T]) -> T:
        """See World."""
        return self._reactor.wait(deferred)

    def another_process(self) -> Store:
        """See World."""
        self._others.append(self._open(exclusive=False))
        return self._others[-1]

    def restart(self) -> None:
        """See World."""
        self.close()
        self.store = self._open()

    def close(self) -> None:
        """See World."""
        for store in [*self._others, self.store]:
            self.wait(store.close())


def commit(world: World, *effects: Durable, now_ms: int = NOW_MS) -> None:
    """One turn."""
    world.wait(world.store.commit(effects, now_ms))


def stored(world: World) -> Stored:
    """What a restart finds."""
    world.restart()
    return world.wait(world.store.load())


def a_record(user_id: UserID = BOB, **fields: Any) -> PresenceRecord:
    """What is kept of a user's presence: online, unless `fields` say otherwise."""
    values: dict[str, Any] = {
        "state": PresenceState.ONLINE,
        "last_active_ms": NOW_MS,
        "status_msg": "at sea \N{SAILBOAT}",
        "currently_active": True,
        "heard_ms": NOW_MS,
    }
    return PresenceRecord(user_id, **(values | fields))


def reload(path: Path, reactor: ThreadReactor) -> Stored:
    """What a start finds in the database of a store that was closed, or lost."""
    store = SQLiteStore.open(path, reactor)
    found = reactor.wait(store.load())
    reactor.wait(store.close())
    return found
