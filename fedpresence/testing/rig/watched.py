"""A store of a rig's server: its work counts as under way, and it can crash."""

from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred

from fedpresence.errors import StoreError
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import Store
from fedpresence.testing.rig.activity import Activity


class CrashingStore:
    """A SQLite store; after `crash` nothing is committed and nobody is answered any more."""

    def __init__(self, path: Path, reactor: Any, activity: Activity) -> None:
        self._crashed = False
        self._activity = activity
        self._store = SQLiteStore.open(path, reactor, before_commit=self._commit_no_more, power_cuts=False)

    def as_store(self) -> Store:
        """Itself, which has whatever a Store has."""
        return cast(Store, self)

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._store, name)

        def ask(*args: Any, **kw: Any) -> Deferred[Any]:
            answer: Deferred[Any] = Deferred()
            if not self._crashed:
                self._activity.watched(asked(*args, **kw)).addBoth(self._tell, answer)
            return answer

        return ask

    def touched(self) -> bool:
        """See Store: nothing is under way."""
        return not self._crashed and self._store.touched()

    def crash(self) -> Deferred[None]:
        """As the end of the process: what was not committed is not. Fires when the file is free."""
        self._crashed = True
        return self._activity.watched(self._store.close())

    def _tell(self, result: object, answer: Deferred[Any]) -> None:
        if not self._crashed:
            answer.callback(result)  # of a failure too: the errbacks are called

    def _commit_no_more(self, _: object) -> None:
        if self._crashed:
            raise StoreError("crashed before the commit")
