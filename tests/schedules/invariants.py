"""What must always be true on the wire, and what must be true in the end.

Source: subscriptions.md 5 (safety and liveness invariants); edus.md P-3, P-11; decisions 10 and 11.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fedpresence.engine.presence import View
from fedpresence.engine.settings import InvitePolicy
from fedpresence.engine.subscription import EduKind, ObservedStage, ObserverStage
from fedpresence.ids import ServerName, UserID, server_of
from fedpresence.testing.rig.wirelog import Recorded
from tests.engine.agreement import AGREED
from tests.schedules.kept import Ledger, Pair

_N, _P, _A, _D = ObserverStage.NONE, ObserverStage.PENDING, ObserverStage.ACCEPTED, ObserverStage.DENIED
_n, _r, _g, _d = (
    ObservedStage.NONE,
    ObservedStage.REQUESTED,
    ObservedStage.GRANTED,
    ObservedStage.DENIED,
)

_KINDS = {kind.value: kind for kind in EduKind}


class Sender(Protocol):
    """What a sending server thinks at this moment; None where it does not run any more."""

    def time_at(self, server_name: ServerName) -> int | None:
        """By its own clock."""

    def last_active_ms(self, user_id: UserID) -> int:
        """Of one of its users; 0: never."""


# --- on the wire --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Passing:
    """A transaction that passes. `made_ms` is when its bytes were made, by the rig's clock.

    Later than that only bytes of which it is unclear whether they arrived pass: once more, unchanged.
    """

    recorded: Recorded
    made_ms: int

    @property
    def is_fresh(self) -> bool:
        """Whether the bytes were made just now."""
        return self.made_ms == self.recorded.sent_ms


class WireWatch:
    """Judges each transaction as it passes, by what its sender had on disk."""

    def __init__(
        self, ledgers: Mapping[ServerName, Ledger], sender: Sender, complain: Callable[[str], None]
    ) -> None:
        self._ledgers = ledgers
        self._sender = sender
        self._complain = complain
        self._first: dict[tuple[ServerName, str], Recorded] = {}
        self._last_made_ms: dict[tuple[ServerName, Pair], int] = {}  # of the list EDUs of a pair
        self.transactions = self.pushes = self.list_edus = self.again = self.final_pushes = 0

    def sent(self, recorded: Recorded) -> None:
        """A transaction has reached the path; what the path itself repeats is no news."""
        now_ms = self._sender.time_at(recorded.origin)
        if recorded.duplicate or now_ms is None:
            return
        self.transactions += 1
        made_ms = recorded.sent_ms - (now_ms - recorded.body["origin_server_ts"])
        first = self._first.setdefault((recorded.origin, recorded.txn_id), recorded)
        said = list(self._said(_Passing(recorded, made_ms)))
        if recorded.content != first.content:
            said.append("the same ID with other bytes")
        for complaint in said:
            self._complain(f"{recorded.origin} → {recorded.destination} {recorded.txn_id}: {complaint}")

    def _said(self, passing: _Passing) -> Iterator[str]:
        edus = passing.recorded.body["edus"]
        self.again += not passing.is_fresh
        if not 0 < len(edus) < 100:
            yield f"{len(edus)} EDUs"
        users: list[UserID] = []
        pairs: list[Pair] = []
        for position, edu in enumerate(edus):
            content = edu["content"]
            if edu["edu_type"] == "m.presence":
                if not any(content.get(key) for key in ("push", "poll", "unpoll")):
                    yield "an m.presence that carries nothing"
                for push in content["push"]:
                    users.append(push["user_id"])
                    if _is_last_word(push, edus[position + 1 : position + 2]):
                        self.final_pushes += 1
                    else:
                        yield from self._push(passing, push)
            else:
                pair = (content["observer_user"], content["observed_user"])
                pairs.append(pair)
                yield from self._list_edu(passing, _KINDS[edu["edu_type"]], pair)
        if len(set(users)) != len(users):
            yield f"a user stands twice among {users}"
        if len(set(pairs)) != len(pairs):
            yield f"a pair stands twice among {pairs}"
        self.pushes += len(users)
        self.list_edus += len(pairs)

    def _push(self, passing: _Passing, push: dict[str, Any]) -> Iterator[str]:
        recorded, user_id, ago = passing.recorded, push["user_id"], push.get("last_active_ago")
        ledger, right = self._ledgers[recorded.origin], (push["user_id"], recorded.destination)
        if server_of(user_id) != recorded.origin:
            yield f"presence of {user_id}, who is not its user"
        if not ledger.may_tell(right):
            yield f"LEAK: presence of {user_id}, and no right"
        if passing.made_ms < ledger.right_ended_ms.get(right, 0) < recorded.sent_ms:
            yield f"LEAK: older bytes with {user_id}, and a right in them has ended meanwhile"
        if type(ago) is not int or ago < 0:
            yield f"an age of {ago!r}"
            return
        last_active_ms, now_ms = self._sender.last_active_ms(user_id), self._sender.time_at(recorded.origin)
        if passing.is_fresh and last_active_ms and now_ms is not None:
            age_ms = now_ms - last_active_ms
            if age_ms and ago != age_ms:  # who is active in this very millisecond may be so after the bytes
                yield f"{user_id} was active {age_ms} ms ago, not {ago}"

    def _list_edu(self, passing: _Passing, kind: EduKind, pair: Pair) -> Iterator[str]:
        """The oldest that the row owes; or a drop that reminds; or once more the newest that left."""
        ledger = self._ledgers[passing.recorded.origin]
        is_observers = kind in (EduKind.INVITE, EduKind.DROP)
        if server_of(pair[0] if is_observers else pair[1]) != ledger.name:
            yield f"{kind.name} of {pair}, not its own"
        last_ms = self._last_made_ms.get((ledger.name, pair), 0)
        if passing.made_ms < last_ms:
            yield f"{kind.name} of {pair}, made before another that has left"
        self._last_made_ms[ledger.name, pair] = max(last_ms, passing.made_ms)
        if not passing.is_fresh or ledger.changed_now(pair, is_observers):
            return
        mine, theirs = ledger.kept.observer_rows.get(pair), ledger.kept.observed_rows.get(pair)
        row = mine if is_observers else theirs
        is_next = row is not None and row.owed[:1] != () and row.owed[0].kind is kind
        reminds = kind is EduKind.DROP and mine is not None and mine.stage in (_N, _D)
        if not is_next and not reminds:
            yield f"{kind.name} of {pair}, which is not the next that is owed: {row}"


def _is_last_word(push: dict[str, Any], following: list[dict[str, Any]]) -> bool:
    """The one final push of P-11: offline and nothing else, right before a deny of the user's."""
    says_nothing = push == {"user_id": push["user_id"], "presence": "offline", "last_active_ago": 0}
    return says_nothing and any(
        edu["edu_type"] == EduKind.DENY.value and edu["content"]["observed_user"] == push["user_id"]
        for edu in following
    )


# --- in the end ---------------------------------------------------------------------------------


class Sees(Protocol):
    """What one user sees of another: None where nothing."""

    def __call__(self, observer: UserID, observed: UserID) -> View | None: ...


@dataclass(frozen=True, slots=True)
class Halves:
    """A pair as both servers keep it."""

    observer: UserID
    observed: UserID
    mine: ObserverStage
    theirs: ObservedStage
    muted: bool
    blocked: bool
    has_note: bool
    is_watched_otherwise: bool

    @classmethod
    def of(cls, pair: Pair, ledgers: Mapping[ServerName, Ledger]) -> "Halves":
        """What is kept of a pair."""
        observer, observed = pair
        here = ledgers[server_of(observer)].kept
        mine = here.observer_rows.get(pair)
        theirs = ledgers[server_of(observed)].kept.observed_rows.get(pair)
        near = any(
            observed in m and any(server_of(u) == server_of(observer) for u in m - {observed})
            for m in here.rooms.values()
        )
        return cls(
            observer,
            observed,
            _N if mine is None else mine.stage,
            _n if theirs is None else theirs.stage,
            theirs is not None and theirs.muted,
            theirs is not None and theirs.blocked,
            mine is not None,
            near
            or any(
                other != observer and who == observed and row.stage in (_P, _A)
                for (other, who), row in here.observer_rows.items()
            ),
        )

    @property
    def state(self) -> str:
        """Both stages in words."""
        return f"({self.mine.value}, {self.theirs.value}{' and muted' if self.muted else ''})"

    @property
    def exists(self) -> bool:
        """Whether one of the two servers knows of the pair."""
        return (self.mine, self.theirs) != (_N, _n)

    def is_agreed(self) -> bool:
        """One of the states of S:5 that are no trouble."""
        return (self.mine, self.theirs) in AGREED and not self.muted

    def is_tolerated(self, policy: InvitePolicy, *, is_told: bool, exists: bool) -> bool:
        """One of those that S:5 allows to last; `is_told`: the observed user's presence changed since."""
        both = (self.mine, self.theirs)
        is_silent = policy is InvitePolicy.DENY
        return (
            (both == (_P, _d) and (self.blocked or is_silent))
            or (both == (_P, _n) and (is_silent or not exists))
            or both in ((_D, _r), (_N, _r))
            or (both in ((_N, _g), (_D, _g)) and (self.muted or not is_told))
            or (both == (_N, _g) and not self.has_note and self.is_watched_otherwise)
        )

    def __str__(self) -> str:
        words = [w for w in ("blocked", "has_note", "is_watched_otherwise") if getattr(self, w)]
        return f"{self.observer} / {self.observed}: {self.state} {' '.join(words)}"


def disagreements(
    pairs: list[Pair],
    ledgers: Mapping[ServerName, Ledger],
    policy: InvitePolicy,
    *,
    is_told: bool,
    users: frozenset[UserID],
) -> Iterator[str]:
    """Every pair that S:5 does not allow after nine days in contact."""
    for pair in pairs:
        halves = Halves.of(pair, ledgers)
        exists = halves.observed in users
        if not halves.is_agreed() and not halves.is_tolerated(policy, is_told=is_told, exists=exists):
            yield f"no agreement: {halves}"


def untrue_views(pairs: list[Pair], ledgers: Mapping[ServerName, Ledger], sees: Sees) -> Iterator[str]:
    """Accepted observers, and those in a room that both servers know, see what the observed user is."""
    for observer, observed in pairs:
        shown, held = sees(observer, observed), sees(observed, observed)
        accepted = Halves.of((observer, observed), ledgers).mine is _A
        if held is None or not accepted:
            continue
        if shown is None:
            yield f"{observer} sees nothing of {observed}, who is {held}"
        elif held.currently_active and shown.currently_active:
            if replace(shown, last_active_ago=0) != replace(held, last_active_ago=0):
                yield f"{observer} sees {observed} as {shown}, not {held}"
        elif shown != held and not (
            held.last_active_ago is None and replace(shown, last_active_ago=None) == held
        ):
            yield f"{observer} sees {observed} as {shown}, not {held}"


def wrong_sights(
    observers: list[UserID], everybody: list[UserID], ledger: Ledger, sees: Sees
) -> Iterator[str]:
    """A user sees another only by an accept, or in a room (P:11)."""
    for observer in observers:
        for observed in everybody:
            row = ledger.kept.observer_rows.get((observer, observed))
            may = (
                observer == observed
                or (row is not None and row.stage is _A)
                or ledger.kept.share_a_room(observer, observed)
            )
            if may != (sees(observer, observed) is not None):
                yield f"{observer} {'sees nothing' if may else 'sees something'} of {observed}"
