"""Every pair of which we keep a half, packed: most of what a large server holds in memory is this.

Always true:
- what is put is what is read: a row is packed and unpacked without loss;
- a pair is found from its observed user, and from its observer where we keep that half;
- what a start found at rest, nearly everything, stays where it was loaded (`loaded.py`), changed or not; what
  came later is in dictionaries, both halves of two users of ours as one object.

What is asked all the time, the stage, is read where it lies; a whole row is made when somebody wants it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from struct import Struct

from fedpresence.engine.loaded import NOWHERE, Loaded
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow, ObserverStage, OwedEdu
from fedpresence.ids import UserID

Side = bool  # True: the observer's row, False: the observed user's
PairKey = tuple[UserID, UserID, Side]  # observer, observed, which row
Owed = tuple[OwedEdu, ...]

# A pair is the observer's half and then the observed user's; each begins with its stage, 1 to 4, or is all
# zero where we do not keep it: pairs of one size fill each other's gaps in memory. Loaded halves lie each
# among its like. Moments have eight bytes; what is owed is rare and kept beside.
_OBSERVER = "BI5q"  # stage; generation; created, changed, invite, confirmed, check
_OBSERVED = "BBI3q"  # stage and flags; denials; generation; created, changed, confirmed
_OBSERVER_HALF, _OBSERVED_HALF = Struct("<" + _OBSERVER), Struct("<" + _OBSERVED)
_SIZE = _OBSERVER_HALF.size
_NO_OBSERVER, _NO_OBSERVED = bytes(_SIZE), bytes(_OBSERVED_HALF.size)
_NO_PAIR = _NO_OBSERVER + _NO_OBSERVED
_MUTED, _BLOCKED, _BY_ROOM = 8, 16, 32  # flags beside the observed user's stage
_STAGE = 7
_MAX_DENIALS = 255  # the second one blocks

_OBSERVER_STAGES = dict(enumerate(ObserverStage, 1))
_OBSERVED_STAGES = dict(enumerate(ObservedStage, 1))
_STAGES_OF = [  # of a number with one bit for each code: the first is for halves that are not kept
    frozenset(stage for code, stage in _OBSERVER_STAGES.items() if bits >> code & 1)
    for bits in range(2 << len(_OBSERVER_STAGES))
]
_OBSERVER_CODES = {stage: code for code, stage in _OBSERVER_STAGES.items()}
_OBSERVED_CODES = {stage: code for code, stage in _OBSERVED_STAGES.items()}
_ACCEPTED = _OBSERVER_CODES[ObserverStage.ACCEPTED]
_GRANTED = _OBSERVED_CODES[ObservedStage.GRANTED]

Packed = bytes | bytearray
Index = dict[UserID, dict[UserID, None]]  # observers by observed user
Columns = Sequence[Sequence[int]]  # owners, others, generations, and then moments


class Pairs:
    """Rows of both kinds, by user. `stages` counts them; `restless` is for the start alone.

    `users` are those of the rows that `load_granted` and `load_accepted` take, which have their places in it.
    """

    def __init__(
        self,
        observer_rows: Iterable[ObserverRow] = (),
        observed_rows: Iterable[ObservedRow] = (),
        *,
        users: Sequence[UserID] = (),
    ) -> None:
        self.stages: Counter[ObserverStage | ObservedStage] = Counter()
        # Loaded rows that are not at rest: neither ACCEPTED nor GRANTED, or owing or waiting for something.
        self.restless: list[PairKey] = []
        self.newest_ms = 0  # of all moments that were loaded
        self._users = users
        numbers = {user: number for number, user in enumerate(users)}
        self._loaded_observer = Loaded(users, numbers, _OBSERVER_HALF.size)
        self._loaded_observed = Loaded(users, numbers, _OBSERVED_HALF.size)
        self._loaded_watching = self._loaded_observer.by_other()
        self._by_observer: dict[UserID, dict[UserID, bytes]] = {}
        self._by_observed: dict[UserID, dict[UserID, bytes]] = {}
        self._owed: dict[PairKey, Owed] = {}
        self._by_room: Index = {}  # grants that rest on a room
        self._requested: Index = {}  # requests that wait for the user's answer
        self.load(observer_rows, observed_rows)

    # --- one row --------------------------------------------------------------------------------

    def observer_row(self, observer: UserID, observed: UserID) -> ObserverRow | None:
        """The observer's half, if any."""
        packed, place = self._observer_half(observer, observed)
        return self._unpack_observer(observer, observed, packed, place) if packed[place] else None

    def observed_row(self, observed: UserID, observer: UserID) -> ObservedRow | None:
        """The observed user's half, if any."""
        packed, place = self._observed_half(observed, observer)
        return self._unpack_observed(observer, observed, packed, place) if packed[place] else None

    def observer_stage(self, observer: UserID, observed: UserID) -> ObserverStage | None:
        """The stage of the observer's half, if any."""
        packed, place = self._observer_half(observer, observed)
        return _OBSERVER_STAGES.get(packed[place])

    def put_observer_row(self, row: ObserverRow) -> None:
        """Keep the observer's half."""
        self._count(self.observer_stage(row.observer, row.observed), row.stage)
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
        self._put_observer_half(row.observer, row.observed, half)

    def put_observed_row(self, row: ObservedRow) -> None:
        """Keep the observed user's half."""
        self._count(self._observed_stage(row.observed, row.observer), row.stage)
        self._keep_owed((row.observer, row.observed, False), row.owed)
        is_request = row.stage is ObservedStage.REQUESTED
        _note(self._by_room, row.observed, row.observer, row.by_room)
        _note(self._requested, row.observed, row.observer, is_request)
        half = _OBSERVED_HALF.pack(
            _OBSERVED_CODES[row.stage] + _MUTED * row.muted + _BLOCKED * row.blocked + _BY_ROOM * row.by_room,
            min(row.denials, _MAX_DENIALS),
            row.generation,
            row.created_ms,
            row.changed_ms,
            row.confirmed_ms,
        )
        self._put_observed_half(row.observed, row.observer, half)

    def remove_observer_row(self, observer: UserID, observed: UserID) -> None:
        """Forget the observer's half."""
        self._count(self.observer_stage(observer, observed), None)
        self._keep_owed((observer, observed, True), ())
        self._put_observer_half(observer, observed, _NO_OBSERVER)

    def remove_observed_row(self, observed: UserID, observer: UserID) -> None:
        """Forget the observed user's half."""
        self._count(self._observed_stage(observed, observer), None)
        self._keep_owed((observer, observed, False), ())
        _note(self._by_room, observed, observer, False)
        _note(self._requested, observed, observer, False)
        self._put_observed_half(observed, observer, _NO_OBSERVED)

    # --- many: what was loaded in its order, then what came later in that in which it came ----------

    def listed(self, observer: UserID, *stages: ObserverStage) -> list[UserID]:
        """Whom a local observer has a row about; with `stages` only in those."""
        codes = [_OBSERVER_CODES[stage] for stage in stages or ObserverStage]
        later = ((observed, pair[0]) for observed, pair in self._by_observer.get(observer, {}).items())
        rows = chain(self._loaded_observer.of(observer), later)
        return [observed for observed, code in rows if code in codes]

    def watching(self, observed: UserID, *stages: ObserverStage) -> list[UserID]:
        """Local observers whose row about `observed` is in one of `stages`."""
        codes = [_OBSERVER_CODES[stage] for stage in stages]
        observers = self._loaded_watching.with_codes(observed, codes)
        if observed in self._by_observed:
            pairs = self._by_observed[observed]
            observers += [observer for observer, pair in pairs.items() if pair[0] in codes]
        return observers

    def at_rest(self, observed: UserID) -> list[tuple[UserID, int]]:
        """Local observers who were accepted, and when last; but not whose row owes or waits for something."""
        rows = []
        for observer, packed, place in self._rows_about(observed):
            code, _, _, _, _, confirmed_ms, check_ms = _OBSERVER_HALF.unpack_from(packed, place)
            if code == _ACCEPTED and not check_ms and (observer, observed, True) not in self._owed:
                rows.append((observer, confirmed_ms))
        return rows

    def stages_about(self, observed: UserID) -> frozenset[ObserverStage]:
        """The stages of all local observers' rows about `observed`; asked for each push."""
        codes = self._loaded_watching.codes_about(observed)
        if observed in self._by_observed:
            for pair in self._by_observed[observed].values():
                codes |= 1 << pair[0]
        return _STAGES_OF[codes]

    def granted(self, observed: UserID) -> list[UserID]:
        """Observers who were granted `observed`, muted or not, on whatever ground."""
        return [o for o, code in self._observed_codes(observed) if code & _STAGE == _GRANTED]

    def entitled(self, observed: UserID) -> list[UserID]:
        """Observers who were granted `observed`, by more than a room, and are not muted."""
        granted, mask = _GRANTED, _STAGE | _MUTED | _BY_ROOM
        return [observer for observer, code in self._observed_codes(observed) if code & mask == granted]

    def observer_rows(self, observer: UserID | None = None) -> Iterator[ObserverRow]:
        """The rows of one observer, or of all; add or remove none meanwhile."""
        packed = self._loaded_observer.packed
        for name, observed, place in self._loaded_observer.all(observer):
            yield self._unpack_observer(name, observed, packed, place)
        for name in self._by_observer if observer is None else (observer,):
            for observed, pair in self._by_observer.get(name, {}).items():
                yield self._unpack_observer(name, observed, pair, 0)

    def observed_rows(self, observed: UserID | None = None, *stages: ObservedStage) -> Iterator[ObservedRow]:
        """The rows of one observed user, or of all; with `stages` only those; add or remove none."""
        codes = [_OBSERVED_CODES[stage] for stage in stages or ObservedStage]
        packed = self._loaded_observed.packed
        for name, observer, place in self._loaded_observed.all(observed):
            if packed[place] & _STAGE in codes:
                yield self._unpack_observed(observer, name, packed, place)
        for name in self._by_observed if observed is None else (observed,):
            for observer, pair in self._by_observed.get(name, {}).items():
                if pair[_SIZE] & _STAGE in codes:
                    yield self._unpack_observed(observer, name, pair, _SIZE)

    def blocked_by(self, observed: UserID) -> int:
        """How many observers are blocked."""
        return sum(bool(code & _BLOCKED) for _, code in self._observed_codes(observed))

    def everybody_observed(self) -> Iterable[UserID]:
        """Every user of a pair's observed side, ours and others, each once."""
        loaded = chain(self._loaded_observed.owners(), self._loaded_watching.users())
        return dict.fromkeys(chain(loaded, self._by_observed))

    def granted_by_room(self) -> list[tuple[UserID, UserID]]:
        """(observed, observer) of every grant that rests on a room."""
        return [(observed, observer) for observed, theirs in self._by_room.items() for observer in theirs]

    def granted_by_room_of(self, observed: UserID) -> list[UserID]:
        """The observers of such grants to one user."""
        return list(self._by_room.get(observed, ()))

    def requested(self, observed: UserID) -> Collection[UserID]:
        """Who waits for the user's answer; add or remove none meanwhile."""
        return self._requested.get(observed, ())

    # --- the rows of the run before, some at a time ---------------------------------------------------

    def load(
        self, observer_rows: Iterable[ObserverRow] = (), observed_rows: Iterable[ObservedRow] = ()
    ) -> None:
        """Rows of any kind that are not here yet."""
        for mine in observer_rows:
            self.put_observer_row(mine)
            moments = (mine.created_ms, mine.changed_ms, mine.invite_ms, mine.confirmed_ms, mine.check_ms)
            self.newest_ms = max(self.newest_ms, *moments)
            if mine.stage is not ObserverStage.ACCEPTED or mine.owed or mine.check_ms:
                self._loaded((mine.observer, mine.observed, True), mine.owed)
        for theirs in observed_rows:
            self.put_observed_row(theirs)
            self.newest_ms = max(self.newest_ms, theirs.created_ms, theirs.changed_ms, theirs.confirmed_ms)
            if theirs.stage is not ObservedStage.GRANTED or theirs.owed:
                self._loaded((theirs.observer, theirs.observed, False), theirs.owed)

    def load_granted(self, rows: Iterable[Columns]) -> None:
        """What most observed rows are: granted, nothing else ever said, nothing owed.

        Some rows at a time, as columns: places of observed users and of observers, generations, then moments
        as in the row. All of them are sorted by observed user and observer. Called once.
        """
        pack = _OBSERVED_HALF.pack
        for observed, observers, generations, *moments in rows:
            halves = map(pack, repeat(_GRANTED), repeat(0), generations, *moments)
            self._loaded_observed.append(observed, observers, halves)
            self.stages[ObservedStage.GRANTED] += len(observed)
            self.newest_ms = max(self.newest_ms, *map(max, moments))

    def load_accepted(self, rows: Iterable[Columns]) -> None:
        """What most observer rows are: accepted, not being checked, nothing owed; `load_granted` says how."""
        pack = _OBSERVER_HALF.pack
        for observers, observed, generations, *moments in rows:
            halves = map(pack, repeat(_ACCEPTED), generations, *moments, repeat(0))
            self._loaded_observer.append(observers, observed, halves)
            self.stages[ObserverStage.ACCEPTED] += len(observers)
            self.newest_ms = max(self.newest_ms, *map(max, moments))
        self._loaded_watching = self._loaded_observer.by_other()

    def unpaired(self) -> list[UserID]:
        """Those of `users` who stand in no row, once all are loaded."""
        paired = {*self._loaded_observer.users(), *self._loaded_observed.users()}
        paired.update(self._by_observer, self._by_observed)
        for theirs in self._by_observed.values():
            paired.update(theirs)
        return [user for user in self._users if user not in paired]

    def clamp(self, now_ms: int) -> None:
        """No moment that was loaded is in the future (Z-21)."""
        if self.newest_ms <= now_ms:
            return
        for mine in self.observer_rows():  # each is put where it was
            self.put_observer_row(_clamped_observer(mine, now_ms))
        for theirs in self.observed_rows():
            self.put_observed_row(_clamped_observed(theirs, now_ms))
        self.newest_ms = now_ms

    # --- inside ---------------------------------------------------------------------------------

    def _pair(self, observer: UserID, observed: UserID) -> bytes:
        return self._by_observed.get(observed, {}).get(observer, _NO_PAIR)

    def _observer_half(self, observer: UserID, observed: UserID) -> tuple[Packed, int]:
        """Where the half is to be read; zero stands there where there is none."""
        place = self._loaded_observer.place(observer, observed)
        return (
            (self._pair(observer, observed), 0) if place == NOWHERE else (self._loaded_observer.packed, place)
        )

    def _observed_half(self, observed: UserID, observer: UserID) -> tuple[Packed, int]:
        """The same of the observed user's."""
        place = self._loaded_observed.place(observed, observer)
        if place == NOWHERE:
            return self._pair(observer, observed), _SIZE
        return self._loaded_observed.packed, place

    def _observed_stage(self, observed: UserID, observer: UserID) -> ObservedStage | None:
        packed, place = self._observed_half(observed, observer)
        return _OBSERVED_STAGES.get(packed[place] & _STAGE)

    def _rows_about(self, observed: UserID) -> Iterator[tuple[UserID, Packed, int]]:
        """Each local observer, and where the observer's half is to be read, if it is there."""
        packed = self._loaded_observer.packed
        for observer, place in self._loaded_watching.of(observed):
            yield observer, packed, place
        for observer, pair in self._by_observed.get(observed, {}).items():
            yield observer, pair, 0

    def _observed_codes(self, observed: UserID) -> Iterator[tuple[UserID, int]]:
        """Each observer, with stage and flags."""
        later = ((observer, pair[_SIZE]) for observer, pair in self._by_observed.get(observed, {}).items())
        return chain(self._loaded_observed.of(observed), later)

    def _put_observer_half(self, observer: UserID, observed: UserID, half: bytes) -> None:
        packed, place = self._observer_half(observer, observed)
        if isinstance(packed, bytearray):
            packed[place : place + _SIZE] = half
        else:
            self._put(observer, observed, half + packed[_SIZE:])

    def _put_observed_half(self, observed: UserID, observer: UserID, half: bytes) -> None:
        packed, place = self._observed_half(observed, observer)
        if isinstance(packed, bytearray):
            packed[place : place + len(half)] = half
        else:
            self._put(observer, observed, packed[:_SIZE] + half)

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

    def _loaded(self, key: PairKey, owed: Owed) -> None:
        """A row that is not at rest was loaded."""
        self.restless.append(key)
        self._keep_owed(key, owed)
        self.newest_ms = max(self.newest_ms, *(edu.since_ms for edu in owed), 0)

    def _unpack_observer(self, observer: UserID, observed: UserID, packed: Packed, place: int) -> ObserverRow:
        half = _OBSERVER_HALF.unpack_from(packed, place)
        code, generation, created, changed, invite, confirmed, check = half
        owed = self._owed.get((observer, observed, True), ())
        stage = _OBSERVER_STAGES[code]
        return ObserverRow(
            observer, observed, stage, created, changed, invite, confirmed, check, generation, owed
        )

    def _unpack_observed(self, observer: UserID, observed: UserID, packed: Packed, place: int) -> ObservedRow:
        half = _OBSERVED_HALF.unpack_from(packed, place)
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


def _note(index: Index, observed: UserID, observer: UserID, is_in: bool) -> None:
    if is_in:
        index.setdefault(observed, {})[observer] = None
    elif (theirs := index.get(observed)) is not None:
        theirs.pop(observer, None)
        if not theirs:
            del index[observed]


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
