"""What waits for one destination besides news of users: list EDUs, polls, unpolls (pure).

Always true:
- EDUs of a pair leave in order, at most one of a pair in a transaction (decision 10);
- what is tried once (polls, unpolls, drops that nobody owes) is gone when taken;
- what is owed is gone when it was delivered, or is owed no more.

Source: decision 10; Z-17; S:3.5.
"""

from collections.abc import Iterable

from fedpresence.engine.outgoing import ListEdu
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import UserID
from fedpresence.outbound.budget import TokenBucket

MAX_OWED = 10_000  # what does not fit stays owed in its row, and is asked for again by S:3.5
MAX_ONCE = 10_000  # drops, polls and unpolls waiting, each: a restart asks for all users of a server
MAX_EDUS_TAKEN = 40  # list EDUs a transaction: with final pushes and m.presence well below 100 (F:7.1)
MAX_POLLS_TAKEN = 100  # receivers skip more (E:Q-1)
EDUS_PER_MINUTE = 100  # S:3.5, per destination

Pair = tuple[UserID, UserID]  # observer, observed
OwedKey = tuple[UserID, UserID, int, EduKind]


class _Owed:
    """A list EDU that is owed; `aside` after a refusal."""

    __slots__ = ("aside", "edu")

    def __init__(self, edu: OwedEdu) -> None:
        self.edu = edu
        self.aside = False


class Errands:
    """All of it for one destination."""

    __slots__ = ("_any_aside", "_edus_left", "_owed", "drops", "polls", "polls_by_ms", "unpolls")

    def __init__(self) -> None:
        self.polls: dict[UserID, None] = {}
        self.polls_by_ms: int | None = None  # when the first of them should leave
        self.unpolls: dict[UserID, None] = {}
        self.drops: dict[Pair, ListEdu] = {}
        self._owed: dict[OwedKey, _Owed] = {}
        self._any_aside = False  # since the last wake: mostly nothing is, and nothing need be looked for
        self._edus_left = TokenBucket(EDUS_PER_MINUTE / 60, EDUS_PER_MINUTE)

    # --- what comes in ---------------------------------------------------------------------------

    def add_edu(self, edu: OwedEdu) -> bool:
        """A list EDU is owed; whether there was room for it."""
        key = _key(edu)
        if key not in self._owed:
            if len(self._owed) >= MAX_OWED:
                return False
            self._owed[key] = _Owed(edu)
        if self._any_aside:  # what was refused goes first still, so it is offered again too
            for (observer, observed, *_), owed in self._owed.items():
                if (observer, observed) == (edu.observer, edu.observed):
                    owed.aside = False
        return True

    def unsend(self, pair: Pair) -> bool:
        """No EDU of the pair waits any more; whether one did."""
        gone = [key for key in self._owed if (key[0], key[1]) == pair]
        for key in gone:
            del self._owed[key]
        return bool(gone)

    def add_drop(self, pair: Pair) -> bool:
        """A drop is tried once; whether there was room for it."""
        if len(self.drops) >= MAX_ONCE:
            return False
        self.drops[pair] = ListEdu(EduKind.DROP, *pair)
        return True

    def add_poll(self, user_id: UserID, by_ms: int) -> None:
        """A user is asked for once, where there is room; it should leave by then."""
        _add_bounded(self.polls, user_id)
        self.polls_by_ms = by_ms if self.polls_by_ms is None else min(by_ms, self.polls_by_ms)

    def add_unpoll(self, user_id: UserID) -> None:
        """A user is asked for no more, where there is room to say so."""
        _add_bounded(self.unpolls, user_id)

    def wake(self) -> None:
        """EDUs that were refused are offered once more."""
        if self._any_aside:
            for owed in self._owed.values():
                owed.aside = False
            self._any_aside = False

    # --- what goes out ---------------------------------------------------------------------------

    def take_once(self) -> tuple[tuple[ListEdu, ...], tuple[UserID, ...], tuple[UserID, ...]]:
        """The drops, polls and unpolls that the next transaction carries."""
        drops = tuple(self.drops.values())[:MAX_EDUS_TAKEN]
        for drop in drops:
            del self.drops[(drop.observer, drop.observed)]
        polls = _pop_some(self.polls, MAX_POLLS_TAKEN)
        if not self.polls:
            self.polls_by_ms = None
        return drops, polls, _pop_some(self.unpolls, MAX_POLLS_TAKEN)

    def owed_to_take(self, now_ms: int, beside: Iterable[ListEdu]) -> tuple[OwedEdu, ...]:
        """What the next transaction carries of what is owed, `beside` these; it waits until `delivered`."""
        pairs = {(edu.observer, edu.observed) for edu in beside}
        taken: list[OwedEdu] = []
        for owed in self._owed.values():
            pair = (owed.edu.observer, owed.edu.observed)
            if owed.aside:
                pairs.add(pair)  # nothing of a pair overtakes what it owed before (decision 10)
            if pair in pairs:
                continue
            if len(taken) >= MAX_EDUS_TAKEN or not self._edus_left.take(now_ms):
                break
            pairs.add(pair)
            taken.append(owed.edu)
        return tuple(taken)

    def delivered(self, owed: Iterable[OwedEdu]) -> None:
        """The destination took these, or no row owes them any more."""
        for edu in owed:
            self._owed.pop(_key(edu), None)

    def set_aside(self, owed: Iterable[OwedEdu]) -> None:
        """A refusal that will not change: they stay owed, and wait until their row asks, or for `wake`."""
        for edu in owed:
            if item := self._owed.get(_key(edu)):
                item.aside = self._any_aside = True

    # --- questions -------------------------------------------------------------------------------

    @property
    def owed(self) -> int:
        """How many list EDUs are owed, those set aside too."""
        return len(self._owed)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not (self._owed or self.drops or self.polls or self.unpolls)

    def owed_ready_ms(self) -> int | None:
        """From when on an EDU that is owed may leave; None where none is to be offered."""
        return self._edus_left.ready_ms() if self._has_owed_to_offer() else None

    def has_besides_polls(self) -> bool:
        """Whether something else waits that may go, now or later."""
        return bool(self.unpolls or self.drops) or self._has_owed_to_offer()

    def _has_owed_to_offer(self) -> bool:
        """Whether an EDU is owed that neither is set aside nor stands behind one of its pair that is."""
        if not self._any_aside:
            return bool(self._owed)
        aside = {key[:2] for key, owed in self._owed.items() if owed.aside}
        return any(key[:2] not in aside for key in self._owed)


NO_ERRANDS = Errands()  # of all destinations for which there never were any; never written to


def _key(edu: OwedEdu) -> OwedKey:
    return (edu.observer, edu.observed, edu.generation, edu.kind)


def _add_bounded(once: dict[UserID, None], user_id: UserID) -> None:
    if len(once) < MAX_ONCE:
        once[user_id] = None


def _pop_some(once: dict[UserID, None], most: int) -> tuple[UserID, ...]:
    some = tuple(once)[:most]
    for user_id in some:
        del once[user_id]
    return some
