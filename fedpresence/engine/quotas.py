"""How many open requests other servers may keep here.

Attempts count, whether the user exists or not, so that a quota tells nobody who exists (Z-7).

Source: edus.md 4 step 6; security.md Z-13.
"""

from fedpresence.engine.settings import DAY_MS
from fedpresence.engine.subscription import ObservedStage
from fedpresence.engine.world import World
from fedpresence.ids import ServerName, UserID, server_of

OPEN_PER_OBSERVED = 100
OPEN_PER_OBSERVER = 100
OPEN_PER_ORIGIN = 10_000
MAX_ATTEMPTS = 200_000  # remembered for all origins together

Attempts = dict[UserID, dict[UserID, int]]  # observer, observed, since when


class InviteQuotas:
    """Attempts that nobody has answered yet, by origin and observer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._attempts: dict[ServerName, Attempts] = {}
        self._count = 0

    def admit(self, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether an invite may be looked at; a repeated one always may."""
        row = self._world.observed_row(observed, observer)
        if row is not None and row.stage is not ObservedStage.NONE:
            return True
        origin = server_of(observer)
        by_observer = self._attempts.setdefault(origin, {})
        mine = by_observer.setdefault(observer, {})
        if observed in mine:
            return True
        if (
            len(mine) >= OPEN_PER_OBSERVER
            or sum(map(len, by_observer.values())) >= OPEN_PER_ORIGIN
            or self._count >= MAX_ATTEMPTS
        ):
            self._forget_old(origin, now_ms)
            by_observer = self._attempts.setdefault(origin, {})
            mine = by_observer.setdefault(observer, {})
            if (
                len(mine) >= OPEN_PER_OBSERVER
                or sum(map(len, by_observer.values())) >= OPEN_PER_ORIGIN
                or self._count >= MAX_ATTEMPTS
            ):
                return False
        mine[observed] = now_ms
        self._count += 1
        return True

    def settled(self, observer: UserID, observed: UserID) -> None:
        """The request was answered or withdrawn."""
        mine = self._attempts.get(server_of(observer), {}).get(observer)
        if mine is not None and mine.pop(observed, None) is not None:
            self._count -= 1

    def crowded_out(self, observed: UserID) -> list[UserID]:
        """Whose request gives way to one more for `observed`: the newest of the most demanding origin."""
        rows = [
            row
            for row in self._world.observers.get(observed, {}).values()
            if row.stage is ObservedStage.REQUESTED
        ]
        if len(rows) < OPEN_PER_OBSERVED:
            return []
        by_origin: dict[ServerName, int] = {}
        for row in rows:
            origin = server_of(row.observer)
            by_origin[origin] = by_origin.get(origin, 0) + 1
        greediest = max(by_origin, key=lambda origin: (by_origin[origin], origin))
        newest = max(
            (row for row in rows if server_of(row.observer) == greediest),
            key=lambda row: (row.created_ms, row.observer),
        )
        return [newest.observer]

    def _forget_old(self, origin: ServerName, now_ms: int) -> None:
        """Attempts of a day ago that left no open request count no more."""
        by_observer = self._attempts.get(origin, {})
        for observer, mine in list(by_observer.items()):
            for observed, since_ms in list(mine.items()):
                row = self._world.observed_row(observed, observer)
                is_open = row is not None and row.stage is ObservedStage.REQUESTED
                if not is_open and now_ms - since_ms > DAY_MS:
                    del mine[observed]
                    self._count -= 1
            if not mine:
                del by_observer[observer]
        if not by_observer:
            self._attempts.pop(origin, None)
