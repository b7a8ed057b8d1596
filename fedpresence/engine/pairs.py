"""Every pair of which we keep a half, packed: most of what a large server holds in memory is this.

Always true:
- what is put is what is read: a row is packed and unpacked without loss;
- a pair is found from its observed user, and from its observer where we keep that half; both halves of
  two users of ours are one object, found from either.

As dataclasses in dictionaries a subscription took 697 bytes, packed it takes 292, remote users and timers
included (`python -m benchmarks memory`). What is asked all the time, the stage, is read where it lies; a
whole row is made when somebody wants it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, KeysView, Sequence
from dataclasses import replace
from itertools import repeat
from struct import Struct

from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow, ObserverStage, OwedEdu
from fedpresence.ids import UserID

Side = bool  # True: the observer's row, False: the observed user's
PairKey = tuple[UserID, UserID, Side]  # observer, observed, which row
Owed = tuple[OwedEdu, ...]

# A pair is the observer's half and then the observed user's; each begins with its stage, 1 to 4, or is all
# zero where we do not keep it: pairs of one size fill each other's gaps in memory. Moments have eight bytes;
# what is owed is rare and kept beside.
_OBSERVER = "BI5q"  # stage; generation; created, changed, invite, confirmed, check
_OBSERVED = "BBI3q"  # stage and flags; denials; generation; created, changed, confirmed
_OBSERVER_HALF, _OBSERVED_HALF = Struct("<" + _OBSERVER), Struct("<" + _OBSERVED)
_SIZE = _OBSERVER_HALF.size
_OBSERVED_ALONE = Struct(f"<{_SIZE}x{_OBSERVED}")
_NO_OBSERVER, _NO_OBSERVED = bytes(_SIZE), bytes(_OBSERVED_HALF.size)
_NO_PAIR = _NO_OBSERVER + _NO_OBSERVED
_MUTED, _BLOCKED, _BY_ROOM = 8, 16, 32  # flags beside the observed user's stage
_STAGE = 7
_MAX_DENIALS = 255  # the second one blocks

_OBSERVER_STAGES = dict(enumerate(ObserverStage, 1))
_OBSERVED_STAGES = dict(enumerate(ObservedStage, 1))
_OBSERVER_CODES = {stage: code for code, stage in _OBSERVER_STAGES.items()}
_OBSERVED_CODES = {stage: code for code, stage in _OBSERVED_STAGES.items()}
_ACCEPTED = _OBSERVER_CODES[ObserverStage.ACCEPTED]
_GRANTED = _OBSERVED_CODES[ObservedStage.GRANTED]

Column = Sequence[int]


class Pairs:
    """Rows of both kinds, by user. `stages` counts them; `restless` is for the start alone."""

    def __init__(
        self, observer_rows: Iterable[ObserverRow] = (), observed_rows: Iterable[ObservedRow] = ()
    ) -> None:
        self.stages: Counter[ObserverStage | ObservedStage] = Counter()
        self.restless: list[
            PairKey
        ] = []  # loaded rows that are not at rest: neither ACCEPTED nor GRANTED, or owing
        self.newest_ms = 0  # of all moments that were loaded
        self._by_observer: dict[UserID, dict[UserID, bytes]] = {}
        self._by_observed: dict[UserID, dict[UserID, bytes]] = {}
        self._owed: dict[PairKey, Owed] = {}
        self._by_room: dict[UserID, dict[UserID, None]] = {}  # observed, observer: grants that rest on a room
        self.load(observer_rows, observed_rows)

    # --- one row --------------------------------------------------------------------------------

    def observer_row(self, observer: UserID, observed: UserID) -> ObserverRow | None:
        """The observer's half, if any."""
        pair = self._by_observer.get(observer, {}).get(observed)
        return None if pair is None else self._unpack_observer(observer, observed, pair)

    def observed_row(self, observed: UserID, observer: UserID) -> ObservedRow | None:
        """The observed user's half, if any."""
        pair = self._by_observed.get(observed, {}).get(observer)
        return None if pair is None or not pair[_SIZE] else self._unpack_observed(observer, observed, pair)

    def observer_stage(self, observer: UserID, observed: UserID) -> ObserverStage | None:
        """The stage of the observer's half, if any."""
        mine = self._by_observer.get(observer)
        pair = None if mine is None else mine.get(observed)
        return None if pair is None else _OBSERVER_STAGES[pair[0]]

    def put_observer_row(self, row: ObserverRow) -> None:
        """Keep the observer's half."""
        pair = self._pair(row.observer, row.observed)
        self._count(_OBSERVER_STAGES.get(pair[0]), row.stage)
        self._keep_owed((row.observer, row.observed, True), row.owed)
        half = _OBSERVER_HALF.pack(
            _OBSERVER_CODES[row.stage],
            row.generation,
            row.created_ms,
            row.changed_ms,
            row.invite_ms,
            row.confirmed_ms,
            row.check_ms,
        )
        self._put(row.observer, row.observed, half + pair[_SIZE:])

    def put_observed_row(self, row: ObservedRow) -> None:
        """Keep the observed user's half."""
        pair = self._pair(row.observer, row.observed)
        self._count(_OBSERVED_STAGES.get(pair[_SIZE] & _STAGE), row.stage)
        self._keep_owed((row.observer, row.observed, False), row.owed)
        self._note_room(row.observed, row.observer, row.by_room)
        half = _OBSERVED_HALF.pack(
            _OBSERVED_CODES[row.stage] + _MUTED * row.muted + _BLOCKED * row.blocked + _BY_ROOM * row.by_room,
            min(row.denials, _MAX_DENIALS),
            row.generation,
            row.created_ms,
            row.changed_ms,
            row.confirmed_ms,
        )
        self._put(row.observer, row.observed, pair[:_SIZE] + half)

    def remove_observer_row(self, observer: UserID, observed: UserID) -> None:
        """Forget the observer's half."""
        pair = self._pair(observer, observed)
        self._count(_OBSERVER_STAGES[pair[0]], None)
        self._keep_owed((observer, observed, True), ())
        self._put(observer, observed, _NO_OBSERVER + pair[_SIZE:])

    def remove_observed_row(self, observed: UserID, observer: UserID) -> None:
        """Forget the observed user's half."""
        pair = self._pair(observer, observed)
        self._count(_OBSERVED_STAGES[pair[_SIZE] & _STAGE], None)
        self._keep_owed((observer, observed, False), ())
        self._note_room(observed, observer, False)
        self._put(observer, observed, pair[:_SIZE] + _NO_OBSERVED)

    # --- many, in the order in which they came ----------------------------------------------------

    def listed(self, observer: UserID, *stages: ObserverStage) -> list[UserID]:
        """Whom a local observer has a row about; with `stages` only in those."""
        if not stages:
            return list(self._by_observer.get(observer, ()))
        codes = [_OBSERVER_CODES[stage] for stage in stages]
        return [
            observed for observed, pair in self._by_observer.get(observer, {}).items() if pair[0] in codes
        ]

    def watching(self, observed: UserID, *stages: ObserverStage) -> list[UserID]:
        """Local observers whose row about `observed` is in one of `stages`."""
        codes = [_OBSERVER_CODES[stage] for stage in stages]
        return [
            observer for observer, pair in self._by_observed.get(observed, {}).items() if pair[0] in codes
        ]

    def entitled(self, observed: UserID) -> list[UserID]:
        """Observers who were granted `observed`, by more than a room, and are not muted."""
        granted, mask = _GRANTED, _STAGE | _MUTED | _BY_ROOM
        return [
            observer
            for observer, pair in self._by_observed.get(observed, {}).items()
            if pair[_SIZE] & mask == granted
        ]

    def observer_rows(self, observer: UserID | None = None) -> Iterator[ObserverRow]:
        """The rows of one observer, or of all; do not put or remove any meanwhile."""
        for name in self._by_observer if observer is None else (observer,):
            for observed, pair in self._by_observer.get(name, {}).items():
                yield self._unpack_observer(name, observed, pair)

    def observed_rows(self, observed: UserID | None = None, *stages: ObservedStage) -> Iterator[ObservedRow]:
        """The rows of one observed user, or of all; with `stages` only those; change none meanwhile."""
        codes = [_OBSERVED_CODES[stage] for stage in stages or ObservedStage]
        for name in self._by_observed if observed is None else (observed,):
            for observer, pair in self._by_observed.get(name, {}).items():
                if pair[_SIZE] & _STAGE in codes:
                    yield self._unpack_observed(observer, name, pair)

    def blocked_by(self, observed: UserID) -> int:
        """How many observers are blocked."""
        pairs = self._by_observed.get(observed, {}).values()
        return sum(bool(pair[_SIZE] & _BLOCKED) for pair in pairs)

    def everybody_observed(self) -> KeysView[UserID]:
        """Every user of a pair's observed side, ours and others."""
        return self._by_observed.keys()

    def granted_by_room(self) -> list[tuple[UserID, UserID]]:
        """(observed, observer) of every grant that rests on a room."""
        return [(observed, observer) for observed, theirs in self._by_room.items() for observer in theirs]

    def granted_by_room_of(self, observed: UserID) -> list[UserID]:
        """The observers of such grants to one user."""
        return list(self._by_room.get(observed, ()))

    # --- the rows of the run before, some at a time ---------------------------------------------------

    def load(
        self, observer_rows: Iterable[ObserverRow] = (), observed_rows: Iterable[ObservedRow] = ()
    ) -> None:
        """Rows of any kind that are not here yet."""
        for mine in observer_rows:
            self.put_observer_row(mine)
            moments = (mine.created_ms, mine.changed_ms, mine.invite_ms, mine.confirmed_ms, mine.check_ms)
            self.newest_ms = max(self.newest_ms, *moments)
            if mine.stage is not ObserverStage.ACCEPTED or mine.owed:
                self._loaded((mine.observer, mine.observed, True), mine.owed)
        for theirs in observed_rows:
            self.put_observed_row(theirs)
            self.newest_ms = max(self.newest_ms, theirs.created_ms, theirs.changed_ms, theirs.confirmed_ms)
            if theirs.stage is not ObservedStage.GRANTED or theirs.owed:
                self._loaded((theirs.observer, theirs.observed, False), theirs.owed)

    def load_granted(
        self,
        observed: Sequence[UserID],
        observers: Sequence[UserID],
        generations: Column,
        created: Column,
        changed: Column,
        confirmed: Column,
    ) -> None:
        """What most observed rows are: granted, nothing else ever said, nothing owed. By columns."""
        self.newest_ms = max(self.newest_ms, *created, *changed, *confirmed)
        self.stages[ObservedStage.GRANTED] += len(observed)
        halves = map(
            _OBSERVED_ALONE.pack, repeat(_GRANTED), repeat(0), generations, created, changed, confirmed
        )
        last = None
        for user, observer, pair in zip(observed, observers, halves, strict=False):
            if user is not last:
                last, theirs = user, self._by_observed.setdefault(user, {})
            theirs[observer] = pair

    def load_accepted(
        self,
        observers: Sequence[UserID],
        observed: Sequence[UserID],
        generations: Column,
        created: Column,
        changed: Column,
        invite: Column,
        confirmed: Column,
    ) -> None:
        """What most observer rows are: accepted, not being checked, nothing owed. By columns."""
        self.newest_ms = max(self.newest_ms, *created, *changed, *invite, *confirmed)
        self.stages[ObserverStage.ACCEPTED] += len(observers)
        halves = map(
            _OBSERVER_HALF.pack,
            repeat(_ACCEPTED),
            generations,
            created,
            changed,
            invite,
            confirmed,
            repeat(0),
        )
        last = None
        for observer, user, half in zip(observers, observed, halves, strict=False):
            if observer is not last:
                last, mine = observer, self._by_observer.setdefault(observer, {})
            theirs = self._by_observed.get(user)
            if theirs is None:
                theirs = self._by_observed[user] = {}
            mine[user] = theirs[observer] = half + theirs.get(observer, _NO_PAIR)[_SIZE:]

    def clamp(self, now_ms: int) -> None:
        """No moment that was loaded is in the future (Z-21)."""
        if self.newest_ms <= now_ms:
            return
        for mine in list(self.observer_rows()):
            self.put_observer_row(_clamped_observer(mine, now_ms))
        for theirs in list(self.observed_rows()):
            self.put_observed_row(_clamped_observed(theirs, now_ms))
        self.newest_ms = now_ms

    # --- inside ---------------------------------------------------------------------------------

    def _pair(self, observer: UserID, observed: UserID) -> bytes:
        return self._by_observed.get(observed, {}).get(observer, _NO_PAIR)

    def _put(self, observer: UserID, observed: UserID, pair: bytes) -> None:
        _put(self._by_observer, observer, observed, pair if pair[0] else None)
        _put(self._by_observed, observed, observer, None if pair == _NO_PAIR else pair)

    def _count(
        self, before: ObserverStage | ObservedStage | None, after: ObserverStage | ObservedStage | None
    ) -> None:
        if before is not None:
            self.stages[before] -= 1
        if after is not None:
            self.stages[after] += 1

    def _keep_owed(self, key: PairKey, owed: Owed) -> None:
        if owed:
            self._owed[key] = owed
        else:
            self._owed.pop(key, None)

    def _note_room(self, observed: UserID, observer: UserID, by_room: bool) -> None:
        if by_room:
            self._by_room.setdefault(observed, {})[observer] = None
        elif (theirs := self._by_room.get(observed)) is not None:
            theirs.pop(observer, None)
            if not theirs:
                del self._by_room[observed]

    def _loaded(self, key: PairKey, owed: Owed) -> None:
        """A row that is not at rest was loaded."""
        self.restless.append(key)
        self._keep_owed(key, owed)
        self.newest_ms = max(self.newest_ms, *(edu.since_ms for edu in owed), 0)

    def _unpack_observer(self, observer: UserID, observed: UserID, pair: bytes) -> ObserverRow:
        code, generation, created, changed, invite, confirmed, check = _OBSERVER_HALF.unpack_from(pair)
        owed = self._owed.get((observer, observed, True), ())
        stage = _OBSERVER_STAGES[code]
        return ObserverRow(
            observer, observed, stage, created, changed, invite, confirmed, check, generation, owed
        )

    def _unpack_observed(self, observer: UserID, observed: UserID, pair: bytes) -> ObservedRow:
        half = _OBSERVED_HALF.unpack_from(pair, _SIZE)
        code, denials, generation, created, changed, confirmed = half
        return ObservedRow(
            observer,
            observed,
            _OBSERVED_STAGES[code & _STAGE],
            created,
            changed,
            muted=bool(code & _MUTED),
            blocked=bool(code & _BLOCKED),
            by_room=bool(code & _BY_ROOM),
            denials=denials,
            generation=generation,
            owed=self._owed.get((observer, observed, False), ()),
            confirmed_ms=confirmed,
        )


def _put(index: dict[UserID, dict[UserID, bytes]], one: UserID, other: UserID, pair: bytes | None) -> None:
    if pair is not None:
        index.setdefault(one, {})[other] = pair
    elif other in (mine := index.get(one, {})):
        del mine[other]
        if not mine:
            del index[one]


def _clamped_observer(row: ObserverRow, now_ms: int) -> ObserverRow:
    return replace(
        row,
        created_ms=min(row.created_ms, now_ms),
        changed_ms=min(row.changed_ms, now_ms),
        invite_ms=min(row.invite_ms, now_ms),
        confirmed_ms=min(row.confirmed_ms, now_ms),
        check_ms=min(row.check_ms, now_ms),
        owed=_clamped_owed(row.owed, now_ms),
    )


def _clamped_observed(row: ObservedRow, now_ms: int) -> ObservedRow:
    return replace(
        row,
        created_ms=min(row.created_ms, now_ms),
        changed_ms=min(row.changed_ms, now_ms),
        confirmed_ms=min(row.confirmed_ms, now_ms),
        owed=_clamped_owed(row.owed, now_ms),
    )


def _clamped_owed(owed: Owed, now_ms: int) -> Owed:
    return tuple(replace(edu, since_ms=min(edu.since_ms, now_ms)) for edu in owed)
