"""Who may be told about whom: what the people of a story said, held against every transaction they caused.

Always true:
- this model knows nothing of the servers' own records: a right begins with an accept or a room, and ends
  with a deny, a revoke, a drop or unpoll that arrived, or the loss of the data;
- a push goes to a server only while a right of it to that user stands; the one exception is the single
  last push that says offline and nothing else (E:P-11).

Source: subscriptions.md 5, the safety invariant; decision 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HEARD_WITHIN_MS = 1_000  # what a 200 took is decided a moment later (Z-7)

Pair = tuple[str, str]  # observed, observer
Seen = tuple[float, dict[str, Any]]  # when, by the same measure as events; a transaction


def server_of(user_id: str) -> str:
    """The server name in a user ID."""
    return user_id.partition(":")[2]


@dataclass(frozen=True)
class Granted:
    """`observed` lets `observer` watch."""

    observed: str
    observer: str


@dataclass(frozen=True)
class Ended:
    """`observed` takes it back."""

    observed: str
    observer: str


@dataclass(frozen=True)
class RoomHas:
    """A server was told who is in a room."""

    server: str
    room_id: str
    members: frozenset[str]


@dataclass(frozen=True)
class DataLost:
    """A server forgot everything."""

    server: str


@dataclass(frozen=True)
class DataKept:
    """A server's data was copied."""

    server: str


@dataclass(frozen=True)
class DataBack:
    """A server went back to its copy."""

    server: str


@dataclass(frozen=True)
class PathLies:
    """From now on a path says 200 to what it throws away, or no more."""

    origin: str
    destination: str
    lies: bool


Event = Granted | Ended | RoomHas | DataLost | DataKept | DataBack | PathLies


@dataclass
class Rights:
    """What is allowed now, while a story's events and transactions pass by once more."""

    grants: set[Pair] = field(default_factory=set)
    rooms: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    muted: set[tuple[str, str]] = field(default_factory=set)  # observed, server
    goodbyes: dict[tuple[str, str], str | None] = field(default_factory=dict)  # and what took them
    kept: dict[str, set[Pair]] = field(default_factory=dict)
    liars: set[tuple[str, str]] = field(default_factory=set)
    heard: list[tuple[float, Pair | tuple[str, str], str]] = field(default_factory=list)

    def allow(self, observed: str, server: str) -> bool:
        """Whether `server` may be told of `observed` now."""
        by_list = any(of == observed and server_of(to) == server for of, to in self.grants)
        if by_list and (observed, server) not in self.muted:
            return True
        told = (members for (by, _), members in self.rooms.items() if by == server_of(observed))
        return any(observed in all_ and server in map(server_of, all_) for all_ in told)

    def take(self, event: Event) -> None:
        """A right began or ended."""
        match event:
            case Granted(observed, observer):
                self.grants.add((observed, observer))
                self.muted.discard((observed, server_of(observer)))
            case Ended(observed, observer):
                self._end((observed, observer))
            case RoomHas(server, room_id, members):
                self.rooms[server, room_id] = members
            case DataLost(server):
                self._set(server, set())
                self.rooms = {key: members for key, members in self.rooms.items() if key[0] != server}
            case DataKept(server):
                self.kept[server] = {pair for pair in self.grants if server_of(pair[0]) == server}
            case DataBack(server):
                self._set(server, self.kept[server])
            case PathLies(origin, destination, lies):
                change = self.liars.add if lies else self.liars.discard
                change((origin, destination))

    def leaks_in(self, seen: dict[str, Any]) -> list[str]:
        """What a transaction says that it must not."""
        self.hear(seen["sent_ms"])
        leaks = []
        for edu in seen["body"]["edus"]:
            content = edu["content"]
            if edu["edu_type"] == "m.presence":
                leaks += [leak for push in content.get("push", ()) if (leak := self._leak(seen, push))]
            self.listen(seen, edu["edu_type"], content)
        return leaks

    def _leak(self, seen: dict[str, Any], push: dict[str, Any]) -> str | None:
        observed, server = push["user_id"], seen["to"]
        if server_of(observed) != seen["from"]:
            return f"{seen['from']} speaks for {observed}"
        if self.allow(observed, server):
            return None
        key = (observed, server)
        says_nothing = push["presence"] == "offline" and not push.keys() & {"status_msg", "currently_active"}
        if says_nothing and self.goodbyes.get(key, "never") in (None, seen["txn_id"]):
            if seen["status"] == 200:
                self.goodbyes[key] = seen["txn_id"]
            return None
        return f"{seen['txn_id']}: {server} has no right to {push}"

    def listen(self, seen: dict[str, Any], edu_type: str, content: dict[str, Any]) -> None:
        """Remember what the receiver is about to understand."""
        if seen["status"] != 200 or (seen["from"], seen["to"]) in self.liars:
            return
        at_ms = seen["answered_ms"] + HEARD_WITHIN_MS
        if edu_type == "org.fedpresence.presence_drop":
            self.heard.append((at_ms, (content["observed_user"], content["observer_user"]), "drop"))
        elif edu_type == "m.presence_invite":  # S:T-9 clears a mute at once
            self.muted.discard((content["observed_user"], seen["from"]))
        elif edu_type == "m.presence":
            for user_id in content.get("poll", ()):
                self.muted.discard((user_id, seen["from"]))
            for user_id in content.get("unpoll", ()):
                self.heard.append((at_ms, (user_id, seen["from"]), "unpoll"))

    def hear(self, now_ms: float) -> None:
        """What was understood before now holds."""
        for at_ms, what, kind in [each for each in self.heard if each[0] < now_ms]:
            self.heard.remove((at_ms, what, kind))
            if kind == "drop":
                self.grants.discard(what)
            else:
                self.muted.add(what)

    def _end(self, pair: Pair) -> None:
        observed, observer = pair
        server = server_of(observer)
        had_right = self.allow(observed, server)
        self.grants.discard(pair)
        if had_right and not self.allow(observed, server):
            self.goodbyes[observed, server] = None

    def _set(self, server: str, grants: set[Pair]) -> None:
        self.grants = {pair for pair in self.grants if server_of(pair[0]) != server} | grants
        self.muted = {key for key in self.muted if server_of(key[0]) != server}


def leaks(events: Iterable[tuple[float, Event]], seen: Iterable[Seen], ours: Iterable[str]) -> list[str]:
    """Every push in these transactions that `ours`, the servers under test, must not have sent."""
    rights, found = Rights(), []
    ordered: list[tuple[float, int, Any]] = [(at, 0, event) for at, event in events]
    ordered += [(at, 1, transaction) for at, transaction in seen]
    ours = set(ours)
    for _, is_transaction, what in sorted(ordered, key=lambda each: each[:2]):
        if not is_transaction:
            rights.take(what)
        elif what["from"] in ours:
            found += rights.leaks_in(what)
        else:
            rights.hear(what["sent_ms"])
            for edu in what["body"]["edus"]:
                rights.listen(what, edu["edu_type"], edu["content"])
    return found
